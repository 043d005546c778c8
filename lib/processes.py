"""The processes of a distributed run, and what each of them runs on."""
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel


def process():
    """The rank of this process and the world size of a distributed run; 0, 1 without one."""
    on = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if on else (0, 1)


def everyone(item):
    """The items of all processes, by rank."""
    items = [item] * process()[1]
    if len(items) > 1:
        dist.all_gather_object(items, item)
    return items


def hardware(amp, workers):
    """Joins the other processes under torchrun, each with its own GPU. Returns the device, the
    dtype of autocast or None (auto: bf16 where the hardware has it, fp16 on older GPUs), and the
    number of loading processes (-1: by the cores of this process)."""
    cuda, there = torch.cuda.is_available(), torch.accelerator.is_available()  # cuda, mps, ...
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    device = torch.accelerator.current_accelerator() if there else torch.device("cpu")

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    if amp == "auto" and cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if native else torch.float16
    elif amp == "auto" and not there and (torch.cpu._is_avx512_bf16_supported()
                                          or torch.cpu._is_amx_tile_supported()):
        dtype = torch.bfloat16

    cores = os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return device, dtype, min(8, cores if cuda else cores // 2) if workers < 0 else workers


def parallel(model, size, device):
    """The model in DistributedDataParallel, which waits for the gradient of every parameter: those
    that get none, such as a last norm that only timm's own classifier uses, are frozen."""
    model.eval()(torch.zeros(1, 3, size, size, device=device)).sum().backward()
    for p in model.parameters():
        p.requires_grad_(p.grad is not None)
    model.zero_grad()
    return DistributedDataParallel(model)


def gathered(x, rows, fill):
    """(b, K) of each process -> (B, K) of all. The gradient flows into this process's own rows, and
    `fill` replaces the rows of images that were left out."""
    rank, world = process()
    if len(x) < rows:
        x = F.pad(x, (0, 0, 0, rows - len(x)), value=fill)
    if world == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = x
    return torch.cat(parts)
