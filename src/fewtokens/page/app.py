"""The routes of the page, and the server."""

from __future__ import annotations

import errno
import secrets
import shutil
import socket
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from fewtokens.page import recipes
from fewtokens.page.clips import Clips, TooLarge
from fewtokens.page.guard import Guard
from fewtokens.page.jobs import Busy, Job, Jobs
from fewtokens.page.pictures import FILES, Pictures
from fewtokens.page.workbench import Request as Comparing
from fewtokens.page.workbench import Workbench
from fewtokens.version import __version__

# The number of comparisons whose pictures stay in memory.
_KEPT = 3
_UPLOADS = "/api/clips"


class Work(BaseModel):
    """The body of a request for a job; with a question the language model is asked, else two methods are compared."""

    clip: str = Field(max_length=1000)
    encoder: str = Field(max_length=1000)
    left: str = Field(max_length=1000)
    right: str = Field(max_length=1000)
    keep: float = Field(gt=0, le=1)
    question: str | None = Field(default=None, max_length=2000)


class Page:
    """What the routes share: clips, the workbench, jobs and the latest comparisons."""

    def __init__(self, bench: Workbench, clips: Clips, scratch: Path) -> None:
        self.bench, self.clips, self.scratch, self.jobs = bench, clips, scratch, Jobs()
        self.pictures: OrderedDict[str, Pictures] = OrderedDict()

    def state(self) -> dict[str, Any]:
        """What the page offers."""
        job = self.jobs.latest
        return {
            "version": __version__,
            "clips": [
                {"id": name, "name": path.name, "upload": name.startswith("upload/")}
                for name, path in self.clips.paths().items()
            ],
            "encoders": self.bench.specs,
            "model": self.bench.model_name,
            "files": FILES,
            "maxBytes": self.clips.max_bytes,
            "maxSeconds": self.clips.max_seconds,
            "job": None if job is None else job.view(),
        }

    def start(self, work: Work) -> Job:
        path = self.clips.path(work.clip)
        request = Comparing(work.encoder, work.left, work.right, work.keep)
        self.bench.check(request)
        if work.question is not None:
            question = work.question.strip()
            if not question:
                raise ValueError("the question is empty")
            return self.jobs.start(lambda job: {"answers": self.bench.ask(job, path, request, question)})
        return self.jobs.start(lambda job: self._compare(job, path, request))

    def _compare(self, job: Job, path: Path, request: Comparing) -> dict[str, Any]:
        comparison = self.bench.compare(job, path, request)
        pictures = Pictures(comparison)
        job.report("drawing", 2, 2)  # the last chance to cancel
        self.pictures[job.id] = pictures
        while len(self.pictures) > _KEPT:
            old, _ = self.pictures.popitem(last=False)
            shutil.rmtree(self.scratch / old, ignore_errors=True)
        folder = self.clips.folder
        return pictures.describe() | {
            "id": job.id,
            "command": recipes.command(comparison, self.bench, folder),
            "python": recipes.python(comparison, self.bench, folder),
        }

    def find(self, name: str) -> Pictures:
        found = self.pictures.get(name)
        if found is None:
            raise ValueError("this comparison is no longer in memory; compare again")
        return found

    def file(self, name: str, file: str) -> Path:
        """Writes a file of a comparison, or finds the one that was written before."""
        pictures = self.find(name)
        if file not in FILES:
            raise ValueError("there is no such file")
        folder = self.scratch / name
        folder.mkdir(exist_ok=True)
        return folder / file if (folder / file).exists() else pictures.write(file, folder)


def create_app(page: Page, token: str | None, host: str = "localhost") -> Guard:
    """Returns the ASGI application.

    Args:
        page: what it serves.
        token: required of every request; None on loopback.
        host: the name at which the page is opened.
    """
    # The pages of documentation that FastAPI adds load scripts from other hosts.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    template = resources("fewtokens.page").joinpath("page.html").read_text(encoding="utf-8")

    @app.exception_handler(ValueError)
    async def wrong(_: Request, error: ValueError) -> JSONResponse:
        status = 413 if isinstance(error, TooLarge) else 409 if isinstance(error, Busy) else 400
        return JSONResponse({"error": " ".join(str(error).split())}, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)

    @app.exception_handler(OSError)
    async def failed(_: Request, error: OSError) -> JSONResponse:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return JSONResponse({"error": f"cannot write: {error.strerror}"}, 507)
        return JSONResponse({"error": " ".join(str(error).split())}, 500)

    @app.get("/")
    def index() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(template.replace("{{nonce}}", nonce), headers={"content-security-policy": policy})

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return page.state()

    @app.put(_UPLOADS)
    async def upload(request: Request, name: str) -> Response:
        length = request.headers.get("content-length")
        try:
            clip = await page.clips.receive(name, request.stream(), int(length) if length else None)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        return JSONResponse({"id": clip})

    @app.post("/api/jobs")
    def start(work: Work) -> dict[str, Any]:
        return page.start(work).view()

    @app.get("/api/jobs/{name}")
    def job(name: str) -> dict[str, Any]:
        found = page.jobs.get(name)
        view = found.view()
        return view | {"result": found.result} if view["state"] == "done" else view

    @app.delete("/api/jobs/{name}")
    def cancel(name: str) -> dict[str, Any]:
        found = page.jobs.get(name)
        found.cancel()
        return found.view()

    @app.get("/api/comparisons/{name}/{side}/{view}/{frame}")
    def picture(name: str, side: str, view: str, frame: int, token: int = 0) -> Response:
        content = page.find(name).picture(side, view, frame, token)
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    @app.get("/api/comparisons/{name}/files/{file}")
    def download(name: str, file: str) -> FileResponse:
        path = page.file(name, file)
        stem = Path(page.find(name).comparison.name).stem
        return FileResponse(path, filename=f"{stem}-{file}", content_disposition_type="attachment")

    return Guard(app, token=token, uploads=_UPLOADS, host=host)


class Server(uvicorn.Server):
    """A server on a socket that is already bound, so that a taken port is an error before anything runs.

    Args:
        app: the ASGI application.
        listener: the bound socket.
    """

    def __init__(self, app: Any, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        self.listener = listener

    def serve_forever(self) -> None:
        """Serves until the process is interrupted."""
        self.run(sockets=[self.listener])

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """Serves while the context is open; returns the address."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        host, port = self.listener.getsockname()[:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            self.should_exit = True
            # The thread is a daemon, so one that waits for a request does not keep the process alive.
            thread.join(timeout=5)
            self.force_exit = True


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        ValueError: the port is taken, or the host is not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host} port {port} ({error.strerror}); give another --port or --host"
        ) from None


@contextmanager
def open_page(bench: Workbench, folder: Path | None, *, max_bytes: int, max_seconds: float) -> Iterator[Page]:
    """Returns what a server serves; uploads and files are removed at the end.

    Args:
        bench: the encoders and methods.
        folder: the clips to list, or None.
        max_bytes, max_seconds: limits of an upload.
    """
    with tempfile.TemporaryDirectory(prefix="fewtokens-page-", ignore_cleanup_errors=True) as text:
        uploads, scratch = Path(text, "uploads"), Path(text, "files")
        uploads.mkdir()
        scratch.mkdir()
        yield Page(bench, Clips(folder, uploads, max_bytes=max_bytes, max_seconds=max_seconds), scratch)
