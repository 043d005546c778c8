"""CSRA, class-specific residual attention (Zhu & Wu, ICCV 2021, arXiv 2108.02456).

The problem. The usual classifier averages the feature map over its cells, then scores the average.
A bottle that fills one cell of 49 is averaged away.
The idea. Let each class look where it scores high, and add what it sees there, times lambda, to the
average. With lambda = 0, only the average is left: the usual classifier, but with |m_i| = 1 (below)
and without a bias.

    images (B, 3, h, w) -> backbone -> x (B, d, H, W) -> scores of the cells, y_raw (B, K, HW)
    y_raw -> mean over the cells (B, K) ---------------------------------+
    y_raw -> mean over the cells, weighted by s (B, K) -- times lambda --+--> y (B, K)

B images, K classes, H x W cells. x_j (d) is the feature of cell j. m_i (d) is the classifier of
class i. As in the paper, it has no bias, and it is divided by its length |m_i|, so that the scores
of all classes have one scale and T means the same for all (mAP hardly changes, but training
converges faster: Table 8). y_raw is x_j . m_i for each i and j.

    Eq. 1   x = phi(I)                                the feature map of image I: the backbone
    Eq. 2   s^i_j = softmax over j of T (x_j . m_i)   where class i looks; T: how sharply
    Eq. 3   a^i = sum_j s^i_j x_j                     what class i sees there
    Eq. 4   g = mean_j x_j                            what all classes see
    Eq. 5   f^i = g + lambda a^i                      the feature of class i
    Eq. 6   y^i = m_i . f^i                           its logit
    Eq. 7   y^i = m_i . g + lambda m_i . a^i          the same; two products
    Eq. 8   y^i = mean_j (x_j . m_i) + lambda sum_j s^i_j (x_j . m_i)

Eq. 8 is still the same: m_i . (a sum of features) is the sum of their scores. So the code pools the
scores (B, K, HW) and never makes the features f (B, K, d). At T = 0, all cells count alike, and the
attended score m_i . a^i is the mean; T = infinity, the limit of a growing T, takes the maximum.
With a large lambda, the attended score alone decides. With several heads (Section 3.4), each has
its own m and T, and their logits y are added.

An example: one class, four cells. A small object scores 4 0 0 0 and haze scores 1 1 1 1. Both
average 1, so the usual classifier says p = 0.73 to both. The attended score m . a tells them apart:

    T                0      1      2      infinity
    object           1.00   3.79   4.00   4.00
    haze             1.00   1.00   1.00   1.00

and so does y, here with T = 1:

    lambda           0      0.1    1
    object           1.00   1.38   4.79
    haze             1.00   1.10   2.00

Flat scores need a larger T: in 0.5 0 0 0, the weight s of the first cell is 0.35 at T = 1, 0.71 at
T = 4 and 0.92 at T = 7. But a class that fills many cells is lost in the noise of one if T is
large. So no T suits all classes: hence several heads.

Run: python csra.py                             synthetic scenes on a CPU: 99.8 mAP in 1 to 2.5 min
                                                (mAP: mean average precision, see lib/metrics.py)
     python csra.py --data voc2007 --root ROOT  the paper has 94.7 mAP; not run here
More: docs/csra.md, a walk-through, and what differs from the paper and from the released code.
To copy: the part from INF to at_least_float32, and loss, need only torch and math.
"""
import math

import timm
import torch
import torch.nn.functional as F
from torch import nn

INF = math.inf  # 99 in the released code
TEMPERATURES = {  # number of heads -> T of each, the paper's
    1: (1,),
    2: (1, INF),
    4: (1, 2, 4, INF),
    6: (1, 2, 3, 4, 5, INF),
    8: (1, 2, 3, 4, 5, 6, 7, INF),
}


class CSRAHead(nn.Module):
    """Logits (B, K) from feature maps (B, d, H, W).

    `heads`: 1, 2, 4, 6 or 8. Several, because no T suits all classes: some are seen best in one
    cell, others in many. `lam`: lambda. The defaults are the paper's for VOC 2007. Raises
    ValueError for another number of heads, or if x is not such a map.
    """

    def __init__(self, dim, num_classes, heads=1, lam=0.1):
        super().__init__()
        if heads not in TEMPERATURES:
            raise ValueError(f"heads={heads}: the paper has temperatures for {list(TEMPERATURES)}")
        self.temperatures = TEMPERATURES[heads]
        self.lam = lam
        # As torch initializes a 1 x 1 convolution. The weight's length cancels in m, but the
        # gradient goes with 1 / length.
        bound = dim ** -0.5
        self.weight = nn.Parameter(torch.empty(heads, num_classes, dim).uniform_(-bound, bound))

    def forward(self, x):
        y = 0
        heads = self.scores(x).unbind(1)  # for each head, y_raw (B, K, HW)
        for y_raw, T in zip(heads, self.temperatures):
            s = spatial_attention(y_raw, T)  # (B, K, HW)
            m_g = y_raw.mean(-1)  # Eq. 4, times m_i: (B, K)
            m_a = (s * y_raw).sum(-1)  # Eq. 3, times m_i: (B, K)
            y = y + m_g + self.lam * m_a  # Eq. 5, 6, 7, 8: the same number; f is never made
        return y  # the sum over the heads

    def scores(self, x):
        """(B, d, H, W) -> y_raw (B, heads, K, HW), all heads in one matrix product."""
        heads, num_classes, dim = self.weight.shape
        if x.ndim != 4 or x.shape[1] != dim:
            raise ValueError(f"features {tuple(x.shape)}: a map (B, {dim}, H, W) is needed; tokens "
                             "(B, HW, d) become one by .transpose(1, 2).unflatten(2, (H, W))")
        m = F.normalize(self.weight, dim=-1).flatten(0, 1)  # |m_i| = 1; (heads * K, d)
        y_raw = m @ x.flatten(2)  # (B, heads * K, HW)
        y_raw = at_least_float32(y_raw)  # so that the pooling is not in half precision
        return y_raw.unflatten(1, (heads, num_classes))

    def attention(self, x):
        """The s of Eq. 2, (B, heads, K, H, W): where each class looks. Each map sums to 1."""
        heads = self.scores(x).unbind(1)
        maps = [spatial_attention(y_raw, T) for y_raw, T in zip(heads, self.temperatures)]
        return torch.stack(maps, 1).unflatten(-1, x.shape[-2:])


def spatial_attention(y_raw, T):
    """The weights s (..., HW) of the cells, from their scores y_raw (..., HW). They sum to 1."""
    if T == INF:  # the limit of the softmax: 1 at the highest score, so m . a is the maximum
        best = y_raw.argmax(-1, keepdim=True)
        return torch.zeros_like(y_raw).scatter(-1, best, 1.0)
    return torch.softmax(T * y_raw, dim=-1)  # Eq. 2


def at_least_float32(x):
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class CSRA(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): backbone and head.

    `backbone`: a timm name. `output_stride`: 8 or 16 keeps a ResNet's maps finer than 1/32.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, heads=1, lam=0.1,
                 output_stride: int | None = None):
        super().__init__()
        self.backbone = timm_backbone(backbone, pretrained, image_size, output_stride)
        self.head = CSRAHead(self.backbone.num_features, len(classes), heads, lam)

    def forward(self, images):
        return self.head(self.features(images))

    def features(self, images):
        return feature_map(self.backbone, images)  # Eq. 1: (B, d, H, W)

    def attention(self, images):
        """Logits (B, K) and the attention maps (B, heads, K, H, W)."""
        x = self.features(images)
        return self.head(x), self.head.attention(x)


def loss(logits, targets):
    """Binary cross-entropy, the mean over the known entries.

    logits, targets (B, K). A target y is 1, 0, in between (a soft label: the losses of 1 and 0 are
    weighted with y and 1 - y) or -1 (unknown). Other values are not checked for. Another shape:
    ValueError.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: both must "
                         "be (B, K)")
    z = at_least_float32(logits)
    known = targets >= 0
    y = targets.to(z.dtype).clamp(min=0)
    bce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return (bce * known).sum() / known.sum().clamp(min=1)


# ----------------------------------- Fig. 1: at test time only, for a model that averages its cells
# A few lines raise the mAP of the usual classifier without training it: of asl.py's with
# cross-entropy on photographs of COCO at 320 px, from 63.4 to 66.9 with lambda 1 (see
# docs/results.md). This is CSRA with one head and T = infinity, but its classifier was trained on
# the average alone. `python eval.py --residual LAMBDA` uses it, no training does.


def residual(y_raw, lam):
    """y (..., K) from the class scores of the cells (..., K, HW)."""
    y_avg = y_raw.mean(-1)
    y_max = y_raw.amax(-1)
    return y_avg + lam * y_max  # Fig. 1


class Residual(nn.Module):
    """Images -> y (B, K), for a model that averages, then classifies: asl.py's, or csra.py's that
    was trained with lambda = 0."""

    def __init__(self, model, lam):
        super().__init__()
        self.model = model
        self.lam = lam

    def forward(self, images):
        if isinstance(self.model, CSRA):
            y_raw = self.model.head.scores(self.model.features(images))  # (B, heads, K, HW)
        else:
            # What asl.py's model calls attention are class scores (B, K, H, W).
            _, maps = self.model.attention(images)
            y_raw = maps.flatten(2).unsqueeze(1)  # (B, 1, K, HW): one head
        return residual(y_raw, self.lam).sum(1)  # over heads


def check_residual(settings):
    """Raises ValueError if `Residual` does not fit a run's model. settings: the run's flags."""
    if settings.model == "asl" or (settings.model == "csra" and settings.lam == 0):
        return
    raise ValueError("it needs a pooled linear classifier, asl's or that of csra --lam 0")


# -------------------------------------------------------------------------------- what surrounds it


def timm_backbone(name, pretrained, image_size, output_stride):
    """timm's model without pooling and classifier."""
    config = timm.get_pretrained_cfg(name)
    fixed_size = getattr(config, "fixed_input_size", False)  # ViT, Swin
    return timm.create_model(
        name, pretrained=pretrained, num_classes=0, global_pool="",
        img_size=image_size if fixed_size else None,  # timm ignores None
        output_stride=output_stride)


def feature_map(backbone, images):
    """(B, 3, h, w) -> (B, d, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
    x = backbone.forward_features(images)
    if x.ndim == 3:  # tokens (B, prefix + HW, d); the prefix, such as the class token, is dropped
        grid = backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
        x = x[:, backbone.num_prefix_tokens:]
        x = x.transpose(1, 2).unflatten(2, grid)
    elif getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        x = x.permute(0, 3, 1, 2)
    return x


def param_groups(model, lr, weight_decay, head_lr=10.0):
    """Parameter groups: `lr` for the backbone, `head_lr` times `lr` for the classifier; weight
    decay on all parameters."""
    backbone = {"params": list(model.backbone.parameters()), "lr": lr,
                "weight_decay": weight_decay}
    head = {"params": list(model.head.parameters()),
            "lr": head_lr * lr,  # as released; the paper names the two rates the other way round
            "weight_decay": weight_decay}
    return [backbone, head]


# All names below are for train.py, whose head says what each one is.
build = CSRA
REDUCTION = "mean"  # what `loss` does over the batch
# `--init FILE` starts from a trained model. If that has other classes, these start at random.
CLASS_TENSORS = ("head.weight",)
HELP = {  # keyword argument -> its text in --help
    "heads": "attention heads, each with a temperature of its own: 1, 2, 4, 6 or 8",
    "lam": "lambda, the weight of the attention; 0: plain average pooling",
    "output_stride": "8 or 16: a ResNet's feature map is 1/8 or 1/16 of the image, not 1/32",
    "head_lr": "the classifier's learning rate, as a multiple of the backbone's",
}

# "step": the learning rate is multiplied by 0.1 every `decay_epochs` epochs, counted from the
# start of training. In the first `warmup_epochs` epochs, there is also a linear warm-up.
PAPER = {  # mean 0 and std 1: inputs stay in [0, 1], as released
    "backbone": "resnet101.tv_in1k", "pretrained": True, "image_size": 448,
    "mean": (0., 0., 0.), "std": (1., 1., 1.), "augment": ("crop", "flip"),
    "optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4, "schedule": "step", "decay_epochs": 4,
    "warmup_epochs": 2., "epochs": 30, "batch_size": 16, "drop_last": False, "heads": 1,
    "lam": 0.1,
    "note": "for 94.7 mAP on VOC 2007; reports the last epoch"}
LONG_TAIL = dict(PAPER, note="not from the paper, which has no long-tailed data")
# Small, for a CPU, and from random weights: AdamW, because SGD with lr 0.01 has 39 mAP after these
# 8 epochs, and a larger lambda: with 0.1, 99.1 mAP instead of 99.8.
SCENES = {
    "backbone": "test_resnet", "pretrained": False, "image_size": 128, "output_stride": 16,
    "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "augment": ("flip",),
    "optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-2, "schedule": "onecycle", "epochs": 8,
    "batch_size": 64, "lam": 1.}
SMALL = {  # few images, or no GPU. amp: with this backbone, CPUs are slower in bfloat16
    "backbone": "tf_efficientnet_lite0.in1k", "pretrained": True, "image_size": 224,
    "freeze_bn": True, "augment": ("flip",), "optimizer": "adamw", "lr": 2e-4,
    "weight_decay": 1e-2, "schedule": "onecycle", "epochs": 4, "min_steps": 500,
    "batch_size": 16, "amp": "off", "lam": 0.2}
RECIPES = {  # the first is the default
    "scenes": SCENES,
    "scenes-lt": dict(SCENES, epochs=40),
    "csv": dict(PAPER, drop_last=True, note=""),  # BatchNorm needs more than one image
    "small": SMALL,
    "coco-lt": LONG_TAIL,
    "voc-lt": LONG_TAIL,
    "voc2007": PAPER,
    "voc2012": dict(
        PAPER, note="the settings of VOC 2007; no figure on val is known; a listing has 96.1 mAP "
                    "on the test server"),
    "coco2014": dict(
        PAPER, decay_epochs=5, drop_unlabelled=True, heads=4, lam=0.5,
        note="for 83.3 mAP, that of the released checkpoint with 4 heads; the paper has 83.5; "
             "reports the last epoch"),
    "wider": dict(
        PAPER, backbone="vit_base_patch16_224.orig_in21k_ft_in1k", image_size=224,
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), augment=("flip",), decay_epochs=5, lam=0.3,
        note="for 89.0 mAP, that of the released checkpoint; reports the last epoch"),
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "csra", *sys.argv[1:]])
