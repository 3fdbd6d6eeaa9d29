"""Any vision encoder of transformers, through its public API; methods act before it is run or after, not inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.batch import join_frames
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, cells_of, fit, normalize, patchify, to_unit
from fewtokens.encoders.probe import find_cells
from fewtokens.encoders.weights import fingerprint, read_config, read_scale, sides, vision_part


class HfEncoder(Encoder):
    """Runs a model of transformers on single frames.

    Frames are resized to the square that its config names (`image_size`, or 224): most of these models know
    no other size. How many cells it makes, how many class and register tokens come before them, that they lie in
    raster order and are the same each time is seen on a few first frames (`fewtokens.encoders.probe`).

    Args:
        folder: as transformers saves it.
        name: the id in files.
        batch: frames in one forward pass.
        device, dtype: where and how it runs.

    Raises:
        ValueError: transformers is missing, does not load it as an encoder of single frames, or what it gives is not
            one row for each cell in raster order.
    """

    cues = ("pixels", "frame_global")
    skips_dropped_patches = False
    exposes_blocks = False

    def __init__(self, folder: Path, *, name: str, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        config = read_config(folder)
        self.id, self.batch = name, batch
        self.fingerprint = fingerprint(folder)
        self.model = _load(folder, dtype).to(device)
        self.eval()
        part = vision_part(config)
        self.size = max(sides(part, "image_size", 224, str(folder)))
        self.mean, self.std = read_scale(folder, IMAGENET_MEAN, IMAGENET_STD)
        try:
            patch = max(sides(part, "patch_size", 0, str(folder)))
        except ValueError:  # some config says something else by this name; it is only where to begin
            patch = 0
        self.num_prefix, self.side = self._probe(patch)
        # The pixels of a cell: exact where the model's patches tile the frame.
        self.patch = max(1, round(self.size / self.side))

    def _probe(self, patch: int) -> tuple[int, int]:
        def run(frames: Tensor) -> Tensor:
            hidden = self._run(frames.to(self.device))
            self._dim = hidden.shape[1 if hidden.ndim == 4 else 2]
            return hidden

        try:
            return find_cells(run, self.size, patch)
        except Exception as error:  # whatever a model says to frames that it does not take
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.id}: is no encoder of single frames ({reason})") from None

    def _run(self, frames: Tensor) -> Tensor:
        hidden = getattr(self.model(pixel_values=frames.to(self.dtype)), "last_hidden_state", None)
        if not isinstance(hidden, Tensor) or hidden.ndim not in (3, 4):
            raise ValueError("it gives no last hidden state of [B,N,C] or [B,C,H,W]")
        return hidden

    @property
    def dim(self) -> int:
        return self._dim

    def save_pretrained(self, folder: str | Path) -> Path:
        """As transformers saves the vision model alone, with the size and the normalization of its frames."""
        save: Any = getattr(self.model, "save_pretrained", None)
        if save is None:
            raise ValueError(f"{self.id}: transformers does not save its vision part alone; save the whole model")
        numbers = {"image_mean": list(self.mean), "image_std": list(self.std)}
        with files.whole_folder(folder, last="config.json") as place:
            save(place)
            files.write_json(place / "preprocessor_config.json", numbers)
        return Path(folder)

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        return cells_of(frames, self.side, self.side, 1, 1, times)

    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        before: Sequence[Callable[..., Tokens]] = (),
        inside: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Frames [B,T,3,H,W] (uint8, or float in 0..1) to tokens [B,T*side*side,C] and prefix tokens."""
        if before or inside:
            raise ValueError(f"{self.id} runs as it is: methods act on what it gives")
        B, T, _, height, width = frames.shape
        grid = self.grid(T, height, width, times)
        rows = []
        for part in frames.flatten(0, 1).split(self.batch):
            square = fit(to_unit(part.to(self.device))[None], Grid(len(part), 1, 1), 1, self.size)[0]
            hidden = self._run(normalize(square, self.mean, self.std))
            rows.append(hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden)
            if self.progress is not None:
                self.progress(sum(len(row) for row in rows), B * T)
        hidden = torch.cat(rows)
        prefix = hidden[:, : self.num_prefix] if self.num_prefix else None
        single = Tokens.from_cells(hidden[:, self.num_prefix :], Grid(1, self.side, self.side), prefix)
        tokens = join_frames(single, T, grid)
        cues = {}
        if "frame_global" in needs:
            mean = tokens.features.unflatten(1, (T, -1)).mean(2)
            cues["frame_global"] = mean if prefix is None else prefix[:, 0].unflatten(0, (B, T))
        if "pixels" in needs:
            fitted = fit(to_unit(frames.to(self.device)), grid, 1, self.patch)
            cues["pixels"] = patchify(fitted, 1, self.patch)
        return tokens, cues


def _load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    try:
        from transformers import AutoModel
    except ImportError:
        raise ValueError(f"{folder}: needs transformers; pip install 'fewtokens[hf]'") from None
    try:
        model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except Exception as error:  # whatever transformers says about a folder that it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot load it ({reason})") from None
    for part in ("vision_model", "vision_tower", "visual"):
        model = getattr(model, part, model)
    return model.eval()
