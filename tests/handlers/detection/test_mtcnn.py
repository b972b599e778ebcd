from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.decode import decode_image
from handlers.detection import largest_first
from handlers.detection.kernels import MAX_LEVEL_WIDTH_PX
from handlers.detection.mtcnn import MOST_REFINED, MtcnnDetector, MtcnnNetworks, load_networks, pyramid_scales
from handlers.detection.proposals import MOST_CANDIDATES, MOST_CELLS
from handlers.detection.reference import ReferenceDetector
from handlers.detection.screening import LOGIT_MARGIN
from handlers.detection.settings import DetectionSettings
from handlers.engines import Network, choose_engine
from handlers.results import Detection
from model_store.servable import ServableModel
from tests.boxes import overlap
from tests.handlers.composites import composite
from tests.handlers.detection.parity import Reference
from tests.handlers.face_scenes import face_patch, place_faces, scene
from tests.pictures import noise


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def astronaut(astronaut_png: bytes) -> np.ndarray:
    return decode_image(astronaut_png)


@pytest.fixture(scope="module")
def networks(mtcnn_model: ServableModel) -> MtcnnNetworks:
    return load_networks(choose_engine(), mtcnn_model)


def areas(faces: Sequence[Detection]) -> list[float]:
    return [(f.box_px[2] - f.box_px[0]) * (f.box_px[3] - f.box_px[1]) for f in faces]


def test_astronaut_has_a_face_with_its_landmarks_in_place(detector: MtcnnDetector, astronaut: np.ndarray) -> None:
    (face,) = detector.detect(astronaut, 20)
    left, top, right, bottom = face.box_px
    assert 150 < left < right < 310
    assert 30 < top < bottom < 230
    left_eye, right_eye, nose, mouth_left, mouth_right = face.landmarks_px
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_eye[1] < nose[1] < mouth_left[1]
    assert mouth_left[0] < mouth_right[0]


def test_faces_come_largest_first(detector: MtcnnDetector, astronaut_png: bytes) -> None:
    found = [areas(detector.detect(scene(astronaut_png, seed), 20)) for seed in range(20)]
    assert found == [sorted(each, reverse=True) for each in found]
    assert {0, 1, 2, 3} <= {len(each) for each in found}


def test_reference_detector_is_the_reference(
    mtcnn_model: ServableModel, reference: Reference, two_faces: bytes
) -> None:
    pixels = decode_image(two_faces)
    ours = ReferenceDetector(mtcnn_model)
    assert ours.detect(pixels, 20) == reference.detect(pixels)
    assert ours.detect(noise(19, 19), 20) == []
    assert ours.detect(np.zeros((60, 60, 3), np.uint8), 20) == []


@pytest.mark.parametrize(
    "shape", [(1, 1), (11, 11), (19, 400), (400, 19), (3, 5000), (1, 20)], ids=lambda shape: "×".join(map(str, shape))
)
def test_picture_smaller_than_the_smallest_face_has_none(detector: MtcnnDetector, shape: tuple[int, int]) -> None:
    assert pyramid_scales(*shape, 20, DetectionSettings()) == []
    assert detector.detect(noise(*shape), 20) == []


@pytest.mark.parametrize("shape", [(20, 20), (20, 33), (21, 900), (64, 64)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_picture_has_no_face(detector: MtcnnDetector, shape: tuple[int, int], value: int) -> None:
    assert detector.detect(np.full((*shape, 3), value, np.uint8), 20) == []


def recording(networks: MtcnnNetworks) -> tuple[MtcnnNetworks, dict[str, list[int]]]:
    """The networks, and the sizes of the batches that each is asked about."""
    asked: dict[str, list[int]] = {"screen": [], "exact": [], "rnet": [], "onet": [], "onet_screen": []}

    def recorded(name: str, network: Network) -> Network:
        def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            asked[name].append(len(inputs))
            return network(inputs)

        return run

    proposal = replace(
        networks.proposal,
        screen=recorded("screen", networks.proposal.screen),
        exact=recorded("exact", networks.proposal.exact),
    )
    onet_screen = networks.onet_screen and recorded("onet_screen", networks.onet_screen)
    rnet, onet = recorded("rnet", networks.rnet), recorded("onet", networks.onet)
    return MtcnnNetworks(proposal, rnet, onet, onet_screen), asked


def test_no_network_is_asked_about_nothing(networks: MtcnnNetworks, astronaut: np.ndarray) -> None:
    recorded, asked = recording(replace(networks, onet_screen=None))
    detector = MtcnnDetector(recorded)
    pictures = [np.full((64, 64, 3), 90, np.uint8), astronaut, *(noise(60, 80, seed) for seed in range(20))]
    assert [len(detector.detect(picture, 20)) for picture in pictures[:2]] == [0, 1]
    for picture in pictures[2:]:
        detector.detect(picture, 20)
    assert min(min(sizes, default=1) for sizes in asked.values()) >= 1
    assert len(asked["screen"]) == len(pictures)
    # Every kind of early end was seen.
    assert len(asked["onet"]) < len(asked["rnet"]) <= len(asked["exact"]) < len(pictures)


def test_candidates_of_all_pictures_go_through_the_later_networks_together(
    networks: MtcnnNetworks, astronaut_png: bytes
) -> None:
    recorded, asked = recording(replace(networks, onet_screen=None))
    pictures = [scene(astronaut_png, seed) for seed in (1, 2, 3)]
    MtcnnDetector(recorded).detect_batch(pictures, [20] * 3)
    assert [len(asked[name]) for name in ("screen", "exact")] == [3, 3]
    together = {name: list(asked[name]) for name in ("rnet", "onet")}
    for sizes in together.values():  # only the last batch is not full
        assert set(sizes[:-1]) <= {64}
        assert 0 < sizes[-1] <= 64
    asked["rnet"].clear()
    for picture in pictures:
        MtcnnDetector(recorded).detect(picture, 20)
    assert sum(asked["rnet"]) == sum(together["rnet"])
    assert len(asked["rnet"]) > len(together["rnet"])


def test_each_pictures_candidates_for_o_net_are_bounded_and_its_neighbours_keep_theirs(
    networks: MtcnnNetworks, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, asked = recording(replace(networks, onet_screen=None))
    (alone,) = MtcnnDetector(recorded).detect(astronaut, 20)
    n_alone = sum(asked["onet"])
    asked["onet"].clear()
    monkeypatch.setattr("handlers.detection.mtcnn.MOST_REFINED", n_alone)

    crowded, (face,), crowded_too = MtcnnDetector(recorded).detect_batch(
        [composite(7), astronaut, composite(176)], [20] * 3
    )

    assert sum(asked["onet"]) == 3 * n_alone
    assert 1 <= len(crowded) <= n_alone
    assert 1 <= len(crowded_too) <= n_alone
    assert_same_faces([face], [alone])


def test_the_candidates_that_r_net_finds_best_are_those_that_o_net_sees(
    networks: MtcnnNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NDArray[np.float32]] = []

    def onet(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        seen.extend(inputs.copy())
        return networks.onet(inputs)

    detector = MtcnnDetector(replace(networks, onet=onet, onet_screen=None))
    detector.detect(composite(7), 20)
    everything = np.stack(seen)
    seen.clear()
    monkeypatch.setattr("handlers.detection.mtcnn.MOST_REFINED", 20)
    detector.detect(composite(7), 20)

    assert len(everything) > 100
    np.testing.assert_array_equal(np.stack(seen), everything[:20])


def test_a_crowded_picture_comes_to_no_more_than_a_quarter_of_the_bounds(networks: MtcnnNetworks) -> None:
    recorded, asked = recording(replace(networks, onet_screen=None))

    faces = MtcnnDetector(recorded).detect(composite(7), 20)

    assert len(faces) > 20
    assert sum(asked["exact"]) <= MOST_CELLS / 4
    assert sum(asked["rnet"]) <= MOST_CANDIDATES / 4
    assert sum(asked["onet"]) <= MOST_REFINED / 4


@pytest.mark.slow
def test_a_picture_full_of_tiny_faces_comes_to_no_more_than_the_bounds(
    networks: MtcnnNetworks, astronaut_png: bytes
) -> None:
    recorded, asked = recording(replace(networks, onet_screen=None))
    patch = np.asarray(face_patch(astronaut_png, 30).convert("RGB"))
    picture = np.tile(patch, (1920 // patch.shape[0], 2560 // patch.shape[1], 1))

    faces = MtcnnDetector(recorded).detect(picture, 20)

    assert [sum(asked[name]) for name in ("exact", "rnet", "onet")] == [MOST_CELLS, MOST_CANDIDATES, MOST_REFINED]
    assert 1 < len(faces) <= MOST_REFINED


@pytest.fixture(scope="module")
def screening(networks: MtcnnNetworks) -> MtcnnNetworks:
    if networks.onet_screen is None:
        pytest.skip("needs an engine and a processor with bfloat16")
    return networks


def test_o_nets_screen_is_within_its_margin_on_candidates(screening: MtcnnNetworks) -> None:
    seen: list[NDArray[np.float32]] = []

    def onet(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        seen.append(inputs.copy())
        return screening.onet(inputs)

    detector = MtcnnDetector(replace(screening, onet=onet, onet_screen=None))
    detector.detect_batch([composite(seed) for seed in (1, 3, 5, 7, 20, 33)], [20] * 6)
    candidates = np.concatenate(seen)
    exact, screened = (
        np.log(np.maximum(network(candidates)[2], 1e-7).astype(np.float64)) @ (-1, 1)
        for network in (screening.onet, screening.onet_screen)
        if network is not None
    )
    told_apart = np.abs(exact) < 12  # beyond, float32 has no probabilities to take a logit of
    assert told_apart.sum() > 150
    assert np.abs(screened - exact)[told_apart].max() < LOGIT_MARGIN


def test_o_nets_screen_changes_no_face_wherever_it_is_used(
    screening: MtcnnNetworks, astronaut_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.detection.mtcnn._SCREEN_FROM", 1)
    monkeypatch.setattr("handlers.detection.mtcnn._SCREEN_DUPLICATES", 1)
    (plain, n_plain), (screened, n_screened) = (
        recording(each) for each in (replace(screening, onet_screen=None), screening)
    )
    pictures = [*(scene(astronaut_png, seed) for seed in range(10)), *map(composite, range(1, 9))]
    for picture in pictures:
        assert_same_faces(MtcnnDetector(screened).detect(picture, 20), MtcnnDetector(plain).detect(picture, 20))
    n_candidates = sum(n_plain["onet"])
    assert sum(n_screened["onet_screen"]) == n_candidates > 300
    assert 0 < sum(n_screened["onet"]) < n_candidates


def test_scales_fall_by_the_factor_until_the_cell_covers_the_picture() -> None:
    scales = pyramid_scales(200, 300, 20, DetectionSettings())
    assert scales[0] == 0.6
    np.testing.assert_allclose(np.divide(scales[1:], scales[:-1]), 0.709)
    assert 12 <= 200 * scales[-1] < 12 / 0.709


@pytest.mark.parametrize("shape", [(3000, 1000), (1000, 3000), (900, 1200)])
def test_large_picture_is_searched_as_if_shrunk_to_the_limit(shape: tuple[int, int]) -> None:
    settings = DetectionSettings(max_side_px=600)
    shrink = 600 / max(shape)
    scales = pyramid_scales(*shape, 20, settings)
    shrunk = pyramid_scales(round(shape[0] * shrink), round(shape[1] * shrink), 20, settings)
    np.testing.assert_allclose(scales, np.array(shrunk) * shrink)


def test_picture_up_to_the_limit_is_searched_as_it_is() -> None:
    for limit in (500, 2560):
        settings = DetectionSettings(max_side_px=limit)
        assert pyramid_scales(500, 400, 20, settings) == pyramid_scales(500, 400, 20, DetectionSettings())
    assert pyramid_scales(500, 400, 20, DetectionSettings(max_side_px=499))[0] < 12 / 20


@pytest.mark.parametrize("longer", [1600, 1601, 2559, 2560, 5003, 16_384])
@pytest.mark.parametrize("smallest", [12, 13, 19, 20])
@pytest.mark.parametrize("max_side_px", [2560, 65_535])
def test_no_level_is_wider_than_the_kernel_takes(longer: int, smallest: int, max_side_px: int) -> None:
    scales = pyramid_scales(longer, 700, smallest, DetectionSettings(max_side_px=max_side_px))
    assert int(longer * scales[0] + 1) <= MAX_LEVEL_WIDTH_PX
    assert scales[0] <= 12 / smallest


def test_factor_makes_the_pyramid_finer() -> None:
    scales = pyramid_scales(200, 300, 20, DetectionSettings(pyramid_factor=0.9))
    np.testing.assert_allclose(np.divide(scales[1:], scales[:-1]), 0.9)
    assert len(scales) > 2 * len(pyramid_scales(200, 300, 20, DetectionSettings()))


def test_large_picture_still_has_its_large_faces(
    networks: MtcnnNetworks, detector: MtcnnDetector, astronaut_png: bytes
) -> None:
    pixels = place_faces(
        900, 700, [(face_patch(astronaut_png, 400), 20, 40), (face_patch(astronaut_png, 50), 560, 700)]
    )
    limited = MtcnnDetector(networks, DetectionSettings(max_side_px=200))
    everything, (large,) = detector.detect(pixels, 20), limited.detect(pixels, 20)
    assert len(everything) == 2
    assert overlap(large.box_px, everything[0].box_px) > 0.85


@pytest.mark.parametrize("stage", range(3))
def test_thresholds_are_of_p_net_r_net_and_o_net(
    networks: MtcnnNetworks, detector: MtcnnDetector, astronaut_png: bytes, stage: int
) -> None:
    """A stage that lets nothing pass is the last that is asked, and one that lets more pass asks the next for more."""
    picture, defaults = scene(astronaut_png, 3), DetectionSettings().thresholds
    assert detector.detect(picture, 20)

    def asked_with(threshold: float) -> tuple[int, list[int]]:
        recorded, asked = recording(replace(networks, onet_screen=None))
        thresholds = (*defaults[:stage], threshold, *defaults[stage + 1 :])
        faces = MtcnnDetector(recorded, DetectionSettings(thresholds=thresholds)).detect(picture, 20)
        return len(faces), [sum(asked[name]) for name in ("exact", "rnet", "onet")]

    (n_faces, loose), (_, usual), (n_strict, strict) = map(asked_with, (0.3, defaults[stage], 1 - 1e-9))
    assert n_strict == 0
    assert strict[stage + 1 :] == [0] * (2 - stage)
    assert strict[1 : stage + 1] == usual[1 : stage + 1]
    if stage < 2:
        assert loose[stage + 1] > usual[stage + 1] > 0
    assert n_faces >= len(detector.detect(picture, 20))


def test_last_threshold_is_the_least_confidence_of_a_face(networks: MtcnnNetworks) -> None:
    pictures = [composite(seed) for seed in (5, 6, 7, 8)]

    def confidences(threshold: float) -> list[float]:
        settings = DetectionSettings(thresholds=(0.6, 0.7, threshold))
        found = MtcnnDetector(networks, settings).detect_batch(pictures, [20] * len(pictures))
        return [face.confidence for faces in found for face in faces]

    everything, sure = confidences(0.05), confidences(0.99)
    assert min(everything) < 0.7
    assert min(sure) > 0.99
    assert len(sure) < len(everything)


def test_min_face_size_leaves_out_the_smaller_faces(detector: MtcnnDetector, astronaut_png: bytes) -> None:
    pixels = place_faces(
        400, 500, [(face_patch(astronaut_png, 220), 10, 60), (face_patch(astronaut_png, 50), 380, 120)]
    )
    large, small = detector.detect(pixels, 20)
    assert small.box_px[2] - small.box_px[0] < 60 < large.box_px[2] - large.box_px[0]
    (only,) = detector.detect(pixels, 80)
    assert overlap(only.box_px, large.box_px) > 0.85
    assert detector.detect(pixels, 399) == []


def test_threads_find_what_one_thread_finds(detector: MtcnnDetector, astronaut_png: bytes) -> None:
    scenes = [scene(astronaut_png, seed) for seed in range(8)]
    sizes = [20, 40] * 4
    alone = [detector.detect(pixels, size) for pixels, size in zip(scenes, sizes, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, scenes * 2, sizes * 2))
    assert together == alone * 2


def assert_same_faces(found: Sequence[Detection], expected: Sequence[Detection]) -> None:
    """The networks may round differently in a batch of another size; nothing else may differ."""
    assert len(found) == len(expected)
    for face, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(face.box_px, other.box_px, atol=0.01)
        np.testing.assert_allclose(face.landmarks_px, other.landmarks_px, atol=0.01)
        assert face.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_batch_is_each_picture_alone(detector: MtcnnDetector, astronaut: np.ndarray, astronaut_png: bytes) -> None:
    """Pictures of mixed sizes, with and without faces, too small for a level, and with a smallest face each."""
    flat = np.full((64, 90, 3), 200, np.uint8)
    scenes = [scene(astronaut_png, seed) for seed in range(12)]
    pictures = [flat, *scenes[:5], noise(5, 400), flat, astronaut, noise(90, 70), *scenes[5:], flat]
    sizes = [20, 12, 40, 20, 100, 25] * 4
    batch = detector.detect_batch(pictures, sizes[: len(pictures)])
    assert len(batch) == len(pictures)
    assert sum(bool(faces) for faces in batch) >= 8
    for found, picture, size in zip(batch, pictures, sizes, strict=False):
        assert_same_faces(found, detector.detect(picture, size))


def test_batch_of_nothing_is_nothing(detector: MtcnnDetector) -> None:
    assert detector.detect_batch([], []) == []


def test_batch_without_any_face_has_a_result_for_each_picture(detector: MtcnnDetector) -> None:
    flat = np.full((64, 64, 3), 200, np.uint8)
    assert detector.detect_batch([flat, noise(5, 5), noise(60, 80, 3)], [20] * 3) == [[], [], []]


def test_each_picture_of_a_batch_has_its_own_smallest_face(detector: MtcnnDetector, astronaut_png: bytes) -> None:
    pixels = place_faces(
        400, 500, [(face_patch(astronaut_png, 220), 10, 60), (face_patch(astronaut_png, 50), 380, 120)]
    )
    sizes = [399, 20, 80, 399, 20]
    assert [len(faces) for faces in detector.detect_batch([pixels] * 5, sizes)] == [0, 2, 1, 0, 2]


def test_as_many_sizes_as_pictures_are_needed(detector: MtcnnDetector, astronaut: np.ndarray) -> None:
    with pytest.raises(ValueError, match="zip"):
        detector.detect_batch([astronaut, astronaut], [20])


def test_reference_detector_takes_batches_too(mtcnn_model: ServableModel, two_faces: bytes) -> None:
    pixels, reference = decode_image(two_faces), ReferenceDetector(mtcnn_model)
    batch = reference.detect_batch([pixels, noise(9, 9), pixels], [20, 20, 100])
    assert batch == [reference.detect(pixels, 20), [], reference.detect(pixels, 100)]
    assert [len(faces) for faces in batch] == [2, 0, 1]


@pytest.mark.parametrize("view", ["mirrored", "upside down", "grey in three channels"])
def test_picture_may_lie_in_memory_in_any_way(detector: MtcnnDetector, astronaut: np.ndarray, view: str) -> None:
    pictures = {
        "mirrored": astronaut[:, ::-1],
        "upside down": astronaut[::-1],
        "grey in three channels": np.broadcast_to(astronaut[:, :, :1], astronaut.shape),
    }
    assert detector.detect(pictures[view], 40) == detector.detect(pictures[view].copy(), 40)


def test_picture_is_left_as_it_was(detector: MtcnnDetector, astronaut: np.ndarray) -> None:
    pixels = astronaut.copy()
    pixels.flags.writeable = False
    detector.detect(pixels, 40)
    np.testing.assert_array_equal(pixels, astronaut)


def test_largest_comes_first_and_equals_by_confidence() -> None:
    boxes = [((0, 0, 2, 2), 0.9), ((0, 0, 3, 3), 0.7), ((5, 5, 8, 8), 0.8)]
    faces = [Detection(box, confidence, ()) for box, confidence in boxes]
    assert [face.confidence for face in largest_first(faces)] == [0.8, 0.7, 0.9]
