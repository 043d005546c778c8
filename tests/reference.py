"""Reference implementations: the methods as one would first write them, with the same weights.

bench.py and gpu.py measure the methods against these, tests compare the values.
"""
from functools import partial

import torch

import q2l


def plain_asl(z, y, gamma_neg=4, gamma_pos=0, clip=0.05, eps=1e-8):
    """The equations one after another, on targets that are floats."""
    p = torch.sigmoid(z)
    not_p = (1 - p + clip).clamp(max=1)
    loss = y * p.clamp(min=eps).log() + (1 - y) * not_p.clamp(min=eps).log()
    with torch.no_grad():
        truth = p * y + not_p * (1 - y)
        weight = (1 - truth) ** (gamma_pos * y + gamma_neg * (1 - y))
    return -(loss * weight).sum()


class PlainQ2L(torch.nn.Module):
    """The same head from nn.MultiheadAttention with its weights returned, every label queried for
    every image."""

    def __init__(self, head):
        super().__init__()
        self.head, self.attn = head, torch.nn.ModuleList()
        for layer in (*head.encoder, *head.decoder):
            ours = layer.multihead_attn
            twin = torch.nn.MultiheadAttention(ours.out_proj.in_features, ours.heads,
                                               dropout=ours.dropout, batch_first=True,
                                               device=ours.out_proj.weight.device)
            packed = {f"in_proj_{kind}": torch.cat([getattr(part, kind) for part in
                                                    (ours.q, ours.k, ours.v)])
                      for kind in ("weight", "bias")}
            twin.load_state_dict(packed | {f"out_proj.{name}": tensor for name, tensor in
                                           ours.out_proj.state_dict().items()})
            self.attn.append(twin)

    def forward(self, x):
        head = self.head
        pos = q2l.sine_positions(*x.shape[-2:], x.shape[1], x.device)
        x = x.flatten(2).transpose(1, 2)
        for layer, attn in zip(head.encoder, self.attn):
            q = x + pos
            x = layer.norm2(x + layer.dropout(attn(q, q, x)[0]))
            hidden = layer.dropout(layer.linear1(x).relu())
            x = layer.norm3(x + layer.dropout(layer.linear2(hidden)))
        pos_q = head.query_embed.expand(len(x), -1, -1)
        y = torch.zeros_like(pos_q)
        for layer, attn in zip(head.decoder, self.attn[len(head.encoder):]):
            y = layer.norm2(y + layer.dropout(attn(y + pos_q, x + pos, x)[0]))
            hidden = layer.dropout(layer.linear1(y).relu())
            y = layer.norm3(y + layer.dropout(layer.linear2(hidden)))
        return (head.norm(y) * head.W).sum(-1) + head.b


def plain_interaction(layer, tokens, prompts):
    """CPRFL's encoder layer over all HW + K tokens of every image, its last K outputs."""
    z = layer.norm1(torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], 1))
    q, k, v = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
               for x in layer.to_qkv(z).chunk(3, -1))
    a = layer.dropout(torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1))
    z = layer.norm2(layer.dropout(layer.to_out((a @ v).transpose(1, 2).flatten(2))))
    z = layer.dropout(layer.Wo(layer.dropout(torch.nn.functional.gelu(layer.Wr(z)))))
    return z[:, tokens.shape[1]:]


class WrittenOutFrozenBatchNorm(torch.nn.Module):
    def __init__(self, bn):
        super().__init__()
        self.bn = bn

    def forward(self, x):
        w, b, mean, var = (t[:, None, None] for t in (
            self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var))
        scale = w * (var + self.bn.eps).rsqrt()
        return x * scale + (b - mean * scale)


def written_out(model):
    for name, module in model.named_children():
        if isinstance(module, torch.nn.BatchNorm2d):
            setattr(model, name, WrittenOutFrozenBatchNorm(module))
        else:
            written_out(module)
    return model


def plain_csra(head, x):
    """Head by head and class by class, as the equations are written."""
    logits = 0
    for weight, T in zip(head.weight, head.temperatures):
        s = torch.nn.functional.conv2d(x, weight[:, :, None, None])
        s = (s / weight.norm(dim=1)[None, :, None, None]).flatten(2)
        att = s.max(2)[0] if T == float("inf") else (torch.softmax(T * s, 2) * s).sum(2)
        logits = logits + s.mean(2) + head.lam * att
    return logits


def plain_model(name, model):
    """The same weights in the reference implementation."""
    if name == "csra":
        model.head.forward = partial(plain_csra, model.head)
    elif name == "q2l":
        head = PlainQ2L(model.head)
        model.forward = lambda images: head(model.features(images))
        written_out(model.backbone)
    elif name == "cprfl":
        model.interaction.forward = partial(plain_interaction, model.interaction)
    return model
