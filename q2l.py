"""Q2L, Query2Label (Liu et al., 2021, arXiv 2107.10834): a learned query per label asks the image.

The problem. The usual classifier averages the feature map over its cells and judges all labels by
this one vector. But each label needs another place: the cat is here, the small cup there.
The idea. Each label has a learned vector, its label query, that asks the map "where is my label?".
Attention answers with a weighted mean of the cells, so each label gets a feature of its own. DETR
finds objects in this way. But here, query k is always label k, so nothing has to be matched.

    images (B, 3, h, w) -> backbone -> encoder -> cells F (B, HW, d) --+ keys, values
                                                                       v
    label queries (K, d) ---------------------------------> L decoder layers -> Q_L (B, K, d) -> p

B images, K labels, HW cells, d: the Transformer's width. ~X is X with position embeddings added: ~F
= F + where the cell is, ~Q = Q + label queries, in every layer, so that no layer forgets who asks.
Q itself is what the labels have found. It starts at 0 (as released; in the paper, with the label
queries). MultiHead(query, key, value) is softmax(query . key / sqrt(d / heads)) times value, with
several heads. Decoder layer i, from 1 to L, is Eq. 1 to 3. The released decoder on COCO has no Eq.
1, and neither has this file by default: then labels never see one another.

    Eq. 1   Q_i^(1) = MultiHead(~Q_{i-1}, ~Q_{i-1}, Q_{i-1})   labels look at labels
    Eq. 2   Q_i^(2) = MultiHead(~Q_i^(1), ~F, F)               label k looks at the cells
    Eq. 3   Q_i = FFN(Q_i^(2))                                 two linear layers
    Eq. 4   p_k = Sigmoid(W_k . Q_{L,k} + b_k)                 row k of Q_L with row k of W
    Eq. 5   L = -1/K sum_k of (1 - p_k)^gamma+ log p_k         where y_k = 1
                              p_k^gamma- log(1 - p_k)          where y_k = 0

The paper prints Eq. 5 without the minus sign. gamma+ = gamma- = 0 is cross-entropy. With a larger
gamma-, easy negatives count less: one of p = 0.1 adds 0.105 with gamma- = 0, 0.011 with 1 (the
paper) and 0.001 with 2 (the default).

An example of Eq. 2: four cells of width 4, one head, all matrices the identity. One cell shows a
cat (2 0 0 0), one a dog (0 2 0 0), two nothing (0 0 0 0).

    query         weights of the cells   what it finds
    (0 0 0 0)     0.25 0.25 0.25 0.25    (0.50 0.50 0 0)   the average, as in the usual classifier
    (2 0 0 0)     0.71 0.10 0.10 0.10    (1.42 0.19 0 0)   mostly cat
    (0 2 0 0)     0.10 0.71 0.10 0.10    (0.19 1.42 0 0)   mostly dog
    (8 0 0 0)     1.00 0.00 0.00 0.00    (2.00 0.00 0 0)   the cat's cell alone

On COCO, with ResNet-101 at 448 px: K = 80, HW = 14 x 14, d = 2048, 4 heads, L = 2.

Run: python q2l.py                              synthetic scenes on a CPU: 98.4 mAP
                                                (mAP: mean average precision, see lib/metrics.py)
     python q2l.py --data coco2014 --root ROOT  the paper has 84.9 mAP; not run here
More: docs/q2l.md explains each step and lists what differs from paper and released code.
To copy: Q2LHead and the four parts that follow it need only torch and math (leave out timm).
"""
import math
import warnings

import timm
import torch
import torch.nn.functional as F
from timm.models import resnet, tresnet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Q2LHead(nn.Module):
    """Logits (B, K) from feature maps (B, d, H, W) of the Transformer's width d.

    `ffn`: hidden width of Eq. 3. `self_attention`: with Eq. 1, as in the paper; without it, as
    released. (With one decoder layer, Eq. 1 has no use: its values are Q = 0, so every label gets
    the same vector.) Raises ValueError for widths or features that do not fit.
    """

    def __init__(self, num_classes, d, ffn=8192, heads=4, encoder_layers=1, decoder_layers=2,
                 self_attention=False, dropout=0.1):
        super().__init__()
        if d % 4 or d % heads:  # 4: sines and cosines, of rows and of columns
            raise ValueError(f"d_model={d}: must be a multiple of 4 and of heads")
        if decoder_layers < 1:
            raise ValueError("decoder_layers must be at least 1")
        self.encoder = nn.ModuleList(
            [Layer(d, heads, ffn, dropout) for _ in range(encoder_layers)])
        self.decoder = nn.ModuleList(
            [Layer(d, heads, ffn, dropout, self_attention) for _ in range(decoder_layers)])
        self.norm = nn.LayerNorm(d)
        self.query_embed = nn.Parameter(torch.randn(num_classes, d))  # the label queries
        bound = 1 / math.sqrt(d)  # as in nn.Linear
        self.W = nn.Parameter(torch.empty(num_classes, d).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))

    def forward(self, x, need_maps=False):
        """Two things: logits (B, K) and, with `need_maps`, the weights (B, layers, heads, K, H, W)
        of Eq. 2, else None."""
        d = self.query_embed.shape[1]
        if x.ndim != 4 or x.shape[1] != d:
            raise ValueError(f"features {tuple(x.shape)}: a map (B, {d}, H, W) is needed; tokens "
                             "(B, HW, d) become one by .transpose(1, 2).unflatten(2, (H, W))")
        B, _, H, W = x.shape
        pos = sine_positions(H, W, d, x.device).to(x.dtype)  # (HW, d)
        tokens = x.flatten(2).transpose(1, 2)  # (B, HW, d): one token per cell

        # The encoder, which the paper has no equation for. Each cell learns what is around it: the
        # same layer without Eq. 1, but the cells ask, so cells look at cells.
        for layer in self.encoder:
            tokens, _ = layer(tokens, pos, keys=tokens + pos, values=tokens)  # (B, HW, d)

        # The decoder. Q is what the labels have found so far: at first nothing, so 0. The label
        # queries are added to it as its position embeddings, so the first layer asks with them
        # alone.
        Q = torch.zeros_like(self.query_embed).expand(B, -1, -1)  # (B, K, d)
        keys = tokens + pos  # ~F. The values are F: a position tells where, not what is there.
        maps = []
        for layer in self.decoder:
            Q, weights = layer(Q, self.query_embed, keys, tokens, need_maps)
            maps.append(weights)  # (B, heads, K, HW)

        # Each label has its own W_k, which is multiplied with its own row of Q, after a last
        # LayerNorm (as released). The loss takes the sigmoid.
        logits = (self.norm(Q) * self.W).sum(-1) + self.b  # Eq. 4
        if not need_maps:
            return logits, None
        return logits, torch.stack(maps, 1).unflatten(-1, (H, W))


class Layer(nn.Module):
    """A decoder layer: Eq. 1-3, each with a residual connection, then a LayerNorm. The paper's
    equations leave these out. The encoder has the same layer, without Eq. 1: there, cells ask
    cells.

    Its attributes have the names of a released decoder layer. `python -m tools.convert` renames the
    tensors that have others there.
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
        """x (B, N, d) with positions pos (N, d) looks at keys and values (B, HW, d). Returns
        (B, N, d), and with `need_map` the weights of Eq. 2 (B, heads, N, HW), else None."""
        if self.self_attention:  # off by default: the released decoder has none
            query = x + pos
            attended, _ = self.self_attn(query, query, x)  # Eq. 1
            x = self.norm1(x + self.dropout(attended))
        attended, weights = self.multihead_attn(x + pos, keys, values, need_map)  # Eq. 2
        x = self.norm2(x + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(x)))  # (B, N, ffn)
        x = self.norm3(x + self.dropout(self.linear2(hidden)))  # Eq. 3
        return x, weights


class Attention(nn.Module):
    """MultiHead(query, key, value): softmax(q . k / sqrt(d / heads)) over the keys, times v.

    The same as nn.MultiheadAttention, written out to be read, with one map per head. Its matrix
    (3 d, d) stands here as three.
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

    def forward(self, query, key, value, need_map=False):
        """query (B, N, d), key and value (B, M, d) -> (B, N, d), and with `need_map` the weights
        (B, heads, N, M), else None."""
        q = self.split_heads(self.q(query))
        k = self.split_heads(self.k(key))
        v = self.split_heads(self.v(value))
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        x = self.out_proj(x.transpose(1, 2).flatten(2))  # (B, N, d)
        if not need_map:
            return x, None
        # torch's fused kernel does not return its weights
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return x, weights

    def split_heads(self, x):
        """(B, N, d) -> (B, heads, N, d / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def sine_positions(height, width, d, device):
    """(HW, d): the row's position in the first d/2 entries, the column's in the others. Attention
    does not see where a cell is, so this is added to it. As in DETR, it is not learned, so any size
    of map works."""
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


class Q2L(nn.Module):
    """Images (B, 3, h, w), any size for a ResNet -> logits (B, len(classes)): backbone and head.

    `d_model`: the Transformer's width; None: the backbone's. `self_attention`: True adds the
    paper's Eq. 1; False is the released decoder. `project`: a 1 x 1 convolution to d_model; None:
    only where the widths differ. `freeze`: stem and layer1 of a ResNet or TResNet, and a ResNet's
    BatchNorms, stay as pretrained. `output_stride`: 8 or 16 keeps maps finer than 1/32. Raises
    ValueError for settings that do not fit together.
    """

    def __init__(self, classes, *, backbone, pretrained, image_size, d_model: int | None = None,
                 ffn=8192, heads=4, encoder_layers=1, decoder_layers=2, self_attention=False,
                 project: bool | None = None, dropout=0.1, freeze=True,
                 output_stride: int | None = None):
        super().__init__()
        self.backbone = timm_backbone(backbone, pretrained, image_size, output_stride)
        if freeze:
            freeze_first_layers(self.backbone, pretrained)
        self.frozen_norms = freeze and isinstance(self.backbone, resnet.ResNet)

        width = self.backbone.num_features
        if d_model is None:
            d_model = width
        if project is None:
            project = width != d_model
        if not project and width != d_model:
            raise ValueError(f"project=False: d_model must be the backbone's width, {width}")
        self.input_proj = nn.Conv2d(width, d_model, 1) if project else nn.Identity()
        self.head = Q2LHead(len(classes), d_model, ffn, heads, encoder_layers, decoder_layers,
                            self_attention, dropout)

    def forward(self, images):
        logits, _ = self.head(self.features(images))
        return logits

    def attention(self, images):
        """Logits (B, K) and cross-attention maps (B, layers, heads, K, H, W); each sums to 1."""
        return self.head(self.features(images), need_maps=True)

    def features(self, images):
        """(B, 3, h, w) -> (B, d, H, W)"""
        return self.input_proj(feature_map(self.backbone, images))

    def train(self, mode=True):
        """Frozen BatchNorms stay in evaluation mode."""
        super().train(mode)
        if self.frozen_norms:
            for norm in batchnorms(self.backbone):
                norm.eval()
        return self


LOSS_SCALE = 1000  # as released, without a reason; a loss of --loss is multiplied by it, too


def loss(logits, targets, gamma_pos=0.0, gamma_neg=2.0, eps=1e-5):
    """Eq. 5, the mean over B and K, times 1000. AdamW hardly notices this factor, unless gradients
    are clipped. For Adam, it makes weight decay 1000 times weaker.

    logits, targets (B, K). A target is 1, 0 or, as a soft label, in between, which mixes the two.
    -1 is unknown: it adds 0 but counts in B K, by which the released code divides. Values are not
    checked. Raises ValueError if the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: both must "
                         "be (B, K)")
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))  # from half; float64 stays
    p = torch.sigmoid(z)
    y = targets.to(p.dtype)
    # As released: the focusing weights carry no gradient, and no logarithm is below log(eps).
    log_p = p.clamp(min=eps).log()
    log_not_p = (1 - p).clamp(min=eps).log()
    L_pos = (1 - p.detach()) ** gamma_pos * log_p
    L_neg = p.detach() ** gamma_neg * log_not_p
    L = y * L_pos + (1 - y) * L_neg  # Eq. 5: its two cases
    known = targets >= 0
    return -(L * known).sum() / L.numel() * LOSS_SCALE


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
    """(B, 3, h, w) -> (B, width, H, W), from NCHW (ResNet), NHWC (Swin) or tokens (ViT)."""
    x = backbone.forward_features(images)
    if x.ndim == 3:  # tokens (B, prefix + HW, width); the prefix: class and register tokens
        grid = backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
        x = x[:, backbone.num_prefix_tokens:]
        x = x.transpose(1, 2).unflatten(2, grid)
    elif getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        x = x.permute(0, 3, 1, 2)
    return x


def freeze_first_layers(backbone, pretrained):
    """As released: stem and layer1 of a ResNet or TResNet, and every BatchNorm of a ResNet."""
    if isinstance(backbone, tresnet.TResNet):
        parts = [backbone.body.conv1, backbone.body.layer1]
    elif isinstance(backbone, resnet.ResNet):
        parts = [backbone.conv1, backbone.layer1, *batchnorms(backbone)]
    else:
        return
    for part in parts:
        part.requires_grad_(False)
    if not pretrained:
        warnings.warn("the frozen layers of the backbone are random and stay so: load pretrained "
                      "weights into them, or build with freeze=False")


def batchnorms(module):
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


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


# All names below are for train.py, whose head says what each one is.
build = Q2L
REDUCTION = "mean"  # what `loss` does over the batch
# `--init FILE` starts from a trained model. If that has other classes, these start at random.
CLASS_TENSORS = ("head.query_embed", "head.W", "head.b")
HELP = {  # keyword argument -> its text in --help
    "d_model": "width of the Transformer; none: the backbone's",
    "ffn": "hidden width of the feed-forward layers",
    "heads": "attention heads",
    "encoder_layers": "layers in which cells look at cells",
    "decoder_layers": "layers in which label queries look at cells",
    "self_attention": "Eq. 1: label queries look at each other, as in the paper",
    "project": "a 1 x 1 convolution to d_model; none: only where the widths differ",
    "dropout": "dropout in the Transformer",
    "freeze": "keep stem, layer1 (ResNet, TResNet) and BatchNorms (ResNet) as pretrained",
    "output_stride": "8 or 16: maps finer than 1/32; none: the backbone's",
    "gamma_pos": "focusing of positive labels; 0: as in cross-entropy",
    "gamma_neg": "focusing of negative labels; 0: as in cross-entropy; 1: the paper's",
    "eps": "the loss takes the logarithm of at least this probability",
    "head_lr": "learning rate of the Transformer as a multiple of the backbone's",
    "decay_1d": "weight decay on biases and norms, too",
}

# `schedule_epochs` is the length of the learning rate's schedule; training stops earlier, after
# `epochs`. In public logs of 80-epoch schedules, the EMA weights are best, and near the published
# figures, after 11 to 24 epochs; later, they are lower. `epochs` was chosen from the test mAP in
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
SMALL = {  # few images, or no GPU. amp: with this backbone, CPUs are slower in bfloat16
    "backbone": "tf_efficientnet_lite0.in1k", "pretrained": True, "image_size": 224,
    "freeze_bn": True, "augment": ("flip",), "optimizer": "adamw", "lr": 1e-4,
    "weight_decay": 1e-2, "schedule": "onecycle", "epochs": 4, "min_steps": 500,
    "batch_size": 16, "amp": "off", "head_lr": 3., "d_model": 512, "ffn": 2048}
RECIPES = {  # the first is the default
    "scenes": SCENES,
    "scenes-lt": dict(SCENES, epochs=40),
    # no public log shows where to stop, so this runs the whole schedule
    "csv": dict(COCO, epochs=20, schedule_epochs=20, ema_warmup=True, note=""),
    "small": SMALL,
    "coco-lt": LONG_TAIL,
    "voc-lt": LONG_TAIL,
    "coco2014": COCO,
    "coco2017": dict(COCO, note="as for COCO 2014; no published figure"),
    "voc2007": dict(
        VOC, self_attention=True,  # as in the public log, there in the second layer only
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
