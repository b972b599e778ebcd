"""The model card: what a model is, how it was made, what it scores, and where it must not be trusted."""

from __future__ import annotations

from model_store.manifest import INT8_NAME, WEIGHTS_NAME, EmotionManifest
from training.evaluate import Report


def model_card(manifest: EmotionManifest, reports: list[Report], n_parameters: int) -> str:
    """Markdown. The first report is of serving as it is (no test-time augmentation), in fp32."""
    served = reports[0]
    split = served.evaluation.split
    crop = manifest.face_crop
    return "\n".join(
        [
            f"# {manifest.name} {manifest.version}",
            "",
            f"Says which of {len(manifest.labels)} expressions a face shows: {', '.join(manifest.labels)}.",
            "",
            "## Scores",
            "",
            f"On {split}, which also chose the epoch and the temperature, so expect a little less on new faces.",
            "",
            "| TTA | n | accuracy | macro F1 | ECE before temperature | ECE after |",
            "|---|---|---|---|---|---|",
            *(
                f"| {scores.tta} | {scores.n} | {scores.accuracy:.2%} | {scores.macro_f1:.4f} "
                f"| {scores.ece_uncalibrated:.2%} | {scores.ece:.2%} |"
                for scores in (report.evaluation for report in reports)
            ),
            "",
            f"Per class, TTA {served.evaluation.tta}:",
            "",
            "| class | precision | recall | F1 | n |",
            "|---|---|---|---|---|",
            *(
                f"| {label} | {scores.precision:.3f} | {scores.recall:.3f} | {scores.f1:.3f} | {scores.n} |"
                for label, scores in served.evaluation.per_class.items()
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
                f"ECE is the expected calibration error over 15 equal-width bins. Temperature {manifest.temperature}, "
                f"fitted on {split} without TTA."
            ),
            f"`python -m training evaluate --model {manifest.name} --data FILE --tta none|flip` prints these figures.",
            "",
            *_int8_section(manifest),
            "## How it was made",
            "",
            f"* **Data**: {manifest.source}. Digest of the training crops: `{manifest.training.data_sha256}`.",
            (
                f"* **Recipe**: `{manifest.training.command}`, digest of the configuration "
                f"`{manifest.training.config_sha256}`; {manifest.training.note}. No other data, no pretrained weights."
            ),
            (
                f"* **Network**: {manifest.architecture.family} {manifest.architecture.options}, "
                f"{n_parameters / 1e6:.1f} M parameters, kernels stored as float16."
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
            "## Limits",
            "",
            (
                "* It describes an expression in a picture, **not a person's feelings or intentions**: people smile "
                "without joy and grieve without tears."
            ),
            (
                "* FER2013's labels come from web searches and are noisy: people who label its pictures afresh agree "
                "with them in about 65 % of the cases (Goodfellow et al., 2013), so much of the distance to 100 % is "
                "not the model's. `disgust` is rare in it."
            ),
            (
                "* Trained on 48-px grey faces from the web of 2013. Age groups, skin tones and cultures are not "
                "balanced, and no per-group figures exist: measure on your own people before you rely on it."
            ),
            "* Profiles, covered faces, strong blur and faces under 30 px are read worse.",
            (
                "* The EU prohibits inferring emotions at work and in education, save for medical or safety reasons "
                "(Regulation (EU) 2024/1689, Article 5(1)(f)); elsewhere people exposed to such a system must be told "
                "(Article 50(3))."
            ),
            "",
            f"Licence of the weights: {manifest.licence}.",
            "",
        ]
    )


def _int8_section(manifest: EmotionManifest) -> list[str]:
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
            "arithmetic but for its first and its last layer. On the same faces, with the same temperature:"
        ),
        "",
        "| network | accuracy | macro F1 | ECE before temperature | ECE after |",
        "|---|---|---|---|---|",
        *(
            f"| {precision}, TTA {scores.tta} | {scores.accuracy:.2%} | {scores.macro_f1:.4f} "
            f"| {scores.ece_uncalibrated:.2%} | {scores.ece:.2%} |"
            for precision, scores in rows
        ),
        "",
        (
            f"* **Calibration**: {int8.calibration.n} faces of {int8.calibration.split}, as many of each class as its "
            f"share; digest of their crops: `{int8.calibration.data_sha256}`. Ranges: {int8.calibration.method}."
        ),
        f"* **Recipe**: `{int8.command}`, {int8.quantiser}.",
        (
            f"* `python -m training evaluate --model {manifest.name} --data FILE --tta none|flip --precision int8` "
            "prints its figures. They are onnxruntime's: another engine or processor rounds a few faces elsewhere."
        ),
        "",
    ]
