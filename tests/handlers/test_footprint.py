"""What a process that serves holds in memory, loads and compiles: measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import handlers.detection.kernels
from tests.handlers.composites import composite
from tests.pictures import encoded

ROOT = Path(__file__).parents[2]
MAX_RESIDENT_MIB = 400
MAX_GROWTH_MIB = 12

Measure = Callable[[int], dict[str, Any]]


@pytest.fixture(scope="module")
def measure(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """What `footprint` prints about so many pictures.

    Left alone, glibc moves the size from which it gives memory back, and so holds up to 40 MiB more or less by chance.
    """
    pytest.importorskip("openvino", reason="needs openvino")
    assert handlers.detection.kernels  # imported here, so that numba's cache holds them
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(24):
        (folder / f"{seed}.jpg").write_bytes(encoded(composite(seed), "JPEG", quality=92))

    def run(n: int) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.handlers.footprint", str(folder), "--pictures", str(n)],
            cwd=ROOT,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        measured: dict[str, Any] = json.loads(done.stdout)
        return measured

    return run


def assert_footprint(measured: dict[str, Any], n: int, grown_since: int) -> None:
    assert (measured["pictures"], measured["errors"]) == (n, n // 50)
    assert measured["faces"] > n / 2
    assert not measured["torch"]
    resident = {int(number): mib for number, mib in measured["resident_mib"].items()}
    assert max(resident.values()) < MAX_RESIDENT_MIB
    assert resident[n] - resident[grown_since] <= MAX_GROWTH_MIB


def test_a_few_hundred_pictures_fill_the_memory_and_load_and_compile_nothing(measure: Measure) -> None:
    measured = measure(300)
    assert_footprint(measured, 300, grown_since=100)
    assert (measured["compiled_until_the_first_result"], measured["compiled_later"]) == (0, 0)


@pytest.mark.slow
def test_memory_does_not_grow_over_two_thousand_pictures(measure: Measure) -> None:
    assert_footprint(measure(2000), 2000, grown_since=500)
