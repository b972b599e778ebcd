"""Fresh weights that let the mobile networks of timm learn from small sets in few epochs."""

from __future__ import annotations

import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import nn


@torch.no_grad()
def draw_small_weights(network: nn.Module) -> None:
    """Draw a network's weights anew from torch's global generator, in place.

    Before batch norm the size of a convolution's weights changes nothing but how far a step of SGD turns them: timm
    draws those of its mobile networks about twice as large (fan-out normal) as torch's own default, which this takes,
    and at usual learning rates they hardly turn. The last batch norm of a residual branch of an EfficientNet or
    MobileNet begins at zero (Goyal et al., 2017), and linear layers begin small: all classes are equally likely.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, InvertedResidual | DepthwiseSeparableConv) and module.has_skip:
            last = module.bn3 if isinstance(module, InvertedResidual) else module.bn2
            nn.init.zeros_(last.weight)
