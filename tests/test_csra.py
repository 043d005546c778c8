"""CSRA against the released model's figures and against its equations, written as loops."""

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
