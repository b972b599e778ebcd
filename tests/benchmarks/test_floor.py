from pathlib import Path

import numpy as np
import pytest

from benchmarks.anatomy import Anatomy
from benchmarks.floor import AS_RUN, BY_THE_BOOK, CLASSIFIER, with_whole_pnet
from benchmarks.scenes import small_scenes
from benchmarks.stages import STAGES
from handlers.detection.mtcnn import load_networks
from handlers.engines import InputShape, choose_engine
from model_store import registry


@pytest.mark.parametrize("size", [(12, 12), (13, 40), (57, 34)])
def test_p_net_put_together_is_the_whole_p_net(store: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    import torch

    from model_store.networks import load_networks as load_torch_networks

    engine = choose_engine("onnxruntime")
    model = registry.load_default("face-detection")
    whole = with_whole_pnet(model, load_networks(engine, model).proposal.stem, tmp_path)
    network = engine.load(whole, "pnet", InputShape((3, *size)))
    inputs = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    (outputs,) = network(inputs)
    with torch.no_grad():
        offsets, probabilities = load_torch_networks(model.bundle)["pnet"](torch.from_numpy(inputs))
    np.testing.assert_allclose(outputs[:, 2:], offsets.numpy(), atol=1e-4)
    face = 1 / (1 + np.exp(outputs[:, 0] - outputs[:, 1]))
    np.testing.assert_allclose(face, probabilities[:, 1].numpy(), atol=1e-4)


@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_a_picture_is_taken_apart_on_any_engine(store: Path, tmp_path: Path, engine: str) -> None:
    anatomy = Anatomy(engine, tmp_path)
    anatomy.prepare(small_scenes()[0].jpeg)
    floor = anatomy.floor(0)
    assert {*AS_RUN, *BY_THE_BOOK, CLASSIFIER} <= set(floor)
    assert all(ms > 0 for values in floor.values() for ms in values)
    assert [tuple(stages) for stages in anatomy.stages(0)] == [STAGES]
    assert anatomy.counts()["faces"] == 2
