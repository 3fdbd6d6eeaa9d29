"""Vector quantization with a frozen vocabulary: the code of a token is a word of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codebooks import book_losses, nearest, take
from fewtokens.methods.ops.codes import check_codebook, project, projection, real_rows, straight_through

# Weight of the distance of projected words to tokens, as in V2L, and the size of a random table.
_CODEBOOK, _SIZE, _CODE_DIM = 0.33, 1024, 48


class FrozenVq(Quantizer):
    """Replaces each token by the nearest word of a frozen table of embeddings, through a trained projection.

    V2L (arXiv 2403.07874): tokens and projected words have length 1, and only the projection W of the words is trained,
    never the table: loss |sg(W e) - z|^2 + 0.33 |W e - sg(z)|^2, averaged. A random table reconstructs as well, so
    a small error does not show that the words describe the video.

    Args:
        table: path of a file of `save_vocabulary`, the embeddings of words; None for a random table without words.
        dim: channels of the tokens; linear layers lead to the entries and back. No layers if equal to the channels of
            the table.
        size: number of entries of a random table, at least 2. Default: 1024.
        code_dim: channels of a random table. Default: 48.
        seed: of a random table. Default: 0.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Beyond Text: Frozen Large Language Models in Visual Signal Comprehension (V2L), arXiv 2403.07874"
    license = "written from the paper"
    cost = "O(N K D) for K words of D channels"

    def __init__(
        self,
        table: str | None = None,
        *,
        dim: int = 384,
        size: int | None = None,
        code_dim: int | None = None,
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.table, self.dim, self.size, self.code_dim = table, dim, size, code_dim
        self.seed, self.checkpoint = seed, checkpoint
        self.words: tuple[str, ...] = ()
        if table is None:
            size, code_dim = size or _SIZE, code_dim or _CODE_DIM
            check_codebook(size, code_dim)
            embeddings = torch.randn(size, code_dim, generator=torch.Generator().manual_seed(seed))
        else:
            if size is not None or code_dim is not None:
                raise ValueError("size and code_dim are those of a random table; leave them out with table")
            embeddings, self.words = load_vocabulary(table)
        self.embeddings: Tensor
        # Not in the checkpoint: it follows from `table` or `seed`.
        self.register_buffer("embeddings", embeddings, persistent=False)
        width = embeddings.shape[1]
        self.project_words = nn.Linear(width, width, bias=False)
        self.project_in, self.project_out = projection(dim, width), projection(width, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (len(self.embeddings),)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        x = F.normalize(project(self.project_in, features), dim=-1)
        table = self._projected()
        codes = nearest(x, table, "dot")
        entry, losses = take(table, codes), {}
        if self.training:
            losses = book_losses(real_rows(x, mask), real_rows(entry, mask), 1.0)
            losses["codebook"] = _CODEBOOK * losses["codebook"]
        return Quantized(project(self.project_out, straight_through(entry, x)), codes[..., None], losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return project(self.project_out, take(self._projected(), codes[..., 0]))

    def to_words(self, codes: Tensor) -> list[str]:
        """Returns the words of codes, int64 of any shape, in their order; "" for -1.

        Raises:
            ValueError: the table is random.
        """
        self._check_words()
        return [self.words[code] if code >= 0 else "" for code in codes.flatten().tolist()]

    def to_codes(self, words: Sequence[str]) -> Tensor:
        """Returns the codes of words, int64 [n]; -1 for "".

        Raises:
            ValueError: the table is random, or a word is not in it.
        """
        self._check_words()
        index = {"": -1, **{word: code for code, word in enumerate(self.words)}}
        if unknown := [word for word in words if word not in index]:
            raise ValueError(f"{self.table} has no word {unknown[0]!r}")
        return torch.tensor([index[word] for word in words], dtype=torch.int64)

    def _check_words(self) -> None:
        if not self.words:
            raise ValueError(f"{self.name} has a random table, which has no words; set table to a vocabulary file")

    def _projected(self) -> Tensor:
        """The projected words, of length 1, float32 [K,D]."""
        return F.normalize(project(self.project_words, self.embeddings), dim=-1)


def save_vocabulary(path: str | Path, embeddings: Tensor, words: Sequence[str]) -> Path:
    """Writes embeddings of words to a safetensors file, for the argument `table`.

    Args:
        path: output path, usually ending in `.safetensors`.
        embeddings: [K,D] float, such as rows of the input embeddings of a language model.
        words: K different words, not "".

    Raises:
        ValueError: the number of words is not that of the rows, or a word occurs twice.
    """
    _check_vocabulary(str(path), embeddings, words)
    return files.save(path, "vocabulary", {"embeddings": embeddings}, {"words": list(words)})


def load_vocabulary(path: str | Path) -> tuple[Tensor, tuple[str, ...]]:
    """Reads a file of `save_vocabulary`: embeddings [K,D] in float32, and K words.

    Raises:
        ValueError: the file does not exist, is corrupt, or is not of `save_vocabulary`.
    """
    tensors, header = files.load(path, "vocabulary")
    embeddings, words = tensors.get("embeddings", torch.zeros(0)), header.get("words", ())
    _check_vocabulary(str(path), embeddings, words)
    return embeddings.float(), tuple(words)


def _check_vocabulary(path: str, embeddings: Tensor, words: Sequence[str]) -> None:
    if embeddings.ndim != 2 or len(embeddings) < 2 or not embeddings.is_floating_point():
        raise ValueError(f"{path}: embeddings must be floats [K,D] of at least 2 words, got {list(embeddings.shape)}")
    if len(words) != len(embeddings) or len({*words, ""}) != len(words) + 1:
        raise ValueError(f"{path}: {len(embeddings)} embeddings require as many different words, got {len(set(words))}")
