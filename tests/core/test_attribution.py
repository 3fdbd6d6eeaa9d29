"""Attribution in blocks of frames has the values of attribution to all cells, in memory linear in time."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampler
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.profiling.memory import peak_memory
from tests.helpers.clips import clip, cues

# Methods whose tokens are sums over a frame, or over a few.
BLOCKS = {
    "spatial_pool": 1, "spatial_pool(2, side=3)": 1, "grid_split('4/frame')": 1, "grid_split('50/frame')": 1,
    "tokenlearner('3/frame')": 1, "tokenlearner('3/frame', version='1.1')": 1, "pool_mlp('3/frame')": 1,
    "dense_tokens('3/frame')": 1, "llama_vid('5/frame')": 1, "ppllava((2, 2, 3), tau=0.3)": 2,
    "ppllava((3, 2, 2), tau=0.5)": 3, "pvc(2)": 1, "vista_llama('3/frame')": 1,
}  # fmt: skip
LATER = ["tome(0.04)", "random(0.1)", "kmeans(4)", "tome_video(0.05)", "perceiver(3, num_layers=1)"]
FIELDS = ("features", "positions", "sizes", "mask", "assignment")


def build(spec: str):
    torch.manual_seed(0)
    (method,) = registry.build(spec, dim=24)
    return method.eval()


def inputs(method, tokens: Tokens) -> dict[str, torch.Tensor]:
    return {name: cues(tokens)[name] for name in method.needs}


def dense(plan: Plan) -> Plan:
    """The plan with weights [B,M,G*n]."""
    blocks = plan.block_weights.unbind(1)
    return Plan(
        plan.count,
        plan.num_slots,
        weights=torch.stack([torch.block_diag(*video) for video in zip(*blocks, strict=True)]),
    )


def both(spec: str, tokens: Tokens) -> tuple[Tokens, Tokens]:
    """The output of a method, and its tokens with attribution to all cells."""
    method = build(spec)
    with torch.no_grad():
        new = method.resample(tokens, **inputs(method, tokens))
        out = method(tokens, **inputs(method, tokens))
        plan = dense(new.plan)
        assert plan.weights is not None
        wide = tokens.apply(Plan(plan.count, plan.num_slots, weights=plan.weights[..., : tokens.N]))
    return out, wide if new.features is None else wide.replace(features=out.features)


def assert_equal(out: Tokens, wide: Tokens) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(out.check(), name), getattr(wide.check(), name), rtol=1e-5, atol=1e-6)
    assert wide.attribution is not None
    torch.testing.assert_close(out.cell_weights(), wide.cell_weights(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lengths", [None, [7, 3]])
@pytest.mark.parametrize("spec", BLOCKS)
class TestBlocksEqualAllCells:
    def test_tokens(self, spec, lengths):
        tokens = clip(T=7, lengths=lengths)
        out, wide = both(spec, tokens)
        assert out.block_frames == BLOCKS[spec]
        assert wide.block_frames == 7
        assert_equal(out, wide)
        assert out.attribution.shape[2] == BLOCKS[spec] * 30

    def test_every_operation(self, spec, lengths, tmp_path):
        tokens = clip(T=7, lengths=lengths)
        out, wide = both(spec, tokens)
        values = torch.randn(2, tokens.N, 3) * tokens.mask[..., None]
        torch.testing.assert_close(out.pool(values), wide.pool(values))
        torch.testing.assert_close(out.unmerge(), wide.unmerge())
        assert_equal(out.select([1, 0]), wide.select([1, 0]))
        assert_equal(out[1], wide[1])
        assert_equal(collate([out[1], out[0]]), collate([wide[1], wide[0]]))
        assert_equal(collate([out[1], wide[0]]), collate([wide[1], out[0]]))
        assert_equal(out.to_grid(Grid(7, 10, 6)), wide.to_grid(Grid(7, 10, 6)))
        assert_equal(out.sort_by_position(), wide.sort_by_position())
        assert_equal(Tokens.load(out.save(tmp_path / "a.safetensors")), Tokens.load(wide.save(tmp_path / "b")))
        weights = wide.cell_weights().unflatten(2, (7, -1))
        index, frames = torch.tensor([3, 0]), torch.tensor([6, 2])
        torch.testing.assert_close(out.cell_weights(index, frames), weights[:, index][:, :, frames].flatten(2))

    @pytest.mark.parametrize("later", LATER)
    def test_a_later_method(self, spec, lengths, later):
        if spec.startswith("pool_mlp"):
            pytest.skip("all tokens of a frame are at the same position, so rounding decides which are merged")
        out, wide = both(spec, clip(T=7, lengths=lengths))
        method = build(later)
        with torch.no_grad():
            assert_equal(method(out, **inputs(method, out)), method(wide, **inputs(method, wide)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    tokens = clip(T=5, lengths=[5, 2]).to(dtype)
    out, wide = both("grid_split('4/frame')", tokens)
    assert out.features.dtype == dtype
    assert_equal(out, wide)


def test_gradients_of_features_and_weights():
    tokens = clip(T=5, H=2, W=3)
    weights = torch.rand(2, 3, 2, 12, requires_grad=True)  # blocks of two frames, the last one of one frame
    features = tokens.features.clone().requires_grad_()
    count = torch.tensor([6, 6])
    direction = torch.randn(2, 6, tokens.C)

    def gradients(plan: Plan) -> tuple[torch.Tensor, ...]:
        out = tokens.replace(features=features).apply(plan)
        loss = (out.features * direction).sum() + out.cell_weights().square().sum()
        return torch.autograd.grad(loss, (features, weights))

    wide = dense(Plan(count, 6, weights=weights)).weights
    for actual, expected in zip(
        gradients(Plan(count, 6, weights=weights)), gradients(Plan(count, 6, weights=wide[..., :30])), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("groups", "frames"),
    [
        ([0, 1, 2, 3, 4, 5, 6], 1),  # one frame each
        ([0, 0, 1, 1, 2, 2, 3], 2),
        ([0, 0, 0, 1, 1, 1, 2], 3),
        ([0, 1, 1, 2, 2, 3, 4], 3),  # a block of two frames would separate frames 1 and 2
        ([0, 1, 1, 1, 1, 2, 3], 5),
        ([0, -1, -1, 1, -1, -1, 0], 7),
        ([-1, -1, 0, 0, -1, -1, 1], 2),
    ],
)
def test_merging_joins_as_few_blocks_as_possible(groups, frames):
    tokens = Tokens.from_cells(torch.randn(1, 7, 2, 2, 3))
    soft = tokens.apply(Plan(torch.tensor([7]), 7, weights=torch.rand(1, 7, 1, 4)))
    merged = soft.apply(Plan.group(torch.tensor([groups]), soft)).check()
    assert merged.block_frames == frames
    torch.testing.assert_close(merged.cell_weights() @ tokens.features, merged.features)
    fewer = merged.apply(Plan.keep(merged.frame > 0)).check()
    assert fewer.block_frames == frames
    torch.testing.assert_close(fewer.cell_weights() @ tokens.features, fewer.features)


def test_soft_after_soft():
    tokens = clip(T=4, H=2, W=3)
    soft = tokens.apply(Plan(torch.tensor([8, 8]), 8, weights=torch.rand(2, 4, 2, 6)))
    out = soft.apply(Plan(torch.tensor([5, 5]), 5, weights=torch.rand(2, 5, 8))).check()
    torch.testing.assert_close(out.attribution @ tokens.features, out.features)
    # Weights in blocks of tokens that already have attribution.
    eye = torch.eye(24).expand(2, -1, -1)
    same = tokens.apply(Plan(tokens.count, 24, weights=eye))
    out = same.apply(Plan(torch.tensor([8, 8]), 8, weights=torch.rand(2, 4, 2, 6))).check()
    torch.testing.assert_close(out.attribution @ tokens.features, out.features)


def test_a_token_without_positive_weights_stays_in_its_block():
    tokens = Tokens.from_cells(torch.randn(1, 3, 1, 2, 4))
    weights = torch.rand(1, 3, 1, 2)
    weights[0, 2] = -1
    out = tokens.apply(Plan(torch.tensor([3]), 3, weights=weights))
    torch.testing.assert_close(out.cell_weights() @ tokens.features, out.features)


def test_invalid_shapes():
    tokens = clip(T=4, H=2, W=3)
    for shape in [(2, 24, 7), (2, 24, 30), (2, 23, 6), (2, 24)]:
        with pytest.raises(ValueError, match="attribution must be"):
            tokens.replace(attribution=torch.zeros(shape))
    with pytest.raises(ValueError, match="num_slots must be 8, 2 for each of 4 blocks, got 7"):
        Plan(torch.tensor([7, 7]), 7, weights=torch.rand(2, 4, 2, 6))
    with pytest.raises(ValueError, match="one token per cell"):
        tokens.apply(Plan(torch.tensor([8, 8]), 8, weights=torch.rand(2, 8, 1, 3)))
    with pytest.raises(ValueError, match="the plan is for 2 videos of 18 tokens"):
        tokens.apply(Plan(torch.tensor([6, 6]), 6, weights=torch.rand(2, 3, 2, 6)))
    with pytest.raises(ValueError, match="no attribution"):
        tokens.cell_weights()


def test_a_batch_with_different_windows():
    method, text = build("ppllava(keep=0.1)"), torch.randn(3, 2, 24)
    videos = [clip(T=T, B=1, seed=T) for T in (7, 1, 4)]
    with torch.no_grad():
        out = method(collate(videos), text=text).check()
        for b, video in enumerate(videos):
            alone = method(video, text=text[b : b + 1])
            torch.testing.assert_close(out[b].features, alone.features, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(out[b].cell_weights(), alone.cell_weights(), rtol=1e-4, atol=1e-5)


def test_one_graph():
    tokens, method = clip(T=3), build("tokenlearner('3/frame')")
    compiled = torch.compile(lambda x: method(x), fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_equal(compiled(tokens), method(tokens))
        merge = Plan(torch.tensor([3, 3]), 3, torch.arange(9).expand(2, -1) // 3)
        out = torch.compile(Tokens.apply, fullgraph=True, backend="eager")(method(tokens), merge)
        torch.testing.assert_close(out.attribution, method(tokens).apply(merge).cell_weights())
        values = torch.randn(2, tokens.N, 3)
        pooled = torch.compile(Tokens.pool, fullgraph=True, backend="eager")(method(tokens), values)
        torch.testing.assert_close(pooled, method(tokens).pool(values))


@pytest.mark.parametrize(
    "spec", [name for name in registry.names() if issubclass(registry.get(name), Resampler) and name != "vqtoken"]
)
def test_memory_is_linear_in_time(spec):
    """At 512 frames at most 2.3 times the memory of 256; a table of outputs and cells would have 4 times."""
    method = build(spec)

    def peak(frames: int) -> int:
        tokens = clip(T=frames, H=3, W=4, B=1)

        def run() -> None:
            out = method(tokens, **inputs(method, tokens))
            out.pool(torch.zeros(1, tokens.N, 2))

        with torch.no_grad():
            return peak_memory(run, torch.device("cpu"))

    assert peak(512) < 2.3 * peak(256)
