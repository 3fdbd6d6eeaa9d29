"""Learned queries against loops, and what `ordered` and a budget per frame mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core import registry
from tests.helpers.clips import assert_same_tokens
from tests.helpers.resamplers import (
    C,
    build,
    layer_norm,
    linear,
    mlp,
    position_embedding,
    run_method,
    softmax,
    split_frames,
    to_numpy,
    video,
)


def make(spec: str):
    torch.manual_seed(0)
    (method,) = registry.build(spec, dim=C)
    return method.double().eval()


def block_by_loops(x: np.ndarray, block, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pre-norm block over x [N,C], and its weights averaged over heads."""
    q, k, v = np.split(linear(layer_norm(x, block.norm1), block.qkv), 3, 1)
    d = C // block.heads
    mixed, mean = np.zeros_like(x), np.zeros((len(x), len(x)))
    for head in range(block.heads):
        part = slice(head * d, (head + 1) * d)
        for n in range(len(x)):
            keys = np.flatnonzero(visible[n])
            weights = softmax(np.array([q[n, part] @ k[m, part] / np.sqrt(d) for m in keys]))
            mixed[n, part] = weights @ v[keys][:, part]
            mean[n, keys] += weights / block.heads
    x = x + linear(mixed, block.out)
    return x + mlp(layer_norm(x, block.norm2), block.mlp), mean


@pytest.mark.parametrize("ordered", [False, True])
def test_against_loops(ordered):
    method, tokens = make(f"learned_queries(5, num_layers=2, heads=2, ordered={ordered})"), video(2)
    out = run_method(method, tokens)
    for b in range(2):
        positions = to_numpy(tokens.positions[b])
        x = to_numpy(tokens.features[b]) + position_embedding(positions, 3, 4, method.places)
        N = len(x)
        visible = np.ones((N + 5, N + 5), dtype=bool)
        if ordered:
            visible[:, N:] = np.tril(np.ones((N + 5, 5)), -N)
        x = np.concatenate([x, to_numpy(method.queries)])
        for block in method.blocks:
            x, weights = block_by_loops(x, block, visible)
        weights = weights[N:, :N]
        np.testing.assert_allclose(to_numpy(out.features[b]), layer_norm(x[N:], method.norm), rtol=1e-5, atol=1e-6)
        shown = to_numpy(out.cell_weights()[b])
        np.testing.assert_allclose(shown / shown.sum(1, keepdims=True), weights / weights.sum(1, keepdims=True), 1e-4)


def test_the_first_ordered_queries_do_not_depend_on_later_ones():
    whole, tokens = make("learned_queries(6, num_layers=3, heads=2, ordered=True)"), video()
    prefix = make("learned_queries(4, num_layers=3, heads=2, ordered=True)")
    state = whole.state_dict()
    prefix.load_state_dict({**state, "queries": state["queries"][:4]})
    torch.testing.assert_close(run_method(prefix, tokens).features, run_method(whole, tokens).features[:, :4])
    free = make("learned_queries(6, num_layers=3, heads=2)")
    free.load_state_dict(state)
    short = make("learned_queries(4, num_layers=3, heads=2)")
    short.load_state_dict(prefix.state_dict())
    assert not torch.allclose(run_method(short, tokens).features, run_method(free, tokens).features[:, :4], atol=1e-3)


def test_queries_per_frame_are_those_of_each_frame():
    method, tokens = make("learned_queries('3/frame', num_layers=2, heads=2)"), video(lengths=[2, 4])
    out = run_method(method, tokens).check()
    assert out.count.tolist() == [6, 12]
    assert method.planned_count(tokens.grid) == 12
    assert out.block_frames == 1
    still = make("learned_queries(3, num_layers=2, heads=2)")
    still.load_state_dict(method.state_dict())
    first = split_frames(tokens)[0]
    torch.testing.assert_close(out.features[:, :3], run_method(still, first).features)
    with pytest.raises(ValueError, match="works on whole frames"):
        run_method(method, build("perceiver")(tokens))


def test_more_queries_than_cells():
    tokens = video(1, 1, 2)
    out = run_method(make("learned_queries(9, num_layers=1, heads=2)"), tokens).check()
    assert out.count.tolist() == [9, 9]
    assert_same_tokens(out[0], run_method(make("learned_queries(9, num_layers=1, heads=2)"), tokens[0]), 1e-9)


@pytest.mark.parametrize("style", [None, "titok"])
def test_untrained_queries_differ(style):
    """Queries that all compute nearly the same token at the start remain so for long."""
    torch.manual_seed(0)
    (method,) = registry.build(f"learned_queries(8, num_layers=3, heads=2, style={style!r})", dim=64)
    (encoder,) = registry.build("bottleneck(64)", dim=C)
    with torch.no_grad():
        tokens = method(encoder(video(2).to(torch.float32))).features
    unit = torch.nn.functional.normalize(tokens, dim=2)
    others = (unit @ unit.mT)[:, ~torch.eye(8, dtype=torch.bool)]
    assert float(others.mean()) < 0.3


def test_styles():
    with pytest.raises(ValueError, match="style must be 'titok' or 'titok_mixed' or 'larp'"):
        make("learned_queries(5, style='vit')")
    method = make("learned_queries(5, num_layers=2, heads=2, style='larp')")
    names = {name for name, _ in method.named_parameters()}
    assert not names & {"class_token", "norm.weight", "blocks.0.qkv.bias"}
    assert not any(name.startswith("places") for name in names)
    plain, mixed = (
        make(f"learned_queries(5, num_layers=1, heads=2, style={style!r})") for style in ("titok", "titok_mixed")
    )
    mixed.load_state_dict(plain.state_dict())
    queries = run_method(plain, video(2)).features
    expected = queries.flatten(1).unflatten(1, (queries.shape[2], queries.shape[1])).mT
    torch.testing.assert_close(run_method(mixed, video(2)).features, expected)
