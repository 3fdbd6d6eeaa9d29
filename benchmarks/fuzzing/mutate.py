"""Mutations of files: bytes, text, JSON, and container headers that stay valid, to reach the code behind them."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutate = Callable[[random.Random, bytes], bytes]

# Invalid values for headers, lists and options.
_HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.5, 1e308, -1e308, float("nan"),
    float("inf"), "", " ", "x", "0", "-1", "nan", "../../../etc/passwd", "/dev/zero", "a\0b", "\ufeff", "\ud800", "²",
    "x" * 5000, [], [[]], {}, {"": {}}, [0] * 1000, {"a": [1, None]}, [[[[[[[[]]]]]]]],
]  # fmt: skip
_WORDS = [
    "nan", "-inf", "1e308", "1e-308", "-1", "0", "99999999999999999999", "0x10", "²", "٣", "None", "true", "..",
    "../x", "/", "//", "C:\\x", '"', "'", ",", ";", "\t", "\0", "\r", "\ufeff", "(", ")", "[", "]", "{", "}", "|", "=",
    "*", "**", ":", "%s", "{0}", "<", ">", "\u202e", "\U0001f600", "a" * 3000, "[" * 400, "(" * 400, "{'a':" * 200,
]  # fmt: skip


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four changes of bytes anywhere: bits, runs, cuts, copies, too large numbers."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        size = len(out)
        at = rng.randrange(size + 1)
        length = min(size - at, int(rng.choice([1, 2, 4, 8, 64, 512]) * rng.uniform(0.5, 2)))
        match rng.randrange(8):
            case 0 if size:
                out[rng.randrange(size)] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + length] = rng.randbytes(length)
            case 2:
                del out[at:]
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[rng.randrange(size + 1) :][:length]
            case 5:
                out[at : at + length] = bytes(length)
            case 6:
                out[at : at + length] = b"\xff" * length
            case _:
                number = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.getrandbits(32)])
                out[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
    return bytes(out)


def change_text(rng: random.Random, data: bytes) -> bytes:
    """One to three changes of words, lines or characters; sometimes of bytes or of the encoding."""
    if rng.random() < 0.2:
        return change_bytes(rng, data)
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        words = list(re.finditer(r"[\w.\-]+", text))
        lines = text.splitlines(keepends=True)
        match rng.randrange(7):
            case 0:
                text = text[:at] + rng.choice(_WORDS) + text[at:]
            case 1 if words:
                word = rng.choice(words)
                text = text[: word.start()] + rng.choice(_WORDS) + text[word.end() :]
            case 2 if words:
                word, other = rng.choice(words), rng.choice(words)
                text = text[: word.start()] + other[0] + text[word.end() :]
            case 3 if lines:
                rng.shuffle(lines)
                text = "".join(lines[: rng.randint(1, len(lines))])
            case 4 if lines:
                text = text + rng.choice(lines) * rng.choice([1, 2, 50])
            case 5:
                text = text[:at]
            case _:
                text = text[:at] + text[at + rng.randint(1, 10) :]
    encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"])
    return text.encode(encoding, "surrogatepass" if encoding == "utf-16" else "surrogateescape")


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Other values, keys and types inside JSON; sometimes other text."""
    if rng.random() < 0.25:
        return change_text(rng, data)
    value = json.loads(data)
    for _ in range(rng.randint(1, 2)):
        value = _mutate_value(rng, value)
    if rng.random() < 0.02:
        return b'{"a":' * 3000 + b"1" + b"}" * 3000
    return json.dumps(value).encode()


def change_json_lines(rng: random.Random, data: bytes) -> bytes:
    """Changes the JSON of one line, or the text of the file."""
    lines = data.splitlines()
    if not lines or rng.random() < 0.3:
        return change_text(rng, data)
    at = rng.randrange(len(lines))
    lines[at] = change_json(rng, lines[at])
    return b"\n".join(lines) + b"\n"


def _mutate_value(rng: random.Random, value: Any) -> Any:
    """A copy with one value or key replaced, removed or duplicated."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        out = dict(value)
        name = rng.choice(list(out))
        match rng.randrange(4):
            case 0:
                del out[name]
            case 1:
                out[rng.choice(["", "x", "../x", name + "2"])] = out.pop(name)
            case _:
                out[name] = _mutate_value(rng, out[name])
        return out
    if isinstance(value, list) and value and rng.random() < 0.8:
        out_list = list(value)
        at = rng.randrange(len(out_list))
        match rng.randrange(4):
            case 0:
                del out_list[at]
            case 1:
                out_list.insert(at, out_list[at])
            case _:
                out_list[at] = _mutate_value(rng, out_list[at])
        return out_list
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice([-value, value + 1, value * 10**9, value - 1, value / 2])
    return rng.choice(_HOSTILE)


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Changes bytes, or a header that stays JSON of the correct length: our metadata, or names, types, shapes."""
    if rng.random() < 0.3:
        return change_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    ours = header.get("__metadata__", {}).get("fewtokens")
    if ours is not None and rng.random() < 0.6:
        header["__metadata__"]["fewtokens"] = change_json(rng, ours.encode()).decode("utf-8", "replace")
    else:
        name = rng.choice([name for name in header if name != "__metadata__"] or ["__metadata__"])
        entry = dict(header[name])
        match rng.randrange(4):
            case 0:
                header[rng.choice(["x", "blocks.1000000.norm1.weight", "aux.", "", "../x"])] = header.pop(name)
            case 1 if "shape" in entry:
                entry["shape"] = rng.choice([[*entry["shape"], 1], entry["shape"][::-1], entry["shape"][1:], [-1]])
                header[name] = entry
            case 2 if "dtype" in entry:
                entry["dtype"] = rng.choice(["F32", "I32", "U32", "F16", "BF16", "BOOL", "U8", "I64", "F8_E4M3", "X"])
                header[name] = entry
            case _:
                header[name] = _mutate_value(rng, entry)
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        rest = change_bytes(rng, rest)
    return struct.pack("<Q", len(text)) + text + rest


def change_zip(rng: random.Random, data: bytes) -> bytes:
    """Changes bytes of the archive, or of one member of an archive that stays valid."""
    if rng.random() < 0.4:
        return change_bytes(rng, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.7 else names) if names else ""
        for name in names:
            content = source.read(name)
            if name == chosen:
                content = change_bytes(rng, content)
            target.writestr(name, content)
    return out.getvalue()


def change_tar(rng: random.Random, data: bytes) -> bytes:
    """Changes bytes anywhere, or in the header of a member with a corrected checksum."""
    if rng.random() < 0.5 or len(data) < 1024:
        return change_bytes(rng, data)
    out = bytearray(data)
    headers = [at for at in range(0, len(out) - 511, 512) if out[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return change_bytes(rng, data)
    at = rng.choice(headers)
    start, length = rng.choice([(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155)])
    out[at + start : at + start + length] = change_bytes(rng, bytes(out[at + start : at + start + length]))[
        :length
    ].ljust(length, b"\0")
    out[at + 148 : at + 156] = b" " * 8
    out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)
