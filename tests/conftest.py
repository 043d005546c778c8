"""Imports from the folder above, and what several tests share."""
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test uses the network
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "docs")]
PARITY = json.loads((HERE / "parity.json").read_text())  # figures of the released models


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also the tests marked slow")


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    for item in items if not config.getoption("--slow") else ():
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: --slow runs it"))


@pytest.fixture(autouse=True)
def same_random_numbers_in_every_run():
    torch.manual_seed(0)


def default_settings(**changes):
    """The settings of train.py without a recipe."""
    from lib.settings import make_parser
    settings = make_parser(importlib.import_module("csra")).parse_args([])
    vars(settings).update(changes)
    return settings


def released_weights(shapes):
    """The weights on which parity.json's figures were taken: each tensor drawn by its own name."""
    state = {}
    for name, shape in shapes.items():
        a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        part = name.split(".")[-1]
        if part == "num_batches_tracked":
            a = np.zeros(shape)
        elif part == "running_var":
            a = 1 + 0.1 * abs(a)
        elif len(shape) == 1 and part == "weight":
            a = 1 + 0.1 * a
        elif len(shape) == 1 or part == "b":
            a = 0.1 * a
        else:
            a = a / np.sqrt(np.prod(shape[1:]))
        state[name] = torch.tensor(a, dtype=torch.float32)
    return state


def parity_batch(figures):
    """The images (B, 3, size, size) of a parity entry and its targets, if it has any."""
    targets = figures.get("targets")
    shape = (len(targets or figures["logits"]), 3, figures["size"], figures["size"])
    images = torch.tensor(np.random.default_rng(0).standard_normal(shape), dtype=torch.float32)
    return images, torch.tensor(targets, dtype=torch.int8) if targets else None


def shared_figures(name):
    """A file of parity figures with the released names and shapes, where it is at hand, or None."""
    file = HERE.parent.parent / "shared" / "parity" / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def print_difference(method, found, expected):
    """For docs/results.md: `python -m pytest -s --slow -k parity tests`; relative to the largest."""
    found, expected = torch.as_tensor(found).detach(), torch.tensor(expected)
    print(f"\n{method}: {((found - expected).abs().max() / expected.abs().max()).item():.0e}")


def run(*command, cwd=HERE.parent, ok=True):
    """Run `python COMMAND...` as a user does; the text of stdout and stderr."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, text=True, check=False,
                          capture_output=True, timeout=600,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def page_commands():
    """(page, words) of each command on README and docs/*.md, once each: the lines of code blocks,
    and inline code, that begin with python or torchrun."""
    from excerpts import pages
    found = {}
    for page in pages():
        text = page.read_text("utf-8").replace("\\\n", " ")  # a command that goes on in the next line
        commands = re.findall(r"(?<!`)`((?:python|torchrun)\s[^`]*)`(?!`)", text)
        in_block = False
        for line in text.splitlines():
            if line.lstrip().startswith("```"):
                in_block = not in_block
            elif (in_block or line.startswith("    ")) and "`" not in line:
                commands += re.findall(r"^ *((?:python|torchrun) .*)$", line)
        for command in commands:
            words = shlex.split(command, comments=True)
            end = [i for i, word in enumerate(words) if word in (">", "|", "&&")]
            words = tuple(words[:end[0]] if end else words)
            found.setdefault(words, page.name)
    return [(page, words) for words, page in found.items()]
