import dataclasses
import pickle

import pytest

from handlers import Analysis
from handlers.decode import DecodeLimits
from handlers.detection.settings import DetectionSettings
from handlers.errors import EngineUnavailableError, ModelUnavailableError
from scoring.config import RunConfig, resolve_config


def test_the_fake_is_resolved_without_a_store(astronaut_png: bytes) -> None:
    config = resolve_config("fake")
    assert (config.model, config.model_digest, config.runtime) == ("fake:1.0.0", "fake", "fake")
    (result,) = config.load_pipeline().analyze([astronaut_png])
    assert isinstance(result, Analysis)


@pytest.mark.usefixtures("store")
def test_every_auto_is_settled() -> None:
    config = resolve_config()
    assert config.model.startswith("fer2013-resnet:")
    assert config.detector.startswith("mtcnn:")
    assert len(config.model_digest) == len(config.detector_digest) == 64
    assert config.runtime in {"openvino", "onnxruntime"}
    assert config.precision == "int8"
    assert resolve_config(precision="fp32").precision == "fp32"


@pytest.mark.usefixtures("store")
def test_the_pipeline_is_the_one_described(astronaut_png: bytes) -> None:
    from handlers import load_pipeline

    config = resolve_config(runtime="onnxruntime", precision="fp32", tta="flip")
    own = config.load_pipeline()
    asked = load_pipeline(engine="onnxruntime", precision="fp32", tta="flip")
    assert own.analyze([astronaut_png]) == asked.analyze([astronaut_png])
    assert own.classifier.tag == config.model


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("digest", ["model_digest", "detector_digest"])
def test_another_model_of_the_same_name_is_refused(digest: str) -> None:
    config = dataclasses.replace(resolve_config(), **{digest: "0" * 64})
    with pytest.raises(ModelUnavailableError, match="not the one"):
        config.load_pipeline()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("model", ["nobody", "mtcnn"])
def test_a_model_that_is_not_there(model: str) -> None:
    with pytest.raises(ModelUnavailableError):
        resolve_config(model)


@pytest.mark.usefixtures("store")
def test_an_engine_that_is_not_there() -> None:
    with pytest.raises(EngineUnavailableError):
        resolve_config(runtime="abacus")


CHANGES = {
    "model": "other:1.0.0",
    "model_digest": "0" * 64,
    "labels": ("happy",),
    "detector": "other:1.0.0",
    "detector_digest": "0" * 64,
    "runtime": "onnxruntime",
    "precision": "int8",
    "tta": "flip",
    "limits": DecodeLimits(max_bytes=1),
    "detection": DetectionSettings(min_face_size_px=21),
    "format": "csv",
    "part_size": 3,
}


def test_the_fingerprint_changes_with_every_field() -> None:
    config = resolve_config("fake")
    assert set(CHANGES) == {field.name for field in dataclasses.fields(RunConfig)}
    prints = [dataclasses.replace(config, **{name: value}).fingerprint for name, value in CHANGES.items()]
    assert len({config.fingerprint, *prints}) == len(CHANGES) + 1


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    config = resolve_config("fake")
    assert pickle.loads(pickle.dumps(config)).fingerprint == config.fingerprint == resolve_config("fake").fingerprint
