"""Pre-activation residual network for small faces (He et al., 2016, "Identity Mappings in Deep Residual Networks")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, around an identity (or strided 1×1) shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        activated = F.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        out: torch.Tensor = residual + self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return out


class PreActResNet(nn.Module):
    """Stages of `PreActBlock`s, halving the resolution from stage to stage, then global average, dropout, linear.

    Widths under 16 crash torch 2.15 in the backward pass on a CPU in channels-last order (seen here; oneDNN's strided
    1×1 convolution), so none are configured.
    `stem_stride` 2 runs the first stage at half resolution, which on 48-px faces costs a quarter of the time.
    """

    def __init__(
        self,
        n_outputs: int,
        in_channels: int,
        *,
        widths: Sequence[int] = (48, 96, 192, 384),
        blocks_per_stage: int = 2,
        stem_stride: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stem_stride, 1, bias=False)
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, width in enumerate(widths):
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(PreActBlock(previous, width, stride))
                previous = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(previous)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(previous, n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, in_channels, S, S) → logits (N, n_outputs)."""
        features = F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))
        logits: torch.Tensor = self.head(self.dropout(features))
        return logits
