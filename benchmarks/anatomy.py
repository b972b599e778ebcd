"""One picture taken apart on one thread: the time of each of our stages, and of the bare networks."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.floor import Floor, with_whole_pnet
from benchmarks.stages import StagedPipeline
from benchmarks.timing import turn_ms
from handlers.detection.mtcnn import load_networks
from handlers.engines import choose_engine
from handlers.pipeline import load_pipeline
from model_store import registry


class Anatomy:
    """The default models on an engine. folder: an empty one, for what the floor needs beside them."""

    def __init__(self, engine: str, folder: Path) -> None:
        chosen = choose_engine(engine, threads=1)
        model = registry.load_default("face-detection")
        networks = load_networks(chosen, model)
        whole = load_pipeline(engine=engine)
        self._staged = StagedPipeline(networks, whole)
        self._floor = Floor(chosen, networks, whole, with_whole_pnet(model, networks.proposal.stem, folder))

    def prepare(self, image: bytes) -> None:
        """Take this picture for all that follows, and warm up on it."""
        self._image = image
        self._calls = self._floor.calls(image)
        self._staged.analyze(image)
        for call in self._calls.values():
            call()

    def counts(self) -> dict[str, int]:
        """How many candidates the picture has at each of `stages.COUNTS`."""
        return self._staged.analyze(self._image)[1]

    def stages(self, least_s: float) -> list[dict[str, float]]:
        """Milliseconds of each of `stages.STAGES` in each call, for at least so many seconds."""
        calls: list[dict[str, float]] = []
        begin = time.perf_counter()
        while not calls or time.perf_counter() - begin < least_s:
            calls.append(self._staged.analyze(self._image)[0])
        return calls

    def floor(self, least_s: float) -> dict[str, list[float]]:
        """Milliseconds of each bare network, each for at least so many seconds."""
        return {name: turn_ms(call, least_s) for name, call in self._calls.items()}
