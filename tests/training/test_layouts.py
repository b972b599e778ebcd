from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import encoded
from tests.training.faces import csv_rows, generated_faces, write_csv, write_folders, write_votes
from training.errors import DataError
from training.layouts import FER2013_USAGES, SPLITS, Rejected, class_pictures, read_rows, usages_of

PIXEL = encoded(np.full((3, 3), 9, np.uint8))
VOTES = (0, 10, 0, 0, 0, 0, 0, 0, 0, 0)


def fer2013_csv(folder: Path) -> Path:
    """Four rows: Training, PublicTest, Training, Training."""
    rows = csv_rows(generated_faces(4, side_px=48))
    rows[1][2] = "PublicTest"
    return write_csv(folder / "fer2013.csv", rows)


def test_usages_are_told_from_the_first_line(tmp_path: Path) -> None:
    split = tmp_path / "split.csv"
    split.write_text("split,class,path\n")
    assert usages_of(split) == SPLITS
    assert usages_of(fer2013_csv(tmp_path)) == FER2013_USAGES
    assert usages_of(tmp_path) == usages_of(Path("faces.parquet")) == ()


def test_class_pictures_are_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in (
        "shy/b.png",
        "shy/a.JPG",
        "angry/z.webp",
        "angry/notes.txt",
        "angry/._z.jpg",
        ".thumbs/a.png",
        "a.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PIXEL)
    (tmp_path / "unused").mkdir()
    found = [(label, file.relative_to(tmp_path).as_posix()) for label, file in class_pictures(tmp_path)]
    assert found == [("angry", "angry/z.webp"), ("shy", "shy/a.JPG"), ("shy", "shy/b.png")]


def test_a_file_that_is_no_folder_has_no_classes(tmp_path: Path) -> None:
    (tmp_path / "faces.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"faces\.zip: not a folder of class folders"):
        list(class_pictures(tmp_path / "faces.zip"))


def test_rows_of_folders_carry_the_folders_own_names(tmp_path: Path) -> None:
    rows = list(read_rows(write_folders(tmp_path, generated_faces(7))))
    assert [row.label for row in rows] == ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    assert {row.votes for row in rows} == {None}


def test_folder_named_like_a_picture_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "sad" / "a.png").mkdir(parents=True)
    (row,) = read_rows(tmp_path)
    assert row.pixels == Rejected("sad/a.png", "unreadable: Is a directory")


def test_split_file_names_are_relative_to_it(tmp_path: Path) -> None:
    write_folders(tmp_path / "faces", generated_faces(1))
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "split.csv"
    path.write_text('class,split,path\nangry,test,../faces/angry/face_000.png\n"angry",train,nowhere.png\n')
    (row,) = read_rows(path, "test")
    assert isinstance(row.pixels, np.ndarray)
    assert (row.name, row.label) == ("../faces/angry/face_000.png", "angry")


def test_split_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("path,class,split\na.png,sad,train\nb.png,sad,valid\n")
    with pytest.raises(DataError, match=r"split\.csv: line 3: split 'valid', expected one of train, validation, test"):
        list(read_rows(path, "train"))


@pytest.mark.parametrize("usage", ["Training", "valid"])
def test_split_file_wants_one_of_its_splits(usage: str, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("path,class,split\n")
    with pytest.raises(DataError, match="say which Usage to read, one of train, validation, test"):
        read_rows(path, usage)


def test_votes_beside_the_csv_belong_to_its_rows(tmp_path: Path) -> None:
    path = fer2013_csv(tmp_path)
    votes = [tuple(np.roll(VOTES, row).tolist()) for row in range(4)]
    usages = ("Training", "PublicTest", "Training", "Training")
    write_votes(tmp_path / "fer2013new.csv", list(zip(usages, votes, strict=True)))
    assert [(row.name, row.votes) for row in read_rows(path, "Training")] == [
        ("Training_0", votes[0]),
        ("Training_2", votes[2]),
        ("Training_3", votes[3]),
    ]


@pytest.mark.parametrize(
    ("usages", "message"),
    [
        (("Training",) * 4, "row 1 is not of fer2013.csv's Usage 'PublicTest'"),
        (("Training", "PublicTest", "Training"), "row 3 is not of fer2013.csv's"),
        (("Training", "PublicTest", "Training", "Training", "Training"), "5 rows, fer2013.csv has 4"),
    ],
    ids=["usage", "short", "long"],
)
def test_votes_of_other_rows_are_refused(usages: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = fer2013_csv(tmp_path)
    write_votes(tmp_path / "fer2013new.csv", [(usage, VOTES) for usage in usages])
    with pytest.raises(DataError, match=message):
        list(read_rows(path, "Training"))


def test_row_without_a_picture_is_rejected_by_its_number(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": PIXEL, "path": None}, None], image)
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "null.parquet")
    good, null = read_rows(tmp_path / "null.parquet")
    assert isinstance(good.pixels, np.ndarray)
    assert good.name == "row 0"
    assert isinstance(null.pixels, Rejected)
    assert null.pixels.name == "row 1"


def test_file_name_that_is_not_utf_8_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "sad").mkdir()
    file = os.fsencode(tmp_path / "sad") + b"/\xff.png"
    try:
        Path(os.fsdecode(file)).write_bytes(PIXEL)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (row,) = read_rows(tmp_path)
    assert row.pixels == Rejected("sad/\\udcff.png", "its name is not UTF-8")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_csv_is_utf_8_whatever_the_locale(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(mark + "path,class,split\nfélicité.png,glück,train\n".encode())
    (row,) = read_rows(path, "train")
    assert (row.name, row.label) == ("félicité.png", "glück")
