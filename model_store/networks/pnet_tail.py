"""P-Net without its first convolution, which the detector computes while it builds the image pyramid."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def stem_of(pnet: Any) -> nn.Module:
    """P-Net's first convolution, PReLU and pooling: centred pictures (N, 3, H, W) → features (N, 10, h, w)."""
    return nn.Sequential(pnet.conv1, pnet.prelu1, pnet.pool1)


class PNetTail(nn.Module):
    """P-Net from its second convolution on: features (N, 10, h, w) → cells (N, 6, h - 4, w - 4).

    The outputs are the logits of "no face" and "face" and the four box offsets, from one 1×1 convolution instead of
    two: each of its rows is a row of `facenet_pytorch.models.mtcnn.PNet`'s `conv4_1` or `conv4_2`.
    """

    def __init__(self, pnet: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(pnet.conv2, pnet.prelu2, pnet.conv3, pnet.prelu3)
        heads = (pnet.conv4_1, pnet.conv4_2)
        self.head = _pointwise(
            torch.cat([head.weight.data for head in heads]), torch.cat([head.bias.data for head in heads])
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float32 (N, 10, h, w), h and w at least 5 → (N, C, h - 4, w - 4)."""
        cells: torch.Tensor = self.head(self.body(features))
        return cells


class PNetScreen(PNetTail):
    """The same for one number a cell: by how much the logit of "face" exceeds the other, (N, 1, h - 4, w - 4)."""

    def __init__(self, pnet: Any) -> None:
        super().__init__(pnet)
        logits = pnet.conv4_1
        self.head = _pointwise(
            logits.weight.data[1:] - logits.weight.data[:1], logits.bias.data[1:] - logits.bias.data[:1]
        )


def _pointwise(weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    convolution.weight, convolution.bias = nn.Parameter(weight), nn.Parameter(bias)
    return convolution
