"""Scorers: the relevance of frames for a question, and the features that selectors compare."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.checks import SCORERS, check_scorer
from fewtokens.core.encoder import Encoder
from fewtokens.core.selection import pixel_features
from fewtokens.encoders.load import load_encoder
from fewtokens.video.footage import SmallFrames

# Frames in one forward pass of a model.
BATCH = 32


class Scorer(ABC):
    """The base class of scorers.

    A scorer either compares features, one vector per frame, with the question, and then each frame is encoded once for
    all questions; or scores thumbnails directly (`compares_features` is False), as a language model that answers
    whether a frame is relevant.

    Attributes:
        id: what the scores depend on; part of the key under which they are cached.
        size: short side of the thumbnails, in pixels.
        needs_question: whether the scores depend on a question.
        compares_features: whether `score` reads features instead of thumbnails.
        lasting: whether `id` has the same meaning in every process, so that features and scores are also kept on disk;
            not inherited, since a subclass may compute others.
    """

    id: str
    size: int = 64
    needs_question: bool = False
    compares_features: bool = True
    lasting: bool = False

    def features(self, frames: Tensor) -> Tensor:
        """Returns one vector per frame, float32 [n,C], for frames uint8 [n,3,h,w]. Default: from the pixels."""
        return pixel_features(frames)

    @abstractmethod
    def score(self, thumbnails: SmallFrames, question: str | None, features: Tensor | None) -> Tensor:
        """Returns the relevance of each frame, float32 [T].

        Args:
            thumbnails: T frames, with their times.
            question: the question; a text if `needs_question`.
            features: [T,C], the results of `features`; None unless `compares_features`.
        """


class PixelScorer(Scorer):
    """Scores novelty, 1 - cosine to the frame before, from pixels (`fewtokens.core.selection.pixel_features`)."""

    id, lasting = "features", True

    def score(self, thumbnails: SmallFrames, question: str | None, features: Tensor | None) -> Tensor:
        assert features is not None
        return novelty(features)


class EncoderScorer(PixelScorer):
    """Scores novelty from the mean features of an encoder, [T,C] per frame without class tokens.

    Args:
        encoder: an encoder, which receives the frames in batches.
    """

    size = 224
    _numbers = count()

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.lasting = encoder.fingerprint is not None
        # Encoders without files of weights may have one name and other features.
        own = encoder.fingerprint if self.lasting else f"number {next(self._numbers)}"
        self.id = f"features:{encoder.id}:{own}:{encoder.options}"

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        rows = [self.encoder(part[:, None])[0].features.float().mean(1).cpu() for part in frames.split(BATCH)]
        return torch.cat(rows)


class Oracle(Scorer):
    """Scores by time, for tests and upper bounds.

    Args:
        function: maps seconds, float64 [T], to relevance [T].
    """

    compares_features = False
    _numbers = count()

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        # No two have the same scores.
        self.function, self.id = function, f"oracle {next(self._numbers)}"

    def score(self, thumbnails: SmallFrames, question: str | None, features: Tensor | None) -> Tensor:
        return self.function(thumbnails.times).float()


def novelty(features: Tensor) -> Tensor:
    """Returns 1 - cosine of each row of [T,C] to the row before, float32 [T]; 0 for the first one."""
    x = F.normalize(features.float(), dim=1)
    return F.pad(1 - (x[1:] * x[:-1]).sum(1), (1, 0))


def load_scorer(name: str | Scorer, *, device: str = "auto") -> Scorer:
    """Loads a scorer by name.

    Args:
        name: "clip:FOLDER", a text-image model of transformers (CLIP, SigLIP, SigLIP 2; a folder or hub id);
            "features", the novelty of each frame, which needs no question and no weights; "features:ENCODER", the same
            by the features of an encoder, see `load_encoder`; or a scorer, which is returned unchanged.
        device: device of the model, see `load_encoder`.

    Raises:
        ValueError: an unknown name, a model without the parts that it needs, or "model", which only a
            `fewtokens.llm.Session` takes.
    """
    if isinstance(name, Scorer):
        return name
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"scorer must be {SCORERS}, or a Scorer, got {type(name).__name__}")
    check_scorer(str(name))
    if str(name) == "model":
        raise ValueError(
            "scorer 'model' is the language model of a session: use fewtokens ask --scorer model, "
            "Session(scorer='model'), or pass fewtokens.llm.ModelScorer(model, processor)"
        )
    kind, _, model = str(name).partition(":")
    if kind == "clip":
        from fewtokens.selection.text_image import TextImageScorer

        return TextImageScorer(model, device=device)
    return EncoderScorer(load_encoder(model, device=device)) if model else PixelScorer()
