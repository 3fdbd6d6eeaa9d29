"""Visual Word Tokenizer (VWT): drops patches of low variance, or merges patches with the same visual word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import best_match, merge_to
from fewtokens.methods.ops.groups import allocate
from fewtokens.methods.ops.search import find_threshold
from fewtokens.methods.ops.segments import rank_within

# The published code receives pixels normalized by CLIP's processor.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Header entry of a vocabulary of such pixels.
_PIXELS = "normalized by CLIP's mean and deviation"


class VisualWords(Reducer):
    """Keeps the highest-variance patches, or one token per visual word of a frame.

    VWT (arXiv 2411.15397). Without a vocabulary ("intra-image") the patches of each frame with the highest pixel
    variance are kept, about half of them in the paper. With a vocabulary ("inter-image") a patch whose nearest word is
    within `distance` (1 - cosine) merges with the other patches of its frame that have the same word, into their mean;
    every other patch remains separate. (In the reference code the ids of unmatched patches collide with those of words
    if the vocabulary is larger than the number of values of a patch.) A vocabulary is fitted by `fit_words` or
    `fewtokens words`.

    Variances and cosines are computed on pixels normalized by CLIP's mean and standard deviation per channel, as in the
    published code; the budget of a video is split evenly over its frames.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.5 without words; with
            words it replaces `distance`, which is then found by a search.
        words: path of a file written by `save_words`. Default: None, no vocabulary.
        distance: maximum 1 - cosine of a patch to its word, in [0, 2]. Default: 0.1, as in the paper.
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
            raise ValueError("distance requires words: visual_words(words=FILE)")
        self.set_budget(keep, default=0.5 if words is None else None, distance=distance)
        if distance is not None and not 0 <= distance <= 2:
            raise ValueError(f"distance must be in [0, 2] (1 - cosine), got {distance}")
        self.words = words
        self.distance = None if self.budget else 0.1 if distance is None else float(distance)
        self.vocabulary: Tensor | None
        self.register_buffer("vocabulary", None if words is None else load_words(words), persistent=False)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        pixels = _normalize_pixels(cues["pixels"])
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        if self.vocabulary is None:
            counts = allocate(self.counts(tokens), group_count(frame, tokens.grid.T))
            variance = pixels.var(2, correction=0)
            survives = rank_within(-variance, frame, tokens.grid.T) < counts.gather(1, frame.clamp(min=0))
            return Plan.keep(survives & tokens.mask)
        vocabulary = self.vocabulary.to(tokens.device)
        if pixels.shape[2] != vocabulary.shape[1]:
            raise ValueError(
                f"{self.words}: words have {vocabulary.shape[1]} values but patches have {pixels.shape[2]}; "
                "fit words on patches of the same size"
            )
        unit = F.normalize(vocabulary, dim=1).expand(tokens.B, -1, -1)
        similar, word = best_match(F.normalize(pixels, dim=2), unit)
        similar = similar.clamp(max=1)

        def merge_words(similarity: Tensor) -> Plan:
            label = _word_labels(word, similar >= similarity[:, None], frame, tokens.grid.T, unit.shape[1])
            return Plan.group(label, tokens, tokens.N)

        if self.distance is not None:
            return merge_words(torch.full_like(similar[:, 0], 1 - self.distance))
        target = self.counts(tokens)
        tau = find_threshold(lambda tau, _: merge_words(tau).count, target, tokens.count, -1.0, 1.01)
        plan = merge_words(tau)
        return plan.then(merge_to(tokens.apply(plan), target))


def _word_labels(word: Tensor, near: Tensor, frame: Tensor, frames: int, words: int) -> Tensor:
    """The first token of the same frame with the same word, or the token itself if no word is near; int64 [B,N]."""
    own = torch.arange(word.shape[1], device=word.device).expand_as(word)
    key = (frame * words + word).masked_fill(~near | (frame < 0), frames * words)
    first = torch.full((len(word), frames * words + 1), word.shape[1], device=word.device)
    first = first.scatter_reduce(1, key, own, "amin")
    return torch.where(near, first.gather(1, key), own).masked_fill(frame < 0, -1)


def _normalize_pixels(pixels: Tensor) -> Tensor:
    """Pixels [B,N,P,D] in 0..1, channel last, as float32 [B,N,P*D] normalized as for CLIP."""
    mean, std = (torch.tensor(value, device=pixels.device) for value in (CLIP_MEAN, CLIP_STD))
    return ((pixels.float().unflatten(-1, (-1, 3)) - mean) / std).flatten(2)


def fit_words(batches: Iterable[Tensor], words: int, seed: int = 0) -> Tensor:
    """Fits a vocabulary of visual words with MiniBatchKMeans, float32 [words,D], on pixels normalized as for CLIP.

    Args:
        batches: patches in 0..1, each [n,D] as in the cue "pixels", with sub-frames concatenated. They are collected
            until there are at least as many as words; each collected batch is one step.
        words: size of the vocabulary; 100, 1,000 and 10,000 in the paper.
        seed: random seed. Default: 0.

    Raises:
        ValueError: fewer patches than words, or scikit-learn is missing.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise ValueError("fitting words requires scikit-learn; install it with pip install 'fewtokens[eval]'") from None
    model = MiniBatchKMeans(n_clusters=words, random_state=seed, n_init=1)
    pending: list[Tensor] = []
    fitted = False
    for batch in batches:
        pending.append(_normalize_pixels(batch.flatten(1)[None, :, None])[0].cpu())
        if sum(map(len, pending)) >= words:
            model.partial_fit(torch.cat(pending).numpy())
            pending, fitted = [], True
    if not fitted:
        raise ValueError(f"at least {words} patches are required for {words} words, got {sum(map(len, pending))}")
    return torch.from_numpy(model.cluster_centers_).float()


def save_words(words: Tensor, path: str | Path, **header: Any) -> Path:
    """Writes a vocabulary [V,D] of `fit_words` for `visual_words(words=PATH)`; `header` is saved with it."""
    return files.save(path, "words", {"words": words}, {"pixels": _PIXELS, **header})


def load_words(path: str | Path) -> Tensor:
    """Reads a vocabulary written by `save_words`.

    Raises:
        ValueError: the file is missing, damaged or of another type, or its words were fitted on raw pixels.
    """
    tensors, header = files.load(path, "words")
    if "words" not in tensors or tensors["words"].ndim != 2:
        raise ValueError(f"{path}: contains no vocabulary")
    if header.get("pixels") != _PIXELS:
        raise ValueError(f"{path}: words were fitted on raw pixels by an earlier version of fewtokens; fit them again")
    return tensors["words"].float()
