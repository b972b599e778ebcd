"""The service in process on the fakes, and as real processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from handlers.pipeline import FAKE
from service.admission import Admission
from service.analyzer import Analyzer, RunnerCall
from service.api_keys import ApiKeys
from service.catalog import read_cards
from service.edge import build_edge, build_rest_app
from service.logs import LOGGERS
from service.readiness import Readiness
from service.runners import DetectorRunner, EmotionRunner, pickled
from service.settings import PREFIX, Settings, get_settings
from tests.service.server_process import RunningService, home_with_models, running_service

MakeClient = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in map(logging.getLogger, LOGGERS)]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set MIEN_ variables for this test, and only these: `environment(port="4000")`."""
    for inherited in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(inherited)

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"{PREFIX}{name.upper()}", value)
        get_settings.cache_clear()

    change()
    yield change
    get_settings.cache_clear()


@pytest.fixture
def fake_environment(environment: Callable[..., None]) -> None:
    environment(models=FAKE, detector=FAKE)


def in_process(method: Callable[[list[bytes]], list[bytes]]) -> RunnerCall:
    async def call(items: list[bytes]) -> list[bytes]:
        return method(items)

    return pickled(call)


def make_admission(settings: Settings) -> Admission:
    return Admission(
        settings.n_concurrent, settings.queue_size, settings.queue_timeout_ms / 1000, settings.max_pending_bytes
    )


@pytest.fixture
def detect(fake_environment: None) -> RunnerCall:
    """The detector runner on the fake detector, without BentoML around it."""
    return in_process(DetectorRunner.inner().detect)


@pytest.fixture
def classify(fake_environment: None) -> RunnerCall:
    """The emotion runner on the fake classifier, without BentoML around it."""
    return in_process(EmotionRunner.inner().classify)


@pytest.fixture
def make_client(environment: Callable[..., None]) -> MakeClient:
    """A client of the REST door on the fakes: `make_client(detect=…, classify=…, **settings)`."""

    def make(
        detect: RunnerCall | None = None, classify: RunnerCall | None = None, **changes: str | float
    ) -> TestClient:
        variables = {"models": FAKE, "detector": FAKE, **changes}
        environment(**{name: str(value) for name, value in variables.items()})
        settings = Settings()
        app = build_rest_app(settings)
        admission = make_admission(settings)
        app.state.analyzer = Analyzer(
            settings,
            admission,
            detect or in_process(DetectorRunner.inner().detect),
            classify or in_process(EmotionRunner.inner().classify),
        )
        app.state.readiness = Readiness(app.state.analyzer, settings.readiness_interval_s)
        app.state.cards = read_cards(app.state.analyzer.models)
        return TestClient(build_edge(settings, app, ApiKeys(settings.api_keys_file), admission))

    return make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()


@pytest.fixture(scope="session")
def served_fake(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The real processes with the fake detector and classifier."""
    home = home_with_models(tmp_path_factory.mktemp("fake-home"), store / "models")
    with running_service(home, MIEN_MODELS=FAKE, MIEN_DETECTOR=FAKE) as service:
        yield service


@pytest.fixture(scope="session")
def served(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The real processes with the default detector and emotion model."""
    home = home_with_models(tmp_path_factory.mktemp("home"), store / "models")
    with running_service(home, MIEN_MODELS="default", MIEN_DETECTOR="default") as service:
        yield service
