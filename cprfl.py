"""CPRFL: category-prompt refined feature learning, for long-tailed multi-label recognition.

Paper: Yan et al., "Category-Prompt Refined Feature Learning for Long-Tailed Multi-Label Image
Classification", ACM MM 2024, arXiv 2408.08125. Its equations:

    (1)   F = phi(f)                      local features, a linear map: HW tokens of width d
    (2)   P = GELU(W W1 + b1) W2 + b2     prompts, from text features W (K, m) of class names
    (3)   Z = [F; P]
    (4)   Z' = MHA(Z)                     visual-semantic interaction; keeps the prompts' outputs P'
    (5)   P'' = GELU(P' Wr + b3) Wo + b4  no residual connection, here or around the attention
    (6)   s_k = sigmoid(p''_k . p_k)      the refined feature times its own prompt, unscaled
    (7)   asymmetric loss, g+ 0, g- 4, margin 0.05

Where the paper, the released code and this file differ:
- Text tower: frozen in the paper. In the released code, the freezing is commented out, so the tower
  is trained. Here: frozen; `tune_text` trains it.
- Reported epoch: from epoch 11 on, the released code picks the best epoch of the EMA weights on the
  test set. Here: the EMA weights after the last epoch.
- Epochs: the paper says 30, with batch size 32. The released loop runs to epoch 80, with batch size
  16; a comment says that VOC-LT stops after 29. Here: 80 for COCO-LT, 29 for VOC-LT, batch size 16.
- Learning rate: 1e-5 in the released script, for both data sets. 5e-5 appears only in a comment
  and in the name of a COCO run. Here: 1e-5.
- Backbone: it is not known whether the weights were torchvision's V1 or V2. The difference is 2.5
  to 3 mAP on COCO. Here: V1; --backbone resnet101.tv2_in1k gives V2.
- Backbone's learning rate: the released code sets up a lower one, but it never takes effect. Here:
  one learning rate for all parameters, unless you set `head_lr`.
- Architecture, as released; the paper's equations leave this out: LayerNorm before attention and
  before Eq. 5; heads of width 512; no bias in the query, key and value projections; no position
  embedding; dropout 0.1 after the output projection, after GELU and after the last linear layer,
  and nowhere else.
- Eq. 7, as released: the focusing weights carry no gradient, probabilities are clamped to at least
  1e-8, and the loss is the mean over B and K.
- The released training script lacks an argument and a module. "As released" means a repaired copy.
- Faster here, with the same results: only the prompts are queries, because only their outputs are
  used. Whatever does not depend on the images is computed once per batch.

Run: python cprfl.py                            long-tailed scenes on a CPU: 68.3 mAP in 5 to 11 min
     python cprfl.py --data voc-lt --root ROOT  the paper has 86.28 mAP; not run here
To copy: this file needs no other file.
"""
import warnings

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn


class Interaction(nn.Module):
    """Eq. 3-5: P'' (B, K, d) from tokens F (B, HW, d) and prompts P (K, d)."""

    def __init__(self, d, heads, head_dim, ffn, dropout):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(d)
        self.to_qkv = nn.Linear(d, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, d)
        self.norm2 = nn.LayerNorm(d)
        self.Wr = nn.Linear(d, ffn)
        self.Wo = nn.Linear(ffn, d)
        self.dropout = nn.Dropout(dropout)

    def queries_keys_values(self, tokens, prompts):
        """Queries (B, heads, K, head_dim); keys and values (B, heads, HW + K, head_dim)."""
        tokens = self.norm1(tokens)
        prompts = self.norm1(prompts)
        wq, wk, wv = self.to_qkv.weight.chunk(3)  # one matrix in released checkpoints
        q = self.project(prompts, wq)  # (heads, K, head_dim)
        k = self.project(prompts, wk)
        v = self.project(prompts, wv)
        B = tokens.shape[0]
        q = q.expand(B, -1, -1, -1)
        k = torch.cat([self.project(tokens, wk), k.expand(B, -1, -1, -1)], 2)  # Eq. 3
        v = torch.cat([self.project(tokens, wv), v.expand(B, -1, -1, -1)], 2)
        return q, k, v

    def project(self, x, w):
        """(..., N, d) -> (..., heads, N, head_dim)"""
        return F.linear(x, w).unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def forward(self, tokens, prompts):
        q, k, v = self.queries_keys_values(tokens, prompts)
        # Eq. 4. No dropout on the attention weights, as released.
        x = F.scaled_dot_product_attention(q, k, v)
        x = self.dropout(self.to_out(x.transpose(1, 2).flatten(2)))  # (B, K, d)
        hidden = self.dropout(F.gelu(self.Wr(self.norm2(x))))  # (B, K, ffn)
        return self.dropout(self.Wo(hidden))  # Eq. 5


class CPRFL(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): Eq. 1-6 on a backbone.

    `text`: the text tower, an open_clip model name. random-NAME is the same tower, untrained;
    random means random-RN50. `tune_text` trains the tower. `text_features` replaces it with your
    own features (K, m): a tensor, or a .npy or .pt file. Their norm should be near 10, like CLIP's.
    `prompts`: nonlinear (Eq. 2; its hidden width is tau x d_model), linear or random. `paths`: how
    gradients reach the prompts: through the interaction, through the score of Eq. 6 (direct; then
    backbone, phi and interaction do not train), or both. Raises ValueError.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, text="RN50",
                 text_features: str | None = None, d_model=2048, heads=8, head_dim=512, ffn=2048,
                 tau=0.5, dropout=0.1, tune_text=False, prompts="nonlinear", paths="both",
                 output_stride: int | None = None):
        super().__init__()
        if prompts not in ("nonlinear", "linear", "random"):
            raise ValueError(f"prompts={prompts}: choose from nonlinear, linear, random")
        if paths not in ("both", "interaction", "direct"):
            raise ValueError(f"paths={paths}: choose from both, interaction, direct")
        config = timm.get_pretrained_cfg(backbone)
        fixed_size = getattr(config, "fixed_input_size", False)  # ViT, Swin
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained, num_classes=0, global_pool="",
            img_size=image_size if fixed_size else None,  # timm ignores None
            output_stride=output_stride)
        self.phi = nn.Linear(self.backbone.num_features, d_model)

        # The text features W (K, m): your own, or those of a tower, which may be trained.
        self.tune_text = tune_text
        if tune_text and text_features is not None:
            raise ValueError("tune_text trains the text tower: leave text_features out")
        if text_features is not None:
            features = read_text_features(text_features, len(classes))
        else:
            tower, text_tokens = text_tower(classes, text)
            with torch.no_grad():
                features = tower.encode_text(text_tokens)
        if tune_text:
            self.text = tower
            self.register_buffer("text_tokens", text_tokens, persistent=False)
        else:
            self.register_buffer("text_features", features)

        m = features.shape[1]
        t = round(tau * d_model)
        if prompts == "nonlinear":
            self.prompts = nn.Sequential(nn.Linear(m, t), nn.GELU(), nn.Linear(t, d_model))  # Eq. 2
        elif prompts == "linear":
            self.prompts = nn.Linear(m, d_model)
        else:
            self.prompts = nn.Parameter(torch.randn(len(classes), d_model))
        self.interaction = Interaction(d_model, heads, head_dim, ffn, dropout)
        self.paths = paths

    def features(self, images):
        """(B, 3, h, w) -> (B, width, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
        x = self.backbone.forward_features(images)
        if x.ndim == 3:  # tokens (B, prefix + HW, d); the prefix: class and register tokens
            grid = self.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
            x = x[:, self.backbone.num_prefix_tokens:]
            x = x.transpose(1, 2).unflatten(2, grid)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x

    def category_prompts(self):
        """P (K, d): Eq. 2, or what an ablation puts in its place."""
        if isinstance(self.prompts, nn.Parameter):  # prompts="random"
            return self.prompts
        if self.tune_text:
            return self.prompts(self.text.encode_text(self.text_tokens))
        return self.prompts(self.text_features)

    def score(self, tokens, prompts):
        """Eq. 3-6 before the sigmoid: (B, K)."""
        refined = self.interaction(tokens, prompts)  # (B, K, d)
        if self.paths == "interaction":
            prompts = prompts.detach()  # no gradient through the second factor
        if self.paths == "direct":
            refined = refined.detach()  # none through the interaction
        return (at_least_float32(refined) * at_least_float32(prompts)).sum(-1)  # Eq. 6

    def forward(self, images):
        x = self.features(images)
        tokens = self.phi(x.flatten(2).transpose(1, 2))  # Eq. 1: (B, HW, d)
        return self.score(tokens, self.category_prompts())

    def attention(self, images):
        """Logits (B, K) and the prompts' weights on the tokens (B, heads, K, H, W), which sum to 1
        together with those on the K prompts."""
        x = self.features(images)
        tokens = self.phi(x.flatten(2).transpose(1, 2))
        prompts = self.category_prompts()
        q, k, _ = self.interaction.queries_keys_values(tokens, prompts)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        of_tokens = weights[..., :tokens.shape[1]]  # (B, heads, K, HW)
        return self.score(tokens, prompts), of_tokens.unflatten(-1, x.shape[-2:])

    def load_state_dict(self, state, *args, **kwargs):
        """A released checkpoint lacks the text features: those made in __init__ are kept."""
        if not self.tune_text and "text_features" not in state:
            state = dict(state, text_features=self.text_features)
        return super().load_state_dict(state, *args, **kwargs)


build = CPRFL  # the name that train.py calls
REDUCTION = "mean"  # for train.py: what `loss` does over the batch


def at_least_float32(x):
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def loss(logits, targets, gamma_pos=0.0, gamma_neg=4.0, margin=0.05, eps=1e-8):
    """Eq. 7, the mean over the known entries. logits, targets (B, K): 1, 0, -1 (unknown)."""
    p = torch.sigmoid(at_least_float32(logits))
    positive = targets == 1
    known = targets >= 0
    p_m = (p - margin).clamp(min=0)  # of negatives
    truth = torch.where(positive, p, 1 - p_m)  # probability of the true label
    gamma = torch.where(positive, gamma_pos, gamma_neg)
    weight = (1 - truth.detach()) ** gamma
    log_truth = truth.clamp(min=eps).log()
    return -(weight * log_truth * known).sum() / known.sum().clamp(min=1)  # Eq. 7


def param_groups(model, lr, weight_decay, head_lr=1.0):
    """Parameter groups, as released: one learning rate, no weight decay on 1-D parameters.
    `head_lr`: the learning rate of everything else as a multiple of the backbone's."""
    backbone = list(model.backbone.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = []
    for parameters, part_lr in ((backbone, lr), (rest, head_lr * lr)):
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": matrices, "lr": part_lr, "weight_decay": weight_decay})
        groups.append({"params": vectors, "lr": part_lr, "weight_decay": 0.0})
    return groups


RELEASED = {
    "backbone": "resnet101.tv_in1k", "pretrained": True, "image_size": 448,
    "mean": (0., 0., 0.), "std": (1., 1., 1.), "augment": ("cutout", "randaugment"),
    "optimizer": "adamw", "lr": 1e-5, "weight_decay": 1e-4, "schedule": "onecycle",
    "pct_start": 0.1, "schedule_epochs": 80, "epochs": 79, "batch_size": 16, "drop_last": False,
    "ema": 0.998, "ema_warmup": False, "text": "RN50",
    "note": "for 66.69 mAP on COCO-LT: stops after 79 of 80 epochs, like the released loop; it is "
            "not known at which epoch the paper's figure was taken"}
SCENES = {  # small, for a CPU
    "backbone": "test_resnet", "pretrained": False, "image_size": 128, "output_stride": 16,
    "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "augment": ("flip",),
    "optimizer": "adamw", "lr": 5e-4, "weight_decay": 1e-2, "schedule": "onecycle",
    "pct_start": 0.2, "epochs": 40, "batch_size": 16, "clip_grad": 1., "text": "random",
    "d_model": 128, "heads": 4, "head_dim": 32, "ffn": 256, "dropout": 0.}
RECIPES = {  # the first is the default
    "scenes-lt": SCENES,
    "scenes": dict(SCENES, epochs=8),
    # no public log shows where to stop, so this runs a whole, shorter schedule
    "csv": dict(
        RELEASED, epochs=20, schedule_epochs=20, ema_warmup=True, drop_last=True, note=""),
    "coco-lt": RELEASED,
    "voc-lt": dict(
        RELEASED, epochs=29,
        note="for 86.28 mAP: stops after 29 of 80 epochs, which is inferred from a comment on VOC "
             "in the released code; it is not known at which epoch the paper's figure was taken"),
    "voc2007": dict(RELEASED, epochs=29, note="not a recipe from the paper"),
    "coco2014": dict(RELEASED, note="not a recipe from the paper"),
}


def read_text_features(source, count):
    """W (K, m) from a tensor, a .npy or a .pt file. Raises ValueError."""
    features = source
    try:
        if isinstance(source, str) and source.endswith(".npy"):
            features = np.load(source)
        elif isinstance(source, str):
            features = torch.load(source, weights_only=True)
        features = torch.as_tensor(features, dtype=torch.float32)
    except Exception as error:  # damaged files raise many kinds of error
        raise ValueError(f"text features {source}: missing, or not a .npy or .pt file") from error
    if features.ndim != 2 or len(features) != count or not features.isfinite().all():
        raise ValueError(f"text features {tuple(features.shape)}: must be finite, of shape "
                         f"({count}, m)")
    norm = features.norm(dim=1).mean()
    if isinstance(source, str) and norm < 3:  # a tensor may come from a trained checkpoint
        warnings.warn(f"the text features have a mean norm of {norm:.1f}, but CLIP's have about "
                      "10: scale them to 10; at norm 1, CPRFL trains far worse")
    return features


def text_tower(classes, text):
    """open_clip's text tower in float32, and the tokens (K, length) of the classes' sentences.

    text: see CPRFL. Raises ValueError.
    """
    import open_clip  # only here: your own text features do not need this package
    if text == "random":
        text = "random-RN50"
    name = text.removeprefix("random-")
    if name not in open_clip.list_models():
        raise ValueError(f"text={text}: choose random, NAME or random-NAME, where NAME is one of "
                         f"{', '.join(open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = None  # untrained
    if name == text:
        if not tags:
            raise ValueError(f"text={text}: open_clip has no weights for it")
        tag = "openai" if "openai" in tags else tags[0]
    quick_gelu = "openai" in tags  # these weights were trained with it
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # an untrained tower is always the same
            tower = open_clip.create_model(name, tag, force_quick_gelu=quick_gelu)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"text={text}: {str(error)[:100]}...\nTwo ways out: go online once, or "
                         "use --text-features FILE, a .npy or .pt file with your own features "
                         f"({len(classes)}, m)") from error
    del tower.visual, tower.logit_scale  # text features need neither
    sentences = [f"a photo of a {label.replace('_', ' ')}." for label in classes]
    return tower.eval(), open_clip.get_tokenizer(name)(sentences)


if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "cprfl", *sys.argv[1:]])
