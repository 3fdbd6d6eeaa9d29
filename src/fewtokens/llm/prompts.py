"""From a video and a question to a prompt, with nothing but what lies in the folder of a model.

The video processors of transformers need torchvision; this needs its tokenizers only. The chat template, the text that
stands for a video, and the numbers of the preprocessing are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.encoders.weights import read_json
from fewtokens.llm.backends.base import Backend, backend_of
from fewtokens.llm.chat import check_question, encode_turns
from fewtokens.llm.interface import unwrapped
from fewtokens.llm.pixels import PreparedVideo
from fewtokens.video import Video

_PLAIN = "USER: {video}\n{question} ASSISTANT:"
_MUST = ("do_resize", "do_rescale", "do_normalize")


class Processor:
    """Tokenizer, chat template, and the numbers of the preprocessing of one model.

    Args:
        folder: as transformers saves a model, with its tokenizer.
        model: of a family in `BACKENDS`.

    Attributes:
        preprocess_config: of the video processor.
        placeholder: the token that stands for a row of features.
        video_marker: what stands for the video in the chat template.
        specials: tokens of the family that no question may have in it, with those of the tokenizer.
        num_frames: frames that are read of a video by default.
        read_size: to which videos are read, the short side in pixels; None for their own size.
        notes: what a user should know of it.

    Raises:
        ValueError: no tokenizer, one that does not know the placeholder, numbers that are not supported.
    """

    num_frames: int = 32
    read_size: int | None = None

    def __init__(self, folder: str | Path, model: Any) -> None:
        self.folder = Path(folder)
        model = unwrapped(model)
        self.backend: Backend = backend_of(model)
        self.tokenizer = _load_tokenizer(self.folder)
        self.notes: list[str] = []
        modality = "image" if self.backend.needs_items else "video"
        number = self.backend.placeholder(model, modality)
        known = None if number is None else self.tokenizer.convert_ids_to_tokens(number)
        if known is None:
            raise ValueError(
                f"{self.folder}: the tokenizer has no token {number}, which the config has for a {modality}"
            )
        self.placeholder: str = known
        self.video_marker = self.backend.video_marker or self.placeholder
        # Some tokenizers do not count all of these among their special ones.
        ids = {value for name, value in vars(model.config).items() if name.endswith("_token_id") and value is not None}
        named = self.tokenizer.convert_ids_to_tokens(sorted(id for id in ids if isinstance(id, int)))
        self.specials = {self.video_marker, self.placeholder, *(token for token in named if token)}
        self.preprocess_config = self.backend.defaults(model.config) | read_preprocess_config(self.folder)
        if off := [name for name in _MUST if not self.preprocess_config.get(name, True)]:
            raise ValueError(f"{self.folder}: its processor says {off[0]} false, which is not supported")
        self.template = self.backend.template or read_template(self.folder, self.tokenizer)
        if self.template is None:
            self.notes.append(f"{self.folder} has no chat template; the prompt is a plain USER: ... ASSISTANT:")

    def token(self, name: str, default: str) -> str:
        """A special token by the name that the tokenizer has for it."""
        return getattr(self.tokenizer, name, None) or default

    def prepare(self, model: Any, video: Video) -> PreparedVideo:
        """Frames as the model takes them, and the text that stands for them."""
        return self.backend.prepare(unwrapped(model), self, video)

    def render(self, question: str) -> str:
        """The prompt, in which `video_marker` stands for the video.

        Raises:
            ValueError: a question with a special token in it, a template that does not work.
        """
        check_question(self.tokenizer, question, self.specials)
        plain = _PLAIN.format(video=self.video_marker, question=question)
        if self.template is None:
            return plain
        parts = [{"type": "video"}, {"type": "text", "text": question}]
        # A template for text alone knows nothing of parts.
        for content in (parts, f"{self.video_marker}\n{question}"):
            text = self._filled([{"role": "user", "content": content}])
            if self.video_marker in text and question.strip() in text:
                return text
        return plain

    def _filled(self, messages: Sequence[dict[str, Any]]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except ImportError:
            raise ValueError("chat templates need jinja2; pip install jinja2") from None
        except Exception as error:  # whatever a template out of a folder may do
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.folder}: its chat template does not work ({reason})") from None

    def ids(self, question: str, standing: str) -> Tensor:
        """Token ids [1,L] of a question on a video for which the text `standing` stands."""
        prompt = self.render(question).replace(self.video_marker, standing, 1)
        begin = self.tokenizer.bos_token
        begun = begin is not None and prompt.startswith(begin)
        numbers = self.tokenizer(prompt, add_special_tokens=not begun)["input_ids"]
        return torch.tensor([numbers], dtype=torch.int64)

    def __call__(self, model: Any, video: Video, question: str) -> dict[str, Tensor]:
        """Inputs of a model for a question on a video, as transformers' own processor makes them.

        Raises:
            ValueError: not one video and one question.
        """
        if not isinstance(video, Video) or not isinstance(question, str):
            kinds = f"{type(video).__name__} and {type(question).__name__}"
            raise ValueError(f"a processor takes one Video (fewtokens.video.read) and one question, got {kinds}")
        prepared = self.prepare(model, video)
        ids = self.ids(question, prepared.text)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prepared.inputs}
        if self.backend.mrope:
            # 2 for a video: by these the model finds positions.
            inputs["mm_token_type_ids"] = 2 * (ids == self.tokenizer.convert_tokens_to_ids(self.placeholder)).long()
        return inputs


class ComposedProcessor(Processor):
    """Makes prompts for a `ComposedVideoLLM`, whose tokenizer has no token for a video.

    Args:
        folder: where the model is saved.
        model: the model.
        num_frames, read_size: as it was trained.
    """

    placeholder = "<<cell of the video>>"

    def __init__(self, folder: str | Path, model: Any, *, num_frames: int = 16, read_size: int = 224) -> None:
        self.folder, self.backend, self.tokenizer = Path(folder), backend_of(model), model.tokenizer
        self.num_frames, self.read_size, self.notes = num_frames, read_size, []

    def render(self, question: str) -> str:
        check_question(self.tokenizer, question)
        return question

    def ids(self, question: str, standing: str) -> Tensor:
        ids, _ = encode_turns(self.tokenizer, [(question, None)], standing.count(self.placeholder))
        return ids[None]


def read_preprocess_config(folder: Path) -> dict[str, Any]:
    """What a folder says of its video processor, or else of its image processor; empty where it says nothing."""
    nested = read_json(folder / "processor_config.json").get("video_processor")
    said: dict[str, Any] = nested if isinstance(nested, dict) else {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        said = said or read_json(folder / name)
    sampling = said.get("video_sampling")
    if "size" not in said and isinstance(sampling, dict) and "video_size" in sampling:
        said = said | {"size": sampling["video_size"]}
    # A number that is null is one that is not said.
    return {name: value for name, value in said.items() if value is not None}


def read_template(folder: Path, tokenizer: Any) -> str | None:
    """The chat template: the processor's, or else the tokenizer's."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        said = read_json(folder / name).get("chat_template")
        if isinstance(said, str):
            return said
    own = getattr(tokenizer, "chat_template", None)
    own = own.get("default") if isinstance(own, dict) else own
    return own if isinstance(own, str) else None


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever transformers says about a folder that it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers finds no tokenizer in it ({reason})") from None
