"""The clips of a page: those of a folder, and those that it received, which are removed when it ends."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

from fewtokens.data.lists import VIDEOS
from fewtokens.video import read
from fewtokens.video.container import url
from fewtokens.video.images import is_image

# The number of uploads that are kept; the oldest is removed.
_MOST = 8
# Clips of a folder that are listed.
_LISTED = 1000
# Seconds in which an upload must arrive, and then be decoded.
_RECEIVE, _DECODE = 600, 60
# Control characters, separators and wildcards of any system, and marks that reverse the direction of text.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffd]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
_MAX_NAME = 120
# FFmpeg chooses the format by content. Others, such as playlists, refer to further files of this machine.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,gif"


class TooLarge(ValueError):
    """Raised for an upload beyond the limit of bytes."""


class Clips:
    """The clips that a page lists, by id.

    A clip is found by its id among those listed, so a name in a request is never part of a path.

    Args:
        folder: its videos and images are listed, not those of folders inside it; None for uploads only.
        uploads: an empty folder for what the page receives.
        max_bytes: of an upload.
        max_seconds: of an uploaded video.
    """

    def __init__(self, folder: Path | None, uploads: Path, *, max_bytes: int, max_seconds: float) -> None:
        self.folder, self.uploads, self.max_bytes, self.max_seconds = folder, uploads, max_bytes, max_seconds
        self._receiving = False

    def paths(self) -> dict[str, Path]:
        """Returns the paths by id: uploads first, the newest first, then the folder by name."""
        received = sorted(self._inside(self.uploads), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        own = [] if self.folder is None else self._inside(self.folder)
        return {f"upload/{path.name}": path for path in received} | {
            f"folder/{path.name}": path for path in own[:_LISTED]
        }

    def path(self, name: str) -> Path:
        """Returns the path of a clip.

        Raises:
            ValueError: no clip has this id.
        """
        found = self.paths().get(name)
        if found is None:
            raise ValueError("this clip does not exist any more; choose another")
        return found

    def _inside(self, folder: Path) -> list[Path]:
        """Returns the videos and images of a folder by name; links that lead out of it are not listed."""
        root = folder.resolve()
        return sorted(
            path
            for path in folder.iterdir()
            if _is_clip(path) and not path.name.startswith(".") and path.is_file()
            and path.resolve().is_relative_to(root) and _printable(path.name)
        )  # fmt: skip

    async def receive(self, name: str, parts: AsyncIterator[bytes], length: int | None) -> str:
        """Writes an upload to a temporary file, checks that it can be read, and returns its id.

        Args:
            name: the name that the browser gives, of which only the last part is used.
            parts: the bytes.
            length: their declared number, or None.

        Raises:
            TooLarge: more bytes than the limit.
            ValueError: another upload is arriving, the name is not that of a video or an image, the file cannot be
                read or is too long, or it did not arrive in time.
            OSError: the disk is full.
        """
        target = clean_name(name)
        if length is not None and length > self.max_bytes:
            raise TooLarge(self._too_large(target))
        if self._receiving:
            raise ValueError("another upload is arriving; wait for its end")
        self._receiving = True
        temporary: Path | None = None
        try:
            handle, text = tempfile.mkstemp(dir=self.uploads, prefix=".receiving-", suffix=Path(target).suffix)
            temporary = Path(text)
            with os.fdopen(handle, "wb") as file:
                await self._write(file, target, parts)
            await asyncio.to_thread(self._check, temporary, target)
            final = self._free(target)
            os.replace(temporary, final)
            os.utime(final)
            received = [path for path in self.paths().values() if path.parent == self.uploads]
            for path in received[_MOST:]:
                path.unlink()
            return f"upload/{final.name}"
        finally:
            self._receiving = False
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    async def _write(self, file: object, name: str, parts: AsyncIterator[bytes]) -> None:
        received = 0
        try:
            async with asyncio.timeout(_RECEIVE):
                async for part in parts:
                    received += len(part)
                    if received > self.max_bytes:
                        raise TooLarge(self._too_large(name))
                    file.write(part)  # type: ignore[attr-defined]
        except TimeoutError:
            raise ValueError(f"{name} did not arrive within {_RECEIVE} s") from None

    def _too_large(self, name: str) -> str:
        return (
            f"{name} is larger than {self.max_bytes / 1e6:g} MB; put it into the folder of the page, or start the page "
            "with a larger --max-upload"
        )

    def _check(self, path: Path, name: str) -> None:
        """Raises ValueError if the file is empty, cannot be decoded, or is too long."""
        end = time.monotonic() + _DECODE

        def check_time(done: int, total: int) -> None:
            if time.monotonic() > end:
                raise ValueError(f"{name} could not be checked within {_DECODE} s")

        if not is_image(path):
            check_format(path, name)
        try:
            video = read(path, frames=1, size=32, progress=check_time)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None
        if video.duration is not None and video.duration > self.max_seconds and not is_image(path):
            raise ValueError(
                f"{name} lasts {video.duration:.0f} s, more than {self.max_seconds:g} s; cut it, or put it into the "
                "folder of the page"
            )

    def _free(self, name: str) -> Path:
        """Returns a path in the folder of uploads that does not exist."""
        path, number = self.uploads / name, 1
        while path.exists():
            number += 1
            path = self.uploads / f"{Path(name).stem}-{number}{Path(name).suffix}"
        return path


def check_format(path: Path, name: str) -> None:
    """Raises ValueError if FFmpeg reads a file as another format than those of the suffixes of videos."""
    import av

    try:
        with av.open(url(path), options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"}):
            pass
    except (av.error.FFmpegError, OSError, ValueError):
        raise ValueError(f"{name} is not a video that this page accepts, or is damaged") from None


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS or is_image(path)


def _printable(name: str) -> bool:
    """Whether a name can be shown and sent; names of a folder may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_name(name: str) -> str:
    """Returns a file name that is safe on every system: the last part of a path, without special characters.

    Raises:
        ValueError: the suffix is not that of a video or an image.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    stem, suffix = os.path.splitext(_UNSAFE.sub("_", last).strip(". "))
    if not stem or not _is_clip(Path(f"a{suffix}")):
        shown = _UNSAFE.sub("_", last)[:_MAX_NAME] or "the file"
        raise ValueError(f"{shown}: the name must end in {', '.join(sorted(VIDEOS))}, or in that of an image")
    stem = stem.strip(". ") or "clip"
    while len(stem.encode()) > _MAX_NAME:
        stem = stem[:-1]
    return f"_{stem}{suffix}" if _RESERVED.fullmatch(stem.partition(".")[0].strip()) else f"{stem}{suffix}"
