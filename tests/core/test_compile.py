"""The types are pytrees; methods with a fixed count compile and export to one graph."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import clip, cues

SPECS = ["uniform", "evs(keep=0.3)", "tome", "kmeans(8, iterations=4)", "fastvid(0.3)", "vidcom2", "mean_pool"]


class Wrapped(nn.Module):
    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, tokens: Tokens, cues: dict[str, Tensor]) -> Tokens:
        return self.method(tokens, **cues)


@pytest.mark.parametrize("spec", SPECS)
def test_one_graph(spec):
    (method,) = registry.build(spec)
    tokens = clip(H=4, W=4, C=16)
    inputs = {name: cues(tokens)[name] for name in method.needs}
    expected = method(tokens, **inputs)
    compiled = torch.compile(Wrapped(method), fullgraph=True, backend="eager")
    exported = torch.export.export(Wrapped(method), (tokens, inputs))
    other = clip(H=4, W=4, C=16, seed=5)
    expected_other = method(other, **{name: cues(other)[name] for name in method.needs})
    for module in (compiled, exported.module()):
        out = module(tokens, inputs)
        assert out.grid == expected.grid
        assert torch.equal(out.assignment, expected.assignment)
        torch.testing.assert_close(out.features, expected.features)
        # The graph is valid for other values of the same shapes; none of the first values are baked in.
        again = module(other, {name: cues(other)[name] for name in method.needs})
        assert torch.equal(again.assignment, expected_other.assignment)
        torch.testing.assert_close(again.features, expected_other.features)


def test_an_exported_method_is_saved_and_loaded():
    (method,) = registry.build("uniform(0.3)")
    tokens = clip()
    file = io.BytesIO()
    torch.export.save(torch.export.export(Wrapped(method), (tokens, {})), file)
    file.seek(0)
    with torch.serialization.safe_globals([Tokens, Grid]):  # the example inputs are in the file
        loaded = torch.export.load(file)
    out = loaded.module()(tokens, {})
    assert torch.equal(out.features, method(tokens).features)


def test_apply_is_one_graph():
    tokens = clip()
    plan = Plan.keep(torch.arange(120).expand(2, -1) % 3 == 0, 40)
    out = torch.compile(Tokens.apply, fullgraph=True, backend="eager")(tokens, plan)
    assert torch.equal(out.features, tokens.apply(plan).features)


def test_pytrees():
    tokens = clip(lengths=[4, 2]).replace(meta={"spec": "x"}, dropped="held", aux={"loss": torch.tensor(2.0)})
    leaves, spec = _pytree.tree_flatten(tokens)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    again = _pytree.tree_unflatten(leaves, spec)
    assert again.grid == tokens.grid
    assert (again.meta, again.dropped, again.prefix) == ({"spec": "x"}, "held", None)
    double = _pytree.tree_map(lambda value: value * 2 if value.is_floating_point() else value, tokens)
    assert torch.equal(double.features, tokens.features * 2)
    assert double.aux["loss"] == 4
    names = [_pytree.keystr(path) for path, _ in _pytree.tree_flatten_with_path(tokens)[0]]
    assert ".features" in names
    assert ".grid.times" in names
    plan = Plan.keep(tokens.mask)
    assert len(_pytree.tree_leaves(plan)) == 3  # count, dest, representative
    assert _pytree.tree_leaves(Grid(1, 2, 3)) == []
