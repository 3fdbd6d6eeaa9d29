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
            "#t=2.5,10", a part in seconds, of which one may be missing; see `split_part`.

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
            location = join_part(item.path, (item.start, item.end))
            yield item.path if location == item.path else os.path.join(text, name), location
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


_SECONDS = r"\d{1,9}(?:\.\d{1,20})?(?:e-\d{1,3})?"
_PART = re.compile(rf"(.+)#t=(?=,?\d)({_SECONDS})?(?:,({_SECONDS})?)?", re.DOTALL)

# Start and end in seconds; None for that of the file.
Part = tuple[float | None, float | None]


def split_part(location: str) -> tuple[str, Part | None]:
    """Splits a location as in "film.mp4#t=2.5,10" into that of the file and (start, end), either of which may be None.

    The syntax is that of Media Fragments URI (W3C): "#t=10" is from second 10 on, "#t=,10" up to it. A file that has
    this name is not split.
    """
    match = None if os.path.exists(location) else _PART.fullmatch(location)
    if match is None:
        return location, None
    start, end = (float(second) if second else None for second in match.groups()[1:])
    return match[1], (start, end)


def join_part(location: str, part: Part) -> str:
    """Returns the location of a part of a file; `split_part` undoes it."""
    start, end = ("" if second is None else repr(float(second)) for second in part)
    return f"{location}#t={start},{end}" if start or end else location


def whole_file(location: str) -> str:
    """Returns the path of the file at a location: without the "#t=2.5,10" of a part, or the "::a.mp4" in a tar."""
    file, _ = split_part(location)
    return file if os.path.exists(file) else file.partition("::")[0]


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
