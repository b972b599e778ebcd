"""The pictures of a run, as PNG: training curves, confusion matrix, ROC curves, reliability diagram.

Drawn with matplotlib's Agg backend and without pyplot, so nothing needs a display and no state is shared. The same
numbers give the same bytes with the same matplotlib: the files hold no date. Colours are those of Okabe and Ito (2008),
which readers with any colour vision tell apart; curves differ in dash, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.metrics import ReliabilityBin, RocCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PALE_BLUE, DEEP_GREEN = "#9CC7E3", "#00573F"
PALETTE = (BLUE, VERMILION, GREEN, "#CC79A7", ORANGE, "#56B4E9", "#000000", "#8C6D31", "#7F7F7F", "#B5A900")
INK, FAINT = "#222222", "#BBBBBB"
_DASHES = ("-", "--", "-.", (0, (1, 1)))
_DPI = 150
_FEW = 10
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


@contextmanager
def saved_figure(path: Path, width_in: float, height_in: float) -> Iterator[Figure]:
    """A figure in the house style, in inches at 150 dpi, that is written to the PNG file `path` when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def draw_training_curves(path: Path, history: Mapping[str, NDArray[np.float64]], stages: Sequence[int]) -> None:
    """Loss, accuracy and learning rate by epoch, the best epoch marked.

    history: float64 (E,) for `train_loss`, `validation_loss`, `train_accuracy`, `validation_accuracy` (fractions) and
    `learning_rate`. stages: how many of the epochs each stage has; the best epoch is the last stage's, whose best
    weights are the run's.
    """
    n_epochs = len(history["validation_accuracy"])
    epochs = np.arange(1, n_epochs + 1)
    first = n_epochs - stages[-1]
    best = first + int(history["validation_accuracy"][first:].argmax()) + 1
    with saved_figure(path, 11, 3.6) as figure:
        loss, accuracy, rate = figure.subplots(1, 3)
        marker = "o" if n_epochs < 4 else ""
        for axes, key, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            for part, colour, dash in (("train", ORANGE, "--"), ("validation", BLUE, "-")):
                axes.plot(
                    epochs, history[f"{part}_{key}"] * scale, color=colour, linestyle=dash, marker=marker, label=part
                )
        rate.plot(epochs, history["learning_rate"], color=GREEN, marker=marker)
        loss.set_title("Loss")
        loss.set_ylabel("nats a face")
        accuracy.set_title("Accuracy")
        accuracy.set_ylabel("%")
        rate.set_title("Learning rate (epoch's end)")
        rate.set_ylim(bottom=0)
        top = history["validation_accuracy"][best - 1] * 100
        accuracy.plot([best], [top], "o", color=VERMILION, label=f"best: {top:.2f} %, epoch {best}", zorder=4)
        loss.plot([best], [history["validation_loss"][best - 1]], "o", color=VERMILION, zorder=4)
        loss.legend(loc="best")
        accuracy.legend(loc="best")
        for axes in (loss, accuracy, rate):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            for end in np.cumsum(stages)[:-1]:
                axes.axvline(end + 0.5, color=FAINT, linewidth=1, linestyle=":")


def draw_confusion(path: Path, confusion: NDArray[np.int64], labels: Sequence[str], title: str) -> None:
    """Confusion matrix int64 (K, K), rows true: shaded by each row's share, with the share and the count in a cell."""
    from matplotlib.ticker import PercentFormatter

    n_classes = len(labels)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 1.6 + 0.82 * n_classes
    with saved_figure(path, side + 0.9, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_xticks(range(n_classes), labels, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(
            range(n_classes), [f"{label}\nn = {n}" for label, n in zip(labels, confusion.sum(1), strict=True)]
        )
        axes.set_xlabel("called")
        axes.set_ylabel("true")
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for row in range(n_classes):
            for column in range(n_classes):
                share, count = shares[row, column], int(confusion[row, column])
                colour = "white" if share > 0.5 else INK if count else FAINT
                weight = "bold" if row == column else "normal"
                axes.text(column, row - 0.08, f"{share:.0%}", ha="center", va="center", color=colour, weight=weight)
                axes.text(column, row + 0.26, f"{count}", ha="center", va="center", color=colour, fontsize=7.5)
        bar = figure.colorbar(image, ax=axes, shrink=0.75, pad=0.02, format=PercentFormatter(1))
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")


def draw_roc(path: Path, curves: Mapping[str, RocCurve], title: str) -> None:
    """One ROC curve a class, the legend from the largest area to the smallest, and their mean."""
    with saved_figure(path, 6.4, 5.6) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        styles = {
            name: (PALETTE[index % len(PALETTE)], _DASHES[index % len(_DASHES)]) for index, name in enumerate(curves)
        }
        for name in sorted(curves, key=lambda name: -curves[name].auc):
            curve, (colour, dash) = curves[name], styles[name]
            axes.plot(
                curve.false_positive_rate,
                curve.true_positive_rate,
                color=colour,
                linestyle=dash,
                linewidth=1.6,
                label=f"{name}  {curve.auc:.3f}",
            )
        mean = float(np.mean([curve.auc for curve in curves.values()])) if curves else 0.0
        axes.set_title(title)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_aspect("equal")
        axes.legend(loc="lower right", title=f"area, mean {mean:.3f}", alignment="left")


def draw_reliability(path: Path, panels: Mapping[str, tuple[Sequence[ReliabilityBin], float]]) -> None:
    """Accuracy by confidence in each bin, and how many samples a bin holds, for each titled panel: (bins, ECE).

    The hatched part is the distance to the mean confidence; bins of under ten samples are pale.
    """
    from matplotlib.patches import Patch

    with saved_figure(path, 4.6 * len(panels), 5.6) as figure:
        grid = figure.subplots(2, len(panels), height_ratios=(3.2, 1), squeeze=False, sharex=True)
        highest = max(bin_.n for bins, _ in panels.values() for bin_ in bins)
        for column, (title, (bins, ece)) in enumerate(panels.items()):
            diagram, histogram = grid[0][column], grid[1][column]
            _reliability_panel(diagram, bins)
            diagram.set_title(f"{title}: ECE {ece:.2%}")
            total = sum(bin_.n for bin_ in bins)
            for bin_ in bins:
                histogram.bar(
                    bin_.lower, bin_.n / total * 100, bin_.upper - bin_.lower, align="edge", color="#9A9A9A",
                    edgecolor="white", linewidth=0.8,
                )  # fmt: skip
            histogram.set_xlabel("confidence")
            histogram.set_ylim(0, highest / total * 108)
            if not column:
                diagram.set_ylabel("accuracy")
                histogram.set_ylabel("% of faces")
        handles = [
            Patch(facecolor=PALE_BLUE, label="accuracy"),
            Patch(facecolor="none", edgecolor=VERMILION, hatch="////", linewidth=0, label="too sure by"),
            Patch(facecolor="none", edgecolor=DEEP_GREEN, hatch="////", linewidth=0, label="too modest by"),
        ]
        grid[0][0].legend(handles=handles, loc="upper left")


def _reliability_panel(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
    for bin_ in (bin_ for bin_ in bins if bin_.n):
        width = bin_.upper - bin_.lower
        low, high = sorted((bin_.accuracy, bin_.confidence))
        strength = 1.0 if bin_.n >= _FEW else 0.35
        axes.bar(
            bin_.lower, bin_.accuracy, width, align="edge", color=PALE_BLUE, alpha=strength, edgecolor="white",
            linewidth=0.8,
        )  # fmt: skip
        axes.bar(
            bin_.lower, high - low, width, bottom=low, align="edge", color="none", hatch="////", linewidth=0,
            edgecolor=VERMILION if bin_.confidence > bin_.accuracy else DEEP_GREEN, alpha=strength,
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
