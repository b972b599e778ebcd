"""A registered model on disk: the bundle, and beside it what serving runs, each file with its digest.

bundle/    manifest.json, model.safetensors, MODEL_CARD.md, and model.int8.onnx where the bundle carries one
serving/   serving.json, <network>.onnx for each network
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from model_store.bundle import Bundle, open_bundle, verify_files
from model_store.errors import ManifestError, NetworkNotFoundError
from model_store.manifest import (
    INT8_NAME,
    DetectionManifest,
    EmotionManifest,
    FileRecord,
    Record,
    Sha256,
    explain_validation,
)

BUNDLE_FOLDER, SERVING_FOLDER, SERVING_NAME = "bundle", "serving", "serving.json"
SERVING_VERSION = 2
"""Raised when serving needs other files than before: what an older Mien registered is then built anew."""


class NetworkParity(Record):
    """Largest absolute difference between the torch network and its export, over all outputs of all inputs."""

    n_random: int
    n_real: int
    max_abs_difference: float


class Int8Agreement(Record):
    """Largest difference between a probability of the int8 network and of the fp32 export, over real inputs."""

    n_real: int
    max_probability_difference: float


class ServingRecord(Record):
    """What was built at registration, from which bundle, by which exporter, and how well it agrees.

    `int8` is null when the bundle carries no quantised network.
    """

    schema_version: Annotated[int, Field(ge=SERVING_VERSION, le=SERVING_VERSION)]
    bundle_sha256: Sha256
    exporter: str
    parity: dict[str, NetworkParity]
    int8: Int8Agreement | None = None
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class ServableModel:
    """A registered model whose files were all found to be what their records say."""

    bundle: Bundle
    serving: ServingRecord
    serving_folder: Path

    @property
    def manifest(self) -> DetectionManifest | EmotionManifest:
        """The manifest of the bundle."""
        return self.bundle.manifest

    def onnx(self, network: str, precision: Literal["fp32", "int8"] = "fp32") -> Path:
        """The ONNX file of one network: `classifier`, `pnet_tail`, `rnet` or `onet`.

        The int8 file is the bundle's own, not built here. Raises NetworkNotFoundError when the bundle has none.
        """
        if precision == "int8":
            if network != "classifier" or INT8_NAME not in self.manifest.files:
                raise NetworkNotFoundError(f"{self.manifest.tag} has no int8 network {network!r}")
            return self.bundle.folder / INT8_NAME
        return self.serving_folder / f"{network}.onnx"


def open_servable(folder: Path) -> ServableModel:
    """Open a registered model and verify all of it.

    Raises what `open_bundle` raises, and the same errors for the files that registration built.
    """
    bundle = open_bundle(folder / BUNDLE_FOLDER)
    serving = folder / SERVING_FOLDER
    try:
        record = ServingRecord.model_validate_json((serving / SERVING_NAME).read_bytes())
    except OSError as error:
        raise ManifestError(f"{serving / SERVING_NAME}: {error.strerror}") from None
    except ValidationError as error:
        raise ManifestError(f"{serving / SERVING_NAME}: {explain_validation(error)}") from None
    if record.bundle_sha256 != bundle.sha256:
        raise ManifestError(f"{serving / SERVING_NAME}: built from another bundle than the one beside it")
    verify_files(serving, record.files, also=(SERVING_NAME,))
    return ServableModel(bundle, record, serving)
