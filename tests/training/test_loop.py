from __future__ import annotations

import csv
import itertools
import math
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.faces import fed_to_the_network, generated_faces, tiny_experiment
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.errors import CheckpointError, DataError
from training.loop import BEST, HISTORY, LAST, EpochRecord, build_network, learning_rate_at, predict_logits, train

EVERYTHING_ON: dict[str, Any] = {
    "augment": {
        "flip": 0.5,
        "rotate_deg": 12,
        "scale": [0.85, 1.2],
        "shift": 0.1,
        "brightness": 0.15,
        "contrast": 0.3,
        "low_resolution": 0.3,
        "low_resolution_px": 8,
        "erase": 0.25,
        "mixup": 0.5,
    },
    "network__options": {"widths": [16, 16], "blocks_per_stage": 1, "dropout": 0.3},
    "optim__label_smoothing": 0.1,
}
TRAINING, VALIDATION = generated_faces(50), generated_faces(21, seed=1, wrong_labels=0.3)


def run(experiment: Experiment, folder: Path, training_set: FaceSet = TRAINING, **options: Any) -> list[EpochRecord]:
    options = {"validation_set": VALIDATION, "device": "cpu", "log": lambda line: None, **options}
    return train(experiment, training_set, run=folder, **options)


def without_seconds(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in records]


def tensors_of(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name)[0]


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fresh_weights(experiment: Experiment) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)
        return build_network(experiment).state_dict()


def test_thirty_two_faces_are_learned_by_heart(tmp_path: Path) -> None:
    few = generated_faces(32, wrong_labels=0.2)
    history = run(tiny_experiment(optim__epochs=40), tmp_path, few, validation_set=few)
    assert history[-1].validation_accuracy >= 0.95
    assert history[-1].train_loss < 0.2 < history[0].train_loss
    assert history[-1].validation_macro_f1 > 0.9


def test_run_folder_tells_the_whole_story(tmp_path: Path) -> None:
    lines: list[str] = []
    experiment = tiny_experiment(optim__epochs=3)
    history = run(experiment, tmp_path / "a" / "run", log=lines.append)
    folder = tmp_path / "a" / "run"
    assert {path.name for path in folder.iterdir()} == {"experiment.json", HISTORY, LAST, BEST}
    assert Experiment.model_validate_json((folder / "experiment.json").read_text()) == experiment
    with (folder / HISTORY).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(map(float, row.values())) for row in rows] == [astuple(record) for record in history]
    assert [record.epoch for record in history] == [1, 2, 3]
    assert [line[:12] for line in lines] == ["epoch   1/3 ", "epoch   2/3 ", "epoch   3/3 "]
    _, state = load_checkpoint(folder / LAST)
    assert (state["config_sha256"], state["data_sha256"]) == (experiment.sha256(), TRAINING.sha256)
    assert state["validation_sha256"] == VALIDATION.sha256


def test_best_checkpoint_is_the_average_of_the_epoch_with_the_best_validation_accuracy(tmp_path: Path) -> None:
    # A learning rate that ends far too high, so that the last epoch is not the best one.
    experiment = tiny_experiment(optim__epochs=6, optim__max_lr=20.0, optim__warmup_fraction=0.9)
    history = run(experiment, tmp_path)
    tensors, state = load_checkpoint(tmp_path / BEST)
    accuracies = [record.validation_accuracy for record in history]
    best = int(np.argmax(accuracies))
    assert best < len(history) - 1
    assert state["history"] == load_checkpoint(tmp_path / LAST)[1]["history"][: best + 1]  # type: ignore[index]
    network = build_network(experiment)
    network.load_state_dict(tensors)
    hits = predict_logits(network, VALIDATION, experiment).argmax(1) == VALIDATION.labels
    assert round(float(hits.mean()), 5) == max(accuracies)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_run_ends_bit_for_bit_like_an_undisturbed_one(precision: str, tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=4, optim__precision=precision, **EVERYTHING_ON)
    whole = run(experiment, tmp_path / "whole")
    first_half = run(experiment, tmp_path / "halves", stop_after=2)
    torch.manual_seed(12345)  # another process would come with another state of torch's own generator
    lines: list[str] = []
    halves = run(experiment, tmp_path / "halves", log=lines.append)
    assert len(first_half) == 2
    assert lines[0] == "resumed after epoch 2 of 4"
    assert without_seconds(halves) == without_seconds(whole)
    for name in (LAST, BEST):
        assert same_tensors(tensors_of(tmp_path / "whole", name), tensors_of(tmp_path / "halves", name))


def test_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    experiment = tiny_experiment()
    history = run(experiment, tmp_path)
    before = (tmp_path / LAST).read_bytes(), (tmp_path / BEST).read_bytes()
    assert run(experiment, tmp_path) == history
    assert ((tmp_path / LAST).read_bytes(), (tmp_path / BEST).read_bytes()) == before


@pytest.mark.parametrize(
    ("changes", "options", "key"),
    [
        ({"optim__max_lr": 0.2}, {}, "config_sha256"),
        ({"optim__epochs": 5}, {}, "config_sha256"),
        ({"network__options": {"widths": [16, 17], "blocks_per_stage": 1}}, {}, "config_sha256"),
        ({}, {"training_set": generated_faces(50, seed=2)}, "data_sha256"),
        ({}, {"validation_set": generated_faces(21, seed=2)}, "validation_sha256"),
    ],
    ids=["learning rate", "epochs", "network", "training data", "validation data"],
)
def test_run_of_another_experiment_or_other_data_is_not_resumed(
    changes: dict[str, Any], options: dict[str, Any], key: str, tmp_path: Path
) -> None:
    run(tiny_experiment(), tmp_path, stop_after=1)
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(CheckpointError, match=f"its {key} is not this run's"):
        run(tiny_experiment(**changes), tmp_path, **options)
    assert (tmp_path / LAST).read_bytes() == before


def test_another_face_crop_does_not_hinder_resuming(tmp_path: Path) -> None:
    run(tiny_experiment(), tmp_path, stop_after=1)
    assert len(run(tiny_experiment(face_crop__scale=1.4), tmp_path)) == 2


def test_broken_checkpoint_is_not_taken_for_a_new_run(tmp_path: Path) -> None:
    run(tiny_experiment(), tmp_path, stop_after=1)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        run(tiny_experiment(), tmp_path)


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=1, **EVERYTHING_ON)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(experiment.model_copy(update={"seed": seed}), tmp_path / name)
    assert same_tensors(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))
    assert not same_tensors(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c"))


def test_each_epoch_draws_another_order_of_the_faces(tmp_path: Path) -> None:
    faces = generated_faces(32)
    with fed_to_the_network() as batches:
        run(tiny_experiment(optim__epochs=2), tmp_path, faces)
    first, second = ([face.tobytes() for batch in epoch for face in batch] for epoch in (batches[:2], batches[3:5]))
    assert len(set(first)) == 32
    assert set(first) == set(second)
    assert first != second


@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.8])
def test_learning_rate_rises_from_a_25th_to_its_peak_and_falls_to_nothing(warmup: float) -> None:
    optim = tiny_experiment(optim__max_lr=0.5, optim__warmup_fraction=warmup).optim
    rates = [learning_rate_at(step, 1000, optim) for step in range(1000)]
    peak = round(1000 * warmup)
    assert rates[0] == pytest.approx(0.02)
    assert rates[peak] == pytest.approx(0.5)
    assert rates[-1] < 0.5 / 1000
    assert all(after > before for before, after in itertools.pairwise(rates[: peak + 1]))
    assert all(after < before for before, after in itertools.pairwise(rates[peak:]))
    assert rates[peak // 2] == pytest.approx((0.02 + 0.5) / 2)
    assert rates[(1000 + peak) // 2] == pytest.approx(0.25)


def test_learning_rate_of_an_epoch_is_that_of_its_last_step(tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=2)
    rates = [record.learning_rate for record in run(experiment, tmp_path)]
    n_batches = len(TRAINING) // 16  # what is left over after the last whole batch is not used
    assert rates == [learning_rate_at(epoch * n_batches - 1, 2 * n_batches, experiment.optim) for epoch in (1, 2)]


def test_average_moves_faster_at_first_and_then_by_its_decay(tmp_path: Path) -> None:
    faces = generated_faces(16)
    experiment = tiny_experiment(optim__epochs=2, optim__ema_decay=0.15)
    average = fresh_weights(experiment)
    for step, decay in enumerate((0.1, 0.15)):  # (1 + step) / (10 + step): 1/10, then 2/11, which is over 0.15
        run(experiment, tmp_path, faces, stop_after=step + 1)
        tensors = tensors_of(tmp_path)
        now = part(tensors, "network.")
        for name, value in part(tensors, "average.").items():
            if value.is_floating_point():
                expected = decay * average[name] + (1 - decay) * now[name]
                assert torch.allclose(value, expected, rtol=1e-5, atol=1e-7), name
            else:
                assert torch.equal(value, now[name])
        average = part(tensors, "average.")


def test_weight_decay_pulls_kernels_and_nothing_else(tmp_path: Path) -> None:
    faces, decay = generated_faces(16), 0.1
    after = {}
    for value in (0.0, decay):
        experiment = tiny_experiment(optim__epochs=1, optim__weight_decay=value)
        run(experiment, tmp_path / str(value), faces)
        after[value] = part(tensors_of(tmp_path / str(value)), "network.")
    rate = experiment.optim.max_lr / 25
    pull = (
        rate * decay * (1 + experiment.optim.momentum)
    )  # Nesterov's first step counts the gradient 1 + momentum times
    for name, start in fresh_weights(experiment).items():
        moved = after[0.0][name] - after[decay][name]
        expected = pull * start if start.ndim > 1 else torch.zeros_like(start)
        assert torch.allclose(moved, expected, atol=1e-7), name
    assert any(tensor.ndim > 1 for tensor in after[decay].values())


def test_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    faces, norm = generated_faces(16), 1e-3
    experiment = tiny_experiment(optim__epochs=1, optim__clip_norm=norm, optim__weight_decay=0.0, optim__momentum=0.0)
    run(experiment, tmp_path, faces)
    before, after = fresh_weights(experiment), part(tensors_of(tmp_path), "network.")
    parameters = dict(build_network(experiment).named_parameters())
    moved = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in parameters))
    assert moved == pytest.approx(norm * experiment.optim.max_lr / 25, rel=0.01)


def test_refused_run_leaves_the_record_of_the_run_that_stands(tmp_path: Path) -> None:
    run(tiny_experiment(), tmp_path)
    record = (tmp_path / "experiment.json").read_text()
    with pytest.raises(CheckpointError):
        run(tiny_experiment(seed=99), tmp_path)
    assert (tmp_path / "experiment.json").read_text() == record


@pytest.mark.parametrize("name", [LAST, BEST])
def test_start_from_weights_of_another_network_is_refused(name: str, tmp_path: Path) -> None:
    run(tiny_experiment(network__options={"widths": [16, 32], "blocks_per_stage": 1}), tmp_path / "first")
    with pytest.raises(CheckpointError, match="not the weights of this network"):
        run(tiny_experiment(), tmp_path / "second", init=tmp_path / "first" / name)


def test_too_few_faces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="15 faces are less than one batch of 16"):
        run(tiny_experiment(), tmp_path / "run", generated_faces(15))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["training_set", "validation_set"])
def test_faces_with_other_labels_are_refused(name: str, tmp_path: Path) -> None:
    faces = replace(TRAINING, label_names=TRAINING.label_names[::-1])
    with pytest.raises(DataError, match="the experiment has"):
        run(tiny_experiment(), tmp_path, **{name: faces})


def test_fresh_run_starts_from_the_given_weights(tmp_path: Path) -> None:
    run(tiny_experiment(), tmp_path / "first")
    init = tmp_path / "first" / BEST
    still = tiny_experiment(optim__epochs=1, optim__max_lr=1e-12)
    run(still, tmp_path / "second", init=init)
    moved = part(tensors_of(tmp_path / "second"), "network.")
    for name, start in load_checkpoint(init)[0].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(moved[name], start, atol=1e-9), name
    assert not torch.allclose(moved["head.weight"], fresh_weights(still)["head.weight"], atol=1e-3)


def test_run_with_given_weights_is_resumed_with_the_same_ones_only(tmp_path: Path) -> None:
    run(tiny_experiment(), tmp_path / "first")
    init, other = tmp_path / "first" / BEST, tmp_path / "other.safetensors"
    save_checkpoint(other, load_checkpoint(init)[0], {})
    experiment = tiny_experiment(**{**EVERYTHING_ON, "network__options": tiny_experiment().network.options})
    run(experiment, tmp_path / "whole", init=init)
    run(experiment, tmp_path / "halves", init=init, stop_after=1)
    for wrong in (None, other):
        with pytest.raises(CheckpointError, match="its init_sha256 is not this run's"):
            run(experiment, tmp_path / "halves", init=wrong)
    run(experiment, tmp_path / "halves", init=init)
    assert same_tensors(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "halves"))
