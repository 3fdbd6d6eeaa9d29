"""The same answers by hand, with transformers: the rows of stock, their means by a method's assignment, own positions.

    python -m tests.serve.engine.reference '{"family": "qwen2_5_vl", "model": "FOLDER", "specs": ["kmeans(keep=0.4)"],
        "requests": [0, 1]}'

Of fewtokens only the method itself is used, which has tests of its own; nothing of `fewtokens.serve`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from math import isqrt
from typing import Any, ClassVar

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.serve.by_hand import shorten
from tests.serve.engine.checkpoints import PUBLISHED
from tests.serve.engine.requests import REQUESTS, frames, image, metadata
from tests.serve.engine.run import TOKENS

QWEN = {
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
}


class Family:
    """A model of transformers, its processor, and how a short prompt is made from the full one."""

    texts: ClassVar[dict[str, str]] = {}
    # Those that the model can answer, and what vLLM needs to load it.
    requests: ClassVar[list[int]] = list(range(len(REQUESTS)))
    engine: ClassVar[dict[str, Any]] = {}
    # The folder in that of the checkpoint that vLLM loads.
    published = ""
    processor_class = "AutoProcessor"
    # Rows after the cells of a video, and whether the text between its frames is in the short prompt.
    tail = 0
    text_between_frames = True

    def __init__(self, folder: str) -> None:
        import transformers as hf

        self.model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = getattr(hf, self.processor_class).from_pretrained(folder)
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

    def pixels(self, inputs: dict[str, Any]) -> list[Tensor]:
        """The pixels of the cells of each video, [S,P,D] in 0..1."""
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
        pixels = iter(self.pixels(inputs))
        for rows, grid in self.videos(inputs):
            cells = len(rows) - self.tail
            own = columns[start : start + len(rows)].tolist()
            start += len(rows)
            own_columns |= set(own) if self.text_between_frames else set(range(own[0], own[-1] + 1))
            short, cell = shorten(spec, rows[:cells], grid, embeds.shape[1], next(pixels))
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

    def pixels(self, inputs: dict[str, Any]) -> list[Tensor]:
        if "pixel_values_videos" not in inputs:
            return []
        processor, grids = self.processor.video_processor, inputs["video_grid_thw"].tolist()
        # Channels first, then the two frames of a tubelet; a cell has four patches.
        patches = inputs["pixel_values_videos"].unflatten(1, (3, 2, -1))
        unit = unnormalized(patches.transpose(1, 3), processor.image_mean, processor.image_std)
        cells = unit.permute(0, 2, 1, 3).flatten(2).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)
        return list(cells.split([t * h * w // 4 for t, h, w in grids]))

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


def unnormalized(values: Tensor, mean: Any, std: Any) -> Tensor:
    """Pixels in 0..1 of normalized ones, with channels in the last axis."""
    return (values * torch.as_tensor(std) + torch.as_tensor(mean)).clamp(0, 1)


def pixels_of_squares(squares: Tensor, side: int) -> Tensor:
    """The pixels of `side` x `side` cells of frames [T,S,S,3] in 0..1, resized to 8 x 8 a cell; [cells,1,192]."""
    size = (8 * side, 8 * side)
    frames = F.interpolate(squares.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    blocks = [
        frame[:, y : y + 8, x : x + 8] for frame in frames for y in range(0, size[0], 8) for x in range(0, size[1], 8)
    ]
    return torch.stack(blocks).flatten(1)[:, None]


class Counted(Family):
    """Positions are a count of the columns."""

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        return torch.arange(inputs["input_ids"].shape[1])[None]

    def logits(self, embeds: Tensor, positions: Tensor) -> Tensor:
        hidden = self.inner.language_model(inputs_embeds=embeds[None])[0]
        return self.model.lm_head(hidden[0, -1])


class LlavaOnevision(Counted):
    """The newline after a video stays."""

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
            outputs = self.inner.get_video_features(video[None], return_dict=True)
            rows = torch.cat(list(outputs.pooler_output)).reshape(-1, self.model.lm_head.in_features)
            side = isqrt(len(rows) // len(video))
            cells = len(video) * side**2
            if self.tail and len(rows) == cells:
                rows = torch.cat([rows, self.inner.image_newline[None]])
            assert len(rows) == cells + self.tail
            result.append((rows, (len(video), side, side)))
        return result

    def pixels(self, inputs: dict[str, Any]) -> list[Tensor]:
        processor = self.processor.video_processor
        return [
            pixels_of_squares(unnormalized(video.movedim(1, 3), processor.image_mean, processor.image_std), side)
            for video, (_, (_, side, _)) in zip(inputs["pixel_values_videos"], self.videos(inputs), strict=True)
        ]


class LlavaNextVideo(LlavaOnevision):
    """No newline; vLLM accepts one video in a prompt, and no images."""

    tail = 0
    requests: ClassVar[list[int]] = [
        index for index, request in enumerate(REQUESTS) if len(request["videos"]) < 2 and "images" not in request
    ]


class InternVL(Counted):
    """Pictures are squares of one size; the tokens of a video form one block, in its first frame."""

    texts: ClassVar[dict[str, str]] = {"image": "<IMG_CONTEXT>"}
    text_between_frames = False
    tokens: ClassVar[dict[str, str]] = {"image": "<IMG_CONTEXT>", "video": "<video>"}

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)

    @property
    def scale(self) -> tuple[Any, Any]:
        """The mean and standard deviation of normalized pixels."""
        return self.processor.video_processor.image_mean, self.processor.video_processor.image_std

    def squares(self, modality: str, pictures: np.ndarray) -> Tensor:
        """A video, or an image, [T,H,W,3] as normalized squares [n,3,S,S]."""
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        if modality == "image":
            return self.processor.image_processor(pixels[0], return_tensors="pt").pixel_values
        video = self.processor.video_processor(pixels, do_sample_frames=False, return_tensors="pt")
        return video.pixel_values_videos[0]

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        videos = [self.squares("video", frames(*video)) for video in request["videos"]]
        images = [self.squares("image", image(*shape)[None]) for shape in request.get("images", [])]
        run = {name: token * self.model.config.image_seq_length for name, token in self.tokens.items()}
        texts = {
            "<video>": ["\n".join(f"Frame{t + 1}: <img>{run['video']}</img>" for t in range(len(v))) for v in videos],
            "<image>": [f"<img>{run['image'] * len(squares)}</img>" for squares in images],
        }
        text = re.sub("<video>|<image>", lambda match: texts[match[0]].pop(0), request["text"])
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        return {"input_ids": ids, "images": images, "videos": videos}

    def placeholders(self, ids: Tensor, modality: str) -> Tensor:
        return (ids == self.tokenizer.convert_tokens_to_ids(self.tokens[modality])).nonzero().flatten()

    def rows(self, squares: Tensor) -> Tensor:
        return self.inner.get_image_features(squares, return_dict=True).pooler_output.flatten(0, 1)

    def images(self, inputs: dict[str, Any]) -> list[Tensor]:
        return [self.rows(squares) for squares in inputs["images"]]

    def videos(self, inputs: dict[str, Any]) -> list[tuple[Tensor, tuple[int, int, int]]]:
        side = isqrt(self.model.config.image_seq_length)
        return [(self.rows(squares), (len(squares), side, side)) for squares in inputs["videos"]]

    def pixels(self, inputs: dict[str, Any]) -> list[Tensor]:
        side = isqrt(self.model.config.image_seq_length)
        return [
            pixels_of_squares(unnormalized(squares.movedim(1, 3), *self.scale), side) for squares in inputs["videos"]
        ]


class InternVLChat(InternVL):
    """In the layout of its publishers, for which vLLM has a processor of its own; here by hand."""

    # One square per image.
    engine: ClassVar[dict[str, Any]] = {"trust_remote_code": True, "hf_overrides": {"max_dynamic_patch": 1}}
    texts: ClassVar[dict[str, str]] = {}
    published = PUBLISHED
    processor_class = "AutoTokenizer"
    tokens: ClassVar[dict[str, str]] = {"image": "<IMG_CONTEXT>", "video": "<|video_pad|>"}
    scale = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def squares(self, modality: str, pictures: np.ndarray) -> Tensor:
        size = self.model.config.vision_config.image_size
        resized = [Image.fromarray(picture).resize(tuple(size), Image.Resampling.BICUBIC) for picture in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(square) for square in resized])) / 255
        return ((pixels - self.scale[0]) / self.scale[1]).permute(0, 3, 1, 2)


FAMILIES: dict[str, type[Family]] = {
    "internvl": InternVL,
    "internvl_chat": InternVLChat,
    "llava_next_video": LlavaNextVideo,
    "llava_onevision": LlavaOnevision,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
}


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
    return {spec: [answer(family, request, spec, renumber=renumber) for request in requests] for spec in job["specs"]}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
