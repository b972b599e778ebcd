"""Where the time of one picture goes: the pipeline's own functions, timed from outside.

The detector is built from networks that are wrapped, and the functions that its modules call are replaced by timed ones
while a picture is measured; nothing in `handlers` knows of it. A stage's time is without that of the stages inside it,
so that all of them together are the whole, and what no stage covers is `rest`.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from handlers import classifier as classifier_module
from handlers import pipeline as pipeline_module
from handlers.detection import area_pooling, mtcnn, proposals
from handlers.detection.mtcnn import MtcnnDetector, MtcnnNetworks
from handlers.detection.tiles import TileLayout
from handlers.engines import Network
from handlers.pipeline import Pipeline

DECODE, TABLE, PYRAMID = "decode", "summed-area table", "pyramid and P-Net's first convolution"
SCREEN, EXACT, BOXES = "P-Net screen", "P-Net exact", "boxes and suppression"
R_CROPS, RNET, O_CROPS, ONET_SCREEN, ONET = "R crops", "R-Net", "O crops", "O-Net screen", "O-Net"
FACE_CROPS, PREPROCESS, CLASSIFY, REST = "face crops", "preprocess", "classify", "rest"
STAGES = (
    *(DECODE, TABLE, PYRAMID, SCREEN, EXACT, R_CROPS, RNET, O_CROPS, ONET_SCREEN, ONET),
    *(BOXES, FACE_CROPS, PREPROCESS, CLASSIFY, REST),
)
DETECTION_STAGES = (TABLE, PYRAMID, SCREEN, EXACT, R_CROPS, RNET, O_CROPS, ONET_SCREEN, ONET, BOXES)
NETWORK_STAGES = (SCREEN, EXACT, RNET, ONET_SCREEN, ONET, CLASSIFY)

TILES, CELLS, CELLS_EXACT, CELLS_PASSED = "tiles", "cells", "cells looked at again", "cells passed"
R_CANDIDATES, O_SCREENED, O_CANDIDATES = "R-Net candidates", "O-Net candidates screened", "O-Net candidates in float32"
FACES = "faces"
COUNTS = (TILES, CELLS, CELLS_EXACT, CELLS_PASSED, R_CANDIDATES, O_SCREENED, O_CANDIDATES, FACES)

_RNET_PX = 24


class StageClock:
    """Seconds in each stage, without those of stages within it, and how many things each looked at."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; the stage around it waits meanwhile."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def timed(self, function: Callable[..., Any], stage: str | Callable[..., str]) -> Callable[..., Any]:
        """The function as a stage; `stage` may choose the name by the arguments."""

        def run(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage if isinstance(stage, str) else stage(*arguments, **options)):
                return function(*arguments, **options)

        return run

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class StagedPipeline:
    """A pipeline whose every call says where its time went. One thread at a time.

    networks: the detector's. whole: the pipeline whose classifier, limits and smallest face are taken.
    """

    def __init__(self, networks: MtcnnNetworks, whole: Pipeline) -> None:
        self._clock = StageClock()
        self._pipeline = replace(whole, detector=MtcnnDetector(self._watched(networks)))

    def analyze(self, image: bytes) -> tuple[dict[str, float], dict[str, int]]:
        """Milliseconds of each of `STAGES`, and how many candidates there were at each of `COUNTS`."""
        self._clock.seconds.clear()
        self._clock.counts.clear()
        with self._installed(), self._clock.stage(REST):
            (result,) = self._pipeline.analyze([image])
        if isinstance(result, Exception):
            raise result
        counts = {name: self._clock.counts[name] for name in COUNTS} | {FACES: len(result.faces)}
        return {name: self._clock.seconds[name] * 1000 for name in STAGES}, counts

    def _watched(self, networks: MtcnnNetworks) -> MtcnnNetworks:
        parts = networks.proposal
        return replace(
            networks,
            proposal=replace(
                parts,
                screen=self._counted(parts.screen, SCREEN, TILES, CELLS),
                exact=self._counted(parts.exact, EXACT, CELLS_EXACT),
            ),
            rnet=self._counted(networks.rnet, RNET, R_CANDIDATES),
            onet=self._counted(networks.onet, ONET, O_CANDIDATES),
            onet_screen=networks.onet_screen and self._counted(networks.onet_screen, ONET_SCREEN, O_SCREENED),
        )

    def _counted(self, network: Network, stage: str, inputs_are: str, outputs_are: str | None = None) -> Network:
        def run(inputs: Any) -> Any:
            with self._clock.stage(stage):
                outputs = network(inputs)
            self._clock.counts[inputs_are] += len(inputs)
            if outputs_are is not None:
                self._clock.counts[outputs_are] += outputs[0].size
            return outputs

        return run

    @contextmanager
    def _installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, stage in _FUNCTIONS:
                stack.enter_context(patch.object(owner, name, self._clock.timed(getattr(owner, name), stage)))
            stack.enter_context(patch.object(proposals, "boxes_of_cells", self._counting_boxes()))
            yield

    def _counting_boxes(self) -> Callable[..., Any]:
        timed = self._clock.timed(proposals.boxes_of_cells, BOXES)

        def run(cells: Any, *arguments: Any) -> Any:
            self._clock.counts[CELLS_PASSED] += len(cells)
            return timed(cells, *arguments)

        return run


def _crop_stage(*arguments: Any) -> str:
    return R_CROPS if arguments[-1].shape[-1] == _RNET_PX else O_CROPS


_FUNCTIONS: tuple[tuple[Any, str, str | Callable[..., str]], ...] = (
    (pipeline_module, "decode_image", DECODE),
    (area_pooling, "summed_area", TABLE),
    (proposals, "pnet_features", PYRAMID),
    (proposals, "cells_over", SCREEN),
    (proposals, "patches_of", EXACT),
    (area_pooling, "crop_means", _crop_stage),
    (TileLayout, "__init__", BOXES),
    (TileLayout, "cells", BOXES),
    *((proposals, name, BOXES) for name in ("suppress", "regress")),
    *((mtcnn, name, BOXES) for name in ("suppress", "regress", "to_squares", "clip_to_pixels")),
    (pipeline_module, "cut_face", FACE_CROPS),
    (pipeline_module, "resize_crop", FACE_CROPS),
    (classifier_module, "preprocess", PREPROCESS),
    (pipeline_module, "classify", CLASSIFY),
)
