import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


def _make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_make_help_lists_every_command() -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())  # type: ignore[index]
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", _make("help"), re.M))
    assert listed == targets
    assert {"setup", "serve", "demo", "test", "lint", "bench", "help"} <= listed


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_pinned_requirements_name_no_host(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert not [line for line in lines if "://" in line or line.startswith("-")]


def test_the_serving_requirements_hold_neither_torch_nor_facenet() -> None:
    names = {re.split(r"[=<>; \[]", line)[0] for line in (ROOT / "requirements/serve.txt").read_text().splitlines()}
    assert "bentoml" in names
    assert not names & {"torch", "torchvision", "timm", "facenet-pytorch", "onnx"}


def test_serving_and_development_pin_the_same_versions() -> None:
    serving, development = (
        {line.split(" ")[0] for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()}
        for name in ("serve", "dev")
    )
    assert serving < development


def test_ci_runs_lint_and_tests() -> None:
    text = (ROOT / ".ci/run").read_text()
    assert "make lint" in text
    assert "make test" in text
