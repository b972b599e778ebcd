"""Folders of jobs and of pictures, and the process that works on jobs, without the rest of the service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from handlers.pipeline import FAKE
from service.analyzer import Analyzer
from service.api_keys import ApiKeys
from service.edge import build_edge, build_rest_app
from service.jobs.records import JobRequest, new_job_id
from service.jobs.store import JobStore
from service.settings import Settings
from tests.pictures import noise
from tests.scoring.pictures import make_folder
from tests.service.conftest import make_admission
from tests.service.server_process import REPOSITORY

WAIT_S = 60
N_PICTURES = 60
N_SLOW = 600


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def request_for(input: str, **changes: object) -> JobRequest:
    """A request as the doors would keep it, later than the one before."""
    time.sleep(0.002)  # ids tell milliseconds apart
    fields: dict[str, object] = {
        "id": new_job_id(),
        "created_s": time.time(),
        "caller": None,
        "input": input,
        "model": "fake:1.0.0",
        "recursive": True,
        "include": (),
        "min_face_size_px": None,
        **changes,
    }
    return JobRequest(**fields)  # type: ignore[arg-type]


def jobs_client(**settings: object) -> TestClient:
    """A client of the doors with these settings, on the fake models and without runners."""

    async def nobody(items: list[bytes]) -> list[bytes]:
        raise AssertionError("a job door asked a runner")

    made = Settings(**{"models": (FAKE,), "detector": FAKE, **settings})  # type: ignore[arg-type]
    app = build_rest_app(made)
    admission = make_admission(made)
    app.state.analyzer = Analyzer(made, admission, nobody, nobody)
    return TestClient(build_edge(made, app, ApiKeys(made.api_keys_file), admission))


_watchers: list[Callable[[str], None]] = []


def _tell_watchers(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        for watcher in list(_watchers):
            watcher(str(arguments[0]))


@pytest.fixture(scope="session")
def audited() -> None:
    """Hear of every file that this process opens; Python takes no hook away again."""
    sys.addaudithook(_tell_watchers)


@pytest.fixture
def opened(audited: None) -> Iterator[list[str]]:
    """The files that were opened since the test began."""
    found: list[str] = []
    _watchers.append(found.append)
    yield found
    _watchers.remove(found.append)


@pytest.fixture
def on_open(audited: None) -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Do something just before a file is opened for the first time: `on_open(path, act)`."""
    added: list[Callable[[str], None]] = []

    def on_open(path: str, act: Callable[[], object]) -> None:
        def watch(opened: str) -> None:
            if opened == path:
                _watchers.remove(watch)
                added.remove(watch)
                act()

        _watchers.append(watch)
        added.append(watch)

    yield on_open
    for watch in added:
        _watchers.remove(watch)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """An empty folder of jobs."""
    return JobStore(tmp_path / "jobs")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root named `photos` with `N_PICTURES` in its folder `may`, three of them broken."""
    root = tmp_path_factory.mktemp("root") / "photos"
    assert len(make_folder(root / "may", N_PICTURES)) == 3
    return root


@pytest.fixture(scope="session")
def slow_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root named `photos` with `N_SLOW` in its folder `many`, each of which takes some 10 ms to decode."""
    many = tmp_path_factory.mktemp("slow") / "photos" / "many"
    many.mkdir(parents=True)
    first = many / "00000.jpg"
    Image.fromarray(noise(600, 800)).save(first, quality=90)
    for index in range(1, N_SLOW):
        (many / f"{index:05d}.jpg").hardlink_to(first)
    return many.parent


@pytest.fixture
def start_worker(tmp_path: Path, pictures: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that works on the jobs of `store`; variables as of the service. It ends with the test."""
    with ExitStack() as started:

        def start(new_session: bool = False, **variables: str) -> subprocess.Popen[bytes]:
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("MIEN_")}
            log = started.enter_context((tmp_path / "worker.log").open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-m", "service.jobs"],
                cwd=REPOSITORY,
                env={
                    **inherited,
                    "MIEN_JOBS_DIR": str(tmp_path / "jobs"),
                    "MIEN_SCORING_ROOTS": str(pictures),
                    "MIEN_JOB_PART_SIZE": "8",
                    # Other processes of the test session would leave it nothing.
                    "MIEN_JOB_NICENESS": "0",
                    **variables,
                },
                start_new_session=new_session,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            started.callback(_end, process)
            return process

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
