"""`python -m training fit-crop`: find the face-crop geometry, and check it on photographs."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.manifest import FaceCropSpec
from training.commands.splits import add_split, load_split
from training.config import load_recipe

_CROP_SCALES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    fit = commands.add_parser("fit-crop", help="find the face-crop geometry, and check it on photographs")
    fit.add_argument("--config", type=Path, required=True)
    add_split(fit, "data", "training faces")
    fit.add_argument("--n", type=int, default=2000, help="faces to fit on")
    fit.add_argument("--photos", type=Path, help="<label>/<picture> folders to score geometries on")
    fit.add_argument("--model", default="default", help="the emotion model that scores them")
    fit.set_defaults(run=_fit_crop)


def _fit_crop(options: argparse.Namespace) -> None:
    from handlers.pipeline import load_classifier, load_detector
    from training.face_crop_fit import fit_face_crop, score_crops

    experiment = load_recipe(options.config)[-1]
    faces = load_split(options, "data", experiment.labels, experiment.input)
    detector = load_detector()
    fit = fit_face_crop(detector, faces, options.n)
    print(f"a face found in {fit.n_found} of {fit.n_faces} training crops")
    for name in ("scale", "shift_x", "shift_y"):
        values = getattr(fit, name)
        print(f"{name:8} median {values.median:+.3f}, half of the faces in {values.low:+.3f} … {values.high:+.3f}")
    if options.photos:
        shift_x, shift_y = fit.spec.shift_x, fit.spec.shift_y
        shifts = dict.fromkeys([(0.0, 0.0), (shift_x, shift_y)])
        specs = [fit.spec] + [
            FaceCropSpec(scale=scale, shift_x=x, shift_y=y, alignment="none")
            for x, y in shifts
            for scale in _CROP_SCALES
        ]
        scores, n_missed = score_crops(detector, load_classifier(options.model), options.photos, specs)
        print(f"\nphotographs: {scores[0].n} with a face, {n_missed} without")
        for entry in scores:
            spec = entry.spec
            print(
                f"scale {spec.scale:4.2f}  shift {spec.shift_x:+.2f} {spec.shift_y:+.2f}  accuracy {entry.accuracy:.3f}"
            )
