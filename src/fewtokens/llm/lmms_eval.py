"""The model "fewtokens" for lmms-eval: any supported family, with any spec that `attach` accepts.

    lmms-eval --model fewtokens --tasks videomme \\
        --model_args "pretrained=FOLDER,spec='evs(keep=0.25)',frames=32"

lmms-eval finds `manifest` by the entry point group "lmms_eval.models", which requires a version with
lmms_eval/models/registry_v2.py; the older variable LMMS_EVAL_PLUGINS is deprecated there and does not support chat
models. lmms-eval is not a dependency, and is imported only when it asks for the manifest or the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

MAX_NEW_TOKENS = 128


def manifest() -> Any:
    """Returns the manifest that lmms-eval registers: that of a chat model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="fewtokens", chat_class_path=f"{__name__}.FewTokens")


class Answers:
    """The model without its base class, which only lmms-eval has.

    Args:
        pretrained: a folder or hub id.
        spec: methods, as on the command line; default: all tokens. Quote it in --model_args, because lmms-eval splits
            at commas.
        frames: the number of frames per video.
        device: default: the first GPU, if available.
        dtype: the dtype of the weights.
        batch_size: must be 1; videos are processed individually.

    Raises:
        ValueError: no `pretrained`, frames below 1, another batch size, or more than one process.
    """

    is_simple = False
    # Set by lmms-eval: task -> split -> documents.
    task_dict: dict[str, Any]
    cache_hook: Any

    def __init__(
        self,
        pretrained: str = "",
        spec: str | None = None,
        frames: int | str = 32,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
    ) -> None:
        import torch

        from fewtokens.llm import Session, load

        # lmms-eval names its caches by this, and replies depend on all three.
        self.model_name = f"{pretrained} {spec} {frames}"
        super().__init__()
        if not pretrained:
            raise ValueError("pretrained is required: --model_args pretrained=FOLDER_OR_ID")
        if str(batch_size or 1) != "1" or str(max_batch_size or 1) != "1":
            raise ValueError(f"batch_size must be 1, got {batch_size}; fewtokens processes one video at a time")
        if not str(frames).isdecimal() or int(frames) < 1:
            raise ValueError(f"frames must be a whole number of at least 1, got {frames!r}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("fewtokens runs in one process under lmms-eval; start it without accelerate or torchrun")
        spec = unquote(spec) if spec else None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load(unquote(pretrained), device=device, dtype=dtype)
        self.session = Session(model, processor, spec=spec, frames=int(frames))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns replies in the order of the requests.

        Of a task's generation settings, `max_new_tokens` and `until` are used. Decoding is greedy, so tasks that sample
        or use beam search are refused; the other settings concern sampling or images.

        Raises:
            ValueError: sampling or beam search; a document that is not one question about one video.
        """
        replies = []
        for request in requests:
            context, to_messages, settings, document, task, split = request.args
            _check_greedy(settings, task)
            video, question = read_messages(to_messages, self.task_dict[task][split][document], f"{task}, {document}")
            limit = int(settings.get("max_new_tokens") or MAX_NEW_TOKENS)
            answer = self.session.ask(video, question, max_new_tokens=limit)
            reply = cut(str(answer.text), settings.get("until"))
            self.cache_hook.add_partial("generate_until", (context, settings), reply)
            replies.append(reply)
        return replies

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("fewtokens answers in text; choose a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("fewtokens answers one question at a time; choose a task of generate_until")

    def generate_until_agentic(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("fewtokens answers one question at a time; choose a task of generate_until")


@cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    return type("FewTokens", (Answers, lmms), {"__module__": __name__, "__doc__": Answers.__doc__})


def __getattr__(name: str) -> Any:
    # Created when lmms-eval asks for it, so that the manifest can be read while lmms-eval is still being imported.
    if name == "FewTokens":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def read_messages(to_messages: Callable[[Any], Any], document: Any, where: str) -> tuple[str, str]:
    """Returns the video and the question of a document.

    Args:
        to_messages: lmms-eval's function from a document to [{"role", "content": [{"type", "text" or "url"}]}].
        where: the name of the document in errors.

    Raises:
        ValueError: not exactly one video file, other media, or turns of an assistant.
    """
    texts: list[str] = []
    media: list[tuple[str, Any]] = []
    for message in to_messages(document):
        if message["role"] not in ("system", "user"):
            raise ValueError(f"{where}: has a turn of {message['role']!r}; fewtokens answers one question at a time")
        for content in message["content"]:
            if content["type"] == "text":
                texts.append(content["text"])
            else:
                media.append((content["type"], content["url"]))
    if len(media) != 1 or media[0][0] != "video" or not isinstance(media[0][1], str | os.PathLike):
        kinds = ", ".join(kind for kind, _ in media) or "none"
        raise ValueError(f"{where}: fewtokens requires one video file, got {kinds}; choose a video task")
    return os.fspath(media[0][1]), "\n".join(texts)


def cut(reply: str, until: str | Sequence[str] | None) -> str:
    """Cuts a reply at the first of the texts that end it."""
    reply = reply.strip()
    for end in (until,) if isinstance(until, str) else until or ():
        if end:
            reply = reply.split(end)[0]
    return reply.strip()


def unquote(text: str) -> str:
    """Removes the surrounding quotation marks, which lmms-eval keeps."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _check_greedy(settings: Mapping[str, Any], task: str) -> None:
    if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
        raise ValueError(f"{task}: fewtokens decodes greedily; set --gen_kwargs temperature=0,do_sample=False")
    if int(settings.get("num_beams") or 1) != 1:
        raise ValueError(f"{task}: fewtokens decodes greedily; set --gen_kwargs num_beams=1")
