from __future__ import annotations

import pytest

from handlers.decode import DecodeLimits
from handlers.detection.mtcnn import MtcnnDetector
from handlers.errors import HandlerError
from handlers.fakes import FakeClassifier
from handlers.pipeline import Pipeline
from handlers.results import Analysis
from tests.handlers.odd_pictures import ODD_PICTURES, OddPicture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on broken TIFF directories


@pytest.fixture(scope="module")
def one(detector: MtcnnDetector, one_face: bytes) -> Analysis:
    (result,) = Pipeline(detector, FakeClassifier()).analyze([one_face])
    assert isinstance(result, Analysis)
    assert len(result.faces) == 1
    return result


@pytest.fixture(scope="module")
def two(detector: MtcnnDetector, two_faces: bytes) -> Analysis:
    (result,) = Pipeline(detector, FakeClassifier()).analyze([two_faces])
    assert isinstance(result, Analysis)
    assert len(result.faces) == 2
    return result


def answer(result: Analysis | HandlerError) -> str | tuple[int, int]:
    return result.code if isinstance(result, HandlerError) else (result.width, result.height)


def test_the_table_is_as_long_as_promised() -> None:
    assert len(ODD_PICTURES) >= 60


@pytest.mark.parametrize("picture", ODD_PICTURES.values(), ids=ODD_PICTURES.keys())
def test_right_answer_alone_and_amid_good_pictures_whose_results_do_not_change(
    detector: MtcnnDetector, one_face: bytes, two_faces: bytes, one: Analysis, two: Analysis, picture: OddPicture
) -> None:
    pipeline = Pipeline(detector, FakeClassifier(), picture.limits)
    data = picture.make()
    (alone,) = pipeline.analyze([data])
    assert answer(alone) == picture.answer
    assert pipeline.analyze([two_faces, data, one_face]) == [two, alone, one]


def test_all_of_them_in_one_batch_answer_in_order(detector: MtcnnDetector, one_face: bytes, one: Analysis) -> None:
    plain = {name: picture for name, picture in ODD_PICTURES.items() if picture.limits == DecodeLimits()}
    small = {name: data for name, picture in plain.items() if len(data := picture.make()) < 1_000_000}
    *results, last = Pipeline(detector, FakeClassifier()).analyze([*small.values(), one_face])
    assert [answer(result) for result in results] == [plain[name].answer for name in small]
    assert last == one
