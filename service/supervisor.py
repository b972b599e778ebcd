"""The parent of the service's processes: starts its workers, replaces dead ones, and stops them in order.

BentoML's own process manager sends SIGTERM to all at once, so that requests under way lose their runners; it looks for
dead workers every 10 s only, in containers never; and it opens ports to control itself. Only its worker is used here.

The listening sockets belong to this process. So a port in use is known before anything starts, and while a worker is
dead its connections wait for the next one instead of failing.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from handlers.cores import ONE_THREAD_EACH
from service import lifeline
from service.listeners import BACKLOG, listen, listen_at, uri_of
from service.logs import configure_logs
from service.settings import JOBS_DIR_VARIABLE, RUNNERS_VARIABLE, WORKER_VARIABLE, Settings
from service.state_folder import StateFolder, owned_state_folder

logger = logging.getLogger(__name__)

SETTLED_S = 10.0
"""A worker that lived this long had started; one that dies earlier makes the next one wait."""

MAX_EARLY_DEATHS = 5
"""So many in a row, of a kind of which none ever settled, and the supervisor gives up."""

_MAX_DELAY_S = 30.0
_RUNNER_GRACE_S = 3.0
_POLL_S = 0.2
# Longer than any client of ours keeps an idle connection: the side that closes first decides who may be surprised.
_KEEP_ALIVE_S = 75


API, JOBS = "api", "jobs"


@dataclass(frozen=True)
class WorkerKind:
    """Equal workers; those of the API share a socket. name: in logs and metrics. service: BentoML's name, None for one
    that has no socket and is not BentoML's. essential: the service makes no sense when it never starts.
    """

    name: str
    service: str | None
    n_workers: int
    essential: bool = True


def worker_kinds(settings: Settings) -> list[WorkerKind]:
    """The kinds that these settings want, the API first."""
    kinds = [WorkerKind(API, "mien", settings.api_workers)]
    if settings.topology == "runners":
        kinds.append(WorkerKind("detector", "mien_detector", settings.n_detector_workers))
        kinds.append(WorkerKind("emotion", "mien_emotion", settings.emotion_workers))
    if settings.scoring_roots:
        # One, as jobs are worked on one after the other; a picture that kills a process must not end the doors.
        kinds.append(WorkerKind(JOBS, None, 1, essential=False))
    return kinds


@dataclass
class Backoff:
    """How long the replacement of a dead worker waits: 1, 2, 4 … 30 s as long as they die early, else not at all."""

    n_early_deaths: int = 0

    def died(self, lived_s: float) -> float:
        """Take note of a death and return the seconds to wait."""
        if lived_s >= SETTLED_S:
            self.n_early_deaths = 0
            return 0.0
        self.n_early_deaths += 1
        return float(min(2.0 ** (self.n_early_deaths - 1), _MAX_DELAY_S))


@dataclass
class Worker:
    """The place of one worker: the process that fills it, or None and when (`time.monotonic`) the next one starts."""

    kind: WorkerKind
    index: int
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    due_s: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)

    def about(self) -> dict[str, object]:
        """The fields of a log line."""
        return {"worker": self.kind.name, "index": self.index, "pid": self.process and self.process.pid}


class Signals:
    """Counts SIGTERM and SIGINT. `wait` ends at once at any of them and at the death of a child."""

    def __init__(self) -> None:
        self.n_stops = 0
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # without a handler it would not wake anybody

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.n_stops += 1

    def wait(self, timeout_s: float) -> None:
        """Wait for a signal."""
        select.select([self._wakes], [], [], max(0.0, timeout_s))
        with suppress(BlockingIOError):
            self._wakes.recv(4096)


class Supervisor:
    """Keeps the workers of some kinds alive. start: makes a process for a worker, may raise OSError."""

    def __init__(
        self,
        kinds: Sequence[WorkerKind],
        start: Callable[[Worker], subprocess.Popen[bytes]],
        signals: Signals,
        on_restart: Callable[[Worker], None],
        on_death: Callable[[Worker], None],
    ) -> None:
        self._start_process, self._signals = start, signals
        self._on_restart, self._on_death = on_restart, on_death
        self._workers = [Worker(kind, index) for kind in kinds for index in range(1, kind.n_workers + 1)]
        self._settled: set[WorkerKind] = set()

    def run(self) -> bool:
        """Start every worker and replace the dead until a signal says stop: True; False when it makes no sense."""
        for worker in self._workers:
            self._start(worker)
        while not self._signals.n_stops:
            for worker in self._workers:
                self._look_after(worker)
                hopeless = worker.backoff.n_early_deaths >= MAX_EARLY_DEATHS and worker.kind not in self._settled
                if hopeless and worker.kind.essential:
                    logger.error("gave up: the %s worker cannot start", worker.kind.name)
                    return False
            self._signals.wait(_POLL_S)
        return True

    def stop(self, close_listener: Callable[[], None], grace_s: float) -> bool:
        """Stop taking requests, end jobs and the API workers, then the runners. True when all ended by themselves.

        grace_s: how long the first ones may take for the requests under way. One more signal ends all patience.
        """
        logger.info("stopping", extra={"grace_s": grace_s})
        close_listener()
        last_n_stops = self._signals.n_stops
        clean = True
        for workers, patience_s in (
            ([worker for worker in self._workers if worker.kind.name in (API, JOBS)], grace_s),
            ([worker for worker in self._workers if worker.kind.name not in (API, JOBS)], _RUNNER_GRACE_S),
        ):
            clean &= self._end(workers, patience_s, last_n_stops)
        logger.info("stopped", extra={"clean": clean})
        return clean

    def _look_after(self, worker: Worker) -> None:
        if worker.process is not None:
            lived_s = time.monotonic() - worker.started_s
            if lived_s >= SETTLED_S:
                self._settled.add(worker.kind)
            code = worker.process.poll()
            if code is None:
                return
            died = {**worker.about(), "exit": exit_name(code), "lived_s": round(lived_s, 1)}
            logger.warning("worker died", extra=died)
            self._on_death(worker)
            self._vacate(worker, lived_s)
        if time.monotonic() >= worker.due_s:
            self._on_restart(worker)
            self._start(worker)

    def _start(self, worker: Worker) -> None:
        worker.started_s = time.monotonic()
        try:
            worker.process = self._start_process(worker)
        except OSError as error:
            logger.error("worker cannot be started: %s", error, extra=worker.about())
            self._vacate(worker, 0.0)
        else:
            logger.info("worker started", extra=worker.about())

    def _vacate(self, worker: Worker, lived_s: float) -> None:
        worker.process = None
        worker.due_s = time.monotonic() + worker.backoff.died(lived_s)

    def _end(self, workers: Sequence[Worker], patience_s: float, last_n_stops: int) -> bool:
        living = [worker.process for worker in workers if worker.process is not None]
        for process in living:
            process.terminate()
        end_s = time.monotonic() + patience_s
        while living := [process for process in living if process.poll() is None]:
            left_s = end_s - time.monotonic()
            if left_s <= 0 or self._signals.n_stops > last_n_stops:
                break
            self._signals.wait(min(left_s, _POLL_S))
        for process in living:
            logger.warning("worker killed", extra={"pid": process.pid})
            process.kill()
            process.wait()
        return not living


def supervise(settings: Settings) -> int:
    """Run the service until SIGTERM or SIGINT and return the exit code: 0 when everything ended by itself, else 1.

    Raises StateError and PortError.
    """
    signals = Signals()
    with ExitStack() as stack:
        state = stack.enter_context(owned_state_folder(settings.state_dir, _bentoml_home()))
        environment = worker_environment(state)
        environment[JOBS_DIR_VARIABLE] = str((settings.jobs_dir or state.path / "jobs").absolute())
        if not _models_are_there(environment, signals):
            return int(not signals.n_stops)
        kinds = worker_kinds(settings)
        public = stack.enter_context(listen(settings.host, settings.port))
        runners = {
            (kind.service, index): stack.enter_context(listen_at(state.socket_path(f"{kind.name}-{index}")))
            for kind in kinds[1:]
            if kind.service
            for index in range(1, kind.n_workers + 1)
        }
        uris: dict[str, list[str]] = {}
        for (service, _), listener in runners.items():
            uris.setdefault(service, []).append(uri_of(listener))
        first = {service: own[0] for service, own in uris.items()} | {str(kinds[0].service): uri_of(public)}
        alive, holds_alive = os.pipe()
        stack.callback(os.close, holds_alive)
        environment |= {
            "BENTOML_RUNNER_MAP": json.dumps(first),
            RUNNERS_VARIABLE: json.dumps(uris),
            lifeline.VARIABLE: str(alive),
        }

        def start(worker: Worker) -> subprocess.Popen[bytes]:
            listener = runners.get((worker.kind.service, worker.index), public) if worker.kind.service else None
            descriptor = None if listener is None else listener.fileno()
            return subprocess.Popen(
                _command(worker, descriptor, settings.grace_s),
                env={**environment, WORKER_VARIABLE: metrics_name(worker)},
                stdin=subprocess.DEVNULL,
                pass_fds=(alive,) if descriptor is None else (descriptor, alive),
                start_new_session=True,  # a Ctrl-C at the terminal is for this process only
            )

        configure_logs(settings.log_level)
        on_restart, on_death = _metrics(state, kinds)
        supervisor = Supervisor(kinds, start, signals, on_restart, on_death)
        told_to_stop = supervisor.run()
        clean = supervisor.stop(public.close, settings.grace_s)
        return 0 if told_to_stop and clean else 1


def worker_environment(state: StateFolder) -> dict[str, str]:
    """The environment of every process that the supervisor starts: nothing is written elsewhere, nobody is called home.

    Inference libraries take one thread a process unless told otherwise, as there are as many processes as cores.
    """
    environment = {**ONE_THREAD_EACH, **os.environ, **state.environment()}
    environment["BENTOML_DO_NOT_TRACK"] = "True"
    environment.pop("BENTOML_CONTAINERIZED", None)
    return environment


def exit_name(code: int) -> str:
    """An exit code of `subprocess` as a person says it: a signal's name or the number."""
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _bentoml_home() -> Path:
    return Path(os.path.expandvars(os.environ.get("BENTOML_HOME", "~/bentoml"))).expanduser()


def _models_are_there(environment: dict[str, str], signals: Signals) -> bool:
    # In a process of its own, because what reading models imports would stay in this one for good.
    check = subprocess.Popen([sys.executable, "-m", "service", "--check"], env=environment, start_new_session=True)
    while check.poll() is None:
        if signals.n_stops:
            check.kill()
        signals.wait(_POLL_S)
    return check.returncode == 0


def metrics_name(worker: Worker) -> str:
    """Under which name a worker keeps its metrics, so that its successor goes on with its counters and files."""
    return f"{worker.kind.name}-{worker.index}"


def _metrics(
    state: StateFolder, kinds: Sequence[WorkerKind]
) -> tuple[Callable[[Worker], None], Callable[[Worker], None]]:
    # prometheus-client decides when it is imported whether values are shared between processes.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(state.metrics)
    from prometheus_client import Counter
    from prometheus_client.multiprocess import mark_process_dead

    restarts = Counter("mien_worker_restarts_total", "Workers that died and were replaced", ("worker",))
    for kind in kinds:
        restarts.labels(kind.name)
    return (
        lambda worker: restarts.labels(worker.kind.name).inc(),
        lambda worker: mark_process_dead(metrics_name(worker)),  # type: ignore[no-untyped-call]
    )


def _command(worker: Worker, descriptor: int | None, grace_s: float) -> list[str]:
    if descriptor is None:
        return [sys.executable, "-m", "service.jobs"]
    options = {
        "service-name": worker.kind.service,
        "fd": descriptor,
        "worker-id": worker.index,
        "backlog": BACKLOG,
        "timeout-keep-alive": _KEEP_ALIVE_S,
        "timeout-graceful-shutdown": max(1, int(grace_s)),
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "_bentoml_impl.worker.service", "service.app:Mien", *arguments]
