"""Eight training steps against the released training code, in float64 from the same weights."""
import math
import zlib

import numpy as np
import pytest
import timm
import torch
from conftest import PARITY, default_settings, released_weights, shared_figures
from test_cprfl import released_shapes as cprfl_shapes
from test_q2l import transformer_shapes

import cprfl
import csra
import q2l
from tools.released import convert
from train import make_optimizer, make_schedule


def resnet_shapes(backbone):
    state = timm.create_model(backbone, num_classes=0).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def csra_run():
    shapes = resnet_shapes("resnet18")
    shapes |= {f"classifier.multi_head.{h}.head.weight": (20, 512, 1, 1) for h in range(4)}
    model = csra.build(range(20), backbone="resnet18", pretrained=False, image_size=128, heads=4,
                       lam=0.5)
    return csra, model, shapes, {"optimizer": "sgd", "lr": 0.01, "schedule": "step",
                                 "decay_epochs": 99}


def q2l_run():
    shapes = {f"backbone.0.body.{name}": shape for name, shape in resnet_shapes("resnet18").items()
              if "num_batches" not in name}
    shapes |= transformer_shapes({"hidden": 512, "ff": 1024, "K": 20})
    model = q2l.build(range(20), backbone="resnet18", pretrained=False, image_size=128, ffn=1024,
                      dropout=0)
    return q2l, model, shapes, {"lr": 1e-4, "weight_decay": 1e-2, "schedule": "step",
                                "decay_epochs": 99}


def cprfl_run():
    shapes = cprfl_shapes(resnet_shapes("resnet26"), d=256, inner=128, ffn=256)
    a = np.random.default_rng(zlib.crc32(b"text_features")).standard_normal((20, 1024))
    model = cprfl.build(range(20), backbone="resnet26", pretrained=False, image_size=128, d_model=256,
                        heads=4, head_dim=32, ffn=256, dropout=0,
                        text_features=torch.tensor(a / math.sqrt(1024) * 32))
    return cprfl, model, shapes, {"lr": 5e-5, "pct_start": 0.1, "epochs": 80}


@pytest.mark.slow
@pytest.mark.parametrize("run", [csra_run, q2l_run, cprfl_run])
def test_parity_of_training(run):
    """Through build, convert, param_groups, loss, and the loop's optimizer and schedule."""
    method, model, shapes, settings = run()
    name = method.__name__
    if full := shared_figures("trajectories"):
        assert {key: list(shape) for key, shape in shapes.items()} == full[name]["keys"]
    model.load_state_dict(convert(name, released_weights(shapes)))
    model.double().train()
    s = default_settings(**settings)
    groups = method.param_groups(model, s.lr, s.weight_decay)
    optimizer = make_optimizer(groups, s)
    scheduler = make_schedule(optimizer, s, steps_per_epoch=1)

    rng = np.random.default_rng(7)
    images = torch.tensor(rng.standard_normal((8, 3, 128, 128)).astype(np.float32)).double()
    targets, losses = torch.tensor(rng.random((8, 20)) < 0.3).to(torch.int8), []
    for _ in range(8):
        loss = method.loss(model(images), targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    expected = PARITY["trajectories"][name]
    print(f"\n{name}, training: {max(abs(a / b - 1) for a, b in zip(losses, expected)):.0e}")
    assert losses == pytest.approx(expected, rel=1e-9)
