"""`make demo`: a real photograph through the running service, and a small folder through the bulk command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from pyarrow.parquet import read_table

from scoring.options import SOME_FILES_FAILED
from service.client import Client
from service.local import StartError, running_service


def main() -> None:
    """Run both parts. Exits with 1 when the service does not start or finds no face."""
    import skimage

    photo = (Path(skimage.__file__).parent / "data" / "astronaut.png").read_bytes()
    print("The astronaut photograph of scikit-image (NASA, public domain), through REST:\n")
    with tempfile.TemporaryDirectory(prefix="mien-demo-") as folder:
        try:
            with running_service(Path(folder) / "service.log", os.environ) as service, Client(service.url) as client:
                body = client.analyze(photo)
        except StartError as error:
            sys.exit(str(error))
    if not body.faces:
        sys.exit("the service found no face")
    print(f"  POST {service.url}/v1/analyze")
    print(f"  model {body.model}, picture {body.width}×{body.height} px")
    for face in body.faces:
        edges = ", ".join(f"{edge} {value:.0f}" for edge, value in face.box)
        print(f"  a face at {edges} px (detection confidence {face.detection_confidence:.4f}): {face.emotion}\n")
        print_probabilities(face.probabilities)

    print("\nA folder made from it, through `python -m scoring` to Parquet:\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="mien-demo-") as folder:
        photos, out = Path(folder) / "photos", Path(folder) / "results"
        photos.mkdir()
        make_folder(photos, photo)
        command = [sys.executable, "-m", "scoring", str(photos), "--output", str(out)]
        code = subprocess.run(command, check=False).returncode
        if code != SOME_FILES_FAILED:  # the corrupt one, and no other
            sys.exit(f"python -m scoring: exit code {code}")
        print("\nIts rows:\n")
        for row in sorted(read_table(out / "parts").to_pylist(), key=lambda row: (row["path"], row["face_index"] or 0)):
            print(f"  {row['path']:20} {describe(row)}")


def make_folder(folder: Path, photo: bytes) -> None:
    """Write the photograph in several guises, a corrupt file and a picture without a face."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    image.save(folder / "1-original.png")
    image.resize((160, 160)).save(folder / "2-small.jpg")
    pair = Image.new("RGB", (1024, 512))
    pair.paste(image, (0, 0))
    pair.paste(ImageOps.mirror(image), (512, 0))
    pair.save(folder / "3-twice.webp")
    upside_down = image.getexif()
    upside_down[0x0112] = 3
    image.rotate(180).save(folder / "4-exif-rotated.jpg", exif=upside_down)
    (folder / "5-corrupt.png").write_bytes(photo[: len(photo) // 2])
    image.crop((350, 350, 512, 512)).save(folder / "6-no-face.png")


def describe(row: dict[str, Any]) -> str:
    """One row of the results for a person."""
    if row["status"] == "error":
        return f"error: {row['error_code']}"
    if row["status"] == "no_face":
        return "no face"
    return f"face {row['face_index']}: {row['emotion']} ({row['confidence']:.2f})"


def print_probabilities(probabilities: dict[str, float]) -> None:
    """A bar for each label, and their sum."""
    for label, value in probabilities.items():
        print(f"  {label:10} {value:7.4f}  {'█' * round(value * 40)}")
    print(f"  {'sum':10} {sum(probabilities.values()):7.4f}")


if __name__ == "__main__":
    main()
