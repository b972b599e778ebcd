import re
from pathlib import Path

import pytest

from service.settings_table import settings_table
from tests.service.server_process import home_with_models, running_service

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_document_is_the_generated_one() -> None:
    assert (ROOT / "docs/settings.md").read_text() == settings_table()


def test_every_python_block_runs_and_finds_the_face(
    store: Path, astronaut_png: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photos" / "may" / "astronaut.png"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(astronaut_png)
    home = home_with_models(tmp_path, store / "models")
    blocks = [
        block for document in DOCUMENTS for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.S)
    ]
    assert len(blocks) >= 5
    roots = {
        "MIEN_SCORING_ROOTS": str(tmp_path / "photos"),
        "MIEN_JOBS_DIR": str(tmp_path / "jobs"),
        "MIEN_JOB_NICENESS": "0",
    }
    with running_service(home, MIEN_DETECTOR_WORKERS="1", **roots) as service:
        for block in blocks:
            block = block.replace("photo.jpg", str(photo)).replace("http://127.0.0.1:3000", service.url)
            exec("from pathlib import Path\n" + block.replace('"may.parquet"', repr(str(tmp_path / "may.parquet"))), {})
            assert "happy" in capsys.readouterr().out, block
    assert (tmp_path / "may.parquet").read_bytes().startswith(b"PAR1")


def test_every_make_command_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_relative_link_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
