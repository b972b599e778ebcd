from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import encoded
from tests.training.faces import spec_of
from training.commands import split as split_command
from training.data import load_faces
from training.errors import DataError
from training.label_names import FANE_LABELS
from training.layouts import SPLITS
from training.splits import Split, split_tree, write_split

SIZES = dict(zip(FANE_LABELS, (100, 60, 40, 20, 130, 87, 33, 3, 9), strict=True))


def write_tree(tree: Path, sizes: dict[str, int], *, same: dict[str, int] | None = None) -> Path:
    """Class folders with as many different pictures; `same` adds copies of the one picture that all classes share."""
    rng = np.random.default_rng(0)
    for label, size in sizes.items():
        (tree / label).mkdir(parents=True)
        for index in range(size):
            picture = encoded(rng.integers(0, 256, (4, 4), np.uint8))
            (tree / label / f"{label}{index}.png").write_bytes(picture)
        for index in range((same or {}).get(label, 0)):
            (tree / label / f"same{index}.png").write_bytes(encoded(np.eye(4, dtype=np.uint8)))
    return tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("fane"), SIZES)


@pytest.fixture(scope="module")
def split(tree: Path) -> Split:
    return split_tree(tree)


def test_nine_classes_are_divided_by_the_shares(split: Split) -> None:
    assert len(split.rows) == sum(SIZES.values())
    assert split.counts == {
        "angry": {"train": 70, "validation": 15, "test": 15},
        "confused": {"train": 42, "validation": 9, "test": 9},
        "disgust": {"train": 28, "validation": 6, "test": 6},
        "fear": {"train": 14, "validation": 3, "test": 3},
        "happy": {"train": 91, "validation": 20, "test": 19},
        "neutral": {"train": 61, "validation": 13, "test": 13},
        "sad": {"train": 23, "validation": 5, "test": 5},
        "shy": {"train": 1, "validation": 1, "test": 1},
        "surprise": {"train": 6, "validation": 2, "test": 1},
    }


def test_every_picture_is_in_one_split_of_its_class(split: Split, tree: Path) -> None:
    names = [name for name, _, _ in split.rows]
    assert names == sorted(file.relative_to(tree).as_posix() for file in tree.glob("*/*.png"))
    assert all(name.startswith(f"{label}/") for name, label, _ in split.rows)
    assert split.rejected == ()
    assert split.repeated == 0


def test_split_follows_from_the_seed(split: Split, tree: Path) -> None:
    assert split_tree(tree) == split
    other = split_tree(tree, seed=1)
    assert other.counts == split.counts
    assert sum(row != again for row, again in zip(split.rows, other.rows, strict=True)) > 100


def test_shares_are_followed(tree: Path) -> None:
    counts = split_tree(tree, (0.5, 0.3, 0.2)).counts
    assert counts["angry"] == {"train": 50, "validation": 30, "test": 20}
    assert counts["shy"] == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("shares", [(0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (0.99, 0.005, 0.005), (1.2, -0.1, -0.1)])
def test_shares_that_are_none_are_refused(shares: tuple[float, float, float], tree: Path) -> None:
    with pytest.raises(DataError, match=r"three numbers of at least 0\.02 that sum to 1"):
        split_tree(tree, shares)


def test_largest_deviation_of_a_class_is_said(tree: Path) -> None:
    rows = [(f"a/{index}", "a", split) for index, split in enumerate(("train",) * 6 + ("validation", "test"))]
    rows += [(f"b/{index}", "b", split) for index, split in enumerate(("train",) * 2 + ("validation",) * 3 + ("test",))]
    split = Split(tuple(rows), (), 0)
    difference, label, which = split.deviation
    assert (round(difference, 4), which) == (round(3 / 4 - 6 / 14, 4), "validation")
    assert label in ("a", "b")
    text = split.as_text()
    assert "largest deviation from the whole: 32.14 points" in text
    assert text.splitlines()[1].split() == ["a", "8", "57.1%", "6", "75.0%", "1", "25.0%", "1", "50.0%"]


def test_file_is_read_as_three_sets_without_overlap(split: Split, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "fane.csv"
    write_split(split, tree, out)
    spec = spec_of(8)
    sets = {usage: load_faces(out, FANE_LABELS, spec, usage=usage) for usage in SPLITS}
    assert {usage: len(faces) for usage, faces in sets.items()} == Counter(row[2] for row in split.rows)
    assert not any(faces.rejected for faces in sets.values())
    names = [name for faces in sets.values() for name in faces.names]
    assert len(set(names)) == sum(SIZES.values())
    for usage, faces in sets.items():
        counts = dict(zip(FANE_LABELS, np.bincount(faces.labels, minlength=9).tolist(), strict=True))
        assert counts == {label: of_class[usage] for label, of_class in split.counts.items()}


def test_file_moves_with_its_tree(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "here" / "faces", {"shy": 3, "sad": 3})
    write_split(split_tree(tree), tree, tmp_path / "here" / "split.csv")
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_faces(tmp_path / "there" / "split.csv", ("sad", "shy"), spec_of(8), usage="test").rejected == ()


def test_file_is_never_replaced_by_another_split(split: Split, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.csv"
    write_split(split, tree, out)
    before = out.read_bytes()
    write_split(split, tree, out)
    with pytest.raises(DataError, match="holds another split or something else"):
        write_split(split_tree(tree, seed=1), tree, out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_file_that_cannot_be_written_is_said(split: Split, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory"):
        write_split(split, tree, tmp_path / "absent" / "split.csv")


def test_equal_pictures_stay_together_and_classes_keep_their_shares(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, {"sad": 90, "shy": 50}, same={"sad": 10})
    for index in range(5):
        copy = (tree / "sad" / f"sad{index}.png").read_bytes()
        (tree / "shy" / f"copy{index}.png").write_bytes(copy)
    split = split_tree(tree)
    split_of = {name: which for name, _, which in split.rows}
    assert len({split_of[f"sad/same{index}.png"] for index in range(10)}) == 1
    assert all(split_of[f"sad/sad{index}.png"] == split_of[f"shy/copy{index}.png"] for index in range(5))
    assert split.repeated == 20
    assert split.counts["sad"] == {"train": 70, "validation": 15, "test": 15}


def test_equal_pictures_that_bend_a_class_are_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, {"sad": 10, "shy": 60}, same={"sad": 90})
    with pytest.raises(DataError, match=r"class 'sad': train would hold 90\.0% of its 100 pictures instead of 70\.0%"):
        split_tree(tree)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_class_with_too_few_pictures_is_named(size: int, tmp_path: Path) -> None:
    tree = write_tree(tmp_path, {"sad": 9, "shy": size})
    with pytest.raises(DataError, match=rf"class 'shy' has {size} different pictures that can be read, at least 3"):
        split_tree(tree)


def test_copies_and_broken_files_do_not_make_a_class(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, {"sad": 9, "shy": 1}, same={"shy": 5})
    (tree / "shy" / "broken.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="class 'shy' has 2 different pictures"):
        split_tree(tree)


def test_class_that_equal_pictures_keep_out_of_a_split_is_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, {"sad": 3, "shy": 0})
    for index in range(3):
        picture = (tree / "sad" / f"sad{index}.png").read_bytes()
        (tree / "shy" / f"{index}.png").write_bytes(picture)
        for copy in range(9):
            (tree / "sad" / f"copy{index}{copy}.png").write_bytes(picture)
    with pytest.raises(DataError, match="equal pictures leave none for"):
        split_tree(tree)


def run_command(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    split_command.add_parser(parser.add_subparsers())
    options = parser.parse_args(["split", *arguments])
    options.run(options)


def test_command_writes_the_file_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_tree(tmp_path / "faces", {"sad": 20, "shy": 10}, same={"shy": 2})
    (tree / "sad" / "broken.jpg").write_bytes(b"broken")
    out = tmp_path / "split.csv"
    run_command("--data", str(tree), "--out", str(out), "--seed", "4", "--shares", "0.5", "0.25", "0.25")
    printed = capsys.readouterr()
    assert printed.err.startswith("left out sad/broken.jpg: unsupported_format")
    assert "2 pictures have the pixels of another one" in printed.out
    assert printed.out.splitlines()[1].split()[:4] == ["sad", "20", "62.5%", "10"]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["split"] for row in rows) == {"train": 16, "validation": 8, "test": 8}
    assert rows[0]["path"] == "faces/sad/sad0.png"
    assert rows == sorted(rows, key=lambda row: row["path"])


def test_shares_that_are_no_numbers_are_refused(tree: Path) -> None:
    for shares in ((float("nan"), 0.5, 0.5), (0.5, 0.5, float("nan")), (0.7, 0.15, float("inf"))):
        with pytest.raises(DataError, match="expected three numbers"):
            split_tree(tree, shares)


def test_names_that_are_not_utf_8_are_left_out_of_the_file(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"sad": 4})
    picture = (tree / "sad" / "sad0.png").read_bytes()
    try:
        Path(os.fsdecode(os.fsencode(tree / "sad") + b"/\xff.png")).write_bytes(picture)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    found = split_tree(tree)
    assert len(found.rows) == 4
    assert [rejected.reason for rejected in found.rejected] == ["its name is not UTF-8"]
    write_split(found, tree, tmp_path / "split.csv")
    other = tree.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))
    with pytest.raises(DataError, match="is not UTF-8"):
        write_split(found, other, tmp_path / "other.csv")
