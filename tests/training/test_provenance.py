from __future__ import annotations

from typing import Any

import pytest

from tests.training.faces import tiny_experiment
from training.config import Experiment
from training.provenance import Provenance

COUNTS = (10, 20, 30, 40, 0, 0, 100)


def said(*changes: dict[str, Any]) -> str:
    return "\n".join(Provenance.of([tiny_experiment(**one) for one in changes or ({},)], COUNTS).as_lines())


def test_every_class_is_counted() -> None:
    text = said()
    assert "Training faces: 200; angry 10 (5.0%), disgust 20 (10.0%)" in text
    assert "sad 0 (0.0%)" in text
    assert "neutral 100 (50.0%)" in text
    with pytest.raises(ValueError):
        Provenance.of([tiny_experiment()], (1, 2))


def test_a_plain_recipe_has_neither_teachers_nor_votes() -> None:
    text = said()
    assert "the label (100%); cross-entropy loss." in text
    assert "fresh weights" in text
    for word in ("distillation", "FER+", "smoothing", "mixup", "Stage", "timm"):
        assert word not in text


def test_teachers_votes_and_what_is_left_to_the_label() -> None:
    text = said(
        {
            "targets": {
                "teachers": ["big:1.0.0", "wide:2.1.0"],
                "teacher_weight": 0.35,
                "temperature": 1.5,
                "votes": 0.3,
                "label_smoothing": 0.1,
            },
            "augment": {"mixup": 0.5, "cutmix": 0.25},
        }
    )
    assert "the label (35%)" in text
    assert "distillation from big:1.0.0 and wide:2.1.0 at temperature 1.5 (35%)" in text
    assert "votes, translated to these labels (30%)" in text
    assert "label smoothing 0.1" in text
    assert "mixup on 50% of the batches and cutmix on 25% of the batches" in text


def test_imbalance_and_ferplus_are_said() -> None:
    text = said(
        {
            "loss": {"kind": "class-balanced-focal", "class_weights": "balanced", "sampler": "weighted"},
            "data": {"labels_from": "ferplus-majority"},
        }
    )
    assert "the majority of FER+'s annotators (100%)" in text
    assert "class-balanced-focal loss with balanced class weights, weighted sampler." in text


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"network__init_bundle": "big:1.0.0"}, "the weights of big:1.0.0"),
        (
            {"network": {"family": "timm", "classifier": "fc.weight", "pretrained": True, "options": {"model": "x"}}},
            "pretrained weights of timm",
        ),
    ],
)
def test_what_it_started_from(network: dict[str, Any], words: str) -> None:
    text = said(network)
    assert words in text
    assert "fresh" not in text


def test_stages_are_told_apart() -> None:
    stages = [{"optim__epochs": 40}, {"optim__epochs": 10, "optim__max_lr": 0.01}]
    text = said(*stages)
    assert "Stage 1 of 2: 40 epochs of sgd, batch 16, learning rate one-cycle up to 0.1" in text
    assert "Stage 2 of 2: 10 epochs of sgd, batch 16, learning rate one-cycle up to 0.01" in text
    for stage in stages:
        assert tiny_experiment(**stage).sha256() in text


def test_where_later_stages_start_is_said_when_it_is_not_the_stage_before() -> None:
    plain = tiny_experiment()

    def starting(**start: Any) -> Experiment:
        return plain.model_copy(update={"network": plain.network.model_copy(update=start)})

    stages = [
        starting(init_bundle="big:1.0.0"),
        plain,
        starting(init_bundle="wide:1.0.0"),
        starting(init_stages=(0, 1, 3)),
    ]
    text = "\n".join(Provenance.of(stages, COUNTS).as_lines())
    assert text.count("Start") == 3
    assert "Start of stage 3: the weights of wide:1.0.0." in text
    assert "Start of stage 4: the mean of the weights of big:1.0.0, stage 1, stage 3." in text
    assert "Start: the weights of big:1.0.0." in text
