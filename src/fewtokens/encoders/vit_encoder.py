"""A ViT as an encoder of videos: frame by frame, in bounded memory, with methods before and between its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.batch import collate, join_frames, split_frames, trim
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.config import make_vit_config
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, fit, make_grid, normalize, patchify, to_unit
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.weights import build_vit, fingerprint


class _Saved(TypedDict):
    """The config.json of a saved encoder."""

    config: dict[str, Any]
    proportional: Literal["channels", "bias", "none"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class VitEncoder(Encoder):
    """Runs a `ViT` over the frames of videos.

    Args:
        vit: the network, on its device, in its dtype.
        name: id in saved files; the default cannot be loaded with `load_encoder`.
        batch: frames in one forward pass; affects only memory and speed.
        mean, std: normalization of pixels, RGB in 0..1.
        fingerprint: SHA-256 of the weight files, or None.
        options: arguments of `load_encoder` other than the name.
    """

    kind = "vit_encoder"  # in a saved config.json
    cues = ("pixels", "keys", "attention", "shift", "frame_global")
    skips_dropped_patches = True
    exposes_blocks = True

    def __init__(
        self,
        vit: ViT,
        *,
        name: str = "vit (unnamed)",
        batch: int = 32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        fingerprint: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if batch < 1:
            raise ValueError(f"batch must be at least 1 frame, got {batch}")
        if len(vit.config.kernel) != 2:
            raise ValueError(
                "a network for clips cannot encode single frames; use fewtokens.networks.encoder.ModelEncoder"
            )
        self.id, self.vit, self.batch = name, vit, batch
        self.mean, self.std, self.fingerprint = tuple(mean), tuple(std), fingerprint
        self.options = dict(options or {})
        self.train(vit.training)

    @classmethod
    def from_folder(cls, folder: Path, *, name: str, batch: int = 32, proportional: str | None = None) -> VitEncoder:
        """Loads a folder written by `save_pretrained`, in float32 and eval mode.

        Raises:
            ValueError: a file is missing, damaged or does not fit; one line.
        """
        path = folder / "config.json"
        saved: _Saved = files.read_json(path, _Saved)
        if min(saved["std"]) <= 0:
            raise ValueError(f"{path}: std must be above 0, got {saved['std']}")
        config = make_vit_config(saved["config"], str(path))
        tensors, _ = files.load(folder / "model.safetensors", "model")
        if config.depth > len(tensors):
            raise ValueError(f"{path}: depth {config.depth} does not match a file of {len(tensors)} tensors")
        vit = build_vit(
            config, tensors, proportional or saved["proportional"], f"{folder}: does not fit its config.json"
        )
        options = {} if proportional is None else {"proportional": proportional}
        return cls(
            vit, name=name, batch=batch, mean=saved["mean"], std=saved["std"], fingerprint=fingerprint(folder),
            options=options,
        )  # fmt: skip

    def save_pretrained(self, folder: str | Path) -> Path:
        config = {
            "config": asdict(self.vit.config), "proportional": self.vit.proportional,
            "mean": self.mean, "std": self.std,
        }  # fmt: skip
        with files.atomic_folder(folder, last="config.json") as temporary:
            files.save(temporary / "model.safetensors", "model", self.vit.state_dict(), {"model": self.kind})
            files.write_json(temporary / "config.json", {"fewtokens_model": self.kind, **config})
        return Path(folder)

    @property
    def dim(self) -> int:
        return self.vit.config.dim

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        return make_grid(frames, height, width, 1, self.vit.config.patch_size, times)

    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        pixel_methods: Sequence[Callable[..., Tokens]] = (),
        block_methods: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes frames [B,T,3,H,W] (uint8, or float in 0..1), each separately.

        Args:
            frames: frames of B videos.
            times: timestamps in seconds, [T] or [B,T].
            needs: cues to return: pixels; keys, attention and shift of the last block; frame_global (the class token,
                or the mean patch token).
            pixel_methods: methods of stage "pixels"; no block processes the patches that they drop.
            block_methods: methods of stage "encoder".

        Returns:
            Tokens [B,N,C] after the last norm, with prefix [B,T*P,C], and the cues.
        """
        B, T, _, height, width = frames.shape
        grid = self.grid(T, height, width, times)
        if unknown := set(needs) - set(self.cues):
            raise ValueError(f"needs must be among {', '.join(self.cues)}, got {', '.join(sorted(unknown))}")
        cells = self._reduce_pixels(frames, grid, pixel_methods) if pixel_methods else None
        chunks: list[Tokens] = []
        split = None if cells is None else split_frames(cells)
        flat = frames.flatten(0, 1)
        plan = (
            _consecutive_batches(B * T, self.batch)
            if split is None
            else _batches_by_count(split.count.tolist(), self.batch, grid)
        )
        done = 0
        last_block_cues = [name for name in needs if name in ("keys", "attention", "shift")]
        cue_shapes: dict[str, torch.Size] = {}
        for indices in plan:
            if split is None:
                embedded = self._embed(flat[indices[0] : indices[-1] + 1], grid)
                chunk = Tokens.from_cells(embedded, Grid(1, grid.H, grid.W))
            else:
                chunk = trim(split.select(indices))
            chunk, cues = self.vit.walk(chunk, block_methods, last_block_cues)
            if last_block_cues:
                # Cues are carried as extra channels until the frames are joined into videos.
                cue_shapes = {name: cues[name].shape[2:] for name in last_block_cues}
                extra = [cues[name].reshape(*chunk.mask.shape, -1).to(chunk.features.dtype) for name in last_block_cues]
                chunk = chunk.replace(features=torch.cat([chunk.features, *extra], -1))
            chunks.append(chunk)
            done += len(indices)
            if self.progress is not None:
                self.progress(done, B * T)
        encoded = collate(chunks)
        if split is not None:
            order = torch.tensor([index for indices in plan for index in indices])
            encoded = encoded.select(order.argsort())
        tokens = join_frames(encoded, T, grid)
        if cells is not None:
            tokens = _recompose(cells, tokens)
        extra_channels = tokens.features[..., self.dim :]
        if last_block_cues:
            tokens = tokens.replace(features=tokens.features[..., : self.dim])
        cue_values: dict[str, Tensor] = {}
        for name in last_block_cues:
            size = cue_shapes[name].numel()  # 1 for a scalar cue
            cue_values[name] = extra_channels[..., :size].reshape(*tokens.mask.shape, *cue_shapes[name])
            extra_channels = extra_channels[..., size:]
        if "frame_global" in needs:
            cue_values["frame_global"] = self._frame_global(tokens)
        if "pixels" in needs:
            cue_values["pixels"] = tokens.pool(patchify(self._fit(frames, grid), 1, self.vit.config.patch_size))
        return tokens, cue_values

    def _fit(self, frames: Tensor, grid: Grid) -> Tensor:
        return fit(to_unit(frames.to(self.device)), grid, 1, self.vit.config.patch_size)

    def _embed(self, frames: Tensor, grid: Grid) -> Tensor:
        """Embeds frames [F,3,H,W] to patches [F,H'*W',C]."""
        fitted = self._fit(frames[None], Grid(len(frames), grid.H, grid.W))
        return self.vit.embed(normalize(fitted[0], self.mean, self.std)).flatten(1, 2)

    def _reduce_pixels(self, frames: Tensor, grid: Grid, pixel_methods: Sequence[Callable[..., Tokens]]) -> Tokens:
        """Embedded patches after the methods of stage "pixels", on the grid of the video."""
        embedded = torch.cat([self._embed(part, grid) for part in frames.flatten(0, 1).split(self.batch)])
        cells = Tokens.from_cells(embedded.reshape(len(frames), grid.cells, -1), grid)
        pixels = patchify(self._fit(frames, grid), 1, self.vit.config.patch_size)
        for method in pixel_methods:
            reduced = method(cells, pixels=pixels)
            pixels = reduced.pool(pixels, cells)
            cells = reduced
        return cells

    def _frame_global(self, tokens: Tokens) -> Tensor:
        """One vector per frame, [B,T,C]: the class token, or the mean patch token."""
        T = tokens.grid.T
        if self.vit.class_token is not None and tokens.prefix is not None:
            return tokens.prefix.unflatten(1, (T, -1))[:, :, 0]
        frame = torch.where(tokens.mask, tokens.frame, T)
        member = torch.nn.functional.one_hot(frame, T + 1)[..., :T].float() * tokens.sizes[..., None]
        total = member.transpose(1, 2) @ tokens.features.float()
        return (total / member.sum(1).clamp(min=1)[..., None]).to(tokens.features.dtype)


def _consecutive_batches(frames: int, batch: int) -> list[list[int]]:
    """Splits frames into consecutive chunks of a batch."""
    return [list(range(start, min(start + batch, frames))) for start in range(0, frames, batch)]


def _batches_by_count(counts: Sequence[int], batch: int, grid: Grid) -> list[list[int]]:
    """Groups frames into chunks of similar token counts, largest first, to limit padding.

    A padded chunk has at most as many slots as a batch of full frames. Each of its frames has at least two thirds as
    many tokens as the largest (frames of few tokens are exempt).
    """
    order = sorted(range(len(counts)), key=lambda n: -counts[n])
    chunks: list[list[int]] = []
    widest = 0
    for frame in order:
        count = max(1, counts[frame])
        full = (len(chunks[-1]) + 1) * widest > batch * grid.cells_per_frame if chunks else True
        if full or (count < 2 / 3 * widest and widest > 16):
            chunks.append([])
            widest = count
        chunks[-1].append(frame)
    return chunks


def _recompose(cells: Tokens, encoded: Tokens) -> Tokens:
    """Restores the assignment and sizes of the pixels methods in encoded tokens.

    During encoding, a token is assigned only cells of the frame it is in. Here the token of a run is also assigned its
    cells in later frames.
    """
    restored = cells
    if cells.N:  # a chunk of a still video may have no tokens
        dest = encoded.assignment.gather(1, _own_cells(cells))
        restored = cells.apply(Plan(encoded.count, encoded.N, dest))
    return restored.replace(features=encoded.features, prefix=encoded.prefix, aux=encoded.aux)


def _own_cells(tokens: Tokens) -> Tensor:
    """A cell that each token has in the frame it is in, int64 [B,N]; the cell of its mean position may be another's."""
    S = tokens.grid.cells
    cell = torch.arange(S, device=tokens.device).expand(tokens.B, -1)
    slot = tokens.assignment.clamp(min=0)
    own = (tokens.assignment >= 0) & (tokens.frame.gather(1, slot) == cell // tokens.grid.cells_per_frame)
    first = torch.full((tokens.B, tokens.N), S, device=tokens.device)
    first = first.scatter_reduce(1, slot, cell.masked_fill(~own, S), "amin")
    return torch.where(first < S, first, tokens.cell)
