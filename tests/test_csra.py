"""CSRA against the released model's figures and against its equations, written as loops."""
import inspect
import re
from argparse import Namespace

import pytest
import torch
import torchvision
from conftest import (
    PARITY,
    parity_batch,
    print_difference,
    released_weights,
    shared_figures,
)

import csra
import eval as evaluation
from lib.errors import InputError
from tools.released import convert


@pytest.mark.parametrize("entry", PARITY["csra"])
def test_parity_with_the_released_model(entry):
    figures = PARITY["csra"][entry]
    config = figures["config"]
    resnet = torchvision.models.resnet18().state_dict()  # the released models keep these names
    shapes = {name: tuple(t.shape) for name, t in resnet.items() if not name.startswith("fc.")}
    shapes |= {f"classifier.multi_head.{h}.head.weight": (config["K"], 512, 1, 1)
               for h in range(config["heads"])}
    if full := shared_figures("csra"):
        assert {name: list(shape) for name, shape in shapes.items()} == full[entry]["keys"]
    model = csra.build(list(range(config["K"])), backbone="resnet18", pretrained=False,
                       image_size=224, heads=config["heads"], lam=config["lam"]).eval()
    state = {f"module.{name}": tensor for name, tensor in released_weights(shapes).items()}
    model.load_state_dict(convert("csra", state), strict=True)
    images, targets = parity_batch(figures)
    logits = model(images)
    print_difference("csra", logits, figures["logits"])
    loss = csra.loss(logits, targets)
    loss.backward()
    torch.testing.assert_close(logits, torch.tensor(figures["logits"]), rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-4)
    norms = figures["grad_norm"]
    assert model.backbone.conv1.weight.grad.norm().item() == pytest.approx(
        norms["conv1.weight"], rel=1e-4)
    assert model.head.weight.grad[0].norm().item() == pytest.approx(
        norms["classifier.multi_head.0.head.weight"], rel=1e-4)


@pytest.mark.parametrize("heads", csra.TEMPERATURES)
def test_head_matches_its_equations(heads):
    x = torch.randn(2, 7, 3, 4, dtype=torch.float64)
    head = csra.CSRAHead(7, 5, heads, lam=0.3).double()
    z = torch.zeros(2, 5, dtype=torch.float64)
    for b in range(2):
        for k in range(5):
            for h, T in enumerate(csra.TEMPERATURES[heads]):
                m = head.weight[h, k]
                s = torch.stack([x[b, :, i, j] @ m / m.norm() for i in range(3) for j in range(4)])
                a = torch.exp(T * s) / torch.exp(T * s).sum() if T != csra.INF else s == s.max()
                z[b, k] += s.mean() + 0.3 * (a * s).sum()
    torch.testing.assert_close(head(x), z, rtol=1e-10, atol=1e-10)
    maps, s = head.attention(x), head.scores(x).unflatten(-1, (3, 4))
    torch.testing.assert_close((s.mean((-2, -1)) + 0.3 * (maps * s).sum((-2, -1))).sum(1), z)


def test_lam_0_is_a_normalized_linear_classifier():
    x, head = torch.randn(3, 8, 4, 4), csra.CSRAHead(8, 6, 1, lam=0)
    linear = head.weight[0] / head.weight[0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(x), x.mean((2, 3)) @ linear.T)


def test_loss_is_bce_and_leaves_out_unknown_entries():
    z, y = torch.randn(4, 5), torch.randint(0, 2, (4, 5))
    plain = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(csra.loss(z, y.to(torch.int8)), plain(z, y.float()))
    y[0], y[2, 1] = -1, -1
    torch.testing.assert_close(csra.loss(z, y), plain(z[y >= 0], y[y >= 0].float()))
    assert csra.loss(z, torch.full_like(y, -1)) == 0


@pytest.mark.parametrize("backbone, size, grid", [
    ("resnet18", 96, 3), ("convnext_atto", 96, 3), ("test_vit", 160, 10),
    ("vit_tiny_patch16_224", 128, 8), ("swin_tiny_patch4_window7_224", 224, 7)])
def test_backbones_end_as_maps(backbone, size, grid):
    model = csra.build(["a", "b"], backbone=backbone, pretrained=False, image_size=size).eval()
    images = torch.randn(1, 3, size, size)
    logits, maps = model.attention(images)
    assert maps.shape == (1, 1, 2, grid, grid) and torch.equal(logits, model(images))
    tokens = model.backbone.forward_features(images)
    if tokens.ndim == 3:  # row 1, column 2 of the map is token grid + 2 after the prefix
        token = tokens[0, model.backbone.num_prefix_tokens + grid + 2]
        torch.testing.assert_close(model.features(images)[0, :, 1, 2], token)
    elif backbone.startswith("swin"):
        torch.testing.assert_close(model.features(images)[0, :, 1, 2], tokens[0, 1, 2])


def test_released_vit_converts():
    """The released ViT keeps timm's names, and has a classifier of its own that CSRA does not use."""
    model = csra.build(["a", "b"], backbone="test_vit", pretrained=False, image_size=160).eval()
    state = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}
    weight = state.pop("head.weight")
    state |= {"classifier.multi_head.0.head.weight": weight[0][:, :, None, None],
              "head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    fresh = csra.build(["a", "b"], backbone="test_vit", pretrained=False, image_size=160).eval()
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    fresh.load_state_dict(convert("csra", {"state_dict": state}), strict=True)
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(fresh(images), model(images))
    assert csra.RECIPES["wider"]["backbone"] == "vit_base_patch16_224.orig_in21k_ft_in1k"


def test_residual_is_the_papers_trick():
    s = torch.randn(2, 3, 7)
    expected = torch.stack([row.mean(-1) + 0.3 * row.max(-1).values for row in s])
    torch.testing.assert_close(csra.residual(s, 0.3), expected)


def test_the_example_in_the_header():
    y_raw = torch.tensor([[4., 0, 0, 0], [1, 1, 1, 1]])  # object and haze
    average = y_raw.mean(-1)
    assert average.tolist() == [1, 1] and "p = 0.73 to both" in csra.__doc__
    assert f"{torch.sigmoid(average[0]):.2f}" == "0.73"
    tables = [re.split(r"  +", line) for line in csra.__doc__.splitlines()]
    rows = {name: [cells[2:] for cells in tables if cells[1:2] == [name]]
            for name in ("T", "lambda", "object", "haze")}
    assert rows["T"] == [["0", "1", "2", "infinity"]] and rows["lambda"] == [["0", "0.1", "1"]]
    for k, name in enumerate(("object", "haze")):
        attended = [(csra.spatial_attention(y_raw, T) * y_raw).sum(-1)[k] for T in (0, 1, 2, csra.INF)]
        logits = [average[k] + lam * attended[1] for lam in (0, 0.1, 1)]
        found = [[f"{number:.2f}" for number in numbers] for numbers in (attended, logits)]
        assert found == rows[name]
    flat = torch.tensor([0.5, 0, 0, 0])
    weights = [f"{csra.spatial_attention(flat, T)[0]:.2f}" for T in (1, 4, 7)]
    text = " ".join(csra.__doc__.split())
    assert "is {} at T = 1, {} at T = 4 and {} at T = 7".format(*weights) in text


def test_pooling_scores_equals_pooling_features():
    """Eq. 3 to 6 as they stand: the feature of each class, then its logit."""
    x = torch.randn(2, 7, 3, 4, dtype=torch.float64)
    head = csra.CSRAHead(7, 5, heads=4, lam=0.3).double()
    y = 0
    for m, s in zip(head.weight, head.attention(x).unbind(1)):  # m (K, d), s (B, K, H, W)
        a = torch.einsum("bkhw,bdhw->bkd", s, x)
        f = x.mean((2, 3))[:, None] + 0.3 * a
        y = y + torch.einsum("kd,bkd->bk", m / m.norm(dim=1, keepdim=True), f)
    torch.testing.assert_close(head(x), y)


def test_infinite_temperature_is_the_maximum():
    y_raw = torch.tensor([[1., 5, 2], [3, 3, 0]], requires_grad=True)  # also with equal scores
    s = csra.spatial_attention(y_raw, csra.INF)
    assert s.tolist() == [[0, 1, 0], [1, 0, 0]]
    attended = (s * y_raw).sum(-1)
    assert torch.equal(attended, y_raw.amax(-1))
    attended.sum().backward()
    assert torch.equal(y_raw.grad, s)


def test_loss_takes_soft_labels():
    z, y = torch.randn(4, 5), torch.rand(4, 5)
    known = torch.rand(4, 5) < 0.7
    ones, zeros = torch.ones(4, 5), torch.zeros(4, 5)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    each = y * bce(z, ones, reduction="none") + (1 - y) * bce(z, zeros, reduction="none")
    torch.testing.assert_close(csra.loss(z, y), each.mean())
    torch.testing.assert_close(csra.loss(z, torch.where(known, y, -1)), each[known].mean())


@pytest.mark.parametrize("shape", [(5,), (4, 1), (1, 5), (4, 5, 1)])
def test_loss_refuses_targets_of_another_shape(shape):
    with pytest.raises(ValueError, match=re.escape(f"targets {shape}: both must be (B, K)")):
        csra.loss(torch.randn(4, 5), torch.zeros(shape))
    with pytest.raises(ValueError, match="both must be"):
        csra.loss(torch.randn(4, 1), torch.zeros(4))


def test_head_says_what_it_expects():
    head = csra.CSRAHead(8, 6)
    for shape in ((2, 9, 8), (2, 8), (2, 3, 3, 8)):  # tokens, a pooled feature, NHWC
        for call in (head, head.attention):
            with pytest.raises(ValueError, match=r"a map \(B, 8, H, W\) is needed"):
                call(torch.randn(shape))
    tokens = torch.randn(2, 9, 8)
    assert head(tokens.transpose(1, 2).unflatten(2, (3, 3))).shape == (2, 6)  # as the message says


def test_help_covers_the_keywords():
    keywords = set()
    for function in (csra.build, csra.loss, csra.param_groups):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty:
                keywords.add(parameter.name)
    assert csra.HELP.keys() == keywords
    assert not any("%" in text for text in csra.HELP.values())  # argparse would format it


def test_residual_fits_pooled_linear_classifiers_only():
    csra.check_residual(Namespace(model="asl"))
    csra.check_residual(Namespace(model="csra", lam=0))
    for settings in (Namespace(model="csra", lam=0.1), Namespace(model="q2l")):
        with pytest.raises(ValueError, match="pooled linear classifier"):
            csra.check_residual(settings)


@pytest.mark.parametrize("heads", [1, 2])
def test_residual_adds_the_maximum_of_each_head(heads):
    model = csra.build(["a", "b", "c"], backbone="test_resnet", pretrained=False, image_size=64,
                       heads=heads, lam=0).eval()
    images = torch.randn(2, 3, 64, 64)
    x = model.features(images)
    m = torch.nn.functional.normalize(model.head.weight, dim=-1)  # (heads, K, d)
    y_raw = torch.einsum("nkd,bdhw->bnkhw", m, x)
    expected = (y_raw.mean((3, 4)) + 0.3 * y_raw.amax((3, 4))).sum(1)
    torch.testing.assert_close(csra.Residual(model, 0.3)(images), expected)
    torch.testing.assert_close(csra.Residual(model, 0)(images), model(images))


def test_residual_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    settings = {"model": "csra", "lam": 0.1}
    torch.save({"model": {}, "ema": None, "classes": ["a"], "class_counts": [1],
                "settings": settings}, tmp_path / "last.pt")
    monkeypatch.setattr(evaluation, "reported_weights", None)  # the next step
    with pytest.raises(InputError, match="--residual: it needs a pooled linear classifier"):
        evaluation.Evaluation(tmp_path / "last.pt", residual=0.3)
