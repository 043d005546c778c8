"""One process per GPU under torchrun. Everything here also works in a single process."""
import os
import sys
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lib.errors import InputError


def start():
    """Joins the other processes under torchrun. Returns this process's device."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if "LOCAL_RANK" not in os.environ:
            raise InputError("WORLD_SIZE is set in the environment, but not LOCAL_RANK: start with "
                             "torchrun, or unset WORLD_SIZE")
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend)
    if torch.accelerator.is_available():  # cuda, mps, ...
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


def stop():
    if dist.is_initialized():
        time.sleep(0.1)  # torch 2.6 hangs if its thread is still freeing the last operation
        dist.destroy_process_group()


@contextmanager
def program(memory_remedy="--accumulate 2 saves memory at the same batch size"):
    """Wraps a program's main: an error that the user can fix ends in one line, and the process
    group is left in any case. memory_remedy: what helps if the device has too little memory."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that the terminal cannot show do not stop it
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # what reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        sys.exit("error: BatchNorm needs more than one value per channel in each batch: a larger "
                 "--batch-size, a smaller --accumulate, --drop-last, or --freeze-bn")
    except torch.OutOfMemoryError:
        sys.exit(f"error: out of memory on the device: {memory_remedy}")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        sys.exit("error: a loading process was killed, most likely because memory was short: fewer "
                 "--workers need less")
    finally:
        stop()


def rank():
    if dist.is_initialized():
        return dist.get_rank()
    return 0


def world_size():
    if dist.is_initialized():
        return dist.get_world_size()
    return 1


def is_main():
    return rank() == 0


def print_once(text, end="\n"):
    """Prints from the first process only. A full disk or a closed pipe does not stop training."""
    if not is_main():
        return
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        print(f"standard output has failed ({error}); the run goes on", file=sys.stderr)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the run)


def wait_for_all():
    if world_size() > 1:
        dist.barrier()


def gather(item):
    """The items of all processes, by rank."""
    if world_size() == 1:
        return [item]
    items = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def broadcast_buffers(model):
    """All processes get the BatchNorm statistics of the first one."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def data_parallel(model, image_size, device):
    """The model in DistributedDataParallel, which waits for the gradient of every parameter. So
    parameters that get none, such as a last norm for timm's own classifier only, are frozen."""
    model.eval()
    model(torch.zeros(1, 3, image_size, image_size, device=device)).sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    model.zero_grad()
    return DistributedDataParallel(model)


def autocast_dtype(device, amp):
    """The dtype of autocast; None: float32. auto: bf16 if the hardware has it, fp16 on older GPUs,
    float32 elsewhere."""
    dtypes = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if amp != "auto":
        return dtypes[amp]
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16
    fast_on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cpu" and fast_on_cpu:
        return torch.bfloat16
    return None
