"""The parent process: its arithmetic, and with real workers what it does when they die and when it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from service.settings import Settings
from service.state_folder import owned_state_folder
from service.supervisor import Backoff, exit_name, worker_kinds
from tests.service.server_process import REPOSITORY, RunningService, free_port, running_service, total

FAKES = {"MIEN_MODELS": "fake", "MIEN_DETECTOR": "fake", "MIEN_DETECTOR_WORKERS": "1"}
_WAIT_S = 60


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def _workers(service: RunningService) -> dict[str, psutil.Process]:
    """The processes of a service with one worker of each kind, by BentoML's names."""
    found = {}
    for process in psutil.Process(service.pid).children(recursive=True):
        command = process.cmdline()
        if "--service-name" in command:
            found[command[command.index("--service-name") + 1]] = process
    return found


def _analyze(service: RunningService, picture: bytes) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/analyze", content=picture, timeout=_WAIT_S)


def _lines(service: RunningService) -> list[dict[str, object]]:
    """The supervisor's lines in the log."""
    found = []
    for line in service.log_path.read_text().splitlines():
        if line.startswith("{") and '"service.supervisor"' in line:
            found.append(json.loads(line))
    return found


class HalfRequest:
    """A request of whose body the server has the first half."""

    def __init__(self, service: RunningService, picture: bytes) -> None:
        self._rest = picture[len(picture) // 2 :]
        self._connection = socket.create_connection(("127.0.0.1", service.port), timeout=_WAIT_S)
        head = f"POST /v1/analyze HTTP/1.1\r\nHost: mien\r\nContent-Length: {len(picture)}\r\n"
        # The server says "continue" once it works on the request; only then is it certain to be under way.
        self._connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert self._connection.recv(100).startswith(b"HTTP/1.1 100 ")
        self._connection.sendall(picture[: len(picture) // 2])

    def finish(self) -> bytes:
        """Send the other half and return the whole response, nothing when the connection was cut off."""
        response = b""
        try:
            self._connection.sendall(self._rest)
            while received := self._connection.recv(65536):
                response += received
        except ConnectionError:
            return b""
        return response


def _is_refused(service: RunningService) -> bool:
    try:
        socket.create_connection(("127.0.0.1", service.port), timeout=_WAIT_S).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningService]]:
    """Start a service on the fakes: `start(MIEN_GRACE_S="1")`. It ends with the test."""
    with ExitStack() as running:

        def start(**variables: str) -> RunningService:
            home = tmp_path / f"home-{variables.get('MIEN_STATE_DIR', '')[-1:]}-{len(list(tmp_path.iterdir()))}"
            home.mkdir()
            return running.enter_context(running_service(home, **FAKES, **variables))

        yield start


def test_replacements_of_workers_that_die_early_wait_longer_and_longer() -> None:
    backoff = Backoff()

    assert [backoff.died(2.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_worker_that_had_settled_is_replaced_at_once_and_forgives_the_earlier_deaths() -> None:
    backoff = Backoff()
    backoff.died(2.0)
    backoff.died(2.0)

    assert backoff.died(10.0) == 0
    assert backoff.n_early_deaths == 0
    assert backoff.died(2.0) == 1


@pytest.mark.parametrize(("code", "name"), [(0, "0"), (3, "3"), (-9, "SIGKILL"), (-15, "SIGTERM"), (-99, "signal 99")])
def test_exit_codes_are_told_as_people_say_them(code: int, name: str) -> None:
    assert exit_name(code) == name


def test_the_kinds_are_the_services_of_bentoml_with_the_workers_of_the_settings() -> None:
    from service.app import Mien
    from service.runners import DetectorRunner, EmotionRunner

    kinds = worker_kinds(Settings(api_workers=2, detector_workers=3, emotion_workers=4))

    assert [kind.service for kind in kinds] == [Mien.name, DetectorRunner.name, EmotionRunner.name]
    assert [kind.n_workers for kind in kinds] == [2, 3, 4]


def test_the_inline_topology_has_api_workers_only() -> None:
    assert [kind.name for kind in worker_kinds(Settings(topology="inline"))] == ["api"]


def test_one_worker_looks_after_jobs_where_there_are_roots_and_the_service_can_do_without_it() -> None:
    *others, jobs = worker_kinds(Settings(topology="inline", scoring_roots=("s3://bucket",)))

    assert (jobs.name, jobs.n_workers, jobs.essential) == ("jobs", 1, False)
    assert all(kind.essential for kind in others)


@pytest.mark.parametrize(
    "wrong",
    [
        "port in use",
        "folder in use",
        "folder too long",
        "no such model",
        "no such detector",
        "no root",
        "jobs in a root",
    ],
)
def test_a_start_that_cannot_succeed_ends_with_one_line_and_starts_nothing(tmp_path: Path, wrong: str) -> None:
    variables = dict(FAKES)
    with ExitStack() as held:
        port = free_port()
        if wrong == "port in use":
            held.enter_context(socket.create_server(("127.0.0.1", port)))
            line = f"PortError: MIEN_PORT: cannot listen on 127.0.0.1 port {port}: Address already in use"
        elif wrong == "folder in use":
            held.enter_context(owned_state_folder(tmp_path / "state", tmp_path))
            variables["MIEN_STATE_DIR"] = str(tmp_path / "state")
            line = f"StateError: MIEN_STATE_DIR: another service uses {tmp_path / 'state'}"
        elif wrong == "folder too long":
            variables["MIEN_STATE_DIR"] = str(tmp_path / ("x" * 100))
            line = f"StateError: MIEN_STATE_DIR: {tmp_path / ('x' * 100)} is too long"
        elif wrong == "no such model":
            variables["MIEN_MODELS"] = "fake,nope"
            line = "ModelUnavailableError: nope is not registered"
        elif wrong == "no root":
            variables["MIEN_SCORING_ROOTS"] = f"s3://bucket,{tmp_path}/photos"
            line = f"SettingsError: MIEN_SCORING_ROOTS: {tmp_path}/photos is not a folder"
        elif wrong == "jobs in a root":
            variables |= {"MIEN_SCORING_ROOTS": f"photos={tmp_path}", "MIEN_STATE_DIR": str(tmp_path / "state")}
            line = f"SettingsError: MIEN_SCORING_ROOTS: {tmp_path} holds the folder of jobs, {tmp_path}/state/jobs"
        else:
            variables["MIEN_DETECTOR"] = "nope"
            line = "ModelNotFoundError: nope is not registered"

        done = subprocess.run(
            [sys.executable, "-m", "service"],
            cwd=REPOSITORY,
            env={**os.environ, **variables, "MIEN_PORT": str(port), "BENTOML_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=_WAIT_S,
            check=False,
        )

    assert (done.returncode, done.stdout) == (1, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith(line)


def test_a_killed_worker_is_replaced_even_in_containers_and_a_request_in_between_waits_for_it(
    start: Callable[..., RunningService], faceless_png: bytes
) -> None:
    service = start(BENTOML_CONTAINERIZED="true")
    expected = _analyze(service, faceless_png)
    before = _workers(service)
    kinds = {"mien_detector": "detector", "mien_emotion": "emotion", "mien": "api"}

    for n_restarts, (name, kind) in enumerate(kinds.items(), 1):
        before[name].kill()
        before[name].wait(_WAIT_S)
        answer = _analyze(service, faceless_png)
        after = _workers(service)

        assert (answer.status_code, answer.json()) == (expected.status_code, expected.json())
        assert after[name].pid != before[name].pid
        assert {other: process.pid for other, process in after.items() if other != name} == {
            other: process.pid for other, process in before.items() if other != name
        }
        samples = service.samples()
        assert total(samples, "mien_worker_restarts_total", worker=kind) == 1
        assert total(samples, "mien_worker_restarts_total") == n_restarts
        died = [line for line in _lines(service) if line["message"] == "worker died"]
        assert (died[-1]["worker"], died[-1]["pid"], died[-1]["exit"]) == (kind, before[name].pid, "SIGKILL")
        before = after


def test_requests_under_way_at_the_end_are_answered_and_new_ones_refused(
    start: Callable[..., RunningService], astronaut_png: bytes
) -> None:
    service = start()
    expected = _analyze(service, astronaut_png).json()["faces"]
    under_way = [HalfRequest(service, astronaut_png) for _ in range(8)]
    supervisor, workers = psutil.Process(service.pid), list(_workers(service).values())

    supervisor.terminate()
    _until(lambda: _is_refused(service), "new connections are still taken")
    # Each still needs both runners.
    answers = [request.finish() for request in under_way]

    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * len(under_way)
    assert [json.loads(answer.partition(b"\r\n\r\n")[2])["faces"] for answer in answers] == [expected] * len(under_way)
    assert supervisor.wait(_WAIT_S) == 0
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.slow
def test_a_request_that_never_ends_is_cut_off_after_the_grace_time(
    start: Callable[..., RunningService], astronaut_png: bytes
) -> None:
    service = start(MIEN_GRACE_S="0.5")
    request = HalfRequest(service, astronaut_png)
    supervisor, workers = psutil.Process(service.pid), list(_workers(service).values())

    supervisor.send_signal(signal.SIGINT)

    assert supervisor.wait(_WAIT_S) == 1
    assert not any(worker.is_running() for worker in workers)
    assert request.finish() == b""


def test_a_second_signal_ends_the_grace_time(start: Callable[..., RunningService], astronaut_png: bytes) -> None:
    service = start(MIEN_GRACE_S="600")
    request = HalfRequest(service, astronaut_png)
    supervisor, workers = psutil.Process(service.pid), list(_workers(service).values())

    supervisor.terminate()
    _until(lambda: _is_refused(service), "new connections are still taken")
    supervisor.terminate()

    assert supervisor.wait(_WAIT_S) == 1
    assert not any(worker.is_running() for worker in workers)
    assert request.finish() == b""


@pytest.mark.slow
def test_workers_end_with_a_killed_supervisor_and_the_next_one_takes_over_its_folder(
    start: Callable[..., RunningService], tmp_path: Path, faceless_png: bytes
) -> None:
    state = str(tmp_path / "state")
    service = start(MIEN_STATE_DIR=state)
    workers = list(_workers(service).values())
    assert len(workers) == 3

    psutil.Process(service.pid).kill()
    _, left = psutil.wait_procs(workers, _WAIT_S)

    assert left == []
    assert _analyze(start(MIEN_STATE_DIR=state), faceless_png).status_code == 200


def test_only_the_state_folder_is_written(tmp_path: Path, astronaut_png: bytes) -> None:
    folders = {name: tmp_path / name for name in ("home", "store", "tmp", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    (folders["store"] / "models").mkdir()
    state = tmp_path / "state"

    def everything_else() -> set[Path]:
        packages = [REPOSITORY / name for name in ("service", "handlers", "model_store")]
        files = {path for folder in (*folders.values(), *packages) for path in folder.rglob("*")}
        # Python and numba keep compiled code beside the source, where they may.
        return {path for path in files if "__pycache__" not in path.parts and path.suffix != ".log"}

    before = everything_else()
    with running_service(
        folders["store"],
        cwd=folders["cwd"],
        HOME=str(folders["home"]),
        TMPDIR=str(folders["tmp"]),
        PYTHONPATH=str(REPOSITORY),
        MIEN_STATE_DIR=str(state),
        **FAKES,
    ) as service:
        form = httpx.post(f"{service.url}/v1/analyze", files={"image": astronaut_png}, timeout=_WAIT_S)
        during = everything_else()
        psutil.Process(service.pid).terminate()
        assert psutil.Process(service.pid).wait(_WAIT_S) == 0

    assert form.status_code == 200
    assert during == before
    assert everything_else() == before
    assert {path.name for path in state.iterdir()} == {"lock", "run", "metrics", "bentoml", "tmp"}
    assert list((state / "tmp").iterdir()) == []


@pytest.mark.slow
def test_the_supervisor_gives_up_on_a_worker_that_never_starts(tmp_path: Path) -> None:
    # Python runs a module of this name in every process before anything else.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'mien_emotion' in sys.orig_argv:\n    sys.exit('sabotaged')\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            **FAKES,
            "MIEN_PORT": str(free_port()),
            "PYTHONPATH": str(tmp_path),
            "MIEN_STATE_DIR": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        timeout=3 * _WAIT_S,
        check=False,
    )

    lines = [json.loads(line) for line in done.stderr.splitlines() if '"service.supervisor"' in line]
    assert done.returncode == 1
    assert sum(line["message"] == "worker died" and line["worker"] == "emotion" for line in lines) == 5
    assert "gave up: the emotion worker cannot start" in [line["message"] for line in lines]
    assert lines[-1]["message"] == "stopped"
