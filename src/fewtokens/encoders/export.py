"""Export of a ViT encoder with encoder methods: a module with tensor inputs and outputs for `torch.export` and ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.files import atomic_file
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import normalize
from fewtokens.encoders.vit_encoder import VitEncoder


class FrameEncoder(nn.Module):
    """Maps frames to a fixed number of tokens per frame; output shapes depend only on input shapes.

        program = torch.export.export(FrameEncoder(encoder, build("tome_in_encoder(keep=0.25)")), (frames,))
        torch.onnx.export(FrameEncoder(encoder, methods), (frames,), "vit.onnx", dynamo=True)

    Args:
        encoder: supplies the ViT and the normalization of its frames.
        block_methods: encoder methods that remove the same number of tokens from every frame.

    Raises:
        ValueError: a method acts at another stage.
    """

    def __init__(self, encoder: VitEncoder, block_methods: Sequence[Method] = ()) -> None:
        super().__init__()
        for method in block_methods:
            if method.stage != "encoder":
                raise ValueError(
                    f"{method.name} acts at stage {method.stage!r}; only methods of stage 'encoder' act between blocks"
                )
        self.vit, self.mean, self.std = encoder.vit, encoder.mean, encoder.std
        self.block_methods = nn.ModuleList(block_methods)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encodes each frame separately.

        Args:
            frames: float [F,3,H,W] in 0..1, multiples of the patch size.

        Returns:
            features [F,N,C] after the last norm, positions [F,N,3] as (0, row, column), sizes [F,N] in cells, and
            assignment, the token of each cell, int64 [F,cells]. Tokens are sorted by row, then column.
        """
        embedded = self.vit.embed(normalize(frames, self.mean, self.std))
        grid = Grid(1, embedded.shape[1], embedded.shape[2])
        tokens, _ = self.vit.walk(Tokens.from_cells(embedded.flatten(1, 2), grid), list(self.block_methods))  # type: ignore[arg-type]
        return tokens.features, tokens.positions, tokens.sizes, tokens.assignment


def export_onnx(module: FrameEncoder, frames: Tensor, path: str | Path) -> Path:
    """Exports this module to ONNX, for any number of frames with the height and width of `frames`.

    Inputs and outputs have the names in `FrameEncoder.forward`.

    Args:
        module: in eval mode.
        frames: example input, float [F,3,H,W]; F at least 2.
        path: output file.

    Returns:
        The path of the file.

    Raises:
        ValueError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        from onnxscript import opset18 as op
    except ImportError:
        raise ValueError(
            "ONNX export requires onnx and onnxscript; install them with pip install 'fewtokens[onnx]'"
        ) from None

    def sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # TopK returns the first of equal values first, so it is stable.
        count = op.Reshape(op.Gather(op.Shape(x), [dim]), [1])
        return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

    with atomic_file(path) as temporary:
        torch.onnx.export(
            module,
            (frames,),
            temporary,
            dynamo=True,
            verbose=False,
            input_names=["frames"],
            output_names=["features", "positions", "sizes", "assignment"],
            dynamic_shapes=({0: torch.export.Dim("F", min=1)},),
            custom_translation_table={torch.ops.aten.sort.stable: sort},
            external_data=False,
        )
    return Path(path)
