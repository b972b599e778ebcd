"""Area resampling from one summed-area table: every pyramid level and every face crop of a picture.

The bins are those of adaptive average pooling, which is what `torch.nn.functional.interpolate(mode="area")` computes
and so what the MTCNN weights expect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handlers.detection.kernels import CENTRE, GAIN, crop_means, summed_area


class AreaPooling:
    """Means over rectangles of one picture, at the cost of four look-ups a cell.

    rgb_u8: uint8 (H, W, 3). The table is uint32 (H + 1, W + 1, 3) and may wrap around; a difference of corners is right
    all the same as long as one cell holds fewer than 2^32 / 255 pixels, which is 16.8 million. `buffer` is where to
    keep it, a flat uint32 array of at least `table_size` numbers.
    """

    def __init__(self, rgb_u8: NDArray[np.uint8], buffer: NDArray[np.uint32] | None = None) -> None:
        self.height, self.width, _ = rgb_u8.shape
        size = table_size(self.height, self.width)
        flat = np.empty(size, np.uint32) if buffer is None else buffer[:size]
        self.table = flat.reshape(self.height + 1, self.width + 1, 3)
        summed_area(np.ascontiguousarray(rgb_u8), self.table)

    def crops_into(self, corners: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Write the centred crops of rectangles, about -1..1, as the networks were trained.

        corners: int64 (N, 4) as left, top, right, bottom with the right and bottom edge excluded, all inside the
        picture, none empty. out: float32 (N, 3, size, size).
        """
        crop_means(self.table, corners, CENTRE, GAIN, out)


def table_size(height: int, width: int) -> int:
    """Numbers in the table of a picture."""
    return (height + 1) * (width + 1) * 3
