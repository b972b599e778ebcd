from handlers.errors import CorruptImageError, EmptyImageError
from handlers.results import Analysis, Face
from scoring.tally import Tally


def face(emotion: str) -> Face:
    return Face((0, 0, 1, 1), 0.9, ((0, 0),) * 5, emotion, 0.5, {emotion: 1.0})


def test_counts() -> None:
    tally = Tally.of(
        [
            Analysis(1, 1, (face("happy"), face("sad"), face("happy"))),
            Analysis(1, 1, ()),
            CorruptImageError("x"),
            CorruptImageError("y"),
            EmptyImageError("z"),
        ]
    )
    assert (tally.n_inputs, tally.n_faceless, tally.n_failed, tally.n_faces) == (5, 1, 3, 3)
    assert tally.emotions == {"happy": 2, "sad": 1}
    assert tally.errors == {"corrupt_image": 2, "empty_image": 1}


def test_counts_add_up() -> None:
    parts = [
        [Analysis(1, 1, (face("happy"),))],
        [CorruptImageError("x")],
        [Analysis(1, 1, (face("happy"), face("sad")))],
    ]
    total = Tally()
    for part in parts:
        total.add(Tally.of(part))
    assert total == Tally.of(outcome for part in parts for outcome in part)
