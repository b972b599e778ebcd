"""`make demo`: a real photograph through the running service, and a small folder through the pipeline."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

from handlers import Analysis, HandlerError, load_pipeline
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

    print("\nA folder made from it, through the pipeline:\n")
    with tempfile.TemporaryDirectory(prefix="mien-demo-") as folder:
        make_folder(Path(folder), photo)
        files = sorted(Path(folder).iterdir())
        results = load_pipeline().analyze([file.read_bytes() for file in files])
        for file, result in zip(files, results, strict=True):
            print(f"  {file.name:24} {describe(result)}")


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


def describe(result: Analysis | HandlerError) -> str:
    """One line for a person."""
    if isinstance(result, HandlerError):
        return f"error {result.code}: {result.detail}"
    faces = ", ".join(f"{face.emotion} ({face.confidence:.2f})" for face in result.faces)
    return f"{len(result.faces)} face{'s' * (len(result.faces) != 1)}{': ' if faces else ''}{faces}"


def print_probabilities(probabilities: dict[str, float]) -> None:
    """A bar for each label, and their sum."""
    for label, value in probabilities.items():
        print(f"  {label:10} {value:7.4f}  {'█' * round(value * 40)}")
    print(f"  {'sum':10} {sum(probabilities.values()):7.4f}")


if __name__ == "__main__":
    main()
