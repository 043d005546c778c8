"""The tensors of the released checkpoints, under the names of this project's models.

    model.load_state_dict(convert("q2l", torch.load("released.pth")), strict=True)
"""
import torch
from timm.models import tresnet


def convert(name, state):
    """state: the content of a file that the authors of the method `name` (csra, q2l, cprfl, asl)
    released. Returns the tensors under this project's names. Raises ValueError."""
    converters = {"csra": convert_csra, "q2l": convert_q2l, "cprfl": convert_cprfl,
                  "asl": convert_asl}
    if name not in converters:
        raise ValueError(f"no released checkpoints of {name!r}: choose from {list(converters)}")
    try:
        for key in ("state_dict", "model"):
            if key in state:
                state = state[key]
        plain = {}
        for key, tensor in state.items():
            plain[key.removeprefix("module.")] = tensor
        return converters[name](plain)
    except Exception as error:  # a name is missing, a shape is wrong, ...
        raise ValueError(f"not a checkpoint released with {name} ({error!r})") from error


# --------------------------------------------------------------------------------------------- CSRA


def convert_csra(state):
    """ResNet and ViT keep the names of torchvision and timm. A ViT's own classifier, which CSRA
    does not use, is dropped."""
    unused = ("head.", "head_dist.", "pre_logits.", "fc.")
    result = {}
    heads = []  # their weights (K, d, 1, 1)
    for name, tensor in sorted(state.items()):
        if name.startswith("classifier.multi_head."):
            heads.append(tensor)
        elif not name.startswith(unused):
            result[f"backbone.{name}"] = tensor
    if not heads:
        raise ValueError("no classifier.multi_head.0.head.weight")
    result["head.weight"] = torch.stack(heads).flatten(2)  # (heads, K, d)
    return result


# ---------------------------------------------------------------------------------------------- Q2L


Q2L_UNUSED = ("relative_position_index", "attn_mask", ".head.weight", ".head.bias")


def convert_q2l(state):
    """ResNet, TResNet, Swin and CvT."""
    if "backbone.0.body.body.conv1.0.weight" in state:
        state = tresnet.checkpoint_filter_fn(state, None)
    result = {"head.query_embed": state.pop("query_embed.weight")}
    for name, tensor in state.items():
        if name.startswith("backbone.1.") or name.endswith(Q2L_UNUSED):  # 1: positions
            continue
        if name.startswith("backbone."):
            result[q2l_backbone_name(name)] = tensor
        elif name.startswith("fc."):
            result[name.replace("fc.", "head.")] = tensor.squeeze(0)  # (1, K, d) -> (K, d)
        elif "in_proj_" in name:  # one matrix for queries, keys and values
            for part, third in zip("qkv", tensor.chunk(3)):
                result[q2l_head_name(name).replace("in_proj_", f"{part}.")] = third
        else:
            result[q2l_head_name(name)] = tensor
    return result


def q2l_backbone_name(name):
    """Swin's authors put the downsampling at the end of a stage, timm at the start of the next."""
    name = name.removeprefix("backbone.0.").removeprefix("body.")
    for stage in (2, 1, 0):
        name = name.replace(f"layers.{stage}.downsample", f"layers.{stage + 1}.downsample")
    return f"backbone.{name}"


def q2l_head_name(name):
    name = name.replace("transformer.decoder.norm.", "head.norm.")
    name = name.replace("transformer.", "head.").replace(".layers.", ".")
    if ".encoder." in name:  # here one class serves as encoder and decoder layer
        name = name.replace("norm2", "norm3").replace("norm1", "norm2")
        name = name.replace("self_attn", "multihead_attn")
    return name


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
        raise ValueError("not a TResNet")
    result = {}
    for name, tensor in tresnet.checkpoint_filter_fn(state, None).items():
        name = f"backbone.{name}".replace("backbone.head.fc.", "head.")
        result[name] = tensor
    return result
