"""Turns an image or a video into very few tokens, and measures what they preserve and cost.

    import fewtokens
    video = fewtokens.read("clip.mp4", frames=16, size=224)
    pipeline = fewtokens.Pipeline("tome(keep=0.1)", fewtokens.load_encoder("patches"))
    tokens = pipeline(video.frames, video.times)

Importing the package is fast: each public name and each subpackage (`fewtokens.llm`, `fewtokens.show`), and torch with
them, is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewtokens.version import __version__

if TYPE_CHECKING:
    from fewtokens import core as core
    from fewtokens import data as data
    from fewtokens import encoders as encoders
    from fewtokens import evaluation as evaluation
    from fewtokens import jobs as jobs
    from fewtokens import llm as llm
    from fewtokens import methods as methods
    from fewtokens import networks as networks
    from fewtokens import page as page
    from fewtokens import profiling as profiling
    from fewtokens import selection as selection
    from fewtokens import serve as serve
    from fewtokens import show as show
    from fewtokens import tokenizers as tokenizers
    from fewtokens import train as train
    from fewtokens import video as video
    from fewtokens.core.budget import Budget as Budget
    from fewtokens.core.method import Method as Method
    from fewtokens.core.method import Reducer as Reducer
    from fewtokens.core.method import Resampler as Resampler
    from fewtokens.core.pipeline import Pipeline as Pipeline
    from fewtokens.core.registry import build as build
    from fewtokens.core.registry import create_method as create_method
    from fewtokens.core.registry import list_methods as list_methods
    from fewtokens.core.streaming import Streaming as Streaming
    from fewtokens.core.tokenize import tokenize as tokenize
    from fewtokens.core.tokens import Grid as Grid
    from fewtokens.core.tokens import Plan as Plan
    from fewtokens.core.tokens import Tokens as Tokens
    from fewtokens.encoders import Encoder as Encoder
    from fewtokens.encoders import load_encoder as load_encoder
    from fewtokens.llm import Session as Session
    from fewtokens.llm import VideoLLM as VideoLLM
    from fewtokens.llm.attach import attach as attach
    from fewtokens.llm.compress import compress as compress
    from fewtokens.selection import read as read
    from fewtokens.video import Video as Video
    from fewtokens.video import stream as stream
    from fewtokens.video import synthetic as synthetic

# Module of each public name. Type checkers read the imports above; a test checks that the two agree.
_MODULES = {
    "Budget": "fewtokens.core.budget",
    "Encoder": "fewtokens.encoders",
    "Grid": "fewtokens.core.tokens",
    "Method": "fewtokens.core.method",
    "Pipeline": "fewtokens.core.pipeline",
    "Plan": "fewtokens.core.tokens",
    "Reducer": "fewtokens.core.method",
    "Resampler": "fewtokens.core.method",
    "Session": "fewtokens.llm",
    "Streaming": "fewtokens.core.streaming",
    "Tokens": "fewtokens.core.tokens",
    "Video": "fewtokens.video",
    "VideoLLM": "fewtokens.llm",
    "attach": "fewtokens.llm.attach",
    "build": "fewtokens.core.registry",
    "compress": "fewtokens.llm.compress",
    "create_method": "fewtokens.core.registry",
    "list_methods": "fewtokens.core.registry",
    "load_encoder": "fewtokens.encoders",
    "read": "fewtokens.selection",
    "stream": "fewtokens.video",
    "synthetic": "fewtokens.video",
    "tokenize": "fewtokens.core.tokenize",
}

# Imported on first use as attributes, as in `fewtokens.llm.load`.
_SUBPACKAGES = (
    "core", "data", "encoders", "evaluation", "jobs", "llm", "methods", "networks", "page", "profiling", "selection",
    "serve",
    "show", "tokenizers", "train", "video",
)  # fmt: skip

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"fewtokens.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'fewtokens' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])
