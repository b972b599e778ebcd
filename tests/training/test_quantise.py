from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from handlers.preprocess import preprocess
from model_store.bundle import Bundle, open_bundle
from model_store.errors import BundleExistsError, ManifestError
from model_store.manifest import CARD_NAME, INT8_NAME, EmotionManifest
from tests.model_bundles import publish_tiny
from tests.training.conftest import Quantisable
from training import quantise as module
from training.data import FER2013_LABELS, FaceSet
from training.errors import DataError
from training.evaluate import evaluate, load_network
from training.int8_network import METHOD, Int8Writer
from training.quantise import SEED, Int8GateError, quantise, stratified_sample


def manifest_of(bundle: Bundle) -> EmotionManifest:
    assert isinstance(bundle.manifest, EmotionManifest)
    return bundle.manifest


def unbalanced_faces(counts: list[int]) -> FaceSet:
    """Faces of as many of each class as `counts` says, in a random order; each crop shows its own index."""
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(len(counts)), counts))
    crops = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return FaceSet(crops, labels, tuple(f"face {index}" for index in range(len(labels))), FER2013_LABELS, ())


def test_sample_has_each_class_at_its_share() -> None:
    faces = unbalanced_faces([100, 50, 50, 20, 19, 1, 0])
    sample = stratified_sample(faces, 24, seed=0)
    assert np.bincount(sample.labels, minlength=7).tolist() == [10, 5, 5, 2, 2, 0, 0]
    assert len(set(sample.names)) == 24


def test_sample_keeps_each_face_with_its_label_and_name_in_order() -> None:
    faces = unbalanced_faces([30, 20, 10, 10, 10, 10, 10])
    sample = stratified_sample(faces, 40, seed=0)
    shown = sample.crops_u8.ravel()
    assert (np.diff(shown.astype(int)) > 0).all()
    assert np.array_equal(sample.labels, faces.labels[shown])
    assert sample.names == tuple(f"face {index}" for index in shown)


def test_sample_is_drawn_from_the_seed() -> None:
    faces = unbalanced_faces([30] * 7)
    first, same, other = (stratified_sample(faces, 70, seed) for seed in (0, 0, 1))
    assert first.names == same.names != other.names


@pytest.mark.parametrize("n", range(1, 30))
def test_sample_has_as_many_faces_as_asked_for(n: int) -> None:
    assert len(stratified_sample(unbalanced_faces([9, 7, 5, 3, 2, 2, 1]), n, seed=0)) == n


@pytest.mark.parametrize("n", [-1, 0, 30])
def test_sample_that_the_faces_do_not_give_is_refused(n: int) -> None:
    with pytest.raises(DataError, match=f"{n} faces to calibrate on, of 29"):
        stratified_sample(unbalanced_faces([9, 7, 5, 3, 2, 2, 1]), n, seed=0)


def test_quantised_bundle_is_the_published_one_with_an_int8_network(
    quantised: Bundle, quantisable: Quantisable
) -> None:
    before, after = manifest_of(quantisable.bundle), manifest_of(quantised)
    assert open_bundle(quantised.folder) == quantised
    assert after.tag == f"{before.name}:1.1.0"
    assert set(after.files) == {"model.safetensors", INT8_NAME, CARD_NAME}
    assert after.int8 is not None
    same = {"version": before.version, "files": before.files, "int8": None}
    assert after.model_copy(update=same) == before
    assert quantised.weights.read_bytes() == quantisable.bundle.weights.read_bytes()


def test_record_says_how_it_was_made(quantised: Bundle, quantisable: Quantisable) -> None:
    manifest = manifest_of(quantised)
    assert manifest.int8 is not None
    calibration = manifest.int8.calibration
    assert (calibration.n, calibration.split, calibration.method) == (50, manifest.source, METHOD)
    assert calibration.data_sha256 == stratified_sample(quantisable.training_set, 50, SEED).sha256
    assert manifest.int8.command == "quantise …"
    assert manifest.int8.quantiser == f"onnxruntime {onnxruntime.__version__}"


def test_int8_figures_are_those_of_the_published_file(quantised: Bundle, quantisable: Quantisable) -> None:
    manifest, faces = manifest_of(quantised), quantisable.validation_set
    assert manifest.int8 is not None
    assert [scores.tta for scores in manifest.int8.evaluations] == ["none", "flip"]
    network = load_network(open_bundle(quantised.folder), "onnxruntime", 2, "int8")
    for scores in manifest.int8.evaluations:
        assert evaluate(manifest, network, faces, scores.split, scores.tta).evaluation == scores
    assert manifest.int8.evaluations[0].ece != manifest.evaluations[0].ece


def test_calibration_inputs_are_preprocessed_training_faces(
    quantisable: Quantisable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NDArray[np.float32]] = []

    class Recording(Int8Writer):
        def __init__(self, fp32: Path, inputs: NDArray[np.float32], work: Path) -> None:
            seen.append(inputs)
            super().__init__(fp32, inputs, work)

    monkeypatch.setattr(module, "Int8Writer", Recording)
    model = quantisable
    quantise(model.bundle, model.training_set, model.validation_set, tmp_path, "1.1.0", "", 21)
    sample = stratified_sample(model.training_set, 21, SEED)
    (inputs,) = seen
    assert np.array_equal(inputs, preprocess(list(sample.crops_u8), manifest_of(quantisable.bundle).input))


def test_bundle_with_an_int8_network_may_be_quantised_again(
    quantised: Bundle, quantisable: Quantisable, tmp_path: Path
) -> None:
    model = quantisable
    again = quantise(quantised, model.training_set, model.validation_set, tmp_path, "1.2.0", "again", 50)
    assert manifest_of(again).int8.command == "again"  # type: ignore[union-attr]
    assert (again.folder / INT8_NAME).read_bytes() == (quantised.folder / INT8_NAME).read_bytes()


@pytest.fixture(scope="module")
def int8_network(quantised: Bundle) -> onnx.ModelProto:
    return onnx.load(quantised.folder / INT8_NAME)


def test_all_layers_but_the_first_and_the_last_are_int8(int8_network: onnx.ModelProto) -> None:
    graph = int8_network.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    sources = {output: node for node in graph.node for output in node.output}

    def weights(node: onnx.NodeProto) -> NDArray[np.generic]:
        name = node.input[1]
        return arrays[name] if name in arrays else arrays[sources[name].input[0]]

    first, *convolutions = [node for node in graph.node if node.op_type == "Conv"]
    (head,) = [node for node in graph.node if node.op_type == "Gemm"]
    assert weights(first).dtype == weights(head).dtype == np.float32
    assert convolutions
    for node in convolutions:
        assert sources[node.input[0]].op_type == "DequantizeLinear"
        array = weights(node)
        assert array.dtype == np.int8
        # Products of two such weights with uint8 add up within 16 bits: 2 × 255 × 64 < 2¹⁵.
        assert np.abs(array.astype(int)).max() == 64
        scales = arrays[sources[node.input[1]].input[1]]
        assert scales.shape == (array.shape[0],)


def test_network_takes_any_batch_size_and_gives_float_logits(quantised: Bundle) -> None:
    session = onnxruntime.InferenceSession(str(quantised.folder / INT8_NAME), providers=["CPUExecutionProvider"])
    for n in (1, 2, 7):
        (logits,) = session.run(None, {"input": np.zeros((n, 1, 16, 16), np.float32)})
        assert (logits.shape, logits.dtype) == ((n, 7), np.float32)


def test_file_says_nothing_of_the_machine_that_made_it(quantised: Bundle) -> None:
    data = (quantised.folder / INT8_NAME).read_bytes()
    assert not [word for word in (b".py", b"site-packages", str(Path.cwd()).encode(), b"stack_trace") if word in data]


class Fragile(Int8Writer):
    """Networks call every face `angry` until `NEEDED` layers are left in float."""

    NEEDED = 2

    def write(self, int8: Path, float_layers: Collection[str] = ()) -> None:
        super().write(int8, float_layers)
        if len(float_layers) >= self.NEEDED:
            return
        network = onnx.load(int8)
        for tensor in network.graph.initializer:
            if tensor.name.startswith("head."):
                tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
        onnx.save(network, int8)

    def most_sensitive(self) -> list[str]:
        return [*self.layers[::-1]]


class Hopeless(Fragile):
    NEEDED = 99


def refused(model: Quantisable, root: Path, error: type[Exception], message: str, **changes: object) -> None:
    arguments: dict[str, object] = {
        "training_set": model.training_set,
        "validation_set": model.validation_set,
        "version": "1.1.0",
        "n": 21,
    }
    before = sorted(root.rglob("*"))
    with pytest.raises(error, match=message):
        quantise(model.bundle, root=root, command="", **{**arguments, **changes})  # type: ignore[arg-type]
    assert sorted(root.rglob("*")) == before


def test_as_few_layers_as_are_needed_stay_in_float(
    quantisable: Quantisable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Int8Writer", Fragile)
    model = quantisable
    published = quantise(model.bundle, model.training_set, model.validation_set, tmp_path, "1.1.0", "", 21)
    record = manifest_of(open_bundle(published.folder)).int8
    assert record is not None
    assert len(record.float_layers) == 2
    graph = onnx.load(published.folder / INT8_NAME).graph
    sources = {output: node.op_type for node in graph.node for output in node.output}
    floats = {node.name for node in graph.node if node.op_type == "Conv" and sources.get(node.input[1]) is None}
    assert set(record.float_layers) < floats
    assert len(floats) == 3  # and the first one
    card = (published.folder / CARD_NAME).read_text()
    rows = ("| fp32 |", "| dynamic int8 |", "| static int8 |", "| static int8, 2 more layers in float |")
    assert all(row in card for row in rows)


def test_network_that_is_less_accurate_is_refused_and_nothing_written(
    quantisable: Quantisable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Int8Writer", Hopeless)
    refused(quantisable, tmp_path, Int8GateError, r"tiny-faces:1\.0\.0: no int8 network comes within 0\.3% of fp32's")


def test_network_that_is_less_accurate_may_be_published_without_int8(
    quantisable: Quantisable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Int8Writer", Hopeless)
    model = quantisable
    published = quantise(
        model.bundle, model.training_set, model.validation_set, tmp_path, "1.1.0", "", 21, or_without=True, keep_float=0
    )
    manifest = manifest_of(open_bundle(published.folder))
    assert manifest.int8 is None
    assert INT8_NAME not in manifest.files
    assert "| static int8 |" in (published.folder / CARD_NAME).read_text()


def test_sample_keeps_votes_and_soft_labels_with_their_faces() -> None:
    faces = unbalanced_faces([10] * 7)
    index = np.arange(70)
    faces = replace(
        faces,
        votes=np.repeat(index[:, None], 10, 1).astype(np.int8),
        soft_labels=np.repeat(index[:, None], 7, 1).astype(np.float32),
    )
    sample = stratified_sample(faces, 14, seed=0)
    shown = sample.crops_u8.ravel()
    assert sample.votes is not None
    assert sample.soft_labels is not None
    assert np.array_equal(sample.votes[:, 0], shown)
    assert np.array_equal(sample.soft_labels[:, 0], shown)


def test_other_training_faces_are_refused(quantisable: Quantisable, tmp_path: Path) -> None:
    message = "the faces to calibrate on are not those that tiny-faces:1.0.0 was trained on"
    refused(quantisable, tmp_path, DataError, message, training_set=quantisable.validation_set)


def as_many_others(faces: FaceSet) -> FaceSet:
    return replace(faces, labels=np.roll(faces.labels, 1))


def fewer(faces: FaceSet) -> FaceSet:
    return replace(faces, crops_u8=faces.crops_u8[:-7], labels=faces.labels[:-7], names=faces.names[:-7])


@pytest.mark.parametrize("change", [as_many_others, fewer])
def test_other_validation_faces_are_refused(
    quantisable: Quantisable, change: Callable[[FaceSet], FaceSet], tmp_path: Path
) -> None:
    others = change(quantisable.validation_set)
    message = f"the validation faces are not generated validation: n = {len(others)} with accuracy"
    refused(quantisable, tmp_path, DataError, message, validation_set=others)


def test_more_faces_than_there_are_is_refused(quantisable: Quantisable, tmp_path: Path) -> None:
    refused(quantisable, tmp_path, DataError, "113 faces to calibrate on, of 112", n=113)


@pytest.mark.parametrize("keep_float", [-1, 3])
def test_more_float_layers_than_half_are_refused(quantisable: Quantisable, keep_float: int, tmp_path: Path) -> None:
    message = f"{keep_float} layers in float: of this network's 5 it can be 0 to 2"
    refused(quantisable, tmp_path, DataError, message, keep_float=keep_float)


def test_card_of_the_next_version_says_how_the_weights_were_made(quantised: Bundle, quantisable: Quantisable) -> None:
    lines = manifest_of(quantised).training.provenance
    assert lines == manifest_of(quantisable.bundle).training.provenance != ()
    card = (quantised.folder / CARD_NAME).read_text()
    assert all(f"* **{line.replace(': ', '**: ', 1)}\n" in card for line in lines)


def test_bundle_that_was_scored_without_flip_can_be_quantised(quantisable: Quantisable, tmp_path: Path) -> None:
    model, manifest = quantisable, manifest_of(quantisable.bundle)
    plain = manifest.model_copy(update={"evaluations": manifest.evaluations[:1]})
    bundle = replace(model.bundle, manifest=plain)
    published = quantise(bundle, model.training_set, model.validation_set, tmp_path, "1.1.0", "", 21)
    assert re.search(r"\| fp32 \| [\d.]+% \| – \|", (published.folder / CARD_NAME).read_text())


def test_odd_version_is_refused(quantisable: Quantisable, tmp_path: Path) -> None:
    refused(quantisable, tmp_path, ManifestError, "version: ", version="1.1")


def test_version_that_stands_is_not_replaced(quantisable: Quantisable, tmp_path: Path) -> None:
    shutil.copytree(quantisable.bundle.folder.parents[1], tmp_path, dirs_exist_ok=True)
    message = r"1\.0\.0: that version stands"
    refused(quantisable, tmp_path, BundleExistsError, message, version="1.0.0")


def test_bundle_without_evaluations_is_refused(quantisable: Quantisable, tmp_path: Path) -> None:
    refused(
        replace(quantisable, bundle=publish_tiny(tmp_path)),
        tmp_path,
        DataError,
        "tiny:1.0.0 has no evaluations to hold",
    )
