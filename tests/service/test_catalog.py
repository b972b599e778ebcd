from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from handlers.fakes import FAKE_LABELS
from handlers.pipeline import FAKE, describe_classifier
from model_store import registry
from model_store.manifest import CARD_NAME, EmotionManifest
from service.catalog import read_cards, record_models
from tests.service.conftest import MakeClient
from tests.service.problem_checks import check_problem

FAKE_SUMMARY = {
    "name": "fake",
    "version": "1.0.0",
    "default": True,
    "labels": list(FAKE_LABELS),
    "evaluations": [],
}


def _default() -> EmotionManifest:
    spec = describe_classifier("default")
    assert isinstance(spec, EmotionManifest)
    return spec


def _models_in_the_metrics() -> dict[str, dict[str, str]]:
    return {
        sample.labels["model"]: dict(sample.labels)
        for family in REGISTRY.collect()
        if family.name == "mien_model_info"
        for sample in family.samples
    }


def test_the_fake_has_neither_manifest_nor_card(client: TestClient) -> None:
    assert client.get("/v1/models").json() == {"models": [FAKE_SUMMARY]}
    assert client.get("/v1/models/fake").json() == {**FAKE_SUMMARY, "manifest": None, "card": None}
    assert client.get("/v1/models/fake:1.0.0").json() == client.get("/v1/models/fake").json()


def test_the_default_model_with_manifest_card_and_measured_quality(store: Path, make_client: MakeClient) -> None:
    client = make_client(models="default,fake")
    manifest = _default()
    card = (registry.load(manifest.tag).bundle.folder / CARD_NAME).read_text()

    first, second = client.get("/v1/models").json()["models"]
    shown = client.get(f"/v1/models/{manifest.name}").json()

    assert second == {**FAKE_SUMMARY, "default": False}
    assert (first["name"], first["version"], first["default"]) == (manifest.name, manifest.version, True)
    assert first["labels"] == list(manifest.labels)
    assert {evaluation["tta"] for evaluation in first["evaluations"]} >= {"none"}
    assert all(0.5 < evaluation["accuracy"] < 1 for evaluation in first["evaluations"])
    assert shown == {**first, "manifest": manifest.model_dump(mode="json"), "card": card}
    assert all(len(file["sha256"]) == 64 for file in shown["manifest"]["files"].values())
    assert shown["card"].startswith("#")
    for alias in ("default", manifest.tag):
        assert client.get(f"/v1/models/{alias}").json() == shown


def test_a_model_that_is_in_the_store_but_not_served_is_not_shown(store: Path, client: TestClient) -> None:
    check_problem(client.get(f"/v1/models/{_default().name}"), 404, "model_not_found")


@pytest.mark.parametrize("name", ["nobody", "fake:9.9.9", "fake:", "FAKE", "%2e%2e", "x" * 1000])
def test_an_unknown_model_is_a_404(client: TestClient, name: str) -> None:
    check_problem(client.get(f"/v1/models/{name}"), 404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models/fake/card", "/v1/models/..%2f..%2fetc"])
def test_other_addresses_below_are_unknown(client: TestClient, path: str) -> None:
    check_problem(client.get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def test_models_are_only_read(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path)

    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET"


def test_served_models_are_in_the_metrics(store: Path) -> None:
    manifest = _default()
    record_models("default", [manifest])
    models = _models_in_the_metrics()

    assert models[manifest.tag] == {
        "model": manifest.tag,
        "task": "emotion-classification",
        "sha256": manifest.files["model.safetensors"].sha256,
        "architecture": manifest.architecture.family,
    }
    assert "face-detection" in {labels["task"] for labels in models.values()}


def test_only_models_of_the_store_have_cards(store: Path) -> None:
    manifest = _default()

    assert set(read_cards([manifest, describe_classifier(FAKE)])) == {manifest.tag}
