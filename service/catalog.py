"""What is served: `GET /v1/models` with measured quality, manifest and card, and the same in the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request

from handlers.classifier import ClassifierSpec
from handlers.pipeline import DEFAULT, FAKE
from model_store import registry
from model_store.manifest import CARD_NAME, WEIGHTS_NAME, DetectionManifest, EmotionManifest
from service import metrics, openapi
from service.analyzer import Analyzer
from service.schemas import ModelBody, ModelsBody, ModelSummary


def add_model_doors(app: FastAPI) -> None:
    """Add both doors. `app.state` must have `analyzer` and `cards` (see `read_cards`) before they answer."""
    app.add_api_route(
        "/v1/models",
        list_models,
        methods=["GET"],
        responses=openapi.problems(400, 401, 403, 413, 500, 504),
        summary="The served emotion models",
        tags=["models"],
    )
    app.add_api_route(
        "/v1/models/{name}",
        show_model,
        methods=["GET"],
        responses=openapi.problems(400, 401, 403, 404, 413, 500, 504),
        summary="One model with its manifest and card",
        tags=["models"],
    )


async def list_models(request: Request) -> ModelsBody:
    """The served emotion models; the first one answers requests that name none."""
    models = _analyzer(request).models
    return ModelsBody(models=[ModelSummary(**_summary(spec, index == 0)) for index, spec in enumerate(models)])


async def show_model(request: Request, name: str) -> ModelBody:
    """A served model by `name` or `name:version`: its labels, how it was measured, its manifest and its card."""
    analyzer = _analyzer(request)
    spec = analyzer.spec(name)
    return ModelBody(
        **_summary(spec, spec == analyzer.spec(None)),
        manifest=spec.model_dump(mode="json") if isinstance(spec, EmotionManifest) else None,
        card=request.app.state.cards.get(spec.tag),
    )


def read_cards(models: Sequence[ClassifierSpec]) -> dict[str, str]:
    """The cards of models by tag, Markdown; the built-in fake has none. Raises what `registry.load` raises."""
    return {
        spec.tag: (registry.load(spec.tag).bundle.folder / CARD_NAME).read_text()
        for spec in models
        if isinstance(spec, EmotionManifest)
    }


def record_models(detector: str, models: Sequence[ClassifierSpec]) -> None:
    """Name the served models in the metrics. detector: `default`, `fake` or a name of the store."""
    manifests: list[DetectionManifest | EmotionManifest] = [
        spec for spec in models if isinstance(spec, EmotionManifest)
    ]
    if detector != FAKE:
        found = registry.load_default("face-detection") if detector == DEFAULT else registry.load(detector)
        manifests.append(found.manifest)
    for manifest in manifests:
        sha256 = manifest.files[WEIGHTS_NAME].sha256
        metrics.MODEL_INFO.labels(manifest.tag, manifest.task, sha256, manifest.architecture.family).set(1)


def _summary(spec: ClassifierSpec, default: bool) -> dict[str, Any]:
    name, _, version = spec.tag.partition(":")
    evaluations = spec.evaluations if isinstance(spec, EmotionManifest) else ()
    return {
        "name": name,
        "version": version,
        "default": default,
        "labels": list(spec.labels),
        "evaluations": [evaluation.model_dump(mode="json") for evaluation in evaluations],
    }


def _analyzer(request: Request) -> Analyzer:
    analyzer: Analyzer = request.app.state.analyzer
    return analyzer
