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
- Released: the EMA starts at the initial weights with the full decay, and the better
  of raw and EMA is reported, at the best epoch on the test set. Here the decay warms up (train.py)
  and the EMA after the last epoch is reported.
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
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    positive, negative = (targets > 0).to(z.dtype), (targets == 0).to(z.dtype)  # y, 1 - y
    p_m = F.relu(torch.sigmoid(z) - clip)  # Eq. 5
    log_p, log_not_p = F.logsigmoid(z), torch.log(1 - p_m) if clip else F.logsigmoid(-z)
    if gamma_pos:
        positive = positive * focus(torch.sigmoid(-z), gamma_pos, detach)  # Eq. 4
    if gamma_neg:
        negative = negative * focus(p_m, gamma_neg, detach)  # Eq. 6
    return reduced(-(positive * log_p + negative * log_not_p), targets, reduction)  # Eq. 2, 7


def focus(p, gamma, detach):
    """p^gamma; with gradient, p is kept above 0, where the slope of a root is infinite."""
    return (p.detach() if detach else p.clamp(min=1e-30)) ** gamma


def reduced(loss, targets, reduction):
    """(B, K), 0 where unknown -> the sum, the mean over the known entries, or itself."""
    if reduction == "none":
        return loss
    return loss.sum() / ((targets >= 0).sum().clamp(min=1) if reduction == "mean" else 1)


def binary_cross_entropy(logits, targets, reduction="sum"):
    """Eq. 2: no focusing, no margin. logits, targets (B, K): 1, 0, -1 (unknown, ignored)."""
    return asymmetric_loss(logits, targets, 0, 0, 0, reduction=reduction)


def focal_loss(logits, targets, gamma=2, reduction="sum"):
    """Eq. 3, (B, K): one gamma, no margin; weights with gradient, as in Lin et al., ICCV 2017."""
    # Eq. 3
    return asymmetric_loss(logits, targets, gamma, gamma, 0, detach=False, reduction=reduction)


DB_SETTINGS = {"voc-lt": {"mu": 0.3, "lam": 5.0}, "coco-lt": {"mu": 0.2, "lam": 2.0}}  # published


def rebalanced_weight(targets, class_freq, alpha, beta, mu):
    """r-hat (B, K) of the distribution-balanced loss, in [alpha, alpha + 1].

    How often class k is drawn when classes are drawn evenly, divided by how often its image is
    drawn: label co-occurrence makes the second one larger.
    """
    per_class = 1 / class_freq.clamp(min=1)  # P^C, but for the factor 1 / K that cancels
    per_image = ((targets > 0) * per_class).sum(1, keepdim=True)  # P^I; without labels 0, r inf
    return alpha + torch.sigmoid(beta * (per_class / per_image - mu))


def distribution_balanced_loss(logits, targets, class_freq, num_images=None, alpha=0.1, beta=10.0,
                               mu=0.3, kappa=0.05, lam=5.0, gamma=2, reduction="mean"):
    """Wu et al., "Distribution-Balanced Loss", ECCV 2020, arXiv 2007.09654.

    class_freq (K,): training images per class; num_images: the size of the training split, by
    default class_freq's sum. gamma > 0 adds the focal weight (DB-focal, which tables quote; the
    released code's constant factor 2 is left out); 0 is the plain DB loss. As in the released code,
    the prior's shift is kappa / lam times its logit.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    class_freq = torch.as_tensor(class_freq, dtype=z.dtype, device=z.device)
    prior = class_freq.clamp(min=1) / (num_images or class_freq.sum())
    # z - nu, nu = -kappa / lam * logit(prior): lowers the logits of rare classes.
    z = z + kappa / lam * torch.logit(prior, eps=1e-6)
    y = targets > 0
    scale = torch.where(y, 1.0, lam)  # negative-tolerant: steep but bounded, its weight 1 / lam
    bce = F.softplus(torch.where(y, -z, lam * z))
    weight = rebalanced_weight(targets, class_freq, alpha, beta, mu) / scale
    loss = weight * (1 - torch.exp(-bce)) ** gamma * bce * (targets >= 0)
    return reduced(loss, targets, reduction)


def loss_by_name(name, class_freq, num_images, data):
    """The loss of --loss asl|focal|bce|db, for any method. It is the mean over the known entries,
    so its size does not depend on the batch or the number of classes."""
    if name == "db":
        return partial(distribution_balanced_loss, class_freq=class_freq, num_images=num_images,
                       **DB_SETTINGS.get(data, {}))
    losses = {"asl": asymmetric_loss, "focal": focal_loss, "bce": binary_cross_entropy}
    return partial(losses[name], reduction="mean")


class Baseline(nn.Module):
    """Images (B, 3, image_size, image_size) -> logits (B, K): backbone, mean over cells, linear.

    `backbone`: a timm name. `output_stride`: 8 or 16 keeps a ResNet's maps finer than 1/32.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, output_stride=None):
        super().__init__()
        fixed = getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False)  # ViT, Swin
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained, num_classes=0, global_pool="",
            img_size=image_size if fixed else None, output_stride=output_stride)
        self.head = nn.Linear(self.backbone.num_features, len(classes))

    def features(self, images):
        """(B, 3, h, w) -> (B, d, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
        x = self.backbone.forward_features(images)
        if x.ndim == 3:  # (B, class and register tokens + HW, d)
            grid = self.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
            x = x[:, self.backbone.num_prefix_tokens:].transpose(1, 2).unflatten(2, grid)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x

    def classify(self, x):
        """(..., d) -> (..., K), in float32 also under autocast: in bfloat16 logits would tie."""
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.to(torch.promote_types(x.dtype, torch.float32)))

    def forward(self, images):
        return self.classify(self.features(images).mean((2, 3)))

    def attention(self, images):
        """Logits (B, K) and class activation maps (B, K, H, W), whose means are the logits."""
        maps = self.classify(self.features(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps.mean((2, 3)), maps


build = Baseline  # the names that train.py calls
loss = asymmetric_loss  # the defaults are the paper's
REDUCTION = "sum"  # of `loss` over the batch


def param_groups(model, lr, weight_decay, head_lr=1.0):
    """Parameter groups. No weight decay on 1-D parameters (biases, norms), as released. The
    learning rate of the classifier is `head_lr` x `lr`."""
    return [{"params": [p for p in part.parameters() if (p.ndim > 1) == decays],
             "lr": lr * times, "weight_decay": weight_decay * decays}
            for part, times in ((model.backbone, 1), (model.head, head_lr))
            for decays in (True, False)]


def from_official(state):
    """A released TResNet checkpoint's tensors under this model's names (timm's conversion)."""
    state = state.get("model", state.get("state_dict", state))
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = timm.models.tresnet.checkpoint_filter_fn(state, None)
    return {name.replace("head.fc.", "head.") if name.startswith("head.") else f"backbone.{name}":
            tensor for name, tensor in state.items()}


PAPER = {
    "backbone": "tresnet_l.miil_in1k", "pretrained": True, "image_size": 448, "mean": (0., 0., 0.),
    "std": (1., 1., 1.), "augment": ("cutout", "randaugment"), "optimizer": "adam", "lr": 1e-4,
    "weight_decay": 1e-4, "schedule": "onecycle", "pct_start": 0.2, "epochs": 41,
    "schedule_epochs": 80, "batch_size": 128, "ema": 0.9997}
SCENES = dict(
    PAPER, backbone="test_resnet", pretrained=False, image_size=128, output_stride=16,
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), augment=("flip",), optimizer="adamw",
    lr=3e-3, weight_decay=1e-2, epochs=8, schedule_epochs=0, batch_size=64, ema=0.)
RECIPES = {
    "scenes": SCENES,
    "scenes-lt": dict(SCENES, epochs=40),
    "csv": PAPER,
    "coco-lt": dict(PAPER, backbone="resnet101.tv_in1k"),  # the backbone of CPRFL's comparison
    "voc-lt": dict(PAPER, backbone="resnet101.tv_in1k"),
    "coco2014": dict(PAPER, drop_unlabelled=True),  # paper: 86.6 mAP
    "voc2007": PAPER,  # paper: 94.6
    "nuswide": dict(PAPER, image_size=240),  # paper: 65.2
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "asl", *sys.argv[1:]])
