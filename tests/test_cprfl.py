"""CPRFL against the released model's figures, and its shortcuts against a reference implementation."""
import copy
import inspect
import json
import math
import pickle
import re
import zlib

import numpy as np
import pytest
import torch
import torchvision
from conftest import (
    PARITY,
    parity_batch,
    print_difference,
    released_weights,
    run,
    shared_figures,
)
from reference import plain_interaction
from torch import nn

import cprfl
import train
from lib.models import model_of
from lib.settings import read_command_line
from tools.released import convert

CLASSES = ["cat", "traffic_light", "dog"]


def small(**settings):
    settings = {"text_features": torch.randn(3, 16), "d_model": 32, "heads": 2, "head_dim": 8,
                "ffn": 24} | settings
    return cprfl.build(CLASSES, backbone="test_resnet", pretrained=False, image_size=64,
                       **settings).eval()


def released_shapes(resnet, d, inner, ffn):
    """Names and shapes of a released checkpoint: the ResNet's parts are numbered."""
    order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    shapes = {}
    for name, shape in resnet.items():
        part, rest = name.split(".", 1)
        if part != "fc":
            shapes[f"Backbone.{order.index(part)}.{rest}"] = shape
    layer, width = "attention.layers.0.", 2048
    for name, shape in (("0.norm.", (d,)), ("0.fn.to_qkv.", (3 * inner, d)),
                        ("0.fn.to_out.0.", (d, inner)), ("1.norm.", (d,)),
                        ("1.fn.net.0.", (ffn, d)), ("1.fn.net.3.", (d, ffn))):
        shapes[f"{layer}{name}weight"] = shape
        if "qkv" not in name:
            shapes[f"{layer}{name}bias"] = shape[:1]
    for name, shape in (("fc.0", (d, width)), ("label_emb.0", (d // 2, 1024)),
                        ("label_emb.3", (d, d // 2))):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def test_parity_with_the_released_model():
    figures = PARITY["cprfl"]["r101_k20_224"]
    with torch.device("meta"):
        resnet = {name: tuple(tensor.shape)
                  for name, tensor in torchvision.models.resnet101().state_dict().items()}
    shapes = released_shapes(resnet, 2048, 4096, 2048)
    if full := shared_figures("cprfl"):
        assert {name: list(shape) for name, shape in shapes.items()} == full["r101_k20_224"]["keys"]
    rng = np.random.default_rng(zlib.crc32(b"text_features"))
    text = torch.tensor(rng.standard_normal((20, 1024)) / math.sqrt(1024) * 32)
    model = cprfl.build([str(k) for k in range(20)], backbone="resnet101", pretrained=False,
                        image_size=224, text_features=text).eval()
    state = {f"module.{name}": tensor for name, tensor in released_weights(shapes).items()}
    model.load_state_dict(convert("cprfl", {"state_dict": state}), strict=True)
    images, targets = parity_batch(figures)
    logits = model(images)
    print_difference("cprfl", logits, figures["logits"])
    loss = cprfl.loss(logits, targets)
    loss.backward()
    torch.testing.assert_close(logits, torch.tensor(figures["logits"]), rtol=1e-4, atol=1e-4)
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-4)
    for name, norm in figures["grad_norm"].items():
        ours = next(iter(convert("cprfl", {name: loss})))
        assert model.get_parameter(ours).grad.norm().item() == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_interaction_is_the_plain_encoder_layer(dtype, tolerance):
    torch.manual_seed(0)
    layer = cprfl.Interaction(32, 2, 8, 24, 0.1).to(dtype).eval()
    tokens, prompts = torch.randn(3, 12, 32, dtype=dtype), torch.randn(5, 32, dtype=dtype)
    grads = []
    for way in (layer, lambda *z: plain_interaction(layer, *z)):
        inputs = [tokens.clone().requires_grad_(), prompts.clone().requires_grad_()]
        out = way(*inputs)
        out.sin().sum().backward()
        grads.append([out.detach(), *(x.grad for x in inputs),
                      *(p.grad.clone() for p in layer.parameters())])
        layer.zero_grad()
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


def test_interaction_in_torchs_own_modules():
    """Norm, nn.MultiheadAttention and feed-forward in a row, no residuals (Eq. 3-5)."""
    layer = cprfl.Interaction(16, 2, 8, 24, 0.1).double().eval()  # heads * head_dim = d: torch's
    twin = nn.MultiheadAttention(16, 2, batch_first=True, bias=True).double()
    with torch.no_grad():
        twin.in_proj_weight.copy_(layer.to_qkv.weight)
        twin.in_proj_bias.zero_()
        twin.out_proj.load_state_dict(layer.to_out.state_dict())
    tokens, prompts = torch.randn(2, 6, 16).double(), torch.randn(3, 16).double()
    z = layer.norm1(torch.cat([tokens, prompts.expand(2, -1, -1)], 1))  # [F; P]
    z = nn.functional.gelu(layer.Wr(layer.norm2(twin(z, z, z)[0])))
    torch.testing.assert_close(layer(tokens, prompts), layer.Wo(z)[:, 6:], rtol=1e-10, atol=1e-10)


def test_gradients_by_path():
    tokens, features = torch.randn(2, 4, 32).double(), torch.randn(3, 16).double()
    grads = {}
    for paths in ("both", "interaction", "direct"):
        torch.manual_seed(1)
        model = small(text_features=features, paths=paths).double()
        prompts = model.category_prompts().detach().requires_grad_()
        model.score(tokens, prompts).sum().backward()
        grads[paths] = prompts.grad
    with torch.no_grad():
        direct = model.interaction(tokens, prompts).sum(0)  # d/dp of p'' . p with p'' held
    torch.testing.assert_close(grads["direct"], direct)
    torch.testing.assert_close(grads["interaction"], grads["both"] - direct)
    assert grads["interaction"].norm() > 1e-3


def test_the_direct_path_trains_the_prompts_only():
    model = small(paths="direct").train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    groups = cprfl.param_groups(model, 0.1, 0.1)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    torch.optim.AdamW(groups).step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("prompts.")), name


def test_dropout_is_not_on_the_attention(monkeypatch):
    dropped, plain = [], nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *x, dropout_p=0., **k:
                        dropped.append(dropout_p) or plain(*x, dropout_p=dropout_p, **k))
    model = small(dropout=0.5).train()
    one, two = (model(torch.ones(1, 3, 64, 64)) for _ in range(2))
    assert dropped == [0, 0] and not torch.equal(one, two)  # elsewhere there is dropout


def test_prompts_and_score_match_their_equations():
    model = small()
    W, first, second = model.text_features, model.prompts[0], model.prompts[2]
    x = W @ first.weight.T + first.bias
    gelu = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    P = gelu @ second.weight.T + second.bias
    torch.testing.assert_close(model.category_prompts(), P)
    images = torch.randn(2, 3, 64, 64)
    F = torch.stack([model.phi(cell) for cell in model.features(images).flatten(2).unbind(2)], 1)
    torch.testing.assert_close(model(images), (model.interaction(F, P) * P).sum(-1))
    logits, maps = model.attention(images)
    assert maps.shape == (2, 2, 3, 2, 2) and (maps.sum((-2, -1)) < 1).all()
    torch.testing.assert_close(logits, model(images))
    query, key = (model.interaction.norm1(x) @ w.T for x, w in zip(
        (P, F), model.interaction.to_qkv.weight.chunk(3)))  # of all heads
    for b, h, k in ((0, 0, 0), (1, 1, 2)):
        part = slice(8 * h, 8 * h + 8)
        ratio = torch.exp((key[b, 1] - key[b, 3])[part] @ query[k, part] / math.sqrt(8))
        torch.testing.assert_close(maps[b, h, k, 0, 1] / maps[b, h, k, 1, 1], ratio)
    assert isinstance(small(prompts="linear").prompts, nn.Linear)
    assert small(prompts="random").prompts.shape == (3, 32)
    for wrong in ({"prompts": "x"}, {"paths": "x"}, {"text_features": torch.randn(2, 16)}):
        with pytest.raises(ValueError, match="choose|must be"):
            small(**wrong)


def test_loss_matches_its_equation():
    z, y = torch.randn(4, 3, dtype=torch.float64) * 3, torch.randint(-1, 2, (4, 3))
    total, p = 0, torch.sigmoid(z)
    for i in range(4):
        for k in range(3):
            p_m = max(p[i, k].item() - 0.05, 0)
            total -= {1: math.log(p[i, k]), 0: p_m ** 4 * math.log(1 - p_m), -1: 0}[y[i, k].item()]
    assert cprfl.loss(z, y).item() == pytest.approx(total / (y >= 0).sum().item(), rel=1e-9)
    hard = torch.tensor([[-100., 100]], dtype=torch.float16, requires_grad=True)
    cprfl.loss(hard, torch.tensor([[1, 0]])).backward()
    assert hard.grad.isfinite().all()


def test_soft_labels_and_unknown_ones():
    z = torch.randn(4, 3, dtype=torch.float64) * 3
    ones, zeros = cprfl.loss(z, torch.ones(4, 3)), cprfl.loss(z, torch.zeros(4, 3))
    torch.testing.assert_close(cprfl.loss(z, torch.full((4, 3), 0.25).double()),
                               0.25 * ones + 0.75 * zeros)  # y L+ + (1 - y) L-
    mixed = torch.rand(4, 3, dtype=torch.float64)
    s = torch.sigmoid(z)
    s_m = (s - 0.05).clamp(min=0)
    each = mixed * s.log() + (1 - mixed) * s_m ** 4 * (1 - s_m).log()
    torch.testing.assert_close(cprfl.loss(z, mixed), -each.mean())
    mixed[0] = -1
    torch.testing.assert_close(cprfl.loss(z, mixed), -each[1:].mean())
    hard = torch.randint(0, 2, (4, 3))
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32):
        assert cprfl.loss(z, hard.to(dtype)) == cprfl.loss(z, hard)


@pytest.mark.parametrize("shape", [(5,), (4, 1), (1, 5), (5, 4), (4, 5, 1)])
def test_targets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits \(4, 5\), targets \(.*both must be \(B, K\)"):
        cprfl.loss(torch.zeros(4, 5), torch.zeros(shape))


def test_the_dual_path_at_the_top():
    """A network that squares its prompt stands in for VSI; the slope of p' p at p = 2."""
    text = " ".join(cprfl.__doc__.split())
    said = re.search(r"At p = (\d), its slope is (\d+): (\d) by P1.* and (\d) by P2", text)
    at, both, p1, p2 = map(float, said.groups())
    model = small()
    model.interaction.forward = lambda tokens, prompts: prompts[None] ** 2
    for paths, expected in (("both", both), ("direct", p1), ("interaction", p2)):
        model.paths = paths
        p = torch.full((1, 1), at, requires_grad=True)
        model.score(None, p).sum().backward()
        assert p.grad.item() == expected


def test_the_norm_of_text_features_at_the_top():
    row = re.compile(r"^ +(\d+)(?:, like CLIP's)? +(0\.\d\d)   (0\.\d\d)", re.MULTILINE)
    rows = row.findall(cprfl.__doc__)
    assert len(rows) == 2
    for norm, cosine, deviation in rows:
        torch.manual_seed(0)
        features = int(norm) * nn.functional.normalize(torch.randn(80, 1024))
        model = cprfl.build(range(80), backbone="test_resnet", pretrained=False, image_size=64,
                            text_features=features).eval()
        with torch.no_grad():
            prompts = nn.functional.normalize(model.category_prompts())
            logits = model(torch.rand(4, 3, 64, 64))
        others = (prompts @ prompts.T)[~torch.eye(80, dtype=torch.bool)]
        assert others.mean().item() == pytest.approx(float(cosine), abs=0.02)
        assert logits.std(1).mean().item() == pytest.approx(float(deviation), rel=0.2)


def test_every_flag_has_a_help_text():
    keywords = {parameter.name for function in (cprfl.build, cprfl.loss, cprfl.param_groups)
                for parameter in inspect.signature(function).parameters.values()
                if parameter.default is not parameter.empty}
    assert cprfl.HELP.keys() == keywords


@pytest.mark.slow
def test_text_features_of_open_clip(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="online(.|\n)*--text-features FILE"):
        cprfl.text_tower(CLASSES, "RN50")
    with pytest.raises(ValueError, match="ViT-B-16"):
        cprfl.text_tower(CLASSES, "nonesuch")
    tower, sentences = cprfl.text_tower(CLASSES, "random")
    again, _ = cprfl.text_tower(CLASSES, "random")
    features = tower.encode_text(sentences)
    assert features.shape == (3, 1024) and features.dtype == torch.float32
    assert torch.equal(features, again.encode_text(sentences)) and not hasattr(tower, "visual")
    import open_clip
    expected = open_clip.get_tokenizer("RN50")("a photo of a traffic light.")
    assert torch.equal(sentences[1:2], expected)
    model = small(text_features=None, text="random")
    assert torch.equal(model.text_features, features)
    with pytest.raises(ValueError, match="no weights"):
        cprfl.text_tower(CLASSES, "ViT-M-16")
    tower, sentences = cprfl.text_tower(CLASSES, "random-ViT-B-16")
    assert tower.encode_text(sentences).shape == (3, 512)


def test_own_text_features(tmp_path, recwarn):
    own = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    np.save(tmp_path / "glove.npy", own)
    model = small(text_features=str(tmp_path / "glove.npy"))
    assert np.array_equal(model.text_features, own) and model.prompts[0].in_features == 50
    torch.save(torch.tensor(own), tmp_path / "glove.pt")
    assert np.array_equal(small(text_features=str(tmp_path / "glove.pt")).text_features, own)
    unit = own / np.linalg.norm(own, axis=1, keepdims=True)
    small(text_features=torch.tensor(unit))  # as a checkpoint has them: the norm is no matter
    assert not [w for w in recwarn if "mean norm" in str(w.message)]
    np.save(tmp_path / "unit.npy", unit)
    with pytest.warns(UserWarning, match="mean norm of 1.0.*scale them to 10"):
        small(text_features=str(tmp_path / "unit.npy"))


def test_a_tuned_text_tower_learns():
    model = small(text_features=None, text="random", tune_text=True)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    tuned = [p for g in cprfl.param_groups(model, 0.1, 0) for p in g["params"]]
    assert any(p is model.text.text_projection for p in tuned)
    assert model.text.text_projection.grad.norm() > 0 and "text_features" not in model.state_dict()
    assert all(p.grad is not None for p in tuned)
    released = {name.replace("text.", "text_encoder.", 1): tensor
                for name, tensor in model.state_dict().items() if name.startswith("text.")}
    converted = convert("cprfl", {"state_dict": released})
    assert converted.keys() == {n for n in model.state_dict() if n.startswith("text.")}


@pytest.mark.slow
def test_a_tuned_text_tower_trains_with_ema(tmp_path):
    train.main(["--model", "cprfl", "--data", "scenes", "--limit", "32", "--epochs", "1", "--workers",
                "0", "--batch-size", "16", "--tune-text", "--ema", "0.9", "--out", str(tmp_path)])
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["weights"] == "ema" and last["mAP"] > 0
    table = run("eval.py", "--checkpoint", tmp_path / "last.pt", "--workers", 0, "--limit", 32)
    assert "32 images, ema weights" in table


@pytest.mark.slow
def test_a_run_resumes_and_evaluates_without_the_text_tower(tmp_path, capsys):
    train.main(["--model", "cprfl", "--limit", "64", "--epochs", "1", "--batch-size", "16",
                "--workers", "0", "--out", str(tmp_path / "run")])
    text = capsys.readouterr().out
    assert "cprfl on scenes-lt" in text and "tail " in text
    mean = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["mAP"]
    table = run("eval.py", "--checkpoint", tmp_path / "run/last.pt")
    assert f"mAP {mean:.2f}" in table and "tail " in table


def test_a_model_can_be_pickled_and_copied():
    model = small()
    images = torch.randn(1, 3, 64, 64)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(twin(images), model(images))


def test_a_tuned_tower_is_rebuilt_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # empty
    model = small(text_features=None, text="random-RN50", tune_text=True)
    _, settings = read_command_line([
        "--model", "cprfl", "--data", "voc2007", "--backbone", "test_resnet", "--image-size", "64",
        "--d-model", "32", "--heads", "2", "--head-dim", "8", "--ffn", "24", "--tune-text"])
    assert settings.text == "RN50"
    checkpoint = {"settings": settings, "classes": CLASSES}
    again = model_of(checkpoint, model.state_dict(), "last.pt")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), model(images))
