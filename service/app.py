"""The composition root: builds the service from the settings, its runners and its doors."""

from __future__ import annotations

import bentoml

from service.analyzer import Analyzer
from service.logs import configure_logs
from service.rest import build_rest_app
from service.runners import DetectorRunner, EmotionRunner, pickled
from service.settings import get_settings

_settings = get_settings()
_rest = build_rest_app(_settings)


@bentoml.service(
    name="mien",
    workers=_settings.api_workers,
    traffic={"timeout": _settings.timeout_s + 10},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(_rest, path="/")
class Mien:
    """The service that callers see; the runners are reached through it only."""

    detector = bentoml.depends(DetectorRunner)
    emotion = bentoml.depends(EmotionRunner)

    def __init__(self) -> None:
        configure_logs(_settings.log_level)
        detector, emotion = self.detector, self.emotion
        _rest.state.analyzer = Analyzer(
            _settings,
            detect=pickled(lambda items: detector.to_async.detect(items)),
            classify=pickled(lambda items: emotion.to_async.classify(items)),
        )
