"""Makes a prompt from a video and a question, using only the files in a model's folder.

The video processors of transformers require torchvision; this requires only its tokenizers. The chat template, the text
that represents a video and the values of the preprocessing are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.encoders.weights import read_json
from fewtokens.llm.backends.base import OWN_PROCESSOR, Backend, backend_of
from fewtokens.llm.chat import check_question, encode_turns
from fewtokens.llm.interface import unwrap
from fewtokens.llm.pixels import PreparedVideo
from fewtokens.video import Video

_DEFAULT_PROMPT = "USER: {video}\n{question} ASSISTANT:"
_REQUIRED = ("do_resize", "do_rescale", "do_normalize")


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
        placeholder: the token that stands for a row of features.
        video_marker: the text for the video in the chat template.
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
        self.video_marker = self.backend.video_marker or self.placeholder
        # Some tokenizers do not list all of these as special tokens.
        ids = {value for name, value in vars(model.config).items() if name.endswith("_token_id") and value is not None}
        named = self.tokenizer.convert_ids_to_tokens(sorted(id for id in ids if isinstance(id, int)))
        self.specials = {self.video_marker, self.placeholder, *(token for token in named if token)}
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

    def render(self, question: str) -> str:
        """Returns the prompt, in which `video_marker` represents the video.

        Raises:
            ValueError: the question contains a special token, or the template fails.
        """
        check_question(self.tokenizer, question, self.specials)
        default = _DEFAULT_PROMPT.format(video=self.video_marker, question=question)
        if self.template is None:
            return default
        parts = [{"type": "video"}, {"type": "text", "text": question}]
        # A template for text only does not accept parts.
        for content in (parts, f"{self.video_marker}\n{question}"):
            text = self._apply_template([{"role": "user", "content": content}])
            if self.video_marker in text and question.strip() in text:
                return text
        return default

    def _apply_template(self, messages: Sequence[dict[str, Any]]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except ImportError:
            raise ValueError("chat templates require jinja2; install it with pip install jinja2") from None
        except Exception as error:  # a template may raise any type of error
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.folder}: its chat template fails ({reason})") from None

    def ids(self, question: str, video_text: str) -> Tensor:
        """Returns the token ids [1,L] of a question about a video that `video_text` represents."""
        prompt = self.render(question).replace(self.video_marker, video_text, 1)
        bos = self.tokenizer.bos_token
        has_bos = bos is not None and prompt.startswith(bos)
        ids = self.tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"]
        return torch.tensor([ids], dtype=torch.int64)

    def __call__(self, model: Any, video: Video | Sequence[Video], question: str | Sequence[str]) -> dict[str, Tensor]:
        """Returns the inputs of a model for a question about a video, with the values of transformers' own processor.

            inputs = processor(model, fewtokens.read("clip.mp4", frames=32), "What happens?")
            inputs = processor(model, [first, second], ["What happens?", "Who is in it?"])  # a batch of two

        Args:
            model: the model; inputs are on its device, pixels in its dtype.
            video: a video, or one for each prompt of a batch.
            question: a question, or one for each prompt of a batch.

        Returns:
            input_ids [B,L] and attention_mask [B,L], padded on the left, pixels and grids.

        Raises:
            ValueError: the arguments are neither one video and one question nor equally long lists of both; or the
                videos have different numbers of frames in a family that requires equal ones in a batch.
        """
        videos, questions = [video] if isinstance(video, Video) else video, question
        questions = [question] if isinstance(question, str) else question
        batched = isinstance(video, list | tuple) and isinstance(question, list | tuple)
        single = isinstance(video, Video) and isinstance(question, str)
        valid = (single or batched) and len(videos) == len(questions) > 0
        if not valid or not all(isinstance(v, Video) for v in videos) or not all(isinstance(q, str) for q in questions):
            kinds = f"{type(video).__name__} and {type(question).__name__}"
            raise ValueError(
                "a processor takes one Video (fewtokens.read) and one question, or equally long lists of both, got "
                f"{kinds}"
            )
        prompts = [self._inputs(model, *pair) for pair in zip(videos, questions, strict=True)]
        return inputs_on(model, self._collate(prompts))

    def _inputs(self, model: Any, video: Video, question: str) -> dict[str, Tensor]:
        prepared = self.prepare(model, video)
        ids = self.ids(question, prepared.text)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prepared.inputs}
        if self.backend.axes(unwrap(model)) > 1:
            # 2 means video; the model computes positions from these.
            inputs["mm_token_type_ids"] = 2 * (ids == self.tokenizer.convert_tokens_to_ids(self.placeholder)).long()
        return inputs

    def _collate(self, prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pads the columns of prompts on the left, and concatenates their pixels and grids."""
        length = max(prompt["input_ids"].shape[1] for prompt in prompts)
        batch = {}
        for name in prompts[0]:
            values = [prompt[name] for prompt in prompts]
            if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                fill = (self.tokenizer.pad_token_id or 0) if name == "input_ids" else 0
                values = [nn.functional.pad(value, (length - value.shape[1], 0), value=fill) for value in values]
            elif len({value.shape[1:] for value in values}) > 1:
                raise ValueError(
                    f"{self.backend.name} requires videos with the same number of frames in a batch; read them with "
                    "the same `frames`"
                )
            batch[name] = torch.cat(values)
        return batch


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

    def render(self, question: str) -> str:
        check_question(self.tokenizer, question)
        return question

    def ids(self, question: str, video_text: str) -> Tensor:
        ids, _ = encode_turns(self.tokenizer, [(question, None)], video_text.count(self.placeholder))
        return ids[None]


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
