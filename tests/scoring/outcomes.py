"""Made-up outcomes for tests of what is written: no pictures, no models."""

from __future__ import annotations

import numpy as np

from handlers.errors import CorruptImageError, TooLargeError
from handlers.results import Analysis, Face
from scoring.config import RunConfig, resolve_config
from scoring.errors import WorkerDiedError
from scoring.parts import Entry, Outcome, Part

NASTY_PATHS = (
    "plain.jpg",
    "with space, comma and 'quotes'.jpg",
    'a "quoted" name.jpg',
    "two\nlines.jpg",
    "carriage\rreturn\r\n.jpg",
    "tab\tand \\backslash\\n.jpg",
    "=cmd|' /C calc'!A0.jpg",
    "gesichter/größe/😀.jpg",
    "line\u2028separator\u0085.jpg",
    "no-utf8-\udcff.jpg",
    " leading and trailing ",
    "null",
    "NULL",
    '"',
)


def fake_config(**changes: object) -> RunConfig:
    return resolve_config("fake", **changes)  # type: ignore[arg-type]


def face(labels: tuple[str, ...], seed: int = 0) -> Face:
    random = np.random.default_rng(seed)
    left, top, right, bottom = (float(value) for value in random.uniform(-20, 700, 4))
    numbers = [float(value) for value in random.dirichlet(np.ones(len(labels)))]
    probabilities = dict(zip(labels, numbers, strict=True))
    emotion = max(labels, key=lambda label: probabilities[label])
    points = tuple((float(x), float(y)) for x, y in random.uniform(0, 700, (5, 2)))
    confidence = float(random.uniform())
    return Face((left, top, right, bottom), confidence, points, emotion, probabilities[emotion], probabilities)


def made_up(paths: tuple[str, ...], labels: tuple[str, ...]) -> tuple[tuple[Entry, ...], list[Outcome]]:
    """An entry and an outcome a path: in turn one face, none, three faces, and one of three errors."""
    errors = (CorruptImageError("cut off"), TooLargeError("too many bytes"), WorkerDiedError("ended its worker"))
    outcomes: list[Outcome] = []
    for index in range(len(paths)):
        n_faces = (1, 0, 3, None)[index % 4]
        if n_faces is None:
            outcomes.append(errors[index // 4 % 3])
        else:
            faces = tuple(face(labels, 10 * index + place) for place in range(n_faces))
            outcomes.append(Analysis(640 + index, 480, faces))
    return tuple(Entry(path, 1, "") for path in paths), outcomes


def made_up_part(
    paths: tuple[str, ...], labels: tuple[str, ...], fingerprint: str = "0" * 32
) -> tuple[Part, list[Outcome]]:
    entries, outcomes = made_up(paths, labels)
    return Part(0, fingerprint, entries), outcomes
