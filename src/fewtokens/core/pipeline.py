"""Video in, few tokens out: an encoder and a chain of methods, each run at its stage.

video -> pixels methods -> encoder (encoder methods inside) -> tokens methods -> Tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypedDict

from torch import Tensor, nn

from fewtokens.core import files, registry
from fewtokens.core.grid import Grid
from fewtokens.core.method import CUES, STAGES, Method
from fewtokens.core.tokens import Tokens

# Cues with a row for each token; what a method is given belongs to the tokens that it is given (`Tokens.pool`).
_PER_TOKEN = ("pixels", "keys", "attention", "shift", "sharpness")


class _Options(TypedDict, total=False):
    """Options of `load_encoder`; it refuses others itself."""

    device: str
    dtype: str
    batch: int
    patch: int
    tubelet: int
    proportional: str


class _MoreOfEncoder(TypedDict, total=False):
    options: _Options


class _Named(_MoreOfEncoder):
    """What `Encoder.describe` gives."""

    id: str
    weights: str | None


class _Config(TypedDict):
    """The config.json of a saved pipeline."""

    spec: str
    encoder: _Named | None


class Encoder(Protocol):
    """What a pipeline asks of an encoder; `fewtokens.encoders` has several.

    Attributes:
        id: the name by which `load_encoder` finds it: "patches", a folder, a hub id.
        gives: the cues it can give.
        skips: pixels methods spare it work; otherwise they are applied to what it gives.
        walks: encoder methods can act between its blocks.
        progress: called with (frames encoded, frames in all) where it is set.
    """

    progress: Callable[[int, int], None] | None

    @property
    def id(self) -> str: ...
    @property
    def gives(self) -> tuple[str, ...]: ...
    @property
    def skips(self) -> bool: ...
    @property
    def walks(self) -> bool: ...

    def __call__(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        before: Sequence[Method] = (),
        inside: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes frames [B,T,3,H,W] (uint8, or float in 0..1); returns tokens and the cues in `needs`."""

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        """The cells it makes of a video of this size, in pixels."""

    def describe(self) -> dict[str, Any]:
        """Plain values: "id", the options of `load_encoder` that differ, and "weights", their SHA-256 or None."""


class Pipeline(nn.Module):
    """An encoder and a chain of methods.

    Args:
        methods: a spec string such as "rlt | tome(keep=0.25)", or methods. Their stages must come in the
            order pixels, encoder, tokens. "" or () keeps every token.
        encoder: needed for frames; tokens can be reduced without one.

    Raises:
        ValueError: stages out of order, a method of another stage, a cue that the encoder cannot give.
    """

    def __init__(self, methods: str | Sequence[Method] = (), encoder: Encoder | None = None) -> None:
        super().__init__()
        if isinstance(methods, str):
            methods = registry.build(methods) if methods.strip() else ()
        order = list(STAGES)
        stages = [method.stage for method in methods]
        if "llm" in stages:
            name = next(method.name for method in methods if method.stage == "llm")
            raise ValueError(f"{name} acts inside a language model; a pipeline ends before it")
        self.methods = nn.ModuleList(methods)
        self.encoder = encoder
        if stages != sorted(stages, key=order.index):
            raise ValueError(f"stages must come in the order pixels, encoder, tokens; {self.spec!r} has {stages}")
        if encoder is not None:
            self._check(encoder)

    def _check(self, encoder: Encoder) -> None:
        for method in self._at("encoder"):
            if not encoder.walks:
                raise ValueError(
                    f"{method.name} acts between the blocks of an encoder, which {encoder.id} does not allow; "
                    "use a ViT that fewtokens loads itself"
                )
        for method in [*self._at("pixels"), *self._at("tokens")]:
            for need in set(method.needs) - set(encoder.gives):
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

    def forward(self, video: Tensor | Tokens, times: Tensor | None = None, **cues: Tensor) -> Tokens:
        """Runs the chain.

        Args:
            video: frames [B,T,3,H,W] or [T,3,H,W] (uint8, or float in 0..1), which need an encoder; or
                tokens, which go through the tokens methods (and pixels methods whose cue is given).
            times: seconds of each frame, [T] or [B,T].
            cues: what methods need beside tokens given as such; see `fewtokens.core.method.CUES`.

        Raises:
            ValueError: frames without an encoder, a missing cue.
        """
        after = self._at("tokens")
        if isinstance(video, Tokens):
            tokens = video
            if inside := self._at("encoder"):
                raise ValueError(f"{inside[0].name} acts inside an encoder; give frames, not tokens")
            after = [*self._at("pixels"), *after]
        else:
            if self.encoder is None:
                raise ValueError("frames need an encoder: Pipeline(spec, encoder=load_encoder('patches'))")
            frames = video[None] if video.ndim == 4 else video
            before = self._at("pixels")
            if not self.encoder.skips:
                before, after = [], [*before, *after]
            needs = sorted({need for method in after for need in method.needs})
            tokens, made = self.encoder(frames, times, needs=needs, before=before, inside=self._at("encoder"))
            cues = made | cues
        start = tokens
        for method in after:
            given = {name: cues[name] for name in method.needs if name in cues}
            moved = {name: tokens.pool(cue, start) for name, cue in given.items() if name in _PER_TOKEN}
            tokens = method(tokens, **(given | moved))
        meta = dict(tokens.meta) | {"spec": self.spec}
        if self.encoder is not None:
            meta["encoder"] = self.encoder.describe()
        return tokens.replace(meta=meta)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json and, where methods have parameters, methods.safetensors.

        The encoder is named, with the SHA-256 of its weights, not copied.
        """
        encoder = None if self.encoder is None else self.encoder.describe()
        state = self.methods.state_dict()
        with files.whole_folder(folder, last="config.json") as place:
            files.save(place / "methods.safetensors", "pipeline", state, {"spec": self.spec})
            files.write_json(place / "config.json", {"spec": self.spec, "encoder": encoder})
        return Path(folder)

    @staticmethod
    def from_pretrained(folder: str | Path, encoder: Encoder | None = None, **options: Any) -> Pipeline:
        """Reads what `save_pretrained` wrote.

        Args:
            folder: where.
            encoder: used instead of loading the one that is named; its weights must be the same.
            options: for `load_encoder`: device, dtype, batch.

        Raises:
            ValueError: what is missing, damaged or does not fit, in one line.
        """
        config = Path(folder) / "config.json"
        if not config.is_file():
            raise ValueError(f"{folder}: no config.json, so not a saved pipeline")
        try:
            wanted: _Config = files.read_json(config, _Config)
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{config}: ")
            raise ValueError(f"{config}: not the config of a saved pipeline ({reason})") from None
        spec, named = wanted["spec"], wanted["encoder"]
        if named is not None:
            if encoder is None:
                load = import_module("fewtokens.encoders").load_encoder
                encoder = load(named["id"], **(named.get("options", {}) | options))
            assert encoder is not None
            if encoder.describe()["weights"] != named["weights"]:
                raise ValueError(f"{folder}: was made with other weights of {named['id']} than those at hand")
        pipeline = Pipeline(spec, encoder)
        tensors, _ = files.load(Path(folder) / "methods.safetensors", "pipeline")
        files.check_fit(pipeline.methods.state_dict(), tensors, f"{folder}: the parameters do not fit {spec!r}")
        pipeline.methods.load_state_dict(tensors)
        return pipeline
