"""The MTCNN bundle, made from the weights that the facenet-pytorch package carries.

The three files are pinned by digest below and loaded as plain tensors, never as pickled objects.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from model_store.bundle import Bundle, publish_bundle, verify_files
from model_store.errors import ModelNotFoundError
from model_store.manifest import CARD_NAME, WEIGHTS_NAME, Architecture, DetectionManifest, FileRecord

NAME, VERSION = "mtcnn", "1.0.0"
NETWORKS = ("pnet", "rnet", "onet")
WEIGHTS_LOCK = {
    "pnet.pt": FileRecord(size_bytes=28570, sha256="a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f"),
    "rnet.pt": FileRecord(size_bytes=403147, sha256="bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86"),
    "onet.pt": FileRecord(
        size_bytes=1559269, sha256="165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d"
    ),
}

_CARD = """# MTCNN face detector

The three-stage cascade of Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
Networks" (2016), with the weights that facenet-pytorch 2.6.0 (MIT licence) carries. Nothing was trained here.

* **Data**: WIDER FACE and CelebA, by the paper; the exact recipe of these weights is not published.
* **Output**: boxes, confidences and five landmarks (eyes, nose, corners of the mouth).
* **Agreement**: Mien's cascade is compared with `facenet_pytorch.MTCNN` on the same pictures in its tests.
* **Limits**: upright faces up to about 60° from the front; faces under 20 px are not looked for; strong blur, masks
  and deep shadow are missed; like its training data it finds some groups of people less well than others.
* **Use**: it finds faces and knows no identities.
"""


def publish_mtcnn(root: Path) -> Bundle:
    """Write the MTCNN bundle under `root`.

    Raises ModelNotFoundError when facenet-pytorch is not installed, and the error of `verify_files` when its weight
    files are not the pinned ones.
    """
    import torch
    from safetensors.torch import save

    try:
        package = metadata.distribution("facenet-pytorch")
    except metadata.PackageNotFoundError:
        raise ModelNotFoundError("the MTCNN weights come with the package facenet-pytorch: install it") from None
    data = Path(str(package.locate_file("facenet_pytorch/data")))
    verify_files(data, WEIGHTS_LOCK, also=tuple(path.name for path in data.iterdir()))
    tensors = {}
    for network in NETWORKS:
        for name, tensor in torch.load(data / f"{network}.pt", weights_only=True).items():
            tensors[f"{network}.{name}"] = tensor.contiguous()
    manifest = DetectionManifest(
        schema_version=1,
        name=NAME,
        version=VERSION,
        task="face-detection",
        architecture=Architecture(family="mtcnn", options={}, classifier=None),
        licence="MIT",
        source=f"facenet-pytorch {package.version}",
        weights_source=WEIGHTS_LOCK,
        files={WEIGHTS_NAME: FileRecord(size_bytes=0, sha256="0" * 64)},
    )
    return publish_bundle(root, manifest, {WEIGHTS_NAME: save(tensors), CARD_NAME: _CARD.encode()})
