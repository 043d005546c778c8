"""ASL, the asymmetric loss (Ridnik et al., ICCV 2021, arXiv 2009.14119). Also: the baseline model
that all papers compare with, and more losses: cross-entropy, focal, distribution-balanced.

The problem. Of 80 labels, an image has about 3. The other 77 are negatives. At the start of
training, with all p at 0.5, they make 96 % of the gradient of cross-entropy. Later, most are easy
(p is near 0). Each then pulls little, but together they pull as hard as the positives.
The idea. Two rules for negatives. An easier negative counts less: its loss is weighted with a power
of its probability. If its probability is below a margin, it does not count at all.

    logits z (B, K) -> p = sigmoid(z) --+----------> L+ (B, K) --+
                                        +-> p_m ---> L- (B, K) --+-- targets y --> L (B, K) -> sum

    Eq. 1   L_tot = sum over k of L(sigma(z_k), y_k)                  over the labels k
    Eq. 2   L = -y L+ - (1 - y) L-                                    -L+ if y = 1, -L- if y = 0
    Eq. 3   L+ = (1 - p)^(gamma) log p,   L- = p^(gamma) log(1 - p)       focal loss
    Eq. 4   L+ = (1 - p)^(gamma+) log p,  L- = p^(gamma-) log(1 - p)      a gamma for each
    Eq. 5   p_m = max(p - m, 0)                                           the margin
    Eq. 6   L- = p_m^(gamma) log(1 - p_m)                                 focal loss with a margin
    Eq. 7   L+ = (1 - p)^(gamma+) log p,  L- = p_m^(gamma-) log(1 - p_m)  ASL
    Eq. 8   dL-/dz = p_m^(gamma-) (1 / (1 - p_m) - gamma- log(1 - p_m) / p_m) p (1 - p)

Eq. 8 is the slope of the loss of a negative, which is -L- (the paper writes L-), where p > m;
below, it is 0. No line computes it: autograd does. With gamma+ = gamma- = m = 0, ASL is
cross-entropy. The larger gamma- is, the nearer to 1 must p be for a negative to count; with m near
1, none counts. The default numbers are the paper's: gamma+ 0 (positives as in cross-entropy; above
0, easy positives count less, too), gamma- 4, m 0.05.

One default is not the paper's. Eq. 8 also differentiates the weight p_m^(gamma-): detach=False. The
released code takes the weight as a constant, and so does this file: detach=True, the first term of
Eq. 8 only. It is not known which of the two gave the paper's results.

An example: the slope dL/dz at a negative label. (Focal loss has detach=False.)

    p                    0.05    0.30    0.50    0.90    0.99
    cross-entropy        0.050   0.300   0.500   0.900   0.990
    focal loss, gamma 2  0.000   0.072   0.298   1.102   1.061
    ASL, detach=True     0.000   0.001   0.019   0.313   0.129
    ASL, detach=False    0.000   0.005   0.073   0.733   0.221

Easy negatives vanish. At p = 1, the slope is 1 for focal loss, but 0 for ASL, because the margin
bounds the loss: 1 - p_m never gets below m. Such a negative is often a positive whose
label is missing, so it is pushed less than one at 0.9. With 3 positives and 77 negatives at p =
0.5, the negatives now make 49 % of the gradient (detach=False: 79 %).

Run: python asl.py                              synthetic scenes on a CPU: 99.1 mAP
                                                (mAP: mean average precision, see lib/metrics.py)
     python asl.py --data coco2014 --root ROOT  the paper has 86.6 mAP; not run here
More: docs/asl.md goes through the paper step by step, and lists what differs from it here.
To copy: asymmetric_loss and the functions from there to the baseline need only torch and math.
"""
import math
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import nn


def asymmetric_loss(logits, targets, gamma_neg=4.0, gamma_pos=0.0, margin=0.05, detach=True,
                    reduction="sum"):
    """logits, targets (B, K). A target y is 1, 0, in between (a soft label, weighted as in Eq. 2),
    or -1 (unknown), which is ignored. Other values are not checked for.

    `margin`: m, in [0, 1). `detach`: weights without gradient, unlike the paper's. `reduction`:
    sum, as released; mean, over the known entries; or none. The gradient of the sum is B K times
    that of the mean, so SGD needs another learning rate; AdamW divides by its size. Raises
    ValueError for other shapes, margins and reductions.
    """
    check_shapes(logits, targets)
    if not 0 <= margin < 1:
        raise ValueError(f"margin={margin}: it must be in [0, 1)")
    z = at_least_float32(logits)
    p = torch.sigmoid(z)
    p_m = F.relu(p - margin)  # Eq. 5
    L_pos = F.logsigmoid(z)  # log p
    L_neg = log_not_p_m(z, margin)
    if gamma_pos > 0:  # else the weight is 1
        L_pos = focusing_weight(torch.sigmoid(-z), gamma_pos, detach) * L_pos  # Eq. 4, 7: L+
    if gamma_neg > 0:
        L_neg = focusing_weight(p_m, gamma_neg, detach) * L_neg  # Eq. 6: L-, and 4, 7
    known = (targets >= 0).to(z.dtype)
    y = targets.to(z.dtype).clamp(min=0)
    not_y = known - y  # 1 - y; both are 0 where unknown
    loss = -y * L_pos - not_y * L_neg  # Eq. 2
    return reduced(loss, targets, reduction)


def log_not_p_m(z, margin):
    """log(1 - p_m), finite even where p rounds to 1 and m is 0 or tiny."""
    log_not_p = F.logsigmoid(-z)  # log(1 - p)
    if margin == 0:
        return log_not_p
    log_margin = torch.full_like(z, math.log(margin))
    return torch.logaddexp(log_not_p, log_margin).clamp(max=0)  # 1 - p_m = min(1 - p + m, 1)


def focusing_weight(base, gamma, detach):
    """base^gamma; base: 1 - p for a positive, p_m for a negative."""
    if detach:
        base = base.detach()  # as released; in the paper's Eq. 8, the weight has a gradient
    else:
        base = base.clamp(min=1e-30)  # Eq. 8. The slope of 0^gamma is infinite if gamma < 1.
    return base ** gamma


def reduced(loss, targets, reduction):
    """Reduces a loss (B, K), which is 0 at unknown entries: sum, mean over the known ones, none."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()  # Eq. 1, and the sum over the batch
    if reduction == "mean":
        return loss.sum() / (targets >= 0).sum().clamp(min=1)
    raise ValueError(f"reduction={reduction!r}: choose from sum, mean, none")


def check_shapes(logits, targets):
    """Without it, targets (B, 1) or (K,) would be broadcast without a word."""
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: both must "
                         "be (B, K)")


def at_least_float32(x):
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ------------------- the model that ASL trains: the usual classifier, with which all papers compare


class Baseline(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): backbone, mean over cells, linear.

    `backbone`: a timm name. `head_std`: standard deviation of the classifier's initial weights,
    0.01 as released. `output_stride`: 8 or 16 keeps a ResNet's maps finer than 1/32.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, head_std=0.01,
                 output_stride: int | None = None):
        super().__init__()
        self.backbone = timm_backbone(backbone, pretrained, image_size, output_stride)
        self.head = nn.Linear(self.backbone.num_features, len(classes))
        nn.init.normal_(self.head.weight, std=head_std)

    def forward(self, images):
        x = self.features(images)  # (B, d, H, W)
        return self.classify(x.mean((2, 3)))

    def features(self, images):
        return feature_map(self.backbone, images)

    def classify(self, x):
        """(..., d) -> (..., K), in float32 even under autocast: bfloat16 would tie logits, which AP
        has to rank."""
        weight = at_least_float32(self.head.weight)
        bias = at_least_float32(self.head.bias)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(at_least_float32(x), weight, bias)

    def attention(self, images):
        """For heat maps: logits (B, K) and, as there is no attention, class activation maps
        (B, K, H, W), whose means are the logits."""
        x = self.features(images)
        maps = self.classify(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps.mean((2, 3)), maps


# ------------------------ other losses: --loss bce|focal|db; logits, targets and reduction as above


def binary_cross_entropy(logits, targets, reduction="sum"):
    """Cross-entropy: no weights, no margin."""
    return asymmetric_loss(logits, targets, gamma_neg=0, gamma_pos=0, margin=0,
                           reduction=reduction)


def focal_loss(logits, targets, gamma=2, reduction="sum"):
    """One gamma, no margin; weights with gradient, as in Lin et al., ICCV 2017."""
    return asymmetric_loss(logits, targets, gamma_neg=gamma, gamma_pos=gamma, margin=0,
                           detach=False, reduction=reduction)  # Eq. 3


def distribution_balanced_loss(logits, targets, class_freq, num_images=None, alpha=0.1, beta=10.0,
                               mu=0.3, kappa=0.05, lam=5.0, gamma=2, reduction="mean"):
    """DB loss (Wu et al., ECCV 2020, arXiv 2007.09654), for long-tailed data. Rare classes count
    more (r-hat), and easy negatives less (lam), above all those of rare classes (nu). That paper's
    equations, where n_k is the number of images with class k and prior_k = n_k / num_images:

        DB 4   r-hat = alpha + sigmoid(beta (r - mu))    r = (1 / n_k) / (sum of its labels' 1 / n)
        DB 7   positive: softplus(-(z - nu)); negative: softplus(lam (z - nu)) / lam
        DB 9   nu = -kappa log(prior / (1 - prior))      above 0 for rare classes
        DB 10  r-hat times DB 7                          this number is not checked against the PDF

    class_freq (K,): training images per class. num_images: of the training split; by default the
    sum of class_freq, which counts an image once for each label. gamma > 0: the focal variant,
    DB-focal, which published tables use (here without the released constant factor 2); 0: DB loss.
    """
    check_shapes(logits, targets)
    z = at_least_float32(logits)
    class_freq = torch.as_tensor(class_freq, dtype=z.dtype, device=z.device)
    if class_freq.shape != logits.shape[1:]:
        raise ValueError(f"class_freq {tuple(class_freq.shape)}: a number of images for each class "
                         f"of logits {tuple(logits.shape)} is needed")
    if num_images is None:
        num_images = class_freq.sum()
    prior = class_freq.clamp(min=1) / num_images
    # DB 9, as released: / lam. The paper has none, and its author calls it a bug. It is kept so
    # that results compare with those of the released code.
    nu = -kappa / lam * torch.logit(prior, eps=1e-6)
    z = z - nu
    bce_pos = F.softplus(-z)
    bce_neg = F.softplus(lam * z) / lam  # DB 7
    bce_pos = focusing_weight(torch.sigmoid(-z), gamma, detach=False) * bce_pos
    bce_neg = focusing_weight(torch.sigmoid(lam * z), gamma, detach=False) * bce_neg
    r_hat = rebalanced_weight(targets, class_freq, alpha, beta, mu)
    known = (targets >= 0).to(z.dtype)
    y = targets.to(z.dtype).clamp(min=0)
    not_y = known - y  # 1 - y; both are 0 where unknown
    loss = r_hat * (y * bce_pos + not_y * bce_neg)  # DB 10
    return reduced(loss, targets, reduction)


def rebalanced_weight(targets, class_freq, alpha, beta, mu):
    """r-hat (B, K), in [alpha, alpha + 1], from r = P^C / P^I.

    Imagine drawing a class uniformly, then one of its images. P^C = 1 / n_k is the chance that an
    image is drawn because of class k. P^I, the sum of 1 / n over its labels, is the chance that it
    is drawn because of any of them. (Both times 1 / K, which cancels.) As released, the ratio is
    also used for the classes that the image does not have.
    """
    p_class = 1 / class_freq.clamp(min=1)  # P^C
    y = targets.to(p_class.dtype).clamp(min=0)  # unknown: 0
    p_image = (y * p_class).sum(1, keepdim=True)  # P^I: the sum over the image's labels
    # An image without labels: p_image is 0, the ratio infinite, the sigmoid 1.
    return alpha + torch.sigmoid(beta * (p_class / p_image - mu))  # DB 4


DB_SETTINGS = {  # published
    "voc-lt": {"mu": 0.3, "lam": 5.0},
    "coco-lt": {"mu": 0.2, "lam": 2.0},
}


def loss_by_name(name, class_freq, num_images, data, reduction="mean"):
    """The loss of --loss asl|focal|bce|db, for any method. `data`: the data set, for the published
    settings of DB loss. `reduction`: that of the method's own loss. Where weight decay is added to
    the gradient (Adam, SGD), it is chosen for this scale."""
    if name == "db":
        settings = DB_SETTINGS.get(data, {})
        return partial(distribution_balanced_loss, class_freq=class_freq, num_images=num_images,
                       reduction=reduction, **settings)
    losses = {"asl": asymmetric_loss, "focal": focal_loss, "bce": binary_cross_entropy}
    return partial(losses[name], reduction=reduction)


# ------------------------------------------------ what surrounds it, the same in every method file


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
    if x.ndim == 3:  # tokens (B, prefix + HW, d); the prefix: class and register tokens
        grid = backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
        x = x[:, backbone.num_prefix_tokens:]
        x = x.transpose(1, 2).unflatten(2, grid)
    elif getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        x = x.permute(0, 3, 1, 2)
    return x


def param_groups(model, lr, weight_decay, head_lr=1.0):
    """Parameter groups. No weight decay on 1-D parameters (biases, norms), as released. `head_lr`:
    the classifier's learning rate as a multiple of the backbone's."""
    groups = []
    for part, part_lr in ((model.backbone, lr), (model.head, head_lr * lr)):
        matrices = [p for p in part.parameters() if p.ndim > 1]
        vectors = [p for p in part.parameters() if p.ndim <= 1]
        groups.append({"params": matrices, "lr": part_lr, "weight_decay": weight_decay})
        groups.append({"params": vectors, "lr": part_lr, "weight_decay": 0.0})
    return groups


# All names below are for train.py, whose head says what each one is.
build = Baseline
loss = asymmetric_loss
REDUCTION = "sum"  # what `loss` does over the batch
# `--init FILE` starts from a trained model. If that has other classes, these start at random.
CLASS_TENSORS = ("head.weight", "head.bias")
HELP = {  # keyword argument -> its text in --help
    "gamma_neg": "gamma-: the larger, the less do easy negatives count; 0: as in cross-entropy",
    "gamma_pos": "gamma+: the same for positives",
    "margin": "m: a negative whose probability is below it does not count; 0: no margin",
    "detach": "weights without gradient, as released; the paper's have one",
    "head_std": "standard deviation of the classifier's initial weights",
    "output_stride": "8 or 16: a ResNet's feature map is 1/8 or 1/16 of the image, not 1/32",
    "head_lr": "the classifier's learning rate, as a multiple of the backbone's",
}

# `schedule_epochs` is the length of the learning rate's schedule; training stops earlier, after
# `epochs`. 18 is inferred from public logs of Query2Label with this backbone and schedule, where
# the EMA is best near the schedule's peak (epoch 16) and falls from there.
COCO = {  # mean 0 and std 1: inputs stay in [0, 1], as released
    "backbone": "tresnet_l.miil_in1k", "pretrained": True, "image_size": 448,
    "mean": (0., 0., 0.), "std": (1., 1., 1.), "augment": ("cutout", "randaugment"),
    "optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-4, "schedule": "onecycle",
    "pct_start": 0.2, "schedule_epochs": 80, "epochs": 18, "batch_size": 128, "drop_last": False,
    "ema": 0.9997, "ema_warmup": False, "drop_unlabelled": True,
    "note": "for 86.6 mAP on COCO 2014: stops after 18 of 80 epochs, where the EMA is within 0.1 "
            "of its best in Query2Label's logs with this schedule"}
LONG_TAIL = dict(  # the backbone in CPRFL's tables
    COCO, backbone="resnet101.tv_in1k", drop_unlabelled=False, epochs=80, ema_warmup=True,
    note="not from the paper, which has no long-tailed data")
SCENES = {  # small, for a CPU
    "backbone": "test_resnet", "pretrained": False, "image_size": 128, "output_stride": 16,
    "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "augment": ("flip",),
    "optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-2, "schedule": "onecycle",
    "pct_start": 0.2, "epochs": 8, "batch_size": 64, "head_std": 0.1}  # with 0.01: 73 mAP
SMALL = {  # few images, or no GPU. amp: with this backbone, CPUs are slower in bfloat16
    "backbone": "tf_efficientnet_lite0.in1k", "pretrained": True, "image_size": 224,
    "freeze_bn": True, "augment": ("flip",), "optimizer": "adamw", "lr": 2e-4,
    "weight_decay": 1e-2, "schedule": "onecycle", "epochs": 4, "min_steps": 500,
    "batch_size": 16, "amp": "off", "head_lr": 10.}
RECIPES = {  # the first is the default
    "scenes": SCENES,
    "scenes-lt": dict(SCENES, epochs=40),
    # no public log shows where to stop, so this runs the whole schedule
    "csv": dict(
        COCO, epochs=20, schedule_epochs=20, ema_warmup=True, drop_last=True,
        drop_unlabelled=False, note=""),
    "small": SMALL,
    "coco-lt": LONG_TAIL,
    "voc-lt": LONG_TAIL,
    "coco2014": COCO,
    "voc2007": dict(
        COCO, epochs=24, ema_start=3, drop_unlabelled=False, difficult="negative",
        note="for 94.6 mAP, 95.8 with --init of a model trained on COCO: stops after 24 of 80 "
             "epochs, as Query2Label's log on VOC suggests"),
    "nuswide": dict(
        COCO, image_size=240, epochs=12, drop_unlabelled=False,
        note="for 65.2 mAP: stops after 12 of 80 epochs, as Query2Label's logs suggest"),
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "asl", *sys.argv[1:]])
