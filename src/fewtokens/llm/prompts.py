"""Makes prompts from videos, images and text, using only the files in a model's folder.

The video processors of transformers require torchvision; this requires only its tokenizers and image processors. The
chat template, the text that represents a video and the values of the preprocessing are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fewtokens.encoders.weights import read_json
from fewtokens.llm.backends.base import OWN_PROCESSOR, Backend, backend_of
from fewtokens.llm.chat import Turns, check_question, encode_turns
from fewtokens.llm.interface import unwrap
from fewtokens.llm.messages import (
    Message,
    as_image,
    as_video,
    conversations,
    flatten,
    question_messages,
    texts,
    visuals,
)
from fewtokens.llm.pixels import PreparedVideo
from fewtokens.video import Video

# For models without a chat template.
_DEFAULT_PROMPT = {"system": "{}\n", "user": "USER: {} ASSISTANT:", "assistant": " {}\n"}
_REQUIRED = ("do_resize", "do_rescale", "do_normalize")


class Inputs(dict[str, Tensor]):
    """The inputs of a model by name, as `Processor` makes them.

    Attributes:
        visual_items: the images and videos of each prompt, as `items` of `compress`, which reads this attribute.
    """

    visual_items: list[list[tuple[str, int]]]


class Processor:
    """The tokenizer, the chat template and the preprocessing of one model; requires no torchvision.

        model, processor = fewtokens.llm.load("Qwen/Qwen2.5-VL-3B-Instruct")
        inputs = processor(model, fewtokens.read("clip.mp4", frames=processor.num_frames), "What happens?")

    Args:
        folder: a model as transformers saves it, with its tokenizer.
        model: a model of a family with prompts here, see `Backend.prepare`.

    Attributes:
        tokenizer: the tokenizer of transformers, for `tokenizer.decode`.
        preprocess_config: the config of the video processor.
        placeholder: the token that stands for a row of features of a video.
        markers: the text for an image and for a video in the chat template; that of an image is its placeholder.
        specials: special tokens of the family, which questions must not contain, like those of the tokenizer.
        num_frames: the number of frames read from a video by default.
        read_size: the short side in pixels at which videos are read; None for their original size.
        notes: messages for the user.

    Raises:
        ValueError: no tokenizer, a tokenizer without the placeholder, or unsupported preprocessing.
    """

    num_frames: int = 32
    read_size: int | None = None

    def __init__(self, folder: str | Path, model: Any) -> None:
        self.folder = Path(folder)
        model = unwrap(model)
        self.backend: Backend = backend_of(model)
        if not self.backend.has_prompts:
            raise ValueError(f"{self.backend.name} has no prompts here; {OWN_PROCESSOR}")
        self.tokenizer = _load_tokenizer(self.folder)
        self.notes: list[str] = []
        modality = "image" if self.backend.needs_items else "video"
        id = next(iter(self.backend.placeholders(model, modality)), None)
        placeholder = None if id is None else self.tokenizer.convert_ids_to_tokens(id)
        if placeholder is None:
            raise ValueError(f"{self.folder}: the tokenizer has no token {id}, the config's {modality}_token_id")
        self.placeholder: str = placeholder
        image = next(iter(self.backend.placeholders(model, "image")), id)
        self.markers: dict[str, str] = {
            "image": self.tokenizer.convert_ids_to_tokens(image) or placeholder,
            "video": self.backend.video_marker or self.placeholder,
        }
        # Some tokenizers do not list all of these as special tokens.
        ids = {value for name, value in vars(model.config).items() if name.endswith("_token_id") and value is not None}
        named = self.tokenizer.convert_ids_to_tokens(sorted(id for id in ids if isinstance(id, int)))
        self.specials = {*self.markers.values(), self.placeholder, *(token for token in named if token)}
        self.preprocess_config = self.backend.defaults(model.config) | read_preprocess_config(self.folder)
        if off := [name for name in _REQUIRED if not self.preprocess_config.get(name, True)]:
            raise ValueError(f"{self.folder}: its processor sets {off[0]} to false, which is not supported")
        self.template = self.backend.template or read_template(self.folder, self.tokenizer)
        if self.template is None:
            self.notes.append(f"{self.folder} has no chat template; the prompt is USER: ... ASSISTANT:")

    def token(self, name: str, default: str) -> str:
        """Returns the special token that the tokenizer has under a name, or `default`."""
        return getattr(self.tokenizer, name, None) or default

    def prepare(self, model: Any, video: Video) -> PreparedVideo:
        """Returns the frames as the model takes them, and the text that represents them."""
        return self.backend.prepare(unwrap(model), self, video)

    def prepare_images(self, model: Any, images: Sequence[Video]) -> list[PreparedVideo]:
        """Returns the images of one prompt, each a video of one frame, as the model takes them.

        Raises:
            ValueError: the family takes no images here, or the folder has no usable image processor.
        """
        return self.backend.prepare_images(unwrap(model), self, images)

    @cached_property
    def image_processor(self) -> Any:
        """The image processor of transformers, with the values in the folder.

        Raises:
            ValueError: transformers cannot load it.
        """
        from transformers import AutoImageProcessor
        from transformers.utils import is_torchvision_available

        # The default is that of torchvision, or that of Pillow with a warning.
        backend = {} if is_torchvision_available() else {"backend": "pil"}
        try:
            return AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=False, **backend)
        except Exception as error:  # transformers raises any type of error for a folder that it cannot load
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.folder}: transformers cannot load the image processor ({reason})") from None

    def image_inputs(self, images: Sequence[Video], *, nested: bool = False, **options: Any) -> dict[str, Any]:
        """Runs the image processor.

        Args:
            images: videos of one frame.
            nested: whether to pass the images as those of one prompt.
            options: options of the image processor.
        """
        pictures: Any = [Image.fromarray(image.frames[0].permute(1, 2, 0).numpy()) for image in images]
        return dict(self.image_processor([pictures] if nested else pictures, return_tensors="pt", **options))

    def render(self, question: str | Sequence[Message], kind: str = "video") -> str:
        """Returns the prompt, in which `markers` represent the images and videos.

        Args:
            question: a question about an image or a video, or the messages of a conversation.
            kind: "image" or "video", what the question is about.

        Raises:
            ValueError: a text contains a special token, or the template fails.
        """
        (messages,) = conversations(question_messages(question, kind, 0) if isinstance(question, str) else question)
        for text in texts(messages):
            check_question(self.tokenizer, text, self.specials)
        flat = flatten(messages, self.markers)
        if self.template is not None:
            # A template for text only does not accept parts.
            parts = [
                {"role": message["role"], "content": [_template_part(part) for part in message["content"]]}
                for message in messages
            ]
            prompts = []
            for candidate in (parts, flat):
                prompts.append(prompt := self._apply_template(candidate))
                if self._is_complete(prompt, messages):
                    return prompt
            for prompt in prompts:
                # A template may drop the thoughts of earlier answers.
                if self._is_complete(prompt, messages, texts(messages[-1:])):
                    return prompt
        return "".join(_DEFAULT_PROMPT[message["role"]].format(message["content"]) for message in flat)

    def _is_complete(self, prompt: str, messages: Sequence[Message], needed: Iterable[str] | None = None) -> bool:
        """Whether a prompt has texts, by default all, of a conversation and a marker for each image and video."""
        counts = [prompt.count(marker) == len(visuals(messages, kind)) for kind, marker in self.markers.items()]
        needed = texts(messages) if needed is None else needed
        return all(counts) and all(text.strip() in prompt for text in needed)

    def _apply_template(self, messages: Sequence[dict[str, Any]]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=messages[-1]["role"] != "assistant",
            )
        except ImportError:
            raise ValueError("chat templates require jinja2; install it with pip install jinja2") from None
        except Exception as error:  # a template may raise any type of error
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.folder}: its chat template fails ({reason})") from None

    def ids(self, question: str, text: str, kind: str = "video") -> Tensor:
        """Returns the token ids [1,L] of a question about an image or a video that `text` represents."""
        return self._tokenize(self.render(question, kind), [text])

    def _tokenize(self, prompt: str, replacements: Sequence[str]) -> Tensor:
        """Returns the token ids [1,L] of a prompt whose markers are replaced in order."""
        remaining = iter(replacements)
        prompt = self._marker_pattern.sub(lambda _: next(remaining), prompt)
        bos = self.tokenizer.bos_token
        has_bos = bos is not None and prompt.startswith(bos)
        ids = self.tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"]
        return torch.tensor([ids], dtype=torch.int64)

    @property
    def _marker_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(marker) for marker in self.markers.values()))

    def __call__(self, model: Any, prompt: Any, question: str | Sequence[str] | None = None) -> Inputs:
        """Returns the inputs of a model for a conversation, with the values of transformers' own processor.

            inputs = processor(model, messages)  # chat messages, as transformers takes them
            inputs = processor(model, "clip.mp4", "What happens?")
            inputs = processor(model, [first, second], ["What happens?", "Who is in it?"])  # a batch of two

        Args:
            model: the model; inputs are on its device, pixels in its dtype.
            prompt: without a question, the messages of a conversation or a list of conversations. Each message has a
                role (system, user or assistant) and a content, a string or a list of parts: {"type": "text", "text":
                ...}, {"type": "video", "path": ...} or {"type": "image", "path": ...}. Instead of "path", "video" or
                "image" has a path, frames as an array or a tensor, images of Pillow or a `Video`. With a question, a
                video, or one for each prompt of a batch. `num_frames` frames are read from a path.
            question: a question, or one for each prompt of a batch.

        Returns:
            input_ids [B,L] and attention_mask [B,L], padded on the left, pixels and grids.

        Raises:
            ValueError: the messages have another format; the arguments are neither one video and one question nor
                equally long lists of both; a file cannot be read; the family takes no images here; or images or videos
                have sizes that the family cannot take in one batch.
        """
        if question is None:
            batch = conversations(prompt)
        else:
            batched = isinstance(prompt, list | tuple), isinstance(question, list | tuple)
            videos = prompt if batched[0] else [prompt]
            questions: Sequence[Any] = question if batched[1] else [question]
            valid = batched[0] == batched[1] and len(videos) == len(questions) > 0
            if not valid or not all(isinstance(each, str) for each in questions):
                kinds = f"{type(prompt).__name__} and {type(question).__name__}"
                raise ValueError(
                    "a processor takes one video (fewtokens.read) and one question, equally long lists of both, or "
                    f"chat messages, got {kinds}"
                )
            pairs = zip(questions, videos, strict=True)
            batch = conversations([question_messages(text, "video", video) for text, video in pairs])
        prompts, items = zip(*(self._inputs(model, conversation) for conversation in batch), strict=True)
        inputs = Inputs(inputs_on(model, self._collate(prompts)))
        inputs.visual_items = list(items)
        return inputs

    def _inputs(self, model: Any, messages: Sequence[Message]) -> tuple[dict[str, Tensor], list[tuple[str, int]]]:
        """Returns the inputs of a conversation, and its images and videos as `items` of `compress`."""
        prompt = self.render(messages)
        videos = [as_video(value, self.num_frames, self.read_size) for value in visuals(messages, "video")]
        images = [as_image(value) for value in visuals(messages, "image")]
        prepared = {
            "video": [(self.prepare(model, video), [("video", len(video))]) for video in videos],
            "image": [
                (image, [("image", 1)] * image.tiles)
                for image in (self.prepare_images(model, images) if images else ())
            ],
        }
        # A template may change the order.
        kinds = {marker: kind for kind, marker in self.markers.items()}
        ordered = [prepared[kinds[match[0]]].pop(0) for match in self._marker_pattern.finditer(prompt)]
        ids = self._tokenize(prompt, [each.text for each, _ in ordered])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name in dict.fromkeys(name for each, _ in ordered for name in each.inputs):
            values = [each.inputs[name] for each, _ in ordered if name in each.inputs]
            inputs[name] = self._concatenate(name, values, axis=1 if self.backend.nested_images else 0)
        if self.backend.axes(unwrap(model)) > 1:
            # 1 means image, 2 video; the model computes positions from these.
            image, video = map(self.tokenizer.convert_tokens_to_ids, (self.markers["image"], self.placeholder))
            inputs["mm_token_type_ids"] = (ids == image).long().masked_fill(ids == video, 2)
        return inputs, [item for _, items in ordered for item in items]

    def _collate(self, prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pads the columns of prompts on the left, and concatenates their pixels and grids."""
        length = max(prompt["input_ids"].shape[1] for prompt in prompts)
        batch = {}
        for name in dict.fromkeys(name for prompt in prompts for name in prompt):
            values = [prompt[name] for prompt in prompts if name in prompt]
            if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                fill = (self.tokenizer.pad_token_id or 0) if name == "input_ids" else 0
                values = [nn.functional.pad(value, (length - value.shape[1], 0), value=fill) for value in values]
            batch[name] = self._concatenate(name, values)
        return batch

    def _concatenate(self, name: str, values: Sequence[Tensor], axis: int = 0) -> Tensor:
        """Concatenates an input of several images, videos or prompts; images with fewer tiles are padded.

        Raises:
            ValueError: they have different sizes.
        """
        if name == "pixel_values" and axis == 0 and values[0].ndim == 5:
            tiles = max(value.shape[1] for value in values)
            values = [nn.functional.pad(v, (0, 0, 0, 0, 0, 0, 0, tiles - v.shape[1])) for v in values]
        if len({(*value.shape[:axis], *value.shape[axis + 1 :]) for value in values}) > 1:
            same = "images and frames of the same size"
            if name == "pixel_values_videos":
                same = "videos with the same number of frames in a batch; read them with the same `frames`"
            raise ValueError(f"{self.backend.name} requires {same}")
        return torch.cat(list(values), axis)


class ComposedProcessor(Processor):
    """Makes prompts for a `ComposedVideoLLM`, whose tokenizer has no token for a video.

    Args:
        folder: the folder of the model.
        model: the model.
        num_frames, read_size: the values used in training.
    """

    placeholder = "<<cell of the video>>"

    def __init__(self, folder: str | Path, model: Any, *, num_frames: int = 16, read_size: int = 224) -> None:
        self.folder, self.backend, self.tokenizer = Path(folder), backend_of(model), model.tokenizer
        self.num_frames, self.read_size, self.notes = num_frames, read_size, []
        self.markers = {"video": "<<the video>>"}

    def render(self, question: str | Sequence[Message], kind: str = "video") -> str:
        (messages,) = conversations(question_messages(question, kind, 0) if isinstance(question, str) else question)
        for text in texts(messages):
            check_question(self.tokenizer, text)
        _turns(messages)
        return self.markers["video"]

    def ids(self, question: str, text: str, kind: str = "video") -> Tensor:
        return self._turn_ids([(question, None)], text)

    def _turn_ids(self, turns: Turns, text: str) -> Tensor:
        ids, _ = encode_turns(self.tokenizer, turns, text.count(self.placeholder))
        return ids[None]

    def _inputs(self, model: Any, messages: Sequence[Message]) -> tuple[dict[str, Tensor], list[tuple[str, int]]]:
        self.render(messages)
        video = as_video(visuals(messages, "video")[0], self.num_frames, self.read_size)
        prepared = self.prepare(model, video)
        ids = self._turn_ids(_turns(messages), prepared.text)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | prepared.inputs
        return inputs, [("video", len(video))]


def _turns(messages: Sequence[Message]) -> list[tuple[str, str | None]]:
    """The questions and answers of a conversation about one video; the answer to the last question may be missing.

    Raises:
        ValueError: a system message, images, several videos, or a video after the first question.
    """
    roles = [message["role"] for message in messages]
    contents = ["".join(texts([message])) for message in messages]
    alternate = roles == [("user", "assistant")[index % 2] for index in range(len(roles))]
    first = messages[0]["content"][:1]
    if (
        not alternate
        or visuals(messages, "image")
        or len(visuals(messages, "video")) != 1
        or not visuals([{"content": first}], "video")
    ):
        raise ValueError(
            "a model of train video-llm takes one video, at the beginning of the first of alternating messages of "
            "user and assistant, and no images"
        )
    answers: list[str | None] = [*contents[1::2], *([None] if len(contents) % 2 else [])]
    return list(zip(contents[::2], answers, strict=True))


def _template_part(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a message as chat templates take it."""
    return part if part["type"] == "text" else {"type": part["type"]}


def inputs_on(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns inputs on the device of a model, with floating-point pixels in its dtype."""
    model = unwrap(model)

    def move(name: str, value: Tensor) -> Tensor:
        cast = name.startswith("pixel_values") and value.is_floating_point()
        return value.to(model.device, model.dtype if cast else value.dtype)

    return {name: move(name, value) for name, value in inputs.items()}


def read_preprocess_config(folder: Path) -> dict[str, Any]:
    """Reads the config of the video processor in a folder, or else of the image processor; empty if there is none."""
    nested = read_json(folder / "processor_config.json").get("video_processor")
    config: dict[str, Any] = nested if isinstance(nested, dict) else {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        config = config or read_json(folder / name)
    sampling = config.get("video_sampling")
    if "size" not in config and isinstance(sampling, dict) and "video_size" in sampling:
        config = config | {"size": sampling["video_size"]}
    # null means that a value is not specified.
    return {name: value for name, value in config.items() if value is not None}


def read_template(folder: Path, tokenizer: Any) -> str | None:
    """Reads the chat template of the processor, or else of the tokenizer."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        template = read_json(folder / name).get("chat_template")
        if isinstance(template, str):
            return template
    own = getattr(tokenizer, "chat_template", None)
    own = own.get("default") if isinstance(own, dict) else own
    return own if isinstance(own, str) else None


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises any type of error for a folder that it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot load the tokenizer ({reason})") from None
