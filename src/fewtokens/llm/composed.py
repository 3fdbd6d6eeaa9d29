"""A video language model of parts: video encoder, projector, methods that reduce, causal language model.

    frames -> encoder -> [pool x pool patches side by side] -> projector -> methods -> language model

The methods stand after the projector, in the width of the language model, as in VQToken (arXiv 2503.16980, section 4).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from fewtokens.core import files, registry
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import ViT, ViTConfig, VitEncoder, load_encoder, pick_device
from fewtokens.encoders.weights import read_json
from fewtokens.llm.chat import IGNORED, VIDEO_MARK, collate_turns, encode_turns
from fewtokens.llm.prompt_editor import nearest_cell
from fewtokens.networks.base import read_config

KIND = "video_llm"


class ComposedVideoLLM(nn.Module):
    """The parts, put together.

    Args:
        encoder: frame by frame.
        llm: a causal language model of transformers.
        tokenizer: its tokenizer.
        spec: methods of the stages pixels and tokens that need no other cue than pixels and text; "" keeps every token.
        pool: so many patches along a side become one token, their channels side by side (pixel shuffle).
        positions: "keep" gives a token the position of the cell nearest to it, and the text its own; "renumber" counts
            the columns that are there, as VQToken does.
    """

    def __init__(
        self, encoder: VitEncoder, llm: Any, tokenizer: Any, *, spec: str = "", pool: int = 1, positions: str = "keep"
    ) -> None:
        super().__init__()
        if not isinstance(encoder, VitEncoder):
            raise ValueError(
                f"{encoder.id} cannot be trained in a video language model; take a ViT that is loaded here"
            )
        if pool < 1:
            raise ValueError(f"pool must be at least 1, got {pool}")
        if positions not in ("keep", "renumber"):
            raise ValueError(f"positions must be 'keep' or 'renumber', got {positions!r}")
        self.frames, self.tokenizer, self.pool, self.positions = encoder, tokenizer, pool, positions
        self.encoder, self.llm = encoder.vit, llm
        self.width: int = llm.get_input_embeddings().weight.shape[1]
        wide = encoder.width * pool**2
        self.projector = nn.Sequential(nn.Linear(wide, self.width), nn.GELU(), nn.Linear(self.width, self.width))
        self._checkpointing = False
        self.reduce_with(spec)

    @property
    def device(self) -> torch.device:
        return self.llm.get_input_embeddings().weight.device

    @property
    def checkpointing(self) -> bool:
        """Whether the language model recomputes activations in the backward pass."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        self._checkpointing = wanted
        # Called so since transformers 5.23, "gradient" before.
        kind = "activation" if hasattr(self.llm, "activation_checkpointing_enable") else "gradient"
        getattr(self.llm, f"{kind}_checkpointing_{'enable' if wanted else 'disable'}")()

    @property
    def config(self) -> Any:
        """Of the language model."""
        return self.llm.config

    def reduce_with(self, spec: str) -> ComposedVideoLLM:
        """Takes another chain of methods; trainable ones begin anew.

        Raises:
            ValueError: methods inside an encoder or a language model, or a cue that is not given here.
        """
        return self.take(registry.build(spec, dim=self.width) if spec.strip() else [])

    def take(self, methods: Sequence[Method]) -> ComposedVideoLLM:
        """Takes methods that were built for `width`; see `reduce_with`."""
        for method in methods:
            if unknown := set(method.needs) - {"pixels", "text", "frame_global"}:
                raise ValueError(f"{method.name} needs {' and '.join(sorted(unknown))}, which is not given here")
        self.compressor = Pipeline(methods).to(self.device)
        return self

    def cells(self, frames: Tensor, times: Tensor | None = None) -> tuple[Tensor, Grid]:
        """What the encoder gives for frames [B,T,3,H,W] (uint8): [B,S,pool*pool*C] and the grid; kept by those who ask
        much of one video. No gradient where the encoder is frozen."""
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            tokens, _ = self.frames(frames, times)
        grid, p = tokens.grid, self.pool
        if grid.H % p or grid.W % p:
            raise ValueError(f"frames of {grid.H} x {grid.W} patches cannot be pooled by {p}; take another size")
        x = tokens.features.reshape(len(frames), grid.T, grid.H // p, p, grid.W // p, p, -1)
        x = x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4).flatten(1, 3)
        return x, Grid(grid.T, grid.H // p, grid.W // p, grid.times)

    def reduced(self, cells: Tensor, grid: Grid, **cues: Tensor) -> Tokens:
        """The few tokens of videos, in the width of the language model."""
        return self.compressor(Tokens.from_cells(self._projected(cells), grid), **cues)

    def _projected(self, cells: Tensor) -> Tensor:
        first = self.projector[0]
        assert isinstance(first, nn.Linear)
        return self.projector(cells.to(first.weight.dtype))

    def embedded(self, batch: dict[str, Tensor], tokens: Tokens) -> dict[str, Tensor]:
        """Inputs of the language model: the mark in each line of ids gives way to the video's tokens.

        Lines keep the side on which they are padded.
        """
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch.get("labels")
        L = ids.shape[1]
        mark = (ids == VIDEO_MARK).int().argmax(1)
        left = bool((mask[:, 0] == 0).any())
        words = self.llm.get_input_embeddings()(ids.clamp(min=0))
        video = tokens.features.to(words.dtype)
        count, N = tokens.count, tokens.N
        length = mask.sum(1) - 1 + count
        width = int(length.max())
        start = (width - length) if left else torch.zeros_like(length)
        begin = (L - mask.sum(1)) if left else torch.zeros_like(length)
        # Of each new column: a place in the line, or, from L on, a token of the video.
        place = torch.arange(width, device=ids.device) - start[:, None]
        before = (mark - begin)[:, None]
        inside = (place >= before) & (place < before + count[:, None])
        old = torch.where(place < before, place, place - count[:, None] + 1) + begin[:, None]
        index = torch.where(inside, L + place - before, old).clamp(0, L + N - 1)
        real = (place >= 0) & (place < length[:, None])
        rows = torch.cat([words, video], 1).gather(1, index[..., None].expand(-1, -1, words.shape[2]))
        position = place
        if self.positions == "keep":
            cell = nearest_cell(tokens.positions, tokens.grid.shape)
            of_video = before + cell.gather(1, (place - before).clamp(0, N - 1))
            later = torch.where(place < before, place, place + tokens.grid.cells - count[:, None])
            position = torch.where(inside, of_video, later)
        made = {
            "inputs_embeds": rows,
            "attention_mask": real.to(mask.dtype),
            "position_ids": position.masked_fill(~real, 0),
        }
        if labels is not None:
            blank = F.pad(labels, (0, N), value=IGNORED)
            made["labels"] = blank.gather(1, index).masked_fill(~real, IGNORED)
        return made

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The mean loss of the answers of a batch of conversations.

        Args:
            batch: frames uint8 [B,T,3,H,W] or cells [B,S,C] with their grid; input_ids, attention_mask, labels [B,L].
        """
        made = self.embedded(batch, self.tokens(batch))
        return self.llm(**made, use_cache=False).loss

    def tokens(self, batch: dict[str, Any]) -> Tokens:
        """The few tokens of the videos of a batch, as `forward` takes it."""
        if "cells" in batch:
            cells, grid = batch["cells"], batch["grid"]
        else:
            cells, grid = self.cells(batch["frames"], batch.get("times"))
        cues = {}
        needs = self.compressor.needs
        if "text" in needs:
            cues["text"] = self._question(batch)
        if "frame_global" in needs:
            cues["frame_global"] = self._projected(cells).unflatten(1, (grid.T, -1)).mean(2)
        if "pixels" in needs:
            cues["pixels"] = batch["pixels"]
        return self.reduced(cells, grid, **cues)

    def _question(self, batch: dict[str, Any]) -> Tensor:
        """The mean word of what is asked, [B,1,C]: one for each video, so that lines of any length go together."""
        ids = batch["input_ids"]
        asked = batch["attention_mask"].bool() & (ids != VIDEO_MARK)
        if "labels" in batch:
            asked = asked & (batch["labels"] == IGNORED)
        words = self.llm.get_input_embeddings()(ids.clamp(min=0))
        return ((words * asked[..., None]).sum(1) / asked.sum(1, keepdim=True).clamp(min=1))[:, None]

    @torch.no_grad()
    def answer(self, batch: dict[str, Any], *, max_new_tokens: int = 8) -> list[str]:
        """What the model says to questions (`encode_turns` with None for the answer, padded on the left); greedy."""
        made = self.embedded({name: value for name, value in batch.items() if name != "labels"}, self.tokens(batch))
        ids = self.llm.generate(
            inputs_embeds=made["inputs_embeds"],
            attention_mask=made["attention_mask"],
            position_ids=made["position_ids"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def ask(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """A batch of questions, one for each video, for `answer`."""
        lines = [encode_turns(self.tokenizer, [(question, None)]) for question in questions]
        batch = collate_turns(lines, self.tokenizer.pad_token_id or 0, left=True)
        del batch["labels"]
        return {name: value.to(self.device) for name, value in batch.items()}

    def save_pretrained(self, folder: str | Path, **meta: Any) -> Path:
        """Writes config.json, parts.safetensors (encoder, projector, methods) and the language model in llm/.

        The folder needs no other one to be loaded. Adapters are merged. All of it is written, or nothing.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; what it held before is still there.
        """
        llm = self.llm.merge_and_unload() if hasattr(self.llm, "merge_and_unload") else self.llm
        with files.whole_folder(folder, last="config.json") as place:
            try:
                llm.save_pretrained(place / "llm", safe_serialization=True)
            except SafetensorError as error:
                raise files.as_os_error(error, Path(folder) / "llm") from None
            self.tokenizer.save_pretrained(place / "llm")
            state = {name: value for name, value in self.state_dict().items() if not name.startswith("llm.")}
            files.save(place / "parts.safetensors", "video_llm", state, {"spec": self.compressor.spec})
            shape = {"vit": asdict(self.encoder.config), "mean": self.frames.mean, "std": self.frames.std}
            config = {"encoder": shape, "spec": self.compressor.spec, "pool": self.pool, "positions": self.positions}
            files.write_json(place / "config.json", {"fewtokens_model": KIND, "config": config, **meta})
        return Path(folder)


def is_video_llm(folder: str | Path) -> bool:
    """Whether a folder holds a model that `ComposedVideoLLM.save_pretrained` wrote."""
    try:
        return read_config(folder)["fewtokens_model"] == KIND
    except ValueError:
        return False


def language_width(folder: str | Path) -> int:
    """Channels of the language model of a saved model, without loading it."""
    return int(read_json(Path(folder) / "llm" / "config.json")["hidden_size"])


def load_video_llm(
    folder: str | Path, *, spec: str | None = None, device: str = "auto", batch: int = 256
) -> ComposedVideoLLM:
    """A model from a folder that `save_pretrained` wrote, in eval mode.

    Args:
        spec: other methods than it was saved with; their parameters, where they have some, begin anew.
        batch: frames that the encoder sees at once.

    Raises:
        ValueError: what is missing, damaged or does not fit.
    """
    folder = Path(folder)
    said = read_config(folder)
    if said["fewtokens_model"] != KIND:
        raise ValueError(f"{folder}: holds a {said['fewtokens_model']!r}, not a video language model")
    config = said["config"]
    shape = config["encoder"]
    said_vit: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in shape["vit"].items()}
    vit = ViT(ViTConfig(**said_vit))
    frames = VitEncoder(vit, name=str(folder), batch=batch, mean=shape["mean"], std=shape["std"])
    llm, tokenizer = load_language_model(folder / "llm")
    made = ComposedVideoLLM(
        frames, llm, tokenizer, spec=config["spec"], pool=config["pool"], positions=config["positions"]
    )
    tensors, _ = files.load(folder / "parts.safetensors", "video_llm")
    own = {name: value for name, value in made.state_dict().items() if not name.startswith("llm.")}
    files.check_fit(own, tensors, f"{folder}: does not fit this video language model")
    made.load_state_dict(tensors, strict=False)
    if spec is not None:
        made.reduce_with(spec)
    return made.to(pick_device(device)).eval()


def build_video_llm(
    encoder: str | Path,
    llm: str | Path,
    *,
    spec: str = "",
    pool: int = 1,
    positions: str = "keep",
    device: str = "auto",
    **options: Any,
) -> ComposedVideoLLM:
    """A model of an encoder and a causal language model, each a folder or a hub id; the projector is drawn anew.

    Raises:
        ValueError: one of them cannot be loaded, or has no weights in safetensors.
    """
    frames: Any = load_encoder(encoder, device=device, **options)
    language, tokenizer = load_language_model(llm)
    return ComposedVideoLLM(frames, language, tokenizer, spec=spec, pool=pool, positions=positions).to(
        pick_device(device)
    )


def load_language_model(name: str | Path) -> tuple[Any, Any]:
    """A causal language model of transformers and its tokenizer, from a folder or by hub id (safetensors only), or from
    a .gguf file, whose weights become float32.

    Raises:
        ValueError: what transformers says, in one line.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError("a language model needs transformers; pip install 'fewtokens[llm]'") from None
    packed = str(name).lower().endswith(".gguf")
    try:
        if packed:
            llm, tokenizer = _from_gguf(Path(name))
        else:
            llm = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # whatever transformers says about a folder that it cannot load
        raise ValueError(
            f"{name}: no causal language model that can be loaded ({' '.join(str(error).split())[:200]})"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return llm, tokenizer


def _from_gguf(file: Path) -> tuple[Any, Any]:
    """A model and its tokenizer out of a GGUF file."""
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise ValueError("no such file")
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise ValueError(f"a .gguf file needs {' and '.join(missing)}; pip install 'fewtokens[gguf]'")
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers saves no model that it knows to come from such a file, although its weights are plain ones by now.
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    llm.load_state_dict(read.state_dict())
    llm.generation_config = read.generation_config
    return llm.eval(), tokenizer
