from __future__ import annotations

from pathlib import Path

import pytest

from model_store.bundle import Bundle
from model_store.manifest import CARD_NAME, INT8_NAME, EmotionManifest, read_manifest
from tests.training.conftest import FinishedRun
from tests.training.test_evaluate import shipped_classifiers
from training.evaluate import evaluate, load_network


def table_after(card: str, start: str) -> dict[str, list[str]]:
    """The rows of the Markdown table whose heading starts with `start`, by their first cell."""
    lines = card[card.index(start) :].splitlines()
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[2 : lines.index("")]]
    return {first: rest for first, *rest in rows}


def fraction(cell: str) -> float:
    return round(float(cell.rstrip("%")) / 100, 6) if cell.endswith("%") else float(cell)


def check_card(card: str, manifest: EmotionManifest) -> None:
    """Every figure of the manifest stands in the card, to the digits that the card shows."""
    totals = table_after(card, "| TTA |")
    assert list(totals) == [scores.tta for scores in manifest.evaluations]
    for scores in manifest.evaluations:
        n, *figures = totals[scores.tta]
        assert int(n) == scores.n
        expected = [scores.accuracy, scores.macro_f1, scores.ece_uncalibrated, scores.ece]
        assert [fraction(cell) for cell in figures] == pytest.approx(expected, abs=5.1e-5)
        assert scores.split in card
    per_class = table_after(card, "| class |")
    assert tuple(per_class) == manifest.labels
    for label, metrics in manifest.evaluations[0].per_class.items():
        *figures, n = per_class[label]
        assert int(n) == metrics.n
        expected = [metrics.precision, metrics.recall, metrics.f1]
        assert [fraction(cell) for cell in figures] == pytest.approx(expected, abs=5.1e-4)
    said = (manifest.source, manifest.training.command, manifest.training.note, manifest.licence)
    digests = (manifest.training.config_sha256, manifest.training.data_sha256)
    check_int8_section(card, manifest)
    for text in (f"# {manifest.name} {manifest.version}\n", *said, *digests, f"Temperature {manifest.temperature},"):
        assert text in card
    for value in (manifest.architecture.family, *manifest.architecture.options.values()):
        assert str(value) in card
    geometry = manifest.face_crop
    assert f"{geometry.scale} times the longer side" in card
    assert f"({geometry.shift_x}, {geometry.shift_y})" in card


def check_int8_section(card: str, manifest: EmotionManifest) -> None:
    int8 = manifest.int8
    if int8 is None:
        assert "int8" not in card
        return
    rows = table_after(card, "| network |")
    for precision, evaluations in (("fp32", manifest.evaluations), ("int8", int8.evaluations)):
        for scores in evaluations:
            expected = [scores.accuracy, scores.macro_f1, scores.ece_uncalibrated, scores.ece]
            figures = [fraction(cell) for cell in rows.pop(f"{precision}, TTA {scores.tta}")]
            assert figures == pytest.approx(expected, abs=5.1e-5)
    assert not rows
    calibration = int8.calibration
    size_mb = manifest.files[INT8_NAME].size_bytes / 1e6
    said = (int8.command, int8.quantiser, calibration.split, calibration.method, calibration.data_sha256)
    for text in (*said, f"{calibration.n} faces", f"{size_mb:.1f} MB"):
        assert text in card


@pytest.fixture(scope="module")
def card(published: Bundle) -> str:
    return (published.folder / CARD_NAME).read_text()


def test_card_holds_every_figure_of_the_manifest(card: str, published: Bundle) -> None:
    assert isinstance(published.manifest, EmotionManifest)
    check_card(card, published.manifest)


def test_card_of_a_quantised_bundle_holds_both_networks_figures(quantised: Bundle) -> None:
    assert isinstance(quantised.manifest, EmotionManifest)
    assert quantised.manifest.int8 is not None
    check_card((quantised.folder / CARD_NAME).read_text(), quantised.manifest)


def test_card_shows_the_confusion_of_serving_as_it_is(card: str, published: Bundle, finished_run: FinishedRun) -> None:
    manifest = published.manifest
    assert isinstance(manifest, EmotionManifest)
    report = evaluate(manifest, load_network(published, "torch", 2), finished_run.validation_set, "x", "none")
    rows = table_after(card, "| | angry")
    assert [[int(cell) for cell in rows[label]] for label in manifest.labels] == report.confusion.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "## Limits",
        "not a person's feelings",
        "noisy",
        "not balanced",
        "Regulation (EU) 2024/1689",
        "Article 5(1)(f)",
        "Article 50(3)",
        "also chose the epoch and the temperature",
    ],
)
def test_card_says_where_the_model_must_not_be_trusted(card: str, text: str) -> None:
    assert text in card


@pytest.mark.parametrize(
    "folder",
    shipped_classifiers() or [pytest.param(None, marks=pytest.mark.skip("no emotion bundle ships yet"))],
    ids=lambda folder: "-".join(folder.parts[-2:]) if folder else "none",
)
def test_shipped_card_holds_every_figure_of_its_manifest(folder: Path) -> None:
    manifest = read_manifest(folder / "manifest.json")
    assert isinstance(manifest, EmotionManifest)
    check_card((folder / CARD_NAME).read_text(), manifest)
