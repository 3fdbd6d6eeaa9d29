"""What the page draws of a comparison: a picture for each frame and view, numbers, and files to download."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.keys import heading
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import TIME_WEIGHT
from fewtokens.evaluation.summary import NOTES
from fewtokens.page.workbench import SIDES, Comparison
from fewtokens.show import frame_rate, heat, method_color, overlay, write_comparison, write_page
from fewtokens.show.overlay import ERROR_GAIN, error_map, glow
from fewtokens.show.page import jpeg_bytes, plain
from fewtokens.show.side_by_side import Panels

# Which direction of a number is better; times of one run are not ranked.
_BETTER = {"cosine": max, "rare_cosine": max, "psnr_db": max, "relative_error": min}
FILES = ("left.safetensors", "right.safetensors", "comparison.png", "comparison.mp4", "comparison.html")


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a comparison, uint8 [T,3,H,W] for each side and view, and what each shows."""

    comparison: Comparison
    views: tuple[dict[str, Tensor], dict[str, Tensor]] = field(init=False)
    captions: tuple[dict[str, str], dict[str, str]] = field(init=False)

    __repr__ = shape_repr

    def __post_init__(self) -> None:
        errors = [self._cell_error(side) for side in (0, 1)]
        peak = max(float(error.max()) for error in errors)
        sides = [self._draw(side, errors[side], peak) for side in (0, 1)]
        object.__setattr__(self, "views", tuple(views for views, _ in sides))
        object.__setattr__(self, "captions", tuple(captions for _, captions in sides))

    def _draw(self, side: int, error: Tensor, peak: float) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Returns the views of a side, and their captions."""
        result, encoded = self.comparison.results[side], self.comparison.encoded
        frames, tokens = encoded.video.frames, result.tokens
        views = {"tokens": overlay(frames, tokens)}
        captions = {
            "tokens": "the frame with its tokens; a color is one token of several cells in all frames, no tint one "
            "token for one cell, dark is dropped"
        }
        if result.frames is not None:
            views |= {"reconstruction": result.frames, "error": error_map(frames, result.frames)}
            captions["reconstruction"] = "the frame rebuilt from the tokens"
            captions["error"] = f"error of the rebuilt frame, amplified {ERROR_GAIN} times; black is exact"
        else:
            views |= {"reconstruction": overlay(frames, tokens, "mean"), "error": glow(frames, error, peak)}
            captions["reconstruction"] = (
                "each token in the mean color of its pixels over all frames, since this encoder cannot decode "
                "features; dark is dropped"
            )
            captions["error"] = (
                "error of the features rebuilt from the tokens (1 - cosine) in each cell; "
                f"white is {peak:.2f} on both sides"
            )
        attention = encoded.item.cues.get("attention")
        if attention is not None:
            cells = attention[0].float().clamp(min=0)
            kept = torch.where(tokens.assignment[0] >= 0, cells, 0.0)
            views["attention"] = glow(frames, kept.reshape(tokens.grid.shape), float(cells.max()))
            captions["attention"] = (
                "attention that each cell receives in the last block of the encoder; dropped cells are dark, the "
                f"others have {100 * float(kept.sum() / cells.sum().clamp(min=1e-12)):.0f} % of it"
            )
        if tokens.attribution is not None:
            captions["weights"] = "weights of the cells in one token"
        return views, captions

    def _cell_error(self, side: int) -> Tensor:
        """1 - cosine of the features of each cell rebuilt from the tokens, [T,H,W]."""
        rebuilt = self.comparison.results[side].tokens.unmerge(time_weight=TIME_WEIGHT)[0]
        full = self.comparison.encoded.item.full
        return (1 - F.cosine_similarity(rebuilt.float(), full.float(), dim=-1)).clamp(min=0)

    def picture(self, side: str, view: str, frame: int, token: int = 0) -> bytes:
        """Returns a JPEG.

        Args:
            side: "left", "right", or "frame" for the frame itself.
            view: a key of `captions`; any for the frame itself.
            frame: its index.
            token: index of the token whose weights are drawn.

        Raises:
            ValueError: there is no such picture.
        """
        frames = self.comparison.encoded.video.frames
        if side not in (*SIDES, "frame") or not 0 <= frame < len(frames):
            raise ValueError("there is no such picture")
        if side == "frame":
            return jpeg_bytes(frames[frame])
        index = SIDES.index(side)
        if view == "weights":
            return jpeg_bytes(heat(frames, self.comparison.results[index].tokens, token)[frame])
        if view not in self.views[index]:
            raise ValueError("there is no such picture")
        return jpeg_bytes(self.views[index][view][frame])

    def describe(self) -> dict[str, Any]:
        """Returns what the page shows besides pictures, as plain values."""
        clip, request = self.comparison.clip, self.comparison.request
        names = list(dict.fromkeys(name for result in clip.results for name in result.numbers))
        return {
            "clip": clip.name,
            "about": f"{clip.describe()}, encoder {request.encoder}",
            "cells": clip.cells,
            "keep": request.keep,
            "times": [clip.caption(frame) for frame in range(len(clip.frames))],
            "sides": [
                {
                    "spec": result.name,
                    "color": method_color(result.name.rpartition("|")[2].strip()),
                    "tokens": result.numbers["tokens"],
                    "views": captions,
                }
                for result, captions in zip(clip.results, self.captions, strict=True)
            ],
            "numbers": [self._number(name) for name in names],
            "seconds": self.comparison.seconds,
        }

    def _number(self, name: str) -> dict[str, Any]:
        values = [result.numbers.get(name) for result in self.comparison.results]
        best = None
        if name in _BETTER and None not in values and values[0] != values[1]:
            best = values.index(_BETTER[name](values))  # type: ignore[type-var]
        notes = {"retention": "tokens per cell", "method_ms": "time of the method alone, one run, in ms"}
        notes["total_ms"] = "time from frames to tokens, encoder included, one run, in ms"
        shown = ["exact" if value == math.inf else None if value is None else plain(value) for value in values]
        return {"name": heading(name), "key": name, "values": shown, "best": best,
                "note": notes.get(name) or NOTES.get(name, "")}  # fmt: skip

    def write(self, name: str, folder: Path) -> Path:
        """Writes a file of `FILES` into a folder.

        Raises:
            ValueError: an unknown name.
        """
        if name not in FILES:
            raise ValueError(f"there is no file {name!r}")
        path = folder / name
        clip = self.comparison.clip
        if path.suffix == ".safetensors":
            return clip.results[SIDES.index(path.stem)].tokens.save(path)
        if path.suffix == ".mp4":
            from fewtokens.video import write

            return write(path, self._panels(), frame_rate(self.comparison.encoded.video))
        return write_page([clip], path) if path.suffix == ".html" else write_comparison(clip, path)

    def _panels(self) -> Iterator[Tensor]:
        clip = self.comparison.clip
        height, width = clip.frames.shape[2:]
        facts = "; ".join(f"{result.name}: {result.facts(', ')}" for result in clip.results)
        caption = f"{clip.name}, {self.describe()['about']}. {facts}. Tokens: {self.captions[0]['tokens']}."
        panels = Panels(["frame", *(result.name for result in clip.results)], (height, width), caption)
        for index, frame in enumerate(clip.frames):
            images = [frame, *(views["tokens"][index] for views in self.views)]
            yield panels.draw(images, clip.caption(index))[None]
