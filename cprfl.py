"""CPRFL: category-prompt refined feature learning, for long-tailed multi-label recognition.

Paper: Yan et al., "Category-Prompt Refined Feature Learning for Long-Tailed Multi-Label Image
Classification", ACM MM 2024. Its equations:

    (1)   F = phi(f)                      local features, a linear map: HW tokens of width d
    (2)   P = GELU(W W1 + b1) W2 + b2     prompts from the class names' text features W (K, m)
    (3)   Z = [F; P]
    (4)   Z' = MHA(Z)                     visual-semantic interaction; keeps the prompts' outputs P'
    (5)   P'' = GELU(P' Wr + b3) Wo + b4  no residual connection, here or around the attention
    (6)   s_k = sigmoid(p''_k . p_k)      the refined feature against its own prompt, unscaled
    (7)   asymmetric loss, g+ 0, g- 4, margin 0.05

Paper, released code, this file:
- Text encoder: frozen in the paper; in the released code the freezing is commented out, so it is
  trained. Here frozen; `tune_text` trains it.
- Released: 80 epochs of schedule, of which training runs 79 on COCO-LT and 29 on VOC-LT; batch 16.
  Paper: 30 epochs, batch 32. Here as released.
- Learning rate: the released script has 1e-5 for both sets; 5e-5 for VOC-LT occurs only in the name
  of a run in its configuration. Here 1e-5.
- Released: LayerNorm before attention and before Eq. 5, heads of width 512, no bias in queries,
  keys and values, no position embedding, dropout 0.1 after each linear map but not on the attention
  weights. The paper's equations leave them out.
- Released: a lower learning rate for the backbone is set up but never takes effect. Here: one
  learning rate for all, unless `head_lr` says otherwise.
- Eq. 7 as released: weights without gradient, probabilities at least 1e-8, mean over B and K.
- Released: the best epoch on the test set is reported. Here: the EMA weights after the last one.
- Only the prompts' outputs are used, so only the prompts are queries; what depends on no image
  (the prompts' norm, queries, keys and values) is computed once per batch. The values are the same.

Run: python cprfl.py                          long-tailed scenes on a CPU: 65.6 mAP in 3 minutes
     python cprfl.py --data voc-lt --root DIR the released recipe, for 86.28 mAP (not run here)
Copy: the file stands alone.
"""
import warnings
import zlib
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

TEMPLATE = "a photo of a {}."


def text_tower(name, tag):
    """open_clip's text tower in float32. tag None: untrained, the same at each call."""
    import open_clip  # only here and below: your own text features do not need this package
    config = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = open_clip.create_model(name, tag, force_quick_gelu=config.get("quick_gelu", False))
    del tower.visual, tower.logit_scale  # text features need neither
    return tower.eval()


def text_tokens(classes, name):
    import open_clip
    sentences = [TEMPLATE.format(label.replace("_", " ")) for label in classes]
    return open_clip.get_tokenizer(name)(sentences)  # (K, context length)


def name_and_weights(text):
    """open_clip's name and its weights' tag; text random: RN50's tower, untrained."""
    import open_clip
    tags = open_clip.list_pretrained_tags_by_model(text)
    if text != "random" and not tags:
        raise ValueError(f"text={text}: random or one of {', '.join(open_clip.list_models())}")
    return ("RN50", None) if text == "random" else (text, "openai" if "openai" in tags else tags[0])


@torch.no_grad()
def class_features(classes, text):
    """W (K, m), cached in a file; a cache made from other inputs is refused. Raises ValueError."""
    name, tag = name_and_weights(text)
    if tag is None:
        print("text features: of an UNTRAINED text tower (text=random)")
        return text_tower(name, tag).encode_text(text_tokens(classes, name))
    record = {"text": text, "weights": tag, "template": TEMPLATE, "classes": list(classes)}
    key = zlib.crc32("\n".join(classes).encode())
    file = Path(torch.hub.get_dir(), "manylabels", f"{text}-{tag}-{key:08x}.pt")
    if file.is_file():
        stored = torch.load(file, weights_only=True)
        if stored["record"] != record:
            raise ValueError(f"{file} holds features of other classes or weights: delete it")
        return stored["features"]
    try:
        features = text_tower(text, tag).encode_text(text_tokens(classes, text))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"text={text}: {str(error)[:100]}...\nTwo ways out: go online once (then "
                         f"{file} keeps the features), or --text-features FILE: a .npy or .pt "
                         f"file with your own ({len(classes)}, m)") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"record": record, "features": features}, file)
    return features


def own_features(features, count):
    """A (K, m) tensor from a tensor, a .npy or a .pt file. Raises ValueError."""
    try:
        if isinstance(features, str):
            features = np.load(features) if features.endswith(".npy") \
                else torch.load(features, weights_only=True)
        features = torch.as_tensor(features, dtype=torch.float32)
    except Exception as error:  # damaged files raise many kinds of error
        raise ValueError(f"text features {features}: not .npy or .pt ({error!r:.90})") from error
    if features.ndim != 2 or len(features) != count or not features.numel() \
            or not features.isfinite().all():
        raise ValueError(f"text features {tuple(features.shape)}: must be finite, ({count}, m)")
    return features


class Interaction(nn.Module):
    """Eq. 3-5: P'' (B, K, d) from tokens F (B, HW, d) and prompts P (K, d)."""

    def __init__(self, d, heads, head_dim, ffn, dropout):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.to_qkv = nn.Linear(d, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, d)
        self.Wr, self.Wo = nn.Linear(d, ffn), nn.Linear(ffn, d)

    def attend(self, tokens, prompts):
        """Queries (B, heads, K, head_dim); keys and values (B, heads, HW + K, head_dim)."""
        tokens, prompts = self.norm1(tokens), self.norm1(prompts)
        wq, wk, wv = self.to_qkv.weight.chunk(3)

        def heads(x, w):  # (..., N, d) -> (..., heads, N, head_dim)
            return F.linear(x, w).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        rows = (tokens.shape[0], -1, -1, -1)
        # Eq. 3
        k, v = (torch.cat([heads(tokens, w), heads(prompts, w).expand(rows)], 2) for w in (wk, wv))
        return heads(prompts, wq).expand(rows), k, v

    def forward(self, tokens, prompts):
        q, k, v = self.attend(tokens, prompts)
        # Eq. 4. No dropout on the weights of the attention, as released.
        x = F.scaled_dot_product_attention(q, k, v)
        x = self.norm2(self.dropout(self.to_out(x.transpose(1, 2).flatten(2))))  # (B, K, d)
        return self.dropout(self.Wo(self.dropout(F.gelu(self.Wr(x)))))  # Eq. 5


class CPRFL(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): Eq. 1-6 on a backbone.

    `text`: open_clip's name of the text tower, or random; `tune_text` trains it. `text_features`:
    your own (K, m), a tensor or a .npy or .pt file, of a norm near 10 (CLIP's). `prompts`:
    nonlinear (Eq. 2; its hidden width is tau x d_model), linear or random. `paths`: those that
    carry the prompts' gradient: both, interaction, or direct (backbone, phi and interaction do not
    train). Raises ValueError.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, text="RN50",
                 text_features=None, d_model=2048, heads=8, head_dim=512, ffn=2048, tau=0.5,
                 dropout=0.1, tune_text=False, prompts="nonlinear", paths="both",
                 output_stride=None):
        super().__init__()
        for name, value, choices in (("prompts", prompts, ("nonlinear", "linear", "random")),
                                     ("paths", paths, ("both", "interaction", "direct"))):
            if value not in choices:
                raise ValueError(f"{name}={value}: choose from {', '.join(choices)}")
        fixed = getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False)  # ViT, Swin
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained, num_classes=0, global_pool="",
            img_size=image_size if fixed else None, output_stride=output_stride)
        self.paths, self.tune_text = paths, tune_text
        self.phi = nn.Linear(self.backbone.num_features, d_model)
        if tune_text:
            if text_features is not None:
                raise ValueError("tune_text trains the encoder `text`: it takes no text_features")
            name, tag = name_and_weights(text)
            self.text = text_tower(name, tag if pretrained else None)
            self.register_buffer("sentences", text_tokens(classes, name), persistent=False)
            features = self.text.encode_text(self.sentences).detach()
        else:
            features = class_features(classes, text) if text_features is None \
                else own_features(text_features, len(classes))
            self.register_buffer("text_features", features)
            # A released checkpoint lacks the text features: keep those from `build`.
            self.register_load_state_dict_pre_hook(
                lambda module, state, prefix, *_: state.setdefault(
                    f"{prefix}text_features", module.text_features))
        m, t = features.shape[1], int(tau * d_model)
        if prompts == "random":
            self.prompts = nn.Parameter(torch.randn(len(classes), d_model))
        else:
            self.prompts = nn.Linear(m, d_model) if prompts == "linear" else nn.Sequential(
                nn.Linear(m, t), nn.GELU(), nn.Linear(t, d_model))  # Eq. 2
        self.interaction = Interaction(d_model, heads, head_dim, ffn, dropout)
        if paths == "direct":  # the features' gradient is cut, so nothing before them learns
            for part in (self.backbone, self.phi, self.interaction):
                part.requires_grad_(False)

    def features(self, images):
        """(B, 3, h, w) -> (B, width, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
        x = self.backbone.forward_features(images)
        if x.ndim == 3:  # (B, class and register tokens + HW, d)
            grid = self.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
            x = x[:, self.backbone.num_prefix_tokens:].transpose(1, 2).unflatten(2, grid)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x

    def category_prompts(self):
        """P (K, d): Eq. 2, or what an ablation puts in its place."""
        if isinstance(self.prompts, nn.Parameter):
            return self.prompts
        return self.prompts(self.text.encode_text(self.sentences) if self.tune_text
                            else self.text_features)

    def score(self, tokens, prompts):
        """Eq. 3-6 before the sigmoid: (B, K)."""
        into, against = prompts, prompts  # the two paths by which the prompts get their gradient
        if self.paths == "interaction":
            against = prompts.detach()
        elif self.paths == "direct":
            into = prompts.detach()
        refined = self.interaction(tokens, into)
        wide = torch.promote_types(refined.dtype, torch.float32)
        return (refined.to(wide) * against.to(wide)).sum(-1)  # Eq. 6, before the sigmoid

    def forward(self, images):
        tokens = self.phi(self.features(images).flatten(2).transpose(1, 2))  # Eq. 1: (B, HW, d)
        return self.score(tokens, self.category_prompts())

    def attention(self, images):
        """Logits (B, K) and the prompts' weights on the tokens (B, heads, K, H, W), which sum to 1
        with those on the other prompts."""
        x, prompts = self.features(images), self.category_prompts()
        tokens = self.phi(x.flatten(2).transpose(1, 2))
        q, k, _ = self.interaction.attend(tokens, prompts)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        maps = weights[..., :tokens.shape[1]].unflatten(-1, x.shape[-2:])
        return self.score(tokens, prompts), maps


build = CPRFL  # the name that train.py calls
REDUCTION = "mean"  # of `loss` over the batch


def loss(logits, targets, gamma_pos=0.0, gamma_neg=4.0, margin=0.05, eps=1e-8):
    """Eq. 7, the mean over the known entries. logits, targets (B, K): 1, 0, -1 (unknown)."""
    p = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    yes, known = targets > 0, targets >= 0
    truth = torch.where(yes, p, (1 - p + margin).clamp(max=1))  # probability of the true label
    gamma = torch.where(yes, gamma_pos, gamma_neg)
    weight = (1 - truth.detach()) ** gamma * known
    return -(weight * truth.clamp(min=eps).log()).sum() / known.sum().clamp(min=1)  # Eq. 7


def param_groups(model, lr, weight_decay, head_lr=1.0):
    """Parameter groups, as released: one learning rate, no weight decay on 1-D parameters. Another
    `head_lr` gives all but the backbone `head_lr` x `lr`."""
    if isinstance(model.prompts, nn.Module) and not model.tune_text:  # prompts from fixed features
        norm = model.text_features.norm(dim=1).mean()
        if norm < 3:  # then the prompts of all classes begin almost parallel
            warnings.warn(f"the text features have a mean norm of {norm:.1f}, CLIP's have about "
                          "10: scale them to 10; at norm 1 CPRFL trains far worse")
    params = [(name.startswith("backbone."), p.ndim > 1, p)
              for name, p in model.named_parameters() if p.requires_grad]
    return [{"params": [p for old, wide, p in params if (old, wide) == (of_backbone, decays)],
             "lr": lr * times, "weight_decay": weight_decay * decays}
            for of_backbone, times in ((True, 1), (False, head_lr)) for decays in (True, False)]


def from_official(state):
    """A released checkpoint's tensors under this model's names, loadable with strict=True."""
    state = state.get("state_dict", state.get("model", state))
    layer = "attention.layers.0."
    renamed = {"Backbone.0": "backbone.conv1", "Backbone.1": "backbone.bn1",
               **{f"Backbone.{i + 3}": f"backbone.layer{i}" for i in range(1, 5)},
               "fc.0": "phi", "label_emb.0": "prompts.0", "label_emb.3": "prompts.2",
               f"{layer}0.norm": "interaction.norm1", f"{layer}0.fn.to_qkv": "interaction.to_qkv",
               f"{layer}0.fn.to_out.0": "interaction.to_out", f"{layer}1.norm": "interaction.norm2",
               f"{layer}1.fn.net.0": "interaction.Wr", f"{layer}1.fn.net.3": "interaction.Wo",
               "text_encoder": "text"}  # trained; loads with --tune-text
    result = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        for old, new in renamed.items():
            if name.startswith(f"{old}."):
                result[new + name.removeprefix(old)] = tensor
    return result


RELEASED = {
    "backbone": "resnet101.tv_in1k", "pretrained": True, "image_size": 448, "mean": (0., 0., 0.),
    "std": (1., 1., 1.), "augment": ("cutout", "randaugment"), "optimizer": "adamw", "lr": 1e-5,
    "weight_decay": 1e-4, "schedule": "onecycle", "pct_start": 0.1, "epochs": 79,
    "schedule_epochs": 80, "batch_size": 16, "ema": 0.998, "text": "RN50"}
SCENES = dict(
    RELEASED, backbone="test_resnet", pretrained=False, image_size=128, output_stride=16,
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), augment=("flip",), lr=5e-4, weight_decay=1e-2,
    pct_start=0.2, epochs=40, schedule_epochs=0, clip_grad=1., ema=0., text="random",
    d_model=128, heads=4, head_dim=32, ffn=256, dropout=0.)
RECIPES = {
    "scenes-lt": SCENES,
    "scenes": dict(SCENES, epochs=8),
    "csv": RELEASED,
    "coco-lt": RELEASED,  # paper: 66.69 mAP
    "voc-lt": dict(RELEASED, epochs=29),  # paper: 86.28
    "voc2007": dict(RELEASED, epochs=29),
    "coco2014": RELEASED,
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "cprfl", *sys.argv[1:]])
