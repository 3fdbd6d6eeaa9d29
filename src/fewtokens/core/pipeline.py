"""Video in, few tokens out: an encoder and a chain of methods, each run at its stage.

video -> pixels methods -> encoder (encoder methods inside) -> tokens methods -> Tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor, nn

from fewtokens.core import files, registry
from fewtokens.core.batch import collate, concatenate
from fewtokens.core.encoder import Encoder as Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.hub import Pushable, from_hub
from fewtokens.core.identity import with_current_names
from fewtokens.core.inputs import TAKES, frames_of, is_list_of_videos
from fewtokens.core.legacy import current_spec
from fewtokens.core.method import CUES, STAGES, Method, Reducer, Resampler
from fewtokens.core.plain import conform
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.load import load_encoder

# Cues with a row for each token; what a method is given belongs to the tokens that it is given (`Tokens.pool`).
_PER_TOKEN = ("pixels", "keys", "attention", "shift", "sharpness")


class _Options(TypedDict, total=False):
    """Options of `load_encoder`; it refuses others itself."""

    device: str
    dtype: str
    batch: int
    patch_size: int
    tubelet_size: int
    proportional: str


class _MoreOfEncoder(TypedDict, total=False):
    options: _Options


class _Named(_MoreOfEncoder):
    """What `Encoder.describe` gives."""

    id: str
    fingerprint: str | None


class _Config(TypedDict):
    """The config.json of a saved pipeline."""

    spec: str
    encoder: _Named | None


class Pipeline(Pushable, nn.Module):
    """An encoder and a chain of methods.

    Args:
        methods: a spec string such as "rlt | tome(keep=0.25)", or methods. Their stages must come in the
            order pixels, encoder, tokens. "" or () keeps every token.
        encoder: needed for frames; tokens can be reduced without one.

    Raises:
        ValueError: stages out of order, a method of another stage, a cue that the encoder cannot give, a method that
            wants a token for every cell behind one that leaves fewer.
    """

    def __init__(self, methods: str | Sequence[Method] = (), encoder: Encoder | None = None) -> None:
        super().__init__()
        if isinstance(methods, str):
            # Learned methods are built for the features of the encoder.
            dim = {} if getattr(encoder, "dim", None) is None else {"dim": encoder.dim}  # type: ignore[union-attr]
            methods = registry.build(methods, **dim) if methods.strip() else ()
        order = list(STAGES)
        stages = [method.stage for method in methods]
        for method in methods:
            if method.stage not in ("pixels", "encoder", "tokens"):
                raise ValueError(f"{method.name} acts inside a language model; a pipeline ends before it")
        self.methods = nn.ModuleList(methods)
        self.encoder = encoder
        if stages != sorted(stages, key=order.index):
            raise ValueError(f"stages must come in the order pixels, encoder, tokens; {self.spec!r} has {stages}")
        for number, method in enumerate(methods):
            earlier = [one for one in methods[:number] if not _keeps_every_token(one)]
            if method.full_grid and earlier:
                raise ValueError(
                    f"{method.name} works on whole frames: put it before methods that drop or merge tokens, "
                    f"such as {earlier[0].name}"
                )
        if encoder is not None:
            self._check(encoder)

    def _check(self, encoder: Encoder) -> None:
        for method in self._at("encoder"):
            if not encoder.exposes_blocks:
                raise ValueError(
                    f"{method.name} acts between the blocks of an encoder, which {encoder.id} does not allow; "
                    "use a ViT that fewtokens loads itself"
                )
        for method in [*self._at("pixels"), *self._at("tokens")]:
            for need in set(method.needs) - set(encoder.cues):
                raise ValueError(f"{method.name} needs {need} ({CUES[need]}), which {encoder.id} cannot give")

    def _at(self, stage: str) -> list[Method]:
        return [method for method in self.methods if isinstance(method, Method) and method.stage == stage]

    @property
    def needs(self) -> set[str]:
        """The cues that its methods need."""
        return {need for method in self.methods if isinstance(method, Method) for need in method.needs}

    @property
    def spec(self) -> str:
        """The spec string that builds the chain again."""
        return " | ".join(method.spec for method in self.methods if isinstance(method, Method))

    def planned_count(self, grid: Grid) -> int | None:
        """Tokens that come out for one video of this grid, or None where that depends on the video."""
        count: int | None = grid.cells
        for method in self.methods:
            assert isinstance(method, Method)
            planned = method.planned_count(grid)
            # A threshold method leaves an unknown number, a later budget may still be met by fewer.
            count = None if planned is None or count is None else min(count, planned)
        return count

    def forward(self, video: Any, times: Tensor | None = None, **cues: Tensor) -> Tokens:
        """Runs the chain.

        Args:
            video: a path (16 frames of it, the short side 224 pixels; `fewtokens.read` reads otherwise), a `Video`,
                frames [T,3,H,W] or [B,T,3,H,W] (uint8, or float in 0..1), an image [3,H,W], a NumPy array (channels
                first or last), PIL images, or a list of videos; all these need an encoder. Or `Tokens`, which go
                through the tokens methods (and pixels methods whose cue is given).
            times: seconds of each frame, [T] or [B,T].
            cues: what methods need beside tokens given as such; see `fewtokens.core.method.CUES`.

        Returns:
            Tokens of all videos; those of a list in one padded batch.

        Raises:
            ValueError: anything else, frames without an encoder, a missing cue.
        """
        if is_list_of_videos(video):
            if not video:
                raise ValueError(f"there is no video in an empty list: give {TAKES}")
            if times is not None or cues:
                raise ValueError("times and cues belong to one video; run a list of videos without them")
            return collate([self(one) for one in video])

        def run(method: Method, tokens: Tokens, **given: Any) -> Tokens:
            return method(tokens, **given)

        return self._run(video, times, cues, run)

    def step(
        self, video: Any, state: Sequence[Any] | None = None, times: Tensor | None = None, **cues: Tensor
    ) -> tuple[Tokens, list[Any]]:
        """The next frames of a stream: each causal method goes on from its state.

        Args:
            video: the next frames or tokens, as in `forward`.
            state: what the call before returned; None at the start. Its size is bounded.
            times, cues: as in `forward`.

        Returns:
            Tokens on the grid of these frames. Cells whose token lies in an earlier chunk count as dropped; `join`
            puts chunks together as the result for the whole video. And the state of each method.

        Raises:
            ValueError: a method that is not causal.
        """
        self.check_causal()
        states = dict(zip(map(id, self.methods), state or [None] * len(self.methods), strict=True))

        def run(method: Method, tokens: Tokens, **given: Any) -> Tokens:
            if method.stage == "encoder":  # one frame at a time, so no state
                return method(tokens, **given)
            tokens, states[id(method)] = method.step(tokens, states[id(method)], **given)
            return tokens

        return self._run(video, times, cues, run), [states[id(method)] for method in self.methods]

    def check_causal(self) -> None:
        """Raises a ValueError that names the first method that cannot be streamed, and those that can.

        What compares frames cannot follow a method whose tokens live on (`rlt`): later chunks do not have them.
        """
        reducers = [method for method in self.methods if isinstance(method, Reducer) and method.stage != "encoder"]
        living = [method for method in reducers if type(method).join is not Method.join]
        for reducer in reducers:
            if living and reducer is not living[0] and reducer.causal:
                raise ValueError(
                    f"{reducer.name} cannot be streamed behind {living[0].name}, whose tokens live on in later chunks"
                )
        for method in self.methods:
            if isinstance(method, Method) and method.stage != "encoder" and not method.causal:
                raise ValueError(
                    f"{method.spec} is not causal and cannot be streamed. Streaming methods, by a threshold: "
                    f"{', '.join(registry.streaming_names())}"
                )

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        """The outputs of `step`, put together as the result for the whole video."""
        own = [method for method in self.methods if isinstance(method, Method) and type(method).join is not Method.join]
        return own[-1].join(chunks) if own else concatenate(chunks)

    def _run(self, video: Any, times: Tensor | None, cues: dict[str, Tensor], run: Callable[..., Tokens]) -> Tokens:
        """The chain, each method run by `run(method, tokens, **cues)`."""
        after = self._at("tokens")
        if isinstance(video, Tokens):
            tokens = video
            if inside := self._at("encoder"):
                raise ValueError(f"{inside[0].name} acts inside an encoder; give frames, not tokens")
            after = [*self._at("pixels"), *after]
        else:
            if self.encoder is None:
                raise ValueError("frames need an encoder: Pipeline(spec, encoder=load_encoder('patches'))")
            frames, times = frames_of(video, times)
            before = self._at("pixels")
            if not self.encoder.skips_dropped_patches:
                before, after = [], [*before, *after]
            needs = sorted({need for method in after for need in method.needs})
            tokens, given = self.encoder(
                frames,
                times,
                needs=needs,
                before=[partial(run, method) for method in before],
                inside=self._at("encoder"),
            )
            cues = given | cues
        start = tokens
        for method in after:
            given = {name: cues[name] for name in method.needs if name in cues}
            moved = {name: tokens.pool(cue, start) for name, cue in given.items() if name in _PER_TOKEN}
            tokens = run(method, tokens, **(given | moved))
        meta = dict(tokens.meta) | {"spec": self.spec}
        if self.encoder is not None:
            meta["encoder"] = self.encoder.describe()
        return tokens.replace(meta=meta)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json and, where methods have parameters, methods.safetensors.

        The encoder is named, with the SHA-256 of its weights, not copied.

        Raises:
            ValueError: a method that its spec would not build again.
        """
        for method in self.methods:
            assert isinstance(method, Method)
            if not registry.is_registered(method):
                raise ValueError(
                    f"{method.name} cannot be built again by name: register it (entry point fewtokens.methods) or "
                    "save its parameters yourself"
                )
        encoder = None if self.encoder is None else self.encoder.describe()
        state = self.methods.state_dict()
        with files.whole_folder(folder, last="config.json") as place:
            files.save(place / "methods.safetensors", "pipeline", state, {"spec": self.spec})
            files.write_json(place / "config.json", {"spec": self.spec, "encoder": encoder})
        return Path(folder)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, message: str = ""
    ) -> str:
        """Saves it and uploads the folder, see `Pushable.push_to_hub`; the encoder is named, not copied.

        Raises:
            ValueError: its encoder is known on this machine alone.
        """
        if self.encoder is not None and (Path(self.encoder.id).exists() or " " in self.encoder.id):
            raise ValueError(f"push the encoder first: {self.encoder.id} is known on this machine alone")
        return super().push_to_hub(repo_id, private=private, token=token, message=message)

    @staticmethod
    def from_pretrained(folder: str | Path, encoder: Encoder | None = None, **options: Any) -> Pipeline:
        """Reads what `save_pretrained` wrote.

        Args:
            folder: where; or a hub id.
            encoder: used instead of loading the one that is named; its weights must be the same.
            options: for `load_encoder`: device, dtype, batch.

        Raises:
            ValueError: what is missing, damaged or does not fit, in one line.
        """
        if not Path(folder).exists():
            folder = from_hub(str(folder))
        config = Path(folder) / "config.json"
        if not config.is_file():
            raise ValueError(f"{folder}: no config.json, so not a saved pipeline")
        try:
            wanted: _Config = conform(with_current_names(files.read_json(config)), _Config, str(config))
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{config}: ")
            raise ValueError(f"{config}: not the config of a saved pipeline ({reason})") from None
        spec, named = current_spec(wanted["spec"]), wanted["encoder"]
        if named is not None:
            if encoder is None:
                more: dict[str, Any] = {**named.get("options", {}), **options}
                encoder = load_encoder(named["id"], **more)
            assert encoder is not None
            if encoder.describe()["fingerprint"] != named["fingerprint"]:
                raise ValueError(f"{folder}: was made with other weights of {named['id']} than those at hand")
        pipeline = Pipeline(spec, encoder)
        tensors, _ = files.load(Path(folder) / "methods.safetensors", "pipeline")
        files.check_fit(pipeline.methods.state_dict(), tensors, f"{folder}: the parameters do not fit {spec!r}")
        pipeline.methods.load_state_dict(tensors)
        return pipeline


def _keeps_every_token(method: Method) -> bool:
    """Whether it surely leaves a token for each cell of any grid."""
    few, many = Grid(2, 3, 5), Grid(64, 64, 64)
    return not isinstance(method, Resampler) and all(method.planned_count(grid) == grid.cells for grid in (few, many))
