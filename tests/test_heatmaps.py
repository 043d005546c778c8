"""Heat maps: the scale of the heat, its place and its colors, names and sizes of a sheet."""
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torchvision.transforms.v2.functional import to_pil_image

from tools import heatmaps

GRAY = Image.new("RGB", (90, 60), (120, 120, 120))
BARE = 0.9 * 120 / 255  # GRAY without heat: darker


def pixels(picture):
    return np.asarray(picture) / 255  # (height, width, 3), from 0 to 1


def one_hot_cell(y, x, h=4, w=4):
    heat = torch.zeros(h, w)
    heat[y, x] = 1
    return heat


def test_the_peak_has_the_color_of_the_labels_probability():
    low, high = np.array([1.0, 0.0, 0.6]), np.array([1.0, 0.9, 0.2])
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


def test_heat_lies_over_its_cell_inside_an_outline():
    black = Image.new("RGB", (200, 300))
    heat = one_hot_cell(3, 0)  # bottom left
    found = pixels(heatmaps.overlay(black, heat, 0.6))
    red, green, blue = found.transpose(2, 0, 1)
    np.testing.assert_array_equal(found[:150], 0)
    assert red[299, 0] > blue[299, 0] > green[299, 0] > 0  # heat 0.6
    white = found.min(2) > 0.7  # its strength is 0.4 + 0.6 * 0.6
    rows, columns = np.nonzero(white)
    assert 200 < rows.min() < 240 and 35 < columns.max() < 75  # about the border of the cell
    np.testing.assert_allclose(green[white], 0.76, atol=0.02)


def test_an_outline_is_seen_on_white_and_missing_below_a_tenth():
    white = Image.new("RGB", (480, 480), "white")
    heat = one_hot_cell(1, 1)
    for score, darkest in ((1.0, 0.0), (0.5, 0.3 * 0.9), (0.1, 0.54 * 0.9)):
        found = pixels(heatmaps.overlay(white, heat, score)).max(2)
        assert found.min() == pytest.approx(darkest, abs=0.03)
        assert 300 < (found < 0.9 * 0.9).sum() < 2000  # a line of 2 pixels
    found = pixels(heatmaps.overlay(white, heat, 0.09)).max(2)
    assert found.min() > 0.89


@pytest.mark.parametrize("index, name", [((), "map"), ((1,), "head 2"), ((0, 3), "layer 1, head 4"),
                                         ((0, 0, 1), "map 1 1 2")])
def test_names_of_heads(index, name):
    assert heatmaps.head_name(index) == name


def test_a_row_for_each_label_and_a_named_column_for_each_head(monkeypatch):
    drawn = []
    plain = heatmaps.tile

    def tile(picture, caption, width, verdict=""):
        drawn.append((caption, verdict, pixels(picture)))
        return plain(picture, caption, width, verdict)
    monkeypatch.setattr(heatmaps, "tile", tile)
    maps = torch.rand(2, 3, 2, 4, 4)  # layers, heads, labels, h, w
    sheet = heatmaps.contact_sheet(GRAY, maps, [0.9, 0.4], ["a", "b"], ["right", ""], "x.jpg", 120,
                                   True)
    assert sheet.size == (7 * 136, 2 * (80 + 30) + 60)
    heads = [(f"layer {i}, head {j}", "") for i in (1, 2) for j in (1, 2, 3)]
    captions = [(caption, verdict) for caption, verdict, _ in drawn]
    assert captions == [("a 0.90 in x.jpg", "right"), *heads, ("b 0.40 in x.jpg", ""), *heads]
    expected = heatmaps.overlay(GRAY.resize((120, 80)), maps[1, 0, 1], 0.4)
    np.testing.assert_array_equal(drawn[7 + 4][2], pixels(expected))


def test_the_mean_of_layers_and_heads_is_drawn_after_the_photograph():
    maps = torch.rand(2, 3, 4, 4, 4)
    scores = [0.9, 0.8, 0.7, 0.6]
    verdicts = ["right", "", "", "missed"]
    sheet = heatmaps.contact_sheet(GRAY, maps, scores, list("abcd"), verdicts, "x.jpg", 120)
    assert sheet.size == (3 * 136, 2 * 110 + 60)  # five tiles: three and two
    picture = pixels(sheet)
    np.testing.assert_array_equal(picture[:80, :120], pixels(GRAY.resize((120, 80))))
    expected = heatmaps.overlay(GRAY.resize((120, 80)), maps.mean((0, 1))[3], 0.6)
    np.testing.assert_array_equal(picture[110:190, 136:256], pixels(expected))
    np.testing.assert_allclose(picture[80:110, 100:120].reshape(-1, 3).std(0), 0)  # no badge
    for badge, verdict in ((picture[85, 255], "right"), (picture[195, 255], "missed")):
        color = ImageColor.getrgb(heatmaps.VERDICTS[verdict])
        np.testing.assert_allclose(badge, np.array(color) / 255)
    assert picture[110:220, 272:].min() == 1  # no tile: white


@pytest.mark.parametrize("labels, columns, rows", [(1, 2, 1), (3, 4, 1), (4, 3, 2), (5, 3, 2),
                                                   (6, 4, 2), (9, 4, 3)])
def test_columns_leave_few_gaps(labels, columns, rows):
    maps = torch.rand(labels, 3, 3)
    texts = ["x"] * labels
    sheet = heatmaps.contact_sheet(GRAY, maps, [0.5] * labels, texts, [""] * labels, "", 60)
    assert sheet.size == (columns * 76, rows * 70 + 40)


@pytest.mark.parametrize("verdict", ["right", "wrong", "missed", "below threshold"])
def test_a_verdict_has_its_color_and_is_not_covered_by_a_long_name(verdict):
    for caption in ("a", 50 * "a long name"):
        found = pixels(to_pil_image(heatmaps.tile(GRAY, caption, 240, verdict)))
        color = np.array(ImageColor.getrgb(heatmaps.VERDICTS[verdict])) / 255
        badge = np.abs(found[60:] - color).max(2) < 1e-6
        assert badge.mean() > 0.05 and badge[:, 239].any() and not badge[:, 241:].any()
    plain = pixels(to_pil_image(heatmaps.tile(GRAY, "a", 240)))
    assert plain[60:, 20:].min() == 1


def test_the_legend_has_the_colors_of_heat():
    found = pixels(to_pil_image(heatmaps.legend(["a", "b"], 976, 480)))
    heat = np.linspace(0, 1, 240)[:, None]
    low, high = np.array(heatmaps.LOW), np.array(heatmaps.HIGH)
    expected = 1 + 0.75 * heat * (low + (high - low) * heat ** 2 - 1)  # over white
    np.testing.assert_allclose(found[20, 20:260], expected, atol=1.01 / 255)
    assert found.shape[0] == 80 and max(found[20, 290:].min(), found[60, 290:].min()) < 0.1  # texts
    heatmaps.legend(["longer than the sheet"], 32, 16)  # narrower than its text


@pytest.mark.parametrize("size, expected", [((300, 200), (480, 320)), ((200, 300), (480, 720)),
                                            ((90, 200), (324, 720)), ((2000, 4), (480, 16)),
                                            ((1, 4000), (16, 720))])
def test_tiles_keep_the_shape_of_a_photograph_and_fit_a_screen(size, expected):
    image = Image.new("RGB", size)
    sheet = heatmaps.contact_sheet(image, torch.rand(1, 3, 3), [0.9], ["猫 é"], ["right"])
    width, height = expected
    assert sheet.size == (2 * 496, height + 60 + 120)
    picture = pixels(sheet)
    assert picture[:height, :width].max() == 0 and picture[:height, width:496].min() == 1
