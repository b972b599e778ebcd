"""What a measurement leaves behind: Markdown tables on the terminal, and JSON that says on what it was measured."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(".state/bench")

_PACKAGES = (
    "facenet-pytorch",
    "numba",
    "numpy",
    "onnxruntime",
    "openvino",
    "pillow",
    "timm",
    "torch",
    "torchvision",
)


def machine() -> dict[str, Any]:
    """The processor, how many cores this process may use and how busy they were, and the versions of what ran."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """The command that `main(arguments)` of a module stands for."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def write_json(path: Path, command: str, at_start: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the results with the command, the date and what `machine` said at the start."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"command": command, "date": date, "machine": at_start} | results, indent=2, ensure_ascii=False)
        + "\n"
    )


def heading(at_start: dict[str, Any]) -> str:
    """One line that says on what and when."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    packages = ", ".join(f"{name} {at_start['packages'][name]}" for name in ("openvino", "onnxruntime", "torch"))
    return f"{at_start['cpu']}, {at_start['cores']} cores, {packages}, {today}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def milliseconds(value: float) -> str:
    """Three figures or so."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def ratio(value: float) -> str:
    """How many times."""
    return f"**{value:.1f}×**"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
