"""Specs of earlier versions build current methods; current specs are unchanged."""

from __future__ import annotations

import pytest

from fewtokens.core import registry
from fewtokens.core.legacy import current_spec


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rlt(tau=0.1, longest=0, width=384) | tome(keep=0.1, stage='tokens')", "rlt(tau=0.1) | tome(keep=0.1)"),
        ("tome(r=(8, -1), stage='encoder')", "tome_in_encoder(r=(8, -1))"),
        (
            "representation_shift(keep=0.25, stage='encoder', layers=3)",
            "representation_shift_in_encoder(keep=0.25, layers=3)",
        ),
        ("representation_shift(keep=0.25, stage='tokens', layers=3)", "representation_shift(keep=0.25)"),
        ("tokenlearner(num_tokens=8, width=64, version='1.0')", "tokenlearner(keep='8/frame', dim=64, version='1.0')"),
        ("tokenlearner(8)", "tokenlearner('8/frame')"),
        (
            "perceiver(num_tokens=16, width=24, num_layers=2, heads=8)",
            "perceiver(keep=16, dim=24, num_layers=2, heads=8)",
        ),
        ("llama_vid(grid=2, width=24)", "llama_vid(keep='5/frame', dim=24)"),
        ("token_dynamics(keep=9, width=24, mode='reference', side=3)", "vqtoken(keep=9, dim=24, side=3)"),
        ("token_dynamics(keep=9, width=24, mode='paper', side=27)", "token_dynamics(keep=9, dim=24, mode='paper')"),
        ("dynamic_pool(total=2048, most=144)", "dynamic_pool(keep=2048, most=144)"),
        ("fastvid(keep=0.25, step=4, neighbours=4)", "fastvid(keep=0.25, stride=4, neighbors=4)"),
        (
            "visionzip(keep=0.25, contextual=0.2, normalise=True)",
            "visionzip(keep=0.25, contextual=0.2, normalize=True)",
        ),
    ],
)
def test_old_specs(old, new):
    assert current_spec(old) == new
    registry.build(new)


def test_current_specs_are_unchanged():
    for name in registry.names():
        spec = registry.get(name)().spec
        assert [method.spec for method in registry.build(current_spec(spec))] == [spec]
    for odd in ("tome(", "a.b | c", "lambda: 1", "tome(keep={})"):
        assert current_spec(odd) in (odd, odd.replace(" ", ""))
