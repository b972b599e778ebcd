from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store.bundle import BUNDLES_ROOT, open_bundle
from model_store.manifest import EmotionManifest
from tests.pictures import encoded
from tests.training.faces import (
    csv_rows,
    generated_faces,
    parquet_rows,
    spec_of,
    write_csv,
    write_folders,
    write_parquet,
    write_voted_parquet,
    write_votes,
)
from training.data import FER2013_LABELS, FaceSet, load_faces
from training.errors import DataError
from training.ferplus import FERPLUS_EMOTIONS, NO_EMOTION_WINS, NOBODY_VOTED, VOTES_DISAGREE, emotion_shares
from training.label_names import FANE_LABELS

SPEC = spec_of(48)


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    """Two faces a class, in the order in which class folders are read: by class name."""
    drawn = generated_faces(14, side_px=48)
    order = sorted(range(14), key=lambda row: (FER2013_LABELS[drawn.labels[row]], row))
    return FaceSet(drawn.crops_u8[order], drawn.labels[order], drawn.names, FER2013_LABELS, ())


def as_parquet(folder: Path, faces: FaceSet) -> FaceSet:
    return load_faces(write_parquet(folder / "faces.parquet", parquet_rows(faces)), FER2013_LABELS, SPEC)


def as_folders(folder: Path, faces: FaceSet) -> FaceSet:
    return load_faces(write_folders(folder / "faces", faces), FER2013_LABELS, SPEC)


def as_csv(folder: Path, faces: FaceSet) -> FaceSet:
    others = csv_rows(generated_faces(14, side_px=48, seed=9), "PublicTest")
    rows = [row for pair in zip(others, csv_rows(faces), strict=True) for row in pair]
    return load_faces(write_csv(folder / "fer2013.csv", rows), FER2013_LABELS, SPEC, usage="Training")


@pytest.mark.parametrize("layout", [as_parquet, as_folders, as_csv])
def test_every_layout_gives_the_same_faces(
    layout: Callable[[Path, FaceSet], FaceSet], faces: FaceSet, tmp_path: Path
) -> None:
    loaded = layout(tmp_path, faces)
    assert loaded.crops_u8.dtype == np.uint8
    assert np.array_equal(loaded.crops_u8, faces.crops_u8)
    assert np.array_equal(loaded.labels, faces.labels)
    assert loaded.rejected == ()
    assert loaded.sha256 == faces.sha256


def test_split_file_gives_the_faces_of_the_split_that_is_asked_for(faces: FaceSet, tmp_path: Path) -> None:
    write_folders(tmp_path / "faces", faces)
    whole = load_faces(tmp_path / "faces", FER2013_LABELS, SPEC)
    lines = [
        f"faces/{name},{name.split('/')[0]},{('train', 'validation')[row % 2]}" for row, name in enumerate(whole.names)
    ]
    (tmp_path / "split.csv").write_text("\n".join(["path,class,split", *lines, "faces/sad/gone.png,sad,train", ""]))
    for usage, first in (("train", 0), ("validation", 1)):
        part = load_faces(tmp_path / "split.csv", FER2013_LABELS, SPEC, usage=usage)
        assert np.array_equal(part.crops_u8, whole.crops_u8[first::2])
        assert np.array_equal(part.labels, whole.labels[first::2])
        assert part.names == tuple(f"faces/{name}" for name in whole.names[first::2])
    rejected = load_faces(tmp_path / "split.csv", FER2013_LABELS, SPEC, usage="train").rejected
    assert [(row.name, row.reason) for row in rejected] == [
        ("faces/sad/gone.png", "unreadable: No such file or directory")
    ]


def test_nine_classes_of_fane_are_read_in_the_experiments_order(tmp_path: Path) -> None:
    for level, name in enumerate(FANE_LABELS):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}1.jpg").write_bytes(encoded(np.full((60, 60), level * 20, np.uint8), "JPEG"))
    loaded = load_faces(tmp_path, FANE_LABELS[::-1], SPEC)
    assert loaded.labels.tolist() == list(range(8, -1, -1))
    assert loaded.crops_u8[:, 0, 0, 0].tolist() == [level * 20 for level in range(9)]


VOTES = (
    (8, 2, 0, 0, 0, 0, 0, 0, 0, 0),
    (5, 1, 0, 0, 4, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 8, 2),
    None,
    (0, 1, 0, 0, 0, 0, 0, 9, 0, 0),
    (3, 0, 0, 3, 2, 2, 0, 0, 0, 0),
    (4, 0, 0, 0, 4, 0, 0, 0, 1, 1),
)
OURS = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def voted(layout: str, folder: Path) -> dict[str, Any]:
    """Path and usage of seven faces with VOTES, in either layout with votes."""
    faces = generated_faces(len(VOTES), side_px=48)
    if layout == "parquet":
        return {"path": write_voted_parquet(folder / "faces.parquet", parquet_rows(faces), VOTES)}
    rows = [*csv_rows(generated_faces(1, side_px=48, seed=5), "PublicTest"), *csv_rows(faces)]
    write_votes(folder / "fer2013new.csv", [("PublicTest", VOTES[0]), *(("Training", votes) for votes in VOTES)])
    return {"path": write_csv(folder / "fer2013.csv", rows), "usage": "Training"}


@pytest.mark.parametrize("layout", ["parquet", "csv"])
def test_majority_of_the_votes_is_the_label_and_faces_without_one_are_counted(layout: str, tmp_path: Path) -> None:
    faces = load_faces(
        label_names=FERPLUS_EMOTIONS, spec=SPEC, labels_from="ferplus-majority", **voted(layout, tmp_path)
    )
    assert [FERPLUS_EMOTIONS[label] for label in faces.labels] == ["neutral", "neutral", "contempt"]
    assert np.array_equal(faces.crops_u8, generated_faces(len(VOTES), side_px=48).crops_u8[[0, 1, 4]])
    assert faces.votes is not None
    assert faces.votes[2].tolist() == [0, 1, 0, 0, 0, 0, 0, 9, 0, 0]
    assert faces.soft_labels is None
    assert faces.rejected == ()
    assert dict(faces.left_out) == {NOBODY_VOTED: 1, NO_EMOTION_WINS: 1, VOTES_DISAGREE: 2}


@pytest.mark.parametrize("layout", ["parquet", "csv"])
def test_distribution_of_the_votes_is_the_soft_label_in_the_experiments_order(layout: str, tmp_path: Path) -> None:
    faces = load_faces(label_names=OURS, spec=SPEC, labels_from="ferplus-distribution", **voted(layout, tmp_path))
    said = [dict(zip(OURS, row.tolist(), strict=True)) for row in faces.soft_labels]
    shares = [{name: round(share, 4) for name, share in row.items() if share} for row in said]
    assert shares == [
        {"neutral": 1.0},
        {"angry": 0.4444, "neutral": 0.5556},
        {"contempt": 1.0},
        {"angry": 0.5, "neutral": 0.5},
    ]
    assert [OURS[label] for label in faces.labels] == ["neutral", "neutral", "contempt", "neutral"]
    assert faces.soft_labels.dtype == np.float32
    assert faces.labels.dtype == np.int64
    assert dict(faces.left_out) == {NOBODY_VOTED: 1, NO_EMOTION_WINS: 1, VOTES_DISAGREE: 1}


def test_votes_do_not_change_the_digest_of_a_set_with_its_own_labels(faces: FaceSet, tmp_path: Path) -> None:
    rows = parquet_rows(faces)
    path = write_voted_parquet(tmp_path / "faces.parquet", rows, [VOTES[0]] * len(rows))
    plain = load_faces(path, FER2013_LABELS, SPEC)
    assert plain.votes is not None
    assert plain.sha256 == faces.sha256
    digests = {
        load_faces(path, FERPLUS_EMOTIONS, SPEC, labels_from=rule).sha256
        for rule in ("ferplus-majority", "ferplus-distribution")
    }
    assert len({plain.sha256, *digests}) == 3


def test_votes_are_asked_for_where_there_are_none(faces: FaceSet, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "faces.parquet", parquet_rows(faces))
    with pytest.raises(DataError, match=r"faces\.parquet: has no FER\+ votes"):
        load_faces(path, FERPLUS_EMOTIONS, SPEC, labels_from="ferplus-majority")
    path = write_csv(tmp_path / "fer2013.csv", csv_rows(faces))
    with pytest.raises(DataError, match=r"has no FER\+ votes.*fer2013new\.csv"):
        load_faces(path, FERPLUS_EMOTIONS, SPEC, usage="Training", labels_from="ferplus-majority")


def test_set_whose_votes_settle_on_nothing_is_refused(tmp_path: Path) -> None:
    rows = parquet_rows(generated_faces(2, side_px=48))
    path = write_voted_parquet(tmp_path / "faces.parquet", rows, [VOTES[2], None])
    with pytest.raises(DataError, match="settle on no emotion for any of 2"):
        load_faces(path, FERPLUS_EMOTIONS, SPEC, labels_from="ferplus-distribution")


def test_names_say_where_a_face_came_from(faces: FaceSet, tmp_path: Path) -> None:
    assert as_parquet(tmp_path, faces).names == faces.names
    assert as_folders(tmp_path, faces).names[0] == "angry/face_000.png"
    assert as_csv(tmp_path, faces).names[0] == "Training_1"


def test_digest_changes_with_a_pixel_a_label_or_a_label_name(faces: FaceSet) -> None:
    crops, labels = faces.crops_u8.copy(), faces.labels.copy()
    crops[0, 0, 0] ^= 1
    labels[0] = 5
    renamed = ("anger", *FER2013_LABELS[1:])
    variants = [(crops, faces.labels, FER2013_LABELS), (faces.crops_u8, labels, FER2013_LABELS)]
    variants.append((faces.crops_u8, faces.labels, renamed))
    digests = {FaceSet(pixels, indices, faces.names, names, ()).sha256 for pixels, indices, names in variants}
    assert len(digests | {faces.sha256}) == 4


def test_labels_follow_the_given_order(faces: FaceSet, tmp_path: Path) -> None:
    reverse = FER2013_LABELS[::-1]
    for path in (
        write_parquet(tmp_path / "faces.parquet", parquet_rows(faces)),
        write_folders(tmp_path / "faces", faces),
    ):
        loaded = load_faces(path, reverse, SPEC)
        assert [reverse[label] for label in loaded.labels] == [FER2013_LABELS[label] for label in faces.labels]
        assert loaded.label_names == reverse


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_size_and_mode_become_the_specs(channels: int, tmp_path: Path) -> None:
    folder = tmp_path / "happy"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(np.full((90, 60, 3), (250, 0, 0), np.uint8)))
    (folder / "b.JPG").write_bytes(encoded(np.full((20, 20), 100, np.uint8), "JPEG"))
    (folder / "c.gif").write_bytes(encoded(Image.new("P", (7, 9), 0), "GIF"))
    loaded = load_faces(tmp_path, FER2013_LABELS, spec_of(24, channels))
    assert loaded.crops_u8.shape == (3, 24, 24, channels)
    assert loaded.crops_u8[0, 0, 0].tolist() == ([75] if channels == 1 else [250, 0, 0])


def test_folder_names_of_other_copies_are_understood(tmp_path: Path) -> None:
    names = ("anger", "disgusted", "fearful", "happiness", "sad", "surprise", "neutral")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "face.png").write_bytes(encoded(np.full((48, 48), len(name), np.uint8)))
    (tmp_path / "happiness" / "notes.txt").write_text("not a picture, so not a face")
    loaded = load_faces(tmp_path, FER2013_LABELS, SPEC)
    found = {name.split("/")[0]: FER2013_LABELS[label] for name, label in zip(loaded.names, loaded.labels, strict=True)}
    assert found == dict(zip(names, FER2013_LABELS, strict=True))


def test_folder_named_as_a_label_is_that_label_and_no_alias(tmp_path: Path) -> None:
    for name in ("anger", "happy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "face.png").write_bytes(encoded(np.zeros((48, 48), np.uint8)))
    assert load_faces(tmp_path, ("happy", "anger"), SPEC).labels.tolist() == [1, 0]


def test_unusable_pictures_are_listed_and_not_fatal(faces: FaceSet, tmp_path: Path) -> None:
    good = parquet_rows(faces)
    bad = [("text", b"no picture", 3), ("short", good[0][1][:40], 3), ("empty", b"", 3), ("null", None, 3)]
    loaded = load_faces(write_parquet(tmp_path / "f.parquet", [bad[0], *good, *bad[1:]]), FER2013_LABELS, SPEC)
    assert loaded.sha256 == faces.sha256
    codes = [(rejected.name, rejected.reason.split(":")[0]) for rejected in loaded.rejected]
    assert codes == [
        ("text", "unsupported_format"),
        ("short", "corrupt_image"),
        ("empty", "empty_image"),
        ("null", "empty_image"),
    ]


def test_unusable_csv_rows_are_listed_and_not_fatal(faces: FaceSet, tmp_path: Path) -> None:
    bad = [[0, "1 2 3", "Training"], [0, "256 " * 48**2, "Training"], [0, "-1 " * 48**2, "Training"]]
    bad += [[0, "x " * 48**2, "Training"], [0, "", "Training"]]
    path = write_csv(tmp_path / "fer2013.csv", [*bad, *csv_rows(faces)])
    loaded = load_faces(path, FER2013_LABELS, SPEC, usage="Training")
    assert loaded.sha256 == faces.sha256
    assert [rejected.name for rejected in loaded.rejected] == [f"Training_{row}" for row in range(5)]
    assert all(rejected.reason for rejected in loaded.rejected)


def test_corrupt_file_in_a_folder_is_listed_and_not_fatal(faces: FaceSet, tmp_path: Path) -> None:
    write_folders(tmp_path, faces)
    (tmp_path / "sad" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    loaded = load_faces(tmp_path, FER2013_LABELS, SPEC)
    assert loaded.sha256 == faces.sha256
    assert [(rejected.name, rejected.reason[:14]) for rejected in loaded.rejected] == [
        ("sad/broken.png", "corrupt_image:"),
    ]


BLANK = " ".join(["0"] * 48**2)
PIXEL = encoded(np.zeros((48, 48), np.uint8))


def bare_folder(folder: Path) -> Path:
    return folder


def folder_of(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).mkdir()
        (folder / name / "face.png").write_bytes(PIXEL)
        return folder

    return build


def csv_of(*rows: list[Any], **options: Any) -> Callable[[Path], Path]:
    return lambda folder: write_csv(folder / "fer2013.csv", list(rows), **options)


def parquet_of(*rows: tuple[str | None, bytes | None, int | None]) -> Callable[[Path], Path]:
    return lambda folder: write_parquet(folder / "faces.parquet", list(rows))


def other_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"picture": [PIXEL], "label": [0]}), folder / "faces.parquet")
    return folder / "faces.parquet"


def bytes_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [PIXEL], "label": [0]}), folder / "faces.parquet")
    return folder / "faces.parquet"


def text_file(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(b"\xff\xfe not that")
        return folder / name

    return build


@pytest.mark.parametrize(
    ("build", "usage", "message"),
    [
        pytest.param(lambda folder: folder / "absent", None, "neither a .parquet or .csv file nor a folder", id="path"),
        pytest.param(text_file("faces.zip"), None, "neither a .parquet or .csv file nor a folder", id="suffix"),
        pytest.param(lambda folder: folder / "absent.csv", "Training", "No such file", id="absent csv"),
        pytest.param(lambda folder: folder / "absent.parquet", None, "absent.parquet", id="absent parquet"),
        pytest.param(text_file("faces.parquet"), None, "faces.parquet: ", id="broken parquet"),
        pytest.param(text_file("faces.csv"), "Training", "faces.csv: ", id="binary csv"),
        pytest.param(other_parquet, None, "image", id="parquet without an image column"),
        pytest.param(bytes_parquet, None, "image", id="parquet with bare bytes"),
        pytest.param(csv_of([0, BLANK, "Training"]), None, "say which Usage to read, one of Training", id="no usage"),
        pytest.param(csv_of([0, BLANK, "Training"]), "Test", "say which Usage to read", id="unknown usage"),
        pytest.param(
            csv_of([0, BLANK, "Training"]), "PublicTest", "no usable face (0 rejected)", id="usage without rows"
        ),
        pytest.param(
            folder_of("happy"), "Training", "a Usage can be chosen only in the CSV layout", id="usage of folder"
        ),
        pytest.param(
            parquet_of(("a", PIXEL, 0)),
            "Training",
            "a Usage can be chosen only in the CSV layout",
            id="usage of parquet",
        ),
        pytest.param(
            csv_of([0, BLANK, "Training"], header=("label", "pixels", "Usage")),
            "Training",
            "expected the columns emotion, pixels, Usage or path, class, split",
            id="csv header",
        ),
        pytest.param(text_file("faces.jpg"), None, "neither a .parquet or .csv file nor a folder", id="picture"),
        pytest.param(bare_folder, None, "no class folders", id="empty folder"),
        pytest.param(folder_of("contempt"), None, "contempt/face.png is labelled 'contempt'", id="unknown folder"),
        pytest.param(csv_of([7, BLANK, "Training"]), "Training", "label '7' is not an index of angry", id="csv label"),
        pytest.param(csv_of(["", BLANK, "Training"]), "Training", "label '' is not an index", id="csv empty label"),
        pytest.param(parquet_of(("a", PIXEL, -1)), None, "label -1 is not an index of angry", id="parquet label"),
        pytest.param(parquet_of(("a", PIXEL, None)), None, "label None is not an index of angry", id="null label"),
        pytest.param(parquet_of(("a", b"x", 0)), None, "no usable face (1 rejected)", id="all rejected"),
        pytest.param(parquet_of(), None, "no usable face (0 rejected)", id="no rows"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_the_reason(
    build: Callable[[Path], Path], usage: str | None, message: str, tmp_path: Path
) -> None:
    path = build(tmp_path)
    with pytest.raises(DataError) as caught:
        load_faces(path, FER2013_LABELS, SPEC, usage=usage)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_label_outside_the_given_names_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "faces.parquet", [("a.png", PIXEL, 6)])
    with pytest.raises(DataError, match=r"a\.png is labelled 'neutral', which is none of happy, sad"):
        load_faces(path, ("happy", "sad"), SPEC)


@pytest.mark.parametrize(
    ("crops", "n_labels"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), 2),
        (np.zeros((2, 8, 8), np.uint8), 2),
        (np.zeros((2, 8, 8, 1), np.uint8), 3),
    ],
    ids=["dtype", "dimensions", "length"],
)
def test_face_set_refuses_arrays_that_do_not_fit(crops: np.ndarray, n_labels: int) -> None:
    with pytest.raises(DataError):
        FaceSet(crops, np.zeros(n_labels, np.int64), ("a", "b"), FER2013_LABELS, ())


@pytest.fixture(scope="module")
def public_test(fer2013: Path) -> FaceSet:
    return load_faces(fer2013 / "validation.parquet", FER2013_LABELS, SPEC)


def test_fer2013_validation_split_is_whole(public_test: FaceSet) -> None:
    counts = dict(zip(FER2013_LABELS, np.bincount(public_test.labels).tolist(), strict=True))
    assert public_test.rejected == ()
    assert public_test.crops_u8.shape == (3589, 48, 48, 1)
    assert counts == {
        "angry": 467,
        "disgust": 56,
        "fear": 496,
        "happy": 895,
        "sad": 653,
        "surprise": 415,
        "neutral": 607,
    }
    assert 120 < public_test.crops_u8.mean() < 140


def test_fer2013_validation_split_keeps_its_digest(public_test: FaceSet) -> None:
    assert public_test.sha256 == "bd7a474fe73a67a0989c881f34a21bc19d1ea2252884e8c536f136bc5b5c2b53"
    assert public_test.votes_sha256 == "d3bfc35178021a89333d4ded0cb49495071dd1d73ccd2112a628e94bc17fe899"


@pytest.mark.parametrize(("rule", "n"), [("ferplus-majority", 3199), ("ferplus-distribution", 3505)])
def test_fer2013_validation_split_by_the_rules_of_ferplus(rule: Any, n: int, public_test: FaceSet) -> None:
    assert public_test.votes is not None
    reasons = emotion_shares(public_test.votes, rule).reasons
    assert reasons.count(None) == n
    assert reasons.count(NOBODY_VOTED) == 10


@pytest.mark.slow
def test_fer2013_training_split_is_the_one_that_the_shipped_bundle_names(fer2013: Path) -> None:
    manifest = open_bundle(BUNDLES_ROOT / "fer2013-resnet" / "1.1.0").manifest
    assert isinstance(manifest, EmotionManifest)
    faces = load_faces(fer2013 / "train.parquet", manifest.labels, manifest.input)
    assert faces.sha256 == manifest.training.data_sha256
