"""`Pipeline`: an encoder and a chain of methods, each run at its stage.

video -> frames method -> pixels methods -> encoder (encoder methods inside) -> tokens methods -> Tokens
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fewtokens.core import files, registry
from fewtokens.core.batch import collate, concatenate
from fewtokens.core.encoder import Encoder as Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.hub import Pushable, from_hub
from fewtokens.core.identity import describe_source, rename_encoder_keys
from fewtokens.core.inputs import ACCEPTED, DEFAULT_SIZE, is_list_of_videos, read_video, to_frames
from fewtokens.core.legacy import current_spec
from fewtokens.core.method import CUES, STAGES, Method, Reducer, Resampler, weights_follow
from fewtokens.core.plain import conform
from fewtokens.core.plan import Plan
from fewtokens.core.selection import FrameSelector, Selection, pool_frames
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.load import load_encoder
from fewtokens.selection import Scorer, read, select_among
from fewtokens.video import Video

# Cues with one row per token; they are pooled to the tokens at the input of each method (`Tokens.pool`).
_PER_TOKEN = ("pixels", "keys", "attention", "shift", "sharpness")


class _Options(TypedDict, total=False):
    """Options of `load_encoder`, which rejects any others."""

    device: str
    dtype: str
    batch: int
    patch_size: int
    tubelet_size: int
    proportional: str


class _EncoderOptions(TypedDict, total=False):
    options: _Options


class _EncoderConfig(_EncoderOptions):
    """The value of `Encoder.describe`."""

    id: str
    fingerprint: str | None


class _Config(TypedDict):
    """The config.json of a saved pipeline."""

    spec: str
    encoder: _EncoderConfig | None


class Pipeline(Pushable, nn.Module):
    """An encoder followed by a chain of methods.

        pipeline = Pipeline("rlt | tome(keep=0.25)", load_encoder("patches"))
        tokens = pipeline(frames)

    Args:
        methods: a spec string, a method, or a sequence of methods. Their stages must be in the order frames, pixels,
            encoder, tokens, with at most one of the stage frames. "" or () keeps all tokens.
        encoder: required for frames; `Tokens` can be reduced without an encoder.

    Attributes:
        methods: the methods except that of the stage "frames", a `ModuleList`.
        selector: the method of the stage "frames", or None.
        encoder: the encoder, or None.

    Raises:
        ValueError: the spec is invalid, the stages are out of order, a method of stage "llm", a cue that
            the encoder does not provide, or a method that requires a full grid after one that drops or merges tokens.
    """

    def __init__(self, methods: str | Method | Sequence[Any] = (), encoder: Encoder | None = None) -> None:
        super().__init__()
        if isinstance(methods, str):
            # Learned methods are built with the encoder's number of channels.
            dim = {} if getattr(encoder, "dim", None) is None else {"dim": encoder.dim}  # type: ignore[union-attr]
            methods = registry.build(methods, **dim) if methods.strip() else ()
        methods = [methods] if isinstance(methods, Method | FrameSelector) else list(methods)
        selects = bool(methods) and isinstance(methods[0], FrameSelector)
        self.selector: FrameSelector | None = methods.pop(0) if selects else None
        for method in methods:
            if isinstance(method, Method):
                method.check_initialized()
        order = list(STAGES)
        stages = [method.stage for method in methods]
        for method in methods:
            if isinstance(method, FrameSelector):
                raise ValueError(f"{method.name} selects frames, so it must be the first method of the chain")
            if method.stage not in ("pixels", "encoder", "tokens"):
                raise ValueError(
                    f"{method.name} has the stage {method.stage!r}, but a pipeline accepts only pixels, encoder and "
                    "tokens; for the stage llm use fewtokens.attach"
                )
        self.methods = nn.ModuleList(methods)
        self.encoder = encoder
        if stages != sorted(stages, key=order.index):
            raise ValueError(f"stages must be in the order pixels, encoder, tokens; {self.spec!r} has {stages}")
        for index, method in enumerate(methods):
            reducing = [earlier for earlier in methods[:index] if not _keeps_all_tokens(earlier)]
            if method.full_grid and reducing:
                raise ValueError(
                    f"{method.name} works on whole frames: put it before methods that drop or merge tokens, "
                    f"such as {reducing[0].name}"
                )
        if encoder is not None:
            self._check_encoder(encoder)

    def _check_encoder(self, encoder: Encoder) -> None:
        for method in self._methods_at("encoder"):
            if not encoder.exposes_blocks:
                raise ValueError(
                    f"{method.name} acts between the blocks of an encoder, which {encoder.id} does not support; "
                    "use a ViT that fewtokens loads itself"
                )
        for method in [*self._methods_at("pixels"), *self._methods_at("tokens")]:
            for need in set(method.needs) - set(encoder.cues):
                raise ValueError(
                    f"{method.name} requires the cue {need} ({CUES[need]}), which {encoder.id} does not provide"
                )
            check_received(method, encoder.id)

    def _methods_at(self, stage: str) -> list[Method]:
        return [method for method in self.methods if isinstance(method, Method) and method.stage == stage]

    @property
    def needs(self) -> set[str]:
        """Names of the cues that the methods require."""
        return {need for method in self.methods if isinstance(method, Method) for need in method.needs}

    @property
    def spec(self) -> str:
        """The spec string of the chain."""
        selector = [] if self.selector is None else [self.selector.spec]
        return " | ".join([*selector, *(method.spec for method in self.methods if isinstance(method, Method))])

    def planned_count(self, grid: Grid) -> int | None:
        """Returns the number of tokens for one video of this grid, or None if it depends on the video."""
        count = grid.cells
        for method in self.methods:
            assert isinstance(method, Method)
            planned = method.planned_count(grid)
            # After a method with a threshold the count is unknown, even if a later method has a budget.
            if planned is None:
                return None
            if isinstance(method, Resampler):
                count = planned
            elif isinstance(method, Reducer) or not _keeps_all_tokens(method):  # there may be more tokens than cells
                count = min(count, planned)
        return count

    def forward(
        self,
        video: Any,
        times: Tensor | None = None,
        *,
        question: str | None = None,
        scorer: str | Scorer | None = None,
        **cues: Tensor,
    ) -> Tokens:
        """Encodes and reduces videos.

        A selector reads its frames itself if `video` is a path, selects among the given frames otherwise, and has no
        effect on a `Video` from `read(select=)`. Frames of several sizes are encoded at full size, and the cells of
        each are then averaged to its own grid.

        Args:
            video: with an encoder: a path (16 frames are read, with a short side of 224 pixels; use `fewtokens.read`
                for other settings), a `Video`, frames [T,3,H,W] or [B,T,3,H,W] (uint8, or float in 0..1), an image
                [3,H,W], a NumPy array (channels first or last), PIL images, or a list of videos. Without an encoder:
                `Tokens`, to which the methods of the stages "pixels" and "tokens" are applied.
            times: seconds of each frame, [T] or [B,T]. Not accepted with a list of videos.
            question, scorer: for a selector, see `fewtokens.read`.
            cues: cues that the encoder does not provide, or that `Tokens` need, by name; see
                `fewtokens.core.method.CUES`. Not accepted with a list of videos.

        Returns:
            Tokens of all videos in one batch; `meta` contains the spec, the encoder and, for one video that was read
            from a path, its source and how it was read, so that `fewtokens show` finds its frames.

        Raises:
            ValueError: invalid input, frames without an encoder, or a missing cue.
        """
        if is_list_of_videos(video):
            if not video:
                raise ValueError(f"empty list of videos; a video must be {ACCEPTED}")
            if times is not None or cues:
                raise ValueError("times and cues are not accepted with a list of videos; run each video separately")
            return collate([self(item, question=question, scorer=scorer) for item in video])
        if self.selector is None and (question is not None or scorer is not None):
            raise ValueError("question and scorer require a method of the stage frames at the start of the chain")

        def run(method: Method, tokens: Tokens, **cues: Any) -> Tokens:
            return method(tokens, **cues)

        if isinstance(video, str | os.PathLike):
            video = (
                read_video(video)
                if self.selector is None
                else read(os.fspath(video), select=self.selector, question=question, scorer=scorer, size=DEFAULT_SIZE)
            )
        selection = video.selection if isinstance(video, Video) else None
        if self.selector is not None and selection is None:
            if isinstance(video, Tokens):
                raise ValueError(
                    f"{self.selector.name} selects frames before encoding; pass a path or frames, not tokens"
                )
            frames, times = to_frames(video, times)
            if len(frames) != 1:
                raise ValueError(f"{self.selector.name} selects frames of one video at a time, got {len(frames)}")
            times = torch.arange(frames.shape[1]) if times is None else torch.as_tensor(times).reshape(-1)
            selection = select_among(self.selector, frames[0], times, question=question, scorer=scorer)
            video, times = frames[:, selection.index.to(frames.device)], times[selection.index]
        tokens = self._run(video, times, cues, run, selection=selection)
        if isinstance(video, Video) and video.path is not None and video.reading is not None:
            with suppress(OSError):  # the file may have been removed since it was read
                source = {**describe_source(Path(video.path)), "name": video.name}
                tokens = tokens.replace(meta={**tokens.meta, "source": source, "reading": dict(video.reading)})
        return tokens

    def step(
        self, video: Any, state: Sequence[Any] | None = None, times: Tensor | None = None, **cues: Tensor
    ) -> tuple[Tokens, list[Any]]:
        """Processes the next frames of a stream.

            state, chunks = None, []
            for video in fewtokens.stream("clip.mp4", chunk=32):
                tokens, state = pipeline.step(video, state)
                chunks.append(tokens)
            tokens = pipeline.join(chunks)

        Args:
            video: the next frames or tokens, see `forward`.
            state: the state that the previous call returned, or None at the start. Its size is bounded.
            times: seconds of each frame, [T] or [B,T].
            cues: cues that the encoder does not provide, or that `Tokens` need, by name.

        Returns:
            Tokens on the grid of these frames, and the new state, one entry per method. Cells whose token is in an
            earlier chunk count as dropped until `join` combines the chunks.

        Raises:
            ValueError: a method is not causal.
        """
        self.check_causal()
        states = dict(zip(map(id, self.methods), state or [None] * len(self.methods), strict=True))

        def run(method: Method, tokens: Tokens, **cues: Any) -> Tokens:
            if method.stage == "encoder":  # processes one frame at a time, so it has no state
                return method(tokens, **cues)
            tokens, states[id(method)] = method.step(tokens, states[id(method)], **cues)
            return tokens

        return self._run(video, times, cues, run), [states[id(method)] for method in self.methods]

    def resume(self, tokens: Tokens, plans: Sequence[Plan], **cues: Tensor) -> Tokens:
        """Reduces `Tokens` as `forward`, where the first methods have already decided.

        Args:
            tokens: the tokens before the first method.
            plans: the plans of the first methods, which are applied in their place; their stage may be "encoder".
            cues: see `forward`; those of the first methods are not needed.
        """
        decided = {id(method): plan for method, plan in zip(self.methods, plans, strict=False)}

        def run(method: Method, tokens: Tokens, **cues: Any) -> Tokens:
            plan = decided.get(id(method))
            return method(tokens, **cues) if plan is None else tokens.apply(plan)

        return self._run(tokens, None, cues, run, decided=len(plans))

    def check_causal(self) -> None:
        """Checks that all methods can be streamed.

        A method that compares frames cannot follow one whose tokens extend into later chunks (`rlt`), since later
        chunks do not contain these tokens.

        Raises:
            ValueError: a method cannot be streamed; the message lists the methods that can.
        """
        reducers = [method for method in self.methods if isinstance(method, Reducer) and method.stage != "encoder"]
        extending = [method for method in reducers if type(method).join is not Method.join]
        for reducer in reducers:
            if extending and reducer is not extending[0] and reducer.causal:
                raise ValueError(
                    f"{reducer.name} cannot be streamed after {extending[0].name}, "
                    "whose tokens extend into later chunks"
                )
        if self.selector is not None:
            raise ValueError(f"{self.selector.spec} selects among all frames of a video and cannot be streamed")
        for method in self.methods:
            if isinstance(method, Method) and method.stage != "encoder" and not method.causal:
                raise ValueError(
                    f"{method.spec} is not causal and cannot be streamed. Streaming methods (with a threshold): "
                    f"{', '.join(registry.streaming_names())}"
                )

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        """Combines the outputs of `step` into the result for the full video."""
        custom = [m for m in self.methods if isinstance(m, Method) and type(m).join is not Method.join]
        return custom[-1].join(chunks) if custom else concatenate(chunks)

    def _run(
        self,
        video: Any,
        times: Tensor | None,
        cues: dict[str, Tensor],
        run: Callable[..., Tokens],
        *,
        decided: int = 0,
        selection: Selection | None = None,
    ) -> Tokens:
        """Encodes and reduces videos, calling `run(method, tokens, **cues)` for each method.

        The first `decided` methods may be of the stage "encoder" although tokens are given.
        """
        after = self._methods_at("tokens")
        if isinstance(video, Tokens):
            tokens = video
            if inside := self._methods_at("encoder")[decided:]:
                raise ValueError(f"{inside[0].name} acts inside an encoder; pass frames, not tokens")
            after = [method for method in self.methods if isinstance(method, Method)]
        else:
            if self.encoder is None:
                raise ValueError("frames require an encoder: Pipeline(spec, encoder=load_encoder('patches'))")
            frames, times = to_frames(video, times)
            before = self._methods_at("pixels")
            if not self.encoder.skips_dropped_patches:
                before, after = [], [*before, *after]
            needs = sorted({need for method in after for need in method.needs})
            tokens, encoder_cues = self.encoder(
                frames,
                times,
                needs=needs,
                pixel_methods=[partial(run, method) for method in before],
                block_methods=self._methods_at("encoder"),
            )
            cues = encoder_cues | cues
        start = tokens
        if selection is not None and not selection.full_size:
            tokens = tokens.apply(pool_frames(tokens, selection))
        for method in after:
            own = {name: cues[name] for name in (*method.needs, *method.optional_cues) if name in cues}
            pooled = {name: tokens.pool(cue, start) for name, cue in own.items() if name in _PER_TOKEN}
            tokens = run(method, tokens, **(own | pooled))
        meta = dict(tokens.meta) | {"spec": self.spec}
        if self.encoder is not None:
            meta["encoder"] = self.encoder.describe()
        return tokens.replace(meta=meta)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json and methods.safetensors. The write is atomic.

        The encoder is not copied; config.json contains its name, options and the SHA-256 of its weights.

        Args:
            folder: created if needed.

        Returns:
            The folder.

        Raises:
            ValueError: a method is not registered, so its spec cannot build it.
            OSError: the disk is full, or the folder is not writable.
        """
        for method in self.methods:
            assert isinstance(method, Method)
            if not registry.is_registered(method):
                raise ValueError(
                    f"{method.name} is not registered, so its spec cannot build it; register it with an entry point "
                    "fewtokens.methods, or save its parameters yourself"
                )
        encoder = None if self.encoder is None else self.encoder.describe()
        state = self._saved().state_dict()
        with files.atomic_folder(folder, last="config.json") as temporary:
            files.save(temporary / "methods.safetensors", "pipeline", state, {"spec": self.spec})
            files.write_json(temporary / "config.json", {"spec": self.spec, "encoder": encoder})
        return Path(folder)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, message: str = ""
    ) -> str:
        """Saves the pipeline and uploads the folder, see `Pushable.push_to_hub`. The encoder is not copied.

        Raises:
            ValueError: the encoder exists only on this machine, or the upload fails.
        """
        if self.encoder is not None and (Path(self.encoder.id).exists() or " " in self.encoder.id):
            raise ValueError(f"{self.encoder.id} exists only on this machine; push the encoder first")
        return super().push_to_hub(repo_id, private=private, token=token, message=message)

    @staticmethod
    def from_pretrained(folder: str | Path, encoder: Encoder | None = None, **options: Any) -> Pipeline:
        """Loads a pipeline written by `save_pretrained`.

        Args:
            folder: a folder, or a hub id.
            encoder: an encoder to use instead of loading it; its weights must be the same. Default: None.
            options: options of `load_encoder`: device, dtype, batch.

        Raises:
            ValueError: a file is missing, corrupt or does not fit, or the weights of the encoder differ.
        """
        if not Path(folder).exists():
            folder = from_hub(str(folder))
        config = Path(folder) / "config.json"
        if not config.is_file():
            raise ValueError(f"{folder}: no config.json, so not a saved pipeline")
        try:
            settings: _Config = conform(rename_encoder_keys(files.read_json(config)), _Config, str(config))
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{config}: ")
            raise ValueError(f"{config}: not the config of a saved pipeline ({reason})") from None
        spec, saved = current_spec(settings["spec"]), settings["encoder"]
        if saved is not None:
            if encoder is None:
                encoder_options: dict[str, Any] = {**saved.get("options", {}), **options}
                encoder = load_encoder(saved["id"], **encoder_options)
            assert encoder is not None
            if encoder.describe()["fingerprint"] != saved["fingerprint"]:
                raise ValueError(f"{folder}: was saved with different weights of the encoder {saved['id']}")
        with weights_follow():
            pipeline = Pipeline(spec, encoder)
        tensors, _ = files.load(Path(folder) / "methods.safetensors", "pipeline")
        files.check_fit(pipeline._saved().state_dict(), tensors, f"{folder}: the parameters do not fit {spec!r}")
        pipeline._saved().load_state_dict(tensors)
        return pipeline

    def _saved(self) -> nn.ModuleDict:
        """The modules whose parameters are saved."""
        parts: dict[str, nn.Module] = {str(index): method for index, method in enumerate(self.methods)}
        if isinstance(self.selector, nn.Module):
            parts["selector"] = self.selector
        return nn.ModuleDict(parts)


def check_received(method: Method, encoder: str) -> None:
    """Raises a ValueError if a method is set to read an attention that the encoders of fewtokens do not return."""
    rule = method.attention_rule
    if rule != method.published_attention and rule[:2] != (("received",), -1):
        raise ValueError(
            f"{method.name}: {encoder} provides only the attention received in its last block; the argument attention "
            "applies to the vision towers of language models"
        )


def _keeps_all_tokens(method: Method) -> bool:
    """Whether the method keeps one token per cell for any grid."""
    small, large = Grid(2, 3, 5), Grid(64, 64, 64)
    return not isinstance(method, Resampler) and all(method.planned_count(g) == g.cells for g in (small, large))
