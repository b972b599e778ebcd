"""The torch networks that a manifest can name, in one place for training, export and the torch engine.

torch is imported only when a network is built: nothing that serves through onnxruntime pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_store.bundle import Bundle
from model_store.errors import ManifestError, PretrainedWeightsError, UnsafeWeightsError, WeightsMismatchError
from model_store.manifest import Architecture, DetectionManifest, EmotionManifest

if TYPE_CHECKING:
    from torch import nn


def _preact_resnet(n_outputs: int, in_channels: int, options: dict[str, Any], pretrained: bool) -> nn.Module:
    from model_store.networks.preact_resnet import PreActResNet

    return PreActResNet(n_outputs, in_channels, **options)


def _timm(n_outputs: int, in_channels: int, options: dict[str, Any], pretrained: bool) -> nn.Module:
    from model_store.networks.timm_networks import build_timm

    return build_timm(n_outputs, in_channels, pretrained=pretrained, **options)


def _plain_cnn(n_outputs: int, in_channels: int, options: dict[str, Any], pretrained: bool) -> nn.Module:
    from model_store.networks.plain_cnn import PlainCNN

    return PlainCNN(n_outputs, in_channels, **options)


BUILDERS: dict[str, Callable[[int, int, dict[str, Any], bool], nn.Module]] = {
    "preact-resnet": _preact_resnet,
    "plain-cnn": _plain_cnn,
    "timm": _timm,
}


def build_classifier(
    architecture: Architecture, n_outputs: int, in_channels: int, *, pretrained: bool = False
) -> nn.Module:
    """A classifier with fresh weights: float32 (N, in_channels, S, S) → logits (N, n_outputs).

    pretrained: start the backbone from timm's weights, see `build_timm`; the other families have none.
    Raises ManifestError for an unknown family or options that the family does not take, PretrainedWeightsError when
    there are no such weights, or when they cannot be had.
    """
    builder = BUILDERS.get(architecture.family)
    if builder is None:
        known = ", ".join(sorted(BUILDERS))
        raise ManifestError(f"architecture.family: {architecture.family!r} is none of {known}")
    if pretrained and architecture.family != "timm":
        raise PretrainedWeightsError(f"a {architecture.family} has no pretrained weights; the timm family has")
    try:
        return builder(n_outputs, in_channels, dict(architecture.options), pretrained)
    except PretrainedWeightsError:
        raise
    except Exception as error:  # the options go to constructors of other libraries, which check them as they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ManifestError(f"architecture.options: {reason}") from error


def build_networks(manifest: DetectionManifest | EmotionManifest) -> dict[str, nn.Module]:
    """The manifest's networks by name, with fresh weights: `classifier`, or the cascade's `pnet`, `rnet`, `onet`."""
    if isinstance(manifest, EmotionManifest):
        n_outputs = len(manifest.labels)
        return {"classifier": build_classifier(manifest.architecture, n_outputs, manifest.input.channels)}
    if manifest.architecture.family != "mtcnn":
        raise ManifestError(f"architecture.family: {manifest.architecture.family!r} is not mtcnn")
    from facenet_pytorch.models import mtcnn

    return {
        "pnet": mtcnn.PNet(pretrained=False),
        "rnet": mtcnn.RNet(pretrained=False),
        "onet": mtcnn.ONet(pretrained=False),
    }


def load_networks(bundle: Bundle) -> dict[str, nn.Module]:
    """The bundle's networks by name, with its weights, in evaluation mode on the CPU.

    Raises WeightsMismatchError when the weights do not fit the architecture that the manifest names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(bundle.weights)
    except SafetensorError as error:
        raise UnsafeWeightsError(f"{bundle.weights}: not a safetensors file ({error})") from None
    networks = build_networks(bundle.manifest)
    for name, network in networks.items():
        prefix = f"{name}." if len(networks) > 1 else ""
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise WeightsMismatchError(f"{bundle.manifest.tag}: {error}") from None
        network.eval()
    return networks


@dataclass(frozen=True)
class ServedNetwork:
    """What registration exports. `stem` is the part before it that serving computes itself, or nothing."""

    network: nn.Module
    stem: nn.Module | None = None


def served_networks(bundle: Bundle) -> dict[str, ServedNetwork]:
    """`classifier`; or the cascade's `rnet`, `onet`, and P-Net from its second convolution on, twice: see `pnet_tail`.

    Raises WeightsMismatchError, see `load_networks`.
    """
    networks = load_networks(bundle)
    served = {name: ServedNetwork(network) for name, network in networks.items() if name != "pnet"}
    if "pnet" in networks:
        from model_store.networks.pnet_tail import PNetScreen, PNetTail, stem_of

        pnet = networks["pnet"]
        stem = stem_of(pnet).eval()
        served["pnet_tail"] = ServedNetwork(PNetTail(pnet).eval(), stem)
        served["pnet_screen"] = ServedNetwork(PNetScreen(pnet).eval(), stem)
    return served
