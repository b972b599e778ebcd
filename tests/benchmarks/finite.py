"""What every benchmark's JSON must be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def results_of(path: Path) -> dict[str, Any]:
    """The JSON of a benchmark, whose numbers must all be finite, and which must say on what and how it was made."""
    results: dict[str, Any] = json.loads(path.read_text())
    for where, number in _numbers(results, ""):
        assert math.isfinite(number), where
    assert results["command"].startswith("python -m benchmarks.")
    assert results["machine"]["cpu"]
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["packages"]["torch"] != "none"
    assert results["date"]
    return results


def _numbers(value: Any, where: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for key, each in value.items() for found in _numbers(each, f"{where}.{key}")]
    if isinstance(value, list):
        return [found for index, each in enumerate(value) for found in _numbers(each, f"{where}[{index}]")]
    return [(where, value)] if isinstance(value, (int, float)) else []
