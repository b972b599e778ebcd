import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model_store", "handlers", "scoring", "service", "training")
HEAVY = ("torch", "torchvision", "timm", "facenet_pytorch")


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def copy_of_source(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("bundles", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_source_keeps_the_import_contracts(copy_of_source: Path) -> None:
    result = _lint_imports(copy_of_source)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("model_store/bundle.py", "import handlers"),
        ("handlers/decode.py", "import service"),
        ("service/rest.py", "import training"),
        ("training/data.py", "import service"),
        ("handlers/pipeline.py", "import bentoml"),
        ("model_store/bundle.py", "def f():\n    import bentoml"),
        ("service/rest.py", "def f():\n    import torch"),
        ("handlers/classifier.py", "import timm"),
        ("handlers/detection/mtcnn.py", "import facenet_pytorch"),
        ("handlers/detection/proposals.py", "import torch"),
        ("handlers/engines/openvino_engine.py", "def f():\n    import torch"),
        ("handlers/engines/onnx_file.py", "import bentoml"),
        ("handlers/detection/settings.py", "import service"),
        ("handlers/decode.py", "import scoring"),
        ("scoring/run.py", "import service"),
        ("scoring/run.py", "import training"),
        ("training/data.py", "import scoring"),
        ("scoring/config.py", "def f():\n    import bentoml"),
        ("scoring/crew_worker.py", "def f():\n    import torch"),
        ("model_store/networks/pnet_tail.py", "import handlers"),
    ],
)
def test_a_planted_violation_is_found(copy_of_source: Path, module: str, line: str) -> None:
    with (copy_of_source / module).open("a") as file:
        file.write(f"\n\n{line}\n")
    result = _lint_imports(copy_of_source)
    assert result.returncode != 0
    assert "BROKEN" in result.stdout


def _modules_after(import_line: str) -> set[str]:
    code = f"import sys; {import_line}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "handlers",
        "handlers.pipeline",
        "handlers.detection.mtcnn",
        "handlers.engines.openvino_engine",
        "handlers.engines.onnxruntime_engine",
        "model_store.registry",
        "service.app",
        "demo",
    ],
)
def test_importing_it_loads_no_torch(module: str) -> None:
    assert not _modules_after(f"import {module}") & set(HEAVY)


@pytest.mark.parametrize("module", ["handlers", "model_store.registry", "service.app", "service.settings"])
def test_importing_it_loads_neither_engines_nor_kernels(module: str) -> None:
    """Only the runners pay for them: numba and OpenVINO are 130 and 20 MB, and a second."""
    assert not _modules_after(f"import {module}") & {"numba", "openvino", "onnxruntime"}
