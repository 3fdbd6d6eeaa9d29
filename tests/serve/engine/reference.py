"""The same answers by hand, with transformers: the rows of stock, their means by a method's assignment, own positions.

    python -m tests.serve.engine.reference '{"family": "qwen2_5_vl", "model": "FOLDER", "spec": "kmeans(keep=0.4)",
        "requests": [0, 1]}'

Of fewtokens only the method itself is used, which has tests of its own; nothing of `fewtokens.serve`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, ClassVar

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor

from tests.serve.by_hand import shorten
from tests.serve.engine.requests import REQUESTS, frames, image, metadata
from tests.serve.engine.run import TOKENS

QWEN = {
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
}


class Family:
    """A model of transformers, its processor, and how a short prompt is made from the full one."""

    texts: ClassVar[dict[str, str]] = {}
    tail = 0

    def __init__(self, folder: str) -> None:
        import transformers as hf

        self.model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = hf.AutoProcessor.from_pretrained(folder)
        self.inner = self.model.model

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        """The output of the processor for the full prompt."""
        text = request["text"]
        for name, placeholder in self.texts.items():
            text = text.replace(f"<{name}>", placeholder)
        options: dict[str, Any] = {}
        if request["videos"]:
            videos = [frames(*video) for video in request["videos"]]
            options["videos"] = [torch.from_numpy(video).permute(0, 3, 1, 2) for video in videos]
            options["video_metadata"] = [
                {key: value for key, value in metadata(len(video)).items() if key != "do_sample_frames"}
                for video in videos
            ]
            options["do_sample_frames"] = False
        if request.get("images"):
            options["images"] = [torch.from_numpy(image(*shape)).permute(2, 0, 1) for shape in request["images"]]
        return dict(self.processor(text=[text], return_tensors="pt", **options))

    def placeholders(self, ids: Tensor, modality: str) -> Tensor:
        """The columns of the rows of all images or videos."""
        config = self.model.config
        token = getattr(config, f"{modality}_token_id", None) or getattr(config, f"{modality}_token_index")
        return (ids == token).nonzero().flatten()

    def images(self, inputs: dict[str, Any]) -> list[Tensor]:
        """The rows of each image."""
        raise NotImplementedError

    def videos(self, inputs: dict[str, Any]) -> list[tuple[Tensor, tuple[int, int, int]]]:
        """The rows of each video, and its grid."""
        raise NotImplementedError

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        """The positions of the full prompt, int64 [A,L]."""
        raise NotImplementedError

    def prompt(self, request: dict[str, Any], spec: str) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [L], embeddings [L,D] and positions [A,L] of the short prompt."""
        inputs = self.inputs(request)
        ids, positions = inputs["input_ids"][0], self.positions(inputs)
        embeds = self.inner.get_input_embeddings()(ids)
        kept: dict[int, tuple[Tensor, Tensor]] = {}  # of the column of a placeholder
        if images := self.images(inputs):
            embeds[self.placeholders(ids, "image")] = torch.cat(images)
        columns, start = self.placeholders(ids, "video"), 0
        own_columns: set[int] = set()
        for rows, grid in self.videos(inputs):
            cells = len(rows) - self.tail
            own = columns[start : start + len(rows)].tolist()
            start += len(rows)
            own_columns |= set(own)
            short, cell = shorten(spec, rows[:cells], grid, embeds.shape[1])
            for row, at in zip([*short, *rows[cells:]], [*cell, *range(cells, len(rows))], strict=True):
                kept[own[at]] = row, positions[:, own[at]]
        order = [column for column in range(len(ids)) if column in kept or column not in own_columns]
        self.deepstack = torch.stack(
            [kept[c][0][embeds.shape[1] :] if c in kept else self.image_deepstack(inputs, ids, c) for c in order]
        )
        embeds = torch.stack([kept[c][0][: embeds.shape[1]] if c in kept else embeds[c] for c in order])
        return ids[order], embeds, positions[:, order]

    def image_deepstack(self, inputs: dict[str, Any], ids: Tensor, column: int) -> Tensor:
        """The DeepStack columns of a column of text or of an image; none."""
        return torch.zeros(0)

    def logits(self, embeds: Tensor, positions: Tensor) -> Tensor:
        """Scores of the next token."""
        hidden = self.inner.language_model(inputs_embeds=embeds[None], position_ids=positions[:, None])[0]
        return self.model.lm_head(hidden[0, -1])


class Qwen25VL(Family):
    """One run of placeholders per video; positions from `get_rope_index` of the full prompt."""

    texts = QWEN

    def images(self, inputs: dict[str, Any]) -> list[Tensor]:
        if "pixel_values" not in inputs:
            return []
        outputs = self.inner.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        return list(outputs.pooler_output)

    def videos(self, inputs: dict[str, Any]) -> list[tuple[Tensor, tuple[int, int, int]]]:
        if "pixel_values_videos" not in inputs:
            return []
        outputs = self.inner.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
        )
        rows = list(outputs.pooler_output)
        if more := getattr(outputs, "deepstack_features", None):
            counts = [len(own) for own in rows]
            layers = [torch.cat(list(layer)).split(counts) for layer in more]
            rows = [torch.cat([own, *(layer[index] for layer in layers)], 1) for index, own in enumerate(rows)]
        return [
            (own, (t, h // 2, w // 2)) for own, (t, h, w) in zip(rows, inputs["video_grid_thw"].tolist(), strict=True)
        ]

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        ids = inputs["input_ids"]
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
        given = {name: torch.as_tensor(inputs[name]) for name in names if name in inputs}
        return self.inner.get_rope_index(ids, attention_mask=torch.ones_like(ids), **given)[0][:, 0]


class Qwen3VL(Qwen25VL):
    """Timestamps between the frames, and DeepStack features."""

    def image_deepstack(self, inputs: dict[str, Any], ids: Tensor, column: int) -> Tensor:
        width = len(self.model.config.vision_config.deepstack_visual_indexes) * self.model.lm_head.in_features
        columns = self.placeholders(ids, "image").tolist()
        if column not in columns:
            return torch.zeros(width)
        outputs = self.inner.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        return torch.cat([torch.cat(list(layer))[columns.index(column)] for layer in outputs.deepstack_features])

    def logits(self, embeds: Tensor, positions: Tensor) -> Tensor:
        D = embeds.shape[1]
        more = torch.cat(
            [self.deepstack, self.deepstack.new_zeros(len(embeds) - len(self.deepstack), self.deepstack.shape[1])]
        )
        hidden = self.inner.language_model(
            inputs_embeds=embeds[None],
            position_ids=positions[:, None],
            visual_pos_masks=torch.ones(1, len(embeds), dtype=torch.bool),
            deepstack_visual_embeds=list(more.split(D, 1)),
        )[0]
        return self.model.lm_head(hidden[0, -1])


class LlavaOnevision(Family):
    """Positions are a count; the newline after a video stays."""

    tail = 1

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        """Each image and video alone, since the processor stacks only videos of one length."""
        videos, images = iter(request["videos"]), iter(request.get("images", []))
        ids: list[Tensor] = []
        pixels: dict[str, list[Tensor]] = {"pixel_values": [], "image_sizes": [], "pixel_values_videos": []}
        for part in re.split("(<video>|<image>)", request["text"]):
            single = {"text": part, "videos": [], "images": []}
            if part in ("<video>", "<image>"):
                single[f"{part[1:-1]}s"] = [next(videos if part == "<video>" else images)]
            inputs = super().inputs(single) if part else {"input_ids": torch.zeros(1, 0, dtype=torch.int64)}
            ids.append(inputs["input_ids"])
            for name in pixels:
                pixels[name] += list(inputs.get(name, []))
        given = {
            name: torch.stack(values) for name, values in pixels.items() if values and name != "pixel_values_videos"
        }
        return {"input_ids": torch.cat(ids, 1), "pixel_values_videos": pixels["pixel_values_videos"], **given}

    def images(self, inputs: dict[str, Any]) -> list[Tensor]:
        if "pixel_values" not in inputs:
            return []
        return list(
            self.inner.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True).pooler_output
        )

    def videos(self, inputs: dict[str, Any]) -> list[tuple[Tensor, tuple[int, int, int]]]:
        result = []
        for video in inputs["pixel_values_videos"]:
            rows = self.inner.get_video_features(video[None], return_dict=True).pooler_output.reshape(
                -1, self.model.lm_head.in_features
            )
            assert len(rows) in (9 * len(video), 9 * len(video) + 1)
            if len(rows) == 9 * len(video):
                rows = torch.cat([rows, self.inner.image_newline[None]])
            result.append((rows, (len(video), 3, 3)))
        return result

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        return torch.arange(inputs["input_ids"].shape[1])[None]

    def logits(self, embeds: Tensor, positions: Tensor) -> Tensor:
        hidden = self.inner.language_model(inputs_embeds=embeds[None])[0]
        return self.model.lm_head(hidden[0, -1])


FAMILIES = {"llava_onevision": LlavaOnevision, "qwen2_5_vl": Qwen25VL, "qwen3_vl": Qwen3VL}


@torch.no_grad()
def answer(family: Any, request: dict[str, Any], spec: str, *, renumber: bool = False) -> dict[str, Any]:
    """Greedy, without a cache; with the positions of the full prompt, or a count of the columns."""
    ids, embeds, positions = family.prompt(request, spec)
    if renumber:
        positions = torch.arange(len(ids)).expand_as(positions)
    tokens: list[int] = []
    logprobs = []
    for _ in range(TOKENS):
        scores = family.logits(embeds, positions).log_softmax(0)
        tokens.append(int(scores.argmax()))
        logprobs.append(scores.tolist())
        embeds = torch.cat([embeds, family.inner.get_input_embeddings()(torch.tensor(tokens[-1:]))])
        # They continue from the text at the end.
        positions = torch.cat([positions, positions[:, -1:] + 1], 1)
    return {"prompt": ids.tolist(), "tokens": tokens, "logprobs": logprobs}


def main(job: dict[str, Any]) -> dict[str, Any]:
    family = FAMILIES[job["family"]](job["model"])
    requests, renumber = [REQUESTS[index] for index in job["requests"]], job.get("renumber", False)
    return {"answers": [answer(family, request, job["spec"], renumber=renumber) for request in requests]}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
