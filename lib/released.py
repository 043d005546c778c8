"""The tensors of the released checkpoints, under the names of this project's models.

    model.load_state_dict(convert("q2l", torch.load("released.pth")), strict=True)
"""
import math

import torch
from timm.models import swin_transformer, tresnet


def convert(name, state):
    """state: what a file that the authors of the method `name` (csra, q2l, cprfl, asl) released
    holds. Returns the tensors by this project's names. Raises ValueError."""
    converters = {"csra": convert_csra, "q2l": convert_q2l, "cprfl": convert_cprfl,
                  "asl": convert_asl}
    if name not in converters:
        raise ValueError(f"no released checkpoints of {name!r}: choose from {list(converters)}")
    for key in ("state_dict", "model"):
        if key in state:
            state = state[key]
    plain = {}
    for key, tensor in state.items():
        if not torch.is_tensor(tensor):
            raise ValueError(f"{key!r} is not a tensor")
        plain[key.removeprefix("module.")] = tensor
    return converters[name](plain)


# --------------------------------------------------------------------------------------------- CSRA


def convert_csra(state):
    """ResNet and ViT keep the names of torchvision and timm. A ViT's own classifier, which CSRA
    does not use, is dropped."""
    unused = ("head.", "head_dist.", "pre_logits.", "fc.")
    weights = []  # of the heads, in order
    while f"classifier.multi_head.{len(weights)}.head.weight" in state:
        weights.append(state[f"classifier.multi_head.{len(weights)}.head.weight"])
    if not weights:
        raise ValueError("no classifier.multi_head.0.head.weight: not a checkpoint of CSRA")
    result = {"head.weight": torch.stack(weights).flatten(2)}  # (heads, K, d, 1, 1) -> 3-D
    for name, tensor in state.items():
        if not name.startswith(("classifier.", *unused)):
            result[f"backbone.{name}"] = tensor
    return result


# ---------------------------------------------------------------------------------------------- Q2L


def convert_q2l(state):
    """ResNet, TResNet, Swin and CvT."""
    result = {}
    for name, tensor in convert_q2l_backbone(state).items():
        result[f"backbone.{name}"] = tensor
    for name, tensor in state.items():
        if name.startswith("backbone."):
            continue
        if name.startswith("fc."):
            tensor = tensor.squeeze(0)  # (1, K, d) -> (K, d)
        name = q2l_head_name(name)
        if "in_proj_" in name:  # queries', keys' and values' matrices in one
            for part, third in zip("qkv", tensor.chunk(3)):
                result[name.replace("in_proj_", f"{part}.")] = third
        else:
            result[name] = tensor
    return result


def q2l_head_name(name):
    if name.startswith("fc."):
        return name.replace("fc.", "head.")
    if name == "query_embed.weight":
        return "head.query_embed"
    name = name.replace("transformer.decoder.norm.", "head.norm.")
    name = name.replace("transformer.", "head.").replace(".layers.", ".")
    if ".encoder." in name:  # here one class serves as encoder and decoder layer
        name = name.replace("norm2", "norm3").replace("norm1", "norm2")
        name = name.replace("self_attn", "multihead_attn")
    return name


def convert_q2l_backbone(state):
    """The backbone's tensors under timm's names."""
    backbone = {}
    for name, tensor in state.items():
        name_in_backbone = name.removeprefix("backbone.0.")
        if name_in_backbone != name and not name_in_backbone.startswith("head."):
            backbone[name_in_backbone.removeprefix("body.")] = tensor
    if "body.conv1.0.weight" in backbone:  # TResNet
        return tresnet.checkpoint_filter_fn(backbone, None)
    if "patch_embed.proj.weight" in backbone:  # Swin
        return swin_transformer.checkpoint_filter_fn(backbone, empty_swin(backbone))
    if "bn1.weight" in backbone or "stage0.patch_embed.proj.weight" in backbone:  # ResNet, CvT
        return backbone
    raise ValueError("its backbone is neither ResNet, TResNet, Swin nor CvT: no conversion")


def empty_swin(state):
    """A Swin of the shapes in `state`, which timm's conversion asks for."""
    table_name = ".blocks.0.attn.relative_position_bias_table"
    heads, depths = [], []  # of each stage
    while f"layers.{len(heads)}{table_name}" in state:
        stage = f"layers.{len(heads)}"
        heads.append(state[stage + table_name].shape[1])
        depth = 0
        while f"{stage}.blocks.{depth}.norm1.weight" in state:
            depth += 1
        depths.append(depth)
    table_rows = len(state["layers.0" + table_name])  # (2 window - 1)^2
    window = (math.isqrt(table_rows) + 1) // 2
    with torch.device("meta"):
        return swin_transformer.SwinTransformer(
            img_size=32 * window, window_size=window, num_classes=0, num_heads=heads, depths=depths,
            embed_dim=len(state["patch_embed.proj.weight"]))


# -------------------------------------------------------------------------------------------- CPRFL


CPRFL_NAMES = {  # released -> here; the ResNet's parts are numbered
    "Backbone.0": "backbone.conv1",
    "Backbone.1": "backbone.bn1",
    "Backbone.4": "backbone.layer1",
    "Backbone.5": "backbone.layer2",
    "Backbone.6": "backbone.layer3",
    "Backbone.7": "backbone.layer4",
    "fc.0": "phi",
    "label_emb.0": "prompts.0",
    "label_emb.3": "prompts.2",
    "attention.layers.0.0.norm": "interaction.norm1",
    "attention.layers.0.0.fn.to_qkv": "interaction.to_qkv",
    "attention.layers.0.0.fn.to_out.0": "interaction.to_out",
    "attention.layers.0.1.norm": "interaction.norm2",
    "attention.layers.0.1.fn.net.0": "interaction.Wr",
    "attention.layers.0.1.fn.net.3": "interaction.Wo",
    "text_encoder": "text",  # trained; loads into a model with tune_text
}


def convert_cprfl(state):
    result = {}
    for name, tensor in state.items():
        for released, here in CPRFL_NAMES.items():
            if name.startswith(f"{released}."):
                result[here + name.removeprefix(released)] = tensor
    if not result:
        raise ValueError("no tensor has a name of CPRFL's")
    return result


# ---------------------------------------------------------------------------------------------- ASL


def convert_asl(state):
    """TResNet."""
    if "body.conv1.0.weight" not in state:
        raise ValueError("no body.conv1.0.weight: not a TResNet of ASL's")
    result = {}
    for name, tensor in tresnet.checkpoint_filter_fn(state, None).items():
        if name.startswith("head."):
            result[name.replace("head.fc.", "head.")] = tensor
        else:
            result[f"backbone.{name}"] = tensor
    return result
