"""The floor: the bare networks in the engine, with the inputs of one picture already prepared. One thread.

`P-Net whole`, `R-Net`, `O-Net` and `classifier` are what the cascade is by the book, all in float32: P-Net over every
level of the pyramid, the others on as many candidates as the picture has. `P-Net tail`, `screen` and `exact` are the
parts of P-Net that Mien asks the engine for; its first convolution is computed outside the engine, with the pyramid.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
from numpy.typing import NDArray

from handlers.decode import decode_image
from handlers.detection.mtcnn import MtcnnDetector, MtcnnNetworks, pyramid_scales
from handlers.detection.proposals import Stem
from handlers.detection.settings import DetectionSettings
from handlers.detection.tiles import TILE_SHAPE
from handlers.engines import Engine, InputShape, Network
from handlers.pipeline import DetectRequest, Pipeline, detect_pictures
from handlers.preprocess import preprocess
from handlers.results import DetectedPicture
from model_store import registry
from model_store.manifest import EmotionManifest
from model_store.servable import NetworkParity, ServableModel

PNET_WHOLE, PNET_TAIL = "P-Net whole, fp32", "P-Net tail, fp32"
SCREEN, EXACT, RNET, ONET = "P-Net screen, as run", "P-Net exact, as run", "R-Net, fp32", "O-Net, fp32"
ONET_SCREEN, ONET_EXACT = "O-Net screen, as run", "O-Net exact, as run"
CLASSIFIER, CLASSIFIER_INT8 = "classifier, fp32", "classifier, int8"

BY_THE_BOOK = (PNET_WHOLE, RNET, ONET)
AS_RUN = (SCREEN, EXACT, RNET, ONET_SCREEN, ONET_EXACT)

_PNET = "pnet"


class Floor:
    """The networks of the default models, bare.

    networks: the detector's, on this engine. whole: the pipeline that they are measured for. pnet: a registered MTCNN
    with P-Net whole, see `with_whole_pnet`.
    """

    def __init__(self, engine: Engine, networks: MtcnnNetworks, whole: Pipeline, pnet: ServableModel) -> None:
        self._engine, self._networks, self._whole, self._pnet = engine, networks, whole, pnet
        self._tail = engine.load(pnet, "pnet_tail", InputShape(TILE_SHAPE, (1,)))
        self._classifiers = _classifiers(engine, whole)

    def calls(self, image: bytes) -> dict[str, Callable[[], object]]:
        """The runs of each network on what it is asked about this picture."""
        rgb_u8 = decode_image(image)
        asked = self._asked(image)
        proposal = self._networks.proposal
        networks = {
            PNET_TAIL: (self._tail, asked[SCREEN]),
            SCREEN: (proposal.screen, asked[SCREEN]),
            EXACT: (proposal.exact, asked[EXACT]),
            RNET: (self._networks.rnet, asked[RNET]),
            ONET: (self._networks.onet, asked[ONET]),
            ONET_SCREEN: (self._networks.onet_screen or self._networks.onet, asked[ONET_SCREEN]),
            ONET_EXACT: (self._networks.onet, asked[ONET_EXACT]),
        }
        networks |= {name: (network, asked[CLASSIFIER]) for name, network in self._classifiers.items()}
        calls = {name: _on_each(network, batches) for name, (network, batches) in networks.items()}
        return {PNET_WHOLE: self._whole_pnet(*rgb_u8.shape[:2]), **calls}

    def _asked(self, image: bytes) -> dict[str, list[NDArray[np.float32]]]:
        """What each network is asked about a picture, batch by batch."""
        asked: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*AS_RUN, ONET, CLASSIFIER)}

        def recorded(network: Network, name: str) -> Network:
            def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
                asked[name].append(inputs.copy())
                return network(inputs)

            return run

        parts = self._networks.proposal
        networks = replace(
            self._networks,
            proposal=replace(parts, screen=recorded(parts.screen, SCREEN), exact=recorded(parts.exact, EXACT)),
            rnet=recorded(self._networks.rnet, RNET),
            onet=recorded(self._networks.onet, ONET_EXACT),
            onet_screen=self._networks.onet_screen and recorded(self._networks.onet_screen, ONET_SCREEN),
        )
        classifier = self._whole.classifier
        request = DetectRequest(image, self._whole.min_face_size_px, classifier.face_crop, classifier.input)
        (picture,) = detect_pictures(MtcnnDetector(networks), [request], self._whole.limits)
        if not isinstance(picture, DetectedPicture):
            raise picture
        # The candidates that the screen leaves aside belong to the cascade by the book.
        asked[ONET] = asked[ONET_SCREEN] or asked[ONET_EXACT]
        if picture.face_crops:
            asked[CLASSIFIER].append(preprocess(picture.face_crops, classifier.input))
        return asked

    def _whole_pnet(self, height: int, width: int) -> Callable[[], object]:
        """P-Net on noise of the shape of each level of a picture's pyramid; what it sees does not change its time."""
        rng = np.random.default_rng(0)
        levels = []
        for scale in pyramid_scales(height, width, self._whole.min_face_size_px, DetectionSettings()):
            shape = (3, int(height * scale + 1), int(width * scale + 1))
            network = self._engine.load(self._pnet, _PNET, InputShape(shape, (1,)))
            levels.append(_on_each(network, [rng.uniform(-1, 1, (1, *shape)).astype(np.float32)]))
        return lambda: [level() for level in levels]


def with_whole_pnet(model: ServableModel, stem: Stem, folder: Path) -> ServableModel:
    """A registered MTCNN with P-Net whole beside its networks, all in an empty folder.

    P-Net is put together from its stem and its registered tail. Only for measuring: what serves has no such network.
    """
    shutil.copytree(model.serving_folder, folder, dirs_exist_ok=True)
    tail = onnx.load(model.onnx("pnet_tail"))
    whole = onnx.compose.merge_models(_stem_graph(stem, tail), tail, io_map=[("features", tail.graph.input[0].name)])
    onnx.save(whole, folder / f"{_PNET}.onnx")
    unproved = NetworkParity(n_random=0, n_real=0, max_abs_difference=0)
    serving = model.serving.model_copy(update={"parity": model.serving.parity | {_PNET: unproved}})
    return replace(model, serving=serving, serving_folder=folder)


def _stem_graph(stem: Stem, like: onnx.ModelProto) -> onnx.ModelProto:
    """Convolution, PReLU and 2×2 ceil-mode max-pooling: pictures (N, 3, H, W) → features (N, 10, h, w)."""
    nodes = [
        onnx.helper.make_node("Conv", ["picture", "weight", "bias"], ["convolved"]),
        onnx.helper.make_node("PRelu", ["convolved", "slope"], ["bent"]),
        onnx.helper.make_node("MaxPool", ["bent"], ["features"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    ]
    weights = {"weight": stem.weight, "bias": stem.bias, "slope": stem.slope.reshape(-1, 1, 1)}
    graph = onnx.helper.make_graph(
        nodes,
        "stem",
        [onnx.helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, ["n", 3, "height", "width"])],
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n", len(stem.bias), "h", "w"])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return onnx.helper.make_model(graph, ir_version=like.ir_version, opset_imports=like.opset_import)


def _classifiers(engine: Engine, whole: Pipeline) -> dict[str, Network]:
    """The default classifier's network in each precision that it has."""
    model = registry.load_default("emotion-classification")
    if not isinstance(model.manifest, EmotionManifest):
        raise TypeError(f"{model.manifest.tag} is not an emotion classifier")
    size_px = whole.classifier.input.size_px
    shape = InputShape((whole.classifier.input.channels, size_px, size_px))
    networks = {CLASSIFIER: engine.load(model, "classifier", shape)}
    if model.manifest.int8 is not None:
        networks[CLASSIFIER_INT8] = engine.load(model, "classifier", shape, "int8")
    return networks


def _on_each(network: Network, batches: list[NDArray[np.float32]]) -> Callable[[], object]:
    return lambda: [network(batch) for batch in batches]
