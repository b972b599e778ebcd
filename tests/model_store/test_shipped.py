"""Every bundle that ships: whole, small enough together, and exported to what its weights compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_store import registry
from model_store.bundle import BUNDLES_ROOT, bundle_names, find_bundle, open_bundle, shipped_defaults
from model_store.errors import ManifestError
from model_store.export import MAX_ABS_DIFFERENCE
from model_store.manifest import CARD_NAME, MANIFEST_NAME, EmotionManifest, dump_manifest
from tests.model_bundles import publish_tiny

FOLDERS = sorted(path.parent for path in BUNDLES_ROOT.glob(f"*/*/{MANIFEST_NAME}"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "-".join(folder.parts[-2:]))
def test_bundle_is_whole_and_has_scores_and_a_card(folder: Path) -> None:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    assert (manifest.name, manifest.version) == folder.parts[-2:]
    assert (folder / MANIFEST_NAME).read_text() == dump_manifest(manifest)  # its digest is the file's
    assert {scores.tta for scores in manifest.evaluations} == {"none", "flip"}
    assert CARD_NAME in manifest.files


@pytest.mark.parametrize("name", bundle_names(BUNDLES_ROOT))
def test_newest_version_is_registered_and_its_export_agrees(store: Path, name: str) -> None:
    model = registry.load(name)
    assert model.bundle.sha256 == open_bundle(find_bundle(BUNDLES_ROOT, name)).sha256
    parity = model.serving.parity["classifier"]
    assert parity.n_real > 0
    assert parity.max_abs_difference <= MAX_ABS_DIFFERENCE
    assert isinstance(model.manifest, EmotionManifest)
    assert (model.serving.int8 is None) == (model.manifest.int8 is None)


def test_default_is_the_one_that_ships_as_such(store: Path) -> None:
    for task, name in shipped_defaults(BUNDLES_ROOT).items():
        assert registry.defaults()[task] == f"{name}:{find_bundle(BUNDLES_ROOT, name).name}"


def test_bundles_are_under_120_mb_together() -> None:
    assert sum(path.stat().st_size for path in BUNDLES_ROOT.rglob("*") if path.is_file()) < 120e6


def test_defaults_come_first_and_the_others_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        publish_tiny(tmp_path, name=name)
    assert bundle_names(tmp_path) == ["a", "b", "c"]
    (tmp_path / "defaults.json").write_text(json.dumps({"emotion-classification": "c"}))
    assert bundle_names(tmp_path) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"emotion-classification": "d"}', "no bundle d beside it"),
        ('["a"]', "not a map of tasks"),
        ('{"emotion-classification": 1}', "not a map of tasks"),
        ("{", "defaults.json"),
    ],
)
def test_odd_defaults_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "defaults.json").write_text(text)
    with pytest.raises(ManifestError, match=message):
        bundle_names(tmp_path)
