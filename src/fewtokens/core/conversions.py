"""Conversions of tokens: to and from files, NumPy, pandas, and the output of vision models of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.plain import conform
from fewtokens.core.plan import Dropped

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens

# Fields of Tokens with one row per video; those in `SLOTS` also have one row per token.
TENSORS = ("features", "positions", "sizes", "mask", "assignment", "prefix", "codes", "attribution")
SLOTS = ("features", "positions", "sizes", "mask", "codes", "attribution")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DTYPES = {
    "features": _FLOATS, "prefix": _FLOATS, "positions": (torch.float32,), "sizes": (torch.float32,),
    "attribution": _FLOATS, "mask": (torch.bool,), "assignment": (torch.int64,), "codes": (torch.int64,),
}  # fmt: skip


class _Shape(TypedDict):
    shape: tuple[int, int, int]
    times: list[float] | list[list[float]] | None
    lengths: list[int] | None


class _Dropped(TypedDict, total=False):
    dropped: Dropped


class Header(_Dropped):
    """The header of a token file, without the versions. Files of format 1 have no `dropped`."""

    grid: _Shape
    meta: dict[str, Any]


def to_arrays(tokens: Tokens) -> dict[str, Any]:
    """The tensors as NumPy arrays, see `Tokens.numpy`."""
    tensors = {name: value for name in TENSORS if (value := getattr(tokens, name)) is not None}
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
        for name, value in tensors.items()
    }


def to_frame(tokens: Tokens) -> Any:
    """The tokens as a pandas DataFrame, see `Tokens.to_pandas`."""
    try:
        import pandas
    except ImportError:
        raise ValueError("to_pandas requires pandas; install it with pip install 'fewtokens[show]'") from None
    video, token = (index.cpu().numpy() for index in tokens.mask.nonzero(as_tuple=True))
    columns: dict[str, Any] = {"video": video, "token": token}
    if tokens.grid.times is not None:
        times = tokens.grid.times.expand(tokens.B, -1).to(tokens.device).gather(1, tokens.frame)
        columns["seconds"] = times[tokens.mask].cpu().numpy()
    for name, values in zip("tyx", tokens.positions[tokens.mask].unbind(1), strict=True):
        columns[name] = values.cpu().numpy()
    columns["size"] = tokens.sizes[tokens.mask].cpu().numpy()
    if tokens.codes is not None:
        columns |= {f"code{q}": v.cpu().numpy() for q, v in enumerate(tokens.codes[tokens.mask].unbind(1))}
    features = tokens.features[tokens.mask].detach().float().cpu().numpy()
    return pandas.concat(
        [pandas.DataFrame(columns), pandas.DataFrame(features).add_prefix("f")],
        axis=1,
    )


def split_hidden(
    outputs: Any, grid: Grid | tuple[int, int, int], num_prefix: int | None
) -> tuple[Tensor, Grid, Tensor | None]:
    """The features, the grid and the prefix in the output of a vision model, see `Tokens.from_hf`."""
    hidden = outputs if isinstance(outputs, Tensor) else getattr(outputs, "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise ValueError(f"outputs must have a last_hidden_state [rows,tokens,C], got {type(outputs).__name__}")
    grid = grid if isinstance(grid, Grid) else Grid(*grid)
    rows, length, C = hidden.shape
    by_frame = rows % grid.T == 0 and length < grid.cells + (num_prefix or 0)
    cells = grid.cells_per_frame if by_frame or grid.T == 1 else grid.cells
    P = length - cells if num_prefix is None else num_prefix
    if P < 0 or length != P + cells:
        raise ValueError(f"{length} tokens per row do not fit a grid of {grid.T} x {grid.H} x {grid.W} cells")
    frames = grid.T if by_frame else 1
    prefix = hidden[:, :P].reshape(rows // frames, frames * P, C) if P else None
    return hidden[:, P:].reshape(rows // frames, grid.cells, C), grid, prefix


def save(tokens: Tokens, path: str | Path, meta: Mapping[str, Any]) -> Path:
    """Writes a token file, see `Tokens.save`."""
    return files.save(path, "tokens", *to_file(tokens, meta))


def to_file(tokens: Tokens, meta: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a token file."""
    grid = {
        "shape": list(tokens.grid.shape),
        "times": None if tokens.grid.times is None else tokens.grid.times.tolist(),
        "lengths": None if tokens.grid.lengths is None else tokens.grid.lengths.tolist(),
    }
    tensors = {name: getattr(tokens, name) for name in TENSORS if getattr(tokens, name) is not None}
    tensors |= {f"aux.{name}": value for name, value in tokens.aux.items()}
    return tensors, {"grid": grid, "dropped": tokens.dropped, "meta": {**tokens.meta, **meta}}


def load(kind: type[Tokens], path: str | Path, device: str | torch.device) -> Tokens:
    """Reads a token file, see `Tokens.load`.

    Args:
        kind: the class `Tokens`, which this module cannot import.
        path, device: as for `Tokens.load`.
    """
    header: Header = conform(files.load_header(path, "tokens"), Header, f"{path}: a damaged token file")
    tensors, _ = files.load(path, "tokens", device)
    return from_file(kind, tensors, header, str(path))


def from_file(kind: type[Tokens], tensors: dict[str, Tensor], header: Header, label: str) -> Tokens:
    """Tokens from the tensors and the header of a token file.

    Args:
        kind: the class `Tokens`, which this module cannot import.
        tensors: by name.
        header: the header, of the right types.
        label: start of the error message.

    Raises:
        ValueError: they do not belong together.
    """
    try:
        T, H, W = header["grid"]["shape"]
        times, lengths = header["grid"]["times"], header["grid"]["lengths"]
        grid = Grid(
            T,
            H,
            W,
            times=None if times is None else torch.tensor(times, dtype=torch.float64),
            lengths=None if lengths is None else torch.tensor(lengths, dtype=torch.int64),
        )
        aux = {name[4:]: value for name, value in tensors.items() if name.startswith("aux.")}
        fields = _current_format({name: value for name, value in tensors.items() if not name.startswith("aux.")})
        _check_tensors(fields)
        return kind(**fields, grid=grid, dropped=header.get("dropped", "lost"), aux=aux, meta=header["meta"]).check()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{label}: a damaged token file ({' '.join(str(error).split())})") from None


def _current_format(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts tensors of format 1, which had other names, one code per token and nonzero padding."""
    if "source" not in tensors:
        return tensors
    tensors = {{"source": "assignment", "weights": "attribution"}.get(name, name): v for name, v in tensors.items()}
    if "codes" in tensors and tensors["codes"].ndim == 2:
        tensors["codes"] = tensors["codes"][..., None]
    mask = tensors.get("mask")
    for name in SLOTS:
        value = tensors.get(name)
        if mask is not None and value is not None and name != "mask" and value.shape[:2] == mask.shape:
            tensors[name] = value.masked_fill(~mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), 0)
    return tensors


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError if a tensor is missing, unexpected or of the wrong dtype."""
    if missing := [name for name in TENSORS[:5] if name not in tensors]:
        raise ValueError(f"missing tensors: {', '.join(missing)}")
    for name, value in tensors.items():
        if name not in _DTYPES:
            raise ValueError(f"unexpected tensor {name[:40]!r}")
        if value.dtype not in _DTYPES[name]:
            raise ValueError(f"{name} must be {_DTYPES[name][0]}, got {value.dtype}")
