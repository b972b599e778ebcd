"""Networks of timm (Wightman, 2019), with its pretrained weights or fresh ones, and heads of more than one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from model_store.errors import PretrainedWeightsError
from model_store.networks.pretrained_weights import weights_overlay


def build_timm(
    n_outputs: int,
    in_channels: int,
    *,
    model: str,
    pretrained: bool = False,
    head_hidden: int | None = None,
    head_dropout: float = 0.0,
    stem_stride: int | None = None,
    strides: Mapping[str, int] | None = None,
    **options: Any,
) -> nn.Module:
    """`timm.create_model(model, **options)` with `n_outputs` logits: (N, in_channels, S, S) → (N, n_outputs).

    pretrained: start from timm's weights for the model's name. Its head is a fresh one, and its first convolution is
    summed over RGB when `in_channels` is 1.
    head_hidden: replace the classifier by linear → ReLU → dropout → linear, with so many features between.
    stem_stride: the first convolution's stride, 1 to keep small faces large; for networks that begin with a padded
    convolution, which a transformer's patches are not.
    strides: the strides of other padded convolutions, by their names (`blocks.0.0.conv_dw`).
    Raises PretrainedWeightsError when the weights are not to be had, ValueError for options that do not fit the
    model or a name with a scheme (`hf-hub:…`), which would let a manifest fetch from anywhere, and what
    timm raises for a model or an option that it does not know.
    """
    if ":" in model:
        raise ValueError(f"model: {model!r} is no plain name of timm's")
    if head_dropout and head_hidden is None:
        raise ValueError("head_dropout: only between the two layers of head_hidden; drop_rate is timm's own")
    if pretrained:
        # Built once without: so a wrong option is told apart from weights that cannot be had.
        timm.create_model(model, num_classes=n_outputs, in_chans=in_channels, **options)
        overlay = weights_overlay(model, options.get("cache_dir"))
        try:
            network: nn.Module = timm.create_model(
                model,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                num_classes=n_outputs,
                in_chans=in_channels,
                **options,
            )
        except Exception as error:
            raise PretrainedWeightsError(
                f"{model}: its pretrained weights could not be loaded ({_one_line(error)})"
            ) from error
    else:
        network = timm.create_model(model, num_classes=n_outputs, in_chans=in_channels, **options)
    if head_hidden is not None:
        _replace_classifier(network, n_outputs, head_hidden, head_dropout)
    if stem_stride is not None:
        _set_stem_stride(network, model, stem_stride)
    for name, stride in (strides or {}).items():
        _set_stride(network, name, stride)
    return network


def _replace_classifier(network: nn.Module, n_outputs: int, hidden: int, dropout: float) -> None:
    classifier = network.get_classifier()  # type: ignore[operator]
    name = next(name for name, module in network.named_modules() if module is classifier)
    head = nn.Sequential(
        nn.Linear(classifier.in_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_outputs)
    )
    network.set_submodule(name, head)


def _set_stem_stride(network: nn.Module, model: str, stride: int) -> None:
    stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if stem.padding == (0, 0):
        raise ValueError(f"stem_stride: {model} begins with patches that may not overlap; choose its patch_size")
    stem.stride = (stride, stride)


def _set_stride(network: nn.Module, name: str, stride: int) -> None:
    convolution = dict(network.named_modules()).get(name)
    if not isinstance(convolution, nn.Conv2d) or convolution.padding == (0, 0):
        raise ValueError(f"strides: the network has no padded convolution {name!r}")
    if stride < 1:
        raise ValueError(f"strides: {name}: {stride} is under 1")
    convolution.stride = (stride, stride)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
