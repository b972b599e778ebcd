"""Networks of timm (Wightman, 2019), with its pretrained weights or fresh ones, and heads of more than one layer."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from model_store.errors import PretrainedWeightsError


def build_timm(
    n_outputs: int,
    in_channels: int,
    *,
    model: str,
    pretrained: bool = False,
    head_hidden: int | None = None,
    head_dropout: float = 0.0,
    stem_stride: int | None = None,
    **options: Any,
) -> nn.Module:
    """`timm.create_model(model, **options)` with `n_outputs` logits.

    head_hidden: replace the classifier by linear → ReLU → dropout → linear, with so many features between.
    stem_stride: the first convolution's stride, 1 to keep small faces large. Raises PretrainedWeightsError when
    timm cannot fetch the weights, RuntimeError for a model that timm does not know.
    """
    try:
        network: nn.Module = timm.create_model(
            model, pretrained=pretrained, num_classes=n_outputs, in_chans=in_channels, **options
        )
    except Exception as error:
        if not pretrained or not timm.is_model(model):
            raise
        raise PretrainedWeightsError(
            f"{model}: its pretrained weights could not be fetched ({type(error).__name__}: {error}). "
            "They come from a model hub: go online once, fill timm's cache, or train with network.pretrained = false"
        ) from error
    if head_hidden is not None:
        classifier = network.get_classifier()  # type: ignore[operator]
        head = nn.Sequential(
            nn.Linear(classifier.in_features, head_hidden),
            nn.ReLU(),
            nn.Dropout(head_dropout),
            nn.Linear(head_hidden, n_outputs),
        )
        name = next(name for name, module in network.named_modules() if module is classifier)
        network.set_submodule(name, head)
    if stem_stride is not None:
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        first.stride = (stem_stride, stem_stride)
    return network
