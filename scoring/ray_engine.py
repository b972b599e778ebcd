"""The engine on Ray Data: a data set of parts, mapped to records by a pool of actors, on this machine or a cluster."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scoring.config import RunConfig
from scoring.engine import PartRecord, Progress
from scoring.errors import EngineError
from scoring.output import Output
from scoring.parts import Part
from scoring.ray_session import ray_session

if TYPE_CHECKING:
    from scoring.crew import ScorerLike

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_PATIENCE_S = 60.0


class RayEngine:
    """Scores parts in actors of Ray, one core each.

    make_scorer: pickled, called in a process of each actor. n_workers: actors; None is one a core of the Ray used.
    file_timeout_s: longest time for one file. address: of a running cluster (`auto`, `host:port`); None starts Ray on
    this machine for the time of the run. A Ray that this process is connected to already is used in any case.

    Every node needs the same Mien, models, input and output as the driver, by the same names, and its own credentials.
    """

    def __init__(
        self,
        make_scorer: Callable[[], ScorerLike],
        config: RunConfig,
        output: Output,
        n_workers: int | None,
        file_timeout_s: float,
        address: str | None,
    ) -> None:
        self._constructor_arguments = (make_scorer, config, output, file_timeout_s)
        self._n_workers, self._address = n_workers, address

    def score(self, parts: Iterable[Part], progress: Progress) -> Generator[PartRecord, None, None]:
        """As in `scoring.engine.Engine`, but all of `parts` is read before the first one is scored, and held packed.

        Raises OptionsError without the package ray, EngineError when Ray cannot be had or gives up.
        """
        from scoring.ray_worker import packed_part

        packed_parts = []
        next_tick_s = 0.0
        for part in parts:
            packed_parts.append(packed_part(part))
            if time.monotonic() >= next_tick_s:
                progress.tick()
                next_tick_s = time.monotonic() + _TICK_S
        if not packed_parts:
            return
        drive = _Drive(packed_parts, self._constructor_arguments, self._n_workers, self._address)
        del packed_parts
        drive.start()
        try:
            for record in drive.records(progress):
                progress.scored(record.tally)
                yield record
        finally:
            drive.stop()


class _Drive(threading.Thread):
    """All that has to do with Ray, in a thread: Ray's calls block for seconds, and a run wants to be told of each one.

    packed_parts: emptied once they are in Ray's object store.
    """

    def __init__(
        self,
        packed_parts: list[bytes],
        constructor_arguments: tuple[Any, ...],
        n_workers: int | None,
        address: str | None,
    ) -> None:
        super().__init__(name="ray-engine", daemon=True)
        self._packed_parts = packed_parts
        self._constructor_arguments = constructor_arguments
        self._n_workers, self._address = n_workers, address
        self._said: queue.SimpleQueue[PartRecord | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._dataset: Any = None

    def records(self, progress: Progress) -> Generator[PartRecord, None, None]:
        """The records as they come, until all are there and Ray has ended. Raises what has ended the work, too."""
        while True:
            progress.tick()
            try:
                said = self._said.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if said is None:
                return
            if isinstance(said, BaseException):
                raise said
            yield said

    def stop(self) -> None:
        """End all work, and wait for the end."""
        self._stopped.set()
        give_up_s = time.monotonic() + _PATIENCE_S
        while self.is_alive() and time.monotonic() < give_up_s:
            self._end_execution()
            self.join(_TICK_S)
        if self.is_alive():
            logger.warning("Ray does not end; it is left to itself")

    def run(self) -> None:
        """Say every record, then None, or what has gone wrong."""
        try:
            with ray_session(self._address, self._n_workers) as n_workers, _silent_console():
                try:
                    self._say_records(n_workers)
                finally:
                    self._end_execution()
        except BaseException as error:
            self._said.put(error)
        else:
            self._said.put(None)

    def _say_records(self, n_workers: int) -> None:
        import ray

        from scoring.ray_worker import outcome_of

        n_records, n_parts = 0, len(self._packed_parts)
        if self._stopped.is_set():
            return
        try:
            with _data_context():
                self._dataset = self._mapped(n_workers)
                tables = self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for table in tables:
                if self._stopped.is_set():
                    return
                outcome = outcome_of(table)
                if isinstance(outcome, Exception):
                    raise outcome
                self._said.put(outcome)
                n_records += 1
        except ray.exceptions.RayError as error:
            if self._stopped.is_set():
                return
            raise EngineError(f"Ray gave up: {_last_line(error)}") from error
        if n_records != n_parts and not self._stopped.is_set():
            raise EngineError(f"Ray ended after {n_records} of {n_parts} parts")

    def _mapped(self, n_workers: int) -> Any:
        import ray.data

        from scoring.ray_worker import PartScorer, table_of_part

        tables = [table_of_part(packed) for packed in self._packed_parts]
        self._packed_parts.clear()
        return ray.data.from_arrow(tables).map_batches(
            PartScorer,
            fn_constructor_args=self._constructor_arguments,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
            # Ray Data restarts actors and repeats what was lost with them for ever. That is right here: what fails for
            # good is an outcome, and what is repeated is nodes that went.
            compute=ray.data.ActorPoolStrategy(
                size=min(n_workers, len(tables)),
                # None waits behind another: a part takes long, and so the last ones spread over all actors.
                max_tasks_in_flight_per_actor=1,
            ),
        )

    def _end_execution(self) -> None:
        """End what Ray Data runs for our data set, if it does. It has no public way to end it from another thread."""
        if self._dataset is None:
            return
        name = f"StreamingExecutor-{self._dataset.get_dataset_id()}"
        for thread in threading.enumerate():
            if thread.name == name and hasattr(thread, "shutdown"):
                try:
                    thread.shutdown(force=True)
                except Exception:  # what has ended the work is on its way to the caller, and says more
                    logger.debug("Ray Data did not shut down in order", exc_info=True)


@contextmanager
def _data_context() -> Iterator[None]:
    """Settings for the data sets that are made within; those of the process stay as they are."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a part may take as long as its files may
    with DataContext.current(context):
        yield


@contextmanager
def _silent_console() -> Iterator[None]:
    """Ray Data writes its log to its files only: our caller hears of everything in it that matters."""
    consoles = [
        handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


def _last_line(error: Exception) -> str:
    """The line of a Ray error that says what happened; those before it are the traceback of another process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
