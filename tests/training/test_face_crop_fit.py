from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.decode import decode_image
from handlers.face_crop import cut_face
from handlers.fakes import FAKE_LABELS, FakeClassifier, FakeDetector
from handlers.results import Detection
from model_store.manifest import FaceCropSpec
from tests.pictures import encoded, noise
from training.data import FER2013_LABELS, FaceSet
from training.errors import DataError
from training.face_crop_fit import fit_face_crop, score_crops

SIDE_PX = 48


class BrightDetector:
    """Finds the bounding box of what is brighter than half."""

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        rows, columns = np.nonzero(rgb_u8[:, :, 0] > 127)
        if not len(rows):
            return []
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        return [Detection(tuple(map(float, box)), 1.0, ())]  # type: ignore[arg-type]


def crops_with_box(left: int, top: int, right: int, bottom: int, *, n: int = 30, channels: int = 1) -> FaceSet:
    crops = np.zeros((n, SIDE_PX, SIDE_PX, channels), np.uint8)
    crops[:, top:bottom, left:right] = 255
    return FaceSet(crops, np.zeros(n, np.int64), tuple(map(str, range(n))), FER2013_LABELS, ())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # 24 wide and 30 tall in 48: 1.6 times the longer side, the centre 3 px right of and above the box's.
        ((9, 12, 33, 42), (1.6, 0.1, -0.1)),
        ((4, 4, 44, 44), (1.2, 0.0, 0.0)),
        ((20, 8, 45, 33), (1.92, -0.34, 0.14)),
    ],
)
def test_square_is_recovered_from_the_box_in_it(
    box: tuple[int, int, int, int], expected: tuple[float, float, float], channels: int
) -> None:
    fit = fit_face_crop(BrightDetector(), crops_with_box(*box, channels=channels), n=30)
    assert (fit.n_faces, fit.n_found) == (30, 30)
    assert fit.spec == FaceCropSpec(scale=expected[0], shift_x=expected[1], shift_y=expected[2], alignment="none")
    assert fit.scale.low == fit.scale.median == fit.scale.high


def test_serving_cuts_the_fitted_square_out_again() -> None:
    faces = crops_with_box(9, 12, 33, 42)
    crop = np.repeat(faces.crops_u8[0], 3, axis=2)
    spec = fit_face_crop(BrightDetector(), faces, n=30).spec
    photo = np.full((200, 300, 3), 60, np.uint8)
    photo[100 : 100 + SIDE_PX, 150 : 150 + SIDE_PX] = crop
    (detection,) = BrightDetector().detect(photo, 20)
    assert np.array_equal(cut_face(photo, detection.box_px, spec), crop)


def test_median_is_over_the_faces_that_are_found() -> None:
    crops = np.concatenate(
        [crops_with_box(4, 4, 44, 44, n=n, channels=1).crops_u8 * bright for n, bright in ((16, 1), (20, 0))]
        + [crops_with_box(14, 14, 34, 34, n=8).crops_u8]
    )
    faces = FaceSet(crops, np.zeros(44, np.int64), tuple(map(str, range(44))), FER2013_LABELS, ())
    fit = fit_face_crop(BrightDetector(), faces, n=44)
    assert (fit.n_faces, fit.n_found) == (44, 24)
    assert (fit.scale.low, fit.scale.median, fit.scale.high) == (1.2, 1.2, pytest.approx(1.5, abs=0.9))
    assert fit.scale.high > 1.2
    assert fit_face_crop(BrightDetector(), faces, n=44, seed=1) == fit


def test_faces_to_fit_on_are_drawn_by_the_seed() -> None:
    crops = np.concatenate([crops_with_box(4, 4, 4 + side, 4 + side, n=1).crops_u8 for side in range(8, 44)])
    faces = FaceSet(crops, np.zeros(36, np.int64), tuple(map(str, range(36))), FER2013_LABELS, ())
    first, again, other = (fit_face_crop(BrightDetector(), faces, n=24, seed=seed) for seed in (0, 0, 1))
    assert first.n_faces == 24
    assert first == again != other


@pytest.mark.parametrize("n_bright", [0, 19])
def test_too_few_detections_are_refused(n_bright: int) -> None:
    faces = crops_with_box(4, 4, 44, 44)
    faces.crops_u8[n_bright:] = 0
    with pytest.raises(DataError, match=f"found a face in only {n_bright} of 30"):
        fit_face_crop(BrightDetector(), faces, n=30)


SPECS = [
    FaceCropSpec(scale=scale, shift_x=0.0, shift_y=shift, alignment="none") for scale, shift in ((1.0, 0.0), (1.4, 0.1))
]


def write_photo(root: Path, label: str, name: str, pixels: NDArray[np.uint8]) -> None:
    (root / label).mkdir(parents=True, exist_ok=True)
    (root / label / name).write_bytes(encoded(pixels))


def called_by_the_fakes(pixels: NDArray[np.uint8], spec: FaceCropSpec) -> str:
    (detection,) = FakeDetector().detect(pixels, 20)
    crop = cut_face(decode_image(encoded(pixels)), detection.box_px, spec)
    return FAKE_LABELS[int(FakeClassifier().classify([crop])[0].argmax())]


def test_each_geometry_is_scored_on_every_photo_with_a_face(tmp_path: Path) -> None:
    photos = [noise(80 + seed, 100, seed) for seed in range(8)]
    for index, pixels in enumerate(photos):
        label = called_by_the_fakes(pixels, SPECS[0])
        if index < 2:  # filed wrongly
            label = FAKE_LABELS[FAKE_LABELS.index(label) - 1]
        write_photo(tmp_path, label, f"{index}.png", pixels)
    write_photo(tmp_path, "happy", "plain.png", np.full((80, 80, 3), 9, np.uint8))
    write_photo(tmp_path, "unknown label", "ignored.png", photos[0])
    scores, n_missed = score_crops(FakeDetector(), FakeClassifier(), tmp_path, SPECS)
    assert n_missed == 1
    assert [score.spec for score in scores] == SPECS
    assert [score.n for score in scores] == [8, 8]
    assert scores[0].accuracy == 0.75
    filed = {path.name: path.parent.name for path in tmp_path.glob("*/[0-9].png")}
    hits = [called_by_the_fakes(pixels, SPECS[1]) == filed[f"{index}.png"] for index, pixels in enumerate(photos)]
    assert scores[1].accuracy == sum(hits) / 8 != 0.75


def test_photos_without_any_face_are_refused(tmp_path: Path) -> None:
    write_photo(tmp_path, "happy", "plain.png", np.full((80, 80, 3), 9, np.uint8))
    with pytest.raises(DataError, match="no photograph with a face in folders named angry, disgust"):
        score_crops(FakeDetector(), FakeClassifier(), tmp_path, SPECS)
