from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from handlers.detection import kernels
from handlers.detection.kernels import cells_over, patches_of, summed_area
from tests.pictures import noise

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (40, 1), (7, 9), (64, 48)], ids=lambda shape: "×".join(map(str, shape))
)
def test_summed_area_is_the_sum_of_all_pixels_above_and_to_the_left(shape: tuple[int, int]) -> None:
    picture = noise(*shape)
    table = np.full((shape[0] + 1, shape[1] + 1, 3), 99, np.uint32)
    summed_area(picture, table)
    assert (table[0] == 0).all()
    assert (table[:, 0] == 0).all()
    np.testing.assert_array_equal(table[1:, 1:], picture.astype(np.uint32).cumsum(0).cumsum(1))


def test_summed_area_wraps_around() -> None:
    picture = np.full((4200, 4200, 3), 255, np.uint8)
    table = np.empty((4201, 4201, 3), np.uint32)
    summed_area(picture, table)
    assert table[-1, -1].tolist() == [4200 * 4200 * 255 - 2**32] * 3


@pytest.mark.parametrize("threshold", [-10.0, 0.5, 10.0])
def test_cells_over_are_those_at_the_threshold_or_more_in_order(threshold: float) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 1, 16, 128), np.float32)
    logits[1, 0, 5, 7], logits[2, 0, 0, 0] = 0.5, np.nan
    found = np.full((logits.size, 3), -1, np.int64)
    n_found = cells_over(logits, threshold, found)
    np.testing.assert_array_equal(found[:n_found], np.argwhere(logits[:, 0] >= threshold))
    assert (found[n_found:] == -1).all()


def test_patches_are_windows_of_the_tiles() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.standard_normal((3, 10, 20, 132), np.float32)
    positions = np.stack([rng.integers(0, 3, 50), rng.integers(0, 16, 50), rng.integers(0, 128, 50)], axis=1)
    positions[0], positions[1] = (0, 0, 0), (2, 15, 127)
    patches = np.empty((50, 10, 5, 5), np.float32)
    patches_of(tiles, positions, patches)
    for patch, (tile, row, column) in zip(patches, positions, strict=True):
        np.testing.assert_array_equal(patch, tiles[tile, :, row : row + 5, column : column + 5])


@pytest.mark.parametrize(
    "name", ["summed_area", "crop_means", "pnet_features", "patches_of", "cells_over", "non_maximum_suppression"]
)
def test_kernel_is_compiled_for_one_kind_of_arrays_and_refuses_others(name: str) -> None:
    kernel = getattr(kernels, name)
    assert len(kernel.signatures) == 1
    arrays = [
        np.empty((2,) * argument.ndim, np.float64) for argument in kernel.signatures[0] if hasattr(argument, "ndim")
    ]
    with pytest.raises(TypeError, match="No matching definition"):
        kernel(*arrays, *[0] * (len(kernel.signatures[0]) - len(arrays)))
    assert len(kernel.signatures) == 1


PROGRAM = """
import json
import sys
from pathlib import Path
import numpy as np
import handlers.detection.kernels as kernels
from handlers.detection.area_pooling import AreaPooling
from handlers.detection.boxes import suppress

assert kernels.__file__.startswith(sys.argv[1])
table = AreaPooling(np.full((30, 40, 3), 200, np.uint8)).table
crops = np.empty((1, 3, 24, 24), np.float32)
kernels.crop_means(table, np.array([[1, 2, 33, 29]]), kernels.CENTRE, kernels.GAIN, crops)
boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10]], np.float32)
kept = suppress(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), 0.5, "union")
cached = [kernel.stats.cache_path for kernel in (kernels.crop_means, kernels.non_maximum_suppression)]
print(json.dumps([float(crops.min()), float(crops.max()), kept.tolist(), cached]))
"""


def test_kernels_work_where_no_cache_can_be_written(tmp_path: Path) -> None:
    """Even root cannot write below a file, so one stands in the place of every folder that numba would take."""
    package = tmp_path / "source" / "handlers"
    no_folder = tmp_path / "a-file"
    no_folder.write_bytes(b"")
    shutil.copytree(ROOT / "handlers", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "detection" / "__pycache__").write_bytes(b"")
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(no_folder / "cache"),
        "PYTHONPATH": f"{tmp_path / 'source'}:{ROOT}",
    }
    environment |= {"HOME": str(no_folder), "XDG_CACHE_HOME": str(no_folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    value = (200 - 127.5) / 128
    assert json.loads(done.stdout) == [
        pytest.approx(value, abs=1e-6),
        pytest.approx(value, abs=1e-6),
        [0],
        [None, None],
    ]


KERNEL = """
from numba import types
from handlers.compiling import compiled

@compiled(types.int64(types.int64))
def doubled(n: int) -> int:
    return 2 * n
"""


@pytest.fixture
def kernel_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a small kernel that numba caches in tmp_path / "cache"."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "small_kernel.py"
    path.write_text(KERNEL)
    return path


def imported_kernel(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernel of a module that is imported as if by a new process."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module.doubled


@contextmanager
def full_disk() -> Iterator[None]:
    """Files can be made, as when numba chooses its folder, but nothing can be written into them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_second_import_takes_the_kernel_from_the_cache(kernel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (imported_kernel(kernel_file, monkeypatch) for _ in range(2))

    assert (first(4), second(4)) == (8, 8)
    assert [sum(kernel.stats.cache_hits.values()) for kernel in (first, second)] == [0, 1]


def test_kernel_works_where_the_cache_can_no_longer_be_written(
    kernel_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk():
        kernel = imported_kernel(kernel_file, monkeypatch)

    assert kernel(4) == 8
    assert kernel.stats.cache_path is None


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [b"", b"\x80\x04K"], ids=["empty", "cut off"])
def test_kernel_works_where_the_cache_is_damaged(
    kernel_file: Path, monkeypatch: pytest.MonkeyPatch, ending: str, left: bytes
) -> None:
    imported_kernel(kernel_file, monkeypatch)
    (damaged,) = kernel_file.parent.glob(f"cache/**/*.{ending}")
    damaged.write_bytes(left)

    kernel = imported_kernel(kernel_file, monkeypatch)

    assert kernel(4) == 8
