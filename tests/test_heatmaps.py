"""Heat maps: the scale of the heat, its place and its colors, names and sizes of a sheet."""
import numpy as np
import pytest
import torch
from PIL import Image

from tools import heatmaps

GRAY = Image.new("RGB", (90, 60), (120, 120, 120))
BARE = 0.85 * 120 / 255  # GRAY without heat: darker


def pixels(picture):
    return np.asarray(picture) / 255  # (height, width, 3), from 0 to 1


def one_hot_cell(y, x, h=4, w=4):
    heat = torch.zeros(h, w)
    heat[y, x] = 1
    return heat


def test_the_peak_has_the_color_of_the_labels_probability():
    low, high = np.array([1.0, 0.1, 0.0]), np.array([1.0, 0.9, 0.2])
    for score in (1.0, 0.36, 0.0):
        # two constant halves: far from their border, the value is that of the map
        halves = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]).expand(4, 6)
        found = pixels(heatmaps.overlay(GRAY, halves, score))
        color = low + (high - low) * score ** 2
        expected = BARE + 0.75 * score * (color - BARE)
        np.testing.assert_allclose(found[30, 85], expected, atol=1.01 / 255)
        np.testing.assert_allclose(found[30, 5], BARE, atol=1.01 / 255)  # below the mean: no heat


def test_scores_and_attention_have_the_same_heat():
    attention = torch.rand(5, 5).softmax(-1) / 5  # sums to 1
    scores = 300 * attention - 7
    a = pixels(heatmaps.overlay(GRAY, attention, 0.8))
    b = pixels(heatmaps.overlay(GRAY, scores, 0.8))
    np.testing.assert_allclose(a, b, atol=1.01 / 255)
    assert a.std() > 0.05


@pytest.mark.parametrize("value", [0.0, 1 / 49, -3.0])
def test_a_constant_map_has_no_heat(value):
    for noise in (0, 1e-9):  # of rounding
        heat = torch.full((7, 7), value) + noise * torch.rand(7, 7)
        found = pixels(heatmaps.overlay(GRAY, heat, 1.0))
        np.testing.assert_allclose(found, BARE, atol=1.01 / 255)


def test_a_photograph_keeps_its_colors_where_there_is_no_heat():
    blue = Image.new("RGB", (80, 80), (40, 80, 200))
    found = pixels(heatmaps.overlay(blue, one_hot_cell(3, 0), 1.0))
    red, green, blue = found[5, 75]
    assert blue > 1.5 * green > 1.5 * red


def test_heat_lies_over_its_cell_without_a_dark_ring():
    image = Image.new("RGB", (200, 300))
    heat = torch.stack([torch.zeros(4, 4), one_hot_cell(3, 0)])  # bottom left
    sheet = heatmaps.contact_sheet(image, heat, [0.7, 0.6], ["0.70 a", "0.60 b"], width=200)
    third = pixels(sheet)[:300, 2 * 208:2 * 208 + 200]  # the tile of b
    y, x = np.unravel_index(third[:, :, 1].argmax(), (300, 200))
    assert y > 300 * 0.75 and x < 200 * 0.25
    np.testing.assert_array_equal(third[:150], 0)
    assert third.min() == 0 and third[299, 0, 0] > 0.4


@pytest.mark.parametrize("index, name", [((), "map"), ((1,), "head 2"), ((0, 3), "layer 1, head 4"),
                                         ((0, 0, 1), "map 1 1 2")])
def test_names_of_heads(index, name):
    assert heatmaps.head_name(index) == name


def test_a_row_for_each_label_and_a_named_column_for_each_head(monkeypatch):
    drawn = []
    plain = heatmaps.tile

    def tile(picture, caption, width):
        drawn.append((caption, pixels(picture)))
        return plain(picture, caption, width)
    monkeypatch.setattr(heatmaps, "tile", tile)
    maps = torch.rand(2, 3, 2, 4, 4)  # layers, heads, labels, h, w
    sheet = heatmaps.contact_sheet(GRAY, maps, [0.9, 0.4], ["0.90 a", "0.40 b"], "x.jpg", 120, True)
    assert sheet.size == (7 * 128, 2 * (80 + 24))
    heads = [f"layer {i}, head {j}" for i in (1, 2) for j in (1, 2, 3)]
    captions = [caption for caption, _ in drawn]
    assert captions == ["0.90 a in x.jpg", *heads, "0.40 b in x.jpg", *heads]
    expected = heatmaps.overlay(GRAY.resize((120, 80)), maps[1, 0, 1], 0.4)
    np.testing.assert_array_equal(drawn[7 + 4][1], pixels(expected))


def test_the_mean_of_layers_and_heads_is_drawn_after_the_photograph():
    maps = torch.rand(2, 3, 5, 4, 4)
    scores = [0.9, 0.8, 0.7, 0.6, 0.5]
    sheet = heatmaps.contact_sheet(GRAY, maps, scores, list("abcde"), "x.jpg", 120)
    assert sheet.size == (4 * 128, 2 * 104)  # two rows
    picture = pixels(sheet)
    np.testing.assert_array_equal(picture[:80, :120], pixels(GRAY.resize((120, 80))))
    expected = heatmaps.overlay(GRAY.resize((120, 80)), maps.mean((0, 1))[4], 0.5)
    np.testing.assert_array_equal(picture[104:184, 128:248], pixels(expected))
    assert picture[104:, 256:].min() == 1  # no tile: white


@pytest.mark.parametrize("size, expected", [((300, 200), (480, 320)), ((200, 300), (480, 720)),
                                            ((90, 200), (324, 720)), ((2000, 4), (480, 16)),
                                            ((1, 4000), (16, 720))])
def test_tiles_keep_the_shape_of_a_photograph_and_fit_a_screen(size, expected):
    image = Image.new("RGB", size)
    sheet = heatmaps.contact_sheet(image, torch.rand(1, 3, 3), [0.9], ["0.90 猫 é"])
    width, height = expected
    assert sheet.size == (2 * 488, height + 40)
    picture = pixels(sheet)
    assert picture[:height, :width].max() == 0 and picture[:height, width:488].min() == 1
