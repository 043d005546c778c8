"""CPRFL, category-prompt refined feature learning (Yan et al., ACM MM 2024, arXiv 2408.08125).

The problem. In long-tailed data, most labels are rare: in COCO-LT, "person" has 1,128 images, the
rarest label 6. Six images are too few to learn a classifier vector from.
The idea. Make this vector from the label's name. CLIP's text encoder gives related words similar
text features. One small network for all labels turns them into prompts (PI, prompt initialization),
so what the images of "bus" teach it can help "truck". By attention, the prompt looks at the image
and becomes a feature (VSI, visual-semantic interaction). The label's score says how well this
feature agrees with its prompt.

    images -> backbone -> phi -> F (B, v, d), v = h x w cells --+
                                                                v
    names -> CLIP -> W (c, m) -> PI -> prompts P (c, d) -----> VSI -> P' (B, c, d) ----+
                                            |                                          v
                                            +-----------------> score s (B, c) of p'_i . p_i

The paper's equations, for c labels (K in the code). Z = (F, P): a prompt looks at all cells and at
all prompts (which are the same for all images). s~_i is the score less the margin mu. Eq. 7, the
asymmetric loss, is printed without the minus sign.

    Eq. 1   F = phi(f^x_loc)                    a linear map of f^x_loc, the features of the cells
    Eq. 2   P = GELU(W W_1 + b_1) W_2 + b_2                    PI; hidden width t = tau d, tau = 0.5
    Eq. 3   alpha_ij = softmax_j((W_q p_i) . (W_k z_j) / sqrt(d))      where prompt i looks
    Eq. 4   pbar_i = sum_j alpha_ij W_v z_j                    what it finds there
    Eq. 5   p'_i = GELU(pbar_i W_r + b_3) W_o + b_4            no residuals: p_i, pbar_i not added
    Eq. 6   s_i = sigmoid(p'_i . p_i)                          nothing scales the product
    Eq. 7   L = -sum_i [y_i (1 - s_i)^gamma+ log s_i + (1 - y_i) s~_i^gamma- log(1 - s~_i)],
            s~_i = max(s_i - mu, 0)

gamma+ = 0: positives count as in cross-entropy. gamma- = 4: easy negatives count less, and those
with s_i below mu not at all. With gamma+ = gamma- = mu = 0, Eq. 7 is cross-entropy.

The dual path (Fig. 2a). p_i is in Eq. 6 twice, since p'_i is made from it. So the gradient reaches
PI by two roads: P1, from the loss straight to p_i, and P2, through VSI. P1 trains a prompt as any
classifier vector is trained; P2 trains it to ask the image better questions. An example with one
number: suppose VSI(p) = p^2. The score is VSI(p) p = p^3. At p = 2, its slope is 12: 4 by P1, which
is VSI(p), and 8 by P2, which is 2 p times p. (The real VSI begins with a LayerNorm, so there the
gradient by P2 is at a right angle to p.) paths="direct" keeps P1 only, paths="interaction" P2 only,
as in the paper's ablations.

The norm of W matters. If it is small, the biases of PI outweigh the names: all labels have nearly
the same prompt, so the same logit, and nothing scales the product up again. Here are 80 features
drawn at random (m = 1024, d = 2048), before training:

    norm of each text feature   cosine of two prompts   standard deviation over the 80 logits
                            1                    0.93   0.05
             10, like CLIP's                     0.12   0.50

So W is not normalized to length 1.

Run: python cprfl.py       long-tailed synthetic scenes on a CPU: 68.3 mAP in 5 to 11 min, with an
                           untrained text tower, so without CLIP's knowledge of words
                           (mAP: mean average precision, see lib/metrics.py)
     python cprfl.py --data voc-lt --root ROOT  the paper has 86.28 mAP; not run here
More: docs/cprfl.md, a walk-through, and what differs from the paper and from the released code.
To copy: this file needs no other file. For your own feature maps (B, width, H, W), replace
`features` and `self.backbone` in CPRFL.
"""
import warnings

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn


class Interaction(nn.Module):
    """VSI, Eq. 3-5: P' (B, K, d) from tokens F (B, HW, d) and prompts P (K, d).

    `heads` of width `head_dim`: the paper has 8 of 512, and ffn 2048. As released, beyond the
    equations: a LayerNorm before attention and before Eq. 5, an output projection, and dropout
    after it, after GELU and after W_o.
    """

    def __init__(self, d, heads, head_dim, ffn, dropout):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(d)
        self.to_qkv = nn.Linear(d, 3 * heads * head_dim, bias=False)  # W_q, W_k, W_v
        self.to_out = nn.Linear(heads * head_dim, d)
        self.norm2 = nn.LayerNorm(d)
        self.Wr = nn.Linear(d, ffn)
        self.Wo = nn.Linear(ffn, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens, prompts):
        q, k, v = self.queries_keys_values(tokens, prompts)
        # Each head divides by the root of its width, head_dim. No dropout on alpha, as released.
        p_bar = F.scaled_dot_product_attention(q, k, v)  # Eq. 3, 4: (B, heads, K, head_dim)
        p_bar = self.dropout(self.to_out(p_bar.transpose(1, 2).flatten(2)))  # (B, K, d)
        hidden = self.dropout(F.gelu(self.Wr(self.norm2(p_bar))))  # (B, K, ffn)
        return self.dropout(self.Wo(hidden))  # Eq. 5

    def queries_keys_values(self, tokens, prompts):
        """Queries (B, heads, K, head_dim); keys and values (B, heads, HW + K, head_dim).

        Only the prompts are queries. In the paper, the cells are queries, too, but Eq. 6 does not
        use what they find, so it is left out. The prompts are projected once for all images.
        """
        tokens = self.norm1(tokens)
        prompts = self.norm1(prompts)
        wq, wk, wv = self.to_qkv.weight.chunk(3)  # one matrix in released checkpoints
        q = self.project(prompts, wq)  # (heads, K, head_dim)
        k = self.project(prompts, wk)
        v = self.project(prompts, wv)
        B = tokens.shape[0]
        q = q.expand(B, -1, -1, -1)
        # Z = (F, P)
        k = torch.cat([self.project(tokens, wk), k.expand(B, -1, -1, -1)], 2)
        v = torch.cat([self.project(tokens, wv), v.expand(B, -1, -1, -1)], 2)
        return q, k, v

    def project(self, x, w):
        """(..., N, d) -> (..., heads, N, head_dim)"""
        return F.linear(x, w).unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class CPRFL(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): Eq. 1-6 on a backbone. K is c.

    `text`: the text tower, an open_clip model name. random-NAME is the same tower, untrained;
    random means random-RN50. `tune_text` trains the tower. `text_features` replaces it with your
    own features (K, m): a tensor, or a .npy or .pt file. Their norm should be near 10, like CLIP's.
    `prompts`: nonlinear (Eq. 2; its hidden width is tau x d_model), linear or random. `paths`: how
    gradients reach the prompts: both, or interaction or direct (see the top; with direct, backbone,
    phi and VSI do not train). `output_stride`: 8 or 16 keeps maps finer than 1/32. Raises
    ValueError.
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
        self.backbone = timm_backbone(backbone, pretrained, image_size, output_stride)
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
        if tune_text:  # the features change in training, so only their width m is used below
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

    def forward(self, images):
        x = self.features(images)  # (B, width, H, W)
        tokens = self.phi(x.flatten(2).transpose(1, 2))  # Eq. 1: (B, HW, d)
        return self.score(tokens, self.category_prompts())

    def category_prompts(self):
        """P (K, d): Eq. 2, or what an ablation puts in its place."""
        if isinstance(self.prompts, nn.Parameter):  # prompts="random"
            return self.prompts
        if self.tune_text:
            return self.prompts(self.text.encode_text(self.text_tokens))
        return self.prompts(self.text_features)

    def score(self, tokens, prompts):
        """Logits (B, K): p'_k . p_k. The loss takes the sigmoid."""
        refined = self.interaction(tokens, prompts)  # P' (B, K, d)
        if self.paths == "interaction":
            prompts = prompts.detach()  # cuts P1
        if self.paths == "direct":
            refined = refined.detach()  # cuts P2
        # In float32: in half precision, a sum of d products is coarse.
        return (at_least_float32(refined) * at_least_float32(prompts)).sum(-1)  # Eq. 6

    def attention(self, images):
        """Logits (B, K) and the prompts' weights on the tokens (B, heads, K, H, W), which sum to 1
        together with those on the K prompts."""
        x = self.features(images)
        tokens = self.phi(x.flatten(2).transpose(1, 2))
        prompts = self.category_prompts()
        q, k, _ = self.interaction.queries_keys_values(tokens, prompts)
        # torch's fused kernel does not return alpha
        alpha = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        of_tokens = alpha[..., :tokens.shape[1]]  # (B, heads, K, HW)
        return self.score(tokens, prompts), of_tokens.unflatten(-1, x.shape[-2:])

    def features(self, images):
        """(B, 3, h, w) -> (B, width, H, W)"""
        return feature_map(self.backbone, images)

    def load_state_dict(self, state, *args, **kwargs):
        """A released checkpoint, even after tools.convert has renamed its tensors, lacks the text
        features: those made in __init__ are kept."""
        if not self.tune_text and "text_features" not in state:
            state = dict(state, text_features=self.text_features)
        return super().load_state_dict(state, *args, **kwargs)


def loss(logits, targets, gamma_pos=0.0, gamma_neg=4.0, margin=0.05, eps=1e-8):
    """Eq. 7, the mean over the known entries, as released.

    logits, targets (B, K). A target is 1, 0 or, as a soft label, in between: y L+ + (1 - y) L-.
    -1 is unknown. Values are not checked. `margin`: mu, 0.05 as released. Raises ValueError if the
    shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: both must "
                         "be (B, K)")
    s = torch.sigmoid(at_least_float32(logits))
    s_m = (s - margin).clamp(min=0)  # s~
    y = targets.to(s.dtype)
    # As released: the focusing weights carry no gradient, and no logarithm is below log(eps).
    log_s = s.clamp(min=eps).log()
    log_not_s = (1 - s_m).clamp(min=eps).log()
    L_pos = (1 - s.detach()) ** gamma_pos * log_s
    L_neg = s_m.detach() ** gamma_neg * log_not_s
    L = y * L_pos + (1 - y) * L_neg  # Eq. 7
    known = targets >= 0
    return -(L * known).sum() / known.sum().clamp(min=1)


# -------------------------------------------------------------------------------- what surrounds it


def at_least_float32(x):
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def timm_backbone(name, pretrained, image_size, output_stride):
    """timm's model without pooling and classifier."""
    config = timm.get_pretrained_cfg(name)
    fixed_size = getattr(config, "fixed_input_size", False)  # ViT, Swin
    return timm.create_model(
        name, pretrained=pretrained, num_classes=0, global_pool="",
        img_size=image_size if fixed_size else None,  # timm ignores None
        output_stride=output_stride)


def feature_map(backbone, images):
    """(B, 3, h, w) -> (B, width, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
    x = backbone.forward_features(images)
    if x.ndim == 3:  # tokens (B, prefix + HW, width); the prefix: class and register tokens
        grid = backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
        x = x[:, backbone.num_prefix_tokens:]
        x = x.transpose(1, 2).unflatten(2, grid)
    elif getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        x = x.permute(0, 3, 1, 2)
    return x


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
    if not text.startswith("random-"):
        if not tags:
            raise ValueError(f"text={text}: open_clip has no weights for it")
        tag = "openai" if "openai" in tags else tags[0]
    quick_gelu = "openai" in tags  # OpenAI's weights were trained with QuickGELU
    try:
        with torch.random.fork_rng(devices=[]):
            # An untrained tower is always the same. torch.manual_seed would reset GPUs, too.
            torch.default_generator.manual_seed(0)
            tower = open_clip.create_model(name, tag, force_quick_gelu=quick_gelu)
    except (OSError, RuntimeError) as error:
        source = open_clip.get_pretrained_cfg(name, tag)
        address = source.get("url")
        if source.get("hf_hub"):
            address = f"https://huggingface.co/{source['hf_hub'].rstrip('/')}"
        reason = str(error).split("Last error: ")[-1].split(". ")[0]
        raise ValueError(f"text={text}: the weights at {address} cannot be loaded ({reason}): go "
                         "online once, or use --text random, an untrained tower, or "
                         "--text-features FILE, a .npy or .pt file with your own features "
                         f"({len(classes)}, m)") from error
    del tower.visual, tower.logit_scale  # text features need neither
    # the paper's sentence
    sentences = [f"a photo of a {label.replace('_', ' ')}." for label in classes]
    return tower.eval(), open_clip.get_tokenizer(name)(sentences)


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
    # A tensor is not warned about: a checkpoint's features come in this way, of whatever norm.
    if isinstance(source, str) and norm < 3:
        warnings.warn(f"the text features have a mean norm of {norm:.1f}, but CLIP's have about "
                      "10: scale them to 10; at norm 1, CPRFL trains far worse")
    return features


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


# All names below are for train.py, whose head says what each one is.
build = CPRFL
REDUCTION = "mean"  # what `loss` does over the batch
# `--init FILE` starts from a trained model. If that has other classes, these start at random. (Only
# with prompts="random"; text_features always follow from the flags.)
CLASS_TENSORS = ("prompts",)
HELP = {  # keyword argument -> its text in --help
    "text": "text tower: an open_clip model name, random-NAME (untrained) or random (random-RN50)",
    "text_features": "a .npy or .pt file with your own text features (labels, m), of norm 10",
    "d_model": "width of tokens and prompts",
    "heads": "attention heads",
    "head_dim": "width of each attention head",
    "ffn": "hidden width of Eq. 5",
    "tau": "Eq. 2: hidden width of the prompts' network as a multiple of d_model",
    "dropout": "dropout in the interaction",
    "tune_text": "train the text tower, too, as in the released code",
    "prompts": "nonlinear (Eq. 2), linear or random (without text)",
    "paths": "how gradients reach the prompts: both, interaction or direct",
    "output_stride": "8 or 16: maps finer than 1/32; none: the backbone's",
    "gamma_pos": "focusing of positive labels; 0: as in cross-entropy",
    "gamma_neg": "focusing of negative labels; 0: as in cross-entropy",
    "margin": "negatives with a probability below it add no loss",
    "eps": "the loss takes the logarithm of at least this probability",
    "head_lr": "learning rate of everything but the backbone as a multiple of the backbone's",
}

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
SMALL = {  # few images, or no GPU. amp: with this backbone, CPUs are slower in bfloat16
    "backbone": "tf_efficientnet_lite0.in1k", "pretrained": True, "image_size": 224,
    "freeze_bn": True, "augment": ("flip",), "optimizer": "adamw", "lr": 2e-4,
    "weight_decay": 1e-2, "schedule": "onecycle", "epochs": 4, "min_steps": 500,
    "batch_size": 16, "amp": "off", "text": "RN50", "d_model": 512}
RECIPES = {  # the first is the default
    "scenes-lt": SCENES,
    "scenes": dict(SCENES, epochs=8),
    # no public log shows where to stop, so this runs a whole, shorter schedule
    "csv": dict(
        RELEASED, epochs=20, schedule_epochs=20, ema_warmup=True, drop_last=True, note=""),
    "small": SMALL,
    "coco-lt": RELEASED,
    "voc-lt": dict(
        RELEASED, epochs=29,
        note="for 86.28 mAP: stops after 29 of 80 epochs, which is inferred from a comment on VOC "
             "in the released code; it is not known at which epoch the paper's figure was taken"),
    "voc2007": dict(RELEASED, epochs=29, note="not a recipe from the paper"),
    "coco2014": dict(RELEASED, note="not a recipe from the paper"),
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "cprfl", *sys.argv[1:]])
