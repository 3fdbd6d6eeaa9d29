"""Trains tiny presets on a few clips, for the laws of trained tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers import Tokenizer, create_tokenizer, get_preset
from fewtokens.tokenizers.blocks.rates import constant
from fewtokens.train.tokenizer import ReconstructionObjective
from fewtokens.train.tokenizer_recipe import make_tokenizer_recipe
from fewtokens.video import synthetic

_CHECK = 50
# Learning rates other than 2e-3, at which these networks do not settle.
_RATES = dict.fromkeys(("divot", "vidtok_fsq_262144", "one_d_piece", "flextok", "semanticist"), 5e-4)


def clips(name: str, count: int) -> Tensor:
    """Different clips of the size of the tiny preset, uint8 [count,T,3,H,W]."""
    T, height, width = get_preset(name).tiny_clip
    kinds = ("pan", "shapes")
    videos = [
        synthetic(kinds[index % 2], frames=T, size=(height, width), seed=index // 2).frames for index in range(count)
    ]
    return torch.stack(videos)


def train(
    name: str, frames: Tensor, steps: int, *, batch: int = 8, decay: bool = False
) -> Iterator[tuple[int, Tokenizer]]:
    """Trains a tiny preset with the losses of its recipe; yields it in eval mode after every 50 steps.

    Args:
        batch: clips per step, at random if there are more.
        decay: whether the learning rate falls to 0 in the second half.
    """
    torch.manual_seed(0)
    tokenizer = create_tokenizer(name, tiny=True)
    objective = ReconstructionObjective(make_tokenizer_recipe(name), tokenizer)
    rate = _RATES.get(name, 2e-3)
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        rest = 2 * (1 - (step - 1) / steps) if decay else 1.0
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 10, rest)
        some = frames if len(frames) <= batch else frames[torch.randperm(len(frames), generator=generator)[:batch]]
        loss, _ = objective(tokenizer.train(), {"frames": some}, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % _CHECK == 0:
            yield step, tokenizer.eval()


def psnr(frames: Tensor, decoded: Tensor) -> float:
    """In dB, of the squared error over all clips."""
    return -10 * math.log10(float((frames.float() / 255 - decoded).square().mean()))


def mean_frame_psnr(frames: Tensor) -> float:
    """Of the mean of all frames, the best that a decoder which does not read its tokens can give."""
    return psnr(frames, (frames.float() / 255).mean((0, 1)))


Parts = Iterator[tuple[int, Tokens]]


def first_tokens(tokenizer: Tokenizer, frames: Tensor) -> Parts:
    """The first 1, 2, 4, 8 and 16 tokens of each clip."""
    (drop,) = [method for method in tokenizer.methods if method.name == "tail_drop"]
    for count in (1, 2, 4, 8, 16):
        drop.set_budget(count)
        yield count, tokenizer.encode(frames)


def first_codes(tokenizer: Tokenizer, frames: Tensor) -> Parts:
    """The first codes of each token, which are those of the coarse scales."""
    tokens = tokenizer.encode(frames)
    assert tokens.codes is not None
    for count in range(1, tokens.codes.shape[-1] + 1):
        codes = tokens.codes.clone()
        codes[..., count:] = -1
        yield count, tokens.replace(codes=codes)


def last_codes(tokenizer: Tokenizer, frames: Tensor) -> Parts:
    """The last codes of each token, which are those of the coarse depths."""
    tokens = tokenizer.encode(frames)
    assert tokens.codes is not None
    for count in range(1, tokens.codes.shape[-1] + 1):
        codes = tokens.codes.clone()
        codes[..., : codes.shape[-1] - count] = -1
        yield count, tokens.replace(codes=codes)


def rates(tokenizer: Tokenizer, frames: Tensor) -> Parts:
    """All tokens of each rate of CAT."""
    for rate in (2, 1, 0):
        tokenizer.policy = constant(rate)  # type: ignore[assignment]
        tokens = tokenizer.encode(frames)
        yield tokens.N, tokens


# What the presets decode in part, and how to encode it, from few to many.
PARTS: dict[str, tuple[str, Callable[[Tokenizer, Tensor], Parts]]] = {
    "one_d_piece": ("tokens", first_tokens),
    "flextok": ("tokens", first_tokens),
    "semanticist": ("tokens", first_tokens),
    "imagefolder": ("scales", first_codes),
    "coda": ("scales", first_codes),
    "tokenflow": ("scales", first_codes),
    "hitvideo": ("depths", last_codes),
    "cat": ("tokens", rates),
}
