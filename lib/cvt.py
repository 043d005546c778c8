"""CvT: convolutional vision transformer, the backbone of Query2Label's best model. timm has none.

Paper: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021, arXiv
2103.15808. Importing this file makes `--backbone cvt_w24` known to timm, without pretrained
weights: those of Query2Label come with its released checkpoint. As in the released code, attention
is scaled by the width of the stage, not of a head.
"""
import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from torch import nn


class Projection(nn.Module):
    """A depthwise convolution with BatchNorm: (B, d, H, W) -> (B, HW / stride^2, d)."""

    def __init__(self, d, stride):
        super().__init__()
        self.conv = nn.Conv2d(d, d, 3, stride, 1, groups=d, bias=False)
        self.bn = nn.BatchNorm2d(d)

    def forward(self, x):
        return self.bn(self.conv(x)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Queries, keys and values from convolutions of the map; keys and values at half resolution."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.scale = heads, d ** -0.5
        self.conv_proj_q, self.conv_proj_k, self.conv_proj_v = (
            Projection(d, stride) for stride in (1, 2, 2))
        self.proj_q, self.proj_k, self.proj_v, self.proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x, grid):
        """x (B, [1 +] HW, d): a class token, if there is one, bypasses the convolutions."""
        token, cells = x.split([x.shape[1] - grid[0] * grid[1], grid[0] * grid[1]], 1)
        cells = cells.transpose(1, 2).unflatten(2, grid)  # (B, d, H, W)

        def heads(conv, linear):
            x = linear(torch.cat([token, conv(cells)], 1))
            return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d / heads)
        q, k, v = (heads(self.conv_proj_q, self.proj_q), heads(self.conv_proj_k, self.proj_k),
                   heads(self.conv_proj_v, self.proj_v))
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Block(nn.Module):
    def __init__(self, d, heads, drop_path):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn, self.mlp, self.drop_path = Attention(d, heads), MLP(d), DropPath(drop_path)

    def forward(self, x, grid):
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Embedding(nn.Module):
    def __init__(self, d_in, d, kernel, stride, padding):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(d_in, d, kernel, stride, padding), nn.LayerNorm(d)

    def forward(self, x):
        """(B, d_in, h, w) -> tokens (B, HW, d) and their grid (H, W)."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2:]


class Stage(nn.Module):
    def __init__(self, d_in, d, heads, blocks, drop_path, first, with_token):
        super().__init__()
        self.patch_embed = Embedding(d_in, d, *((7, 4, 2) if first else (3, 2, 1)))
        rates = calculate_drop_path_rates(drop_path, blocks)
        self.blocks = nn.ModuleList(Block(d, heads, rate) for rate in rates)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, d)) if with_token else None
        self.grad_checkpointing = False

    def forward(self, x):
        """(B, d_in, h, w) -> (B, d, H, W). The class token ends here: no method uses it."""
        x, grid = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        blocks = [lambda x, block=block: block(x, grid) for block in self.blocks]
        if self.grad_checkpointing and self.training:
            x = checkpoint_seq(blocks, x)
        else:
            for block in blocks:
                x = block(x)
        return x[:, -grid[0] * grid[1]:].transpose(1, 2).unflatten(2, grid)


class CvT(nn.Module):
    """Images (B, 3, h, w) -> maps (B, width, h / 16, w / 16). Only as a backbone: num_classes 0."""

    def __init__(self, num_classes=0, global_pool="", in_chans=3, widths=(192, 768, 1024),
                 heads=(3, 12, 16), blocks=(2, 2, 20), drop_path=(0., 0., 0.3)):
        super().__init__()
        self.stage0, self.stage1, self.stage2 = (
            Stage((in_chans, *widths)[i], widths[i], heads[i], blocks[i], drop_path[i],
                  first=i == 0, with_token=i == 2) for i in range(3))
        self.norm, self.num_features, self.num_classes = nn.LayerNorm(widths[-1]), widths[-1], 0

    def set_grad_checkpointing(self, enable=True):
        for stage in (self.stage0, self.stage1, self.stage2):
            stage.grad_checkpointing = enable

    def forward_features(self, x):
        x = self.stage2(self.stage1(self.stage0(x)))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)

    forward = forward_features


default_cfgs = generate_default_cfgs({"cvt_w24": {
    "input_size": (3, 384, 384), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}})


@register_model
def cvt_w24(pretrained=False, **settings):
    return build_model_with_cfg(CvT, "cvt_w24", pretrained, **settings)
