"""The losses against the released loss's figures, torch's own, and loops of the equations."""
import inspect
import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import HERE, PARITY, print_difference

import asl
from asl import asymmetric_loss
from lib.settings import read_command_line
from tools.released import convert


@pytest.mark.parametrize("row", PARITY["asl"]["rows"])
def test_parity_with_the_released_loss(row):
    z = torch.tensor(PARITY["asl"]["logits"], requires_grad=True)
    y = torch.tensor(PARITY["asl"]["targets"])
    loss = asymmetric_loss(z, y, row["gamma_neg"], row["gamma_pos"], row["clip"], row["detach"])
    loss.backward()
    print_difference("asl", loss, row["sum"])
    assert loss.item() == pytest.approx(row["sum"], rel=1e-5)
    torch.testing.assert_close(z.grad, torch.tensor(row["grad"]), rtol=1e-5, atol=1e-5)


def test_asymmetric_loss_matches_its_equations():
    z, y = torch.randn(5, 4, dtype=torch.float64) * 3, torch.randint(-1, 2, (5, 4))
    for gamma_neg, gamma_pos, m in ((4, 0, 0.05), (2, 1, 0.2), (0.5, 0.5, 0), (1, 0, 0)):
        total = 0
        for i in range(5):
            for k in range(4):
                p = 1 / (1 + math.exp(-z[i, k]))
                p_m = max(p - m, 0)
                if y[i, k] == 1:
                    total -= (1 - p) ** gamma_pos * math.log(p)
                elif y[i, k] == 0:
                    total -= p_m ** gamma_neg * math.log(1 - p_m)
        loss = asymmetric_loss(z, y, gamma_neg, gamma_pos, m)
        assert loss.item() == pytest.approx(total, rel=1e-9)
        mean = asymmetric_loss(z, y, gamma_neg, gamma_pos, m, reduction="mean")
        assert mean.item() == pytest.approx(total / (y >= 0).sum().item(), rel=1e-9)
        each = asymmetric_loss(z, y, gamma_neg, gamma_pos, m, reduction="none")
        assert each.sum().item() == pytest.approx(total) and (each[y < 0] == 0).all()


def test_cross_entropy_and_focal_loss_are_special_cases():
    z, y = torch.randn(6, 5, dtype=torch.float64) * 4, torch.randint(0, 2, (6, 5))
    bce = F.binary_cross_entropy_with_logits(z, y.double(), reduction="sum")
    torch.testing.assert_close(asl.binary_cross_entropy(z, y), bce)
    torch.testing.assert_close(asymmetric_loss(z, y, 0, 0, 0), bce)
    p = torch.sigmoid(z)
    focal = -torch.where(y == 1, (1 - p) ** 3 * p.log(), p ** 3 * (1 - p).log()).sum()
    torch.testing.assert_close(asl.focal_loss(z, y, gamma=3), focal)


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_are_those_of_the_equations(detach):
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, (4, 3))
    if not detach:
        assert torch.autograd.gradcheck(lambda z: asymmetric_loss(z, y, 4, 1, 0.05, False), z)
    loss, = torch.autograd.grad(asymmetric_loss(z, y, 4, 1, 0.05, detach), z)
    p = torch.sigmoid(z)
    p_m = (p - 0.05).clamp(min=0)
    w_pos, w_neg = (1 - p), p_m ** 4
    if detach:
        w_pos, w_neg = w_pos.detach(), w_neg.detach()
    plain = -(y * w_pos * p.log() + (1 - y) * w_neg * (1 - p_m).log()).sum()
    torch.testing.assert_close(loss, torch.autograd.grad(plain, z)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("settings", [(4, 0, 0.05), (0.5, 0.5, 0.05), (2, 2, 0), (0.5, 0.5, 0)])
@pytest.mark.parametrize("detach", [True, False])
def test_extreme_logits_stay_finite(dtype, settings, detach):
    z = torch.tensor([[100., -100, 20, -20, 0]] * 2, dtype=dtype, requires_grad=True)
    y = torch.tensor([[1] * 5, [0] * 5])
    loss = asymmetric_loss(z, y, *settings, detach=detach)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z.grad.isfinite().all()
    assert settings[2] or loss > 100  # a confident mistake keeps its loss, and its gradient:
    assert z.grad[0, 1] < -0.9


def test_no_state_and_no_mode_is_switched():
    z, y = torch.randn(2, 3), torch.ones(2, 3)
    with torch.no_grad():
        asymmetric_loss(z, y)
        assert not torch.is_grad_enabled()
    asymmetric_loss(z, y)
    assert torch.is_grad_enabled()


def test_compiles_whole():
    torch._dynamo.reset()
    z, y = torch.randn(8, 5, requires_grad=True), torch.randint(-1, 2, (8, 5))
    compiled = torch.compile(asymmetric_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z, y), asymmetric_loss(z, y))


def test_distribution_balanced_loss_matches_its_equations():
    torch.manual_seed(0)
    z = torch.randn(4, 3, dtype=torch.float64)
    y = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, -1], [0, 0, 0]])
    n, N, (alpha, beta, kappa) = [50, 5, 120], 150, (0.1, 10, 0.05)
    for gamma, data in ((0, "voc-lt"), (2, "voc-lt"), (2, "coco-lt")):  # with the published settings
        mu, lam = asl.DB_SETTINGS[data]["mu"], asl.DB_SETTINGS[data]["lam"]
        total = 0
        for i in range(4):
            for k in range(3):
                if y[i, k] < 0:
                    continue
                sampled = sum(1 / n[j] for j in range(3) if y[i, j] == 1) / 3  # P^I
                r = (1 / 3 / n[k]) / sampled if sampled else math.inf
                weight = alpha + 1 / (1 + math.exp(-beta * (r - mu)))
                nu = kappa / lam * math.log(N / n[k] - 1)
                if y[i, k] == 1:
                    bce = math.log(1 + math.exp(-(z[i, k] - nu)))
                    total += weight * bce * (1 - math.exp(-bce)) ** gamma
                else:
                    bce = math.log(1 + math.exp(lam * (z[i, k] - nu)))
                    total += weight * bce * (1 - math.exp(-bce)) ** gamma / lam
        loss = asl.distribution_balanced_loss(z, y, n, N, gamma=gamma, mu=mu, lam=lam)
        assert loss.item() == pytest.approx(total / 11, rel=1e-9)


def test_published_settings_and_names():
    n = torch.tensor([3, 9])
    db = asl.loss_by_name("db", n, 20, "coco-lt")
    assert db.keywords["lam"] == 2 and db.keywords["mu"] == 0.2 and db.keywords["num_images"] == 20
    z, y = torch.randn(4, 2), torch.randint(0, 2, (4, 2))
    torch.testing.assert_close(asl.loss_by_name("bce", n, 20, "csv")(z, y),
                               F.binary_cross_entropy_with_logits(z, y.float()))
    torch.testing.assert_close(asl.loss_by_name("asl", n, 20, "csv")(z, y) * 8, asl.loss(z, y))
    assert asl.loss_by_name("focal", n, 20, "csv")(z, y) > 0


def test_baseline_is_pooling_and_a_linear_layer():
    model = asl.build(["a", "b"], backbone="resnet18", pretrained=False, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    logits, maps = model.attention(images)
    assert maps.shape == (2, 2, 2, 2)
    torch.testing.assert_close(logits, model(images))
    x = model.backbone.forward_features(images).mean((2, 3))
    torch.testing.assert_close(logits, F.linear(x, model.head.weight, model.head.bias))
    groups = asl.param_groups(model, 0.1, 0.5)
    assert sum(len(group["params"]) for group in groups) == len([*model.parameters()])
    for group in groups:
        assert group["weight_decay"] == {1: 0, 2: 0.5, 4: 0.5}[group["params"][0].ndim]


def released_tresnet(state):
    """timm's names of a TResNet -> the released ones."""
    return {f"module.{name}".replace(".conv.", ".0.").replace(".bn.", ".1."): tensor
            for name, tensor in state.items() if "num_batches" not in name}


def test_released_checkpoint_converts():
    model = asl.build(list("abc"), backbone="tresnet_m", pretrained=False, image_size=64)
    state = {name.replace("backbone.", "").replace("head.", "head.fc.", 1)
             if not name.startswith("backbone.head") else name: tensor
             for name, tensor in model.state_dict().items()}
    fresh = asl.build(list("abc"), backbone="tresnet_m", pretrained=False, image_size=64)
    fresh.load_state_dict(convert("asl", {"model": released_tresnet(state)}), strict=True)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(fresh.eval()(images), model.eval()(images), rtol=1e-2, atol=1e-3)
    assert torch.equal(fresh.head.weight, model.head.weight)


def test_reductions_and_margins_that_make_no_sense_are_errors():
    z, y = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="reduction='average'"):
        asymmetric_loss(z, y, reduction="average")
    for margin in (1, -0.1):
        with pytest.raises(ValueError, match="margin"):
            asymmetric_loss(z, y, margin=margin)


def test_a_model_in_half_precision():
    model = asl.build(["a"], backbone="test_resnet", pretrained=False, image_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.bfloat16()(images.bfloat16()), model.float()(images), atol=0.05,
                               rtol=0.1)


def test_the_classifier_starts_as_released():
    for std, more in ((0.01, {}), (0.1, {"head_std": 0.1})):
        model = asl.build(range(80), backbone="resnet18", pretrained=False, image_size=64, **more)
        assert model.head.weight.std().item() == pytest.approx(std, rel=0.05)
    assert asl.RECIPES["scenes"]["head_std"] == 0.1 and "head_std" not in asl.RECIPES["coco2014"]


def test_the_example_in_the_header():
    tables = [re.split(r"  +", line) for line in asl.__doc__.splitlines()]
    p, *rows = [cells[1:] for cells in tables if len(cells) == 7 and not cells[1].startswith("Eq")]
    losses = {"cross-entropy": {"gamma_neg": 0, "margin": 0},
              "focal loss, gamma 2": {"gamma_neg": 2, "margin": 0, "detach": False},
              "ASL, detach=True": {}, "ASL, detach=False": {"detach": False}}
    assert p[0] == "p" and [name for name, *_ in rows] == list(losses)
    for name, *slopes in rows:
        z = torch.logit(torch.tensor([float(x) for x in p[1:]])).requires_grad_()
        asymmetric_loss(z, torch.zeros(5), **losses[name]).backward()
        assert slopes == [f"{slope + 0:.3f}" for slope in z.grad.tolist()]  # no -0.000

    text = " ".join(asl.__doc__.split())
    y = torch.tensor([1.] * 3 + [0] * 77)
    for settings, sentence in ((losses["cross-entropy"], "they make {} % of the gradient of cross-"),
                               ({}, "the negatives now make {} % of the gradient (detach="),
                               ({"detach": False}, "(detach=False: {} %)")):
        z = torch.zeros(80, requires_grad=True)
        asymmetric_loss(z, y, **settings).backward()
        share = z.grad[3:].abs().sum() / z.grad.abs().sum()
        assert sentence.format(round(100 * share.item())) in text


LOSSES = {
    "asl": asymmetric_loss, "with gamma+": partial(asymmetric_loss, gamma_pos=1, detach=False),
    "bce": asl.binary_cross_entropy, "focal": asl.focal_loss,
    "db": partial(asl.distribution_balanced_loss, class_freq=[9, 50, 3, 7, 20])}


@pytest.mark.parametrize("name", LOSSES)
def test_soft_labels_mix_the_two_losses(name):
    z, y = torch.randn(4, 5), torch.rand(4, 5)

    def each(y):
        loss = LOSSES[name](z, y, reduction="none")
        if name == "db":  # its weight depends on all labels of an image
            n = torch.tensor([9, 50, 3, 7, 20])
            loss = loss / asl.rebalanced_weight(y, n, alpha=0.1, beta=10, mu=0.3)
        return loss
    expected = y * each(torch.ones(4, 5)) + (1 - y) * each(torch.zeros(4, 5))
    torch.testing.assert_close(each(y), expected)
    known = torch.rand(4, 5) < 0.7
    with_unknown = torch.where(known, y, -1)
    torch.testing.assert_close(each(with_unknown), expected * known)
    total = LOSSES[name](z, with_unknown, reduction="none").sum()
    mean = LOSSES[name](z, with_unknown, reduction="mean")
    torch.testing.assert_close(mean, total / known.sum())


def test_rebalanced_weight_takes_soft_labels():
    """Half a label is half a chance that the image is drawn for it."""
    n = torch.tensor([10., 4])
    r = (1 / n) / (0.5 / n[0] + 1 / n[1])
    weight = asl.rebalanced_weight(torch.tensor([[0.5, 1]]), n, alpha=0.1, beta=10, mu=0.3)
    torch.testing.assert_close(weight, 0.1 + torch.sigmoid(10 * (r - 0.3))[None])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(5,), (4, 1), (1, 5), (4, 5, 1)])
def test_targets_of_another_shape_are_errors(name, shape):
    with pytest.raises(ValueError, match=re.escape(f"targets {shape}: both must be (B, K)")):
        LOSSES[name](torch.randn(4, 5), torch.zeros(shape))
    with pytest.raises(ValueError, match="both must be"):
        LOSSES[name](torch.randn(4, 1), torch.zeros(4))


@pytest.mark.parametrize("class_freq", [[3], [3, 4, 5, 6], 3.0, [[1, 2, 3, 4, 5]]])
def test_class_counts_of_another_length_are_errors(class_freq):
    with pytest.raises(ValueError, match="a number of images for each class"):
        asl.distribution_balanced_loss(torch.randn(4, 5), torch.zeros(4, 5), class_freq)


@pytest.mark.parametrize("margin", [2e-3, 1e-3, 9e-4, 1e-6, 1e-8, 1e-20, 1e-45, 5e-324])
@pytest.mark.parametrize("detach", [True, False])
def test_tiny_margins(margin, detach):
    """In float32, 1 - p_m would round to 0. The right value is that of 1 - p + m in float64."""
    z = torch.tensor([100., 60, 40, 20, 17, 5, 0, -20, -100], requires_grad=True)
    for gamma in (4, 0):
        each = asymmetric_loss(z, torch.zeros(9), gamma, 0, margin, detach, reduction="none")
        gradient, = torch.autograd.grad(each.sum(), z)
        assert gradient.isfinite().all()
        for k, logit in enumerate(z.tolist()):
            not_p_m = min(1 / (1 + math.exp(logit)) + margin, 1)
            expected = -(1 - not_p_m) ** gamma * math.log(not_p_m)
            assert each[k].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("gamma", [0.5, 0, 1, 2])
def test_distribution_balanced_loss_has_finite_gradients(gamma):
    """With gamma below 1, the slope of the focal weight is infinite where the loss is 0."""
    z = torch.tensor([[100., -100, 30, -30, 0]] * 2, requires_grad=True)
    y = torch.tensor([[1] * 5, [0] * 5])
    loss = asl.distribution_balanced_loss(z, y, [5, 6, 7, 8, 9], gamma=gamma)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()
    small = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: asl.distribution_balanced_loss(z, y, [5, 6, 7, 8, 9], gamma=gamma), small)


def test_help_covers_the_keywords():
    keywords = set()
    for function in (asl.build, asl.loss, asl.param_groups):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty:
                keywords.add(parameter.name)
    assert asl.HELP.keys() == keywords - {"reduction"}
    assert not any("%" in text for text in asl.HELP.values())  # argparse would format it


def test_rows_of_table_2_are_commands():
    """The flags that the page names give the losses of the paper's rows."""
    text = (HERE.parent / "docs/asl.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([a-z -]+) \| \d\d\.\d \| `(--.+)` \|$", text, re.MULTILINE))
    expected = {"cross-entropy": (0, 0, 0), "focusing": (3, 0, 0), "margin": (2, 2, 0.3)}
    assert rows.keys() == {*expected, "focal loss"} and rows["focal loss"] == "--loss focal"
    for name, (gamma_neg, gamma_pos, margin) in expected.items():
        _, s = read_command_line(["--model", "asl", "--data", "coco2014", *rows[name].split()])
        assert (s.gamma_neg, s.gamma_pos, s.margin) == (gamma_neg, gamma_pos, margin)
