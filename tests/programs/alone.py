"""One training step of a method file that lies alone in a folder, without open_clip.

Run: python alone.py NAME
"""
import importlib
import sys

import torch

sys.modules["open_clip"] = None  # as if it were not installed
MORE = {"q2l": {"d_model": 32, "ffn": 32, "freeze": False},
        "cprfl": {"d_model": 32, "text_features": torch.randn(2, 8)}}

name = sys.argv[1]
method = importlib.import_module(name)
model = method.build(["a", "b"], backbone="test_resnet", pretrained=False, image_size=64,
                     **MORE.get(name, {}))
targets = torch.ones(2, 2, dtype=torch.int8)
method.loss(model(torch.randn(2, 3, 64, 64)), targets).backward()
torch.optim.SGD(method.param_groups(model, 0.01, 1e-4)).step()
assert not {"data", "train", "eval", "lib", "readers"} & sys.modules.keys()
