from __future__ import annotations

import numpy as np
import pytest

from handlers.classifier import EmotionClassifier, emotion_of, probabilities_of
from handlers.engines import InputShape, choose_engine
from handlers.preprocess import preprocess
from model_store.manifest import EmotionManifest
from model_store.servable import ServableModel
from tests.model_bundles import LABELS
from tests.pictures import noise


def classifier_of(model: ServableModel, **options: str) -> EmotionClassifier:
    assert isinstance(model.manifest, EmotionManifest)
    network = choose_engine().load(model, "classifier", InputShape((1, 32, 32)))
    return EmotionClassifier(model.manifest, network, **options)


@pytest.fixture(scope="module")
def classifier(tiny_model: ServableModel) -> EmotionClassifier:
    return classifier_of(tiny_model)


def crops(n: int) -> list[np.ndarray]:
    return [noise(20 + index % 30, 20 + index % 30, seed=index) for index in range(n)]


def test_rows_are_probabilities(classifier: EmotionClassifier) -> None:
    rows = classifier.classify(crops(5))
    assert rows.shape == (5, 7)
    assert rows.dtype == np.float32
    assert (rows > 0).all()
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)


def test_probabilities_are_the_softmax_of_the_tempered_logits(classifier: EmotionClassifier) -> None:
    logits = classifier.logits(crops(4)).astype(np.float64)
    expected = np.exp(logits / 1.5)
    np.testing.assert_allclose(classifier.classify(crops(4)), expected / expected.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 130])
def test_rows_keep_their_order_over_batch_borders(classifier: EmotionClassifier, n: int) -> None:
    rows = classifier.classify(crops(n))
    assert rows.shape == (n, 7)
    for index in {0, n // 2, n - 1}:
        np.testing.assert_allclose(rows[index], classifier.classify([crops(n)[index]])[0], atol=1e-5)


def test_no_crops_are_no_rows(classifier: EmotionClassifier) -> None:
    assert classifier.classify([]).shape == (0, 7)


def test_flip_averages_the_logits_of_the_mirrored_crop(tiny_model: ServableModel) -> None:
    plain, flipping = classifier_of(tiny_model), classifier_of(tiny_model, tta="flip")
    size = plain.input.size_px
    crop = noise(size, size)
    mean = (plain.logits([crop]) + plain.logits([np.ascontiguousarray(crop[:, ::-1])])) / 2
    np.testing.assert_allclose(flipping.logits([crop]), mean, atol=1e-5)
    assert np.abs(flipping.logits([crop]) - plain.logits([crop])).max() > 1e-4
    np.testing.assert_allclose(flipping.logits([crop]), flipping.logits([crop[:, ::-1]]), atol=1e-5)


def test_labels_and_specs_come_from_the_manifest(tiny_model: ServableModel, classifier: EmotionClassifier) -> None:
    manifest = tiny_model.manifest
    assert isinstance(manifest, EmotionManifest)
    assert (classifier.tag, classifier.labels) == ("tiny:1.0.0", LABELS)
    assert (classifier.input, classifier.face_crop) == (manifest.input, manifest.face_crop)
    assert preprocess(crops(2), classifier.input).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_temperature_keeps_the_winner_and_huge_logits_stay_finite(temperature: float) -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e30, 1e30, 0], [0.1, 0.2, 0.3]], np.float32)
    rows = probabilities_of(logits, temperature)
    assert np.isfinite(rows).all()
    assert rows.argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)


def test_hotter_is_less_sure() -> None:
    logits = np.array([[2.0, 1.0, 0.0]], np.float32)
    cold, plain, hot = (float(probabilities_of(logits, t).max()) for t in (0.5, 1.0, 2.0))
    assert cold > plain > hot


def test_emotion_of_a_row() -> None:
    emotion = emotion_of(np.array([0.25, 0.5, 0.25], np.float32), ("a", "b", "c"))
    assert (emotion.label, emotion.confidence) == ("b", 0.5)
    assert list(emotion.probabilities.items()) == [("a", 0.25), ("b", 0.5), ("c", 0.25)]


def test_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 labels"):
        emotion_of(np.ones(4, np.float32), ("a", "b", "c"))
