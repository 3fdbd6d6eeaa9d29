"""Turns an image or a video into very few tokens, and shows what that keeps and what it costs.

    import fewtokens
    video = fewtokens.read("clip.mp4", frames=16, size=224)
    pipeline = fewtokens.Pipeline("tome(keep=0.1)", fewtokens.load_encoder("patches"))
    tokens = pipeline(video.frames, video.times)

Importing this loads torch and nothing heavier; what else is needed comes in on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewtokens.core.tokens import Grid, Plan, Tokens
from fewtokens.version import __version__

if TYPE_CHECKING:
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.core.registry import build
    from fewtokens.encoders import load_encoder
    from fewtokens.video import read, synthetic

__all__ = ["Grid", "Pipeline", "Plan", "Tokens", "__version__", "build", "load_encoder", "read", "synthetic"]

_ON_USE = {
    "Pipeline": "fewtokens.core.pipeline",
    "build": "fewtokens.core.registry",
    "load_encoder": "fewtokens.encoders",
    "read": "fewtokens.video",
    "synthetic": "fewtokens.video",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"module 'fewtokens' has no attribute {name!r}")
    return getattr(import_module(_ON_USE[name]), name)
