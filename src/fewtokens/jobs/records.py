"""`Record`: the tokens of one video under a key, and their arrays in formats that other libraries read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fewtokens.core.conversions import Header, from_file, to_file
from fewtokens.core.names import distinct_names, with_digest
from fewtokens.core.plain import conform
from fewtokens.core.tokens import Tokens

# NumPy has no bfloat16, so these are stored in float32, which holds the same values.
_WIDER = {torch.bfloat16: torch.float32}
_AUX = "aux."


class Record(NamedTuple):
    """The tokens of one video.

    Attributes:
        key: name of the video, distinct within a job or an export; contains no slash.
        tokens: B=1, without padding.
    """

    key: str
    tokens: Tokens


def make_keys(paths: Sequence[Path], taken: Collection[str] = (), *, plain: bool = False) -> list[str]:
    """Returns a key for each path.

    Args:
        paths: paths or URLs of the videos.
        taken: keys of other videos.
        plain: whether keys may have any character that a file name may have, as `fewtokens tokenize` names its files.
            Otherwise they consist of letters, digits, "_", "-" and spaces: a tar splits names at a dot, and Parquet
            stores valid Unicode only.
    """
    names = distinct_names(paths, taken)
    if plain:
        return names
    keys = [re.sub(r"[^\w -]", "_", name) for name in names]
    counts = Counter([*map(str.casefold, keys), *map(str.casefold, taken)])
    return [
        key if counts[key.casefold()] == 1 else with_digest(key, path) for key, path in zip(keys, paths, strict=True)
    ]


def to_arrays(tokens: Tokens) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Converts the tokens of one video to arrays and plain values.

    Returns:
        The arrays: features [N,C], positions [N,3], sizes [N], assignment [S], times [T] if known, and prefix [P,C],
        codes [N,Q] and attribution [N,w*H*W] if there are any; bfloat16 as float32. And the header of a token file,
        with the dtypes of the features and the values of `aux`.
    """
    tensors, header = to_file(tokens, {})
    del tensors["mask"]
    header["dtypes"] = {
        name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items() if value.dtype in _WIDER
    }
    tensors = {name: value.detach().cpu().to(_WIDER.get(value.dtype, value.dtype)) for name, value in tensors.items()}
    header["aux"] = {
        name.removeprefix(_AUX): {"dtype": str(value.dtype).removeprefix("torch."), "values": value.tolist()}
        for name, value in tensors.items()
        if name.startswith(_AUX)
    }
    arrays = {name: value[0].numpy() for name, value in tensors.items() if not name.startswith(_AUX)}
    if tokens.grid.times is not None:
        arrays["times"] = tokens.grid.times.reshape(-1).double().numpy()
    return arrays, header


class _Aux(Header, total=False):
    dtypes: dict[str, str]
    aux: dict[str, Any]


def from_arrays(arrays: Mapping[str, NDArray[Any]], text: str, label: str) -> Tokens:
    """Converts arrays and a header, as `to_arrays` returns them, to the tokens of one video.

    Args:
        arrays: by name.
        text: the header in JSON.
        label: start of an error message.

    Raises:
        ValueError: the header is not one, or the arrays do not fit it.
    """
    from fewtokens.core.files import parse_json

    header = conform(parse_json(text, label), _Aux, label)
    try:
        tensors = {name: torch.from_numpy(np.array(value))[None] for name, value in arrays.items() if name != "times"}
        for name, dtype in header.get("dtypes", {}).items():
            tensors[name] = tensors[name].to(getattr(torch, dtype))
        for name, value in header.get("aux", {}).items():
            tensors[_AUX + name] = torch.tensor(value["values"], dtype=getattr(torch, value["dtype"]))
        tensors["mask"] = torch.ones(tensors["features"].shape[:2], dtype=torch.bool)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{label}: damaged tokens ({' '.join(str(error).split())})") from None
    return from_file(Tokens, tensors, header, label)


def to_json(header: Mapping[str, Any]) -> str:
    """Returns a header in JSON; names of files that are not UTF-8 stay in escapes."""
    return json.dumps(header)
