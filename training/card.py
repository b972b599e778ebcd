"""The model card: what a model is, how it was made, what it scores, and where it must not be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_store.manifest import INT8_NAME, WEIGHTS_NAME, EmotionManifest, Evaluation, Int8Record
from training.evaluate import Report
from training.metrics import ECE_BINS, worst_class

if TYPE_CHECKING:
    from training.complexity import Complexity
    from training.export_study import ExportRow
    from training.wild import WildReport

_RARE = 0.02


def model_card(
    manifest: EmotionManifest,
    reports: Sequence[Report],
    complexity: Complexity,
    *,
    exports: Sequence[ExportRow] = (),
    wild: Sequence[WildReport] = (),
) -> str:
    """Markdown. The first report is of serving as it is (no test-time augmentation), in fp32.

    exports: the network as it can be run, beside each other. wild: scores of the whole chain on photographs.
    Sections without figures are left out.
    """
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"Says which of {len(manifest.labels)} expressions a face shows: {', '.join(manifest.labels)}.",
        "",
        *_scores(manifest, reports),
        *_exports(reports[0].evaluation.split, exports),
        *_int8(manifest),
        *_wild(wild),
        *_making(manifest, complexity),
        *_limits(manifest),
        f"Licence of the weights: {manifest.licence}.",
        "",
    ]
    return "\n".join(lines)


def _scores(manifest: EmotionManifest, reports: Sequence[Report]) -> list[str]:
    served = reports[0]
    scores, split = served.evaluation, served.evaluation.split
    worst = worst_class(scores.per_class)
    return [
        "## Scores",
        "",
        f"On {split}, which also chose the epoch and the temperature, so expect a little less on new faces.",
        "",
        "| TTA | n | accuracy | macro F1 | ECE before temperature | ECE after |",
        "|---|---|---|---|---|---|",
        *(f"| {one.tta} | {one.n} | {_totals(one)} |" for one in (report.evaluation for report in reports)),
        "",
        (
            f"Per class, TTA {scores.tta}; the worst is {worst}, with recall {scores.per_class[worst].recall:.3f} and "
            f"F1 {scores.per_class[worst].f1:.3f}:"
        ),
        "",
        "| class | precision | recall | F1 | n |",
        "|---|---|---|---|---|",
        *(
            f"| {label} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} | {one.n} |"
            for label, one in ((label, scores.per_class[label]) for label in manifest.labels)
        ),
        "",
        "Confusion (rows true, columns called):",
        "",
        "| | " + " | ".join(manifest.labels) + " |",
        "|---" * (len(manifest.labels) + 1) + "|",
        *(
            f"| **{label}** | " + " | ".join(str(int(count)) for count in row) + " |"
            for label, row in zip(manifest.labels, served.confusion, strict=True)
        ),
        "",
        (
            f"ECE is the expected calibration error over {ECE_BINS} equal-width bins. Temperature "
            f"{manifest.temperature}, fitted on {split} without TTA."
        ),
        f"`python -m training evaluate --model {manifest.tag} --data FILE --tta none|flip` prints these figures.",
        "",
    ]


def _exports(split: str, exports: Sequence[ExportRow]) -> list[str]:
    if not exports:
        return []
    return [
        "## Speed",
        "",
        f"Accuracy on {split}; the median time of one face on one thread, on the machine that published the model.",
        "",
        "| network | accuracy | flip TTA | ms | MB |",
        "|---|---|---|---|---|",
        *(
            f"| {one.name} | {one.accuracy:.2%} | {'–' if one.accuracy_flip is None else f'{one.accuracy_flip:.2%}'} "
            f"| {one.ms:.2f} | {one.size_bytes / 1e6:.1f} |"
            for one in exports
        ),
        "",
    ]


def _int8(manifest: EmotionManifest) -> list[str]:
    """The int8 network's figures beside the fp32 network's, and how it was made; nothing when there is none."""
    int8 = manifest.int8
    if int8 is None:
        return []
    rows = [("fp32", scores) for scores in manifest.evaluations] + [("int8", scores) for scores in int8.evaluations]
    weights_mb, int8_mb = (manifest.files[name].size_bytes / 1e6 for name in (WEIGHTS_NAME, INT8_NAME))
    return [
        "## int8",
        "",
        (
            f"`{INT8_NAME}` ({int8_mb:.1f} MB; `{WEIGHTS_NAME}` has {weights_mb:.1f}) is the same network in 8-bit "
            f"arithmetic but for its first and its last layer{_float_layers(int8)}. On the same faces, with the same "
            "temperature:"
        ),
        "",
        "| network | accuracy | macro F1 | ECE before temperature | ECE after |",
        "|---|---|---|---|---|",
        *(f"| {precision}, TTA {scores.tta} | {_totals(scores)} |" for precision, scores in rows),
        "",
        (
            f"* **Calibration**: {int8.calibration.n} faces of {int8.calibration.split}, as many of each class as its "
            f"share; digest of their crops: `{int8.calibration.data_sha256}`. Ranges: {int8.calibration.method}."
        ),
        f"* **Recipe**: `{int8.command}`, {int8.quantiser}.",
        (
            f"* `python -m training evaluate --model {manifest.tag} --data FILE --tta none|flip --precision int8` "
            "prints its figures. They are onnxruntime's: another engine or processor rounds a few faces elsewhere."
        ),
        "",
    ]


def _float_layers(int8: Int8Record) -> str:
    if not int8.float_layers:
        return ""
    names = ", ".join(f"`{name}`" for name in int8.float_layers)
    return f", and {len(int8.float_layers)} more that bear it least ({names})"


def _wild(reports: Sequence[WildReport]) -> list[str]:
    """The whole chain on photographs: totals, recall of each folder, and what the model called neutral faces."""
    if not reports:
        return []
    folders = list(reports[0].recall)
    lines = [
        "## In the wild",
        "",
        (
            "The whole chain on photographs of folders named after an expression: detector, crop, network. No picture "
            "of them was used in training. ± is one standard error."
        ),
        "",
        "| network | pictures | without a face | scored | accuracy | mean confidence | ECE |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {one.precision} | {one.n_pictures} | {one.n_without_face} | {one.n} "
            f"| {one.accuracy:.1%} ± {one.standard_error:.1%} | {one.mean_confidence:.1%} | {one.ece:.1%} |"
            for one in reports
        ),
        "",
        "| recall | " + " | ".join(folders) + " |",
        "|---" * (len(folders) + 1) + "|",
        *(
            f"| {one.precision} | " + " | ".join(f"{one.recall[name]:.1%}" for name in folders) + " |"
            for one in reports
        ),
        "",
    ]
    if neutral := reports[0].called.get("neutral"):
        said = ", ".join(f"{label} {count}" for label, count in neutral.items())
        lines += [f"Neutral faces ({sum(neutral.values())}) were called: {said}.", ""]
    return lines


def _making(manifest: EmotionManifest, complexity: Complexity) -> list[str]:
    record, crop = manifest.training, manifest.face_crop
    rounding = "" if "kernels stored as float32" in record.note else ", kernels stored as float16"
    return [
        "## How it was made",
        "",
        f"* **Data**: {manifest.source}. Digest of the training crops: `{record.data_sha256}`.",
        (f"* **Recipe**: `{record.command}`, digest of the configuration `{record.config_sha256}`; {record.note}."),
        *(f"* **{what}**: {how}" for what, _, how in (line.partition(": ") for line in record.provenance)),
        (
            f"* **Network**: {manifest.architecture.family} {manifest.architecture.options}, "
            f"{complexity.parameters / 1e6:.1f} M parameters, {complexity.macs / 1e6:.0f} M multiply-adds a face"
            f"{rounding}."
        ),
        (
            f"* **Input**: {manifest.input.size_px}×{manifest.input.size_px} px, "
            f"{manifest.input.channels} channel(s), {manifest.input.interpolation}."
        ),
        (
            f"* **Face crop**: a square {crop.scale} times the longer side of the MTCNN box, its centre moved by "
            f"({crop.shift_x}, {crop.shift_y}) of that side."
        ),
        "",
    ]


def _limits(manifest: EmotionManifest) -> list[str]:
    return [
        "## Limits",
        "",
        (
            "* It describes an expression in a picture, **not a person's feelings or intentions**: people smile "
            "without joy and grieve without tears."
        ),
        *_limits_of_the_labels(manifest),
        "* Profiles, covered faces, strong blur and faces under 30 px are read worse.",
        (
            "* The EU prohibits inferring emotions at work and in education, save for medical or safety reasons "
            "(Regulation (EU) 2024/1689, Article 5(1)(f)); elsewhere people exposed to such a system must be told "
            "(Article 50(3))."
        ),
        "",
    ]


def _limits_of_the_labels(manifest: EmotionManifest) -> list[str]:
    """What is known of the labels and faces that the manifest says the model was trained and scored on."""
    named = " ".join([manifest.source, *(scores.split for scores in manifest.evaluations)])
    if "FER+" in named:
        labels = (
            "The labels are the votes of about ten people for each face (FER+: Barsoum et al., 2016). They disagree "
            "about many faces, and a face whose majority is unclear is not in the scores: expect less on faces that "
            "nobody chose."
        )
    elif "FER2013" in named:
        labels = (
            "FER2013's labels come from web searches and are noisy: people who label its pictures afresh agree with "
            "them in about 65 % of the cases (Goodfellow et al., 2013), so much of the distance to 100 % is not the "
            "model's."
        )
    else:
        labels = "Labels of expressions are noisy: people who label the same faces afresh disagree about many."
    faces = (
        "Trained on 48-px grey faces from the web of 2013. Age groups"
        if "FER+" in named or "FER2013" in named
        else "Age groups"
    )
    balance = (
        f"* {faces}, skin tones and cultures are not balanced, and no per-group figures exist: measure on your own "
        "people before you rely on it."
    )
    return [f"* {labels}{_rare_classes(manifest)}", balance]


def _rare_classes(manifest: EmotionManifest) -> str:
    scores = manifest.evaluations[0]
    rare = [label for label in manifest.labels if scores.per_class[label].n < _RARE * scores.n]
    if not rare:
        return ""
    named = " and ".join(f"`{label}` ({scores.per_class[label].n} of {scores.n} faces)" for label in rare)
    return f" Rare in them, and so learned and scored on few faces: {named}."


def _totals(scores: Evaluation) -> str:
    return f"{scores.accuracy:.2%} | {scores.macro_f1:.4f} | {scores.ece_uncalibrated:.2%} | {scores.ece:.2%}"
