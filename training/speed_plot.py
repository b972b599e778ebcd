"""Accuracy against milliseconds, one named point a network; its int8 network is a second mark, joined by a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.plots import BLUE, INK, VERMILION, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

_TURNS = np.arange(0, 2 * np.pi, np.pi / 8)
_RADII_PT = (9, 14, 20, 28, 38, 50, 64, 80)


@dataclass(frozen=True)
class SpeedPoint:
    """A network's milliseconds a face and accuracy as a fraction, and the same of its int8 network, if it has one."""

    name: str
    ms: float
    accuracy: float
    int8: tuple[float, float] | None = None


def draw_speed(path: Path, points: Sequence[SpeedPoint], title: str) -> None:
    """Draw the points into a PNG file: accuracy in %, milliseconds on a logarithmic axis, labels beside each other."""
    with saved_figure(path, 8.4, 5.4) as figure:
        draw_points(figure, points, title)


def draw_points(figure: Figure, points: Sequence[SpeedPoint], title: str) -> list[Text]:
    """Draw on a figure. Returns the labels, none of which lies over another or over a mark where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    marks = [(point.ms, point.accuracy * 100) for point in points]
    small = [(point.int8[0], point.int8[1] * 100) for point in points if point.int8 is not None]
    for point in points:
        if point.int8 is not None:
            axes.plot(
                [point.ms, point.int8[0]], [point.accuracy * 100, point.int8[1] * 100], color="#999999", linewidth=1
            )
    axes.plot(*zip(*marks, strict=True), "o", color=BLUE, markersize=8, label="fp32")
    if small:
        axes.plot(*zip(*small, strict=True), "D", color=VERMILION, markersize=6.5, label="int8")
        axes.legend(loc="lower right")
    axes.set_title(title)
    axes.set_xlabel("milliseconds a face, one thread (logarithmic)")
    axes.set_ylabel("accuracy, %")
    axes.set_xscale("log")
    times, heights = ([mark[side] for mark in marks + small] for side in (0, 1))
    axes.set_xlim(min(times) / 1.5, max(times) * 1.9)
    spread = max(max(heights) - min(heights), 1.0)
    axes.set_ylim(min(heights) - 0.15 * spread, max(heights) + 0.15 * spread)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return _place_labels(figure, axes, [point.name for point in points], marks, small)


def _place_labels(
    figure: Figure,
    axes: Axes,
    names: Sequence[str],
    marks: Sequence[tuple[float, float]],
    also: Sequence[tuple[float, float]],
) -> list[Text]:
    """Write each mark's name as near to it as other names, marks and the frame allow, with a thin line to a far one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()  # type: ignore[no-untyped-call]  # settles the layout, on which the positions in pixels depend
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    pixels_pt = figure.dpi / 72
    half = 6 * pixels_pt
    taken: list[Bbox] = []
    for x, y in axes.transData.transform([*marks, *also]):
        taken.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    if legend := axes.get_legend():
        taken.append(legend.get_window_extent(renderer))
    texts: list[Text] = []
    for name, mark in zip(names, marks, strict=True):
        text = axes.annotate(
            name, mark, xytext=(0, 0), textcoords="offset points", fontsize=9, color=INK, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 5},
        )  # fmt: skip
        box = text.get_window_extent(renderer)
        best: tuple[float, tuple[float, float]] | None = None
        for radius in _RADII_PT:
            for turn in _TURNS:
                # From the mark's edge outwards: the nearest edge of the text, not its middle, is `radius` away.
                across = np.cos(turn) * (radius + box.width / pixels_pt / 2)
                up = np.sin(turn) * (radius + box.height / pixels_pt / 2)
                moved = box.translated(across * pixels_pt, up * pixels_pt)
                clash = sum(_overlap(moved, other) for other in taken)
                clash += moved.width * moved.height - _overlap(moved, axes.bbox)
                if best is None or clash < best[0]:
                    best = clash, (float(across), float(up))
        assert best is not None
        text.set_position(best[1])
        taken.append(box.translated(best[1][0] * pixels_pt, best[1][1] * pixels_pt))
        texts.append(text)
    return texts


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0) * max(height, 0))
