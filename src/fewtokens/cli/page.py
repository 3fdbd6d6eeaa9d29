"""`fewtokens page`: compares methods on clips in a browser."""

from __future__ import annotations

import secrets
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import log, note, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import (
    ENCODER,
    INPUT,
    METHOD,
    MODEL,
    RUN,
    Check,
    MethodOptions,
    RunOptions,
    SizeOption,
    check_model,
    check_specs,
    find_model,
)
from fewtokens.cli.pipelines import make_methods


def _check_models(names: list[str]) -> None:
    for name in names:
        check_model(name)


def _find_models(names: list[str]) -> None:
    for name in names:
        find_model(name)


@verb(
    "fewtokens page videos/",
    'fewtokens page videos/ --encoder patches --encoder facebook/dinov2-small --with "rlt | tome"',
    "fewtokens page --model models/smolvlm2 --port 9000",
)
def page(
    run: RunOptions,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Folder of videos and images to list. Default: only uploaded ones."),
    ] = None,
    encoders: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder", help="Encoder to offer, see fewtokens tokenize; can be repeated. Default: patches.",
            rich_help_panel=ENCODER,
        ),
        Check(_check_models, _find_models),
    ] = None,
    specs: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="SPEC", help="Spec to offer in addition to all methods without trained parameters; can "
            "be repeated. The first is chosen at the start.",
            rich_help_panel=METHOD,
        ),
        Check(check_specs),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="M", help="Video language model to ask: hub id, or folder (also one written by train "
            "video-llm).",
            rich_help_panel=MODEL,
        ),
        Check(check_model, find_model),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=1, max=128, help="Frames of a clip, spread evenly.", rich_help_panel=INPUT)
    ] = 16,
    size: SizeOption = 224,
    max_upload: Annotated[
        float, typer.Option("--max-upload", min=0, help="Largest upload, in MB.", rich_help_panel=INPUT)
    ] = 500,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0, help="Longest uploaded video, in seconds.", rich_help_panel=INPUT)
    ] = 600,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. If it is not loopback, the page requires a token.",
                          rich_help_panel=RUN)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any.", rich_help_panel=RUN)] = 7788,
) -> None:  # fmt: skip
    """Compare two methods on a clip in a browser: tokens, reconstruction, error, attention and numbers side by side.

    The page runs on this machine and loads nothing from others. Clips are those of FOLDER and those dropped onto the
    page, which are removed when the command ends. With --model, questions about a clip are answered with the tokens of
    both methods. Stop it with Ctrl-C.
    """
    check_exists(folder)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder that contains it")
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ValueError("fewtokens page requires FastAPI and uvicorn: pip install 'fewtokens[page]'")
    from fewtokens.page.app import Server, bind, create_app, open_page
    from fewtokens.page.guard import is_loopback

    listener = bind(host, port)
    with listener:
        bench = _workbench(encoders or ["patches"], specs or [], model, frames, size, run)
        token = None if is_loopback(listener.getsockname()[0]) else secrets.token_urlsafe(24)
        limits: dict[str, Any] = {"max_bytes": round(1e6 * max_upload), "max_seconds": max_seconds}
        with open_page(bench, folder, **limits) as content:
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{listener.getsockname()[1]}/" + ("" if token is None else f"?token={token}")
            out.print(f"[bold]Page[/bold]   {escape(address)}   (stop with Ctrl-C)", highlight=False, soft_wrap=True)
            if token is not None:
                note("note:", "anyone with this address can use the page; the connection is not encrypted")
            # Otherwise it would end the process before uploads are removed.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                Server(create_app(content, token, host), listener).serve_forever()
            except KeyboardInterrupt:
                log.print("stopped; uploaded clips are removed")


def _workbench(
    encoders: list[str], specs: list[str], model: str | None, frames: int, size: int, run: RunOptions
) -> Any:
    """Loads everything that the page offers, so that a wrong name is an error before it starts."""
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.encoders import load_encoder
    from fewtokens.page.workbench import Workbench

    loaded = {}
    for name in dict.fromkeys(encoders):
        # A small batch, so that progress is shown and a job can be canceled.
        options: dict[str, Any] = {} if name == "patches" else {"batch": 4}
        encoder = loaded[name] = load_encoder(name, device=run.device, **options)
        for spec in specs:
            Pipeline(make_methods(MethodOptions(spec), run.seed, encoder.dim), encoder)
    language: dict[str, Any] = {}
    if model is not None:
        from fewtokens.llm import load

        log.print(f"loading {escape(model)}", highlight=False)
        network, processor = load(model, run.device)
        language = {"model": network, "processor": processor, "model_name": model}
    return Workbench(loaded, specs, frames=frames, size=size, seed=run.seed, **language)
