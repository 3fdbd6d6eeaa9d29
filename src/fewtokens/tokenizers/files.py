"""Files of encoded videos: one safetensors file per video, whose JSON header describes its tensors.

    write_encoded("clip.safetensors", tokenizer.encode(video), tokenizer, fps=25)
    frames = tokenizer.decode(read_encoded("clip.safetensors", tokenizer))

A file contains what the decoder reads, and nothing else, so that decoding it equals decoding the tokens, bit for bit.
`M` is the number of real tokens of all windows, in their order:

    codes       uint16, uint32 or uint64 [M,Q], 0 for no code; packed: uint8, one codebook after another without the
                missing codes, each packed by `fewtokens.tokenizers.bits.pack` and filled to a byte
    vectors     float32 or float16 [M,C], of continuous tokens
    count       int32 [videos], tokens of each window, if they differ
    present     uint8, bits of [M,Q]: whether there is a code, if some are missing
    assignment  uint8, packed: 1 + the index of the token of each cell, 0 for a dropped cell, if the decoder needs it

`docs/formats.md` lists the keys of the header.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.plain import conform
from fewtokens.core.plan import Dropped
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.bits import bits_of, pack, packed_bytes, unpack
from fewtokens.tokenizers.tokenizer import Tokenizer

KIND = "encoded video"
# How the number of a code follows from what is quantized; of other quantizers it is the entry of a codebook.
_INDEX_ORDER = {
    "fsq": "the first channel counts fastest",
    "lfq": "the first channel is the lowest bit",
    "bsq": "the first channel is the lowest bit",
}
# Values of `Tokens.meta` that follow from the tokenizer, or have a key of the header.
_OWN_META = ("size", "tokenizer", "spec", "encoder", "fps")


class Source(TypedDict):
    """The tokenizer of a file."""

    name: str
    spec: str
    window: int | None
    fingerprint: str
    origin: dict[str, Any]


class Header(TypedDict):
    """The header of a file of an encoded video, without the versions."""

    tokenizer: Source
    quantizer: str | None
    codebook_sizes: list[int]
    bits_per_code: list[int]
    packed: bool
    bit_order: str
    index_order: str
    token_order: str
    videos: int
    tokens: int
    total_tokens: int
    channels: int
    grid: tuple[int, int, int]
    dropped: Dropped
    size: tuple[int, int, int]
    padded: tuple[int, int, int]
    padding: str
    input_range: tuple[int, int]
    fps: float | None
    bits: float
    bytes: int
    meta: dict[str, Any]


class EncodedWriter:
    """Collects the tokens of a video, chunk by chunk, and writes them to one file; keeps only what is written.

    Args:
        tokenizer: the tokenizer that encoded the video.
        packed: whether codes take ceil(log2 K) bits instead of 16 or 32.
        half: whether the vectors of continuous tokens take 16 bits instead of 32.
        fingerprint: that of the tokenizer, if it is known; it is a hash of all parameters. Default: it is computed.

    Raises:
        ValueError: an option without effect: `packed` without codes, or `half` with codes.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, packed: bool = False, half: bool = False, fingerprint: str | None = None
    ) -> None:
        if packed and not tokenizer.codebook_sizes:
            raise ValueError("packed has no effect on continuous tokens, which have no codes; use half")
        if half and tokenizer.codebook_sizes:
            raise ValueError("half has no effect on tokens with codes; use packed")
        self.tokenizer, self.packed, self.half, self.fingerprint = tokenizer, packed, half, fingerprint
        # Not lists of arrays: thousands of small blocks between large temporary ones would fragment the memory.
        self.values, self.present, self.assignment = bytearray(), bytearray(), bytearray()
        sizes = tokenizer.codebook_sizes
        self.dtype: type[np.generic] = _unsigned(sizes) if sizes else np.float16 if half else np.float32
        self.count: list[int] = []
        self.grid, self.size, self.bits = (0, 0, 0), (0, 0, 0), 0.0
        self.dropped: Dropped = "lost"
        self.meta: dict[str, Any] = {}

    def add(self, tokens: Tokens) -> None:
        """Adds the next tokens: of further windows if the tokenizer has windows, otherwise of further rows in time.

        Raises:
            ValueError: the tokens have no codes, though the tokenizer has a quantizer.
        """
        tokenizer, real = self.tokenizer, tokens.mask.cpu().numpy()
        if tokenizer.codebook_sizes:
            if tokens.codes is None:
                raise ValueError("tokens without codes cannot be those of a tokenizer with a quantizer")
            codes = tokens.codes.cpu().numpy()[real]
            self.values += np.where(codes < 0, 0, codes).astype(self.dtype).tobytes()
            self.present += (codes >= 0).tobytes()
        else:
            self.values += tokens.features.detach().float().cpu().numpy()[real].astype(self.dtype).tobytes()
        if tokenizer.stores_assignment:
            self.assignment += tokens.assignment.cpu().numpy().tobytes()
        T, height, width = tokens.meta.get("size") or tokenizer.encoder.pixels(tokens.grid)
        rows = tokens.grid.T
        if self.count and tokenizer.window is None:
            assert tokens.B == len(self.count) == 1 and not tokenizer.stores_assignment, "not a chunk of a stream"
            self.count[0] += int(tokens.count[0])
            rows += self.grid[0]
        else:
            self.count += tokens.count.tolist()
        self.grid = (rows, tokens.grid.H, tokens.grid.W)
        self.size = (self.size[0] + T, height, width)
        self.bits += float(tokenizer.bits(tokens).sum())
        self.dropped = tokens.dropped
        self.meta |= {name: value for name, value in tokens.meta.items() if name not in _OWN_META}

    def save(self, path: str | Path, *, fps: float | None = None, **meta: Any) -> Path:
        """Writes the file. The write is atomic.

        Args:
            path: output path, usually ending in `.safetensors`.
            fps: frames per second of the video, or None if unknown.
            meta: plain values to store in addition.

        Raises:
            OSError: the disk is full, or the path is not writable.
        """
        tokenizer, sizes = self.tokenizer, self.tokenizer.codebook_sizes
        tensors: dict[str, NDArray[Any]] = {}
        columns = len(sizes) or tokenizer.decoder.dim
        values = np.frombuffer(self.values, self.dtype).reshape(-1, columns)
        if sizes:
            present = np.frombuffer(self.present, np.bool_).reshape(-1, columns)
            tensors["codes"] = _pack_codes(values, present, sizes) if self.packed else values
            if not present.all():
                tensors["present"] = pack(present.flatten(), 1)
        else:
            tensors["vectors"] = values
        if len(set(self.count)) > 1:
            tensors["count"] = np.array(self.count, np.int32)
        if self.assignment:
            assignment = np.frombuffer(self.assignment, np.int64) + 1
            tensors["assignment"] = pack(assignment, bits_of(max(self.count) + 1))
        windows = len(self.count) if tokenizer.window is not None else 1
        rows, height, width = tokenizer.encoder.pixels(Grid(*self.grid))
        cells = self.grid[0] * self.grid[1] * self.grid[2]
        quantizer = tokenizer.quantizer
        name = "" if quantizer is None else quantizer.name
        header = Header(
            tokenizer={
                "name": tokenizer.title,
                "spec": tokenizer.spec,
                "window": tokenizer.window,
                "fingerprint": self.fingerprint or tokenizer.fingerprint(),
                "origin": tokenizer.origin,
            },
            quantizer=name or None,
            codebook_sizes=list(sizes),
            bits_per_code=[bits_of(size) for size in sizes],
            packed=self.packed,
            bit_order="little: the first bit of a value counts 1",
            index_order=_INDEX_ORDER.get(name, "entry of the codebook") if name else "none",
            token_order="t, y, x: token (t * H + y) * W + x" if set(self.count) == {cells} else "sequence",
            videos=len(self.count),
            tokens=max(self.count),
            total_tokens=sum(self.count),
            channels=tokenizer.decoder.dim,
            grid=self.grid,
            dropped=self.dropped,
            size=self.size,
            padded=(windows * rows, height, width),
            padding="end: the last frame, the bottom row and the right column of pixels are repeated",
            input_range=(-1, 1),
            fps=fps,
            bits=self.bits,
            bytes=sum(array.nbytes for array in tensors.values()),
            meta={**self.meta, **meta},
        )
        return files.save(path, KIND, {key: torch.from_numpy(array) for key, array in tensors.items()}, dict(header))


def write_encoded(
    path: str | Path, tokens: Tokens, tokenizer: Tokenizer, *, packed: bool = False, half: bool = False,
    fps: float | None = None, **meta: Any,
) -> Path:  # fmt: skip
    """Writes an encoded video to a file, from which it can be decoded without anything else but the tokenizer.

    Args:
        path: output path, usually ending in `.safetensors`.
        tokens: the result of `Tokenizer.encode`.
        tokenizer: the tokenizer that encoded it.
        packed: whether codes take ceil(log2 K) bits instead of 16 or 32.
        half: whether the vectors of continuous tokens take 16 bits instead of 32. The decoded video is then that of
            the rounded vectors.
        fps: frames per second of the video, or None if unknown.
        meta: plain values to store in addition.

    Raises:
        ValueError: an option without effect, or tokens without codes although the tokenizer has a quantizer.
        OSError: the disk is full, or the path is not writable.
    """
    writer = EncodedWriter(tokenizer, packed=packed, half=half)
    writer.add(tokens)
    return writer.save(path, fps=fps, **meta)


def read_header(path: str | Path) -> Header:
    """Reads the header of an encoded video, without its tensors.

    Raises:
        ValueError: the file does not exist, is damaged, or is of another type.
    """
    header: Header = conform(files.load_header(path, KIND), Header, f"{path}: a damaged file")
    return header


def read_encoded(path: str | Path, tokenizer: Tokenizer | None = None) -> Tokens:
    """Reads an encoded video, to be decoded by `Tokenizer.decode`.

    Args:
        path: a file of `write_encoded` or `fewtokens encode`.
        tokenizer: the tokenizer that will decode it, which is compared with that of the file. None for no check.

    Returns:
        Tokens on the CPU. With codes, the features have 0 channels; `meta` has "size", "fps" and the values that were
        stored in addition.

    Raises:
        ValueError: no such file, a damaged file, or a file of another tokenizer or of other weights.
    """
    header = read_header(path)
    if tokenizer is not None:
        check_tokenizer(path, header, tokenizer)
    tensors, _ = files.load(path, KIND)
    try:
        return _tokens(header, {name: value.numpy() for name, value in tensors.items()})
    except (ValueError, KeyError, RuntimeError) as error:
        raise files.CorruptFileError(f"{path}: a damaged file ({' '.join(str(error).split())})") from None


def check_tokenizer(path: str | Path, header: Header, tokenizer: Tokenizer) -> None:
    """Compares a tokenizer with that of a file.

    Raises:
        ValueError: another spec, window or weights; the message starts with `path`.
    """
    own = header["tokenizer"]
    if (own["spec"], own["window"]) != (tokenizer.spec, tokenizer.window):
        raise ValueError(
            f"{path}: encoded by another tokenizer, {own['spec']} with window {own['window']}; this one is "
            f"{tokenizer.spec} with window {tokenizer.window}"
        )
    if own["fingerprint"] != tokenizer.fingerprint():
        raise ValueError(
            f"{path}: encoded with other weights of {own['spec']} (SHA-256 {own['fingerprint'][:12]}, these are "
            f"{tokenizer.fingerprint()[:12]}); give the folder that encoded it"
        )


def write_webdataset(path: str | Path, sources: Iterable[tuple[str, str | Path]]) -> Path:
    """Writes encoded videos to a tar in the layout of WebDataset. The write is atomic.

    A video has the members KEY.npy, its codes or vectors as in the file but never packed, and KEY.json, the header;
    KEY.count.npy, KEY.present.npy and KEY.assignment.npy are added if the file has these tensors, unpacked: the last
    has -1 for a dropped cell.

    Args:
        path: output path, usually ending in `.tar`.
        sources: (key, file of an encoded video); a key must be unique and have no dot.

    Raises:
        ValueError: a file cannot be read, or a key is invalid.
        OSError: the disk is full, or the path is not writable.
    """
    keys = set()
    with files.atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
        for key, source in sources:
            if "." in key or key in keys:
                raise ValueError(f"keys of a tar must be unique and have no dot, got {key!r}")
            keys.add(key)
            header, arrays = read_header(source), {}
            tensors, _ = files.load(source, KIND)
            raw = {name: value.numpy() for name, value in tensors.items()}
            values, present = _values(header, raw)
            arrays[""] = values
            if "count" in raw:
                arrays["count."] = raw["count"]
            if "present" in raw:
                arrays["present."] = present
            if "assignment" in raw:
                arrays["assignment."] = _assignment(header, raw)
            for suffix, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                _add(tar, f"{key}.{suffix}npy", buffer.getvalue())
            _add(tar, f"{key}.json", json.dumps(header | {"packed": False}).encode())
    return Path(path)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _unsigned(sizes: tuple[int, ...] | list[int]) -> type[np.uint16] | type[np.uint32] | type[np.uint64]:
    """The smallest type from uint16 that fits all codes."""
    largest = max(sizes)
    return np.uint16 if largest <= 1 << 16 else np.uint32 if largest <= 1 << 32 else np.uint64


def _pack_codes(codes: NDArray[Any], present: NDArray[np.bool_], sizes: tuple[int, ...]) -> NDArray[np.uint8]:
    columns = [pack(codes[present[:, q], q], bits_of(size)) for q, size in enumerate(sizes)]
    return np.concatenate(columns)


def _values(header: Header, arrays: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The codes [M,Q], 0 for no code, or vectors [M,C], and which codes are present, bool [M,Q]."""
    M, sizes = header["total_tokens"], header["codebook_sizes"]
    if not sizes:
        vectors = arrays["vectors"]
        if vectors.shape != (M, header["channels"]):
            raise ValueError(f"vectors must be [{M},{header['channels']}], got {list(vectors.shape)}")
        return vectors, np.ones((M, 0), bool)
    Q, codes = len(sizes), arrays["codes"]
    present = np.ones((M, Q), bool)
    if "present" in arrays:
        present = unpack(arrays["present"], 1, M * Q).reshape(M, Q).astype(bool)
    if header["packed"]:
        table = np.zeros((M, Q), _unsigned(sizes))
        counts, start = present.sum(0), 0
        for q, size in enumerate(sizes):
            end = start + packed_bytes(int(counts[q]), bits_of(size))
            table[present[:, q], q] = unpack(codes[start:end], bits_of(size), int(counts[q]))
            start = end
        if start != codes.size:
            raise ValueError(f"codes must have {start} bytes, got {codes.size}")
        codes = table
    if codes.shape != (M, Q):
        raise ValueError(f"codes must be [{M},{Q}], got {list(codes.shape)}")
    if (codes.astype(np.int64) >= np.array(sizes)).any():
        raise ValueError(f"codes must be below {sizes}")
    return codes, present


def _assignment(header: Header, arrays: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """The token of each cell, int64 [videos,S], -1 for a dropped cell."""
    cells = int(np.prod(header["grid"]))
    packed = unpack(arrays["assignment"], bits_of(header["tokens"] + 1), header["videos"] * cells)
    if packed.size and packed.max() > header["tokens"]:
        raise ValueError(f"the assignment must be below {header['tokens']}")
    return packed.reshape(header["videos"], cells) - 1


def _tokens(header: Header, arrays: dict[str, NDArray[Any]]) -> Tokens:
    """The tokens of a file."""
    B, N, grid = header["videos"], header["tokens"], Grid(*header["grid"])
    values, present = _values(header, arrays)
    count = torch.full((B,), N) if "count" not in arrays else torch.from_numpy(arrays["count"]).long()
    if count.shape != (B,) or int(count.min()) < 0 or int(count.max()) != N or int(count.sum()) != len(values):
        raise ValueError(f"count must be [{B}], at most {N} and {len(values)} in total")
    mask = torch.arange(N) < count[:, None]

    def slots(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(B, N, rows.shape[1])
        padded[mask] = rows
        return padded

    coded = bool(header["codebook_sizes"])
    if coded:
        codes = slots(torch.from_numpy(np.where(present, values.astype(np.int64), -1)))
        features = torch.zeros(B, N, 0)
    else:
        features = slots(torch.from_numpy(values).float())
    assignment = torch.full((B, grid.cells), -1)
    if "assignment" in arrays:
        assignment = torch.from_numpy(_assignment(header, arrays))
    elif grid.cells == N and "count" not in arrays:
        assignment = torch.arange(N).expand(B, -1)
    return Tokens(
        features=features,
        positions=torch.zeros(B, N, 3),
        sizes=mask.float(),
        mask=mask,
        assignment=assignment,
        grid=grid,
        codes=codes if coded else None,
        dropped=header["dropped"],
        meta={**header["meta"], "size": list(header["size"]), "fps": header["fps"]},
    )
