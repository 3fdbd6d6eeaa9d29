"""Draws what a method does to a clip: frames, the regions of its tokens, and the frames rebuilt from them."""

from __future__ import annotations

import inspect
import math
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from fewtokens.core import registry
from fewtokens.core.tokens import TIME_WEIGHT, Tokens
from fewtokens.encoders import Patches, ViT, VitEncoder
from fewtokens.encoders.config import ViTConfig
from fewtokens.evaluation.fidelity import psnr
from fewtokens.show import overlay
from fewtokens.video import Video, synthetic

KEEP = 0.1
CLIP, FRAMES, SIDE, PATCH = "static", 16, 256, 16
_COLUMNS, _WIDTH, _GAP = 4, 168, 4


class Strip(NamedTuple):
    """An image and its caption, or None and the reason why there is none."""

    image: Image.Image | None
    text: str


@cache
def _clip() -> Video:
    return synthetic(CLIP, frames=FRAMES, size=(SIDE, SIDE))


@cache
def _vit() -> VitEncoder:
    """An untrained ViT: its keys are a random projection of the patches, so similar patches have similar keys."""
    torch.manual_seed(0)
    config = ViTConfig(dim=96, depth=12, num_heads=3, patch_size=PATCH, image_size=(SIDE, SIDE))
    return VitEncoder(ViT(config).eval())


def _why_not(kind: type[Any], needs: tuple[str, ...]) -> str | None:
    if kind.stage == "llm":
        return "No image: it acts inside the layers of a language model, on the model's own attention."
    if kind.stage == "frames":
        return "No image: it selects frames before any is decoded in full."
    if getattr(kind, "learned", False):
        return "No image: it has trained parameters, and untrained ones would show nothing of it."
    if missing := set(needs) - {"pixels", "keys"}:
        cues = " and ".join(f"`{cue}`" for cue in sorted(missing))
        return f"No image: it depends on {cues} of a trained encoder, and the pages are built without weights."
    return None


def _method(name: str, stage: str) -> Any:
    """The method at the budget of all strips, or with its defaults if it cannot go so low."""
    kind = registry.get(name)
    grid = Patches(PATCH).grid(FRAMES, SIDE, SIDE)
    if "keep" in inspect.signature(kind).parameters:
        method = registry.create_method(name, keep=KEEP)
        count = method.planned_count(grid)
        if stage == "encoder" or count is None or count <= KEEP * grid.cells + 1:
            return method
    return registry.create_method(name)


@torch.inference_mode()
def strip(name: str) -> Strip:
    """The strip of one method."""
    kind = registry.get(name)
    needs = tuple(getattr(kind(), "needs", ()))
    if reason := _why_not(kind, needs):
        return Strip(None, reason)
    method, clip, patches = _method(name, kind.stage), _clip(), Patches(PATCH)
    budget = f"keep={KEEP}" if method.spec != registry.create_method(name).spec else ""
    full, cues = patches(clip.frames[None], clip.times, needs=("pixels",))
    encoder, start = "", time.process_time()
    if "keys" in needs:
        encoder = " on the keys of an untrained ViT"
        if kind.stage == "encoder":
            tokens, _ = _vit()(clip.frames[None], clip.times, block_methods=[method])
        else:
            own, cues = _vit()(clip.frames[None], clip.times, needs=needs)
            start = time.process_time()
            tokens = method(own, **{cue: cues[cue] for cue in needs})
        tokens = tokens.replace(features=tokens.pool(full.features), prefix=None)
    else:
        tokens = method(full, **{cue: cues[cue] for cue in needs})
    seconds = time.process_time() - start
    rebuilt = patches.decode(tokens.unmerge(time_weight=TIME_WEIGHT)).clamp(0, 1)
    back = (rebuilt[0] * 255).round().byte()
    count, cells = int(tokens.count[0]), int(full.count[0])
    timed = " with the encoder" if kind.stage == "encoder" else ""
    quality = psnr(rebuilt, patches.decode(full.features.unflatten(1, full.grid.shape)))
    text = (
        f"`{name}({budget})`{encoder}: {count:,} tokens of {cells:,} patches ({100 * count / cells:.1f} %), "
        f"{'rebuilt exactly' if math.isinf(quality) else f'PSNR {quality:.1f} dB'}, "
        f"{1e3 * seconds:,.0f} ms of CPU time{timed} when this page was built, "
        f"`synthetic({CLIP!r})`, {FRAMES} frames of {SIDE} x {SIDE} pixels. "
        "Top: frames. Middle: regions of the tokens (a color is one token of several patches; dark is dropped). "
        "Bottom: the frames rebuilt from the tokens."
    )
    return Strip(_draw(clip, tokens, back), text)


def _draw(clip: Video, tokens: Tokens, back: torch.Tensor) -> Image.Image:
    shown = torch.linspace(0, len(clip.frames) - 1, _COLUMNS).round().long().tolist()
    step = _WIDTH + _GAP
    image = Image.new("RGB", (_COLUMNS * step - _GAP, 3 * step - _GAP), (255, 255, 255))
    for row, frames in enumerate((clip.frames, overlay(clip.frames, tokens), back)):
        for column, frame in enumerate(shown):
            cell = Image.fromarray(frames[frame].permute(1, 2, 0).contiguous().numpy())
            image.paste(cell.resize((_WIDTH, _WIDTH), Image.Resampling.LANCZOS), (column * step, row * step))
    return image


def save(image: Image.Image, path: Path) -> None:
    """Writes an image as WebP, about 30 KB."""
    image.save(path, format="WEBP", quality=82, method=4)
