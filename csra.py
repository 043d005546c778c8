"""CSRA: class-specific residual attention, for multi-label recognition with almost no extra cost.

Paper: Zhu & Wu, "Residual Attention: A Simple but Effective Method for Multi-Label Recognition", ICCV 2021,
arXiv 2108.02456. Equations are numbered here in the order of its section 3.

    (1)  s_kj = x_j . m_k / |m_k|                      score of class k at cell j; no bias
    (2)  a_kj = softmax over j of (T s_kj)             class-specific attention at temperature T
    (3)  z_k  = mean_j s_kj + lam sum_j a_kj s_kj      logit of one head; T = infinity: the sum is max_j s_kj
    (4)  z    = sum over heads of z                    each head with its own classifier and temperature

Paper, released code and this file:
- Learning rates: the paper's text gives the backbone 0.1 and the classifier 0.01; its author says they were swapped
  in print. Here, as released: the backbone gets `lr`, the classifier 10 x `lr`.
- COCO with ResNet-101: the paper's table has 4 heads, the released read-me's "4 heads" command passes 6. Here: 4.
- Released: T = 99 stands for infinity. Here infinity is infinity, and its term is the maximum.
- Released: VOC's "difficult" is negative in training, ignored in the test (data.py does so); the paper doesn't say.
- Inputs stay in [0, 1] (mean 0, std 1) for ResNets, as released; the paper doesn't say.

Run: python csra.py                                     (synthetic scenes, 2 CPU cores, minutes; figures in README)
     python csra.py --data voc2007 --root DIR           (the paper's recipe; it reports 94.7 mAP)
Copy: CSRAHead needs nothing but torch.
"""
import math

import timm
import torch
import torch.nn.functional as F
from torch import nn

INF = math.inf
TEMPERATURES = {1: (1,), 2: (1, INF), 4: (1, 2, 4, INF), 6: (1, 2, 3, 4, 5, INF), 8: (1, 2, 3, 4, 5, 6, 7, INF)}


class CSRAHead(nn.Module):
    """Logits (B, K) from any feature map (B, d, H, W); paper Eq. 1-4.

    `heads`: 1, 2, 4, 6 or 8, which fixes the temperatures as in the paper. `lam`: weight of the attention's part;
    lam = 0 leaves a normalised linear classifier on the mean feature.
    """

    def __init__(self, dim: int, num_classes: int, heads: int = 1, lam: float = 0.1):
        super().__init__()
        if heads not in TEMPERATURES:
            raise ValueError(f"heads={heads}: the paper defines temperatures for {list(TEMPERATURES)} heads")
        self.temperatures, self.lam = TEMPERATURES[heads], lam
        self.weight = nn.Parameter(torch.empty(heads, num_classes, dim).uniform_(-1, 1) / math.sqrt(dim))  # m_k

    def scores(self, x):
        """Eq. 1: (B, d, H, W) -> s (B, heads, K, HW), all heads in one matrix product."""
        m = F.normalize(self.weight, dim=-1)
        s = m.flatten(0, 1) @ x.flatten(2)  # (heads * K, d) @ (B, d, HW) -> (B, heads * K, HW)
        s = s.to(torch.promote_types(s.dtype, torch.float32))  # under autocast: logits in bf16 would tie
        return s.unflatten(1, self.weight.shape[:2])

    def forward(self, x):
        logits = 0
        for s, T in zip(self.scores(x).unbind(1), self.temperatures):  # s (B, K, HW)
            base = s.mean(-1)
            att = s.amax(-1) if T == INF else (torch.softmax(T * s, -1) * s).sum(-1)  # Eq. 2
            logits = logits + base + self.lam * att  # Eq. 3, 4
        return logits

    def attention(self, x):
        """The maps a of Eq. 2, each summing to 1: (B, heads, K, H, W). At T = infinity: 1 at the maximum."""
        maps = [F.one_hot(s.argmax(-1), s.shape[-1]).to(s) if T == INF else torch.softmax(T * s, -1)
                for s, T in zip(self.scores(x).unbind(1), self.temperatures)]
        return torch.stack(maps, 1).unflatten(-1, x.shape[-2:])


class CSRA(nn.Module):
    """A timm backbone and the head above; see `build`."""

    def __init__(self, num_classes, backbone, pretrained, image_size, heads, lam, output_stride):
        super().__init__()
        fixed = getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False)  # ViT, Swin
        self.backbone = timm.create_model(backbone, pretrained=pretrained, num_classes=0, global_pool="",
                                          img_size=image_size if fixed else None, output_stride=output_stride)
        self.head = CSRAHead(self.backbone.num_features, num_classes, heads, lam)

    def features(self, images):
        """(B, 3, h, w) -> (B, d, H, W) for ResNet and ConvNeXt (NCHW), Swin (NHWC) and ViT (tokens)."""
        x = self.backbone.forward_features(images)
        if x.ndim == 3:  # ViT: (B, class and register tokens + HW, d); the paper drops all but the patches
            grid = self.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
            x = x[:, self.backbone.num_prefix_tokens:].transpose(1, 2).unflatten(2, grid)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x

    def forward(self, images):
        return self.head(self.features(images))

    def attention(self, images):
        """Logits (B, K) and maps (B, heads, K, H, W)."""
        x = self.features(images)
        return self.head(x), self.head.attention(x)


def build(classes, *, backbone, pretrained, image_size, heads=1, lam=0.1, output_stride=None):
    """A model from images (B, 3, image_size, image_size) to logits (B, len(classes)).

    `backbone`: any timm name. `output_stride`: 8 or 16 keeps a ResNet's last maps finer than 1/32 (dilation).
    """
    return CSRA(len(classes), backbone, pretrained, image_size, heads, lam, output_stride)


def loss(logits, targets):
    """Binary cross-entropy, mean over the judged entries. logits, targets (B, K); targets 1, 0, or -1: not judged."""
    known = targets >= 0
    bce = F.binary_cross_entropy_with_logits(logits.float(), targets.clamp(min=0).float(), reduction="none")
    return (bce * known).sum() / known.sum().clamp(min=1)


def param_groups(model, lr, weight_decay):
    """Backbone at `lr`, classifier at 10 x `lr`, as released (0.01 and 0.1); weight decay on every parameter."""
    return [{"params": [*model.backbone.parameters()], "lr": lr, "weight_decay": weight_decay},
            {"params": [*model.head.parameters()], "lr": 10 * lr, "weight_decay": weight_decay}]


def from_official(state):
    """Released checkpoint (ResNet or ViT) -> this model's names, for load_state_dict(strict=True)."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.get("state_dict", state).items()}
    heads = [name for name in state if name.startswith("classifier.multi_head.")]
    weight = [state.pop(f"classifier.multi_head.{h}.head.weight").flatten(1) for h in range(len(heads))]  # (K, d)
    return {**{f"backbone.{name}": tensor for name, tensor in state.items()}, "head.weight": torch.stack(weight)}


PAPER = dict(  # VOC 2007, as released; the other sets say what differs
    backbone="resnet101.tv_in1k", pretrained=True, image_size=448, mean=(0., 0., 0.), std=(1., 1., 1.),
    augment=("crop", "flip"), optimizer="sgd", lr=0.01, weight_decay=1e-4, schedule="step", decay_epochs=4,
    warmup_epochs=2., epochs=30, batch_size=16, ema=0., heads=1, lam=0.1)
RECIPES = {
    "scenes": dict(PAPER, backbone="test_resnet", pretrained=False, image_size=128, output_stride=16,
                   mean=(.5, .5, .5), std=(.25, .25, .25), augment=("flip",), optimizer="adamw", lr=3e-3,
                   weight_decay=1e-2, schedule="onecycle", epochs=10, batch_size=64, lam=1.),
    "csv": PAPER,
    "voc2007": PAPER,  # paper: 94.7 mAP
    "voc2012": PAPER,
    "coco2014": dict(PAPER, decay_epochs=5, drop_unlabelled=True, heads=4, lam=0.5),  # paper: 83.3 mAP
    "wider": dict(PAPER, backbone="vit_base_patch16_224.augreg_in21k_ft_in1k", image_size=224, decay_epochs=5,
                  mean=(.5, .5, .5), std=(.5, .5, .5), augment=("flip",), lam=0.3),  # paper: 89.0 mAP
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "csra", *sys.argv[1:]])
