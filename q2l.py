"""Q2L: Query2Label. Each label embedding finds its class in the image by cross-attention.

Paper: Liu et al., "Query2Label: A Simple Transformer Way to Multi-Label Classification",
arXiv 2107.10834. The equations, with this file's own numbers. ~X is X plus its position embedding.
F is the feature map, as HW tokens of width d:

    (1)  Q'  = MHA(~Q, ~Q, Q)         self-attention among the labels
    (2)  Q'' = MHA(~Q', ~F, F)        cross-attention from labels to tokens
    (3)  Q_i = FFN(Q'')               decoder layer i
    (4)  p_k = sigmoid(W_k . Q_k + b_k)
    (5)  loss = -mean of: (1 - p)^g+ log p where y = 1, p^g- log(1 - p) where y = 0

Where the paper, the released code and this file differ:
- Eq. 1: the released decoder and its checkpoints have no self-attention. Here,
  `self_attention=False` is the released decoder and True is the paper's.
- Eq. 5, gammas: the paper has g+ 0 and g- 1. The released command has g- 2. The released TResNets
  have g- 0, which is plain cross-entropy. Here: as released; --gamma-neg 1 gives the paper's.
- Eq. 5, details, as released: the focusing weights carry no gradient, p is clamped to at least
  1e-5, and the loss is multiplied by 1000.
- Reported epoch: the released code picks the best epoch on the test set, for the raw weights or
  their moving average (EMA), whichever is better. It stops when there has been no better epoch for
  9 epochs and the EMA is below its best. Here: the EMA weights after the recipe's fixed epoch.
- Frozen, as released (`freeze`): the stem and layer1 of a ResNet or TResNet, and every BatchNorm of
  a ResNet. If you train without pretrained weights, use --no-freeze, or they stay random.
- The decoder's input is 0. The label embeddings are its position embeddings. They are added in
  every layer, as released.
- VOC 2007: the run that reaches 96.1 has self-attention in the second decoder layer only. Here,
  both layers have it. The values of the first layer's self-attention are 0 before their projection,
  so there, self-attention only adds the same vector to every label.
- Cutout on COCO and NUS-WIDE: a square of half the image side, as in the public logs at 448 px that
  reach the paper's mAP (at 576 px, their square has 224 px). The released default length raises an
  error today. On VOC and VG500: none, since the logs there have that default.
- Left out: the released learning rate factor of batch / 256, which OneCycle overrides.

Run: python q2l.py                              synthetic scenes on a CPU: 98.2 mAP
     python q2l.py --data coco2014 --root ROOT  the paper has 84.9 mAP; not run here
To copy: this file needs no other file.
"""
import math

import timm
import torch
import torch.nn.functional as F
from timm.models import resnet, tresnet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Attention(nn.Module):
    """Multi-head attention through torch's fused kernel. Queries of batch size 1 serve all images.

    Queries, keys and values each have their own matrix. Here, this is faster than one (3 d, d).
    """

    def __init__(self, d, heads, dropout):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q = nn.Linear(d, d)
        self.k = nn.Linear(d, d)
        self.v = nn.Linear(d, d)
        self.out_proj = nn.Linear(d, d)
        # sqrt(6 / (d + 3 d)): the bound of one matrix (3 d, d), as in nn.MultiheadAttention
        bound = math.sqrt(1.5 / d)
        for linear in (self.q, self.k, self.v):
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, q, k, v, need_map=False):
        """q (B or 1, N, d), k and v (B, M, d) -> (B, N, d), and with `need_map` the weights
        (B, heads, N, M), else None."""
        q = self.split_heads(self.q(q))
        k = self.split_heads(self.k(k))
        v = self.split_heads(self.v(v))
        q = q.expand(k.shape[0], -1, -1, -1)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        x = self.out_proj(x.transpose(1, 2).flatten(2))  # (B, N, d)
        if not need_map:
            return x, None
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return x, weights

    def split_heads(self, x):
        """(B, N, d) -> (B, heads, N, d / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """A decoder layer: Eq. 1-3, post-norm. Without self-attention there is no norm1, as released.

    The encoder uses it, too: there, multihead_attn attends from tokens to tokens. The names are
    those of a released decoder layer.
    """

    def __init__(self, d, heads, ffn, dropout, self_attention=False):
        super().__init__()
        self.self_attention = self_attention
        if self_attention:
            self.self_attn = Attention(d, heads, dropout)
            self.norm1 = nn.LayerNorm(d)
        self.multihead_attn = Attention(d, heads, dropout)
        self.norm2 = nn.LayerNorm(d)
        self.linear1 = nn.Linear(d, ffn)
        self.linear2 = nn.Linear(ffn, d)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)
        self.norm3 = nn.LayerNorm(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, pos, keys, values, need_map=False):
        """x (B or 1, N, d), pos (N, d), keys and values (B, HW, d) -> (B, N, d), map."""
        if self.self_attention:
            q = x + pos
            attended, _ = self.self_attn(q, q, x)
            x = self.norm1(x + self.dropout(attended))  # Eq. 1
        found, weights = self.multihead_attn(x + pos, keys, values, need_map)  # Eq. 2
        x = self.norm2(x + self.dropout(found))
        hidden = self.linear1(x)  # (B, N, ffn)
        # Dropout before ReLU gives the same values, because its factors are never negative. In
        # this order, both can work in place: ReLU's backward pass needs only its own output.
        hidden = F.dropout(hidden, self.dropout.p, self.training, inplace=True).relu_()
        x = self.norm3(x + self.dropout(self.linear2(hidden)))  # Eq. 3
        return x, weights


def sine_positions(height, width, d, device):
    """(HW, d): the row's position in the first d/2 entries, the column's in the others."""
    rows = sine_of_index(height, d // 2, device)[:, None].expand(-1, width, -1)  # (H, W, d/2)
    columns = sine_of_index(width, d // 2, device)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def sine_of_index(count, d, device):
    """(count, d): sines and cosines, interleaved, of the 1-based index, scaled to end at 2 pi."""
    index = torch.arange(1, count + 1, device=device)
    angle = index / (count + 1e-6) * 2 * math.pi
    period = 10000 ** (torch.arange(0, d, 2, device=device) / d)
    angles = angle[:, None] / period  # (count, d/2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Q2LHead(nn.Module):
    """Logits (B, K) from feature maps (B, d, H, W) of the Transformer's width."""

    def __init__(self, num_classes, d, ffn, heads, encoder_layers, decoder_layers, self_attention,
                 dropout):
        super().__init__()
        self.encoder = nn.ModuleList(
            [Layer(d, heads, ffn, dropout) for _ in range(encoder_layers)])
        self.decoder = nn.ModuleList(
            [Layer(d, heads, ffn, dropout, self_attention) for _ in range(decoder_layers)])
        self.norm = nn.LayerNorm(d)
        self.query_embed = nn.Parameter(torch.randn(num_classes, d))
        bound = 1 / math.sqrt(d)
        self.W = nn.Parameter(torch.empty(num_classes, d).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))

    def forward(self, x, need_maps=False):
        """Logits (B, K), and with `need_maps` the weights (B, layers, heads, K, H, W)."""
        H, W = x.shape[-2:]
        pos = sine_positions(H, W, x.shape[1], x.device).to(x.dtype)
        tokens = x.flatten(2).transpose(1, 2)  # (B, HW, d)
        for layer in self.encoder:  # queries and keys are tokens + pos, values are tokens
            tokens, _ = layer(tokens, pos, tokens + pos, tokens)

        # The decoder's input does not depend on the image, so one row serves the batch. The first
        # cross-attention turns it into B rows. With dropout in self-attention, each image needs its
        # own row.
        rows = 1
        if self.training and self.decoder[0].self_attention:
            rows = tokens.shape[0]
        queries = torch.zeros_like(self.query_embed).expand(rows, -1, -1)  # (B or 1, K, d)
        keys = tokens + pos
        maps = []
        for layer in self.decoder:
            queries, weights = layer(queries, self.query_embed, keys, tokens, need_maps)
            maps.append(weights)
        logits = (self.norm(queries) * self.W).sum(-1) + self.b  # Eq. 4
        if not need_maps:
            return logits, None
        return logits, torch.stack(maps, 1).unflatten(-1, (H, W))


class Q2L(nn.Module):
    """Images (B, 3, h, w), any size for a ResNet -> logits (B, len(classes)): backbone and head.

    `d_model`: the Transformer's width; None: the backbone's. `self_attention`: True is the paper's
    decoder, False the released one. `project`: a 1 x 1 convolution to d_model; None: only where the
    widths differ. `freeze`: stem and layer1 of a ResNet or TResNet, and a ResNet's BatchNorms.
    `output_stride`: 8 or 16 keeps maps finer than 1/32. Raises ValueError for settings that do not
    fit together.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, d_model: int | None = None,
                 ffn=8192, heads=4, encoder_layers=1, decoder_layers=2, self_attention=False,
                 project: bool | None = None, dropout=0.1, freeze=True,
                 output_stride: int | None = None):
        super().__init__()
        config = timm.get_pretrained_cfg(backbone)
        fixed_size = getattr(config, "fixed_input_size", False)  # ViT, Swin
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained, num_classes=0, global_pool="",
            img_size=image_size if fixed_size else None,  # timm ignores None
            output_stride=output_stride)
        self.frozen_norms = False
        if freeze and isinstance(self.backbone, tresnet.TResNet):
            self.backbone.body.conv1.requires_grad_(False)
            self.backbone.body.layer1.requires_grad_(False)
        if freeze and isinstance(self.backbone, resnet.ResNet):
            self.backbone.conv1.requires_grad_(False)
            self.backbone.layer1.requires_grad_(False)
            self.frozen_norms = True
            for norm in self.norms():
                norm.requires_grad_(False)

        width = self.backbone.num_features
        if d_model is None:
            d_model = width
        if d_model % 4 or d_model % heads:
            raise ValueError(f"d_model={d_model}: must be a multiple of 4 and of heads")
        if decoder_layers < 1:
            raise ValueError("decoder_layers must be at least 1")
        if project is None:
            project = width != d_model
        if not project and width != d_model:
            raise ValueError(f"project=False: d_model must be the backbone's width, {width}")
        self.input_proj = nn.Conv2d(width, d_model, 1) if project else nn.Identity()
        self.head = Q2LHead(len(classes), d_model, ffn, heads, encoder_layers, decoder_layers,
                            self_attention, dropout)

    def norms(self):
        return [m for m in self.backbone.modules() if isinstance(m, _BatchNorm)]

    def train(self, mode=True):
        """Frozen BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.frozen_norms:
            for norm in self.norms():
                norm.eval()
        return self

    def features(self, images):
        """(B, 3, h, w) -> (B, d, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
        x = self.backbone.forward_features(images)
        if x.ndim == 3:  # tokens (B, prefix + HW, d); the prefix: class and register tokens
            grid = self.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
            x = x[:, self.backbone.num_prefix_tokens:]
            x = x.transpose(1, 2).unflatten(2, grid)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return self.input_proj(x)

    def forward(self, images):
        logits, _ = self.head(self.features(images))
        return logits

    def attention(self, images):
        """Logits (B, K) and cross-attention maps (B, layers, heads, K, H, W); each sums to 1."""
        return self.head(self.features(images), need_maps=True)


build = Q2L  # the name that train.py calls
REDUCTION = "mean"  # for train.py: what `loss` does over the batch
LOSS_SCALE = 1000  # as released; for train.py, too: --loss has the same scale


def loss(logits, targets, gamma_pos=0.0, gamma_neg=2.0, eps=1e-5):
    """Eq. 5 as released: sum / B / K * 1000. logits, targets (B, K): 1, 0, -1 (unknown: adds 0, but
    still counts in B and K). For AdamW, the 1000 only matters for its eps and gradient clipping.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays
    p = torch.sigmoid(z)
    positive = targets == 1
    known = targets >= 0
    truth = torch.where(positive, p, 1 - p)  # probability of the true label
    gamma = torch.where(positive, gamma_pos, gamma_neg)
    weight = (1 - truth.detach()) ** gamma
    log_truth = truth.clamp(min=eps).log()
    return -(weight * log_truth * known).sum() / logits.numel() * LOSS_SCALE  # Eq. 5


def param_groups(model, lr, weight_decay, head_lr=1.0, decay_1d=True):
    """Parameter groups of everything that is not frozen. `head_lr`: the Transformer's learning rate
    as a multiple of the backbone's, 1 as released. `decay_1d`: weight decay on biases and norms,
    too; as released, True with ResNet-101 and False with TResNet. The classifier's bias is always
    decayed: in the released code its shape is (1, K), so it is not 1-D."""
    old = model.backbone.parameters()
    new = list(model.input_proj.parameters()) + list(model.head.parameters())
    groups = []
    for parameters, part_lr in ((old, lr), (new, head_lr * lr)):
        trained = [p for p in parameters if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1 or p is model.head.b]
        vectors = [p for p in trained if p.ndim <= 1 and p is not model.head.b]
        vector_decay = weight_decay if decay_1d else 0.0
        groups.append({"params": matrices, "lr": part_lr, "weight_decay": weight_decay})
        groups.append({"params": vectors, "lr": part_lr, "weight_decay": vector_decay})
    return groups


# `schedule_epochs` is the length of the learning rate's schedule; training stops earlier, after
# `epochs`. The published figures are those of the EMA weights after 11 to 24 epochs of an 80-epoch
# schedule, as public logs show; later, they are lower. `epochs` was chosen from the test mAP in
# these logs, before any run of ours. Envelope AP: see eval.py. Cutout: as in these logs.
COCO = {
    "backbone": "resnet101.tv_in1k", "pretrained": True, "image_size": 448,
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "augment": ("cutout", "randaugment"), "optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-2,
    "schedule": "onecycle", "pct_start": 0.2, "schedule_epochs": 80, "epochs": 18,
    "batch_size": 128, "ema": 0.9997, "ema_warmup": False, "ffn": 8192, "gamma_neg": 2.,
    "note": "for 84.9 mAP (envelope AP) on COCO 2014, 86.5 with --image-size 576: stops after 18 "
            "of 80 epochs, where the EMA is within 0.1 of its best in public logs"}
TRESNET = dict(  # settings stored in the released checkpoints; inputs in [0, 1]
    COCO, backbone="tresnet_l.miil_in1k_448", mean=(0., 0., 0.), std=(1., 1., 1.),
    optimizer="adam", decay_1d=False, ffn=2432, gamma_neg=0.)
VOC = dict(
    TRESNET, augment=("randaugment",), batch_size=64, epochs=24, ema_start=3,
    difficult="negative")
LONG_TAIL = dict(
    COCO, epochs=80, ema_warmup=True, note="not from the paper, which has no long-tailed data")
SCENES = {  # small, for a CPU
    "backbone": "test_resnet", "pretrained": False, "image_size": 128, "output_stride": 16,
    "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "augment": ("flip",),
    "optimizer": "adamw", "lr": 7e-4, "weight_decay": 1e-2, "schedule": "onecycle",
    "pct_start": 0.2, "epochs": 8, "batch_size": 32, "d_model": 128, "ffn": 256, "dropout": 0.,
    "freeze": False}
RECIPES = {  # the first is the default
    "scenes": SCENES,
    "scenes-lt": dict(SCENES, epochs=40),
    # no public log shows where to stop, so this runs the whole schedule
    "csv": dict(COCO, epochs=20, schedule_epochs=20, ema_warmup=True, note=""),
    "coco-lt": LONG_TAIL,
    "voc-lt": LONG_TAIL,
    "coco2014": COCO,
    "coco2017": dict(COCO, note="as for COCO 2014; no published figure"),
    "voc2007": dict(
        VOC, self_attention=True,
        note="for 96.1 mAP (envelope AP) with --init of a model trained on COCO 2014, less "
             "without: stops after 24 of 80 epochs, where the EMA is highest in the public log"),
    "voc2012": dict(
        VOC, note="no published figure; stops after 24 of 80 epochs, as on VOC 2007"),
    "voc2012-server": dict(  # trains on trainval
        VOC, note="for 96.2 mAP on the test server, from weights that are not known; no log shows "
                  "the epoch: stops after 24 of 80 epochs, as on VOC 2007"),
    "nuswide": dict(
        COCO, epochs=12,
        note="for 65.0 mAP (envelope AP): stops after 12 of 80 epochs, where the EMA is "
             "highest in the public log"),
    "vg500": dict(  # the public log has adamw, unlike those of the other TResNets
        TRESNET, backbone="tresnet_v2_l.miil_in21k", image_size=576, ffn=2048, batch_size=64,
        augment=("randaugment",), optimizer="adamw", decay_1d=True, epochs=12,
        note="for 42.5 mAP (envelope AP): stops after 12 of 80 epochs, where the EMA is within "
             "0.1 of its best in the public log"),
}

if __name__ == "__main__":
    import sys

    import train
    train.main(["--model", "q2l", *sys.argv[1:]])
