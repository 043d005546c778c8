"""ASL: the asymmetric loss, related losses, and the baseline that every paper compares with.

Paper: Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021,
arXiv 2009.14119. Its equations:

    (2)  L = -y L+ - (1 - y) L-        cross-entropy: L+ = log p,           L- = log(1 - p)
    (3)  focal loss:                   L+ = (1 - p)^g log p,   L- = p^g log(1 - p)
    (4)  two gammas:                   L+ = (1 - p)^g+ log p,  L- = p^g- log(1 - p)
    (5)  p_m = max(p - m, 0)           shifted probability
    (6)  L- = p_m^g- log(1 - p_m)
    (7)  ASL: L+ of (4), L- of (6)

Where the paper, the released code and this file differ:
- Focusing weights: by default, they carry no gradient in the released code. The paper doesn't say.
  Here: no gradient; `detach=False` gives them one.
- Reported epoch: the released code picks the best epoch on the test set, for the raw weights or
  their moving average (EMA), whichever is better. Here: the EMA weights after the recipe's fixed
  epoch. Only one public log runs to the end of its schedule. Its EMA ends 3.5 mAP below its best.
- Reduction: a sum over batch and classes, as released. If you choose this loss with --loss asl, for
  any method, it is the mean.
- Logarithm: the released code takes the log of max(p, 1e-8). In fp16, 1e-8 is 0, so this is
  not a bound. In float32, it stops the gradient of a confident mistake. Here, the loss runs in
  float32 or higher, and log p is a logsigmoid. With a margin, log(1 - p_m) needs no bound.
- Image size: 224 px by default in the released script, 448 px in the paper. Here: 448, and 240 on
  NUS-WIDE, as ASL's author says (the released table says 448).
- Augmentation: ASL's author says that the paper's runs used a different one, on the GPU, which is
  better than that of the released script. Here: that of the script.
- CF1: the released script averages the F1 of the classes, at threshold 0.8. Here, as in the papers'
  tables, it is the F1 of the mean precision and the mean recall, at 0.5.
- Inputs: in [0, 1], not normalized with mean and std, as released.
- EMA: the released code uses the full decay from the first step. Here, train.py raises the decay
  step by step to its full value.
- Left out: adaptive asymmetry (Eq. 10-11).

Run: python asl.py                              synthetic scenes on a CPU: 99.1 mAP
     python asl.py --data coco2014 --root ROOT  the paper has 86.6 mAP; not run here
     python asl.py --clip 0                     focusing only; --gamma-neg 0: margin only
To copy: the losses need only torch (leave out the import of timm).
"""
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import nn


def asymmetric_loss(logits, targets, gamma_neg=4.0, gamma_pos=0.0, clip=0.05, detach=True,
                    reduction="sum"):
    """Eq. 7. logits (B, K); targets (B, K): 1, 0, or -1 (unknown), which is ignored.

    `clip`: the margin m, in [0, 1). `detach`: focusing weights without gradient. `reduction`: sum,
    mean (over the known entries) or none. Raises ValueError.
    """
    if not 0 <= clip < 1:
        raise ValueError(f"clip={clip}: the margin must be in [0, 1)")
    z = at_least_float32(logits)
    y = (targets == 1).to(z.dtype)
    not_y = (targets == 0).to(z.dtype)  # 1 - y; both are 0 where unknown
    p = torch.sigmoid(z)
    log_p = F.logsigmoid(z)
    if clip > 0:
        p_m = F.relu(p - clip)  # Eq. 5
        log_not_p = torch.log(1 - p_m)
    else:
        p_m = p
        log_not_p = F.logsigmoid(-z)
    loss_pos = log_p
    loss_neg = log_not_p
    if gamma_pos > 0:
        loss_pos = focus(torch.sigmoid(-z), gamma_pos, detach) * log_p  # Eq. 4
    if gamma_neg > 0:
        loss_neg = focus(p_m, gamma_neg, detach) * log_not_p  # Eq. 6
    loss = -(y * loss_pos + not_y * loss_neg)  # Eq. 2, 7
    return reduced(loss, targets, reduction)


def at_least_float32(x):
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def focus(base, gamma, detach):
    """base^gamma: base is 1 - p for a positive, p_m for a negative."""
    if detach:
        base = base.detach()
    else:
        base = base.clamp(min=1e-30)  # at 0 and with gamma < 1, the slope is infinite
    return base ** gamma


def reduced(loss, targets, reduction):
    """Reduces a loss (B, K), which is 0 at unknown entries: sum, mean over the known ones, none."""
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
    """Eq. 3: one gamma, no margin; weights with gradient, as in Lin et al., ICCV 2017."""
    return asymmetric_loss(logits, targets, gamma_neg=gamma, gamma_pos=gamma, clip=0,
                           detach=False, reduction=reduction)  # Eq. 3


DB_SETTINGS = {  # published
    "voc-lt": {"mu": 0.3, "lam": 5.0},
    "coco-lt": {"mu": 0.2, "lam": 2.0},
}


def rebalanced_weight(targets, class_freq, alpha, beta, mu):
    """r-hat (B, K) of the distribution-balanced loss, in [alpha, alpha + 1].

    Imagine drawing a class uniformly, then one of its images. P^C = 1 / n_k is the chance of one
    image of class k, if k is drawn. P^I is the sum of 1 / n over the classes that an image has. The
    ratio is used for all K classes, as released.
    """
    p_class = 1 / class_freq.clamp(min=1)  # P^C = 1 / (K n_k); K cancels
    positive = targets == 1
    p_image = (positive * p_class).sum(1, keepdim=True)  # P^I: the sum over the image's labels
    # An image without labels: p_image is 0, the ratio infinite, the sigmoid 1.
    return alpha + torch.sigmoid(beta * (p_class / p_image - mu))


def distribution_balanced_loss(logits, targets, class_freq, num_images=None, alpha=0.1, beta=10.0,
                               mu=0.3, kappa=0.05, lam=5.0, gamma=2, reduction="mean"):
    """Wu et al., "Distribution-Balanced Loss", ECCV 2020, arXiv 2007.09654.

    class_freq (K,): training images per class. num_images: of the training split; by default the
    sum of class_freq, which counts an image once for each label. gamma > 0: the focal variant,
    DB-focal, which published tables use (here without the released constant factor 2); 0: DB loss.
    As in the released code, the shift nu of the logits is -kappa / lam times the prior's logit.
    """
    z = at_least_float32(logits)
    class_freq = torch.as_tensor(class_freq, dtype=z.dtype, device=z.device)
    if num_images is None:
        num_images = class_freq.sum()
    prior = class_freq.clamp(min=1) / num_images
    nu = -kappa / lam * torch.logit(prior, eps=1e-6)  # positive for rare classes
    z = z - nu
    positive = targets == 1
    scale = torch.where(positive, 1.0, lam)
    bce = F.softplus(torch.where(positive, -z, lam * z))
    focal_weight = (1 - torch.exp(-bce)) ** gamma
    weight = rebalanced_weight(targets, class_freq, alpha, beta, mu)
    known = targets >= 0
    loss = weight * focal_weight * bce / scale * known  # of negatives: softplus(lam z) / lam
    return reduced(loss, targets, reduction)


def loss_by_name(name, class_freq, num_images, data, reduction="mean"):
    """The loss of --loss asl|focal|bce|db, for any method. `reduction`: that of the method's own
    loss, because weight decay and clipping are chosen for its scale."""
    if name == "db":
        settings = DB_SETTINGS.get(data, {})
        return partial(distribution_balanced_loss, class_freq=class_freq, num_images=num_images,
                       reduction=reduction, **settings)
    losses = {"asl": asymmetric_loss, "focal": focal_loss, "bce": binary_cross_entropy}
    return partial(losses[name], reduction=reduction)


class Baseline(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): backbone, mean over cells, linear.

    `backbone`: a timm name. `head_std`: standard deviation of the classifier's initial weights,
    0.01 as released. `output_stride`: 8 or 16 keeps a ResNet's maps finer than 1/32.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, head_std=0.01,
                 output_stride: int | None = None):
        super().__init__()
        config = timm.get_pretrained_cfg(backbone)
        fixed_size = getattr(config, "fixed_input_size", False)  # ViT, Swin
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained, num_classes=0, global_pool="",
            img_size=image_size if fixed_size else None,  # timm ignores None
            output_stride=output_stride)
        self.head = nn.Linear(self.backbone.num_features, len(classes))
        nn.init.normal_(self.head.weight, std=head_std)

    def features(self, images):
        """(B, 3, h, w) -> (B, d, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
        x = self.backbone.forward_features(images)
        if x.ndim == 3:  # tokens (B, prefix + HW, d); the prefix: class and register tokens
            grid = self.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
            x = x[:, self.backbone.num_prefix_tokens:]
            x = x.transpose(1, 2).unflatten(2, grid)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x

    def classify(self, x):
        """(..., d) -> (..., K), in float32 even under autocast: in bfloat16, logits would tie."""
        weight = at_least_float32(self.head.weight)
        bias = at_least_float32(self.head.bias)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(at_least_float32(x), weight, bias)

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
REDUCTION = "sum"  # for train.py: what `loss` does over the batch


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


# `schedule_epochs` is the length of the learning rate's schedule; training stops earlier, after
# `epochs`. 18 is inferred from public logs of Query2Label with this backbone and schedule, where
# the EMA is best near the schedule's peak (epoch 16) and falls from there.
COCO = {
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
RECIPES = {  # the first is the default
    "scenes": SCENES,
    "scenes-lt": dict(SCENES, epochs=40),
    # no public log shows where to stop, so this runs the whole schedule
    "csv": dict(
        COCO, epochs=20, schedule_epochs=20, ema_warmup=True, drop_last=True,
        drop_unlabelled=False, note=""),
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
