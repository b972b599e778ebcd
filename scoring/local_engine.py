"""The engine of one machine: a crew of worker processes here; the parts are written by this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass

from scoring.config import RunConfig
from scoring.crew import Crew, ScorerLike
from scoring.engine import PartRecord, Progress
from scoring.output import Output
from scoring.parts import Part
from scoring.write_parts import write_scored


@dataclass(frozen=True)
class LocalEngine:
    """An `Engine`. make_scorer, n_workers, file_timeout_s, niceness: see `Crew`."""

    make_scorer: Callable[[], ScorerLike]
    config: RunConfig
    output: Output
    n_workers: int
    file_timeout_s: float
    niceness: int = 0

    def score(self, parts: Iterable[Part], progress: Progress) -> Generator[PartRecord, None, None]:
        """See `scoring.engine.Engine`. Memory does not grow with the number of parts."""
        with (
            Crew(self.make_scorer, self.n_workers, file_timeout_s=self.file_timeout_s, niceness=self.niceness) as crew,
            closing(crew.score(parts, progress)) as scored,
        ):
            yield from write_scored(scored, self.config, self.output)
