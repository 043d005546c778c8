"""CvT: convolutional vision transformer, the backbone of Query2Label's best model. timm has no CvT.

Paper: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021, arXiv
2103.15808. Importing this file makes `--backbone cvt_w24` known to timm, without pretrained
weights: those of Query2Label come with its released checkpoint. As in the released code, attention
is scaled by the width of the stage, not of a head.
"""
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, QuickGELU, calculate_drop_path_rates
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn


class Projection(nn.Module):
    """A depthwise convolution of a map, with BatchNorm; a class token bypasses it."""

    def __init__(self, d, stride):
        super().__init__()
        self.conv = nn.Conv2d(d, d, 3, stride, 1, groups=d, bias=False)
        self.bn = nn.BatchNorm2d(d)

    def forward(self, token, x):
        """token (B, 1 or 0, d), x (B, d, H, W) -> (B, [1 +] HW / stride^2, d)"""
        x = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        return torch.cat([token, x], 1)


class Attention(nn.Module):
    """Queries, keys and values from convolutions of the map; keys and values at half resolution."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.scale = d ** -0.5
        self.conv_proj_q = Projection(d, stride=1)
        self.conv_proj_k = Projection(d, stride=2)
        self.conv_proj_v = Projection(d, stride=2)
        self.proj_q = nn.Linear(d, d)
        self.proj_k = nn.Linear(d, d)
        self.proj_v = nn.Linear(d, d)
        self.proj = nn.Linear(d, d)

    def forward(self, x, grid):
        """x (B, [1 +] HW, d): a map, after a class token if there is one."""
        tokens = x.shape[1] - grid[0] * grid[1]  # 1 or 0
        token = x[:, :tokens]
        x = x[:, tokens:].transpose(1, 2).unflatten(2, grid)  # (B, d, H, W)
        q = self.proj_q(self.conv_proj_q(token, x))
        k = self.proj_k(self.conv_proj_k(token, x))
        v = self.proj_v(self.conv_proj_v(token, x))
        x = F.scaled_dot_product_attention(self.split_heads(q), self.split_heads(k),
                                           self.split_heads(v), scale=self.scale)
        return self.proj(x.transpose(1, 2).flatten(2))

    def split_heads(self, x):
        """(B, N, d) -> (B, heads, N, d / heads)"""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, d, heads, drop_path):
        super().__init__()
        self.norm1 = nn.LayerNorm(d)
        self.norm2 = nn.LayerNorm(d)
        self.attn = Attention(d, heads)
        self.mlp = Mlp(d, 4 * d, act_layer=QuickGELU)
        self.drop_path = DropPath(drop_path)

    def forward(self, x, grid):
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Embedding(nn.Module):
    def __init__(self, d_in, d, kernel, stride, padding):
        super().__init__()
        self.proj = nn.Conv2d(d_in, d, kernel, stride, padding)
        self.norm = nn.LayerNorm(d)

    def forward(self, x):
        """(B, d_in, h, w) -> tokens (B, HW, d) and their grid (H, W)."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2:]


class Stage(nn.Module):
    def __init__(self, patch_embed, d, heads, blocks, drop_path, with_token=False):
        super().__init__()
        self.patch_embed = patch_embed
        rates = calculate_drop_path_rates(drop_path, blocks)
        self.blocks = nn.ModuleList(Block(d, heads, rate) for rate in rates)
        self.cls_token = None
        if with_token:
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, d))

    def forward(self, x):
        """(B, d_in, h, w) -> (B, d, H, W). The class token ends here: no method uses it."""
        x, grid = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, grid)
        return x[:, -grid[0] * grid[1]:].transpose(1, 2).unflatten(2, grid)


class CvT(nn.Module):
    """Images (B, 3, h, w) -> maps (B, width, h / 16, w / 16). Only as a backbone: num_classes 0."""

    def __init__(self, num_classes=0, global_pool="", in_chans=3, widths=(192, 768, 1024),
                 heads=(3, 12, 16), blocks=(2, 2, 20), drop_path=(0., 0., 0.3)):
        super().__init__()
        d0, d1, d2 = widths
        embed0 = Embedding(in_chans, d0, kernel=7, stride=4, padding=2)
        embed1 = Embedding(d0, d1, kernel=3, stride=2, padding=1)
        embed2 = Embedding(d1, d2, kernel=3, stride=2, padding=1)
        self.stage0 = Stage(embed0, d0, heads[0], blocks[0], drop_path[0])
        self.stage1 = Stage(embed1, d1, heads[1], blocks[1], drop_path[1])
        self.stage2 = Stage(embed2, d2, heads[2], blocks[2], drop_path[2], with_token=True)
        self.norm = nn.LayerNorm(d2)
        self.num_features = d2
        self.num_classes = 0

    def forward_features(self, x):
        x = self.stage2(self.stage1(self.stage0(x)))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)

    forward = forward_features


default_cfgs = generate_default_cfgs({"cvt_w24": {}})  # mean and std are timm's defaults


@register_model
def cvt_w24(pretrained=False, **settings):
    return build_model_with_cfg(CvT, "cvt_w24", pretrained, **settings)
