"""A plain convolutional network for 48-px grey faces, the custom network of many FER2013 projects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class PlainCNN(nn.Module):
    """Blocks of convolution, batch norm and ReLU twice, then max-pooling; global average; two linear layers.

    widths: channels of each block. hidden: width of the first linear layer, which batch norm, ReLU and dropout follow.
    """

    def __init__(
        self,
        n_outputs: int,
        in_channels: int,
        *,
        widths: Sequence[int] = (32, 64, 128),
        hidden: int = 256,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = in_channels
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(previous, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                previous = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(previous, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, in_channels, S, S) → logits (N, n_outputs)."""
        logits: torch.Tensor = self.head(self.dropout(self.hidden(self.features(x).mean((2, 3)))))
        return logits
