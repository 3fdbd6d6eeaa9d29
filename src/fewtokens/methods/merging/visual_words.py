"""Visual Word Tokenizer (VWT): patches of little variance go, or patches of the same visual word become one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import best_match
from fewtokens.methods.ops.groups import share_out, sizes_of
from fewtokens.methods.ops.search import to_budget
from fewtokens.methods.ops.segments import rank_within

# What the published code is given: pixels as CLIP's processor makes them.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Stands in the header of a vocabulary of such pixels.
_PIXELS = "normalized by CLIP's mean and deviation"


class VisualWords(Reducer):
    """Before the encoder: the most varied patches of each frame, or one token for each visual word in it.

    VWT (arXiv 2411.15397). Without a vocabulary ("intra-image") the patches of each frame with the largest variance of
    their pixels stay, about half of them in the paper. With one ("inter-image") a patch whose nearest word is within
    `distance` (cosine) joins the other patches of its frame with that word, and they become their mean; every other
    patch stays alone. (In the reference code the numbers of lonely patches collide with those of words where the
    vocabulary is larger than a patch has values.) A vocabulary is fitted by `fit_words`, or `fewtokens words`.

    Variances and cosines are those of pixels normalized by CLIP's mean and deviation of each channel, which is what the
    published code is given; the budget of a video is dealt out evenly over its frames.

    Args:
        keep: share of the cells (float) or count (int), 0.5 by default without words; with words a budget
            instead of `distance`, which is then searched for.
        words: a file of `save_words`.
        distance: 0.1 in the paper (None).
    """

    stage = "pixels"
    paper = "Visual Word Tokenizer, arXiv 2411.15397"
    license = "written from the description; the reference code is GPL-3.0"
    cost = "O(pixels), with words O(pixels V)"

    def __init__(
        self, keep: float | int | str | None = None, *, words: str | None = None, distance: float | None = None
    ) -> None:
        super().__init__()
        if distance is not None and words is None:
            raise ValueError("distance is for visual_words(words=FILE)")
        self.take_budget(keep, default=0.5 if words is None else None, distance=distance)
        if distance is not None and not 0 <= distance <= 2:
            raise ValueError(f"distance is 1 - cosine, in [0, 2], got {distance}")
        self.words = words
        self.distance = None if self.budget else 0.1 if distance is None else float(distance)
        self.vocabulary: Tensor | None
        self.register_buffer("vocabulary", None if words is None else load_words(words), persistent=False)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        pixels = _normalized(cues["pixels"])
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        if self.vocabulary is None:
            counts = share_out(self.counts(tokens), sizes_of(frame, tokens.grid.T))
            variance = pixels.var(2, correction=0)
            kept = rank_within(-variance, frame, tokens.grid.T) < counts.gather(1, frame.clamp(min=0))
            return Plan.keep(kept & tokens.mask)
        vocabulary = self.vocabulary.to(tokens.device)
        if pixels.shape[2] != vocabulary.shape[1]:
            raise ValueError(
                f"{self.words}: its words have {vocabulary.shape[1]} values, these patches {pixels.shape[2]}; "
                "fit words on patches of the same size"
            )
        unit = F.normalize(vocabulary, dim=1).expand(tokens.B, -1, -1)
        similar, word = best_match(F.normalize(pixels, dim=2), unit)
        similar = similar.clamp(max=1)

        def merged(similarity: Tensor) -> Plan:
            label = _by_word(word, similar >= similarity[:, None], frame, tokens.grid.T, unit.shape[1])
            return Plan.group(label, tokens, tokens.N)

        if self.distance is not None:
            return merged(torch.full_like(similar[:, 0], 1 - self.distance))
        reduced = to_budget(lambda tau: tokens.apply(merged(tau)), self.counts(tokens), -1.0, 1.01)
        return Plan.from_assignment(tokens, reduced)


def _by_word(word: Tensor, near: Tensor, frame: Tensor, frames: int, words: int) -> Tensor:
    """The first token of the same frame with the same word, or the token itself where no word is near; int64 [B,N]."""
    own = torch.arange(word.shape[1], device=word.device).expand_as(word)
    key = (frame * words + word).masked_fill(~near | (frame < 0), frames * words)
    first = torch.full((len(word), frames * words + 1), word.shape[1], device=word.device)
    first = first.scatter_reduce(1, key, own, "amin")
    return torch.where(near, first.gather(1, key), own).masked_fill(frame < 0, -1)


def _normalized(pixels: Tensor) -> Tensor:
    """Pixels [B,N,P,D] in 0..1, channel last, as float32 [B,N,P*D] in CLIP's scale."""
    mean, std = (torch.tensor(value, device=pixels.device) for value in (CLIP_MEAN, CLIP_STD))
    return ((pixels.float().unflatten(-1, (-1, 3)) - mean) / std).flatten(2)


def fit_words(batches: Iterable[Tensor], words: int, seed: int = 0) -> Tensor:
    """A vocabulary of visual words by MiniBatchKMeans, float32 [words,D], of pixels normalized as CLIP's.

    Args:
        batches: patches in 0..1, each [n,D] as the cue "pixels" has them, sub-frames in a row. They are collected
            until there are at least as many as words, then each batch is one step.
        words: 100, 1,000 and 10,000 in the paper.

    Raises:
        ValueError: fewer patches than words; scikit-learn is missing.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise ValueError("fitting words needs scikit-learn; pip install 'fewtokens[eval]'") from None
    model = MiniBatchKMeans(n_clusters=words, random_state=seed, n_init=1)
    waiting: list[Tensor] = []
    fitted = False
    for batch in batches:
        waiting.append(_normalized(batch.flatten(1)[None, :, None])[0].cpu())
        if sum(map(len, waiting)) >= words:
            model.partial_fit(torch.cat(waiting).numpy())
            waiting, fitted = [], True
    if not fitted:
        raise ValueError(f"{sum(map(len, waiting))} patches are too few for {words} words")
    return torch.from_numpy(model.cluster_centers_).float()


def save_words(words: Tensor, path: str | Path, **header: Any) -> Path:
    """Writes a vocabulary [V,D] of `fit_words` for `visual_words(words=PATH)`; the header is kept beside it."""
    return files.save(path, "words", {"words": words}, {"pixels": _PIXELS, **header})


def load_words(path: str | Path) -> Tensor:
    """What `save_words` wrote.

    Raises:
        ValueError: missing, damaged, something else, or words of pixels that were not normalized.
    """
    tensors, header = files.load(path, "words")
    if "words" not in tensors or tensors["words"].ndim != 2:
        raise ValueError(f"{path}: holds no vocabulary")
    if header.get("pixels") != _PIXELS:
        raise ValueError(f"{path}: holds words of raw pixels, from an earlier fewtokens; fit them again")
    return tensors["words"].float()
