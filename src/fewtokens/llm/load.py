"""Loads video language models from a folder or the hub: only safetensors, no remote code, one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewtokens.encoders import from_hub, pick_device, pick_dtype
from fewtokens.llm.attach import Attachment, attach
from fewtokens.llm.backends.base import Backend, backend_named
from fewtokens.llm.chains import Methods
from fewtokens.llm.composed import is_video_llm, load_video_llm, saved_config
from fewtokens.llm.prompts import ComposedProcessor, Processor
from fewtokens.llm.session import Session
from fewtokens.llm.stream_session import DEFAULT_MEMORY, StreamSession
from fewtokens.networks.base import read_config

_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def find(name: str | Path) -> tuple[Path, Any, Backend]:
    """Finds a model without loading its weights: its folder, its config and its backend.

    Raises:
        ValueError: no such folder or hub id, no config, an unsupported family, or transformers is not installed.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError(
            "a video language model requires transformers; install it with pip install 'fewtokens[llm]'"
        ) from None
    if is_video_llm(name):
        return Path(name), saved_config(name), backend_named("composed")
    folder = Path(name) if Path(name).is_dir() else from_hub(str(name), _SMALL_FILES)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; the model must be a folder as transformers saves it")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises any type of error for a folder that it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot read its config.json ({reason})") from None
    return folder, config, backend_named(config.model_type)


def load(name: str | Path, device: str = "auto", dtype: str | None = None) -> tuple[Any, Processor]:
    """Loads a model with its language-model head, and the processor that makes its prompts.

    Args:
        name: a folder as transformers or `ComposedVideoLLM.save_pretrained` saves it, or a hub id such as
            "Qwen/Qwen2.5-VL-3B-Instruct".
        device: "auto" (the first available of cuda, mps and cpu), "cpu", "cuda", "cuda:1" or "mps".
        dtype: "float32", "float16" or "bfloat16"; default: float32 on a CPU, that of the config elsewhere. In a
            composed model it applies to the language model.

    Raises:
        ValueError: as `find`; no safetensors weights, or some are missing; an unknown device or dtype.
    """
    if is_video_llm(name):
        return _load_composed(Path(name), device, dtype)
    target = pick_device(device)
    weight_dtype: Any = pick_dtype(dtype) if dtype is not None else torch.float32 if target.type == "cpu" else "auto"
    folder, _, _ = find(name)
    if not Path(name).is_dir():
        folder = from_hub(str(name), (*_SMALL_FILES, "*.safetensors"))
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no weights; the model must be a folder with .safetensors files")
    model = _load_model(folder, weight_dtype)
    return model.to(target).eval(), Processor(folder, model)


def _load_composed(folder: Path, device: str, dtype: str | None) -> tuple[Any, Processor]:
    model = load_video_llm(folder, device=device)
    if dtype is not None:
        model.llm.to(pick_dtype(dtype))
    return model, ComposedProcessor(folder, model, **trained_reading(folder))


def trained_reading(folder: Path) -> dict[str, int]:
    """How a composed model reads videos, as in its training: `num_frames` and `read_size` of its processor."""
    trained = read_config(folder).get("trained", {})
    return {"num_frames": trained.get("frames", 16), "read_size": trained.get("size", 224)}


class VideoLLM:
    """A video language model with the processor that makes its prompts.

        model = VideoLLM.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
        print(model.session("token_dynamics(keep=32)").ask("clip.mp4", "What happens?").text)

    Attributes:
        model: a model of transformers, or a `ComposedVideoLLM`.
        processor: its `Processor`.
    """

    def __init__(self, model: Any, processor: Processor) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "auto", dtype: str | None = None) -> VideoLLM:
        """Loads a model, see `load`.

        Raises:
            ValueError: as `load`.
        """
        return cls(*load(name, device, dtype))

    def session(self, spec: Methods | None = None, **options: Any) -> Session:
        """Returns a session that answers questions with few visual tokens, see `Session`."""
        return Session(self.model, self.processor, spec, **options)

    def stream_session(self, spec: Methods = DEFAULT_MEMORY, **options: Any) -> StreamSession:
        """Returns a session that answers questions about a stream, see `StreamSession`."""
        return StreamSession(self.model, self.processor, spec, **options)

    def attach(self, spec: Methods, **options: Any) -> Attachment:
        """Reduces the visual tokens inside a `with` block, see `attach`."""
        return attach(self.model, spec, **options)


def _load_model(folder: Path, dtype: Any) -> Any:
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    show_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True
        )
    except Exception as error:  # transformers raises any type of error for a folder that it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot load it ({reason})") from None
    finally:
        if show_bars:
            logging.enable_progress_bar()
    model, report = loaded
    # transformers would initialize them at random.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}; download the model again"
        )
    return model
