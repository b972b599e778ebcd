from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.training_speed import Row, as_markdown, main, row_of
from tests.training.faces import tiny_experiment, tiny_values, write_toml


def test_each_recipe_has_a_line_with_both_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_toml(tmp_path / "tiny.toml", tiny_values())
    assert main([str(config), "--batches", "1"]) == 0
    cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert cells[0] == "| tiny"
    assert cells[2] == str(tiny_values()["optim"]["batch_size"])
    assert all(float(cell) > 0 for cell in (cells[3], cells[5]))
    assert not cells[4].strip()


def test_a_network_of_depthwise_convolutions_is_measured_by_torch_alone_too() -> None:
    network = {"family": "timm", "classifier": "classifier.weight", "options": {"model": "mobilenetv3_small_050"}}
    row = row_of("mobile", tiny_experiment(network=network, optim__batch_size=8), 1)
    assert row.torch_alone is not None
    assert row.torch_alone > 0


def test_an_epoch_is_told_in_the_faster_precision() -> None:
    table = as_markdown([Row("a", 48, 128, 100.0, None, 287.09), Row("b", 48, 64, 287.09, 200.4, 100.0)])
    assert table.splitlines()[2:] == [
        "| a | 48 | 128 | 100 |  | 287 | 100 |",
        "| b | 48 | 64 | 287 | 200 | 100 | 100 |",
    ]


def test_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.toml")]) == 1
    assert capsys.readouterr().err.startswith("ConfigError: ")
