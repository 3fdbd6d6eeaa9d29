"""Clips and models for VQToken tests."""

from __future__ import annotations

import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.vqtoken import VqToken
from tests.helpers.clips import clip


def square_clip(T: int = 4, side: int = 3, B: int = 2) -> Tokens:
    return clip(T, side, side, B=B)


def make_vqtoken(keep: int | None = 5, *, side: int = 3, **options) -> VqToken:
    torch.manual_seed(1)
    return VqToken(keep, dim=24, side=side, **options).eval()
