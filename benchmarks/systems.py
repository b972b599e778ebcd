"""The systems that are compared, behind one interface: Mien, and what people put together instead of it.

A system is loaded in a process of its own (`benchmarks.workers`), because compute threads are set a process.
"""

from __future__ import annotations

import io
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.timing import turn_ms
from handlers.decode import decode_image
from handlers.pipeline import load_pipeline
from handlers.results import Analysis

CLASSIFIER_INPUT_PX = 224
N_LABELS = 7

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as timm's models expect


class System(ABC):
    """A system and the picture that it is asked about.

    A call is `detect`, from pixels to boxes and landmarks, or `analyze`, from a file's bytes to emotions.
    """

    @abstractmethod
    def detect(self, pictures: Sequence[NDArray[np.uint8]]) -> list[int]:
        """How many faces each picture, uint8 (H, W, 3) RGB, has."""

    @abstractmethod
    def analyze(self, images: Sequence[bytes]) -> list[int]:
        """How many faces of each image have been classified."""

    def prepare(self, image: bytes) -> None:
        """Take this picture for all calls that follow, and warm up on it."""
        self._image, self._rgb_u8 = image, decode_image(image)
        for call in ("detect", "analyze"):
            self.call(call)()

    def call(self, name: str, n_pictures: int = 1) -> Callable[[], list[int]]:
        """`detect` or `analyze` on the picture, as a function."""
        if name == "detect":
            return lambda: self.detect([self._rgb_u8] * n_pictures)
        return lambda: self.analyze([self._image] * n_pictures)

    def n_faces(self, name: str) -> int:
        """What a call finds."""
        return self.call(name)()[0]

    def turn(self, name: str, least_s: float) -> list[float]:
        """Milliseconds of each call, for at least so many seconds."""
        return turn_ms(self.call(name), least_s)

    def window(self, name: str, seconds: float, n_pictures: int, n_threads: int) -> float:
        """Pictures a second over at least so many seconds, by threads that each make calls on so many pictures."""
        call = self.call(name, n_pictures)
        begin = time.perf_counter()
        rates = [0.0] * n_threads

        def work(index: int) -> None:
            n_done = 0
            while (passed := time.perf_counter() - begin) < seconds or not n_done:
                call()
                n_done += n_pictures
            passed = time.perf_counter() - begin
            rates[index] = n_done / passed

        threads = [threading.Thread(target=work, args=(index,)) for index in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)


class Ours(System):
    """Mien's pipeline with its default models."""

    def __init__(self, engine: str, threads: int) -> None:
        self._pipeline = load_pipeline(engine=engine, threads=threads)

    def detect(self, pictures: Sequence[NDArray[np.uint8]]) -> list[int]:
        """See `System.detect`."""
        smallest = [self._pipeline.min_face_size_px] * len(pictures)
        return [len(faces) for faces in self._pipeline.detector.detect_batch(pictures, smallest)]

    def analyze(self, images: Sequence[bytes]) -> list[int]:
        """See `System.analyze`."""
        results = self._pipeline.analyze(images)
        if failures := [result for result in results if not isinstance(result, Analysis)]:
            raise failures[0]
        return [len(result.faces) for result in results if isinstance(result, Analysis)]


class Reference(System):
    """Pillow, `facenet_pytorch.MTCNN` and timm's EfficientNet-B0 in eager torch, put together as one does.

    The classifier has random weights, which take as long as trained ones.
    """

    def __init__(self, threads: int) -> None:
        import timm
        import torch
        from facenet_pytorch import MTCNN

        torch.set_num_threads(threads)
        self._mtcnn = MTCNN(keep_all=True, device="cpu")
        self._classifier = timm.create_model("efficientnet_b0", pretrained=False, num_classes=N_LABELS).eval()

    def detect(self, pictures: Sequence[NDArray[np.uint8]]) -> list[int]:
        """See `System.detect`. Several pictures, of one size, go through MTCNN's batch mode."""
        if len(pictures) == 1:
            boxes, _, _ = self._mtcnn.detect(pictures[0], landmarks=True)
            return [_length(boxes)]
        several, _, _ = self._mtcnn.detect(list(pictures), landmarks=True)
        return [_length(boxes) for boxes in several]

    def analyze(self, images: Sequence[bytes]) -> list[int]:
        """See `System.analyze`."""
        rows = self.probabilities(images)
        return [len(of_picture) for of_picture in rows]

    def probabilities(self, images: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """The rows of each image, float32 (faces, N_LABELS). Several images must be of one size."""
        import torch

        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
        if len(pictures) == 1:
            alone, _, _ = self._mtcnn.detect(pictures[0], landmarks=True)
            boxes_of = [alone]
        else:
            boxes_of, _, _ = self._mtcnn.detect(pictures, landmarks=True)
        crops = [
            picture.crop(tuple(box)).resize((CLASSIFIER_INPUT_PX, CLASSIFIER_INPUT_PX), Image.Resampling.BILINEAR)
            for picture, boxes in zip(pictures, boxes_of, strict=True)
            for box in (() if boxes is None else boxes)
        ]
        rows = np.empty((0, N_LABELS), np.float32)
        if crops:
            inputs = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2)
            mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
            with torch.inference_mode():
                rows = torch.softmax(self._classifier((inputs / 255 - mean) / std), 1).numpy()
        ends = np.cumsum([_length(boxes) for boxes in boxes_of])
        return np.split(rows, ends[:-1])


def _length(boxes: NDArray[np.float32] | None) -> int:
    return 0 if boxes is None else len(boxes)
