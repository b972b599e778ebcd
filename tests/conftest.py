"""Fixtures that every folder of tests shares: a model store of the session, and real and generated pictures."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import encoded

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
_STORE = tempfile.TemporaryDirectory(prefix="mien-test-store-")

# Before anything imports torch: as many threads as cores in each of pytest's processes spin against each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before anything imports bentoml, which reads these once.
os.environ["BENTOML_HOME"] = _STORE.name
os.environ["BENTOML_DO_NOT_TRACK"] = "True"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BentoML home of this process's tests with MTCNN and every shipped bundle registered.

    Where several processes share the tests (pytest -n), the first one registers and the others copy.
    """
    from model_store.__main__ import main

    home = Path(_STORE.name)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        assert main(["register", "--all"]) == 0
        return home
    registered = tmp_path_factory.getbasetemp().parent / "registered"
    with registered.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if registered.exists():
            shutil.copytree(registered, home / "models", dirs_exist_ok=True)
        else:
            assert main(["register", "--all"]) == 0
            shutil.copytree(home / "models", half := registered.with_suffix(".half"))
            half.rename(registered)
    return home


@pytest.fixture
def empty_store(tmp_path: Path) -> Iterator[Path]:
    """A BentoML model store of this test alone, empty."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    folder = tmp_path / "models"
    folder.mkdir()
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield folder
    BentoMLContainer.model_store.reset()


@pytest.fixture(scope="session")
def astronaut_png() -> bytes:
    """The astronaut photograph of scikit-image (NASA, public domain): one large face, 512×512 RGB."""
    import skimage

    return (Path(skimage.__file__).parent / "data" / "astronaut.png").read_bytes()


@pytest.fixture(scope="session")
def faceless_png() -> bytes:
    """A smooth gradient without a face, 320×240 RGB."""
    rows, columns = np.mgrid[0:240, 0:320]
    return encoded(np.stack([rows, columns // 2, rows // 2 + 60], axis=2).astype(np.uint8))


@pytest.fixture(scope="session")
def shared_photos() -> list[Path]:
    """The labelled photographs for development; skips where they are absent."""
    photos = sorted((SHARED_DATA / "photos").glob("*/*"))
    if not photos:
        pytest.skip("needs ../shared/data/photos")
    return photos


@pytest.fixture(scope="session")
def fer2013() -> Path:
    """The folder with FER2013's Parquet files; skips where it is absent."""
    folder = SHARED_DATA / "fer2013"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/fer2013")
    return folder
