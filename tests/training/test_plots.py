from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from training import plots
from training.metrics import RocCurve, reliability_bins, roc_curve
from training.plots import draw_confusion, draw_reliability, draw_roc, draw_training_curves

LABELS = ("angry", "happy", "sad")
CONFUSION = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])


def history_of(accuracies: list[float]) -> dict[str, np.ndarray]:
    values = np.array(accuracies)
    return {
        "train_loss": 2 - values,
        "validation_loss": 2.1 - values,
        "train_accuracy": values - 0.01,
        "validation_accuracy": values,
        "learning_rate": np.full(len(values), 0.1),
    }


def curve_of(area: float) -> RocCurve:
    return RocCurve(np.array([0, 0, 1]), np.array([0, area * 2 - 1, 1]))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, to be asked what is on them."""
    drawn: list[Figure] = []
    save = plots.saved_figure

    @contextmanager
    def kept(path: Path, width_in: float, height_in: float) -> Iterator[Figure]:
        with save(path, width_in, height_in) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(plots, "saved_figure", kept)
    return drawn


def test_confusion_shows_share_and_count_of_every_cell(tmp_path: Path, figures: list[Figure]) -> None:
    draw_confusion(tmp_path / "confusion.png", CONFUSION, LABELS, "a title")
    axes = figures[0].axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:6] == ["75%", "6", "25%", "2", "0%", "0"]
    assert texts[6:12] == ["25%", "1", "75%", "3", "0%", "0"]
    assert texts[12:] == ["0%", "0"] * 3  # a class without faces has no shares, and no warning either
    assert [text.get_text() for text in axes.get_xticklabels()] == list(LABELS)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["angry\nn = 8", "happy\nn = 4", "sad\nn = 0"]
    assert axes.images[0].get_array()[0].tolist() == [0.75, 0.25, 0]  # row 0 is at the top, and true


@pytest.mark.parametrize(
    ("accuracies", "stages", "best"),
    [
        pytest.param([0.3], [1], 1, id="one epoch"),
        pytest.param([0.3, 0.6, 0.5, 0.6], [4], 2, id="first of equals"),
        pytest.param([0.3, 0.9, 0.4, 0.5, 0.45], [2, 3], 4, id="the last stage's best"),
    ],
)
def test_curves_mark_the_epoch_whose_weights_were_kept(
    tmp_path: Path, figures: list[Figure], accuracies: list[float], stages: list[int], best: int
) -> None:
    draw_training_curves(tmp_path / "curves.png", history_of(accuracies), stages)
    loss, accuracy, rate = figures[0].axes
    marked = {str(line.get_label()): line for line in accuracy.lines}
    label = f"best: {accuracies[best - 1]:.2%}, epoch {best}".replace("%", " %")
    assert marked[label].get_xydata().tolist() == [[best, accuracies[best - 1] * 100]]
    assert marked["validation"].get_ydata() == pytest.approx(np.array(accuracies) * 100)
    assert loss.lines[0].get_ydata() == pytest.approx(2 - np.array(accuracies))
    assert len(rate.lines) == 1 + len(stages) - 1  # a rule between two stages


def test_roc_legend_goes_from_the_best_class_to_the_worst(tmp_path: Path, figures: list[Figure]) -> None:
    curves = {"angry": curve_of(0.8), "happy": curve_of(0.95), "sad": curve_of(0.6)}
    draw_roc(tmp_path / "roc.png", curves, "a title")
    legend = figures[0].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["happy  0.950", "angry  0.800", "sad  0.600"]
    assert legend.get_title().get_text() == "area, mean 0.783"
    lines = figures[0].axes[0].lines[1:]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 3


def test_ten_classes_look_different(tmp_path: Path, figures: list[Figure]) -> None:
    draw_roc(tmp_path / "roc.png", {f"class {index}": curve_of(0.6 + index / 30) for index in range(10)}, "")
    assert len({line.get_color() for line in figures[0].axes[0].lines[1:]}) == 10


def test_reliability_bars_are_the_bins(tmp_path: Path, figures: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3) * 0.4, 300)
    bins = reliability_bins(probabilities, rng.integers(0, 3, 300), 5)
    draw_reliability(tmp_path / "reliability.png", {"before": (bins, 0.5), "after": (bins, 0.25)})
    top, _, histogram, _ = figures[0].axes
    filled = [one for one in bins if one.n]
    heights = [bar.get_height() for bar in top.patches]
    assert heights[::2] == pytest.approx([one.accuracy for one in filled])
    assert heights[1::2] == pytest.approx([abs(one.accuracy - one.confidence) for one in filled])
    assert [bar.get_height() for bar in histogram.patches] == pytest.approx([one.n / 3 for one in bins])
    assert [axes.get_title(loc="left") for axes in figures[0].axes[:2]] == ["before: ECE 50.00%", "after: ECE 25.00%"]


def test_equal_numbers_give_equal_bytes_and_a_real_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_DPI", 50)
    bins = reliability_bins(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    curve = roc_curve(np.array([0.1, 0.9, 0.5]), np.array([False, True, False]))
    assert curve is not None
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        draw_confusion(folder / "confusion.png", CONFUSION, LABELS, "a title")
        draw_training_curves(folder / "curves.png", history_of([0.2, 0.4]), [2])
        draw_roc(folder / "roc.png", {"angry": curve}, "a title")
        draw_reliability(folder / "reliability.png", {"before": (bins, 0.5)})
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 150
            assert len(picture.convert("L").getcolors()) > 20
            assert round(picture.info["dpi"][0]) == 50
