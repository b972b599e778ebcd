"""What the commands refuse in one line before they do any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.faces import generated_faces, parquet_rows, tiny_values, write_parquet, write_toml
from training.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["wild", "--photos", "x", "--bundles", "."], "DataError: .: no bundles in it"),
        (["wild", "--photos", "x", "--json", "--levers"], "DataError: --json: "),
        (["report", "--run", "x", "--validation", "x", "--threads", "0"], "ConfigError: --threads: 0 is under 1"),
        (["report", "--run", "x", "--validation", "x", "--threads", "-1"], "ConfigError: --threads: -1 is under 1"),
        (["compare", "x", "--out", "file"], "DataError: --out: file is a file"),
        (["compare", "file"], "DataError: no run and no bundle among them"),
    ],
)
def test_one_line_and_exit_code_1(
    arguments: list[str],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(error)


def test_errors_of_the_system_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.compare.compare", full)
    assert main(["compare", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "OSError: [Errno 28] No space left on device\n"


def test_publish_does_not_call_other_faces_fer2013(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_toml(tmp_path / "tiny.toml", tiny_values())
    faces = write_parquet(tmp_path / "faces.parquet", parquet_rows(generated_faces(7)))
    given = ["publish", "--config", str(config), "--run", "run", "--validation", str(faces), "--version", "1.0.0"]
    for more in ([], ["--split", "mine"], ["--source", "mine"]):
        assert main([*given, "--bundles", str(tmp_path), *more]) == 1
        assert "say what they are with --split and --source" in capsys.readouterr().err
    (tmp_path / "tiny-faces" / "1.0.0").mkdir(parents=True)
    absent = ["--validation", "absent.parquet"]
    assert main([*given, "--bundles", str(tmp_path), *absent]) == 1
    assert capsys.readouterr().err.startswith("BundleExistsError: ")


def test_training_command_of_the_card_has_variables_and_usages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_SIZE", "8")
    said: list[str] = []

    def publish(*given: object, **more: object) -> None:
        said.append(given[5].command)  # type: ignore[attr-defined]
        raise OSError("enough")

    monkeypatch.setattr("training.publish.publish", publish)
    config = write_toml(tmp_path / "tiny.toml", tiny_values())
    pixels = " ".join(["7"] * 48 * 48)
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},PublicTest\n")
    given = ["publish", "--config", str(config), "--run", "runs/a", "--validation", "fer2013.csv"]
    given += ["--validation-usage", "PublicTest", "--data-usage", "Training", "--version", "1.0.0"]
    assert main([*given, "--bundles", str(tmp_path)]) == 1
    (command,) = said
    assert command == (
        "BATCH_SIZE=8 python -m training train --config training/configs/tiny.toml --data train.parquet "
        "--data-usage Training --validation fer2013.csv --validation-usage PublicTest --out a"
    )
