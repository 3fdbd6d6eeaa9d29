"""What a pipeline asks of an encoder: frames in, one token for each cell of a grid out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.hub import Pushable
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens

_load: Callable[..., Encoder] | None = None


def set_loader(load: Callable[..., Encoder]) -> None:
    """Tells `Encoder.from_pretrained` how an encoder is loaded by its name; called by `fewtokens.encoders`."""
    global _load
    _load = load


class Encoder(Pushable, nn.Module, ABC):
    """Encodes frames; `fewtokens.encoders` has several.

    A module, so that `Pipeline.to`, `.half()` and `.eval()` reach it. Frames may come on any device and in uint8 or
    any float dtype; tokens are on the encoder's device and in its dtype.

    Attributes:
        id: the name by which `load_encoder` finds it: "patches", a folder, a hub id.
        options: arguments of `load_encoder` beside the name.
        fingerprint: SHA-256 of the weight files, or None.
        cues: the cues it can return.
        skips_dropped_patches: pixels methods run before it and spare it work; otherwise they run after it.
        exposes_blocks: encoder methods can act between its blocks.
        decode: features [B,T,H,W,C] of all cells back to frames [B,T',3,height,width] in 0..1; None where the encoder
            has no way back.
        progress: if set, called with (frames encoded, frames in all).
        dim: channels of a feature.
    """

    id: str
    options: dict[str, Any]
    fingerprint: str | None = None
    cues: tuple[str, ...] = ()
    skips_dropped_patches: bool = False
    exposes_blocks: bool = False
    decode: Callable[[Tensor], Tensor] | None = None
    progress: Callable[[int, int], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.options = {}

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where it runs: the device of its first parameter or buffer."""
        return self._any_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its features: that of its first parameter or buffer."""
        return self._any_tensor().dtype

    def _any_tensor(self) -> Tensor:
        return next(each for each in chain(self.parameters(), self.buffers()) if each.is_floating_point())

    @abstractmethod
    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        before: Sequence[Callable[..., Tokens]] = (),
        inside: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes videos.

        Args:
            frames: [B,T,3,H,W], uint8 or float in 0..1.
            times: seconds of each frame, [T] or [B,T].
            needs: names of the cues to return.
            before: pixels methods, if it skips dropped patches.
            inside: encoder methods, if it exposes its blocks.

        Returns:
            Tokens [B,N,C] and the cues by name.
        """

    @abstractmethod
    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        """The cells of a video of this size in pixels."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """The encoder of this name, see `fewtokens.encoders.load_encoder`.

        Args:
            name: "patches", a folder, a released checkpoint or a hub id.
            options: device, dtype, batch, and the options of the encoder.

        Raises:
            ValueError: it cannot be loaded, or is an encoder of another class than this one.
        """
        if _load is None:
            raise ValueError("encoders are loaded by fewtokens.encoders; import it first")
        encoder = _load(name, **options)
        if not isinstance(encoder, cls):
            raise ValueError(f"{name}: is loaded as {type(encoder).__name__}, not as {cls.__name__}")
        return encoder

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a folder that `from_pretrained` reads; all of it or nothing.

        Raises:
            ValueError: this encoder has no such form.
            OSError: the disk is full, or the folder cannot be written to.
        """
        raise ValueError(f"{self.id}: a {type(self).__name__} cannot be saved")

    def describe(self) -> dict[str, Any]:
        """Plain values that tell it from other encoders: "id", "options" and "fingerprint"."""
        return {"id": self.id, "options": self.options, "fingerprint": self.fingerprint}
