from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from model_store.manifest import (
    CARD_NAME,
    INT8_NAME,
    CalibrationRecord,
    EmotionManifest,
    FileRecord,
    Int8Record,
    read_manifest,
)
from tests.training.conftest import FinishedRun
from tests.training.test_evaluate import shipped_classifiers
from training.card import model_card
from training.complexity import Complexity
from training.evaluate import Report, evaluate, load_network
from training.export_study import ExportRow
from training.provenance import Provenance
from training.wild import WildReport


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
    rows = table_after(card, "| network | accuracy | macro F1 |")
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


SIZE = Complexity(parameters=12_345, macs=175_429_248)
EXPORTS = (
    ExportRow("ONNX fp32", 0.51111, 0.52222, 6.12, 1_234_567),
    ExportRow("dynamic int8", 0.50567, None, 4.56, 345_678),
)
WILD = WildReport(
    model="tiny-faces:1.0.0",
    precision="int8",
    n_pictures=140,
    n_unreadable=3,
    n_without_face=11,
    n_left_out=13,
    n=116,
    accuracy=0.61234,
    mean_confidence=0.70707,
    ece=0.09191,
    recall={"happy": 0.90909, "neutral": 0.43434},
    called={"happy": {"happy": 40, "sad": 4}, "neutral": {"neutral": 31, "sad": 27, "angry": 14}},
)
STATIC_NUMBERS = {
    *("8", "15", "30", "48", "65", "100", "601", "2013", "2016", "2024", "1689", "5", "1", "50", "3", "1.0", "0", "16"),
}
"""Years, articles, and what is said of every model: none of them a figure of this one."""


def reports_of(manifest: EmotionManifest) -> list[Report]:
    rng = np.random.default_rng(0)
    return [
        Report(manifest.tag, manifest.temperature, scores, rng.integers(200, 900, (7, 7)))
        for scores in manifest.evaluations
    ]


@pytest.fixture(scope="module")
def manifest(published: Bundle) -> EmotionManifest:
    assert isinstance(published.manifest, EmotionManifest)
    return published.manifest


@pytest.fixture(scope="module")
def full_card(manifest: EmotionManifest, finished_run: FinishedRun) -> str:
    counts = np.bincount(finished_run.training_set.labels, minlength=7).tolist()
    lines = tuple(Provenance.of([finished_run.experiment], counts).as_lines())
    manifest = manifest.model_copy(update={"training": manifest.training.model_copy(update={"provenance": lines})})
    return model_card(manifest, reports_of(manifest), SIZE, exports=EXPORTS, wild=[WILD])


def test_every_number_of_the_card_is_one_that_it_was_given(
    full_card: str, manifest: EmotionManifest, finished_run: FinishedRun
) -> None:
    """Takes all numbers out of the card, and all ways in which the given figures may be shown off them."""
    shown: set[str] = set(STATIC_NUMBERS)
    figures: list[float] = [
        manifest.temperature,
        manifest.input.size_px,
        manifest.input.channels,
        SIZE.parameters,
        SIZE.macs,
    ]
    figures += [len(manifest.labels), manifest.face_crop.scale, manifest.face_crop.shift_x, manifest.face_crop.shift_y]
    for scores in manifest.evaluations:
        figures += [scores.n, scores.accuracy, scores.macro_f1, scores.ece, scores.ece_uncalibrated]
        for one in scores.per_class.values():
            figures += [one.n, one.precision, one.recall, one.f1]
    for report in reports_of(manifest):
        figures += report.confusion.ravel().tolist()
    for export in EXPORTS:
        figures += [export.accuracy, export.accuracy_flip or 0, export.ms, export.size_bytes]
    figures += [WILD.n_pictures, WILD.n_without_face, WILD.n, WILD.accuracy, WILD.standard_error, WILD.ece]
    figures += [WILD.mean_confidence, *WILD.recall.values(), *WILD.called["neutral"].values(), 72]
    counts = np.bincount(finished_run.training_set.labels, minlength=7)
    figures += [*counts.tolist(), *(counts / counts.sum()).tolist(), int(counts.sum())]
    optim = finished_run.experiment.optim
    figures += [optim.epochs, optim.batch_size, optim.max_lr, optim.weight_decay]
    for figure in figures:
        for scale in (1, 100, 1e-6):
            shown |= {f"{figure * scale:.{digits}f}".lstrip("-") for digits in range(6)} | {f"{figure:g}".lstrip("-")}
    texts = re.sub(r"`[^`]*`|\{[^}]*\}", "", full_card)  # commands, digests, and the network's options
    texts = texts.replace(f"# {manifest.name} {manifest.version}", "").replace(manifest.training.note, "")
    texts = texts.replace(manifest.licence, "")
    found = set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])", texts))
    assert len(found) > 100
    assert found - shown == set()


def test_full_card_holds_what_it_was_given(full_card: str, manifest: EmotionManifest) -> None:
    check_card(full_card.replace("int8", "8-bit"), manifest)
    speed = table_after(full_card[full_card.index("## Speed") :], "| network |")
    assert speed["ONNX fp32"] == ["51.11%", "52.22%", "6.12", "1.2"]
    assert speed["dynamic int8"] == ["50.57%", "–", "4.56", "0.3"]
    wild = full_card[full_card.index("## In the wild") :]
    assert table_after(wild, "| network |")["int8"] == ["140", "11", "116", "61.2% ± 4.5%", "70.7%", "9.2%"]
    assert table_after(wild, "| recall |")["int8"] == ["90.9%", "43.4%"]
    assert "Neutral faces (72) were called: neutral 31, sad 27, angry 14." in wild
    assert "175 M multiply-adds" in full_card
    assert "* **Start**: fresh weights." in full_card
    assert f"evaluate --model {manifest.tag} --data" in full_card


def test_sections_without_figures_are_left_out(manifest: EmotionManifest) -> None:
    training = manifest.training.model_copy(update={"provenance": ()})
    manifest = manifest.model_copy(update={"training": training})
    bare = model_card(manifest, reports_of(manifest), SIZE)
    for heading in ("## Speed", "## In the wild", "## int8", "**Start**"):
        assert heading not in bare


@pytest.mark.parametrize(
    ("source", "split", "says", "does_not_say"),
    [
        ("FER2013 Training", "FER2013 PublicTest", ["web searches", "65 %", "web of 2013"], ["ten people"]),
        ("FER2013, FER+ labels", "FER+ majority", ["ten people", "web of 2013"], ["web searches", "65 %"]),
        ("FER2013 Training", "FER2013 PublicTest, FER+ majority", ["ten people"], ["web searches", "65 %"]),
        ("our own portraits", "held out", ["noisy"], ["FER", "2013", "65 %", "ten people"]),
    ],
    ids=["fer2013", "ferplus", "ferplus by its split", "other"],
)
def test_limits_speak_of_the_labels_that_the_manifest_names(
    manifest: EmotionManifest, source: str, split: str, says: list[str], does_not_say: list[str]
) -> None:
    evaluations = tuple(scores.model_copy(update={"split": split}) for scores in manifest.evaluations)
    manifest = manifest.model_copy(update={"source": source, "evaluations": evaluations})
    text = model_card(manifest, reports_of(manifest), SIZE)
    limits = text[text.index("## Limits") :]
    assert all(words in limits for words in says)
    assert not any(words in limits for words in does_not_say)


def test_layers_of_the_int8_network_in_float_are_named(manifest: EmotionManifest) -> None:
    record = Int8Record(
        command="quantise …",
        quantiser="onnxruntime 0.0.1",
        calibration=CalibrationRecord(split="generated faces", n=50, data_sha256="1" * 64, method="percentile 9"),
        evaluations=manifest.evaluations,
    )
    files = manifest.files | {INT8_NAME: FileRecord(size_bytes=7_700_000, sha256="0" * 64)}
    plain = manifest.model_copy(update={"int8": record, "files": files})
    card = model_card(plain, reports_of(plain), SIZE)
    check_card(card, plain)
    assert "but for its first and its last layer. On" in card
    mixed = plain.model_copy(update={"int8": record.model_copy(update={"float_layers": ("conv_3", "conv_9")})})
    assert "its last layer, and 2 more that bear it least (`conv_3`, `conv_9`)." in model_card(
        mixed, reports_of(mixed), SIZE
    )


def test_how_kernels_are_stored_is_said_once(manifest: EmotionManifest) -> None:
    assert "kernels stored as float16" in model_card(manifest, reports_of(manifest), SIZE)
    note = f"{manifest.training.note}, kernels stored as float32 (as float16 they move a probability by 0.03)"
    record = manifest.training.model_copy(update={"note": note})
    exact = manifest.model_copy(update={"training": record})
    assert "kernels stored as float16" not in model_card(exact, reports_of(exact), SIZE)


def test_rare_classes_are_named_with_their_faces(manifest: EmotionManifest) -> None:
    def with_counts(counts: dict[str, int]) -> str:
        scores = manifest.evaluations[0]
        per_class = {
            label: one.model_copy(update={"n": counts.get(label, 500)}) for label, one in scores.per_class.items()
        }
        scores = scores.model_copy(update={"per_class": per_class, "n": sum(one.n for one in per_class.values())})
        changed = manifest.model_copy(update={"evaluations": (scores,)})
        return model_card(changed, reports_of(changed), SIZE)

    assert "`disgust` (56 of 3056 faces)" in with_counts({"disgust": 56})
    assert "Rare in them" not in with_counts({})


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
