"""The same answers by hand, with transformers: the rows of stock, their means by a method's assignment, own positions.

    python -m tests.serve.engine.reference '{"family": "qwen2_5_vl", "model": "FOLDER", "spec": "kmeans(keep=0.4)", ...}'

Of fewtokens only the method itself is used, which has tests of its own; nothing of `fewtokens.serve`.
"""

from __future__ import annotations

import json
import os
import sys
from fractions import Fraction
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from tests.serve.engine.requests import REQUESTS, frames, image, metadata
from tests.serve.engine.run import TOKENS


def shorten(spec: str, rows: Tensor, grid: tuple[int, int, int], width: int | None = None) -> tuple[Tensor, list[int]]:
    """The rows [K,D] of a video and the cell of each, one at a time and in exact arithmetic."""
    tokens = Tokens.from_cells(rows[None, :, : width or rows.shape[1]], Grid(*grid))
    for method in registry.build(spec):
        tokens = method(tokens)
    assignment, (_, H, W) = tokens.assignment[0].tolist(), grid
    result = []
    for token in range(tokens.N):
        members = [cell for cell, to in enumerate(assignment) if to == token]
        place = {c: (c // (H * W), c // W % H, c % W) for c in members}
        center = [Fraction(sum(p[axis] for p in place.values()), len(members)) for axis in range(3)]
        distance = {c: sum((x - m) ** 2 for x, m in zip(p, center, strict=True)) for c, p in place.items()}
        cell = min(members, key=lambda c: (distance[c], c))
        result.append((cell, rows[members].double().mean(0).float()))
    result.sort(key=lambda pair: pair[0])
    return torch.stack([row for _, row in result]), [cell for cell, _ in result]


def media(request: dict[str, Any]) -> dict[str, Any]:
    videos = [frames(*video) for video in request["videos"]]
    images = [image(*shape) for shape in request.get("images", [])]
    return {"videos": videos, "images": images}


class Qwen25VL:
    """One run of placeholders per video; positions from `get_rope_index` of the full prompt."""

    texts = {
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
    }

    def __init__(self, folder: str) -> None:
        import transformers as hf

        self.model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = hf.AutoProcessor.from_pretrained(folder)
        self.inner = self.model.model

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        text, given = request["text"], media(request)
        for name, placeholder in self.texts.items():
            text = text.replace(f"<{name}>", placeholder)
        options: dict[str, Any] = {}
        if given["videos"]:
            options["videos"] = [torch.from_numpy(video).permute(0, 3, 1, 2) for video in given["videos"]]
            options["video_metadata"] = [
                {key: value for key, value in metadata(len(video)).items() if key != "do_sample_frames"}
                for video in given["videos"]
            ]
            options["do_sample_frames"] = False
        if given["images"]:
            options["images"] = [torch.from_numpy(picture).permute(2, 0, 1) for picture in given["images"]]
        return dict(self.processor(text=[text], return_tensors="pt", **options))

    def rows(self, inputs: dict[str, Any], modality: str) -> list[Tensor]:
        pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[modality]
        if pixels not in inputs:
            return []
        encode = getattr(self.inner, f"get_{modality}_features")
        return list(encode(inputs[pixels], inputs[f"{modality}_grid_thw"], return_dict=True).pooler_output)

    def prompt(self, request: dict[str, Any], spec: str) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [L], embeddings [L,D] and positions [3,L] of the short prompt."""
        inputs, config = self.inputs(request), self.model.config
        ids = inputs["input_ids"]
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
        given = {name: torch.as_tensor(inputs[name]) for name in names if name in inputs}
        positions = self.inner.get_rope_index(ids, attention_mask=torch.ones_like(ids), **given)[0][:, 0]
        ids, embeds = ids[0], self.inner.get_input_embeddings()(ids)[0]
        keep = torch.ones_like(ids, dtype=torch.bool)
        columns = (ids == config.image_token_id).nonzero().flatten()
        if images := self.rows(inputs, "image"):
            embeds[columns] = torch.cat(images)
        start = 0
        columns = (ids == config.video_token_id).nonzero().flatten()
        for index, rows in enumerate(self.rows(inputs, "video")):
            own = columns[start : start + len(rows)]
            start += len(rows)
            t, h, w = (inputs["video_grid_thw"][index] // torch.tensor([1, 2, 2])).tolist()
            short, cells = shorten(spec, rows, (t, h, w))
            keep[own] = False
            keep[own[: len(short)]] = True
            embeds[own[: len(short)]] = short
            positions[:, own[: len(short)]] = positions[:, own[cells]]
        return ids[keep], embeds[keep], positions[:, keep]

    def logits(self, embeds: Tensor, positions: Tensor) -> Tensor:
        hidden = self.inner.language_model(inputs_embeds=embeds[None], position_ids=positions[:, None])[0]
        return self.model.lm_head(hidden[0, -1])

    def after(self, positions: Tensor) -> Tensor:
        """The positions of the next token, which continue from the text at the end."""
        return positions[:, -1:] + 1


FAMILIES = {"qwen2_5_vl": Qwen25VL}


@torch.no_grad()
def answer(family: Any, request: dict[str, Any], spec: str) -> dict[str, Any]:
    """Greedy, without a cache."""
    ids, embeds, positions = family.prompt(request, spec)
    tokens: list[int] = []
    logprobs = []
    for _ in range(TOKENS):
        scores = family.logits(embeds, positions).log_softmax(0)
        tokens.append(int(scores.argmax()))
        logprobs.append(scores.tolist())
        embeds = torch.cat([embeds, family.inner.get_input_embeddings()(torch.tensor(tokens[-1:]))])
        positions = torch.cat([positions, family.after(positions)], 1)
    return {"prompt": ids.tolist(), "tokens": tokens, "logprobs": logprobs}


def main(job: dict[str, Any]) -> dict[str, Any]:
    family = FAMILIES[job["family"]](job["model"])
    return {"answers": [answer(family, REQUESTS[index], job["spec"]) for index in job["requests"]]}


if __name__ == "__main__":
    np.random.seed(0)
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
