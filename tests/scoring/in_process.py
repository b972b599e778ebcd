"""An engine without processes, which counts what it scores: for tests of the run itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

from handlers.errors import HandlerError
from scoring.config import RunConfig
from scoring.engine import PartRecord, Progress
from scoring.output import Output
from scoring.parts import Entry, Outcome, Part
from scoring.scorer import MakeScorer
from scoring.sources import Source
from scoring.tally import Tally
from scoring.write_parts import write_scored


class InProcessEngine:
    """`scored` are the paths in the order in which they were scored. before: called with each part's index."""

    def __init__(
        self, source: Source, config: RunConfig, output: Output, before: Callable[[int], None] | None = None
    ) -> None:
        self._scorer = MakeScorer(source, config)()
        self._config, self._output, self._before = config, output, before
        self.scored: list[str] = []

    def score(self, parts: Iterable[Part], progress: Progress) -> Generator[PartRecord, None, None]:
        return write_scored(self._outcomes(parts, progress), self._config, self._output)

    def _outcomes(self, parts: Iterable[Part], progress: Progress) -> Iterator[tuple[Part, list[Outcome]]]:
        for part in parts:
            if self._before is not None:
                self._before(part.index)
            outcomes = [self._score(entry) for entry in part.entries]
            progress.scored(Tally.of(outcomes))
            progress.tick()
            yield part, outcomes

    def _score(self, entry: Entry) -> Outcome:
        self.scored.append(entry.path)
        image = self._scorer.read(entry)
        return image if isinstance(image, HandlerError) else self._scorer.judge(image)


class RecordingProgress:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.n_listed = -1
        self.n_ticks = 0
        self.standing_tally, self.scored_tally = Tally(), Tally()

    def listed(self, n_entries: int, *, done: bool) -> None:
        if done:
            self.n_listed = n_entries

    def standing(self, tally: Tally) -> None:
        self.standing_tally.add(tally)

    def scored(self, tally: Tally) -> None:
        self.scored_tally.add(tally)

    def tick(self) -> None:
        self.n_ticks += 1
