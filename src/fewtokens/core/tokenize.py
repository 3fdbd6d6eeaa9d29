"""`tokenize`: reads, encodes and reduces a video in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from fewtokens.core import registry
from fewtokens.core.ahead import Check, map_ahead, reading_threads
from fewtokens.core.batch import collate
from fewtokens.core.encoder import Encoder
from fewtokens.core.inputs import DEFAULT_FRAMES, DEFAULT_SIZE, is_list_of_videos
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.load import load_encoder
from fewtokens.selection import Scorer, read


def tokenize(
    video: Any,
    methods: str | Method | Sequence[Method] = "tome",
    *,
    encoder: str | Encoder = "patches",
    keep: float | int | str | None = None,
    frames: int = DEFAULT_FRAMES,
    size: int = DEFAULT_SIZE,
    question: str | None = None,
    scorer: str | Scorer | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Tokens:
    """Reads, encodes and reduces a video, without gradients.

        tokens = fewtokens.tokenize("clip.mp4", "tome(keep=0.1)", encoder="facebook/dinov2-small")

    Args:
        video: any input of `Pipeline.forward`: a path (a video, an image or a folder of images), a `Video`, frames, or
            a list of these.
        methods: a spec string, a method, or a sequence of methods. Default: "tome".
        encoder: an encoder, or a name for `load_encoder`. Default: "patches", which needs no weights.
        keep: budget of the methods in the spec that do not set one: a fraction of the cells (0.1), a count (32) or a
            count per frame ("8/frame"). None for the default of each method.
        frames: number of evenly spaced frames to read from a path, unless the first method selects them. Default: 16.
        size: short side of the frames read from a path, in pixels. Default: 224.
        question, scorer: for a method of the stage "frames", see `fewtokens.read`.
        device: device of the encoder and the methods. Default: that of the encoder.
        seed: random seed of stochastic methods, and of the initial parameters of learned methods without a checkpoint.

    Returns:
        Tokens of all videos in one batch.

    Raises:
        ValueError: a video, the spec or the encoder is invalid, or `keep` is given with methods that are not a spec.
    """
    loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
    if isinstance(methods, str):
        torch.manual_seed(seed)
        budget = {} if keep is None else {"keep": keep}
        methods = registry.build(methods, seed=seed, dim=loaded.dim, **budget) if methods.strip() else ()
    elif keep is not None:
        raise ValueError("keep requires a spec string; set the budget of the methods themselves")
    pipeline = Pipeline(methods, loaded).eval()
    if device is not None:
        pipeline.to(device)

    def prepare(item: Any, check: Check | None = None) -> Any:
        is_path = isinstance(item, str | os.PathLike)
        if is_path and pipeline.selector is not None:
            select = pipeline.selector
            return read(os.fspath(item), select=select, question=question, scorer=scorer, size=size, progress=check)
        return read(os.fspath(item), frames=frames, size=size, progress=check) if is_path else item

    cues = {} if pipeline.selector is None else {"question": question, "scorer": scorer}

    with torch.inference_mode():
        if is_list_of_videos(video) and video:
            with map_ahead(prepare, video, reading_threads()) as ahead:
                tokens = collate([pipeline(item, **cues) for item in ahead])
        else:
            tokens = pipeline(prepare(video), **cues)
    return tokens.replace(meta={**tokens.meta, "seed": seed}) if "source" in tokens.meta else tokens
