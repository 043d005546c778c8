"""ASL: the asymmetric loss, related losses, and the baseline that every paper compares with.

Paper: Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021,
arXiv 2009.14119. Its equations:

    (2)  L = -y L+ - (1 - y) L-        cross-entropy: L+ = log p,           L- = log(1 - p)
    (3)  focal loss:                   L+ = (1 - p)^g log p,   L- = p^g log(1 - p)
    (4)  two gammas:                   L+ = (1 - p)^g+ log p,  L- = p^g- log(1 - p)
    (5)  p_m = max(p - m, 0)           shifted probability
    (6)  L- = p_m^g- log(1 - p_m)
    (7)  ASL: L+ of (4), L- of (6)

Paper, released code, this file:
- The focusing weights carry no gradient in the released code (its default); the paper doesn't say.
  Here `detach`, True as released.
- Released: sum over batch and classes. Here the same default; --loss asl takes the mean.
- Released: log of max(p, 1e-8), which is no bound at all in fp16 (it rounds to 0) and stops the
  gradient of a confident mistake. Here logsigmoid, in at least float32, and no epsilon.
- Released: 224 px unless told otherwise; the paper's 448 px here. TResNet: inputs in [0, 1].
- Reported epoch: the released code reports the better of raw weights and average at the best epoch
  on the test set. Here: the average (EMA) after an epoch that the recipe fixes. In the one public
  log that runs to the end of its schedule, the average ends 3.5 mAP below its best.
- EMA: the released average starts at the initial weights with the full decay; here it warms up.
- CF1: the released script averages the classes' F1 at threshold 0.8; here, as in the tables, it is
  the F1 of mean precision and mean recall, at 0.5.
- Left out: adaptive asymmetry (Eq. 10-11).

Run: python asl.py                            synthetic scenes on a CPU: 98.5 mAP
     python asl.py --data coco2014 --root DIR the paper's recipe, for its 86.6 mAP (not run here)
     python asl.py --clip 0                   focusing only; --gamma-neg 0: margin only
Copy: the losses need nothing but torch.
"""
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import nn


def asymmetric_loss(logits, targets, gamma_neg=4.0, gamma_pos=0.0, clip=0.05, detach=True,
                    reduction="sum"):
    """Eq. 7. logits (B, K); targets (B, K): 1, 0, or -1 (unknown), which is ignored.

    `clip`: the margin m. `detach`: focusing weights without gradient. `reduction`: sum, mean (over
    the known entries) or none.
    """
    z = at_least_float32(logits)
    positive = (targets == 1).to(z.dtype)  # y
    negative = (targets == 0).to(z.dtype)  # 1 - y
    p = torch.sigmoid(z)
    log_p = F.logsigmoid(z)
    if clip > 0:
        p_m = F.relu(p - clip)  # Eq. 5
        log_not_p = torch.log(1 - p_m)
    else:
        p_m = p
        log_not_p = F.logsigmoid(-z)
    if gamma_pos > 0:
        positive = positive * focus(torch.sigmoid(-z), gamma_pos, detach)  # Eq. 4
    if gamma_neg > 0:
        negative = negative * focus(p_m, gamma_neg, detach)  # Eq. 6
    loss = -(positive * log_p + negative * log_not_p)  # Eq. 2, 7
    return reduced(loss, targets, reduction)


def at_least_float32(x):
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def focus(p, gamma, detach):
    """p^gamma"""
    if detach:
        p = p.detach()
    else:
        p = p.clamp(min=1e-30)  # at 0, the slope of a root is infinite
    return p ** gamma


def reduced(loss, targets, reduction):
    """(B, K), 0 where unknown -> the sum, the mean over the known entries, or itself."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / (targets >= 0).sum().clamp(min=1)
    raise ValueError(f"reduction={reduction!r}: choose from sum, mean, none")


def binary_cross_entropy(logits, targets, reduction="sum"):
    """Eq. 2: no focusing, no margin. logits, targets (B, K): 1, 0, -1 (unknown, ignored)."""
    return asymmetric_loss(logits, targets, gamma_neg=0, gamma_pos=0, clip=0, reduction=reduction)


def focal_loss(logits, targets, gamma=2, reduction="sum"):
    """Eq. 3, (B, K): one gamma, no margin; weights with gradient, as in Lin et al., ICCV 2017."""
    return asymmetric_loss(logits, targets, gamma_neg=gamma, gamma_pos=gamma, clip=0,
                           detach=False, reduction=reduction)  # Eq. 3


DB_SETTINGS = {  # published
    "voc-lt": {"mu": 0.3, "lam": 5.0},
    "coco-lt": {"mu": 0.2, "lam": 2.0},
}


def rebalanced_weight(targets, class_freq, alpha, beta, mu):
    """r-hat (B, K) of the distribution-balanced loss, in [alpha, alpha + 1].

    How often class k is drawn when classes are drawn evenly, divided by how often its image is
    drawn: label co-occurrence makes the second one larger.
    """
    per_class = 1 / class_freq.clamp(min=1)  # P^C, but for the factor 1 / K that cancels
    positive = targets == 1
    per_image = (positive * per_class).sum(1, keepdim=True)  # P^I; without labels 0, r infinite
    return alpha + torch.sigmoid(beta * (per_class / per_image - mu))


def distribution_balanced_loss(logits, targets, class_freq, num_images=None, alpha=0.1, beta=10.0,
                               mu=0.3, kappa=0.05, lam=5.0, gamma=2, reduction="mean"):
    """Wu et al., "Distribution-Balanced Loss", ECCV 2020, arXiv 2007.09654.

    class_freq (K,): training images per class; num_images: the size of the training split, by
    default class_freq's sum. gamma > 0 adds the focal weight (DB-focal, which tables quote; the
    released code's constant factor 2 is left out); 0 is the plain DB loss. As in the released code,
    the prior's shift is kappa / lam times its logit.
    """
    z = at_least_float32(logits)
    class_freq = torch.as_tensor(class_freq, dtype=z.dtype, device=z.device)
    if num_images is None:
        num_images = class_freq.sum()
    prior = class_freq.clamp(min=1) / num_images
    nu = -kappa / lam * torch.logit(prior, eps=1e-6)
    z = z - nu  # lowers the logits of rare classes
    positive = targets == 1
    scale = torch.where(positive, 1.0, lam)  # negative-tolerant: steep but bounded, weight 1 / lam
    bce = F.softplus(torch.where(positive, -z, lam * z))
    weight = rebalanced_weight(targets, class_freq, alpha, beta, mu) / scale
    focal_weight = (1 - torch.exp(-bce)) ** gamma
    loss = weight * focal_weight * bce * (targets >= 0)
    return reduced(loss, targets, reduction)


def loss_by_name(name, class_freq, num_images, data):
    """The loss of --loss asl|focal|bce|db, for any method. It is the mean over the known entries,
    so its size does not depend on the batch or the number of classes."""
    if name == "db":
        settings = DB_SETTINGS.get(data, {})
        return partial(distribution_balanced_loss, class_freq=class_freq, num_images=num_images,
                       **settings)
    losses = {"asl": asymmetric_loss, "focal": focal_loss, "bce": binary_cross_entropy}
    return partial(losses[name], reduction="mean")


class Baseline(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): backbone, mean over cells, linear.

    `backbone`: a timm name. `output_stride`: 8 or 16 keeps a ResNet's maps finer than 1/32.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size,
                 output_stride: int | None = None):
        super().__init__()
        config = timm.get_pretrained_cfg(backbone)
        fixed_size = getattr(config, "fixed_input_size", False)  # ViT, Swin
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained, num_classes=0, global_pool="",
            img_size=image_size if fixed_size else None, output_stride=output_stride)
        self.head = nn.Linear(self.backbone.num_features, len(classes))
        nn.init.normal_(self.head.weight, std=0.01)  # as released

    def features(self, images):
        """(B, 3, h, w) -> (B, d, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
        x = self.backbone.forward_features(images)
        if x.ndim == 3:  # (B, class and register tokens + HW, d)
            grid = self.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
            x = x[:, self.backbone.num_prefix_tokens:]
            x = x.transpose(1, 2).unflatten(2, grid)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x

    def classify(self, x):
        """(..., d) -> (..., K), in float32 also under autocast: in bfloat16 logits would tie."""
        with torch.autocast(x.device.type, enabled=False):
            return self.head(at_least_float32(x))

    def forward(self, images):
        x = self.features(images)
        return self.classify(x.mean((2, 3)))

    def attention(self, images):
        """Logits (B, K) and class activation maps (B, K, H, W), whose means are the logits."""
        x = self.features(images)
        maps = self.classify(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps.mean((2, 3)), maps


build = Baseline  # the names that train.py calls
loss = asymmetric_loss  # the defaults are the paper's
REDUCTION = "sum"  # of `loss` over the batch


def param_groups(model, lr, weight_decay, head_lr=1.0):
    """Parameter groups. No weight decay on 1-D parameters (biases, norms), as released. The
    learning rate of the classifier is `head_lr` x `lr`."""
    groups = []
    for part, part_lr in ((model.backbone, lr), (model.head, head_lr * lr)):
        matrices = [p for p in part.parameters() if p.ndim > 1]
        vectors = [p for p in part.parameters() if p.ndim <= 1]
        groups.append({"params": matrices, "lr": part_lr, "weight_decay": weight_decay})
        groups.append({"params": vectors, "lr": part_lr, "weight_decay": 0.0})
    return groups


# Epochs: see q2l.py's; that this average, too, is highest near the peak of its schedule (epoch 16) is
# an inference from Query2Label with the same backbone and schedule.
COCO = {
    "backbone": "tresnet_l.miil_in1k", "pretrained": True, "image_size": 448,
    "mean": (0., 0., 0.), "std": (1., 1., 1.), "augment": ("cutout", "randaugment"),
    "optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-4, "schedule": "onecycle",
    "pct_start": 0.2, "schedule_epochs": 80, "epochs": 18, "batch_size": 128, "drop_last": False,
    "ema": 0.9997, "drop_unlabelled": True,
    "note": "for 86.6 mAP on COCO 2014: stops after 18 of 80 epochs, near the peak rate, where the "
            "average is best in public logs of this kind"}
LONG_TAIL = dict(  # the backbone of CPRFL's comparison
    COCO, backbone="resnet101.tv_in1k", drop_unlabelled=False, epochs=80,
    note="not a recipe of the paper, which has no long tail")
SCENES = {  # small, for a CPU
    "backbone": "test_resnet", "pretrained": False, "image_size": 128, "output_stride": 16,
    "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "augment": ("flip",),
    "optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-2, "schedule": "onecycle",
    "pct_start": 0.2, "epochs": 8, "batch_size": 64}
RECIPES = {
    "scenes": SCENES,
    "scenes-lt": dict(SCENES, epochs=40),
    # where nobody knows the best epoch: a whole schedule
    "csv": dict(COCO, epochs=20, schedule_epochs=20, drop_last=True, drop_unlabelled=False, note=""),
    "coco-lt": LONG_TAIL,
    "voc-lt": LONG_TAIL,
    "coco2014": COCO,
    "voc2007": dict(
        COCO, epochs=24, drop_unlabelled=False, difficult="negative",
        note="for 94.6 mAP from ImageNet, 95.8 with --init from COCO (see README): stops after 24 "
             "of 80 epochs, as Query2Label's log on VOC suggests"),
    "nuswide": dict(
        COCO, image_size=240, epochs=12, drop_unlabelled=False,
        note="for 65.2 mAP: stops after 12 of 80 epochs, as Query2Label's logs on NUS-WIDE suggest"),
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "asl", *sys.argv[1:]])
