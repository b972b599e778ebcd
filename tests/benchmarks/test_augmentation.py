from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.augmentation import LEVERS, Row, as_markdown, main, with_lever
from handlers.fakes import FakeDetector
from model_store.bundle import Bundle
from tests.training.conftest import FinishedRun, finished_run, published  # noqa: F401
from tests.training.faces import parquet_rows, tiny_experiment, tiny_values, write_parquet, write_toml
from training.config import AugmentConfig


def test_runs_differ_in_one_lever_alone() -> None:
    recipe = tiny_experiment(targets={"label_smoothing": 0.1}, augment={"erase": 0.5, "mixup": 0.5})
    runs = {lever: with_lever(recipe, lever, 3, 0.02, "bfloat16") for lever in LEVERS}
    plain = runs["mirror images alone"]
    assert plain.augment == AugmentConfig(flip=0.5)
    assert (plain.optim.epochs, plain.optim.max_lr, plain.targets.label_smoothing) == (3, 0.02, 0.0)
    assert plain.optim.precision == "bfloat16"
    for lever, run in runs.items():
        assert run.model_copy(update={"augment": plain.augment}) == plain
        assert (run.augment == plain.augment) == (lever == "mirror images alone")
    every = runs["all of them"].augment
    for lever, changes in LEVERS.items():
        for key in changes:
            assert getattr(runs[lever].augment, key) == getattr(every, key) != getattr(plain.augment, key)


def test_table_has_a_line_a_lever() -> None:
    table = as_markdown([Row("blur", 0.5, (0.1, 0.2, 0.3, 0.4), 0.45, 0.6, 0.7)])
    assert table.splitlines()[-1] == "| blur | 50.0% | 10.0% | 20.0% | 30.0% | 40.0% | 45.0% | 60.0% | 70.0% |"
    assert "brighter by -80" in table


@pytest.mark.slow
def test_every_lever_is_trained_with_and_scored(
    published: Bundle,  # noqa: F811
    finished_run: FinishedRun,  # noqa: F811
    astronaut_png: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("benchmarks.augmentation.load_detector", lambda **_: FakeDetector())
    config = write_toml(tmp_path / "tiny.toml", tiny_values())
    data, validation = (
        write_parquet(tmp_path / f"{name}.parquet", parquet_rows(faces))
        for name, faces in (("train", finished_run.training_set), ("validation", finished_run.validation_set))
    )
    (tmp_path / "photos" / "happy").mkdir(parents=True)
    (tmp_path / "photos" / "happy" / "astronaut.png").write_bytes(astronaut_png)
    options = {
        "config": config,
        "model": published.manifest.tag,
        "bundles": published.folder.parents[1],
        "data": data,
        "validation": validation,
        "photos": tmp_path / "photos",
        "out": tmp_path / "runs",
        "epochs": 1,
        "faces": 20,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(arguments) == 0
    table = capsys.readouterr().out.split("\n\n")[-1]
    assert [row.split(" | ")[0] for row in table.splitlines()[2:]] == [f"| {lever}" for lever in LEVERS]
    assert all("nan%" in row.split("|")[-2] for row in table.splitlines()[2:]), "no photograph is of a neutral face"
    assert main([*arguments, "--model", "absent"]) == 1
    assert capsys.readouterr().err.startswith("ModelNotFoundError: ")
