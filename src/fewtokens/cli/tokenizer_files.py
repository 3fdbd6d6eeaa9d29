"""The tokenizers that encoded videos name, for `decode` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewtokens.tokenizers import Tokenizer
    from fewtokens.tokenizers.files import Header


class StoredTokenizers:
    """The tokenizers of files, each loaded once.

    Args:
        name: folder, hub id, preset or spec to use instead of that of the header, or None.
        device: device of the tokenizers.
    """

    def __init__(self, name: str | None, device: str) -> None:
        self.name, self.device = name, device
        self.loaded: dict[str, Tokenizer] = {}

    def __call__(self, path: Path, header: Header) -> Tokenizer:
        """Returns the tokenizer of a file.

        Raises:
            ValueError: it cannot be loaded, or the file was encoded by another.
        """
        from fewtokens.tokenizers.files import check_tokenizer as check_fit
        from fewtokens.tokenizers.load import open_tokenizer

        source = header["tokenizer"]
        if source["fingerprint"] not in self.loaded:
            origin = source["origin"]
            name = self.name or origin.get("folder") or origin.get("name")
            if not isinstance(name, str):
                raise ValueError(f"{path}: does not name its tokenizer; give its folder as --tokenizer")
            options = {} if self.name else {key: origin[key] for key in ("tiny", "seed") if key in origin}
            try:
                tokenizer = open_tokenizer(name, device=self.device, **options)
            except ValueError as error:
                hint = "" if self.name else "; if it has moved, give its folder as --tokenizer"
                raise ValueError(f"{path}: its tokenizer cannot be loaded ({error}){hint}") from None
            check_fit(path, header, tokenizer)
            self.loaded[source["fingerprint"]] = tokenizer
        return self.loaded[source["fingerprint"]]
