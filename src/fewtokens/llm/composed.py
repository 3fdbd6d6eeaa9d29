"""A video language model composed of a video encoder, a projector, methods and a causal language model.

    frames -> encoder -> [pool x pool patches concatenated] -> projector -> methods -> language model
                                                                         [-> streams -> its decoder layers]

A second encoder, with a separate projector, may see the frames in segments, like the video encoder of VideoGPT+ (arXiv
2406.09418), which also has an image encoder; its tokens follow those of the first.

The methods follow the projector and work at the hidden size of the language model, as in VQToken (arXiv 2503.16980,
section 4). `compress`, `attach` and `Session` use it as one more backend: it takes prompts and features as the models
of transformers do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fewtokens.core import files, registry
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.legacy import current_spec
from fewtokens.core.method import weights_follow
from fewtokens.core.pipeline import Pipeline, check_received
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import ViT, VitEncoder, load_encoder, pick_device
from fewtokens.encoders.config import make_vit_config
from fewtokens.llm.chains import split_inside
from fewtokens.llm.chat import VIDEO_MARKER, collate_turns, encode_turns
from fewtokens.llm.compress import compress
from fewtokens.llm.interface import CACHE_NAMES, cache_name, cache_of, is_filled, unwrap
from fewtokens.llm.layers.streams import Streams
from fewtokens.llm.prompt_editor import Compressed
from fewtokens.llm.tower import TOWER_CUES
from fewtokens.networks.base import read_config
from fewtokens.networks.encoder import ModelEncoder

KIND = "video_llm"
# The inputs that describe a video, see `ComposedVideoLLM.forward`.
VIDEO_INPUTS = ("pixel_values_videos", "video_times", "video_cells", "video_grid", "video_cues")
# The number of frames that a second encoder sees at once, as in VideoGPT+.
SEGMENT = 4


@dataclass(frozen=True)
class ComposedConfig:
    """The parts of a config that `compress` and `Session` read: the language model's config and the id of a video."""

    text_config: Any
    model_type: ClassVar[str] = "composed"
    video_token_id: ClassVar[int] = VIDEO_MARKER

    def get_text_config(self) -> Any:
        return self.text_config


class ComposedVideoLLM(nn.Module):
    """A video encoder, a projector, methods and a causal language model.

    Args:
        encoder: a ViT that encodes frame by frame.
        llm: a causal language model of transformers.
        tokenizer: its tokenizer.
        spec: methods of the stages pixels and tokens, and trained ones inside the language model, such as
            "spatial_pool(2) | videollm_mod(keep=0.5)"; "" keeps every token.
        pool: pool x pool patches become one token, with their channels concatenated (pixel shuffle).
        positions: "keep" gives a token the position of its nearest cell and leaves those of the text unchanged;
            "renumber" counts the columns of the prompt, as in VQToken.
        streams: a preset of `Streams`, through which the language model also reads the tokens before the methods; ""
            for none.
        encoder2: a second encoder, usually a network for clips: a ViT, or a network that `fewtokens train` saved. The
            methods reduce the tokens of each encoder separately: a count is shared by their numbers of cells, and
            learned methods apply theirs to each. The prompt has all tokens of the first encoder, then those of the
            second. "spatial_pool(stride=2)" is the adaptive pooling of VideoGPT+.
        segment: the number of frames that the second encoder sees at once. The last frame is repeated to fill the last
            segment.

    Attributes:
        compressor: the methods before the language model.
        inside: those inside it, which always run; None if there are none.
        streams: the `Streams`, or None.
        video_encoder: the encoder, of which `encoder` is the network.
        current_features: the encoder's output that the language model is reading, by modality.
    """

    def __init__(
        self,
        encoder: VitEncoder,
        llm: Any,
        tokenizer: Any,
        *,
        spec: str = "",
        pool: int = 1,
        positions: str = "keep",
        streams: str = "",
        encoder2: Encoder | None = None,
        segment: int = SEGMENT,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, VitEncoder):
            raise ValueError(
                f"{encoder.id} cannot be trained in a video language model; use a ViT that fewtokens implements"
            )
        if pool < 1:
            raise ValueError(f"pool must be at least 1, got {pool}")
        if positions not in ("keep", "renumber"):
            raise ValueError(f"positions must be 'keep' or 'renumber', got {positions!r}")
        if encoder2 is not None and not isinstance(encoder2, VitEncoder | ModelEncoder):
            raise ValueError(
                f"{encoder2.id} cannot be trained in a video language model; use a ViT, or a network that fewtokens "
                "trained"
            )
        if isinstance(encoder2, ModelEncoder) and encoder2.model.config.learner and not encoder2.model.config.fuser:
            raise ValueError(
                f"{encoder2.id} has a learner, so that its last tokens form no grid; use a network without"
            )
        if segment < 1:
            raise ValueError(f"segment must be at least 1 frame, got {segment}")
        if encoder2 is not None and streams:
            raise ValueError("streams read the tokens of one encoder; use them without a second encoder")
        self.tokenizer, self.pool, self.positions = tokenizer, pool, positions
        self.encoder, self.llm = encoder.vit, llm
        # Not registered as a module: its parameters are those of `encoder`.
        object.__setattr__(self, "video_encoder", encoder)
        self.dim: int = llm.get_input_embeddings().weight.shape[1]
        self.projector = self._make_projector(encoder)
        self.encoder2, self.segment = encoder2, segment
        if isinstance(encoder2, ModelEncoder):  # its head does not act on the tokens
            encoder2.model.head.requires_grad_(False)
        self.projector2 = None if encoder2 is None else self._make_projector(encoder2)
        self.current_features: dict[str, Any] = {}
        self._checkpointing = False
        self.reduce_with(spec)
        self.streams = Streams(self.language_model, streams) if streams else None

    video_encoder: VitEncoder
    inside: Any  # an nn.ModuleList, or None

    def _make_projector(self, encoder: Encoder) -> nn.Sequential:
        return nn.Sequential(nn.Linear(encoder.dim * self.pool**2, self.dim), nn.GELU(), nn.Linear(self.dim, self.dim))

    @property
    def device(self) -> torch.device:
        return self.llm.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the language model."""
        return self.llm.get_input_embeddings().weight.dtype

    @property
    def config(self) -> ComposedConfig:
        return ComposedConfig(self.llm.config)

    @property
    def generation_config(self) -> Any:
        return self.llm.generation_config

    @property
    def causal_lm(self) -> Any:
        """The language model with its head, without the wrapper of adapters."""
        return unwrap(self.llm)

    @property
    def base_model(self) -> ComposedVideoLLM:
        """The module that has the encoder and the language model: this one."""
        return self

    @property
    def language_model(self) -> Any:
        """The language model without its head."""
        return self.causal_lm.base_model

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    @property
    def checkpointing(self) -> bool:
        """Whether the language model recomputes activations in the backward pass."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, enabled: bool) -> None:
        if enabled and self.inside is not None:
            raise ValueError(
                "methods inside the language model cannot be trained with recomputed activations; use "
                "--set checkpointing=false"
            )
        self._checkpointing = enabled
        # "activation" since transformers 5.23, "gradient" before.
        prefix = "activation" if hasattr(self.llm, "activation_checkpointing_enable") else "gradient"
        getattr(self.llm, f"{prefix}_checkpointing_{'enable' if enabled else 'disable'}")()

    def reduce_with(self, spec: str) -> ComposedVideoLLM:
        """Replaces the chain of methods; the parameters of learned methods start at random.

        Raises:
            ValueError: a method acts inside an encoder, or inside a language model without being trained, or needs a
                cue that is not available.
        """
        methods, inside = split_inside(registry.build(spec, dim=self.dim) if spec.strip() else [])
        trained = [method for method in inside if isinstance(method, nn.Module)]
        for layer_method in inside:
            if layer_method not in trained:
                raise ValueError(
                    f"{layer_method.name} acts inside the language model and has no parameters to train; use `with "
                    "attach(model, ...)`, or a Session"
                )
        for method in methods:
            if unknown := set(getattr(method, "needs", ())) - set(self.cues):
                kind = "composed models" if self.encoder2 is None else "composed models with two encoders"
                raise ValueError(f"{method.name} needs {' and '.join(sorted(unknown))}, which {kind} cannot provide")
            check_received(method, "the encoder of a composed model")
        self.compressor = Pipeline(methods).to(self.device)
        self.inside = nn.ModuleList(trained).to(self.device) if trained else None
        return self

    @property
    def spec(self) -> str:
        """The spec of its methods, those inside the language model included."""
        return " | ".join(filter(None, [self.compressor.spec, *(method.spec for method in self.inside or ())]))

    @property
    def cues(self) -> tuple[str, ...]:
        """The cues that its methods may need; those of the pixels and of the encoder belong to a single encoder."""
        return ("text", "frame_global", *(("pixels", *TOWER_CUES) if self.encoder2 is None else ()))

    def cells(self, frames: Tensor, times: Tensor | None = None) -> tuple[Tensor, Grid]:
        """Encodes frames uint8 [B,T,3,H,W]; returns cells [B,S,pool*pool*C] and their grid.

        No gradient flows if the encoder is frozen.
        """
        tokens = self._encode(self.video_encoder, frames, times)
        grid = self._pooled(tokens.grid)
        return self._shuffle(tokens.features, grid), grid

    def segment_cells(self, frames: Tensor, times: Tensor | None = None) -> tuple[Tensor, Grid]:
        """As `cells`, with the second encoder, which sees `segment` frames at a time."""
        assert self.encoder2 is not None
        grid = self._segment_grid(frames, times)
        filled = torch.cat([frames, frames[:, -1:].expand(-1, -frames.shape[1] % self.segment, -1, -1, -1)], 1)
        tokens = self._encode(self.encoder2, filled.unflatten(1, (-1, self.segment)).flatten(0, 1))
        return self._shuffle(tokens.features.reshape(len(frames), -1, tokens.C), grid), grid

    def _encode(self, encoder: Encoder, frames: Tensor, times: Tensor | None = None) -> Tokens:
        trained = any(parameter.requires_grad for parameter in encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            tokens, _ = encoder(frames, times)
        return tokens

    def _shuffle(self, features: Tensor, grid: Grid) -> Tensor:
        """Concatenates the channels of pool x pool patches [B,T*H*p*W*p,C]: cells [B,S,p*p*C] of a grid."""
        p = self.pool
        x = features.reshape(len(features), grid.T, grid.H, p, grid.W, p, -1)
        return x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4).flatten(1, 3)

    def pool_cue(self, cue: Tensor, grid: Grid) -> Tensor:
        """Averages a cue of the encoder's patches, [N] or [N,c], over the patches of each cell of a grid."""
        p = self.pool
        return cue.float().reshape(grid.T, grid.H, p, grid.W, p, *cue.shape[1:]).mean((2, 4)).flatten(0, 2)

    def _pooled(self, grid: Grid) -> Grid:
        p = self.pool
        if grid.H % p or grid.W % p:
            raise ValueError(f"frames of {grid.H} x {grid.W} patches cannot be pooled by {p}; use another size")
        return Grid(grid.T, grid.H // p, grid.W // p, grid.times)

    def _segment_grid(self, frames: Tensor, times: Tensor | None) -> Grid:
        assert self.encoder2 is not None
        T, _, height, width = frames.shape[1:]
        spare = -T % self.segment
        if times is not None:
            times = torch.cat([times, times[..., -1:].expand(*times.shape[:-1], spare)], -1)
        grid = self.encoder2.grid(T + spare, height, width, times)
        steps = self.encoder2.grid(self.segment, height, width).T
        if grid.T * self.segment != steps * (T + spare):
            raise ValueError(f"segments of {self.segment} frames cannot be divided into the tubelets of the encoder")
        return self._pooled(grid)

    def grids_of(self, inputs: dict[str, Any]) -> list[Grid]:
        """The grid of the videos in the inputs of `forward`, for each encoder.

        Raises:
            ValueError: cells instead of frames, for a model with two encoders.
        """
        frames, times = inputs.get("pixel_values_videos"), inputs.get("video_times")
        if frames is None and self.encoder2 is not None:
            raise ValueError("a model with two encoders requires the frames (pixel_values_videos), not encoded cells")
        if inputs.get("video_grid") is not None:
            return [inputs["video_grid"]]
        assert frames is not None
        T, _, height, width = frames.shape[1:]
        first = self._pooled(self.video_encoder.grid(T, height, width, times))
        return [first] if self.encoder2 is None else [first, self._segment_grid(frames, times)]

    def project(self, cells: Tensor) -> Tensor:
        """Projects cells [B,S,pool*pool*C] to the hidden size of the language model, [B,S,D]."""
        return _project(self.projector, cells)

    def rows(self, inputs: dict[str, Any]) -> Tensor:
        """The tokens of the videos in the inputs of `forward` before the methods, those of each encoder in turn."""
        cells, times = inputs.get("video_cells"), inputs.get("video_times")
        if cells is None:
            cells, _ = self.cells(inputs["pixel_values_videos"], times)
        rows = self.project(cells)
        if self.projector2 is None:
            return rows
        cells, _ = self.segment_cells(inputs["pixel_values_videos"], times)
        return torch.cat([rows, _project(self.projector2, cells)], 1)

    def compress(self, inputs: dict[str, Any]) -> Compressed:
        """Shortens the prompts of `forward` with the model's own methods."""
        return compress(self, self._expand_markers(inputs), self.compressor)

    def _expand_markers(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Repeats the marker of a video for each of its cells, if each prompt has only one."""
        ids = inputs["input_ids"]
        marked = ids == VIDEO_MARKER
        cells = sum(grid.cells for grid in self.grids_of(inputs)) if bool((marked.sum(1) == 1).all()) else 1
        if cells == 1:
            return inputs
        repeats = torch.where(marked, cells, 1).flatten()
        names = ("input_ids", "attention_mask", "labels")
        columns = {name: inputs[name] for name in names if inputs.get(name) is not None}
        expanded = {name: v.flatten().repeat_interleave(repeats).reshape(len(ids), -1) for name, v in columns.items()}
        return inputs | expanded

    def embed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the inputs of the language model: embeddings with the rows of `mm_encoder_outputs` inserted."""
        inputs = dict(inputs)
        ids, mask, outputs = inputs.pop("input_ids"), inputs.get("attention_mask"), inputs.pop("mm_encoder_outputs", {})
        embedded = self.get_input_embeddings()(ids.clamp(min=0))
        if outputs:
            rows = torch.cat(list(outputs["video"].pooler_output)).to(embedded.dtype)
            embedded = embedded.masked_scatter((ids == VIDEO_MARKER)[..., None], rows)
        if inputs.get("position_ids") is None and mask is not None and not is_filled(cache_of(inputs)):
            inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        return inputs | {"inputs_embeds": embedded}

    @contextmanager
    def _reading(self, outputs: dict[str, Any] | None) -> Iterator[None]:
        """Makes the features that the language model reads available to the methods inside it."""
        self.current_features = outputs or {}
        streams = self.streams.reading(outputs["video"]) if outputs and self.streams is not None else nullcontext()
        try:
            with streams:
                yield
        finally:
            self.current_features = {}

    def _running_inside(self) -> AbstractContextManager[Any]:
        """Hooks the methods inside the language model into its layers."""
        if self.inside is None:
            return nullcontext()
        from fewtokens.llm.layers.hooks import LayerRuntime

        return LayerRuntime(self, list(self.inside)).attach()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        mm_encoder_outputs: Any = None,
        **inputs: Any,
    ) -> Any:
        """Runs the language model on prompts; the model's own methods reduce videos given as frames or cells.

        Args:
            input_ids: int64 [B,L]; `VIDEO_MARKER` stands for the video of a prompt, once or once for each of its rows.
            attention_mask, labels: [B,L].
            position_ids: [B,L]; only without frames or cells, whose tokens have their own positions.
            mm_encoder_outputs: features of the videos, as `compress` returns them.
            inputs: pixel_values_videos uint8 [B,T,3,H,W] and video_times [B,T], or video_cells [B,S,C] (of `cells`),
                their video_grid and, if methods read cues of the encoder, video_cues, [B,S] or [B,S,c] by name (of
                `pool_cue`); and any other input of the language model.

        Returns:
            The output of the language model, with the mean loss over the labels.
        """
        columns = {"attention_mask": attention_mask, "position_ids": position_ids, "labels": labels}
        optional = columns | {"mm_encoder_outputs": mm_encoder_outputs}
        prompt = inputs | {"input_ids": input_ids} | {name: v for name, v in optional.items() if v is not None}
        if any(prompt.get(name) is not None for name in VIDEO_INPUTS):
            if position_ids is not None:
                raise ValueError("leave out position_ids in prompts with a video; see the argument positions instead")
            prompt = self.compress(prompt).inputs
        if labels is not None:
            prompt.setdefault("use_cache", False)
        if past_key_values is not None:
            prompt[cache_name(self.causal_lm)] = past_key_values
        with self._reading(prompt.get("mm_encoder_outputs")), self._running_inside():
            output = self.llm(**self.embed(prompt))
        if labels is not None:
            losses = [method.auxiliary_loss() for method in self.inside or ()]
            output.loss = sum((loss for loss in losses if loss is not None), output.loss)
        return output

    @torch.no_grad()
    def generate(self, input_ids: Tensor, *, streamer: Any = None, **inputs: Any) -> Any:
        """Runs the language model's `generate` on the prompts of `forward`; its sequences begin with the prompt."""
        options = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": self.tokenizer.eos_token_id} | inputs
        prompt = options | {"input_ids": input_ids}
        if any(prompt.get(name) is not None for name in VIDEO_INPUTS):
            prompt = self.compress(prompt).inputs
        if (cache := cache_of(prompt)) is not None:
            prompt = {name: v for name, v in prompt.items() if name not in CACHE_NAMES} | {
                cache_name(self.causal_lm): cache
            }
        ids, outputs = prompt["input_ids"], prompt.get("mm_encoder_outputs")
        # The rows of an earlier turn's video are in the cache; its ids only count columns.
        text_ids = ids.masked_fill(ids == VIDEO_MARKER, options["pad_token_id"] or 0)
        if outputs:
            if streamer is not None:
                streamer.put(text_ids.cpu())  # as for a prompt of ids
            with self._reading(outputs), self._running_inside():
                output = self.llm.generate(**self.embed(prompt), streamer=streamer)
        else:
            with self._running_inside():
                output = self.llm.generate(**prompt | {"input_ids": text_ids}, streamer=streamer)
        sequences = output if isinstance(output, Tensor) else output.sequences
        new = sequences if outputs else sequences[:, ids.shape[1] :]
        full = torch.cat([ids.repeat_interleave(len(new) // len(ids), 0), new], 1)
        if isinstance(output, Tensor):
            return full
        output.sequences = full
        return output

    def answer(self, inputs: dict[str, Any], *, max_new_tokens: int = 8) -> list[str]:
        """Answers questions (`encode_questions`) about the videos in the inputs of `forward` by greedy decoding."""
        with torch.no_grad():
            short = self.compress({name: value for name, value in inputs.items() if name != "labels"}).inputs
        ids = self.generate(**short, max_new_tokens=max_new_tokens, do_sample=False)[:, short["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def encode_questions(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Encodes questions as prompts, one per video, padded on the left: input_ids and attention_mask [B,L]."""
        encoded = [encode_turns(self.tokenizer, [(question, None)]) for question in questions]
        batch = collate_turns(encoded, self.tokenizer.pad_token_id or 0, left=True)
        return {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def save_pretrained(self, folder: str | Path, **meta: Any) -> Path:
        """Writes config.json, the language model in llm/, a second encoder in encoder2/, and parts.safetensors.

        The folder is self-contained. Adapters are merged. Either all files are written or none.

        Raises:
            OSError: the disk is full, or the folder is not writable; its previous content is unchanged.
        """
        llm = self.llm.merge_and_unload() if hasattr(self.llm, "merge_and_unload") else self.llm
        with files.atomic_folder(folder, last="config.json") as temporary:
            try:
                llm.save_pretrained(temporary / "llm", safe_serialization=True)
            except SafetensorError as error:
                raise files.as_os_error(error, Path(folder) / "llm") from None
            self.tokenizer.save_pretrained(temporary / "llm")
            if self.encoder2 is not None:
                self.encoder2.save_pretrained(temporary / "encoder2")
            files.save(temporary / "parts.safetensors", "video_llm", self._own_state(), {"spec": self.spec})
            shape = {"vit": asdict(self.encoder.config), "mean": self.video_encoder.mean, "std": self.video_encoder.std}
            config = {"encoder": shape, "spec": self.spec, "pool": self.pool, "positions": self.positions}
            if self.streams is not None:
                config["streams"] = self.streams.spec
            if self.encoder2 is not None:
                config["segment"] = self.segment
            files.write_json(temporary / "config.json", {"fewtokens_model": KIND, "config": config, **meta})
        return Path(folder)

    def _own_state(self) -> dict[str, Tensor]:
        """The parameters that are in parts.safetensors: all but those of parts with a folder."""
        return {name: v for name, v in self.state_dict().items() if not name.startswith(("llm.", "encoder2."))}


def _project(projector: nn.Sequential, cells: Tensor) -> Tensor:
    first = projector[0]
    assert isinstance(first, nn.Linear)
    return projector(cells.to(first.weight.dtype))


def is_video_llm(folder: str | Path) -> bool:
    """Whether a folder contains a model that `ComposedVideoLLM.save_pretrained` wrote."""
    try:
        return read_config(folder)["fewtokens_model"] == KIND
    except ValueError:
        return False


def saved_config(folder: str | Path) -> ComposedConfig:
    """The config of a saved model, without its weights."""
    from transformers import AutoConfig

    try:
        return ComposedConfig(AutoConfig.from_pretrained(Path(folder) / "llm", trust_remote_code=False))
    except Exception as error:  # transformers raises any type of error for a folder that it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot read llm/config.json ({reason})") from None


def load_video_llm(
    folder: str | Path, *, spec: str | None = None, device: str = "auto", batch: int = 256
) -> ComposedVideoLLM:
    """Loads a model from a folder that `save_pretrained` wrote, in eval mode.

    Args:
        spec: methods that replace the saved ones; the parameters of learned methods start at random.
        batch: the number of frames that the encoder processes in one call.

    Raises:
        ValueError: a file is missing, damaged or does not match the config.
    """
    folder = Path(folder)
    saved = read_config(folder)
    if saved["fewtokens_model"] != KIND:
        raise ValueError(f"{folder}: contains a {saved['fewtokens_model']!r}, not a video language model")
    config = saved["config"]
    shape = config["encoder"]
    vit = ViT(make_vit_config(shape["vit"], f"{folder / 'config.json'}: vit"))
    frames = VitEncoder(vit, name=str(folder), batch=batch, mean=shape["mean"], std=shape["std"])
    llm, tokenizer = load_language_model(folder / "llm")
    options = {name: config[name] for name in ("pool", "positions", "streams", "segment") if name in config}
    if "segment" in config:
        options["encoder2"] = load_encoder(folder / "encoder2", device="cpu", batch=batch)
    with weights_follow():
        model = ComposedVideoLLM(frames, llm, tokenizer, spec=current_spec(config["spec"]), **options)
    tensors, _ = files.load(folder / "parts.safetensors", "video_llm")
    files.check_fit(model._own_state(), tensors, f"{folder}: does not fit this video language model")
    model.load_state_dict(tensors, strict=False)
    if spec is not None:
        model.reduce_with(spec)
    return model.to(pick_device(device)).eval()


def build_video_llm(
    encoder: str | Path,
    llm: str | Path,
    *,
    spec: str = "",
    pool: int = 1,
    positions: str = "keep",
    streams: str = "",
    encoder2: str | Path | None = None,
    segment: int = SEGMENT,
    device: str = "auto",
    **options: Any,
) -> ComposedVideoLLM:
    """Builds a model from an encoder, or two, and a causal language model, each a folder or a hub id.

    The projectors start at random; for the other arguments see `ComposedVideoLLM`.

    Raises:
        ValueError: one of them cannot be loaded, or has no safetensors weights.
    """
    frames: Any = load_encoder(encoder, device=device, **options)
    language, tokenizer = load_language_model(llm)
    second = None if encoder2 is None else load_encoder(encoder2, device=device, **options)
    model = ComposedVideoLLM(
        frames, language, tokenizer, spec=spec, pool=pool, positions=positions, streams=streams, encoder2=second,
        segment=segment,
    )  # fmt: skip
    return model.to(pick_device(device))


def load_language_model(name: str | Path) -> tuple[Any, Any]:
    """Loads a causal language model of transformers and its tokenizer.

    Args:
        name: a folder or a hub id (safetensors only), or a .gguf file, whose weights become float32.

    Raises:
        ValueError: the model cannot be loaded; with the reason of transformers in one line.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError(
            "a language model requires transformers; install it with pip install 'fewtokens[llm]'"
        ) from None
    is_gguf = str(name).lower().endswith(".gguf")
    try:
        if is_gguf:
            llm, tokenizer = _from_gguf(Path(name))
        else:
            llm = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises any type of error for a folder that it cannot load
        raise ValueError(
            f"{name}: cannot be loaded as a causal language model ({' '.join(str(error).split())[:200]})"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return llm, tokenizer


def _from_gguf(file: Path) -> tuple[Any, Any]:
    """Loads a model and its tokenizer from a GGUF file."""
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise ValueError("no such file")
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise ValueError(f"a .gguf file requires {' and '.join(missing)}; install with pip install 'fewtokens[gguf]'")
    loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers refuses to save a model loaded from GGUF, although its weights are now ordinary tensors.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    llm.load_state_dict(loaded.state_dict())
    llm.generation_config = loaded.generation_config
    return llm.eval(), tokenizer
