"""The zoo table: runs and published bundles beside each other, as Markdown, JSON and a picture.

Scores are what the run's `metrics.json` or the bundle's manifest says; parameters, multiply-adds and milliseconds are
counted and measured here, in turns, so that the rows of a table can be compared with each other.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnxruntime
from torch import nn

from handlers.errors import HandlerError
from model_store.bundle import find_bundle, open_bundle
from model_store.errors import ModelStoreError
from model_store.manifest import INT8_NAME, MANIFEST_NAME, WEIGHTS_NAME, EmotionManifest, Evaluation, InputSpec
from model_store.networks import load_networks
from training.complexity import ROUNDS, complexity_of, export_for_timing, latencies_ms
from training.errors import DataError, TrainingError
from training.finished_run import last_stage, load_best, read_experiment, read_metrics
from training.metrics import worst_class
from training.speed_plot import SpeedPoint, draw_speed

_HEADER = (
    "| model | accuracy | flip TTA | macro F1 | worst class: recall, F1 | ECE before → after | parameters | MACs "
    "| size | ms |"
)


@dataclass(frozen=True)
class ZooRow:
    """One network in one precision. Shares are fractions; `accuracy_flip` is None where only one way was scored.

    The worst class is that of the lowest F1 without test-time augmentation. `parameters` and `macs` are the float
    network's in either precision. `size_bytes` is the weights' file, `ms` the median of one face on one thread.
    """

    name: str
    precision: str
    split: str
    n: int
    labels: tuple[str, ...]
    accuracy: float
    accuracy_flip: float | None
    macro_f1: float
    worst_class: str
    worst_recall: float
    worst_f1: float
    ece_uncalibrated: float
    ece: float
    parameters: int
    macs: int
    size_bytes: int
    ms: float


@dataclass(frozen=True)
class _Entry:
    """What is known of a network before it is timed: its rows without milliseconds, and an ONNX file for each."""

    rows: tuple[ZooRow, ...]
    files: tuple[Path, ...]
    spec: InputSpec


def compare(
    paths: Iterable[Path], *, rounds: int = ROUNDS, complain: Callable[[str], None] = print
) -> tuple[list[ZooRow], int]:
    """The rows of run folders and bundle folders, best first, and how many of the paths could not be read.

    An int8 network follows its float network. rounds: how often each network is timed. complain: takes a line for each
    path that is no run with a `metrics.json` and no bundle of an emotion classifier; files, as `runs/*` gives them, get
    one, too, and are not counted.
    """
    entries, n_failed = [], 0
    with tempfile.TemporaryDirectory() as work:
        for index, path in enumerate(paths):
            if path.is_file():
                complain(f"{path}: a file, left out")
                continue
            try:
                entries.append(_open(path, Path(work) / f"{index}.onnx"))
            except (TrainingError, ModelStoreError, HandlerError, OSError) as error:
                n_failed += 1
                complain(f"{path}: {type(error).__name__}: {error}")
        times = iter(latencies_ms([(file, entry.spec) for entry in entries for file in entry.files], rounds))
    timed = [[replace(row, ms=next(times)) for row in entry.rows] for entry in entries]
    timed.sort(key=lambda rows: (-rows[0].accuracy, rows[0].name))
    return [row for rows in timed for row in rows], n_failed


def tables_of(rows: Sequence[ZooRow]) -> list[list[ZooRow]]:
    """The rows that were scored on the same faces with the same labels, together; the largest table first."""
    tables: dict[tuple[object, ...], list[ZooRow]] = {}
    for row in rows:
        tables.setdefault((row.split, row.n, frozenset(row.labels)), []).append(row)
    return sorted(tables.values(), key=lambda table: -len(table))


def as_markdown(table: Sequence[ZooRow]) -> str:
    """One table, with a line above that says what the scores are of."""
    first = table[0]
    lines = [
        f"Scores on {first.split}, {first.n} faces, {len(first.labels)} classes ({', '.join(first.labels)}).",
        "",
        _HEADER,
        "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        flip = "–" if row.accuracy_flip is None else f"{row.accuracy_flip:.2%}"
        counts = (f"{row.parameters / 1e6:.2f} M", f"{row.macs / 1e6:.0f} M") if row.precision == "fp32" else ("", "")
        name = row.name if row.precision == "fp32" else f"· {row.precision}"
        lines.append(
            f"| {name} | {row.accuracy:.2%} | {flip} | {row.macro_f1:.4f} "
            f"| {row.worst_class}: {row.worst_recall:.1%}, {row.worst_f1:.3f} "
            f"| {row.ece_uncalibrated:.2%} → {row.ece:.2%} | {counts[0]} | {counts[1]} "
            f"| {row.size_bytes / 1e6:.1f} MB | {row.ms:.2f} |"
        )
    return "\n".join(lines) + "\n"


def conditions(rounds: int = ROUNDS) -> str:
    """How and where the milliseconds were measured, for a line below the tables."""
    return (
        f"Milliseconds: one face on one thread of {_processor()}, onnxruntime {onnxruntime.__version__}, "
        f"median of {rounds}, processor time. Accuracy, F1 and the worst class without TTA unless it says flip."
    )


def write_comparison(folder: Path, rows: Sequence[ZooRow], rounds: int = ROUNDS) -> Path:
    """Write `zoo.md`, `zoo.json` and a picture for each table into `folder`. Returns the Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, used = [], set[str]()
    for table in tables_of(rows):
        stem = "accuracy-ms-" + (re.sub(r"[^a-z0-9]+", "-", table[0].split.lower()).strip("-") or "split")
        while stem in used:
            stem += f"-{len(table[0].labels)}"
        used.add(stem)
        draw_speed(folder / f"{stem}.png", _points(table), f"Accuracy on {table[0].split} against time")
        parts.append(f"{as_markdown(table)}\n![Accuracy against milliseconds]({stem}.png)\n")
    (folder / "zoo.md").write_text("\n".join([*parts, conditions(rounds) + "\n"]))
    (folder / "zoo.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return folder / "zoo.md"


def _points(table: Sequence[ZooRow]) -> list[SpeedPoint]:
    int8 = {row.name: row for row in table if row.precision == "int8"}
    return [
        SpeedPoint(
            row.name,
            row.ms,
            row.accuracy,
            None if row.name not in int8 else (int8[row.name].ms, int8[row.name].accuracy),
        )
        for row in table
        if row.precision == "fp32"
    ]


def _open(path: Path, onnx: Path) -> _Entry:
    if not path.is_dir():
        raise DataError("no such folder")
    if (path / MANIFEST_NAME).exists():
        return _open_bundle(path, onnx)
    if any(path.glob(f"[!.]*/{MANIFEST_NAME}")):
        return _open_bundle(find_bundle(path.parent, path.name), onnx)
    folder = last_stage(path)
    metrics, experiment = read_metrics(folder), read_experiment(folder)
    network, _, _ = load_best(folder, experiment)
    if metrics.config_sha256 != experiment.sha256():
        raise DataError("its metrics.json is of another configuration")
    name = metrics.name if path.name == metrics.name else f"{metrics.name} ({path.name})"
    row = _row(name, "fp32", metrics.labels, metrics.evaluations, network, experiment.input, metrics.size_bytes)
    return _Entry((row,), (export_for_timing(network, experiment.input, onnx),), experiment.input)


def _open_bundle(folder: Path, onnx: Path) -> _Entry:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if not isinstance(manifest, EmotionManifest) or not manifest.evaluations:
        raise DataError(f"{manifest.tag} is not an emotion classifier with scores")
    network, spec = load_networks(bundle)["classifier"], manifest.input
    scored = [("fp32", manifest.evaluations, WEIGHTS_NAME)]
    files = [export_for_timing(network, spec, onnx)]
    if manifest.int8 is not None:
        scored.append(("int8", manifest.int8.evaluations, INT8_NAME))
        int8 = onnx.with_suffix(".int8.onnx")
        int8.symlink_to((folder / INT8_NAME).absolute())
        files.append(int8)
    name = f"{manifest.name} {manifest.version}"
    rows = [
        _row(name, precision, manifest.labels, evaluations, network, spec, manifest.files[file].size_bytes)
        for precision, evaluations, file in scored
    ]
    return _Entry(tuple(rows), tuple(files), spec)


def _row(
    name: str,
    precision: str,
    labels: tuple[str, ...],
    evaluations: tuple[Evaluation, ...],
    network: nn.Module,
    spec: InputSpec,
    size_bytes: int,
) -> ZooRow:
    ways = {scores.tta: scores for scores in evaluations}
    if "none" not in ways:
        raise DataError("no scores without test-time augmentation")
    plain, flipped = ways["none"], ways.get("flip")
    worst = worst_class(plain.per_class)
    complexity = complexity_of(network, spec)
    return ZooRow(
        name=name,
        precision=precision,
        split=plain.split,
        n=plain.n,
        labels=labels,
        accuracy=plain.accuracy,
        accuracy_flip=None if flipped is None else flipped.accuracy,
        macro_f1=plain.macro_f1,
        worst_class=worst,
        worst_recall=plain.per_class[worst].recall,
        worst_f1=plain.per_class[worst].f1,
        ece_uncalibrated=plain.ece_uncalibrated,
        ece=plain.ece,
        parameters=complexity.parameters,
        macs=complexity.macs,
        size_bytes=size_bytes,
        ms=0.0,
    )


def _processor() -> str:
    """The processor's name as Linux tells it, or what kind it is."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
