"""Laws of all methods. The tests run over the registry, so that every registered method is tested."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtokens.core import registry
from fewtokens.core.batch import collate, concatenate, split_frames
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, Reducer, Resampler
from fewtokens.core.syntax import folder
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import assert_same_tokens, clip, cues, run_method
from tests.laws.laws import (
    CONSERVES,
    CONSTANT_MEMORY,
    DROPS_AND_MERGES,
    NEVER_THE_IDENTITY,
    PARTITION,
    ROUNDING_CASCADES,
    SIZES_ARE_IMPORTANCE,
    SQUARE,
    UNORDERED,
    check_metadata,
)

# Methods with arguments other than the defaults.
VARIANTS = [
    "dtd(mode='pixel')",
    "dtd(keep=0.3)",
    "dtd(mode='pixel', keep=0.4)",
    "evs(tau=0.3)",
    "rlt(keep=0.3)",
    "length_embedding(4)",
    "spatial_pool(keep=0.2)",
    "grid_split(0.3)",
    "storm(keep=0.2)",
    "ppllava(keep=0.2)",
    "tome('5/frame')",
    "evs('7/frame')",
    "vqtoken(criterion='elbow', between=(3, 6))",
    "grt(measure='ssim')",
    "grt(keep=0.4, measure='rms')",
    "dycoke(keep=0.5)",
    "dtd(0.3, mode='relative')",
    "kmeans(criterion='silhouette', k_min=3, k_max=8)",
    "kmeans(criterion='elbow', k_min=3, k_max=8)",
    "dpc_knn(0.2, neighbors=3)",
    "random(0.1, seed=7)",
    "tokenlearner('4/frame', version='1.1')",
    "tokenlearner('3/frame', pool='mean')",
    "spatial_pool(2, side=3)",
    "holitom(0.1, tau=0.99, center=1.0)",
    "fastvid(0.1, segments=2, tau=0.3, context=0.8, stride=2)",
    "scissor(keep=0.2)",
    "sttm(keep=0.2)",
    "sttm(0.5, tau_time=0.3, weighted=True)",
    "sttm(0.5, levels=3, strips='last')",
    "evs(q=0.6)",
    "vidcom2(q=0.8)",
    "pixelprune(0.6)",
    "cdpruner(0.3, relevance='none')",
    "vispruner(0.3, important=0.2, drop=3)",
    "dynamic_pool(20, most=9)",
    "frame_fusion(keep=0.4)",
    "centerclip(0.2, frames=3, medoid=False)",
    "tome_in_encoder(0.3)",
    "merge_windows_in_encoder(0.4, window=2)",
    "vid_tldr(r=[8, 0.5], by='shift')",
    "representation_shift_in_encoder(0.3, layers=2)",
    "centerclip(0.2, algorithm='spectral')",
    "dycoke(0.5, last_group='pruned')",
    "visionzip(0.3, contextual=0.5)",
    "prunevid(keep=0.2, tau=0.9)",
    "prumerge(0.3)",
    "prumerge(plus=True, neighbors=3)",
    "vispruner(0.3, important=0.3, drop=2)",
    "testa(0.2, time=0.0)",
    "tempme(0.1, joins=(3,))",
    "tome_video(0.3, within='frame')",
    "merge_windows(0.4, window=2)",
    "metok(keep=0.2, events=2, key_events=1, key_frames=1)",
    "metok(by='text')",
    "token_dynamics(5, mode='paper')",
    "token_dynamics(criterion='silhouette', between=(3, 8))",
    "perceiver(5, num_layers=2, heads=5)",
    "qformer(5, num_layers=3)",
    "token_turing(5, memory=6, read=2, num_layers=1)",
    "llama_vid('10/frame')",
    "ppllava((1, 2, 2), tau=0.1)",
    "storm(3, spatial=2, num_layers=2)",
    "linvt(5, selected=20, scales=(1, 3))",
    "pvc(2, repeat=2, num_layers=1)",
    "pvc(3, repeat=1)",
    "vista_llama('4/frame', num_layers=1)",
    "langdc(5, frames=3, side=2, vocabulary=3, num_layers=1)",
    "tail_drop('3/frame')",
    "tail_drop(20)",
    "dcode_tokens(0.7, tau=0.1)",
    "b_vllm(20, tokens=3, num_layers=1)",
    "marc(1, by='typical', alpha=0.0)",
    "free_video_llm(2, middle=2, fast=3, side=2, roi=0.4, center='mean', relevance='negative')",
]
# `test_memory.py` has the laws of memories.
NAMES = [name for name in registry.names() if name not in folder("memory")]
SPECS = [*NAMES, *VARIANTS]
# Methods that accept any budget for the full video.
BUDGET = [
    name
    for name in NAMES
    if "keep" in inspect.signature(registry.get(name)).parameters and not issubclass(registry.get(name), Resampler)
]
with torch.device("meta"):  # random weights take most of the time
    _BUILT = {spec: registry.build(spec)[0] for spec in SPECS}
CAUSAL = [spec for spec, method in _BUILT.items() if method.causal]
# Methods that accept the output of a resampler.
AFTER_RESAMPLERS = [
    spec for spec, method in _BUILT.items() if method.stage == "tokens" and not method.needs and not method.full_grid
]


def build(spec: str, *, dim: int = 24, side: int = 5, **defaults) -> Method:
    """Builds a method for features of `dim` channels; learned methods always have the same parameters."""
    torch.manual_seed(0)
    if method_name(spec) in SQUARE:
        defaults["side"] = side
    (method,) = registry.build(spec, dim=dim, **defaults)
    return method.eval()


def sample(spec: str, T: int = 4, H: int = 5, W: int = 6, *rest, **options) -> Tokens:
    """Returns a clip that the method accepts, with square frames if it requires them."""
    return clip(T, H, H if method_name(spec) in SQUARE else W, *rest, **options)


def method_name(spec: str) -> str:
    return spec.partition("(")[0]


def valid_budgets(spec: str, *keeps: float | int) -> list[float | int]:
    """Returns the budgets that the method accepts; encoder methods, which run per frame, accept only fractions."""
    return [keep for keep in keeps if isinstance(keep, float) or registry.get(method_name(spec)).stage != "encoder"]


@pytest.mark.parametrize("spec", AFTER_RESAMPLERS)
def test_tokens_without_cells_have_sizes(spec):
    """A cell is assigned to the first of the tokens that use it equally, and the others may have no cell at all."""
    tokens, method = build("pool_mlp('20/frame')")(sample(spec)), build(spec)
    assert len(tokens.assignment.unique()) < tokens.N
    out = method(tokens).check()
    if method.name in PARTITION - SIZES_ARE_IMPORTANCE:
        torch.testing.assert_close(out.sizes.sum(1), tokens.sizes.sum(1))


def test_methods_are_registered():
    assert len(BUDGET) >= 9
    assert len(AFTER_RESAMPLERS) >= 9
    assert len(CAUSAL) >= 3


@pytest.mark.parametrize("spec", SPECS)
class TestEveryMethod:
    def test_metadata(self, spec):
        check_metadata(build(spec), build)

    def test_returns_valid_tokens(self, spec):
        tokens = sample(spec)
        out = run_method(build(spec), tokens)
        out.check()
        assert out.grid == tokens.grid
        assert int(out.count.max()) == out.N
        assert out.positions.dtype == out.sizes.dtype == torch.float32
        if isinstance(build(spec), Resampler):
            # A cell is divided among the tokens that use it, so that sizes sum to the number of used cells.
            torch.testing.assert_close(out.sizes.sum(1), (out.assignment >= 0).sum(1).float())
            assert out.attribution is not None
            return
        if method_name(spec) in SIZES_ARE_IMPORTANCE:
            assert bool((out.sizes <= tokens.sizes.sum()).all())
            return
        # Sizes are the numbers of assigned cells.
        counts = torch.zeros_like(out.sizes).scatter_add(
            1, out.assignment.clamp(min=0), (out.assignment >= 0).to(torch.float32)
        )
        torch.testing.assert_close(counts, out.sizes)

    def test_mass(self, spec):
        tokens, method = sample(spec), build(spec)
        out = run_method(method, tokens)
        if method.name in PARTITION:
            assert bool((out.assignment >= 0).all())
            if method.name not in SIZES_ARE_IMPORTANCE:
                torch.testing.assert_close(out.sizes.sum(1), tokens.sizes.sum(1))
        if method.name in CONSERVES:
            before = (tokens.sizes[..., None] * tokens.features).sum(1)
            after = (out.sizes[..., None] * out.features).sum(1)
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        if isinstance(method, Reducer) and method.stage != "encoder":
            # According to the plan: means weighted by size conserve the mass of the kept tokens.
            plan = method.decide(tokens, **{name: cues(tokens)[name] for name in method.needs})
            if plan.representative is plan.shares is plan.sizes is None:
                kept = tokens.sizes * (plan.dest >= 0)
                before = (kept[..., None] * tokens.features).sum(1)
                after = (out.sizes[..., None] * out.features).sum(1)
                torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(out.sizes.sum(1), kept.sum(1))
                return
        if method.name not in PARTITION | DROPS_AND_MERGES and not isinstance(method, Resampler):
            # Pruning only: kept features are unchanged.
            kept = tokens.features.gather(1, out.cell[..., None].expand(-1, -1, tokens.C))
            assert torch.equal(kept[out.mask], out.features[out.mask])

    def test_the_plan_reproduces_the_output(self, spec):
        """Applying the plan of a hard method gives the assignment of its output."""
        method, tokens = build(spec), sample(spec)
        inputs = {}
        if method.stage == "encoder":
            tokens, inputs = split_frames(tokens), {"layer": 0, "depth": 12}
        inputs |= {name: cues(tokens)[name] for name in method.needs}
        if isinstance(method, Resampler):
            with pytest.raises(ValueError, match=f"{method.name} computes new features"):
                method.decide(tokens, **inputs)
            return
        plan, out = method.decide(tokens, **inputs), method(tokens, **inputs)
        applied = tokens.apply(plan)
        assert torch.equal(applied.assignment, out.assignment)
        assert torch.equal(applied.count, out.count)
        assert applied.dropped == out.dropped

    def test_order_by_time(self, spec):
        if method_name(spec) in UNORDERED:
            pytest.skip("listed in laws.py")
        out = run_method(build(spec), sample(spec, T=6, B=1))
        t = out.positions[0, :, 0]
        assert bool((t[1:] >= t[:-1] - 1 / 1024).all())  # within the tolerance of `plan.by_position`

    def test_padding_does_not_change_the_result(self, spec):
        method = build(spec)
        videos = [sample(spec, T, B=1, seed=T) for T in (3, 6, 4)]
        batch = collate(videos)
        out = run_method(method, batch)
        for b, video in enumerate(videos):
            assert_same_tokens(out[b], run_method(method, video), 1e-4)

    def test_ragged_counts_do_not_change_the_result(self, spec):
        """Samples have different token counts after another method."""
        method = build(spec)
        if method.stage == "pixels":
            pytest.skip("must come first in a chain")
        if method.full_grid:
            with pytest.raises(ValueError, match=f"{method.name} works on whole frames"):
                run_method(method, run_method(build("dtd(0.5)"), sample(spec, B=3)))
            return
        ragged = run_method(build("dtd(0.5)"), sample(spec, B=3))
        assert len(set(ragged.count.tolist())) > 1
        out = run_method(method, ragged)
        for b in range(3):
            assert_same_tokens(out[b], run_method(method, ragged[b]), 1e-4)

    def test_permuting_the_batch_permutes_the_output(self, spec):
        tokens, order = sample(spec, B=3), [2, 0, 1]
        method = build(spec)
        assert_same_tokens(run_method(method, tokens).select(order), run_method(method, tokens.select(order)), 1e-4)

    def test_samples_are_independent(self, spec):
        tokens, method = sample(spec), build(spec)
        changed = tokens.replace(features=torch.cat([tokens.features[:1], tokens.features[1:].flip(1) * 3]))
        assert_same_tokens(run_method(method, tokens)[0], run_method(method, changed)[0], 1e-4)

    def test_deterministic(self, spec):
        method = build(spec)
        first = run_method(method, sample(spec))
        torch.manual_seed(12345)
        again = run_method(method, sample(spec))
        assert torch.equal(first.features, again.features)
        assert torch.equal(first.assignment, again.assignment)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, spec, dtype):
        """Decisions and sums are computed in float32, so the plan equals that of the same values in float32."""
        tokens = sample(spec).to(dtype)
        method = build(spec)
        out = run_method(method, tokens, blocks=1)  # half precision rounds between blocks
        assert out.features.dtype == dtype
        expected = run_method(method, tokens.to(torch.float32), blocks=1)
        assert torch.equal(out.assignment, expected.assignment)
        torch.testing.assert_close(out.features.float(), expected.features, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_parameters_in_half_precision(self, spec, dtype):
        """Parameters and tokens are cast, as in a model loaded in half precision."""
        tokens, method = sample(spec).to(dtype), build(spec)
        expected = run_method(method, tokens.to(torch.float32), blocks=1)
        out = run_method(method.to(dtype), tokens, blocks=1).check()
        assert out.features.dtype == dtype
        assert out.features.shape == expected.features.shape
        # Each token is compared with the nearest: tokens of equal mean time may be swapped.
        error = torch.cdist(out.features.float(), expected.features.float()).detach().amin(2)
        limit = 0.25 if method.name in ROUNDING_CASCADES else 0.05
        assert float(error.norm() / expected.features.detach().norm()) < limit

    def test_autocast_changes_no_decision(self, spec):
        """Methods without parameters compute in float32 also inside mixed-precision training."""
        method, tokens = build(spec), sample(spec)
        if method.learned:
            pytest.skip("has parameters")
        expected = run_method(method, tokens, blocks=1)
        with torch.autocast("cpu", torch.bfloat16):
            out = run_method(build(spec), tokens, blocks=1)
        assert torch.equal(out.assignment, expected.assignment)
        assert torch.equal(out.features, expected.features)

    def test_autocast(self, spec):
        """As in mixed-precision training, parameters stay in float32 and products do not."""
        with torch.autocast("cpu", torch.bfloat16):
            out = run_method(build(spec), sample(spec).to(torch.bfloat16), blocks=1).check()
        assert out.features.isfinite().all()

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (7, 1, 1), (2, 1, 9), (5, 3, 3)])
    @pytest.mark.parametrize("fill", ["random", "constant", "zero"])
    def test_edge_shapes_and_values(self, spec, shape, fill):
        tokens = sample(spec, *shape)
        if fill != "random":
            tokens = tokens.replace(features=torch.full_like(tokens.features, 0.0 if fill == "zero" else 1.5))
        for keep in valid_budgets(spec, 1, 2, 1.0, 10_000):
            method = build(spec, keep=keep, side=shape[1]) if spec in BUDGET else build(spec, side=shape[1])
            out = run_method(method, tokens).check()
            if method.planned_count(tokens.grid) is not None:
                assert out.count.tolist() == [method.planned_count(tokens.grid)] * tokens.B

    def test_gradients(self, spec):
        tokens = sample(spec)
        features = tokens.features.clone().requires_grad_()
        out = run_method(build(spec), tokens.replace(features=features))
        (out.features.square().sum()).backward()
        assert bool(features.grad.isfinite().all())
        assert float(features.grad.abs().sum()) > 0

    def test_a_missing_cue_is_named(self, spec):
        method = build(spec)
        for need in method.needs:
            with pytest.raises(ValueError, match=need):
                method(sample(spec))

    @pytest.mark.gpu
    def test_gpu_equals_cpu(self, spec):
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        tokens, method = sample(spec), build(spec)
        on_cpu = run_method(method, tokens)
        assert_same_tokens(run_method(method.to("cuda"), tokens.to("cuda")).to("cpu"), on_cpu, 1e-4)

    @settings(max_examples=min(8, settings.default.max_examples), deadline=None)
    @given(data=st.data())
    def test_any_shape(self, spec, data):
        T, H, W = (data.draw(st.integers(1, 5)) for _ in range(3))
        C = data.draw(st.integers(12, 17))
        lengths = data.draw(st.none() | st.lists(st.integers(1, T), min_size=2, max_size=2))
        tokens = sample(spec, T, H, W, C, seed=data.draw(st.integers(0, 3)), lengths=lengths)
        method = build(spec, dim=C, side=H)
        if spec in BUDGET:
            keep = data.draw(st.floats(0.01, 1) | st.integers(1, 70) if valid_budgets(spec, 1) else st.floats(0.01, 1))
            method = build(spec, dim=C, side=H, keep=keep)
        out = run_method(method, tokens).check()
        for count, grid in zip(out.count.tolist(), tokens.grid.videos(2), strict=True):
            assert count >= 1
            assert count <= grid.cells or isinstance(method, Resampler)
            assert method.planned_count(grid) in (None, count)
        assert not bool((out.assignment >= 0)[~tokens.grid.cell_mask(2)].any())
        assert out.unmerge().shape == (2, *tokens.grid.shape, C)


@pytest.mark.parametrize("spec", BUDGET)
class TestBudget:
    def test_a_budget_of_all_tokens_is_the_identity(self, spec):
        if spec in NEVER_THE_IDENTITY:
            pytest.skip("listed in laws.py")
        tokens = clip()
        for keep in valid_budgets(spec, 1.0, tokens.N, tokens.N + 5):
            out = run_method(build(spec, keep=keep), tokens)
            assert torch.equal(out.features, tokens.features)
            assert torch.equal(out.assignment, tokens.assignment)
            assert torch.equal(out.sizes, tokens.sizes)

    def test_the_count_equals_the_planned_count(self, spec):
        tokens = clip(T=5, H=7, W=3)
        for keep in valid_budgets(spec, 0.01, 0.1, 0.29, 0.5, 0.77, 1, 2, 21, 40, 104):
            method = build(spec, keep=keep)
            assert run_method(method, tokens).count.tolist() == [method.planned_count(tokens.grid)] * 2

    @pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, -0.1, True, "half", float("nan"), None])
    def test_invalid_budgets(self, spec, keep):
        if keep is None and inspect.signature(registry.get(spec)).parameters["keep"].default is None:
            pytest.skip("None is the default")
        with pytest.raises(ValueError, match="keep"):
            build(spec, keep=keep)


@pytest.mark.parametrize("spec", CAUSAL)
@pytest.mark.parametrize("chunks", [[6], [1] * 6, [2, 3, 1], [4, 2]])
def test_chunks_equal_the_full_video(spec, chunks):
    method, tokens = build(spec), clip(T=6)
    inputs = cues(tokens)
    expected = run_method(method, tokens)
    frame = tokens.grid.cells_per_frame
    outputs, state, start = [], None, 0
    for frames in chunks:
        cells = slice(start * frame, (start + frames) * frame)
        grid = Grid(frames, tokens.grid.H, tokens.grid.W, tokens.grid.times[start : start + frames])
        chunk = Tokens.from_cells(tokens.features[:, cells], grid)
        out, state = method.step(chunk, state, **{name: inputs[name][:, cells] for name in method.needs})
        outputs.append(out.check())
        start += frames
    joined = method.join(outputs)
    assert joined.grid == expected.grid
    if method.name in CONSTANT_MEMORY:
        assert torch.equal(joined.count, expected.count)
        torch.testing.assert_close(joined.positions, expected.positions, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(joined.features, expected.features, rtol=1e-4, atol=1e-4)
        return
    assert_same_tokens(joined, expected)
    # The state does not grow with the video; methods whose frames are independent have none.
    if state is not None:
        kept = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
        assert kept and all(value.shape[1] <= max(2 * frame, 32) for value in kept)
    assert torch.equal(concatenate(outputs).features, expected.features)
