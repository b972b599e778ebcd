import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.service.server_process import REPOSITORY, home_with_models, running_service


@pytest.fixture(scope="module")
def home(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = home_with_models(tmp_path_factory.mktemp("bento-home"), store / "models")
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--version", "test"],
        cwd=REPOSITORY,
        env={**os.environ, "BENTOML_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def test_the_bento_holds_the_source_and_the_models_and_no_torch(home: Path) -> None:
    bento = home / "bentos" / "mien" / "test"
    source = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*") if path.is_file()}
    assert {"service/app.py", "scoring/run.py", "handlers/pipeline.py", "model_store/registry.py"} <= source
    assert not [path for path in source if path.startswith(("training/", "tests/", "model_store/bundles/", "runs/"))]
    description = (bento / "bento.yaml").read_text()
    assert "tag: mtcnn:" in description
    assert "tag: fer2013-resnet:" in description
    assert "tag: mien-defaults:" in description
    assert "torch" not in (bento / "env/python/requirements.txt").read_text()


def test_the_bento_serves(home: Path, astronaut_png: bytes, tmp_path: Path) -> None:
    with running_service(home, "bentoml", "serve", "mien:test", cwd=tmp_path, MIEN_DETECTOR_WORKERS="1") as service:
        response = httpx.post(f"{service.url}/v1/analyze", content=astronaut_png, timeout=30)
    assert response.status_code == 200
    (face,) = response.json()["faces"]
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-5)
