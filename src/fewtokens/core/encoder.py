"""The base class of encoders: frames in, one token per grid cell out."""

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
    """Sets the function that `Encoder.from_pretrained` calls; `fewtokens.encoders` registers `load_encoder`."""
    global _load
    _load = load


class Encoder(Pushable, nn.Module, ABC):
    """The base class of encoders; `fewtokens.encoders` contains several.

    An encoder is a module, so `Pipeline.to`, `.half()` and `.eval()` apply to it. It accepts frames on any device, in
    uint8 or any float dtype, and returns tokens on its own device and in its own dtype. A subclass defines `dim`,
    `grid` and `forward`.

    Attributes:
        id: the name that `load_encoder` accepts: "patches", a folder or a hub id.
        options: other arguments of `load_encoder`, by name.
        fingerprint: SHA-256 of the weight files, or None if there are none.
        cues: names of the cues that it can return, see `fewtokens.core.method.CUES`.
        skips_dropped_patches: whether methods of the stage "pixels" run before it, so that it encodes only the patches
            they keep. If False, they run after it.
        exposes_blocks: whether methods of the stage "encoder" can act between its blocks.
        decode: maps features [B,T,H,W,C] of all cells to frames [B,T',3,height,width] in 0..1; None if the encoder
            has no decoder, as all encoders except "patches", which also accepts `Tokens`, and `size` for the frames.
        progress: callback with (frames encoded, total frames), or None.
        dim: number of channels C of a feature.
    """

    id: str
    options: dict[str, Any]
    fingerprint: str | None = None
    cues: tuple[str, ...] = ()
    skips_dropped_patches: bool = False
    exposes_blocks: bool = False
    decode: Callable[..., Tensor] | None = None
    progress: Callable[[int, int], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.options = {}

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of channels C of a feature."""

    @property
    def device(self) -> torch.device:
        """The device of its first floating-point parameter or buffer."""
        return self._any_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its features, that of its first floating-point parameter or buffer."""
        return self._any_tensor().dtype

    def _any_tensor(self) -> Tensor:
        return next(tensor for tensor in chain(self.parameters(), self.buffers()) if tensor.is_floating_point())

    @abstractmethod
    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        pixel_methods: Sequence[Callable[..., Tokens]] = (),
        block_methods: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes videos.

        Args:
            frames: [B,T,3,H,W], uint8 or float in 0..1.
            times: seconds of each frame, [T] or [B,T].
            needs: names of the cues to return.
            pixel_methods: methods of the stage "pixels", applied in order; empty unless `skips_dropped_patches`.
            block_methods: methods of the stage "encoder"; empty unless `exposes_blocks`.

        Returns:
            Tokens [B,N,C], and the cues by name.
        """

    @abstractmethod
    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        """Returns the grid of a video.

        Args:
            frames: number of frames.
            height, width: size in pixels.
            times: seconds of each frame, [T] or [B,T], or None.
        """

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """Loads an encoder by name, see `fewtokens.encoders.load_encoder`.

        Args:
            name: "patches", a folder, a released checkpoint or a hub id.
            options: device, dtype, batch, and options of the encoder.

        Raises:
            ValueError: the encoder cannot be loaded, or is not an instance of this class.
        """
        if _load is None:
            raise ValueError("no loader is registered; import fewtokens.encoders first")
        encoder = _load(name, **options)
        if not isinstance(encoder, cls):
            raise ValueError(f"{name}: is a {type(encoder).__name__}, not a {cls.__name__}")
        return encoder

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a folder that `from_pretrained` can load. The write is atomic.

        Args:
            folder: created if needed.

        Returns:
            The folder.

        Raises:
            ValueError: this encoder does not support saving.
            OSError: the disk is full, or the folder is not writable.
        """
        raise ValueError(f"{self.id}: a {type(self).__name__} cannot be saved")

    def describe(self) -> dict[str, Any]:
        """Returns the values that identify the encoder: "id", "options" and "fingerprint"."""
        return {"id": self.id, "options": self.options, "fingerprint": self.fingerprint}
