"""`Tokenizer`: a pipeline that can also decode: encoder | methods | quantizer > decoder."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.hub import Pushable
from fewtokens.core.inputs import to_frames
from fewtokens.core.method import Method, Quantizer, Reducer, Resampler, count_bits
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import to_unit
from fewtokens.tokenizers.blocks.saved_networks import configs_of
from fewtokens.tokenizers.parts import Decoder, VideoEncoder
from fewtokens.tokenizers.registry import build_parts, spec_of


@dataclass(frozen=True)
class Layout:
    """What a tokenizer makes of a video of some size.

    Attributes:
        size: frames, height and width of the video.
        padded: the size that is encoded: the last frame is repeated, and edges at the bottom and right are replicated.
        grid: T, H and W of the cells.
        tokens: number of tokens, or None if it depends on the video.
        bits: bits of all codes and of the side information, by formula; None if it depends on the video.
    """

    size: tuple[int, int, int]
    padded: tuple[int, int, int]
    grid: tuple[int, int, int]
    tokens: int | None
    bits: float | None

    @property
    def bits_per_pixel(self) -> float | None:
        """Bits per pixel of the video before padding."""
        return None if self.bits is None else self.bits / math.prod(self.size)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The result of a training step of a tokenizer.

    Attributes:
        frames: [B,T,3,H,W], about -1..1, with a gradient; None for a decoder that is not trained by reconstruction.
        tokens: the tokens that were decoded.
        losses: scalar losses of the methods, of the decoder and of the tokenizer itself, by name, to be summed.
        target: what `frames` are compared with, in -1..1; None if `frames` is.
    """

    frames: Tensor | None
    tokens: Tokens
    losses: dict[str, Tensor]
    target: Tensor | None = None

    __repr__ = shape_repr


class Tokenizer(Pushable, nn.Module):
    """Encodes videos to tokens, usually with codes, and decodes tokens to videos.

        tokenizer = Tokenizer.from_spec("causal_conv(width=32) | fsq((8, 8, 8, 5, 5, 5)) > causal_conv(width=32)")
        tokens = tokenizer.encode(frames)
        frames = tokenizer.decode(tokens)

    A subclass overrides `extra_losses` for a network with further objectives, or `_encode` and `_decode` for one that
    is not a chain of parts.

    Args:
        encoder: frames to one token per cell.
        methods: methods of the stage "tokens"; a quantizer, if any, may be followed only by methods that drop tokens.
        decoder: tokens to frames.
        window: longest video in frames that is encoded at once; longer ones are divided into windows that are encoded
            independently. None for any length.

    Attributes:
        pipeline: the encoder and the methods.
        decoder: the decoder.
        title: name of the preset that it was built from, or "".
        source: what it encodes: "video" (and images), or "occupancy", "audio" or "points", see `SignalTokenizer`.
        origin: how to build it again, as plain values: {"folder": ...} if it was loaded, {"name": ..., "tiny": ...,
            "seed": ...} if `create_tokenizer` initialized it from a seed, otherwise {}.

    Raises:
        ValueError: a method after the quantizer changes features, or the window has a length that the encoder does not
            accept.
    """

    source: ClassVar[str] = "video"

    def __init__(
        self, encoder: VideoEncoder, methods: list[Method], decoder: Decoder, *, window: int | None = None
    ) -> None:
        super().__init__()
        self.pipeline, self.decoder = Pipeline(methods, encoder), decoder
        self.window, self.title = window, ""
        self.origin: dict[str, Any] = {}
        index = [i for i, method in enumerate(methods) if isinstance(method, Quantizer)]
        after = methods[index[0] + 1 :] if index else []
        if not all(isinstance(method, Reducer) for method in after):
            raise ValueError(f"one quantizer, followed only by methods that drop tokens, got {self.pipeline.spec!r}")
        if window is not None and encoder.padded(window, *encoder.stride[1:])[0] != window:
            raise ValueError(f"window must be an accepted number of frames ({encoder.accepted()}), got {window}")

    @classmethod
    def from_spec(cls, spec: str, *, window: int | None = None) -> Self:
        """Builds a tokenizer with random parameters from a spec, see `fewtokens.tokenizers.registry`.

        Raises:
            ValueError: the spec is invalid.
        """
        return cls(*build_parts(spec), window=window)

    @property
    def encoder(self) -> VideoEncoder:
        """The encoder."""
        assert isinstance(self.pipeline.encoder, VideoEncoder)
        return self.pipeline.encoder

    @property
    def methods(self) -> list[Method]:
        """The methods, with the quantizer."""
        return [method for method in self.pipeline.methods if isinstance(method, Method)]

    @property
    def quantizer(self) -> Quantizer | None:
        """The quantizer, or None for continuous tokens."""
        return next((method for method in self.methods if isinstance(method, Quantizer)), None)

    @property
    def spec(self) -> str:
        """The spec string of encoder, methods and decoder."""
        return spec_of(self.encoder, self.methods, self.decoder)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of values of each code of a token; () for continuous tokens."""
        return () if self.quantizer is None else tuple(self.quantizer.codebook_sizes)

    def codes_by_book(self, tokens: Tokens) -> tuple[Tensor, tuple[int, ...]]:
        """Returns the codes of all real tokens with a column per codebook, int64 [n,K], and the K sizes.

        See `Quantizer.codes_by_book`; -1 is no code.
        """
        assert self.quantizer is not None, "continuous tokens have no codes"
        codes, sizes = self.quantizer.codes_by_book(tokens)
        return codes[tokens.mask], sizes

    def fingerprint(self) -> str:
        """Returns the SHA-256 of spec, window, parameters and buffers; equal on every device."""
        digest = hashlib.sha256(f"{self.spec}\n{self.window}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def stores_assignment(self) -> bool:
        """Whether the decoder needs the assignment of cells to tokens, which then is part of what is stored.

        It does if a method drops or merges the tokens of cells before the quantizer, or if the decoder reads a grid of
        cells and a method changes the number of tokens. The tokens that a resampler computes are a sequence.
        """
        if self.decoder.full_grid:
            return any(isinstance(method, Reducer | Resampler) for method in self.methods)
        before = list(takewhile(lambda method: not isinstance(method, Quantizer), self.methods))
        sequence = any(isinstance(method, Resampler) for method in before)
        return not sequence and any(isinstance(method, Reducer) for method in before)

    def layout(self, frames: int, height: int, width: int) -> Layout:
        """Returns padding, grid, tokens and bits of a video of this size in pixels.

        A video that is longer than the window counts with all its windows.
        """
        windows = 1 if self.window is None else max(1, -(-frames // self.window))
        length = frames if windows == 1 else self.window
        assert length is not None
        padded = self.encoder.padded(length, height, width)
        grid = self.encoder.cells(*padded)
        tokens = self.pipeline.planned_count(Grid(*grid))
        bits = None if tokens is None else windows * self._planned_bits(Grid(*grid), tokens)
        return Layout(
            (frames, height, width),
            (windows * padded[0], *padded[1:]),
            (windows * grid[0], *grid[1:]),
            None if tokens is None else windows * tokens,
            bits,
        )

    def _planned_bits(self, grid: Grid, tokens: int) -> float:
        side = grid.cells * math.log2(tokens + 1) if self.stores_assignment else 0.0
        quantizer = self.quantizer
        codes = tokens * 32 * self.decoder.dim if quantizer is None else quantizer.planned_bits(grid, tokens)
        return side + codes

    def bits(self, tokens: Tokens) -> Tensor:
        """Returns the bits of encoded videos by formula, float64 [B].

        The sum over codes of log2 of the number of values, or 32 bits per channel of continuous tokens; and, if the
        assignment is stored, log2(tokens + 1) bits per cell.
        """
        if self.quantizer is None or tokens.codes is None:
            bits = tokens.count.double() * tokens.C * 32
        else:
            bits = count_bits(tokens, self.codebook_sizes)
        if self.stores_assignment:
            bits = bits + tokens.grid.cell_mask(tokens.B).sum(1).to(bits) * (tokens.count + 1).double().log2()
        return bits

    @torch.no_grad()
    def encode(self, video: Any, times: Tensor | None = None) -> Tokens:
        """Encodes videos.

        Args:
            video: frames [B,T,3,H,W] or [T,3,H,W], an image [3,H,W] (uint8, or float in 0..1), a `Video` or a path. Any
                size; it is padded at the end, see `Layout`.
            times: seconds of each frame, [T] or [B,T].

        Returns:
            Tokens with codes (if there is a quantizer); `meta["size"]` is the size before padding. If the video is
            longer than the window, each window is one video of the batch, in the order of time.

        Raises:
            ValueError: invalid frames, or several videos that are longer than the window.
        """
        frames, times = to_frames(video, times)
        B, T, _, height, width = frames.shape
        if self.window is not None and self.window < T:
            if B > 1:
                raise ValueError(f"{B} videos of {T} frames are longer than the window of {self.window}; encode singly")
            frames = pad(frames, (-(-T // self.window) * self.window, height, width))
            frames = frames.unflatten(1, (-1, self.window)).flatten(0, 1)
            times = None
        frames = pad(frames, self.encoder.padded(frames.shape[1], height, width))
        if times is not None and times.shape[-1] < frames.shape[1]:
            times = torch.cat([times, times[..., -1:].expand(*times.shape[:-1], frames.shape[1] - T)], -1)
        tokens = self._recode(self._encode(frames, times))
        meta = {**tokens.meta, "size": [T, height, width], "tokenizer": self.spec}
        return tokens.replace(meta=meta, aux={})

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Decodes tokens, of which codes (if there is a quantizer) are read, not features.

        Args:
            tokens: the result of `encode`.

        Returns:
            Frames [B,T,3,H,W], float32 in 0..1, in the size before padding; of a video that is longer than the window,
            [1,T,3,H,W].

        Raises:
            ValueError: codes are missing or outside the codebook.
        """
        tokens = self._with_features(tokens)
        frames = (self._decode(tokens).float() + 1).div_(2).clamp_(0, 1)
        T, height, width = tokens.meta.get("size") or (frames.shape[1], *frames.shape[-2:])
        if self.window is not None and self.window < T:
            frames = frames[:, : self.window].flatten(0, 1)[None]
        return frames[:, :T, :, :height, :width]

    def _with_features(self, tokens: Tokens) -> Tokens:
        """The tokens with the features that the decoder reads, from what is stored."""
        tokens = self._restore(self._as_stored(tokens))
        if self.quantizer is not None:
            self._check_codes(tokens, self.quantizer)
            tokens = self.quantizer.restore(tokens)
        return tokens

    def _check_codes(self, tokens: Tokens, quantizer: Quantizer) -> None:
        if tokens.codes is None:
            raise ValueError(f"the tokens have no codes, but the tokenizer has the quantizer {quantizer.name}")
        sizes = torch.tensor(quantizer.codebook_sizes, device=tokens.device)
        if tokens.codes.shape[-1] != len(sizes):
            raise ValueError(f"{quantizer.name} has {len(sizes)} codes per token, got {tokens.codes.shape[-1]}")
        if bool((tokens.codes >= sizes).any()) or bool((tokens.codes < -1).any()):
            raise ValueError(
                f"codes must be below {tuple(quantizer.codebook_sizes)}, the sizes of the codebooks of "
                f"{quantizer.name}; are they of another tokenizer?"
            )

    def _as_stored(self, tokens: Tokens) -> Tokens:
        """The tokens as a file stores them, from which nothing else can reach the decoder.

        These are codes or features, the number of tokens, the grid, and the assignment if it is stored: it determines
        positions and sizes. If it is not, all cells count as dropped, unless there is one token per cell.
        """
        cells = Tokens.from_cells(tokens.features.new_zeros(tokens.B, tokens.grid.cells, 1), tokens.grid)
        if self.stores_assignment:
            bare = cells.apply(Plan(tokens.count, tokens.N, tokens.assignment))
        elif torch.equal(cells.mask, tokens.mask):
            bare = cells
        else:
            bare = tokens.replace(
                positions=torch.zeros_like(tokens.positions),
                sizes=tokens.mask.float(),
                assignment=torch.full_like(tokens.assignment, -1),
            )
        dtype = next(self.parameters()).dtype
        return bare.replace(
            features=tokens.features.to(self.device, dtype), codes=tokens.codes, prefix=None, attribution=None,
            dropped=tokens.dropped, meta=tokens.meta,
        ).to(self.device)  # fmt: skip

    def _recode(self, tokens: Tokens) -> Tokens:
        """Replaces the codes of encoded videos by others without loss, outside training; a subclass may override it."""
        return tokens

    def _restore(self, tokens: Tokens) -> Tokens:
        """The inverse of `_recode`."""
        return tokens

    def _encode(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        """Encodes frames [B,T,3,H,W] of an accepted size."""
        return self.pipeline(frames, times)

    def _decode(self, tokens: Tokens) -> Tensor:
        """Decodes tokens to frames [B,T,3,H,W], about -1..1, of an accepted size."""
        decoded: Tensor = self.decoder(tokens)
        return decoded

    def forward(self, frames: Tensor) -> Reconstruction:
        """Encodes and decodes frames for training.

        Args:
            frames: [B,T,3,H,W] of an accepted size (uint8, or float in 0..1).

        Raises:
            ValueError: frames of another size, shape or range.
        """
        unit, target = self._convert(frames)
        tokens = self._encode(unit)
        losses = dict(tokens.aux)
        own = self.decoder.losses(tokens, target)
        decoded = self._decode(tokens) if own is None else None
        losses |= own or {}
        losses |= self.extra_losses(target, tokens, decoded)
        return Reconstruction(decoded, tokens, losses, None if decoded is None else target)

    def _convert(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames for training in 0..1, for the encoder, which checks their range, and in -1..1, the target.

        Raises:
            ValueError: they do not have a size that the encoder accepts.
        """
        unit = to_unit(frames.to(self.device))
        if unit.ndim != 5:
            raise ValueError(f"frames must be [B,T,3,H,W], got {list(unit.shape)}")
        self.encoder.grid(unit.shape[1], unit.shape[3], unit.shape[4])
        return unit, 2 * unit - 1

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        """Returns further losses, such as feature distillation; none by default.

        Args:
            frames: the target [B,T,3,H,W] in -1..1.
            tokens: the tokens that were decoded.
            decoded: the reconstruction [B,T,3,H,W], or None.
        """
        return {}

    def start_from(self, other: Tokenizer) -> int:
        """Copies the parameters of a trained tokenizer whose names and shapes match, such as all but the quantizer.

        Returns:
            The number of tensors copied.

        Raises:
            ValueError: none matches.
        """
        own = self.state_dict()
        matching = {
            name: value for name, value in other.state_dict().items() if name in own and own[name].shape == value.shape
        }
        if not matching:
            raise ValueError(f"no tensor of {other.spec!r} fits {self.spec!r}")
        self.load_state_dict(own | matching)
        return len(matching)

    def save_pretrained(self, folder: str | Path, **meta: Any) -> Path:
        """Writes config.json and model.safetensors, both or neither.

        They contain the config and weights of pretrained networks inside the tokenizer, which are then not needed to
        load it.

        Args:
            folder: created if needed.
            meta: JSON values to store next to the config, such as training settings.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        with files.atomic_folder(folder, last="config.json") as temporary:
            files.save(temporary / "model.safetensors", "tokenizer", self.state_dict(), {"spec": self.spec})
            content = {
                "fewtokens_model": "tokenizer",
                "config": {"spec": self.spec, "window": self.window, "preset": self.title},
                "networks": configs_of(self),
            }
            files.write_json(temporary / "config.json", {**content, **meta})
        return Path(folder)


def pad(frames: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Pads frames [B,T,3,H,W] to a size: repeats the last frame, and the last row and column of pixels."""
    T, height, width = size
    down, right, later = height - frames.shape[-2], width - frames.shape[-1], T - frames.shape[1]
    if down or right:
        padded = F.pad(frames.flatten(0, 1).float(), (0, right, 0, down), mode="replicate")
        frames = padded.to(frames.dtype).unflatten(0, tuple(frames.shape[:2]))
    if later:
        frames = torch.cat([frames, frames[:, -1:].expand(-1, later, -1, -1, -1)], 1)
    return frames
