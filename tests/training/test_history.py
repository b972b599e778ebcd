from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.training.faces import generated_faces, tiny_experiment
from training.history import HISTORY, LAST, TENSORBOARD, EpochRecord, write_history
from training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")
FACES = generated_faces(32)


def run(folder: Path, stop_after: int) -> list[EpochRecord]:
    experiment = tiny_experiment(optim__epochs=4)
    return train(experiment, FACES, FACES, folder, device="cpu", stop_after=stop_after, log=lambda line: None)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / TENSORBOARD))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(history: list[EpochRecord]) -> dict[str, list[tuple[int, float]]]:
    keys = [key for key in asdict(history[0]) if key != "epoch"]
    return {key: [(r.epoch, pytest.approx(getattr(r, key))) for r in history] for key in keys}


def rows(folder: Path) -> list[int]:
    with (folder / HISTORY).open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_tensorboard_reads_a_run_and_what_was_resumed_goes_on(tmp_path: Path) -> None:
    assert scalars_match(tmp_path, run(tmp_path, 2))
    assert len(list((tmp_path / TENSORBOARD).iterdir())) == 1
    assert scalars_match(tmp_path, run(tmp_path, 4))
    assert rows(tmp_path) == [1, 2, 3, 4]
    run(tmp_path, 4)
    assert len(list((tmp_path / TENSORBOARD).iterdir())) == 2, "a finished run opens no file"


def scalars_match(folder: Path, history: list[EpochRecord]) -> bool:
    return scalars(folder) == expected(history)


def test_epoch_that_was_logged_and_then_lost_is_logged_once(tmp_path: Path) -> None:
    """The process ends between the log's line and the checkpoint, and the epoch is learned again."""
    run(tmp_path, 1)
    checkpoint = (tmp_path / LAST).read_bytes()
    run(tmp_path, 2)
    (tmp_path / LAST).write_bytes(checkpoint)
    assert [record.epoch for record in run(tmp_path, 1)] == [1]
    assert rows(tmp_path) == [1]
    history = run(tmp_path, 4)
    assert rows(tmp_path) == [1, 2, 3, 4]
    found = scalars(tmp_path)
    assert [step for step, _ in found["train_loss"]] == [1, 2, 3, 4]
    assert scalars_match(tmp_path, history)


def test_history_is_written_whole_and_leaves_one_file(tmp_path: Path) -> None:
    record = EpochRecord(1, 0.1, 2.0, 0.25, 1.9, 0.3, 0.2, 0.05, 1.5)
    write_history(tmp_path, [record])
    write_history(tmp_path, [record, record])
    assert [path.name for path in tmp_path.iterdir()] == [HISTORY]
    assert len((tmp_path / HISTORY).read_text().splitlines()) == 3
