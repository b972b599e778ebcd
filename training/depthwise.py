"""The weight gradient of depthwise convolutions on a CPU, in numba: up to sixty times as fast as torch's on small maps.

With it a MobileNet or EfficientNet learns from faces of 48 px faster on one thread; `python -m
benchmarks.training_speed` shows by how much. The layers hold the same parameters under the same names, and compute
what torch computes, to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types
from numpy.typing import NDArray
from torch import nn
from torch.autograd.function import once_differentiable

from handlers.compiling import compiled

_FEWEST_CHANNELS = 64
"""Below, torch's own gradient is faster: the inner loop over the channels is too short."""


def quicken_depthwise(network: nn.Module) -> None:
    """Replace the depthwise convolutions of a network on the CPU, in place; their parameters are kept.

    What has few channels, dilation, several outputs a channel or padding other than zeros stays torch's.
    """
    for name, module in list(network.named_modules()):
        if type(module) is nn.Conv2d and _is_plain_depthwise(module):
            network.set_submodule(name, DepthwiseConv2d.of(module))


def _is_plain_depthwise(convolution: nn.Conv2d) -> bool:
    return (
        _FEWEST_CHANNELS <= convolution.groups == convolution.in_channels == convolution.out_channels
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d`: float32 (N, C, H, W) → (N, C, H', W').

    It computes on one thread. Under autocast it stays in float32, input and result: depthwise convolutions are slower
    in bfloat16 on a CPU.
    """

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> DepthwiseConv2d:
        """With the very parameters of `convolution`."""
        own = cls(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            groups=convolution.groups,
            bias=convolution.bias is not None,
            device="meta",
        )
        own.weight, own.bias = convolution.weight, convolution.bias
        return own.train(convolution.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """See the class."""
        result: torch.Tensor = _Depthwise.apply(input, self.weight, self.stride, self.padding)
        return result if self.bias is None else result + self.bias.view(1, -1, 1, 1)


class _Depthwise(torch.autograd.Function):
    """Forward pass and the input's gradient are torch's."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, picture: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(picture, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(picture, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        picture, weight = ctx.saved_tensors
        to_picture = to_weight = None
        if ctx.needs_input_grad[0]:
            to_picture, _, _ = torch.ops.aten.convolution_backward(
                gradient, picture, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), len(weight),
                (True, False, False),
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            sums = np.zeros((*weight.shape[2:], len(weight)), np.float32)
            (row_stride, column_stride), (row_padding, column_padding) = ctx.stride, ctx.padding
            _add_weight_gradient(
                _by_place(picture),
                _by_place(gradient),
                row_stride,
                column_stride,
                row_padding,
                column_padding,
                sums,
            )
            to_weight = torch.from_numpy(sums).permute(2, 0, 1).unsqueeze(1)
        return to_picture, to_weight, None, None


def _by_place(maps: torch.Tensor) -> NDArray[np.float32]:
    """(N, C, H, W) → (N, H, W, C), without a copy where the memory is channels-last."""
    array: NDArray[np.float32] = maps.detach().permute(0, 2, 3, 1).contiguous().numpy()
    return array


_MAPS = types.Array(types.float32, 4, "C")


@compiled(
    types.void(_MAPS, _MAPS, types.int64, types.int64, types.int64, types.int64, types.Array(types.float32, 3, "C"))
)
def _add_weight_gradient(
    picture: NDArray[np.float32],
    gradient: NDArray[np.float32],
    row_stride: int,
    column_stride: int,
    row_padding: int,
    column_padding: int,
    sums: NDArray[np.float32],
) -> None:
    """Add to `sums` (h, w, C) what `picture` (N, H, W, C) under each tap times `gradient` (N, H', W', C) sums up to."""
    n_pictures, height, width, _ = picture.shape
    for n in range(n_pictures):
        for row in range(gradient.shape[1]):
            for column in range(gradient.shape[2]):
                given = gradient[n, row, column]
                for i in range(sums.shape[0]):
                    y = row * row_stride - row_padding + i
                    if y < 0 or y >= height:
                        continue
                    for j in range(sums.shape[1]):
                        x = column * column_stride - column_padding + j
                        if x < 0 or x >= width:
                            continue
                        total, seen = sums[i, j], picture[n, y, x]
                        for channel in range(total.shape[0]):
                            total[channel] += given[channel] * seen[channel]
