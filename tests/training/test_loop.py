from __future__ import annotations

import csv
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.learner
import training.loop
from tests.training.faces import fed_to_the_network, generated_faces, tiny_experiment
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.errors import CheckpointError, ConfigError, DataError, TrainingError
from training.history import BEST, HISTORY, LAST, TENSORBOARD, EpochRecord
from training.learner import build_network
from training.loop import predict_logits, train
from training.schedules import learning_rate_at

pytestmark = pytest.mark.usefixtures("one_thread")
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
        "blur": 0.3,
        "jpeg": 0.3,
        "erase": 0.25,
        "mixup": 0.5,
        "cutmix": 0.4,
    },
    "network__options": {"widths": [16, 16], "blocks_per_stage": 1, "dropout": 0.3},
    "targets__label_smoothing": 0.1,
    "loss": {"kind": "class-balanced-focal", "sampler": "weighted"},
    "schedule": {"kind": "plateau", "patience_epochs": 0, "gamma": 0.5},
    "freeze": [{"modules": ["stem", "blocks.0"], "until_epoch": 2}, {"modules": ["blocks.1.conv2"]}],
    "optim__accumulate": 2,
    "optim__backbone_lr_factor": 0.3,
}
FROZEN_NORMS = [{"modules": ["blocks", "norm"]}]
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
    experiment = tiny_experiment(optim__epochs=3, loss={"class_weights": "balanced"})
    folder = tmp_path / "a" / "run"
    history = run(experiment, folder, log=lines.append)
    assert {path.name for path in folder.iterdir()} == {"experiment.json", HISTORY, LAST, BEST, TENSORBOARD}
    assert Experiment.model_validate_json((folder / "experiment.json").read_text()) == experiment
    with (folder / HISTORY).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(map(float, row.values())) for row in rows] == [astuple(record) for record in history]
    assert [record.epoch for record in history] == [1, 2, 3]
    assert [line[:12] for line in lines] == ["epoch   1/3 ", "epoch   2/3 ", "epoch   3/3 "]


def test_checkpoints_say_what_they_are_of(tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=3, loss={"class_weights": "balanced"})
    history = run(experiment, tmp_path)
    best = int(np.argmax([record.validation_accuracy for record in history]))
    for file, record in ((LAST, history[-1]), (BEST, history[best])):
        _, state = load_checkpoint(tmp_path / file)
        assert state["epoch"] == record.epoch
        assert state["train_accuracy"] == record.train_accuracy
        assert state["validation_accuracy"] == record.validation_accuracy
        assert state["config_sha256"] == experiment.sha256()
        assert state["data_sha256"] == TRAINING.sha256
        assert state["validation_sha256"] == VALIDATION.sha256
        assert state["class_counts"] == [8, 7, 7, 7, 7, 7, 7]
        assert state["class_weights"] == pytest.approx([50 / 7 / 8, *[50 / 7 / 7] * 6], abs=1e-6)
        assert Experiment.model_validate_json(json.dumps(state["experiment"])) == experiment
    run(tiny_experiment(), tmp_path / "unweighted")
    assert load_checkpoint(tmp_path / "unweighted" / LAST)[1]["class_weights"] is None


def test_best_checkpoint_is_the_average_of_the_epoch_with_the_best_validation_accuracy(tmp_path: Path) -> None:
    # A learning rate that ends far too high, so that the last epoch is not the best one.
    experiment = tiny_experiment(optim__epochs=6, optim__max_lr=20.0, schedule__warmup_fraction=0.9)
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


RESUMABLE: dict[str, dict[str, Any]] = {
    "sgd": {"optim__max_lr": 0.1},
    "sgd without momentum": {"optim__momentum": 0.0, "optim__max_lr": 1.0},
    "adam": {"optim__optimizer": "adam", "optim__max_lr": 0.01},
    "adamw": {"optim__optimizer": "adamw", "optim__max_lr": 0.01},
    "adamw bfloat16": {"optim__optimizer": "adamw", "optim__max_lr": 0.01, "optim__precision": "bfloat16"},
    "sgd float16": {"optim__precision": "float16"},
    "one-cycle": {"schedule": {"kind": "one-cycle"}},
}


@pytest.mark.parametrize("name", RESUMABLE)
def test_resumed_run_ends_bit_for_bit_like_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=4, **{**EVERYTHING_ON, **RESUMABLE[name]})
    random = generated_faces(21, seed=1, wrong_labels=1.0)  # the more is learned, the higher the loss on these
    whole = run(experiment, tmp_path / "whole", validation_set=random)
    for stop_after in (1, 3, 4):
        history = run(experiment, tmp_path / "parts", stop_after=stop_after, validation_set=random)
        assert len(history) == stop_after
    assert without_seconds(history) == without_seconds(whole)
    for file in (LAST, BEST):
        assert same_tensors(tensors_of(tmp_path / "whole", file), tensors_of(tmp_path / "parts", file))
        states = [load_checkpoint(tmp_path / folder / file)[1] for folder in ("whole", "parts")]
        assert states[0]["scaler"] == states[1]["scaler"]
    if "one-cycle" not in name:
        assert len({record.learning_rate for record in whole}) > 1, "the plateau never came"


def test_run_that_is_killed_within_an_epoch_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=3, **EVERYTHING_ON)
    whole = run(experiment, tmp_path / "whole")
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=run_until_killed, args=(experiment, tmp_path / "killed"))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(load_checkpoint(tmp_path / "killed" / LAST)[1]["history"]) == 1  # type: ignore[arg-type]
    history = run(experiment, tmp_path / "killed")
    assert without_seconds(history) == without_seconds(whole)
    for file in (LAST, BEST):
        assert same_tensors(tensors_of(tmp_path / "whole", file), tensors_of(tmp_path / "killed", file))


def run_until_killed(experiment: Experiment, folder: Path) -> None:
    """In a process of its own: a fork of this one would have its locks, and not the threads that hold them."""
    torch.set_num_threads(1)
    training.loop.normalise = killed_at(5, training.loop.normalise)
    run(experiment, folder)


def killed_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose so-many-th call is the end of its process. An epoch has three batches and one validation."""
    calls = itertools.count(1)

    def counted(*arguments: Any) -> Any:
        if next(calls) > call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return counted


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
    shown = [batch for batch in batches if len(batch) == 16]
    first, second = ([face.tobytes() for batch in epoch for face in batch] for epoch in (shown[:2], shown[2:]))
    assert len(set(first)) == 32
    assert set(first) == set(second)
    assert first != second


def test_learning_rate_of_an_epoch_is_that_of_its_last_step(tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=2)
    rates = [record.learning_rate for record in run(experiment, tmp_path)]
    n_batches = len(TRAINING) // 16  # what is left over after the last whole batch is not used
    assert rates == [learning_rate_at(experiment, epoch * n_batches - 1, n_batches) for epoch in (1, 2)]


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


def test_checkpoint_of_before_the_newer_keys_is_resumed(tmp_path: Path) -> None:
    experiment = tiny_experiment()
    run(experiment, tmp_path / "whole")
    run(experiment, tmp_path / "old", stop_after=1)
    tensors, state = load_checkpoint(tmp_path / "old" / LAST)
    known = {"config_sha256", "data_sha256", "votes_sha256", "validation_sha256", "init_sha256", "world_size"}
    kept = {key: state[key] for key in (*known, "history", "scaler")}
    save_checkpoint(tmp_path / "old" / LAST, tensors, kept)
    run(experiment, tmp_path / "old")
    assert same_tensors(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "old"))


def test_other_answers_of_the_teachers_are_not_mixed_into_a_run(tmp_path: Path) -> None:
    experiment = tiny_experiment(targets={"teachers": ["a"], "teacher_weight": 0.5})
    answers = np.full((50, 7), 1 / 7, np.float32)
    run(experiment, tmp_path, teachers=answers, stop_after=1)
    with pytest.raises(CheckpointError, match="its teachers_sha256 is not this run's"):
        run(experiment, tmp_path, teachers=np.roll(np.eye(7, dtype=np.float32)[[0] * 50], 1))
    assert len(run(experiment, tmp_path, teachers=answers)) == 2


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """48 faces: three of 16 in one step, as 48 at once. Batch norm is frozen: it would see other batches."""
    faces = generated_faces(48)
    norms = [f"blocks.{block}.norm{norm}" for block in (0, 1) for norm in (1, 2)]
    options: dict[str, Any] = {"optim__epochs": 1, "freeze": [{"modules": [*norms, "norm"]}]}
    run(tiny_experiment(optim__batch_size=48, **options), tmp_path / "large", faces)
    # An incomplete group is divided by its own size: with 4 the three batches count as much as with 3.
    for accumulate in (3, 4):
        folder = tmp_path / str(accumulate)
        run(tiny_experiment(optim__accumulate=accumulate, **options), folder, faces)
        large, small = part(tensors_of(tmp_path / "large"), "network."), part(tensors_of(folder), "network.")
        assert all(torch.allclose(large[name], small[name], atol=1e-6) for name in large)
    assert not torch.allclose(large["head.weight"], fresh_weights(tiny_experiment())["head.weight"], atol=1e-4)


def test_last_group_of_batches_may_be_smaller(tmp_path: Path) -> None:
    rates = [record.learning_rate for record in run(tiny_experiment(optim__accumulate=2), tmp_path)]
    assert rates == [learning_rate_at(tiny_experiment(), 2 * epoch - 1, 2) for epoch in (1, 2)]


def test_head_and_backbone_learn_at_rates_of_their_own(tmp_path: Path) -> None:
    faces, moved = generated_faces(16), {}
    for factor in (1.0, 0.25):
        experiment = tiny_experiment(
            optim__epochs=1, optim__backbone_lr_factor=factor, optim__weight_decay=0.0, optim__momentum=0.0
        )
        run(experiment, tmp_path / str(factor), faces)
        after, start = part(tensors_of(tmp_path / str(factor)), "network."), fresh_weights(experiment)
        names = [name for name, _ in build_network(experiment).named_parameters()]
        moved[factor] = {name: after[name] - start[name] for name in names}
    for name, whole in moved[1.0].items():
        factor = 1.0 if name.startswith("head.") else 0.25
        assert torch.allclose(moved[0.25][name], factor * whole, atol=1e-7), name


def test_run_ends_when_the_validation_loss_stands_still(tmp_path: Path) -> None:
    still: dict[str, Any] = {"optim__epochs": 9, "optim__max_lr": 1e-12}
    stopping = tiny_experiment(schedule={"kind": "constant", "early_stop_epochs": 3}, freeze=FROZEN_NORMS, **still)
    history = run(stopping, tmp_path)
    assert len(history) == 4
    before = (tmp_path / LAST).read_bytes()
    assert run(stopping, tmp_path) == history
    assert (tmp_path / LAST).read_bytes() == before


def test_weights_that_are_no_numbers_end_the_run_and_spare_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_experiment(), tmp_path, stop_after=1)
    before = (tmp_path / LAST).read_bytes()

    def broken(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        return logits.sum() * math.nan

    monkeypatch.setattr(training.loop, "classification_loss", broken)
    with pytest.raises(TrainingError, match=f"epoch 2: the validation loss is nan; {LAST} holds the epoch before"):
        run(tiny_experiment(), tmp_path)
    assert (tmp_path / LAST).read_bytes() == before
    with pytest.raises(TrainingError, match="epoch 1: the validation loss is nan; a lower"):
        run(tiny_experiment(), tmp_path / "first")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_is_for_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, has_bar in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr("sys.stderr", stream)
        run(tiny_experiment(optim__epochs=1), tmp_path / str(has_bar))
        assert ("0/3" in stream.getvalue()) == has_bar
        assert bool(stream.getvalue()) == has_bar


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"network__classifier": "fc.weight"}, "network.classifier: the network has no 'fc.weight'"),
        ({"network__classifier": "norm.weight"}, "network.classifier: norm.weight has the shape .16,., expected 7"),
        ({"freeze": [{"modules": ["stem"]}, {"modules": ["stage1"]}]}, "freeze.1.modules: the network has no 'stage1'"),
        ({"freeze": [{"modules": ["stem", "blocks", "norm", "head"], "until_epoch": 1}]}, "nothing is left to learn"),
    ],
)
def test_configuration_that_does_not_fit_the_network_is_refused_before_anything_is_written(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(tiny_experiment(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_network_that_cannot_take_the_pictures_is_refused(tmp_path: Path) -> None:
    network = {"family": "plain-cnn", "classifier": "head.weight", "options": {"widths": [8, 8, 8, 8, 8]}}
    with pytest.raises(ConfigError, match=r"input\.size_px: the network takes no 16 px"):
        run(tiny_experiment(network=network), tmp_path / "run")


def test_pretrained_weights_are_fetched_for_a_fresh_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetches: list[bool] = []
    build = training.learner.build_network

    def recorded(experiment: Experiment, *, pretrained: bool = False) -> torch.nn.Module:
        fetches.append(pretrained)
        return build(experiment)

    monkeypatch.setattr(training.learner, "build_network", recorded)
    run(tiny_experiment(), tmp_path / "run", stop_after=1)
    run(tiny_experiment(), tmp_path / "run")
    run(tiny_experiment(), tmp_path / "second", init=tmp_path / "run" / BEST)
    assert fetches == [True, False, False, False, False, False]
