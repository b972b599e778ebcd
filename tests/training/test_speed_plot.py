from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from training.speed_plot import SpeedPoint, draw_points, draw_speed

CROWDED = [
    SpeedPoint(f"fer2013-network-{index} 1.0.0", 3 + 0.3 * index, 0.66 + 0.002 * (index % 3), (2 + 0.2 * index, 0.66))
    for index in range(8)
]


def drawn(points: list[SpeedPoint]) -> tuple[Figure, list[object]]:
    figure = Figure(figsize=(8.4, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(draw_points(figure, points, "a title"))


def test_crowded_names_lie_neither_on_each_other_nor_on_marks() -> None:
    figure, texts = drawn(CROWDED)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    axes = figure.axes[0]
    # The text's own extent: the annotation's would include its thin line.
    boxes = [type(text).__mro__[1].get_window_extent(text, renderer) for text in texts]
    assert [text.get_text() for text in texts] == [point.name for point in CROWDED]
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    marks = [(point.ms, point.accuracy) for point in CROWDED] + [point.int8 for point in CROWDED if point.int8]
    for x, y in axes.transData.transform([(ms, accuracy * 100) for ms, accuracy in marks]):
        assert not any(box.contains(x, y) for box in boxes)
    for box in boxes:
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1


def test_int8_is_another_mark_joined_by_a_line() -> None:
    figure, _ = drawn([SpeedPoint("one", 4.0, 0.7, (2.0, 0.69)), SpeedPoint("other", 1.0, 0.6)])
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    line, fp32, int8 = axes.lines
    assert line.get_xydata().tolist() == [[4.0, 70.0], [2.0, pytest.approx(69.0)]]
    assert fp32.get_xydata().tolist() == [[4.0, 70.0], [1.0, 60.0]]
    assert np.allclose(int8.get_xydata(), [[2.0, 69.0]])
    assert fp32.get_marker() != int8.get_marker()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["fp32", "int8"]


def test_a_single_point_is_a_picture_too(tmp_path: Path) -> None:
    draw_speed(tmp_path / "speed.png", [SpeedPoint("alone", 4.0, 0.7)], "a title")
    with Image.open(tmp_path / "speed.png") as picture:
        assert len(picture.convert("L").getcolors()) > 20
