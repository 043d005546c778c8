"""Q2L against the released model's figures and against torch's own Transformer layers."""
import inspect
import math
import re
import warnings
import zipfile

import numpy as np
import pytest
import timm
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

import q2l
from lib.cvt import CvT
from tools.released import convert

pytestmark = pytest.mark.filterwarnings("ignore:the frozen layers of the backbone are random")


def small(**settings):
    settings = {"backbone": "resnet18", "d_model": 64, "ffn": 96, "heads": 4} | settings
    return q2l.build(["a", "b", "c"], pretrained=False, image_size=64, **settings).eval()


def packed(state):
    """Tensors under torch's names: queries', keys' and values' weights in one."""
    state = dict(state)
    for name in [*state]:
        if f".{name}".split(".")[-2] == "q":
            stem, kind = name.rsplit("q.", 1)
            state[f"{stem}in_proj_{kind}"] = torch.cat(
                [state.pop(f"{stem}{part}.{kind}") for part in "qkv"])
    return state


def encoders(name):
    """The name in torch's and the released encoder layer: there is no second attention there."""
    return name.replace("multihead_attn", "self_attn").replace("norm2", "norm1").replace(
        "norm3", "norm2")


def transformer_shapes(config):
    """Names and shapes of the released head."""
    d, ffn, K = config["hidden"], config["ff"], config["K"]
    attn = {"in_proj_weight": (3 * d, d), "in_proj_bias": (3 * d,), "out_proj.weight": (d, d),
            "out_proj.bias": (d,)}
    mlp = {"linear1.weight": (ffn, d), "linear1.bias": (ffn,), "linear2.weight": (d, ffn),
           "linear2.bias": (d,)}
    shapes = {}
    for part, count, attention, norms in (
            ("encoder", config.get("enc", 1), "self_attn", (1, 2)),
            ("decoder", config.get("dec", 2), "multihead_attn", (2, 3))):
        for i in range(count):
            layer = f"transformer.{part}.layers.{i}."
            shapes |= {f"{layer}{attention}.{name}": shape for name, shape in attn.items()}
            shapes |= {layer + name: shape for name, shape in mlp.items()}
            shapes |= {f"{layer}norm{n}.{kind}": (d,) for n in norms for kind in ("weight", "bias")}
    if config.get("keep_proj"):
        shapes |= {"input_proj.weight": (d, 512, 1, 1), "input_proj.bias": (d,)}
    return shapes | {"transformer.decoder.norm.weight": (d,), "transformer.decoder.norm.bias": (d,),
                     "query_embed.weight": (K, d), "fc.W": (1, K, d), "fc.b": (1, K)}


@pytest.mark.parametrize("entry", PARITY["q2l"])
def test_parity_with_the_released_model(entry):
    figures = PARITY["q2l"][entry]
    config = figures["config"]
    shapes = {f"backbone.0.body.{name}": tuple(tensor.shape)
              for name, tensor in torchvision.models.resnet18().state_dict().items()
              if not name.startswith("fc.") and "num_batches" not in name}
    shapes |= transformer_shapes(config)
    if full := shared_figures("q2l"):
        assert {name: list(shape) for name, shape in shapes.items()} == full[entry]["keys"]
    model = q2l.build(list(range(config["K"])), backbone="resnet18", pretrained=False,
                      image_size=figures["size"], d_model=config["hidden"], ffn=config["ff"],
                      heads=config["heads"], encoder_layers=config.get("enc", 1),
                      decoder_layers=config.get("dec", 2)).eval()
    state = {f"module.{name}": tensor for name, tensor in released_weights(shapes).items()}
    model.load_state_dict(convert("q2l", {"state_dict": state, "epoch": 3}), strict=True)
    images, targets = parity_batch(figures)
    logits = model(images)
    print_difference("q2l", logits, figures["logits"])
    loss = q2l.loss(logits, targets)
    loss.backward()
    torch.testing.assert_close(logits, torch.tensor(figures["logits"]), rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-4)
    names = {"query_embed.weight": "query_embed", "fc.W": "W",
             "transformer.decoder.layers.1.linear1.weight": "decoder.1.linear1.weight",
             "transformer.encoder.layers.0.self_attn.in_proj_weight":
                 "encoder.0.multihead_attn.in_proj_weight"}
    grads = packed({name: p.grad for name, p in model.head.named_parameters()})
    for name, norm in figures["grad_norm"].items():
        assert grads[names[name]].norm().item() == pytest.approx(norm, rel=1e-4)


def test_decoder_with_self_attention_is_torchs_layer_with_positions():
    """torch's layer adds no positions, so each attention is given them by hand."""
    layer = q2l.Layer(32, 4, 48, 0.1, self_attention=True).double().eval()
    twin = torch.nn.TransformerDecoderLayer(32, 4, 48, batch_first=True).double().eval()
    twin.load_state_dict(packed(layer.state_dict()), strict=True)
    x, pos = torch.randn(2, 5, 32).double(), torch.randn(5, 32).double()
    tokens, token_pos = torch.randn(2, 12, 32).double(), torch.randn(12, 32).double()
    twin._sa_block = lambda x, *_, **__: twin.self_attn(x + pos, x + pos, x)[0]
    twin._mha_block = lambda x, memory, *_, **__: twin.multihead_attn(
        x + pos, memory + token_pos, memory)[0]
    found, _ = layer(x, pos, tokens + token_pos, tokens)
    torch.testing.assert_close(found, twin(x, tokens), rtol=1e-10, atol=1e-10)
    plain, zeros = torch.nn.TransformerDecoderLayer(32, 4, 48, batch_first=True), torch.zeros(5, 32)
    plain.double().eval().load_state_dict(packed(layer.state_dict()))
    torch.testing.assert_close(layer(x, zeros.double(), tokens, tokens)[0], plain(x, tokens),
                               rtol=1e-10, atol=1e-10)


def test_encoder_is_torchs_layer_with_positions():
    layer = q2l.Layer(32, 4, 48, 0.1).double().eval()
    twin = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True).double().eval()
    twin.load_state_dict({encoders(name): tensor for name, tensor in
                          packed(layer.state_dict()).items()}, strict=True)
    x, pos = torch.randn(2, 12, 32).double(), torch.randn(12, 32).double()
    torch.testing.assert_close(layer(x, 0 * pos, x, x)[0], twin(x), rtol=1e-10, atol=1e-10)
    twin._sa_block = lambda x, *_, **__: twin.self_attn(x + pos, x + pos, x)[0]
    with torch.enable_grad():  # else torch's fused layer, which ignores positions
        expected = twin(x)
    torch.testing.assert_close(layer(x, pos, x + pos, x)[0], expected, rtol=1e-10, atol=1e-10)


def test_maps_are_the_weights_of_torchs_attention():
    attention = q2l.Attention(32, 4, 0.0).double().eval()
    twin = torch.nn.MultiheadAttention(32, 4, batch_first=True).double()
    twin.load_state_dict(packed(attention.state_dict()))
    q, k = torch.randn(2, 3, 32).double(), torch.randn(2, 6, 32).double()
    x, weights = attention(q, k, k, need_map=True)
    expected = twin(q, k, k, average_attn_weights=False)
    torch.testing.assert_close((x, weights), tuple(expected))


def test_positions_match_their_definition():
    pos = q2l.sine_positions(3, 5, 8, "cpu").view(3, 5, 8)
    for y in range(3):
        for x in range(5):
            for half, (i, n) in enumerate(((y + 1, 3), (x + 1, 5))):
                for c in range(4):
                    t = i / (n + 1e-6) * 2 * math.pi / 10000 ** (2 * (c // 2) / 4)
                    expected = math.cos(t) if c % 2 else math.sin(t)
                    assert pos[y, x, 4 * half + c].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("self_attention", [False, True])
def test_any_size_and_shape_of_image_and_every_map(self_attention):
    model = small(self_attention=self_attention, project=None)
    for height, width in ((64, 64), (96, 160)):
        images = torch.randn(2, 3, height, width)
        logits, maps = model.attention(images)
        assert maps.shape == (2, 2, 4, 3, height // 32, width // 32)
        torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 2, 4, 3))
        torch.testing.assert_close(logits, model(images))
        torch.testing.assert_close(logits[1:], model(images[1:]), rtol=1e-4, atol=1e-5)
    assert ("head.decoder.0.self_attn.q.weight" in model.state_dict()) == self_attention


def test_projection():
    assert isinstance(small(d_model=512, project=None).input_proj, torch.nn.Identity)
    assert isinstance(small(d_model=512, project=True).input_proj, torch.nn.Conv2d)
    assert isinstance(small(d_model=64, project=None).input_proj, torch.nn.Conv2d)
    with pytest.raises(ValueError, match="d_model"):
        small(d_model=66)


def test_resnets_are_frozen_as_released_and_others_are_not():
    model = small().train()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    groups = q2l.param_groups(model, 0.1, 0.01)
    torch.optim.SGD(groups).step()
    for name, tensor in model.backbone.state_dict().items():
        frozen = name.startswith(("conv1", "layer1")) or "bn" in name or "downsample.1" in name
        assert torch.equal(tensor, before[name]) == frozen, name
    for free in (small(freeze=False), small(backbone="convnext_atto")):
        assert all(p.requires_grad for p in free.parameters())


def test_frozen_norms_stay_frozen_when_they_are_synchronized():
    model = timm.layers.convert_sync_batchnorm(small()).train()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert len(norms) == 20 and not any(norm.training for norm in norms)


def test_loss_matches_its_equation():
    z, y = torch.randn(4, 3, dtype=torch.float64), torch.randint(0, 2, (4, 3))
    p = torch.sigmoid(z)
    for g_pos, g_neg in ((0, 1), (0, 2), (1, 3)):  # the paper's, the released one, another
        gammas = {"gamma_pos": g_pos, "gamma_neg": g_neg}
        each = y * (1 - p) ** g_pos * p.log() + (1 - y) * p ** g_neg * (1 - p).log()
        torch.testing.assert_close(q2l.loss(z, y, **gammas), -each.mean() * 1000)
    y[0] = -1
    torch.testing.assert_close(q2l.loss(z, y, **gammas), -each[1:].sum() / 12 * 1000)
    hard = torch.tensor([[-100., 100]], requires_grad=True)
    q2l.loss(hard, torch.tensor([[1, 0]])).backward()
    assert hard.grad.isfinite().all()


def test_soft_labels_and_unknown_ones():
    z = torch.randn(4, 3, dtype=torch.float64)
    ones, zeros = q2l.loss(z, torch.ones(4, 3)), q2l.loss(z, torch.zeros(4, 3))
    torch.testing.assert_close(q2l.loss(z, torch.full((4, 3), 0.25).double()),
                               0.25 * ones + 0.75 * zeros)  # y L+ + (1 - y) L-
    mixed = torch.rand(4, 3, dtype=torch.float64)
    p = torch.sigmoid(z)
    each = mixed * p.log() + (1 - mixed) * p ** 2 * (1 - p).log()
    torch.testing.assert_close(q2l.loss(z, mixed), -each.mean() * 1000)
    mixed[0] = -1
    torch.testing.assert_close(q2l.loss(z, mixed), -each[1:].sum() / 12 * 1000)
    hard = torch.randint(0, 2, (4, 3))
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32):
        assert q2l.loss(z, hard.to(dtype)) == q2l.loss(z, hard)


@pytest.mark.parametrize("shape", [(5,), (4, 1), (1, 5), (5, 4), (4, 5, 1)])
def test_targets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits \(4, 5\), targets \(.*both must be \(B, K\)"):
        q2l.loss(torch.zeros(4, 5), torch.zeros(shape))


def test_the_example_at_the_top():
    """The table of four cells, the sizes on COCO, and the loss of an easy negative."""
    attention = q2l.Attention(4, 1, 0.0)
    with torch.no_grad():
        for linear in (attention.q, attention.k, attention.v, attention.out_proj):
            linear.weight.copy_(torch.eye(4))
    cells = torch.tensor([[[2., 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    row = re.compile(r"^    \((\d) (\d) 0 0\)     ([\d. ]+)    \(([\d.]+) ([\d.]+) 0 0\)", re.MULTILINE)
    rows = row.findall(q2l.__doc__)
    assert len(rows) == 4
    for cat, dog, weights, *found in rows:
        query = torch.tensor([[[float(cat), float(dog), 0, 0]]])
        x, maps = attention(query, cells, cells, need_map=True)
        assert weights == " ".join(f"{w:.2f}" for w in maps.flatten())
        assert found == [f"{value:.2f}" for value in x[0, 0, :2]] and not x[0, 0, 2:].any()

    losses = re.search(r"p = 0.1 adds ([\d.]+) .*, ([\d.]+) with 1 \(the\npaper\) and ([\d.]+) with 2",
                       q2l.__doc__)
    z = torch.tensor([[math.log(0.1 / 0.9)]])
    for gamma, text in enumerate(losses.groups()):
        found = q2l.loss(z, torch.zeros(1, 1), gamma_neg=gamma) / q2l.LOSS_SCALE
        assert f"{found:.3f}" == text
    assert inspect.signature(q2l.loss).parameters["gamma_neg"].default == 2

    sizes = re.search(r"K = (\d+), HW = (\d+) x (\d+), d = (\d+), (\d) heads, L = (\d)", q2l.__doc__)
    K, H, W, d, heads, L = map(int, sizes.groups())
    recipe = q2l.RECIPES["coco2014"]
    defaults = inspect.signature(q2l.build).parameters
    assert (heads, L) == (defaults["heads"].default, defaults["decoder_layers"].default)
    with torch.device("meta"):
        backbone = timm.create_model(recipe["backbone"], num_classes=0, global_pool="")
        assert backbone(torch.zeros(1, 3, 448, 448)).shape == (1, d, H, W)
        _, maps = q2l.Q2LHead(K, d)(torch.zeros(1, d, H, W), need_maps=True)
    assert maps.shape == (1, L, heads, K, H, W)


def test_the_head_alone_needs_torch_only():
    text = inspect.getsource(q2l)
    parts = text[text.index("class Q2LHead"):text.index("class Q2L(")]
    names = {"math": math, "torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    exec(parts, names)  # noqa: S102 (our own lines)
    logits, maps = names["Q2LHead"](3, 8, ffn=16)(torch.randn(2, 8, 4, 5), need_maps=True)
    assert logits.shape == (2, 3) and maps.shape == (2, 2, 4, 3, 4, 5)


def test_the_first_layer_asks_with_the_label_queries_alone():
    """Its input is 0, so its query is 0 + label query, its residual adds nothing, and the values of
    its self-attention are 0: that adds the same vector to every label."""
    head = q2l.Q2LHead(3, 8, ffn=16, decoder_layers=1, encoder_layers=0).double().eval()
    x = torch.randn(2, 8, 4, 5).double()
    pos = q2l.sine_positions(4, 5, 8, "cpu").double()
    tokens = x.flatten(2).transpose(1, 2)
    layer = head.decoder[0]
    found, _ = layer.multihead_attn(head.query_embed.expand(2, -1, -1), tokens + pos, tokens)
    y = layer.norm2(found)
    y = layer.norm3(y + layer.linear2(layer.linear1(y).relu()))
    torch.testing.assert_close(head(x)[0], (head.norm(y) * head.W).sum(-1) + head.b)
    attended, _ = q2l.Attention(8, 4, 0.0).double()(head.query_embed[None], head.query_embed[None],
                                                    torch.zeros(1, 3, 8).double())
    torch.testing.assert_close(attended[:, 1:], attended[:, :-1])


def test_features_that_are_no_map_are_refused():
    head = q2l.Q2LHead(3, 8, ffn=16)
    for shape in ((2, 20, 8), (2, 8), (2, 4, 5, 8)):  # tokens, pooled, NHWC
        with pytest.raises(ValueError, match=r"a map \(B, 8, H, W\) is needed"):
            head(torch.randn(shape))
    tokens = torch.randn(2, 20, 8)
    assert head(tokens.transpose(1, 2).unflatten(2, (4, 5)))[0].shape == (2, 3)  # as it says


@pytest.mark.filterwarnings("error")
def test_frozen_layers_that_stay_random_are_said():
    for backbone in ("resnet18", "tresnet_m"):
        with pytest.warns(UserWarning, match="frozen layers.*random.*freeze=False"):
            small(backbone=backbone)
    small(freeze=False)
    small(backbone="convnext_atto")  # nothing in it is frozen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q2l.freeze_first_layers(timm.create_model("resnet18"), pretrained=True)


def test_every_flag_has_a_help_text():
    keywords = {parameter.name for function in (q2l.build, q2l.loss, q2l.param_groups)
                for parameter in inspect.signature(function).parameters.values()
                if parameter.default is not parameter.empty}
    assert q2l.HELP.keys() == keywords


def released_format(model, backbone):
    """The model's tensors under released names, with what released files hold beside them."""
    state = {}
    for name, tensor in packed(model.state_dict()).items():
        if name.startswith("backbone."):
            if "num_batches" not in name:
                state["backbone.0." + backbone(name.removeprefix("backbone."))] = tensor
        elif name in ("head.W", "head.b"):
            state[name.replace("head.", "fc.")] = tensor[None]
        elif name == "head.query_embed":
            state["query_embed.weight"] = tensor
        elif name.startswith("head.norm"):
            state[name.replace("head.norm", "transformer.decoder.norm")] = tensor
        elif name.startswith("input_proj"):
            state[name] = tensor
        else:
            name = name.removeprefix("head.").replace("coder.", "coder.layers.")
            name = encoders(name) if name.startswith("encoder.") else name
            state[f"transformer.{name}"] = tensor
    return {"epoch": 7, "arch": "Q2L", "best_mAP": np.float64(84.9), "args": {},
            "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
            "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": []}}


def tresnet_shapes(backbone):
    """Names and shapes of a released TResNet: conv and norm are numbered, and they are one level
    deeper where a blur follows them."""
    state = timm.create_model(backbone, num_classes=0, global_pool="").state_dict()
    blurred = re.compile(r"(layer2\.0\.conv1|layer[34]\.0\.conv2)\.")
    return {"backbone.0.body." + blurred.sub(r"\1.0.", name).replace(".conv.", ".0.").replace(
        ".bn.", ".1."): tuple(tensor.shape) for name, tensor in state.items()
        if "num_batches" not in name}


def test_parity_with_the_released_model_on_tresnet():
    figures, full = PARITY["q2l_tresnet"], shared_figures("q2l_tresnet")
    shapes = tresnet_shapes("tresnet_l") | transformer_shapes({"hidden": 2432, "ff": 64, "K": 5})
    if full:
        assert {name: list(shape) for name, shape in shapes.items()} == full["keys"]
    model = q2l.build(list("abcde"), backbone="tresnet_l", pretrained=False, image_size=128, ffn=64)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) == figures["frozen"]
    assert all(name.startswith(("backbone.body.conv1.", "backbone.body.layer1.")) for name in frozen)
    assert all(m.training for m in model.train().backbone.modules())  # the norms, too
    state = {f"module.{name}": tensor for name, tensor in released_weights(shapes).items()}
    model.load_state_dict(convert("q2l", {"state_dict": state}), strict=True)
    logits = model.eval()(parity_batch(figures)[0])
    print_difference("q2l, TResNet-L", logits, figures["logits"])
    torch.testing.assert_close(logits, torch.tensor(figures["logits"]), rtol=1e-4, atol=1e-5)


default_cfgs = timm.models.generate_default_cfgs({"cvt_small": {}})


@timm.models.register_model
def cvt_small(pretrained=False, **settings):
    return timm.models.build_model_with_cfg(CvT, "cvt_small", pretrained, **{
        "widths": (24, 48, 96), "heads": (1, 2, 4), "blocks": (1, 2, 3)} | settings)


def test_parity_with_the_released_model_on_cvt():
    figures, full = PARITY["q2l_cvt"], shared_figures("q2l_cvt")
    model = q2l.build(list("abcde"), backbone="cvt_small", pretrained=False, image_size=128, ffn=64)
    shapes = {f"backbone.0.{name}": tuple(tensor.shape)
              for name, tensor in model.backbone.state_dict().items()}
    shapes |= transformer_shapes({"hidden": 96, "ff": 64, "K": 5})
    if full:
        assert {name: list(shape) for name, shape in shapes.items()} == full["keys"]
    model.load_state_dict(convert("q2l", released_weights(shapes)), strict=True)
    images = parity_batch(figures)[0]
    logits, features = model.eval()(images), model.features(images)
    print_difference("q2l, CvT", logits, figures["logits"])
    torch.testing.assert_close(logits, torch.tensor(figures["logits"]), rtol=1e-4, atol=1e-5)
    assert list(features.shape) == figures["features"]["shape"]
    assert features.norm().item() == pytest.approx(figures["features"]["norm"], rel=1e-5)


def test_cvt_is_known_to_timm():
    with torch.device("meta"):
        cvt = timm.create_model("cvt_w24", num_classes=0, global_pool="", img_size=None)
    assert round(sum(p.numel() for p in cvt.parameters()) / 1e6) == 276 and cvt.num_features == 1024
    model, images = cvt_small(drop_path=(0, 0, 0)).train(), torch.randn(2, 3, 64, 96)
    assert model(images).shape == (2, 96, 4, 6)
    model = q2l.build(["a"], backbone="cvt_small", pretrained=False, image_size=64, ffn=32)
    assert model.attention(images)[1].shape == (2, 2, 4, 1, 4, 6)


def test_released_swin_converts():
    def earlier(name):  # Swin's authors put the downsampling at the end of the stage before
        first, stage, *rest = name.split(".", 2)
        return f"{first}.{int(stage) - 1}.{rest[0]}" if "downsample" in name else name
    swin = {"backbone": "swin_tiny_patch4_window7_224"}
    model = q2l.build(["a"], pretrained=False, image_size=224, d_model=64, ffn=64, **swin).eval()
    fresh = q2l.build(["a"], pretrained=False, image_size=224, d_model=64, ffn=64, **swin).eval()
    state = released_format(model, earlier)
    state["state_dict"]["module.backbone.0.layers.0.blocks.0.attn.relative_position_index"] = \
        torch.zeros(1)
    fresh.load_state_dict(convert("q2l", state), strict=True)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(fresh(images), model(images))


@pytest.mark.slow
def test_released_file_evaluates_from_the_command_line(tmp_path):
    size = ("--data", "scenes", "--backbone", "test_resnet", "--freeze")
    model = q2l.build([str(k) for k in range(20)], backbone="test_resnet", pretrained=False,
                      image_size=128, d_model=64, ffn=96, self_attention=True).eval()
    file = tmp_path / "released.pkl"
    torch.save(released_format(model, lambda name: "body." + name), file)
    older = tmp_path / "older.pkl"  # as numpy 1 wrote it
    with zipfile.ZipFile(file) as new, zipfile.ZipFile(older, "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in older.read_bytes()
    text = run("-m", "tools.convert", "--model", "q2l", *size, older, tmp_path / "out")
    assert "20 classes" in text
    stored = torch.load(tmp_path / "out/last.pt")
    assert all(torch.equal(stored["model"][name], x) for name, x in model.state_dict().items()
               if "num_batches" not in name)
    text = run("eval.py", "--checkpoint", tmp_path / "out/last.pt", "--limit", 64)
    assert "mAP" in text and "64 images" in text
    text = run("-m", "tools.convert", "--model", "q2l", "--data", "scenes", "--backbone", "resnet18",
               file, tmp_path / "other", ok=False)
    assert "Traceback" not in text and "it does not fit: check --data, --backbone" in text
