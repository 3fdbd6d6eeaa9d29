"""DyCoke's cache on handmade attention."""

from __future__ import annotations

import torch

from fewtokens.core import registry
from fewtokens.core.layer_method import CacheState


def test_tokens_are_chosen_again_when_attention_changes():
    (method,) = registry.build("dycoke_cache(keep=0.5, layer=2)")
    assert method.cache_point(8).score_layer == 1
    video = torch.tensor([[False, True, True, True, True]])
    first = torch.tensor([[0.0, 0.4, 0.3, 0.2, 0.1]])
    kept = method.choose_cached(CacheState(first, video, video, None, None))
    assert kept.tolist() == [[False, True, True, False, False]]
    similar = first + torch.tensor([[0.0, 0.0, 0.0, 0.01, 0.0]])
    assert method.choose_cached(CacheState(similar, video, video, first, kept)) is None
    moved = first.flip(1).roll(1, 1)
    again = method.choose_cached(CacheState(moved, video, video, first, kept))
    assert again.tolist() == [[False, False, False, True, True]]
    # Of two prompts, only the one whose attention changed.
    both = CacheState(
        torch.cat([similar, moved]), video.expand(2, -1), video.expand(2, -1), first.expand(2, -1), kept.expand(2, -1)
    )
    assert method.choose_cached(both).tolist() == [*kept.tolist(), *again.tolist()]
