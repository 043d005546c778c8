"""Pretrained weights: without internet, an error in seconds; with a slow line or a cache, none."""
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import timm
from conftest import HERE
from huggingface_hub import constants

import train
from lib import downloads
from lib.models import build_model
from lib.settings import read_command_line

NO_INTERNET = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def waited(monkeypatch, tmp_path):
    """A computer without internet and with an empty cache. A list: for how long `sleep` was called."""
    sleeps = []
    now = time.monotonic

    def no_address(*args, **kwargs):
        raise NO_INTERNET

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(time, "sleep", sleeps.append)
    monkeypatch.setattr(time, "monotonic", lambda: now() + sum(sleeps))
    return sleeps


@pytest.mark.parametrize("flags, expected", [
    (("--backbone", "resnet18.a1_in1k", "--pretrained"),
     ["no connection to https://huggingface.co", "Temporary failure in name resolution",
      "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
      "--weights FILE", "--no-pretrained"]),
    (("--backbone", "hf-hub:timm/resnet18.a1_in1k", "--pretrained", "--mean", "0.5,0.5,0.5", "--std",
      "0.2,0.2,0.2"), ["https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"]),
    (("--model", "cprfl", "--text", "RN50", "--backbone", "resnet18.a1_in1k", "--pretrained"),
     ["resnet18.a1_in1k/resolve/main/model.safetensors", "--weights FILE", "--text random",
      "--text-features FILE"]),
    (("--model", "cprfl", "--text", "RN50"),
     ["https://huggingface.co/timm/resnet50_clip.openai cannot", "--text random",
      "--text-features FILE", "(20, m)"])])
def test_without_internet_one_line_says_what_to_get(flags, expected, waited, tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--data", "scenes", "--limit", "16", "--out", str(tmp_path / "out"), *flags])
    text = str(stopped.value)
    assert text.startswith("error: ") and "\n" not in text
    for part in expected:
        assert part in text
    assert capfd.readouterr().err == ""  # no line about each attempt
    assert 1 <= sum(waited) <= downloads.PATIENCE + 1  # the hub's client would wait 46 s
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("flags", [[], ["--model", "cprfl"],
                                   ["--model", "cprfl", "--text-features", "W.npy"]])
def test_no_request_where_nothing_is_downloaded(flags, waited, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "get_session", None)
    monkeypatch.chdir(tmp_path)
    np.save("W.npy", 10 * np.eye(2))
    method, settings = read_command_line(["--data", "scenes", *flags])
    build_model(method, settings, ["a", "b"])
    assert not waited


def test_the_variable_for_offline_use_is_named(monkeypatch):
    monkeypatch.setattr(downloads, "get_session", None)
    assert downloads.why_offline() == "HF_HUB_OFFLINE is set"  # by conftest.py


class Hub(BaseHTTPRequestHandler):
    """A hub with one file, model.safetensors, whose first answer comes too late."""
    content = b""
    delays: ClassVar = []  # in seconds, of the next answers

    def do_HEAD(self):
        if self.delays:
            time.sleep(self.delays.pop())
        found = self.path.endswith("/model.safetensors") or self.path == "/"
        self.send_response(200 if found else 404)
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", 40 * "a")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        return found

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.mark.slow
def test_a_slow_hub_is_waited_for_and_the_cache_needs_none(tmp_path):
    trained = timm.create_model("test_resnet", pretrained=False)
    Hub.content = safetensors.torch.save(trained.state_dict())
    Hub.delays = [3, 3]  # the request of why_offline, and the first one for the file
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_ETAG_TIMEOUT": "1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE")

    def run(out):
        return subprocess.run(
            [sys.executable, "train.py", "--data", "scenes", "--limit", "64", "--epochs", "1",
             "--pretrained", "--backbone", "test_resnet.r160_in1k", "--out", str(tmp_path / out)],
            cwd=HERE.parent, env=environment, text=True, capture_output=True, check=False)
    online = run("online")
    assert online.returncode == 0, online.stderr
    assert not Hub.delays
    server.shutdown()
    server.server_close()
    offline = run("offline")  # from the cache
    assert offline.returncode == 0, offline.stderr
    environment["HF_HUB_OFFLINE"] = "1"
    assert run("variable").returncode == 0
    environment["HF_HOME"] = str(tmp_path / "empty")
    missing = run("missing")
    assert missing.returncode == 1 and "(HF_HUB_OFFLINE is set): get " in missing.stderr
