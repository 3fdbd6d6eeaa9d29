"""What every method must hold. It runs over the registry: a new method is tested by being registered."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtokens.core import registry
from fewtokens.core.batch import collate, concatenate, split_frames
from fewtokens.core.grid import Grid
from fewtokens.core.method import CUES, STAGES, Method, Reducer, Resampler
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import clip, cues, run, same
from tests.laws.laws import (
    CONSERVES,
    CONSTANT_MEMORY,
    DROPS_AND_MERGES,
    NEVER_THE_IDENTITY,
    PARTITION,
    SQUARE,
    UNORDERED,
    WEIGHS,
)

# Other ways to run a method than with its defaults.
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
]
SPECS = [*registry.names(), *VARIANTS]
# Methods that meet any budget of the whole video.
BUDGET = [
    name
    for name in registry.names()
    if "keep" in inspect.signature(registry.get(name)).parameters and not issubclass(registry.get(name), Resampler)
]
CAUSAL = [spec for spec in SPECS if registry.build(spec)[0].causal]


def build(spec: str, *, dim: int = 24, side: int = 5, **defaults) -> Method:
    """A method for features of `dim` channels; learned ones with the same parameters each time."""
    torch.manual_seed(0)
    if name_of(spec) in SQUARE:
        defaults["side"] = side
    (method,) = registry.build(spec, dim=dim, **defaults)
    return method.eval()


def sample(spec: str, T: int = 4, H: int = 5, W: int = 6, *rest, **options) -> Tokens:
    """A clip that the method can take: of square frames where it needs them."""
    return clip(T, H, H if name_of(spec) in SQUARE else W, *rest, **options)


def name_of(spec: str) -> str:
    return spec.partition("(")[0]


def budgets(spec: str, *keeps: float | int) -> list[float | int]:
    """Those that the method takes: inside an encoder shares alone, since it knows no more than a frame."""
    return [keep for keep in keeps if isinstance(keep, float) or registry.get(name_of(spec)).stage != "encoder"]


def test_something_is_registered():
    assert len(BUDGET) >= 9
    assert len(CAUSAL) >= 3


@pytest.mark.parametrize("spec", SPECS)
class TestEveryMethod:
    def test_describes_itself(self, spec):
        method = build(spec)
        assert method.stage in STAGES
        assert set(method.needs) <= set(CUES)
        assert method.paper
        assert method.license
        assert method.cost
        assert inspect.getdoc(type(method)) != inspect.getdoc(Method)
        assert "Args:" in inspect.getdoc(type(method))
        parameters = inspect.signature(type(method)).parameters.values()
        assert len(parameters) <= 8
        assert all(p.default is not inspect.Parameter.empty for p in parameters)
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in list(parameters)[1:])
        assert all(ast.literal_eval(repr(value)) == value for value in method.arguments.values())
        assert build(method.spec).spec == method.spec

    def test_gives_sound_tokens(self, spec):
        tokens = sample(spec)
        out = run(build(spec), tokens)
        out.check()
        assert out.grid == tokens.grid
        assert int(out.count.max()) == out.N
        assert out.positions.dtype == out.sizes.dtype == torch.float32
        if isinstance(build(spec), Resampler):
            # A cell is shared among the tokens that use it, so that sizes sum to the cells that are used.
            torch.testing.assert_close(out.sizes.sum(1), (out.assignment >= 0).sum(1).float())
            assert out.attribution is not None
            return
        if name_of(spec) in WEIGHS:
            assert bool((out.sizes <= tokens.sizes.sum()).all())
            return
        # The sizes are what the source says, where every size-one cell is accounted for.
        held = torch.zeros_like(out.sizes).scatter_add(
            1, out.assignment.clamp(min=0), (out.assignment >= 0).to(torch.float32)
        )
        torch.testing.assert_close(held, out.sizes)

    def test_mass(self, spec):
        tokens, method = sample(spec), build(spec)
        out = run(method, tokens)
        if method.name in PARTITION:
            assert bool((out.assignment >= 0).all())
            if method.name not in WEIGHS:
                torch.testing.assert_close(out.sizes.sum(1), tokens.sizes.sum(1))
        if method.name in CONSERVES:
            before = (tokens.sizes[..., None] * tokens.features).sum(1)
            after = (out.sizes[..., None] * out.features).sum(1)
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        if isinstance(method, Reducer) and method.stage != "encoder":
            # Read off the plan: means by size conserve the mass of what is kept, whatever the method is called.
            plan = method.decide(tokens, **{name: cues(tokens)[name] for name in method.needs})
            if plan.representative is plan.shares is plan.sizes is None:
                kept = tokens.sizes * (plan.dest >= 0)
                before = (kept[..., None] * tokens.features).sum(1)
                after = (out.sizes[..., None] * out.features).sum(1)
                torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(out.sizes.sum(1), kept.sum(1))
                return
        if method.name not in PARTITION | DROPS_AND_MERGES and not isinstance(method, Resampler):
            # Pure pruning: what is kept is kept as it was.
            kept = tokens.features.gather(1, out.cell[..., None].expand(-1, -1, tokens.C))
            assert torch.equal(kept[out.mask], out.features[out.mask])

    def test_the_decision_is_data(self, spec):
        """A hard method's plan, applied to the tokens, leads to the assignment that the method gives."""
        method, tokens = build(spec), sample(spec)
        given = {}
        if method.stage == "encoder":
            tokens, given = split_frames(tokens), {"layer": 0, "depth": 12}
        given |= {name: cues(tokens)[name] for name in method.needs}
        if isinstance(method, Resampler):
            with pytest.raises(ValueError, match=f"{method.name} makes new features"):
                method.decide(tokens, **given)
            return
        plan, out = method.decide(tokens, **given), method(tokens, **given)
        moved = tokens.apply(plan)
        assert torch.equal(moved.assignment, out.assignment)
        assert torch.equal(moved.count, out.count)
        assert moved.dropped == out.dropped

    def test_order_by_time(self, spec):
        if name_of(spec) in UNORDERED:
            pytest.skip("says so in laws.py")
        out = run(build(spec), sample(spec, T=6, B=1))
        t = out.positions[0, :, 0]
        assert bool((t[1:] >= t[:-1] - 1 / 1024).all())  # as exactly as `plan.by_position` orders

    def test_alone_equals_in_a_padded_batch(self, spec):
        method = build(spec)
        videos = [sample(spec, T, B=1, seed=T) for T in (3, 6, 4)]
        batch = collate(videos)
        out = run(method, batch)
        for b, video in enumerate(videos):
            same(out[b], run(method, video), 1e-4)

    def test_a_reduced_sample_alone_equals_in_a_batch(self, spec):
        """Ragged counts: after a method that kept different numbers of tokens."""
        method = build(spec)
        if method.stage == "pixels":
            pytest.skip("comes first in every chain")
        if method.full_grid:
            with pytest.raises(ValueError, match=f"{method.name} works on whole frames"):
                run(method, run(build("dtd(0.5)"), sample(spec, B=3)))
            return
        ragged = run(build("dtd(0.5)"), sample(spec, B=3))
        assert len(set(ragged.count.tolist())) > 1
        out = run(method, ragged)
        for b in range(3):
            same(out[b], run(method, ragged[b]), 1e-4)

    def test_permutation_of_the_batch(self, spec):
        tokens, order = sample(spec, B=3), [2, 0, 1]
        method = build(spec)
        same(run(method, tokens).select(order), run(method, tokens.select(order)), 1e-4)

    def test_one_sample_does_not_touch_another(self, spec):
        tokens, method = sample(spec), build(spec)
        changed = tokens.replace(features=torch.cat([tokens.features[:1], tokens.features[1:].flip(1) * 3]))
        same(run(method, tokens)[0], run(method, changed)[0], 1e-4)

    def test_deterministic(self, spec):
        method = build(spec)
        first = run(method, sample(spec))
        torch.manual_seed(12345)
        again = run(method, sample(spec))
        assert torch.equal(first.features, again.features)
        assert torch.equal(first.assignment, again.assignment)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, spec, dtype):
        """Decided in float32 and summed in float32: the plan is that of the same values in float32."""
        tokens = sample(spec).to(dtype)
        method = build(spec)
        out = run(method, tokens, blocks=1)  # between blocks half precision rounds
        assert out.features.dtype == dtype
        wide = run(method, tokens.to(torch.float32), blocks=1)
        assert torch.equal(out.assignment, wide.assignment)
        torch.testing.assert_close(out.features.float(), wide.features, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_parameters_in_half_precision(self, spec, dtype):
        """As a model that is loaded in half precision: parameters and tokens alike are cast."""
        tokens, method = sample(spec).to(dtype), build(spec)
        whole = run(method, tokens.to(torch.float32), blocks=1)
        out = run(method.to(dtype), tokens, blocks=1).check()
        assert out.features.dtype == dtype
        assert out.features.shape == whole.features.shape
        # Row by row with the nearest: those of equal mean time may change places.
        away = torch.cdist(out.features.float(), whole.features.float()).detach().amin(2)
        assert float(away.norm() / whole.features.detach().norm()) < 0.05

    def test_autocast(self, spec):
        """As in training in mixed precision: parameters stay float32, products are not."""
        with torch.autocast("cpu", torch.bfloat16):
            out = run(build(spec), sample(spec).to(torch.bfloat16), blocks=1).check()
        assert out.features.isfinite().all()

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (7, 1, 1), (2, 1, 9), (5, 3, 3)])
    @pytest.mark.parametrize("fill", ["random", "constant", "zero"])
    def test_edge_shapes_and_values(self, spec, shape, fill):
        tokens = sample(spec, *shape)
        if fill != "random":
            tokens = tokens.replace(features=torch.full_like(tokens.features, 0.0 if fill == "zero" else 1.5))
        for keep in budgets(spec, 1, 2, 1.0, 10_000):
            method = build(spec, keep=keep, side=shape[1]) if spec in BUDGET else build(spec, side=shape[1])
            out = run(method, tokens).check()
            if method.planned_count(tokens.grid) is not None:
                assert out.count.tolist() == [method.planned_count(tokens.grid)] * tokens.B

    def test_gradients(self, spec):
        tokens = sample(spec)
        features = tokens.features.clone().requires_grad_()
        out = run(build(spec), tokens.replace(features=features))
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
        on_cpu = run(method, tokens)
        same(run(method.to("cuda"), tokens.to("cuda")).to("cpu"), on_cpu, 1e-4)

    @settings(max_examples=min(8, settings.default.max_examples), deadline=None)
    @given(data=st.data())
    def test_any_shape(self, spec, data):
        T, H, W = (data.draw(st.integers(1, 5)) for _ in range(3))
        C = data.draw(st.integers(12, 17))
        lengths = data.draw(st.none() | st.lists(st.integers(1, T), min_size=2, max_size=2))
        tokens = sample(spec, T, H, W, C, seed=data.draw(st.integers(0, 3)), lengths=lengths)
        method = build(spec, dim=C, side=H)
        if spec in BUDGET:
            keep = data.draw(st.floats(0.01, 1) | st.integers(1, 70) if budgets(spec, 1) else st.floats(0.01, 1))
            method = build(spec, dim=C, side=H, keep=keep)
        out = run(method, tokens).check()
        for count, grid in zip(out.count.tolist(), tokens.grid.videos(2), strict=True):
            assert count >= 1
            assert count <= grid.cells or isinstance(method, Resampler)
            assert method.planned_count(grid) in (None, count)
        assert not bool((out.assignment >= 0)[~tokens.grid.exists(2)].any())
        assert out.unmerge().shape == (2, *tokens.grid.shape, C)


@pytest.mark.parametrize("spec", BUDGET)
class TestBudget:
    def test_everything_is_the_identity(self, spec):
        if spec in NEVER_THE_IDENTITY:
            pytest.skip("says so in laws.py")
        tokens = clip()
        for keep in budgets(spec, 1.0, tokens.N, tokens.N + 5):
            out = run(build(spec, keep=keep), tokens)
            assert torch.equal(out.features, tokens.features)
            assert torch.equal(out.assignment, tokens.assignment)
            assert torch.equal(out.sizes, tokens.sizes)

    def test_the_count_is_planned(self, spec):
        tokens = clip(T=5, H=7, W=3)
        for keep in budgets(spec, 0.01, 0.1, 0.29, 0.5, 0.77, 1, 2, 21, 40, 104):
            method = build(spec, keep=keep)
            assert run(method, tokens).count.tolist() == [method.planned_count(tokens.grid)] * 2

    @pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, -0.1, True, "half", float("nan"), None])
    def test_impossible_budgets(self, spec, keep):
        if keep is None and inspect.signature(registry.get(spec)).parameters["keep"].default is None:
            pytest.skip("None stands for the default here")
        with pytest.raises(ValueError, match="keep"):
            build(spec, keep=keep)


@pytest.mark.parametrize("spec", CAUSAL)
@pytest.mark.parametrize("chunks", [[6], [1] * 6, [2, 3, 1], [4, 2]])
def test_chunked_equals_whole(spec, chunks):
    method, tokens = build(spec), clip(T=6)
    given = cues(tokens)
    whole = run(method, tokens)
    frame = tokens.grid.cells_per_frame
    outputs, state, start = [], None, 0
    for frames in chunks:
        cells = slice(start * frame, (start + frames) * frame)
        grid = Grid(frames, tokens.grid.H, tokens.grid.W, tokens.grid.times[start : start + frames])
        piece = Tokens.from_cells(tokens.features[:, cells], grid)
        out, state = method.step(piece, state, **{name: given[name][:, cells] for name in method.needs})
        outputs.append(out.check())
        start += frames
    joined = method.join(outputs)
    assert joined.grid == whole.grid
    if method.name in CONSTANT_MEMORY:
        assert torch.equal(joined.count, whole.count)
        torch.testing.assert_close(joined.positions, whole.positions, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(joined.features, whole.features, rtol=1e-4, atol=1e-4)
        return
    same(joined, whole)
    # What is remembered does not grow with the video.
    kept = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    assert kept and all(value.shape[1] in (frame, 2 * frame) for value in kept)
    assert torch.equal(concatenate(outputs).features, whole.features)
