"""One part in, its record out, in an actor of Ray Data: scores as the local engine does, and writes the part itself.

Ray is not imported here. What travels between driver and actors are pickles in Arrow tables of one row.
"""

from __future__ import annotations

import pickle
import traceback
import zlib
from collections.abc import Callable

import pyarrow as pa

from handlers.errors import HandlerError
from scoring.config import RunConfig
from scoring.crew import Crew, ScorerLike
from scoring.engine import PartRecord
from scoring.errors import EngineError, OutputError, ScoringError
from scoring.formats import part_name
from scoring.output import Output
from scoring.parts import Part
from scoring.tally import Tally
from scoring.write_parts import standing_record, write_scored

_PART, _OUTCOME = "part", "outcome"


def packed_part(part: Part) -> bytes:
    """A part as it travels: about thirty bytes an entry, where the objects take several hundred."""
    return zlib.compress(pickle.dumps(part, pickle.HIGHEST_PROTOCOL))


def table_of_part(packed: bytes) -> pa.Table:
    """The table of one row from which an actor takes a part."""
    return _one_row(_PART, packed)


def outcome_of(table: pa.Table) -> PartRecord | Exception:
    """What became of a part, from the table of one row that an actor has made: its record, or what must end the run."""
    outcome: PartRecord | Exception = pickle.loads(table[_OUTCOME][0].as_py())
    return outcome


def _one_row(column: str, value: bytes) -> pa.Table:
    # Not a numpy array of bytes: those lose the zeros at their ends.
    return pa.table({column: pa.array([value], pa.large_binary())})


class PartScorer:
    """Called with one part after the other; keeps a crew of one worker over them, which loads its pipeline once.

    What the worker does cannot end the actor, so that Ray restarts actors for lost processes and nodes only. What must
    end the run is an outcome, too: raised here, it would come out as a traceback through Ray's own code.
    """

    def __init__(
        self, make_scorer: Callable[[], ScorerLike], config: RunConfig, output: Output, file_timeout_s: float
    ) -> None:
        self._make_scorer, self._file_timeout_s = make_scorer, file_timeout_s
        self._config, self._output = config, output
        self._crew: Crew | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table of a part to the table of its outcome."""
        try:
            outcome = pickle.dumps(self._record(pickle.loads(zlib.decompress(table[_PART][0].as_py()))))
        except Exception as error:
            outcome = _pickled_error(error)
        return _one_row(_OUTCOME, outcome)

    def _record(self, part: Part) -> PartRecord:
        record = self._standing(part)
        if record is None:
            scored = self._ready_crew().score([part], _SilentProgress())
            [record] = write_scored(scored, self._config, self._output)  # to its end, which is what keeps the worker
        return record

    def _standing(self, part: Part) -> PartRecord | None:
        """The record of a part whose file stands although nobody knows: its actor was lost between file and answer."""
        try:
            return standing_record(part_name(part, self._config.format), len(part.entries), self._config, self._output)
        except OutputError:
            return None  # as good as always it is not there; if it is the output that is gone, writing will say so

    def _ready_crew(self) -> Crew:
        if self._crew is None:
            self._crew = Crew(self._make_scorer, 1, file_timeout_s=self._file_timeout_s).__enter__()
        return self._crew


def _pickled_error(error: Exception) -> bytes:
    if not isinstance(error, (ScoringError, HandlerError)):
        error.add_note("In an actor of Ray:\n" + "".join(traceback.format_exception(error)))
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        pickled = pickle.dumps(EngineError(f"scoring a part failed: {type(error).__name__}: {error}"))
    return pickled


class _SilentProgress:
    """The driver tells the run's progress, a part at a time."""

    def listed(self, n_entries: int, *, done: bool) -> None: ...

    def standing(self, tally: Tally) -> None: ...

    def scored(self, tally: Tally) -> None: ...

    def tick(self) -> None: ...
