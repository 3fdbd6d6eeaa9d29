"""A page with small clips, two encoders and a tiny language model, served on a free port of loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from fewtokens.video import synthetic, write

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

FRAMES, SIZE = 4, 48
MAX_BYTES, MAX_SECONDS = 300_000, 20.0
HTML = "<img src=x onerror=alert(1)>.mp4"  # shown as text, never as a tag


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def value(self) -> Any:
        return json.loads(self.body)


class Client:
    """Requests to a page; a new connection for each."""

    def __init__(self, address: str) -> None:
        self.address, self.host = address, address.removeprefix("http://")

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = HTTPConnection(self.host)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if content is None or isinstance(body, bytes) else {"content-type": "application/json"}
        connection.request(method, path, content, {**kind, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        reply = Reply(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
        connection.close()
        return reply

    def upload(self, name: str, content: bytes) -> Reply:
        return self("PUT", f"/api/clips?name={quote(name, safe='')}", content)

    def run(self, **body: Any) -> dict[str, Any]:
        """Starts a job and waits for its end."""
        reply = self("POST", "/api/jobs", WORK | body)
        assert reply.status == 200, reply
        job = reply.value
        while job["state"] == "working":
            job = self("GET", f"/api/jobs/{job['id']}").value
        return job


WORK = {"clip": "folder/pan.mp4", "encoder": "patches", "left": "tome", "right": "uniform", "keep": 0.25}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for kind in ("pan", "static"):
        write(root / f"{kind}.mp4", synthetic(kind, frames=8, size=(48, 64)).frames, 8)
    (root / HTML).write_bytes((root / "pan.mp4").read_bytes())
    (root / "notes.txt").write_text("not a clip", encoding="utf-8")
    (root / "inside").mkdir()
    return root


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Any:
    """The pixel encoder, a tiny ViT, which has attention, and a tiny video language model."""
    from fewtokens.encoders import Patches
    from fewtokens.encoders.vit import ViT, ViTConfig
    from fewtokens.encoders.vit_encoder import VitEncoder
    from fewtokens.llm import load
    from fewtokens.page.workbench import Workbench
    from tests.llm.saved import save

    vit = VitEncoder(ViT(ViTConfig(dim=16, depth=2, num_heads=2, patch_size=8, image_size=(48, 64))).eval(), batch=2)
    vit.id = "tiny"
    model, processor = load(save("llava_onevision", tmp_path_factory.mktemp("models") / "tiny"), "cpu")
    return Workbench(
        {"patches": Patches(8), "tiny": vit}, ["perceiver(keep=4)"], frames=FRAMES, size=SIZE,
        model=model, processor=processor, model_name="a tiny model",
    )  # fmt: skip


@pytest.fixture(scope="session")
def content(bench, folder) -> Iterator[Any]:
    from fewtokens.page.app import open_page

    with open_page(bench, folder, max_bytes=MAX_BYTES, max_seconds=MAX_SECONDS) as page:
        yield page


@pytest.fixture(scope="session")
def client(content) -> Iterator[Client]:
    from fewtokens.page.app import Server, bind, create_app

    with bind("127.0.0.1", 0) as listener, Server(create_app(content, None), listener).in_thread() as address:
        yield Client(address)
