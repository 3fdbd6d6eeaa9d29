"""Formats of token data sets: safetensors, shards of safetensors, WebDataset, Parquet and Hugging Face datasets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from fewtokens.core import files
from fewtokens.core.conversions import Header, from_file, to_file
from fewtokens.core.plain import conform, one_line
from fewtokens.core.tokens import Tokens
from fewtokens.jobs.records import Record, from_arrays, to_arrays, to_json

_ARRAYS = ("features", "positions", "sizes", "times", "assignment", "prefix", "codes", "attribution")
_SHARD = "token_shard"
# Members of a tar larger than this are not tokens.
_MAX_MEMBER = 1 << 32
# The table of contents of a data set for `datasets.load_dataset(FOLDER)`.
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

Tokens of videos, written by fewtokens: a row per video, with `features` [tokens, channels], `positions` [tokens, 3] as
(frame, row, column) in cells, `sizes` [tokens] in cells, `times` [frames] in seconds, `assignment` [cells] (the token
of each cell, -1 if it was dropped) and `header` (JSON: grid, methods, encoder, source).
"""


class Write(Protocol):
    """Writes records to a file and returns their number; `label` is its path in error messages."""

    def __call__(self, path: Path, records: Iterable[Record], label: str) -> int: ...


class Format(NamedTuple):
    """A format.

    Attributes:
        pattern: path of the file of a shard within the output folder; or of a video, with `{key}`.
        write: writes a file.
        plain_keys: see `make_keys`.
        package: the package that it needs, or None.
    """

    pattern: str
    write: Write
    plain_keys: bool = False
    package: str | None = None

    @property
    def per_video(self) -> bool:
        """Whether each video has its own file."""
        return "{key}" in self.pattern


def write_tokens(path: Path, records: Iterable[Record], label: str) -> int:
    """Writes a token file with one video, as `Tokens.save` does."""
    (record,) = records
    files.write_tensors(path, "tokens", *to_file(record.tokens, {}), path=label)
    return 1


def write_shard(path: Path, records: Iterable[Record], label: str) -> int:
    """Writes tokens of many videos to a safetensors file: tensors "0.features", "0.positions", ..., "1.features", ...

    The header lists the videos: "videos" has for each its key and the header of a token file.
    """
    tensors: dict[str, torch.Tensor] = {}
    videos: list[dict[str, Any]] = []
    for record in records:
        own, header = to_file(record.tokens, {})
        tensors |= {f"{len(videos)}.{name}": value for name, value in own.items()}
        videos.append({"key": record.key, **header})
    files.write_tensors(path, _SHARD, tensors, {"videos": videos}, label)
    return len(videos)


def write_webdataset(path: Path, records: Iterable[Record], label: str) -> int:
    """Writes tokens to a tar in the layout of WebDataset: KEY.features.npy, KEY.positions.npy, ..., KEY.json."""
    count = 0
    with tarfile.open(path, "w") as tar:
        for record in records:
            arrays, header = to_arrays(record.tokens)
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                _add(tar, f"{record.key}.{name}.npy", buffer.getvalue())
            _add(tar, f"{record.key}.json", to_json(header).encode())
            count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, records: Iterable[Record], label: str) -> int:
    """Writes tokens to a Parquet file with a row per video: `key`, the arrays as nested lists, and `header` (JSON).

    Raises:
        ValueError: pyarrow is not installed, or the videos have features of different dtypes.
    """
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    writer, schema, count = None, None, 0
    try:
        for record in records:
            arrays, header = to_arrays(record.tokens)
            if schema is None:
                schema = _schema(pyarrow, arrays)
                # Dictionaries do not make tokens smaller, and cost time.
                writer = parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=["key"])
            assert writer is not None
            columns = [pyarrow.array([record.key], pyarrow.string())]
            for name in _ARRAYS:
                columns.append(_column(pyarrow, arrays.get(name), schema.field(name).type, name, label))
                if name in arrays and name != "times" and arrays[name].dtype != _dtype(schema.field(name).type):
                    header["dtypes"].setdefault(name, str(arrays[name].dtype))
            columns.append(pyarrow.array([to_json(header)], pyarrow.string()))
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            count += 1
        if writer is None:
            parquet.write_table(_schema(pyarrow, {}).empty_table(), path)
    finally:
        if writer is not None:
            writer.close()
    return count


def _schema(pyarrow: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """The schema of a file whose first video has these arrays."""
    shapes = {"sizes": 1, "times": 1, "assignment": 1}
    default = {"times": np.float64, "assignment": np.int64, "codes": np.int64}
    fields = [("key", pyarrow.string())]
    for name in _ARRAYS:
        dtype = arrays[name].dtype if name in arrays else np.dtype(default.get(name, np.float32))
        kind = pyarrow.from_numpy_dtype(dtype)
        fields.append((name, pyarrow.list_(kind if shapes.get(name, 2) == 1 else pyarrow.list_(kind))))
    return pyarrow.schema([*fields, ("header", pyarrow.string())])


def _column(pyarrow: Any, array: NDArray[Any] | None, kind: Any, name: str, label: str) -> Any:
    """A column of one row."""
    if array is None:
        return pyarrow.nulls(1, kind)
    inner = kind.value_type
    leaf, dtype = inner.value_type if array.ndim == 2 else inner, _dtype(kind)
    if not np.can_cast(array.dtype, dtype):
        raise ValueError(f"{label}: a column cannot have {name} of {array.dtype} and {leaf}; write them separately")
    values = pyarrow.array(array.astype(dtype, copy=False).ravel(), leaf)
    if array.ndim == 2:
        rows, columns = array.shape
        offsets = pyarrow.array(np.arange(rows + 1, dtype=np.int32) * columns)
        values = pyarrow.ListArray.from_arrays(offsets, values)
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, len(array)], pyarrow.int32()), values)


def _dtype(kind: Any) -> Any:
    """The numpy dtype of the values in a column of nested lists."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return np.dtype(kind.to_pandas_dtype())


def import_pyarrow() -> Any:
    """Returns pyarrow; raises a ValueError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise ValueError("Parquet requires pyarrow; install it with pip install 'fewtokens[jobs]'") from None
    return pyarrow


FORMATS: dict[str, Format] = {
    "safetensors": Format("{key}.safetensors", write_tokens, plain_keys=True),
    "shards": Format("shards/{shard:06}.safetensors", write_shard),
    "webdataset": Format("shards/{shard:06}.tar", write_webdataset),
    "parquet": Format("shards/{shard:06}.parquet", write_parquet, package="pyarrow"),
    "hf": Format("data/train-{shard:06}.parquet", write_parquet, package="pyarrow"),
}
"""The formats by name."""


UNFINISHED = "export.unfinished.json"
"""A file of an export that has not ended, with its arguments."""


def find_files(source: str | Path) -> list[Path]:
    """Returns the token files of a folder, or of a job or an export, in order; of a file, itself.

    Raises:
        ValueError: no such file or folder, or nothing to read in it.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if source.is_file():
        return [source]
    if (source / UNFINISHED).exists():
        raise ValueError(f"{source}: an export that did not finish; run the same command again")
    if (source / "stream.json").exists():
        raise ValueError(f"{source}: the chunks of one video (tokenize --chunked), which cannot be exported")
    suffixes = (".safetensors", ".tar", ".parquet")
    found = [
        sorted(path for path in folder.glob("*") if path.suffix in suffixes and path.name != "manifest.parquet")
        for folder in (source, source / "shards", source / "data")
    ]
    if not any(found):
        raise ValueError(f"{source}: no token files (.safetensors, .tar or .parquet)")
    return [path for group in found for path in group]


def read_records(path: str | Path) -> Iterator[Record]:
    """Yields the videos of a file in any of the formats, one at a time.

    Raises:
        ValueError: the file is damaged, or of another kind.
    """
    path = Path(path)
    readers = {".safetensors": _read_safetensors, ".tar": _read_tar, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path}: unknown format; expected .safetensors, .tar or .parquet")
    return readers[path.suffix](path)


def _read_safetensors(path: Path) -> Iterator[Record]:
    header = files.load_header(path)
    if header.get("kind") != _SHARD:
        tokens = Tokens.load(path)
        for number, video in enumerate(tokens):
            yield Record(path.stem if tokens.B == 1 else f"{path.stem}-{number}", video.replace(meta=tokens.meta))
        return
    label = f"{path}: a damaged shard"
    videos = conform(header.get("videos"), list[dict[str, Any]], label)
    with safe_open(path, framework="pt") as file:
        names: dict[str, list[str]] = {}
        for name in file.keys():  # noqa: SIM118
            names.setdefault(name.partition(".")[0], []).append(name)
        for number, video in enumerate(videos):
            fields: Header = conform(video, Header, label)
            own = {name.partition(".")[2]: file.get_tensor(name).clone() for name in names.get(str(number), [])}
            yield Record(conform(video.get("key"), str, label), from_file(Tokens, own, fields, str(path)))


def _read_tar(path: Path) -> Iterator[Record]:
    """The members of a video follow one another, as in every tar for WebDataset."""
    with open(path, "rb") as file:  # tarfile accepts a tar that was cut between two members
        file.seek(-min(1024, path.stat().st_size), io.SEEK_END)
        if any(end := file.read()) or not end:
            raise files.CorruptFileError(f"{path}: a damaged tar (its end is missing)")
    try:
        with tarfile.open(path, "r:") as tar:
            key, arrays, text = None, dict[str, NDArray[Any]](), None
            for member in tar:
                own, _, rest = member.name.partition(".")
                if not member.isfile() or member.size > _MAX_MEMBER:
                    raise ValueError(f"{path}: unexpected member {one_line(member.name)}")
                if own != key and key is not None:
                    yield _record(path, key, arrays, text)
                    arrays, text = {}, None
                key, data = own, tar.extractfile(member)
                assert data is not None
                if rest == "json":
                    text = data.read().decode("utf-8")
                elif rest.endswith(".npy"):
                    arrays[rest.removesuffix(".npy")] = _load_array(data.read(), f"{path}: {one_line(member.name)}")
            if key is not None:
                yield _record(path, key, arrays, text)
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise files.CorruptFileError(f"{path}: a damaged tar ({one_line(error)})") from None


def _load_array(data: bytes, label: str) -> NDArray[Any]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy reads the header as Python, whose parser raises errors of many kinds
        raise files.CorruptFileError(f"{label}: a damaged array ({one_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise files.CorruptFileError(f"{label}: not an array")
    return array


def _record(path: Path, key: str, arrays: dict[str, NDArray[Any]], text: str | None) -> Record:
    if text is None or "features" not in arrays:
        raise ValueError(f"{path}: {one_line(key)} has no tokens written by fewtokens")
    return Record(key, from_arrays(arrays, text, f"{path}: {one_line(key)}"))


def _read_parquet(path: Path) -> Iterator[Record]:
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if missing := [name for name in ("key", "features", "header") if name not in file.schema_arrow.names]:
                raise ValueError(f"{path}: not a table of tokens; no column {missing[0]}")
            lists = pyarrow.types.is_list, pyarrow.types.is_large_list
            for column in file.schema_arrow:
                if column.name in _ARRAYS and not any(is_list(column.type) for is_list in lists):
                    raise ValueError(f"{path}: the column {column.name} must be a list, is {column.type}")
            for batch in file.iter_batches(batch_size=1):
                row = {name: batch.column(name)[0] for name in batch.schema.names}
                arrays = {
                    name: _array(row[name], f"{path}: {name}") for name in _ARRAYS if name in row and row[name].is_valid
                }
                yield _record(path, row["key"].as_py(), arrays, row["header"].as_py())
    except pyarrow.ArrowException as error:
        raise files.CorruptFileError(f"{path}: a damaged Parquet file ({one_line(error)})") from None


def _array(row: Any, label: str) -> NDArray[Any]:
    """The value of a nested list as an array."""
    values = row.values
    if not hasattr(values, "offsets"):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    lengths = {int(end - start) for start, end in pairwise(values.offsets.to_numpy())}
    if len(lengths) > 1:
        raise ValueError(f"{label} has rows of different lengths")
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False)).reshape(len(values), -1)
