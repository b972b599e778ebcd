import time
from pathlib import Path

import pytest

from benchmarks.scenes import small_scenes
from benchmarks.stages import (
    BOXES,
    CLASSIFY,
    COUNTS,
    FACES,
    O_SCREENED,
    ONET_SCREEN,
    REST,
    STAGES,
    TILES,
    StageClock,
    StagedPipeline,
)
from handlers import pipeline as pipeline_module
from handlers.decode import decode_image
from handlers.detection.mtcnn import load_networks
from handlers.engines import choose_engine
from handlers.pipeline import load_pipeline
from model_store import registry

(SCENE,) = small_scenes()
# O-Net is screened on processors with bfloat16 only.
ABSENT = set() if choose_engine().has_bf16 else {ONET_SCREEN, O_SCREENED}


@pytest.fixture(scope="module")
def staged(store: Path) -> StagedPipeline:
    networks = load_networks(choose_engine(), registry.load_default("face-detection"))
    return StagedPipeline(networks, load_pipeline())


def test_every_stage_of_a_picture_with_faces_takes_time_and_they_add_up(staged: StagedPipeline) -> None:
    started = time.perf_counter()
    stage_ms, _ = staged.analyze(SCENE.jpeg)
    whole_ms = (time.perf_counter() - started) * 1000
    assert tuple(stage_ms) == STAGES
    assert {name for name, ms in stage_ms.items() if ms <= 0} == ABSENT & set(STAGES)
    assert sum(stage_ms.values()) <= whole_ms


def test_candidates_are_counted_at_every_stage(staged: StagedPipeline) -> None:
    staged.analyze(SCENE.jpeg)
    _, counts = staged.analyze(SCENE.jpeg)
    assert tuple(counts) == COUNTS
    assert counts[FACES] == SCENE.n_faces
    from_cells_on = [counts[name] for name in COUNTS if name not in {TILES, *ABSENT}]
    assert from_cells_on == sorted(from_cells_on, reverse=True)
    assert counts[TILES] >= 1


def test_nothing_stays_replaced(staged: StagedPipeline) -> None:
    staged.analyze(SCENE.jpeg)
    assert pipeline_module.decode_image is decode_image


def test_a_picture_that_cannot_be_read_is_not_timed(staged: StagedPipeline) -> None:
    with pytest.raises(pipeline_module.HandlerError):
        staged.analyze(b"no picture")


def test_a_stage_is_without_the_stages_inside_it() -> None:
    clock = StageClock()
    started = time.perf_counter()
    with clock.stage(REST):
        with clock.stage(CLASSIFY), clock.stage(BOXES):
            time.sleep(0.02)
        with clock.stage(BOXES):
            time.sleep(0.02)
    passed = time.perf_counter() - started
    assert clock.seconds[BOXES] >= 0.04
    assert sum(clock.seconds.values()) <= passed
    assert clock.seconds[REST] + clock.seconds[CLASSIFY] <= passed - clock.seconds[BOXES]
