from __future__ import annotations

from pathlib import Path

import pytest

from model_store import registry
from model_store.bundle import find_bundle, open_bundle
from model_store.errors import DigestMismatchError, ModelNotFoundError, NothingToRollBackError, WeightsMismatchError
from model_store.mtcnn import publish_mtcnn
from tests.model_bundles import publish_tiny, tiny_weights

EMOTION = "emotion-classification"


def listing() -> list[tuple[str, bool]]:
    return [(model.tag, model.is_default) for model in registry.list_registered()]


def files_under(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_list_is_by_name_and_number_and_marks_the_first_registered_as_default(three_models: Path) -> None:
    assert listing() == [("other:1.0.0", False), ("tiny:1.0.0", True), ("tiny:1.10.0", False)]
    assert {model.task for model in registry.list_registered()} == {EMOTION}
    assert all(model.size_bytes > 10_000 for model in registry.list_registered())
    assert registry.defaults() == {EMOTION: "tiny:1.0.0"}
    assert registry.load_default(EMOTION).manifest.tag == "tiny:1.0.0"


def test_registering_the_same_bundle_again_changes_nothing(three_models: Path, three_bundles: Path) -> None:
    before = files_under(three_models)
    model = registry.register(open_bundle(find_bundle(three_bundles, "other")))
    assert model.manifest.tag == "other:1.0.0"
    assert files_under(three_models) == before


def test_registering_a_changed_bundle_replaces_the_model_and_keeps_the_default(
    three_models: Path, tmp_path: Path
) -> None:
    old = registry.load("tiny:1.0.0").bundle.sha256
    changed = publish_tiny(tmp_path / "changed", temperature=3.0)
    assert registry.register(changed).bundle.sha256 == changed.sha256 != old
    assert registry.load("tiny:1.0.0").manifest.temperature == 3.0
    assert listing() == [("other:1.0.0", False), ("tiny:1.0.0", True), ("tiny:1.10.0", False)]


@pytest.mark.parametrize(("name", "default"), [("tiny", "tiny:2.0.0"), ("newcomer", "tiny:1.0.0")])
def test_default_that_does_not_open_gives_way_to_its_next_version_only(
    three_models: Path, tmp_path: Path, name: str, default: str
) -> None:
    serving = registry.load("tiny:1.0.0").serving_folder / "serving.json"
    serving.write_text(serving.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    registry.register(publish_tiny(tmp_path, name=name, version="2.0.0"))
    assert registry.defaults() == {EMOTION: default}


def test_failed_registration_leaves_the_standing_model(three_models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load, save

    tensors = load(tiny_weights())
    del tensors["stem.weight"]
    broken = publish_tiny(tmp_path / "broken", weights=save(tensors))
    standing = registry.load("tiny:1.0.0").bundle.sha256
    with pytest.raises(WeightsMismatchError):
        registry.register(broken)
    assert registry.load("tiny:1.0.0").bundle.sha256 == standing


def test_name_alone_loads_the_highest_version_by_number(three_models: Path) -> None:
    assert registry.load("tiny").manifest.tag == "tiny:1.10.0"
    assert registry.load("tiny:1.0.0").manifest.tag == "tiny:1.0.0"


@pytest.mark.parametrize(
    "name",
    [
        "tiny:1.0", "tiny:1", "tiny:1.1", "tiny:latest", "tiny:1.0.0.0", "tiny:01.0.0", "tin", "unknown",
        "unknown:1.0.0", "mien-defaults", "../tiny", "tiny/1.0.0", "a b", "é", "*", "\0", "x" * 300,
        "", ":", ":1.0.0", "TINY",
    ],
)  # fmt: skip
def test_only_the_exact_name_and_version_is_found(three_models: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        registry.load(name)


def test_altered_model_is_not_loaded(three_models: Path) -> None:
    path = registry.load("other").onnx("classifier")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DigestMismatchError):
        registry.load("other")


def test_promotions_are_rolled_back_one_by_one(three_models: Path) -> None:
    assert registry.promote("tiny") == "tiny:1.10.0"
    assert registry.promote("other:1.0.0") == "other:1.0.0"
    assert registry.promote("other") == "other:1.0.0"  # not a second promotion
    assert registry.load_default(EMOTION).manifest.tag == "other:1.0.0"
    assert registry.rollback() == {EMOTION: "tiny:1.10.0"}
    assert registry.load_default(EMOTION).manifest.tag == "tiny:1.10.0"
    assert registry.rollback() == {EMOTION: "tiny:1.0.0"}
    with pytest.raises(NothingToRollBackError, match="no earlier promotion"):
        registry.rollback()
    assert registry.defaults() == {EMOTION: "tiny:1.0.0"}


def test_promotion_after_a_rollback_starts_from_what_holds(three_models: Path) -> None:
    registry.promote("other")
    registry.rollback()
    registry.promote("tiny:1.10.0")
    assert registry.rollback() == {EMOTION: "tiny:1.0.0"}


def test_rollback_to_a_model_that_is_gone_is_refused_and_changes_nothing(three_models: Path) -> None:
    import bentoml

    registry.promote("other")
    bentoml.models.delete("tiny:1.0.0")
    with pytest.raises(NothingToRollBackError, match=r"tiny:1\.0\.0 is no longer registered"):
        registry.rollback()
    assert registry.defaults() == {EMOTION: "other:1.0.0"}


def test_rollback_leaves_no_task_without_a_default(three_models: Path, tmp_path: Path) -> None:
    registry.register(publish_mtcnn(tmp_path / "mtcnn"))
    before = registry.defaults()
    with pytest.raises(NothingToRollBackError, match="face-detection has no earlier default"):
        registry.rollback()
    assert registry.defaults() == before
    assert set(before) == {EMOTION, "face-detection"}


def test_promoting_an_unknown_model_changes_nothing(three_models: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        registry.promote("tiny:9.9.9")
    assert registry.defaults() == {EMOTION: "tiny:1.0.0"}


def test_empty_store(empty_store: Path) -> None:
    assert registry.list_registered() == []
    assert registry.defaults() == {}
    with pytest.raises(ModelNotFoundError, match="no face-detection model is registered"):
        registry.load_default("face-detection")
    with pytest.raises(ModelNotFoundError):
        registry.load("mtcnn")
    with pytest.raises(NothingToRollBackError):
        registry.rollback()
