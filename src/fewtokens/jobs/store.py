"""`Store`: where a job writes its files, a folder or a URI of another file system such as s3://bucket/tokens."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewtokens.core import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Store:
    """A folder, or a URI that fsspec can open (with the package of its protocol, such as s3fs).

    A file appears complete or not at all: it is written to a temporary path, then renamed, or uploaded in one request.

    Args:
        target: path or URI.
    """

    target: str

    @property
    def is_local(self) -> bool:
        """Whether this is a folder."""
        return "://" not in self.target

    def __str__(self) -> str:
        return self.target

    def path(self, name: str) -> str:
        """Returns the path or URI of a file.

        Raises:
            ValueError: the name leads out of the folder.
        """
        parts = name.split("/")
        if not all(parts) or "." in parts or ".." in parts:
            raise ValueError(f"{name!r} leads out of {self.target}")
        return os.path.join(self.target, name) if self.is_local else posixpath.join(self.target, name)

    def _remote(self) -> tuple[Any, str]:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.target)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.target}: cannot be opened ({files.one_line(error)})") from None

    def names(self, folder: str) -> list[str]:
        """Returns the sorted names of the files in a subfolder, [] if it does not exist; hidden ones are skipped."""
        if self.is_local:
            path = Path(self.target, folder)
            found = [entry.name for entry in os.scandir(path)] if path.is_dir() else []
        else:
            system, root = self._remote()
            path_ = posixpath.join(root, folder)
            found = (
                [posixpath.basename(each) for each in system.ls(path_, detail=False)] if system.exists(path_) else []
            )
        return sorted(name for name in found if not name.startswith("."))

    def read(self, name: str) -> str | None:
        """Returns the content of a UTF-8 file, or None if it does not exist.

        Raises:
            ValueError: the content is not UTF-8.
            OSError: it cannot be read.
        """
        if self.is_local:
            path = Path(self.path(name))
            return files.read_text(path) if path.exists() else None
        system, root = self._remote()
        path_ = posixpath.join(root, name)
        return system.cat_file(path_).decode("utf-8") if system.exists(path_) else None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields a temporary local path, whose file replaces `name` on success and is removed on failure."""
        if self.is_local:
            with files.atomic_file(self.path(name)) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="fewtokens-") as folder:
            path = Path(folder, "file")
            yield path
            system, root = self._remote()
            destination = posixpath.join(root, name)
            system.makedirs(posixpath.dirname(destination), exist_ok=True)
            system.put_file(str(path), destination)

    def write(self, name: str, text: str) -> None:
        """Writes UTF-8 text."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8", newline="\n")

    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""
        if self.is_local:
            Path(self.path(name)).unlink(missing_ok=True)
            return
        system, root = self._remote()
        if system.exists(path := posixpath.join(root, name)):
            system.rm_file(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one job; the lock ends with the process. A URI, or Windows, has no lock.

        Raises:
            ValueError: another job holds it.
        """
        if not self.is_local or fcntl is None:
            yield
            return
        Path(self.target).mkdir(parents=True, exist_ok=True)
        handle = os.open(self.target, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.target}: another job is writing into this folder; wait for its end, or give another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(handle)
