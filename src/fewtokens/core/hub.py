"""Downloads from and uploads to the Hugging Face hub. huggingface-hub is imported on first use."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def from_hub(name: str, patterns: Sequence[str] = ("*.json", "*.safetensors")) -> Path:
    """Downloads a hub repository and returns its local folder.

    Args:
        name: hub id, such as "user/name".
        patterns: glob patterns of the files to download; cached files are not downloaded again.

    Raises:
        ValueError: `name` is not a hub id, huggingface-hub is not installed, or the download fails.
    """
    check_hub_id(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise ValueError(
            f"no such folder: {name}; if it is a hub id, install huggingface-hub with pip install 'fewtokens[hf]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError:
        reason = "access to it is restricted; request it on the hub, then run hf auth login"
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private"
    except LocalEntryNotFoundError:
        reason = "it is not in the local cache, and the hub cannot be reached"
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = f"the download from the hub failed ({textwrap.shorten(str(error), 200)})"
    raise ValueError(f"no such folder: {name}; {reason}")


def check_hub_id(name: str) -> None:
    """Raises ValueError if this can only be a path, not a hub id."""
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise ValueError(f"no such folder: {name}")


def check_on_hub(name: str) -> None:
    """Raises the error of `from_hub` if a repository is neither in the local cache nor on the hub; without torch."""
    check_hub_id(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        snapshot_download(name, local_files_only=True)
    except (ImportError, HFValidationError, LocalEntryNotFoundError):
        from_hub(name, ("config.json",))


class Pushable:
    """A mixin that adds `push_to_hub` to a class with `save_pretrained`."""

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the object to a folder; defined by the class."""
        raise NotImplementedError

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, message: str = ""
    ) -> str:
        """Saves the object and uploads the folder in one commit.

        Args:
            repo_id: "user/name"; the repository is created if needed.
            private: whether a new repository is private. None for the default of the account.
            token: access token. None for the one stored by `hf auth login`.
            message: commit message. Default: "Upload <class name>".

        Returns:
            The URL of the repository.

        Raises:
            ValueError: huggingface-hub is not installed, or the hub rejects the upload.
        """
        try:
            from huggingface_hub import HfApi
            from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
        except ImportError:
            raise ValueError(
                "push_to_hub requires huggingface-hub; install it with pip install 'fewtokens[hf]'"
            ) from None
        api: Any = HfApi(token=token)
        with TemporaryDirectory() as parent:
            folder = self.save_pretrained(Path(parent) / "model")
            try:
                url = api.create_repo(repo_id, private=private, exist_ok=True)
                message = message or f"Upload {type(self).__name__}"
                api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
            except (HFValidationError, LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
                raise ValueError(f"{repo_id}: upload failed ({' '.join(str(error).split())[:200]})") from None
        return str(url)
