"""A video in, its few tokens out, in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from fewtokens.core import registry
from fewtokens.core.encoder import Encoder
from fewtokens.core.inputs import FRAMES, SIZE
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.load import load_encoder
from fewtokens.video import read


def tokenize(
    video: Any,
    methods: str | Sequence[Method] = "tome",
    *,
    encoder: str | Encoder = "patches",
    keep: float | int | str | None = None,
    frames: int = FRAMES,
    size: int = SIZE,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Tokens:
    """The few tokens of a video: `fewtokens.tokenize("clip.mp4", "tome(keep=0.1)", encoder="facebook/dinov2-small")`.

    Args:
        video: whatever `Pipeline` takes; a path may also be a folder of images.
        methods: a spec string, or methods.
        encoder: a name for `load_encoder`, or an encoder.
        keep: budget for the methods of the spec that leave it open: a share (0.1), a count (32) or a count for each
            frame ("8/frame").
        frames, size: of a path: frames, spread evenly, and their short side in pixels.
        device: where encoder and methods run; by default where the encoder is.
        seed: random seed of stochastic methods, and of the parameters of learned ones without a checkpoint.

    Raises:
        ValueError: what is wrong, in one line.
    """
    loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
    if isinstance(methods, str):
        torch.manual_seed(seed)
        budget = {} if keep is None else {"keep": keep}
        methods = registry.build(methods, seed=seed, dim=loaded.dim, **budget) if methods.strip() else ()
    elif keep is not None:
        raise ValueError("keep is for methods given as a spec string")
    pipeline = Pipeline(methods, loaded).eval()
    if device is not None:
        pipeline.to(device)

    def opened(one: Any) -> Any:
        return read(os.fspath(one), frames=frames, size=size) if isinstance(one, str | os.PathLike) else one

    frames_at_hand = [opened(one) for one in video] if isinstance(video, list | tuple) else opened(video)
    with torch.inference_mode():
        return pipeline(frames_at_hand)
