from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from handlers.detection.area_pooling import AreaPooling
from handlers.detection.kernels import MAX_LEVEL_WIDTH_PX, patches_of, pnet_features
from handlers.detection.mtcnn import pyramid_scales
from handlers.detection.proposals import (
    SCREEN_MARGIN,
    ProposalNetworks,
    Proposals,
    Stem,
    boxes_of_cells,
    load_proposal_networks,
)
from handlers.detection.settings import DetectionSettings
from handlers.detection.tiles import BAND_ROWS, REACH, TILE_COLUMNS, TILE_SHAPE, TileLayout
from handlers.engines import Network, choose_engine
from model_store.export import MAX_ABS_DIFFERENCE
from model_store.networks import load_networks, served_networks
from model_store.servable import ServableModel
from tests.handlers.composites import composite
from tests.handlers.detection.test_tiles import every_cell, every_position
from tests.pictures import noise

THRESHOLD = 0.6
LOGIT = math.log(THRESHOLD / (1 - THRESHOLD))
SETTINGS = DetectionSettings()

Level = tuple[int, int]


@pytest.fixture(scope="module")
def networks(mtcnn_model: ServableModel) -> ProposalNetworks:
    return load_proposal_networks(choose_engine(), mtcnn_model)


@pytest.fixture(scope="module")
def pnet(mtcnn_model: ServableModel) -> nn.Module:
    return load_networks(mtcnn_model.bundle)["pnet"]


def scales_of(picture: NDArray[np.uint8], min_face_size_px: int = 20) -> list[float]:
    return pyramid_scales(picture.shape[0], picture.shape[1], min_face_size_px, SETTINGS)


def levels_of(picture: NDArray[np.uint8], scales: list[float]) -> list[Level]:
    """Rows and columns of the pyramid's levels in pixels, as facenet-pytorch makes them."""
    return [(int(picture.shape[0] * scale + 1), int(picture.shape[1] * scale + 1)) for scale in scales]


def centred_level(picture: NDArray[np.uint8], level: Level) -> torch.Tensor:
    """A level of the pyramid as facenet-pytorch makes it, in float64: (1, 3, H, W)."""
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].double()
    return (interpolate(image, level, mode="area") - 127.5) * 0.0078125


@torch.no_grad()
def expected_features(pnet: Any, picture: NDArray[np.uint8], level: Level) -> NDArray[np.float32]:
    """P-Net's first convolution, PReLU and pooling by torch: float32 (10, h, w)."""
    stem = nn.Sequential(pnet.conv1, pnet.prelu1, pnet.pool1)
    return stem(centred_level(picture, level).float())[0].numpy()


def features_in_tiles(
    picture: NDArray[np.uint8], levels: list[Level], stem: Stem
) -> tuple[NDArray[np.float32], TileLayout]:
    """The features of the levels as tiles, NaN where nothing was written."""
    layout = TileLayout([((height - 1) // 2, (width - 1) // 2) for height, width in levels])
    tiles = np.full((layout.n_tiles, *TILE_SHAPE), np.nan, np.float32)
    table = AreaPooling(picture).table
    for (height, width), start in zip(levels, layout.starts, strict=True):
        pnet_features(table, height, width, stem.weight, stem.bias, stem.slope, tiles, start, REACH)
    return tiles, layout


def assert_tiles_hold_the_levels(
    networks: ProposalNetworks, pnet: nn.Module, picture: NDArray[np.uint8], levels: list[Level]
) -> None:
    """Every cell is there once, and sees exactly the features that it would see if its level went through whole."""
    tiles, layout = features_in_tiles(picture, levels, networks.stem)
    cells, positions = layout.cells(every_position(layout))
    expected = [expected_features(pnet, picture, level) for level in levels]
    assert [tuple(cell) for cell in cells.tolist()] == every_cell([each.shape[1:] for each in expected])
    side = REACH + 1
    patches = np.empty((len(cells), 10, side, side), np.float32)
    patches_of(tiles, positions, patches)
    for index, features in enumerate(expected):
        windows = np.lib.stride_tricks.sliding_window_view(features, (side, side), axis=(1, 2))
        windows = windows.transpose(1, 2, 0, 3, 4).reshape(-1, 10, side, side)
        np.testing.assert_allclose(patches[cells[:, 0] == index], windows, atol=2e-5, rtol=0)


@pytest.mark.parametrize("seed", range(30))
def test_random_levels_are_torchs(networks: ProposalNetworks, pnet: nn.Module, seed: int) -> None:
    """Levels smaller and larger than the picture, odd and even, over borders of bands and tiles."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 200, 2))
    levels = [(int(rows), int(columns)) for rows, columns in rng.integers(12, 110, (int(rng.integers(1, 6)), 2))]
    assert_tiles_hold_the_levels(networks, pnet, noise(height, width, seed), levels)


@pytest.mark.parametrize("height", [12, 13])
@pytest.mark.parametrize("width", [12, 13])
def test_smallest_levels_are_torchs(networks: ProposalNetworks, pnet: nn.Module, height: int, width: int) -> None:
    assert_tiles_hold_the_levels(networks, pnet, noise(37, 41), [(height, width)])
    assert_tiles_hold_the_levels(networks, pnet, noise(5, 3), [(height, width), (12, 12), (width, height)])


@pytest.mark.parametrize("width", [MAX_LEVEL_WIDTH_PX - 2, MAX_LEVEL_WIDTH_PX - 1, MAX_LEVEL_WIDTH_PX])
def test_widest_levels_are_torchs(networks: ProposalNetworks, pnet: nn.Module, width: int) -> None:
    assert_tiles_hold_the_levels(networks, pnet, noise(60, 2600), [(15, width), (41, width), (12, 700)])


def test_tallest_level_is_torchs(networks: ProposalNetworks, pnet: nn.Module) -> None:
    assert_tiles_hold_the_levels(networks, pnet, noise(2600, 40), [(MAX_LEVEL_WIDTH_PX, 13), (800, 12)])


@pytest.mark.parametrize("rows", [BAND_ROWS, BAND_ROWS + 1, 2 * BAND_ROWS - 1])
@pytest.mark.parametrize("columns", [TILE_COLUMNS - REACH, TILE_COLUMNS, TILE_COLUMNS + 1])
def test_levels_that_end_at_the_border_of_a_band_or_a_tile(
    networks: ProposalNetworks, pnet: nn.Module, rows: int, columns: int
) -> None:
    """rows, columns: of cells, so the level has 2·(n + REACH) + 1 or 2 pixels."""
    levels = [(2 * (rows + REACH) + 1, 2 * (columns + REACH) + 2), (2 * (rows + REACH) + 2, 2 * columns + 9), (13, 20)]
    assert_tiles_hold_the_levels(networks, pnet, noise(90, 310, rows), levels)


def test_pyramid_of_a_picture_whose_table_wraps_around_is_torchs(networks: ProposalNetworks, pnet: nn.Module) -> None:
    picture = np.full((4200, 4200, 3), 255, np.uint8)
    picture[-600:, -900:] = noise(600, 900)
    assert_tiles_hold_the_levels(networks, pnet, picture, [(90, 91), (45, 44)])


class Recorder:
    """A network that remembers what it was asked and what it said."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.inputs: list[NDArray[np.float32]] = []
        self.outputs: list[NDArray[np.float32]] = []

    def __call__(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        (outputs,) = self._network(inputs)
        self.inputs.append(inputs.copy())
        self.outputs.append(outputs)
        return (outputs,)


def pass_everything(tiles: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    return (np.full((len(tiles), 1, BAND_ROWS, TILE_COLUMNS), 99, np.float32),)


def pass_nothing(tiles: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    return (np.full((len(tiles), 1, BAND_ROWS, TILE_COLUMNS), -99, np.float32),)


@pytest.fixture
def every_cell_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifts the bound, for screens that pass everything."""
    monkeypatch.setattr("handlers.detection.proposals.MOST_CELLS", 10**9)


@pytest.mark.usefixtures("every_cell_is_looked_at")
@pytest.mark.parametrize(
    "shape", [(60, 80), (101, 75), (21, 300), (160, 161)], ids=lambda shape: "×".join(map(str, shape))
)
@torch.no_grad()
def test_every_cell_of_every_level_is_p_nets(
    networks: ProposalNetworks, pnet: nn.Module, shape: tuple[int, int]
) -> None:
    picture = noise(*shape)
    scales = scales_of(picture, 12)
    exact = Recorder(networks.exact)
    Proposals(replace(networks, screen=pass_everything, exact=exact))(AreaPooling(picture), scales, 0.6)
    (outputs,) = exact.outputs
    start = 0
    for level in levels_of(picture, scales):
        offsets, probabilities = pnet(centred_level(picture, level).float())
        n_cells = probabilities[0, 1].numel()
        ours = outputs[start : start + n_cells, :, 0, 0]
        start += n_cells
        np.testing.assert_allclose(1 / (1 + np.exp(ours[:, 0] - ours[:, 1])), probabilities[0, 1].flatten(), atol=1e-5)
        np.testing.assert_allclose(ours[:, 2:], offsets[0].flatten(1).T, atol=1e-4)
    assert start == len(outputs)


@pytest.mark.usefixtures("every_cell_is_looked_at")
def test_tail_run_whole_over_the_tiles_is_what_it_is_cell_by_cell(
    networks: ProposalNetworks, mtcnn_model: ServableModel
) -> None:
    picture = composite(7)
    scales = scales_of(picture)
    tiles, layout = features_in_tiles(picture, levels_of(picture, scales), networks.stem)
    cells, positions = layout.cells(every_position(layout))
    exact = Recorder(networks.exact)
    Proposals(replace(networks, screen=pass_everything, exact=exact))(AreaPooling(picture), scales, 0.6)
    with torch.no_grad():
        dense = served_networks(mtcnn_model.bundle)["pnet_tail"].network(torch.from_numpy(np.nan_to_num(tiles))).numpy()
    tile, row, column = positions.T
    assert len(exact.outputs[0]) == len(cells)
    np.testing.assert_allclose(exact.outputs[0][:, :, 0, 0], dense[tile, :, row, column], atol=MAX_ABS_DIFFERENCE)


@torch.no_grad()
def test_screen_is_within_its_margin_on_pictures_with_faces(
    networks: ProposalNetworks, mtcnn_model: ServableModel
) -> None:
    tail = served_networks(mtcnn_model.bundle)["pnet_screen"].network
    n_over = 0
    for seed in range(0, 40, 2):
        picture = composite(seed)
        tiles, layout = features_in_tiles(picture, levels_of(picture, scales_of(picture)), networks.stem)
        tiles = np.nan_to_num(tiles)
        tile, row, column = layout.cells(every_position(layout))[1].T
        exact = tail(torch.from_numpy(tiles)).numpy()[tile, 0, row, column]
        screened = networks.screen(tiles)[0][tile, 0, row, column]
        assert np.abs(screened - exact).max() < SCREEN_MARGIN
        n_over += int((exact >= LOGIT).sum())
    assert n_over > 1000


def boxes_with(networks: ProposalNetworks, picture: NDArray[np.uint8], **changes: Network) -> NDArray[np.float32]:
    return Proposals(replace(networks, **changes))(AreaPooling(picture), scales_of(picture), THRESHOLD)


@pytest.mark.usefixtures("every_cell_is_looked_at")
@pytest.mark.parametrize("seed", range(6))
def test_screen_changes_no_box(networks: ProposalNetworks, seed: int) -> None:
    picture = composite(seed)
    boxes, expected = boxes_with(networks, picture), boxes_with(networks, picture, screen=pass_everything)
    assert boxes.shape == expected.shape
    np.testing.assert_allclose(boxes, expected, atol=1e-3, rtol=0)


def test_no_cell_over_the_threshold_is_no_box(networks: ProposalNetworks) -> None:
    exact = Recorder(networks.exact)
    for changes in ({"screen": pass_nothing, "exact": exact}, {"exact": exact}):
        picture = np.full((80, 100, 3), 90, np.uint8)
        boxes = boxes_with(networks, picture, **changes)
        assert (boxes.shape, boxes.dtype) == ((0, 4), np.float32)
    assert exact.inputs == []


def test_of_too_many_cells_the_best_by_the_screen_are_looked_at(
    networks: ProposalNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def face_logits() -> NDArray[np.float32]:
        exact = Recorder(networks.exact)
        boxes_with(networks, composite(7), exact=exact)
        (outputs,) = exact.outputs
        return outputs[:, 1, 0, 0] - outputs[:, 0, 0, 0]

    everything = face_logits()
    monkeypatch.setattr("handlers.detection.proposals.MOST_CELLS", 500)
    looked_at = face_logits()

    assert len(everything) > 2000
    assert len(looked_at) == 500
    assert looked_at.min() > np.sort(everything)[-500] - 2 * SCREEN_MARGIN
    places = [int(np.abs(everything - logit).argmin()) for logit in looked_at]
    assert places == sorted(places)  # level by level and row by row, as before


@pytest.mark.parametrize("most", [1, 100, 600])
def test_of_too_many_candidates_the_best_stay(
    networks: ProposalNetworks, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    everything = boxes_with(networks, composite(7))
    monkeypatch.setattr("handlers.detection.proposals.MOST_CANDIDATES", most)

    boxes = boxes_with(networks, composite(7))

    assert len(everything) > 600
    np.testing.assert_array_equal(boxes, everything[:most])


def test_what_an_earlier_picture_left_in_the_tiles_changes_nothing(networks: ProposalNetworks) -> None:
    kept = Proposals(networks)
    for seed in (7, 1, 8, 7, 9, 5):
        picture = composite(seed)
        arguments = AreaPooling(picture), scales_of(picture), THRESHOLD
        np.testing.assert_array_equal(kept(*arguments), Proposals(networks)(*arguments))


def test_cells_become_boxes_of_the_picture() -> None:
    boxes = boxes_of_cells(np.array([[0, 2, 3], [1, 2, 3], [1, 0, 0]]), np.array([0.5, 0.25, 0.25], np.float32))
    assert boxes.tolist() == [[14, 10, 36, 32], [28, 20, 72, 64], [4, 4, 48, 48]]
    assert boxes_of_cells(np.empty((0, 3), np.int64), np.empty(0, np.float32)).shape == (0, 4)
