from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_store import __main__ as module
from model_store import registry
from model_store.__main__ import main
from model_store.bundle import Bundle
from tests.model_bundles import publish_tiny

Captured = pytest.CaptureFixture[str]


def test_register_list_show_verify_promote_rollback(empty_store: Path, tmp_path: Path, capsys: Captured) -> None:
    publish_tiny(tmp_path / "bundles")
    by_folder = publish_tiny(tmp_path / "elsewhere", name="other").folder
    assert main(["register", "tiny", str(by_folder), "--bundles", str(tmp_path / "bundles")]) == 0
    registered = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in registered] == ["tiny:1.0.0", "other:1.0.0"]
    assert all("largest difference from torch: classifier" in line for line in registered)

    assert main(["list"]) == 0
    other, tiny = capsys.readouterr().out.splitlines()
    assert other.startswith("  other:1.0.0")
    assert tiny.startswith("* tiny:1.0.0")

    assert main(["show", "other"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown[: shown.rindex("}") + 1])["name"] == "other"
    assert "# Tiny" in shown

    assert main(["verify"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "other:1.0.0: every file as recorded",
        "tiny:1.0.0: every file as recorded",
    ]
    assert main(["verify", str(by_folder)]) == 0
    assert main(["promote", "other"]) == 0
    assert "default: other:1.0.0" in capsys.readouterr().out
    assert main(["rollback"]) == 0
    assert capsys.readouterr().out == "default emotion-classification: tiny:1.0.0\n"


def test_register_says_how_well_int8_agrees(empty_store: Path, int8_published: Bundle, capsys: Captured) -> None:
    assert main(["register", str(int8_published.folder)]) == 0
    agreement = registry.load("tiny").serving.int8
    assert agreement is not None
    said = f"int8: probabilities within {agreement.max_probability_difference:.3f} of fp32's on"
    assert said in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["register"], "ModelStoreError: name a bundle, or say --all"),
        (["register", "unknown"], "ModelNotFoundError: no bundle unknown under"),
        (["show", "unknown"], "ModelNotFoundError: unknown is not registered"),
        (["verify", "tiny:1.0"], "ModelNotFoundError: tiny:1.0 is not registered"),
        (["promote", "unknown:1.0.0"], "ModelNotFoundError: unknown:1.0.0 is not registered"),
        (["rollback"], "NothingToRollBackError: there is no earlier promotion"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line_on_stderr_and_exit_code_1(
    empty_store: Path, tmp_path: Path, capsys: Captured, arguments: list[str], line: str
) -> None:
    extra = ["--bundles", str(tmp_path)] if arguments[0] == "register" else []
    assert main([*arguments, *extra]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_verify_finds_an_altered_model_and_an_altered_folder(
    three_models: Path, tmp_path: Path, capsys: Captured
) -> None:
    onnx = registry.load("tiny:1.0.0").onnx("classifier")
    onnx.write_bytes(onnx.read_bytes() + b"x")
    assert main(["verify"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "other:1.0.0: every file as recorded\n"
    assert captured.err.startswith("SizeMismatchError: ")

    folder = publish_tiny(tmp_path / "bundles").folder
    (folder / "MODEL_CARD.md").write_text("# Tinx\n")
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("DigestMismatchError: ")


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["show"], ["promote", "a", "b"]])
def test_wrong_usage_exits_with_code_2(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m model_store" in capsys.readouterr().err


def test_newer_version_of_the_shipped_default_is_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    publish_tiny(tmp_path)
    (tmp_path / "defaults.json").write_text('{"emotion-classification": "tiny"}')
    for current, says in (("tiny:1.10.0", 0), ("tiny:1.0.0", 0), ("tiny:0.9.0", 1), ("other:2.0.0", 1)):
        monkeypatch.setattr(registry, "defaults", lambda tag=current: {"emotion-classification": tag})
        module._say_which_defaults_stay(tmp_path)
        assert capsys.readouterr().out.count(f"the default stays {current}; ") == says


def test_unknown_task_of_the_defaults_is_refused(tmp_path: Path, capsys: Captured) -> None:
    publish_tiny(tmp_path)
    (tmp_path / "defaults.json").write_text('{"emotion": "tiny"}')
    assert main(["register", "--all", "--bundles", str(tmp_path)]) == 1
    assert "emotion: none of the tasks face-detection, emotion-classification" in capsys.readouterr().err
