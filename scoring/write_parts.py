"""Scored parts to files of the output, and the files that stand there to the same records."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Generator, Iterable, Sequence

from scoring.config import RunConfig
from scoring.engine import PartRecord
from scoring.errors import RETRIABLE, OutputError
from scoring.formats import encode, part_name, tally_of
from scoring.output import Output
from scoring.parts import Outcome, Part
from scoring.rows import schema, table_of
from scoring.tally import Tally

_logger = logging.getLogger(__name__)


def write_scored(
    scored: Iterable[tuple[Part, Sequence[Outcome]]], config: RunConfig, output: Output
) -> Generator[PartRecord, None, None]:
    """Write each part as it comes and yield its record once it stands. Lazy: one part is in memory.

    Raises OutputError, OptionsError before anything is scored when the model's labels make no columns, and ValueError
    unless there is one outcome an entry.
    """
    schema(config.labels)
    for part, outcomes in scored:
        table = table_of(part.entries, outcomes, config)
        data = encode(table, config.format)
        name = part_name(part, config.format)
        output.write_part(name, data)
        yield _record(name, data, table.num_rows, Tally.of(outcomes))


def standing_record(
    name: str, n_inputs: int, config: RunConfig, output: Output, retried: Collection[str] = RETRIABLE
) -> PartRecord | None:
    """The record of a part whose file stands already under `name`, or None when it has to be made again.

    That is so when the file is not the whole part (and a warning says so), and when it has inputs that failed with one
    of the codes in `retried`. Reads the file. Raises OutputError when it cannot be had.
    """
    data = output.read_part(name)
    try:
        tally, n_rows = tally_of(data, config.format)
    except OutputError as error:
        _logger.warning("%s has to be made again: %s", name, error)
        return None
    if tally.n_inputs != n_inputs:
        _logger.warning("%s has to be made again: %d inputs of %d", name, tally.n_inputs, n_inputs)
        return None
    if not tally.errors.keys().isdisjoint(retried):
        return None
    return _record(name, data, n_rows, tally)


def _record(name: str, data: bytes, n_rows: int, tally: Tally) -> PartRecord:
    return PartRecord(name, hashlib.sha256(data).hexdigest(), len(data), n_rows, tally)
