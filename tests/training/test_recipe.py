from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training.recipe
from model_store.bundle import Bundle
from model_store.errors import ModelNotFoundError
from tests.training.faces import changed, generated_faces, tiny_values
from training.checkpoint import load_checkpoint, load_weights
from training.config import Experiment, parse_recipe
from training.data import FaceSet
from training.errors import CheckpointError, ConfigError, DataError
from training.history import BEST, LAST
from training.recipe import RecipeRun, loading_spec, read_stages, run_recipe, sized

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING, VALIDATION = generated_faces(32), generated_faces(21, seed=1, wrong_labels=0.3)


def recipe(**changes: Any) -> tuple[Experiment, ...]:
    return parse_recipe(changed(tiny_values(), {key.replace("__", "."): value for key, value in changes.items()}), "t")


def run(stages: tuple[Experiment, ...], folder: Path, faces: FaceSet = TRAINING, **options: Any) -> Path:
    return outcome(stages, folder, faces, **options).folder


def outcome(stages: tuple[Experiment, ...], folder: Path, faces: FaceSet = TRAINING, **options: Any) -> RecipeRun:
    return run_recipe(stages, faces, VALIDATION, folder, **{"device": "cpu", "log": lambda line: None, **options})


def weights_of(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    tensors, _ = load_checkpoint(path)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def test_recipe_of_one_stage_trains_in_the_folder_itself(tmp_path: Path) -> None:
    assert run(recipe(), tmp_path) == tmp_path
    assert (tmp_path / LAST).is_file()


STILL = {"optim": {"epochs": 1, "max_lr": 1e-12}}


def test_stage_starts_from_the_best_epoch_of_the_one_before(tmp_path: Path) -> None:
    lines: list[str] = []
    assert run(recipe(stages=[{}, STILL]), tmp_path, log=lines.append) == tmp_path / "stage-2"
    assert [line for line in lines if line.startswith("stage")] == ["stage 1 of 2", "stage 2 of 2"]
    start, after = weights_of(tmp_path / "stage-1" / BEST), weights_of(tmp_path / "stage-2" / LAST, "network.")
    names = [name for name in start if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(start[name], after[name], atol=1e-9) for name in names)


def test_interrupted_recipe_goes_on_in_its_stage_and_ends_the_same(tmp_path: Path) -> None:
    stages = recipe(stages=[{}, {"optim": {"epochs": 2, "max_lr": 0.01}}])
    run(stages, tmp_path / "whole")
    assert run(stages, tmp_path / "parts", stop_after=1) == tmp_path / "parts" / "stage-1"
    assert not (tmp_path / "parts" / "stage-2").exists()
    assert run(stages, tmp_path / "parts") == tmp_path / "parts" / "stage-2"
    for stage in ("stage-1", "stage-2"):
        whole, parts = (weights_of(tmp_path / folder / stage / LAST) for folder in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_stage_that_stopped_early_is_finished(tmp_path: Path) -> None:
    stopping = {"optim": {"epochs": 9, "max_lr": 1e-12}, "schedule": {"kind": "constant", "early_stop_epochs": 1}}
    frozen = [{"modules": ["blocks", "norm"]}]
    assert run(recipe(stages=[stopping, STILL], freeze=frozen), tmp_path) == tmp_path / "stage-2"
    assert load_checkpoint(tmp_path / "stage-1" / LAST)[1]["epoch"] == 2


def test_faces_are_brought_to_the_size_of_each_stage(tmp_path: Path) -> None:
    (small,) = recipe(input__size_px=8)
    assert sized(TRAINING, small).crops_u8.shape == (32, 8, 8, 1)
    (same,) = recipe()
    assert sized(TRAINING, same) is TRAINING
    (colour,) = recipe(input={**tiny_values()["input"], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3})
    assert sized(TRAINING, colour).crops_u8.shape == (32, 16, 16, 3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A line for every time that the teachers are asked."""
    calls: list[int] = []
    ask: Callable[..., Any] = training.recipe.teacher_probabilities

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return ask(*arguments, **options)

    monkeypatch.setattr(training.recipe, "teacher_probabilities", counted)
    return calls


def distilled(temperature: float = 1.0) -> tuple[Experiment, ...]:
    return recipe(
        targets={"teachers": ["tiny-faces:1.0.0"], "teacher_weight": 0.5, "temperature": temperature},
        optim__epochs=2,
    )


def test_teachers_are_asked_once_for_the_same_faces_and_temperature(
    asked: list[int], published: Bundle, tmp_path: Path
) -> None:
    bundles = published.folder.parents[1]
    run(distilled(), tmp_path / "whole", bundles=bundles)
    run(distilled(), tmp_path / "parts", bundles=bundles, stop_after=1)
    assert len(asked) == 2
    run(distilled(), tmp_path / "parts", bundles=bundles)
    assert len(asked) == 2
    whole, parts = (weights_of(tmp_path / folder / LAST) for folder in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for stages, faces in ((distilled(2.0), TRAINING), (distilled(), generated_faces(32, seed=5))):
        with pytest.raises(CheckpointError):
            run(stages, tmp_path / "parts", faces, bundles=bundles)
    assert len(asked) == 4


def test_student_learns_from_its_teacher(published: Bundle, tmp_path: Path) -> None:
    run(distilled(), tmp_path / "taught", bundles=published.folder.parents[1])
    run(recipe(), tmp_path / "alone")
    taught, alone = (weights_of(tmp_path / name / LAST, "network.") for name in ("taught", "alone"))
    assert not torch.allclose(taught["head.weight"], alone["head.weight"])


def test_recipe_starts_from_a_published_bundle(published: Bundle, tmp_path: Path) -> None:
    stages = recipe(
        network__init_bundle="tiny-faces:1.0.0", **{f"optim__{key}": v for key, v in STILL["optim"].items()}
    )
    run(stages, tmp_path, bundles=published.folder.parents[1])
    start, after = weights_only(published), weights_of(tmp_path / LAST, "network.")
    assert torch.allclose(start["head.weight"].float(), after["head.weight"], atol=1e-6)


def test_stages_start_from_bundles_and_from_the_mean_of_stages(published: Bundle, tmp_path: Path) -> None:
    tag = published.manifest.tag
    stages = recipe(
        network__init_bundle=tag,
        stages=[
            {"optim": {"epochs": 1, "max_lr": 0.05}},
            STILL | {"network": {"init_bundle": tag}},
            STILL,
            STILL | {"network": {"init_stages": [0, 1]}},
        ],
    )
    assert [stage.network.init_bundle for stage in stages] == [tag, tag, None, None]
    root = published.folder.parents[1]
    assert run(stages, tmp_path, bundles=root) == tmp_path / "stage-4"
    bundle, first = load_weights(published.weights), weights_of(tmp_path / "stage-1" / BEST)
    names = [name for name in first if "running" not in name and "num_batches" not in name]
    assert any((bundle[name] - first[name]).abs().max() > 1e-3 for name in names), "or this shows nothing"
    for number, start in ((2, bundle), (3, bundle), (4, {name: (bundle[name] + first[name]) / 2 for name in names})):
        after = weights_of(tmp_path / f"stage-{number}" / LAST, "network.")
        assert all(torch.allclose(start[name].float(), after[name], atol=1e-6) for name in names)
    (mean,) = tmp_path.glob("mean-*.safetensors")
    written = mean.stat().st_mtime_ns
    run(stages, tmp_path, bundles=root)
    assert mean.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{}, {"network": {"init_stages": [1, 2]}}], r"stages\.1\.network\.init_stages: there is no stage 2 before"),
        ([{}, {"network": {"init_stages": [0, 1]}}], r"stages\.1\.network\.init_stages: there is no stage 0 before"),
        ([{"network": {"init_stages": [0]}}], r"stages\.0\.network\.init_stages: there is no stage 0 before"),
        ([{}, {"network": {"init_stages": [1, 1]}}], r"stages\.1\.network\.init_stages: each stage counts once"),
        ([{}, {"network": {"init_stages": [-1]}}], r"stages\.1\.network\.init_stages\.0: Input should be greater"),
        (
            [{}, {"network": {"init_stages": [1], "init_bundle": "a:1.0.0"}}],
            r"stages\.1\.network\.init_stages: not together with init_bundle",
        ),
    ],
)
def test_means_of_what_is_not_there_are_refused(stages: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(stages=stages)


def weights_only(bundle: Bundle) -> dict[str, torch.Tensor]:
    from training.checkpoint import load_weights

    return load_weights(bundle.weights)


def test_teacher_that_is_not_there_is_refused(published: Bundle, tmp_path: Path) -> None:
    stages = recipe(targets={"teachers": ["tiny-faces:9.9.9"], "teacher_weight": 0.5})
    with pytest.raises(ModelNotFoundError, match=r"tiny-faces:9\.9\.9"):
        run(stages, tmp_path, bundles=published.folder.parents[1])


def test_recipe_is_finished_when_its_last_stage_is(tmp_path: Path) -> None:
    stages = recipe(stages=[STILL, {"optim": {"epochs": 2}}])
    assert outcome(stages, tmp_path, stop_after=1) == RecipeRun(tmp_path / "stage-2", False)
    assert outcome(stages, tmp_path, stop_after=2) == RecipeRun(tmp_path / "stage-2", True)


def test_faces_are_read_for_the_largest_stage_in_colour_if_any_is() -> None:
    colour = {**tiny_values()["input"], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    small, large = {"input": {"size_px": 8}}, {"input": {"size_px": 32, "interpolation": "bicubic"}}
    stages = recipe(stages=[small, large, {"input": colour}])
    assert loading_spec(stages[:1]) == stages[0].input
    assert loading_spec(stages[:2]) == loading_spec(stages[1::-1]) == stages[1].input
    spec = loading_spec(stages)
    assert (spec.size_px, spec.channels, spec.interpolation) == (32, 3, "bicubic")


def test_run_keeps_the_configurations_of_stages_that_have_not_begun(tmp_path: Path) -> None:
    stages = recipe(stages=[{}, STILL])
    run(stages, tmp_path / "two", stop_after=1)
    assert read_stages(tmp_path / "two") == stages
    run(recipe(), tmp_path / "one")
    assert read_stages(tmp_path / "one") == recipe()
    (tmp_path / "two" / "stages.json").unlink()
    assert read_stages(tmp_path / "two") == stages[:1]
    (tmp_path / "two" / "stages.json").write_text("[]")
    for folder in (tmp_path / "two", tmp_path / "absent"):
        with pytest.raises(CheckpointError):
            read_stages(folder)


def test_what_cannot_be_is_told_before_the_teachers_are_asked(
    asked: list[int], published: Bundle, tmp_path: Path
) -> None:
    def fails(error: type[Exception], message: str, folder: Path, faces: FaceSet = TRAINING, **changes: Any) -> None:
        stages = recipe(**{"targets": {"teachers": ["tiny-faces:1.0.0"], "teacher_weight": 0.5}, **changes})
        with pytest.raises(error, match=message):
            run(stages, folder, faces, bundles=published.folder.parents[1])
        assert not asked

    (tmp_path / "file").write_text("")
    fails(ConfigError, "file is not a folder", tmp_path / "file")
    fails(ConfigError, "file is not a folder", tmp_path / "file" / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stage-2").write_text("")
    fails(ConfigError, "stage-2 is not a folder", tmp_path / "run", stages=[{}, {}])
    fails(DataError, "less than one batch of 33", tmp_path / "new", optim__batch_size=33)
    votes = {"teachers": ["tiny-faces:1.0.0"], "teacher_weight": 0.5, "votes": 0.2}
    fails(DataError, r"targets\.votes: this data set has no FER\+ votes", tmp_path / "new", targets=votes)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_may_not_be_written_into_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="locked may not be written into"):
        run(recipe(), tmp_path / "locked" / "run")
