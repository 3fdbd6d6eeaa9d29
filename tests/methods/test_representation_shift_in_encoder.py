"""Representation Shift inside a ViT, against a walk through its blocks."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.pruning.representation_shift_in_encoder import RepresentationShiftInEncoder
from tests.helpers.vits import embed_frames, small_vit


def test_shift_is_what_the_last_mlp_added():
    vit = small_vit()
    tokens = embed_frames(vit)
    _, cues = vit.walk(tokens, (), ("shift",))
    x = torch.cat([vit.prefix(3), tokens.features], 1)
    for block in vit.blocks:
        before = block.first(x, None, "none")[0]
        x = block.second(before)
    torch.testing.assert_close(cues["shift"], (x - before)[:, 2:].norm(dim=2))


@pytest.mark.parametrize(("layers", "layer"), [(1, 2), (3, 1)])
def test_drops_the_tokens_that_changed_least(layers, layer):
    """By the MLP of the previous block."""
    vit = small_vit()
    calls = []

    class Spy(RepresentationShiftInEncoder):
        def plan(self, tokens, *, shift, layer=0, depth=1):
            plan = super().plan(tokens, shift=shift, layer=layer, depth=depth)
            calls.append((layer, shift, plan))
            return plan

    tokens = embed_frames(vit)
    vit.walk(tokens, [Spy(0.5, layers=layers)])
    x = torch.cat([vit.prefix(3), tokens.features], 1)
    for block in vit.blocks[:layer]:
        middle = block.first(x, None, "none")[0]
        x = block.second(middle)
    expected = (x - middle)[:, 2:].norm(dim=2)
    call_layer, shift, plan = next(entry for entry in calls if entry[2].num_slots < 36)
    assert call_layer == layer
    torch.testing.assert_close(shift, expected)
    survivors = expected[0].argsort(descending=True)[: plan.num_slots].sort().values
    assert plan.representative[0].tolist() == survivors.tolist()
