"""The Hugging Face hub: folders down, and what can save itself up. huggingface-hub is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def from_hub(name: str, patterns: Sequence[str] = ("*.json", "*.safetensors")) -> Path:
    """The folder of a hub id; only files of these patterns are downloaded, and only those that are not there yet.

    Raises:
        ValueError: no such folder, and the hub does not have it.
    """
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise ValueError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(f"{name}: no such folder; for a hub id first pip install 'fewtokens[hf]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: no such folder here, and the hub does not give it ({reason})") from None


class Pushable:
    """Adds `push_to_hub` to what has a `save_pretrained`."""

    def save_pretrained(self, folder: str | Path) -> Path:
        raise NotImplementedError

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, message: str = ""
    ) -> str:
        """Saves it and uploads the folder in one commit.

        Args:
            repo_id: "user/name"; created if needed.
            private: of a repository that is created; None takes the default of the account.
            token: of the account; None takes the one that `hf auth login` stored.
            message: of the commit.

        Returns:
            The address of the repository.

        Raises:
            ValueError: huggingface-hub is missing, or what the hub says, in one line.
        """
        try:
            from huggingface_hub import HfApi
            from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
        except ImportError:
            raise ValueError("pushing to the hub needs huggingface-hub; pip install 'fewtokens[hf]'") from None
        api: Any = HfApi(token=token)
        with TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / "model")
            try:
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                message = message or f"Upload {type(self).__name__}"
                api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
            except (HFValidationError, LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
                raise ValueError(f"{repo_id}: the hub refuses it ({' '.join(str(error).split())[:200]})") from None
        return str(address)
