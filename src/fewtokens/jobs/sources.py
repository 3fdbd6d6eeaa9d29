"""The videos of a job: from lists, folders and patterns; URLs are downloaded when their turn comes."""

from __future__ import annotations

import glob
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from fewtokens.core.checks import is_collection
from fewtokens.core.files import read_lines
from fewtokens.core.identity import describe_source
from fewtokens.data.folders import walk
from fewtokens.data.footage import find_footage
from fewtokens.data.lerobot import is_lerobot, open_dataset
from fewtokens.data.lists import VIDEOS, is_fiftyone
from fewtokens.video.images import is_image

# Seconds without a byte after which a download fails, and the largest download.
TIMEOUT, MAX_BYTES = 30.0, 64 << 30


def find_sources(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Finds videos.

    Args:
        arguments: videos; folders, which are searched at any depth for videos and folders of images; patterns such as
            "videos/**/*.mp4"; LeRobot datasets, each episode of which is a video; folders that FiftyOne exported; and
            lists, .txt files with a path or URL per line (paths are relative to the list). A path or URL may end in
            "#t=2.5,10", a part in seconds.

    Returns:
        (path or URL as given, absolute path or URL) of each video, once; of an episode that is a part of a file, its
        name and the part. Files that a list names need not exist.

    Raises:
        ValueError: an argument names no video.
    """
    found: dict[str, str] = {}
    for text in arguments:
        count = len(found)
        for name, location in _expand(text):
            found.setdefault(location if is_url(location) else os.path.abspath(location), name)
        if len(found) == count and not any(True for _ in _expand(text)):
            raise ValueError(f"{text}: no videos; expected a video, a folder, a pattern or a .txt with one per line")
    return [(name, location) for location, name in found.items()]


def _expand(text: str) -> Iterator[tuple[str, str]]:
    """Yields a name and the path or URL of each video; the name is the path, except of a part of a file."""
    path = Path(text)
    if is_lerobot(path):
        for name, item in open_dataset(path).footage().items():
            part = "" if item.end is None else f"#t={item.start or 0.0:.4f},{item.end:.4f}"
            yield os.path.join(text, name) if part else item.path, f"{item.path}{part}"
        return
    for location in _locate(text, path):
        yield location, location


def _locate(text: str, path: Path) -> Iterator[str]:
    if not is_collection(text):
        if not path.exists():
            raise ValueError(f"{text}: no such file or folder")
        yield text
    elif is_fiftyone(path):
        found = find_footage(path)
        # Missing files become rows with an error.
        yield from (*(item.path for item in found.items), *(os.path.join(path, name) for name in found.missing))
    elif path.is_dir():
        for folder, names in walk(path, []):
            yield from (os.path.join(folder, name) for name in names if Path(name).suffix.lower() in VIDEOS)
            if any(is_image(Path(name)) for name in names if Path(name).suffix.lower() not in VIDEOS):
                yield folder
    elif path.suffix.lower() == ".txt":
        for _, line in read_lines(path):
            entry = line.strip()
            yield entry if is_url(entry) else os.path.join(path.parent, entry)
    else:
        yield from sorted(glob.glob(text, recursive=True))


def is_url(location: str) -> bool:
    """Whether this is a URL, not a path."""
    return "://" in location


_PART = re.compile(r"(.+)#t=(\d{1,9}(?:\.\d{1,9})?),(\d{1,9}(?:\.\d{1,9})?)", re.DOTALL)


def split_part(location: str) -> tuple[str, tuple[float, float] | None]:
    """Splits a location as in "film.mp4#t=2.5,10" (Media Fragments URI, W3C) into that of the file and (start, end).

    A file that has this name is not split.
    """
    match = None if os.path.exists(location) else _PART.fullmatch(location)
    return (location, None) if match is None else (match[1], (float(match[2]), float(match[3])))


def whole_file(location: str) -> str:
    """Returns the path of the file at a location: without the "#t=2.5,10" of a part, or the "::a.mp4" in a tar."""
    return location if os.path.exists(location) else re.split("#t=|::", location, maxsplit=1)[0]


@contextmanager
def local_file(location: str, check: Callable[..., None] = lambda: None) -> Iterator[Path]:
    """Yields the local path of a video; that of a URL (http, https) is a temporary file.

    Args:
        location: path or URL.
        check: called during a download; may raise an error to end it.

    Raises:
        ValueError: the URL cannot be reached, or the file is too large.
    """
    if not is_url(location):
        yield Path(location)
        return
    if not location.startswith(("http://", "https://")):
        raise ValueError(f"{location}: only http and https URLs can be read; mount or copy the file")
    with tempfile.TemporaryDirectory(prefix="fewtokens-") as folder:
        path = Path(folder, "video" + Path(location.partition("?")[0]).suffix[:8].replace("/", ""))
        try:
            with urllib.request.urlopen(location, timeout=TIMEOUT) as reply, open(path, "wb") as file:
                while block := reply.read(1 << 20):
                    check()
                    file.write(block)
                    if file.tell() > MAX_BYTES:
                        raise ValueError(f"{location}: larger than {MAX_BYTES >> 30} GiB")
        except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ValueError(f"{location}: cannot be downloaded ({' '.join(str(reason).split())})") from None
        yield path


@contextmanager
def local_source(location: str, check: Callable[..., None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the local path of a video, and its identity as token files store it; see `local_file`.

    Raises:
        ValueError: there is no such file, or the URL cannot be reached.
    """
    with local_file(location, check) as path:
        if not path.exists():
            raise ValueError(f"{location}: no such file")
        source = describe_source(path) | {"name": path.name}
        if is_url(location):
            name = location.partition("?")[0].rpartition("/")[2]
            source |= {"path": location, "mtime_ns": 0, "name": name}
        yield path, source
