from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import encoded
from tests.training.faces import (
    csv_rows,
    generated_faces,
    parquet_rows,
    write_csv,
    write_folders,
    write_parquet,
    write_voted_parquet,
)
from training.commands import inspect_data
from training.errors import DataError
from training.ferplus import NOBODY_VOTED, VOTES_DISAGREE
from training.inspection import contents_of, inspect_splits
from training.layouts import Rejected, read_rows

FACES = generated_faces(14, side_px=48)


def run_command(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    inspect_data.add_parser(parser.add_subparsers())
    options = parser.parse_args(["inspect", *map(str, arguments)])
    options.run(options)


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    run_command(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def two_splits(folder: Path) -> tuple[Path, Path]:
    """Fourteen training faces, one of them again with another label, one broken; three of them in validation."""
    rows = parquet_rows(FACES)
    train = [*rows, ("again", rows[0][1], 4), ("broken", b"broken", 1)]
    validation = [
        *parquet_rows(generated_faces(7, side_px=48, seed=8)),
        ("same", rows[2][1], 2),
        ("both", rows[0][1], 4),
    ]
    validation.append(("other", rows[3][1], 6))
    return write_parquet(folder / "train.parquet", train), write_parquet(folder / "test.parquet", validation)


def test_report_of_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, validation = two_splits(tmp_path)
    report = inspected(capsys, "--data", train, "--validation", validation)
    first, second = report["splits"]
    assert (first["name"], first["n"], second["name"], second["n"]) == ("train", 15, "test", 10)
    assert first["classes"] == {
        "angry": 2, "disgust": 2, "fear": 2, "happy": 2, "neutral": 2, "sad": 3, "surprise": 2,
    }  # fmt: skip
    assert [(row["name"], row["reason"].split(":")[0]) for row in first["rejected"]] == [
        ("broken", "unsupported_format")
    ]
    (exact,) = report["duplicates"]
    assert exact["rule"] == "exact"
    assert exact["within"] == [
        {"split": "train", "groups": 1, "faces": 2, "groups_with_differing_labels": 1},
        {"split": "test", "groups": 0, "faces": 0, "groups_with_differing_labels": 0},
    ]
    assert exact["across"] == [
        {"split": "train", "other": "test", "faces": 4, "with_same_label": 2, "with_other_label": 2, "with_both": 0},
        {"split": "test", "other": "train", "faces": 3, "with_same_label": 1, "with_other_label": 1, "with_both": 1},
    ]
    assert [
        [(face["split"], face["name"], face["label"]) for face in group] for group in exact["differing_labels"]
    ] == [
        [("train", "face_000", "angry"), ("train", "again", "sad"), ("test", "both", "sad")],
        [("train", "face_003", "happy"), ("test", "other", "neutral")],
    ]


def test_text_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, validation = two_splits(tmp_path)
    run_command("--data", train, "--validation", validation)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["class", "train", "test"]
    assert lines[6].split() == ["sad", "3", "20.0%", "2", "20.0%"]
    assert "train: 1 unreadable" in lines
    assert any(line.startswith("broken: unsupported_format") for line in lines)
    assert "within train: 1 groups, 2 faces, 1 groups with differing labels" in lines
    assert "test with a twin in train: 3 of 10 (30.0%), with the same label for 1, another for 1, both for 1" in lines
    assert "angry train/face_000, sad train/again, sad test/both" in lines


def test_blank_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = parquet_rows(FACES)
    black = encoded(np.zeros((48, 48), np.uint8))
    path = write_parquet(tmp_path / "faces.parquet", [*rows, ("black", black, 0), ("black too", black, 3)])
    (split,) = inspected(capsys, "--data", path)["splits"]
    assert split["blank"] == ["black", "black too"]
    run_command("--data", path)
    assert "faces: 2 of one grey: black, black too" in capsys.readouterr().out


def test_near_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = parquet_rows(FACES)
    mirrored = generated_faces(14, side_px=48)
    mirrored.crops_u8[:] = mirrored.crops_u8[:, :, ::-1]
    path = write_parquet(tmp_path / "faces.parquet", [*rows, *parquet_rows(mirrored)[:2]])
    assert [found["rule"] for found in inspected(capsys, "--data", path)["duplicates"]] == ["exact"]
    exact, near = inspected(capsys, "--data", path, "--near")["duplicates"]
    assert (exact["rule"], near["rule"]) == ("exact", "near")
    assert exact["within"][0]["faces"] == 0
    assert near["within"][0]["faces"] >= 4


def test_csv_is_inspected_whole_unless_a_usage_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*csv_rows(FACES), *csv_rows(FACES, "PublicTest")[:5]]
    path = write_csv(tmp_path / "fer2013.csv", rows)
    report = inspected(capsys, "--data", path)
    assert [(split["name"], split["n"]) for split in report["splits"]] == [("Training", 14), ("PublicTest", 5)]
    assert report["duplicates"][0]["across"][1]["faces"] == 5
    one = inspected(capsys, "--data", path, "--data-usage", "PublicTest")
    assert [(split["name"], split["n"]) for split in one["splits"]] == [("PublicTest", 5)]


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for parent in ("a", "b"):
        write_folders(tmp_path / parent / "faces", FACES)
    report = inspected(capsys, "--data", tmp_path / "a" / "faces", "--validation", tmp_path / "b" / "faces")
    assert [split["name"] for split in report["splits"]] == ["faces", str(tmp_path / "b" / "faces")]
    assert report["duplicates"][0]["across"][0]["with_same_label"] == 14


def test_labels_from_votes_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    happy, torn = (0, 10, 0, 0, 0, 0, 0, 0, 0, 0), (5, 5, 0, 0, 0, 0, 0, 0, 0, 0)
    path = write_voted_parquet(tmp_path / "f.parquet", parquet_rows(FACES)[:4], [happy, torn, None, happy])
    (split,) = inspected(capsys, "--data", path, "--data-labels", "ferplus-majority")["splits"]
    assert (split["n"], split["classes"]) == (2, {"happy": 2})
    assert split["left_out"] == {NOBODY_VOTED: 1, VOTES_DISAGREE: 1}
    (split,) = inspected(capsys, "--data", path, "--data-labels", "ferplus-distribution")["splits"]
    assert split["classes"] == {"happy": 2, "neutral": 1}


def test_votes_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    path = write_folders(tmp_path / "faces", FACES)
    with pytest.raises(DataError, match="faces: has no FER\\+ votes"):
        run_command("--data", path, "--data-labels", "ferplus-majority")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "faces.parquet", [("broken", b"broken", 1)])
    with pytest.raises(DataError, match="no usable face"):
        run_command("--data", path)


def test_contents_keep_order_and_reasons(tmp_path: Path) -> None:
    write_folders(tmp_path, FACES)
    (tmp_path / "sad" / "zero.png").write_bytes(b"")
    contents = contents_of("all", read_rows(tmp_path))
    assert [face.name for face in contents.faces][:2] == ["angry/face_000.png", "angry/face_007.png"]
    assert [rejected.name for rejected in contents.rejected] == ["sad/zero.png"]
    assert isinstance(contents.rejected[0], Rejected)
    found = inspect_splits([contents])
    assert found.repetitions[0].across == {}
    assert np.all([face.split == "all" for face in contents.faces])


def test_two_names_of_one_label_are_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = parquet_rows(FACES)[3][1]
    assert picture is not None
    for split, label in (("a", "happy"), ("b", "Happiness")):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / "x.webp").write_bytes(picture)
    report = inspected(capsys, "--data", tmp_path / "a", "--validation", tmp_path / "b")
    assert [split["classes"] for split in report["splits"]] == [{"happy": 1}, {"happy": 1}]
    (exact,) = report["duplicates"]
    assert exact["differing_labels"] == []
    assert [pair["with_same_label"] for pair in exact["across"]] == [1, 1]
