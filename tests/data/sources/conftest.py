"""Readers are tested without a network: a connection to anything but this machine fails the test."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from PIL import Image

from tests.hub_server import HubServer

ROOT = Path(__file__).parents[3]
TOKEN = "hf_test"


class ConnectedError(BaseException):
    """Not an `Exception`: no reader may take it for an error of the network."""


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no Hub, and a cache of its own."""
    connect = socket.socket.connect

    def refuse(self, address):
        if not (isinstance(address, tuple) and address[0] == "127.0.0.1"):
            raise ConnectedError(f"a reader connected to {address}")
        return connect(self, address)

    def look_up(host, *others, **options):
        if host not in ("127.0.0.1", "localhost", None):
            raise ConnectedError(f"a reader looked {host} up")
        return getaddrinfo(host, *others, **options)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "hf"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "datasets" / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", cache / "datasets" / "downloads" / "extracted")


@pytest.fixture
def make_pictures():
    """`make_pictures(folder, names)`: a small picture of its own colour for each name."""

    def make(folder: Path, names) -> Path:
        for index, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (10 * index % 256, 0, 0)).save(path, format="PNG")
        return folder

    return make


class Hub:
    """A test Hub, and processes of their own that use it: the clients read its address when they are imported."""

    def __init__(self, server: HubServer, home: Path):
        self.server, self.home = server, home

    def run(self, code: str, offline: bool = False, home: str = "home", **given) -> dict:
        """What the code leaves in `results`; `given` are its variables."""
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.server.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(self.home / home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "1" if offline else "0",
        }
        program = f"import json\nglobals().update(json.loads({json.dumps(given)!r}))\nresults = {{}}\n{code}\n"
        program += "print(json.dumps(results))\n"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer({TOKEN: "tester", "hf_huggan": "huggan"}) as server:
        yield Hub(server, tmp_path_factory.mktemp("hub"))
