"""Any vision encoder of transformers through its public API; methods act only after it."""

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
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, fit, make_grid, normalize, patchify, to_unit
from fewtokens.encoders.probe import find_cells
from fewtokens.encoders.weights import fingerprint, height_and_width, read_config, read_normalization, vision_config


class HfEncoder(Encoder):
    """Runs a vision model of transformers frame by frame.

    Frames are resized to a square with the side in the config (`image_size`, default 224), because most of these models
    accept no other size. A few probe frames (`fewtokens.encoders.probe`) determine the number of cells and of class and
    register tokens, and check that cells are in raster order and that the output is deterministic.

    Args:
        folder: a model folder saved by transformers.
        name: id of the encoder in saved files.
        batch: frames in one forward pass.
        device, dtype: device and dtype of the model.

    Raises:
        ValueError: transformers is not installed or cannot load the model as an encoder of single frames, or its output
            is not one row per cell in raster order.
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
        vision = vision_config(config)
        self.size = max(height_and_width(vision, "image_size", 224, str(folder)))
        self.mean, self.std = read_normalization(folder, IMAGENET_MEAN, IMAGENET_STD)
        try:
            patch = max(height_and_width(vision, "patch_size", 0, str(folder)))
        except ValueError:  # some configs use the name for something else; it is only a first guess
            patch = 0
        self.num_prefix, self.side = self._probe(patch)
        # Side of a cell in pixels: exact if the patches of the model tile the frame.
        self.patch = max(1, round(self.size / self.side))

    def _probe(self, patch: int) -> tuple[int, int]:
        def run(frames: Tensor) -> Tensor:
            hidden = self._run(frames.to(self.device))
            self._dim = hidden.shape[1 if hidden.ndim == 4 else 2]
            return hidden

        try:
            return find_cells(run, self.size, patch)
        except Exception as error:  # models raise all kinds of errors for unsupported frames
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.id}: not an encoder of single frames ({reason})") from None

    def _run(self, frames: Tensor) -> Tensor:
        hidden = getattr(self.model(pixel_values=frames.to(self.dtype)), "last_hidden_state", None)
        if not isinstance(hidden, Tensor) or hidden.ndim not in (3, 4):
            raise ValueError("no last_hidden_state of shape [B,N,C] or [B,C,H,W]")
        return hidden

    @property
    def dim(self) -> int:
        return self._dim

    def save_pretrained(self, folder: str | Path) -> Path:
        """Saves the vision model in the format of transformers, with the normalization of its frames."""
        save: Any = getattr(self.model, "save_pretrained", None)
        if save is None:
            raise ValueError(f"{self.id}: transformers cannot save its vision part separately; save the full model")
        preprocessing = {"image_mean": list(self.mean), "image_std": list(self.std)}
        with files.atomic_folder(folder, last="config.json") as temporary:
            save(temporary)
            files.write_json(temporary / "preprocessor_config.json", preprocessing)
        return Path(folder)

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        return make_grid(frames, self.side, self.side, 1, 1, times)

    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        pixel_methods: Sequence[Callable[..., Tokens]] = (),
        block_methods: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes frames [B,T,3,H,W] (uint8, or float in 0..1) to tokens [B,T*side*side,C] with prefix tokens."""
        if pixel_methods or block_methods:
            raise ValueError(
                f"{self.id} does not support methods before or between its blocks; use methods of stage 'tokens'"
            )
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
        raise ValueError(f"{folder}: requires transformers; install it with pip install 'fewtokens[hf]'") from None
    try:
        model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except Exception as error:  # transformers raises all kinds of errors for folders it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot load it ({reason})") from None
    for part in ("vision_model", "vision_tower", "visual"):
        model = getattr(model, part, model)
    return model.eval()
