"""The base classes of methods, tested with a minimal subclass of each."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

import fewtokens
from fewtokens.core.grid import Grid
from fewtokens.core.method import FrameSelector, Method, Quantized, Quantizer, Reducer, Resampler, Selection
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import clip


class Signs(Quantizer):
    """Two codes per token: the signs of the first two channels."""

    codebook_sizes = (2, 2)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        codes = (features[..., :2] > 0).long()
        quantized = self.lookup(codes)
        loss = (quantized - features[..., :2]).square().mean()
        return Quantized(quantized, codes, {"commit": loss})

    def lookup(self, codes: Tensor) -> Tensor:
        return codes.float() * 2 - 1


class TestQuantizer:
    def test_codes_and_losses_travel_with_the_tokens(self, tmp_path):
        tokens = clip(lengths=[4, 2])
        out = Pipeline([Signs()])(tokens).check()
        assert out.codes.shape == (2, tokens.N, 2)
        assert torch.equal(out.features[out.mask], Signs().lookup(out.codes)[out.mask])
        assert set(out.aux) == {"Signs.commit"}
        again = Tokens.load(out.save(tmp_path / "a.safetensors"))
        assert torch.equal(again.codes, out.codes)

    def test_the_grid_is_an_argument_of_methods_of_full_grids_only(self):
        grids = []

        class Frames(Signs):
            full_grid = True

            def quantize(self, features, mask, grid):
                grids.append(grid)
                return Signs.quantize(self, features, mask)

            def lookup(self, codes, grid=None):
                return Signs.lookup(self, codes)

        tokens = clip()
        out = Frames()(tokens)
        assert grids == [tokens.grid]
        assert torch.equal(Frames().restore(out).features, out.features)
        with pytest.raises(ValueError, match="works on whole frames"):
            Frames().restore(Pipeline("hourglass(0.5)")(out))

    def test_bits_are_counted(self):
        out = Signs()(clip(lengths=[4, 2]))
        assert Signs().count_bits(out).tolist() == [240, 120]
        codes = out.codes.clone()
        codes[0, :5, 1] = -1
        assert Signs().count_bits(out.replace(codes=codes)).tolist() == [235, 120]
        with pytest.raises(ValueError, match="has 2 codes per token, these tokens have 0"):
            Signs().count_bits(clip())

    def test_codes_are_required_to_restore(self):
        with pytest.raises(ValueError, match="tokens without codes"):
            Signs().restore(clip())

    def test_no_token_is_dropped(self):
        method = Signs()
        assert method.planned_count(Grid(2, 3, 4)) == 24
        assert method.bits == 2.0
        assert torch.equal(method(clip()).assignment, clip().assignment)
        # A method that requires the full grid may follow.
        out = Pipeline("hourglass(0.5)").methods[0](method(clip()))
        assert out.count.tolist() == [60, 60]


class EveryOther(FrameSelector):
    def __init__(self, step: int = 2) -> None:
        self.step = step

    def select(self, times: Tensor, thumbnails: Tensor, **cues: Tensor) -> Selection:
        index = torch.arange(0, len(times), self.step)
        return Selection(index, torch.zeros_like(index))


def test_a_frame_selector():
    selector = EveryOther(3)
    selection = selector.select(torch.arange(7) / 10, torch.zeros(7, 3, 8, 8, dtype=torch.uint8))
    assert selection.index.tolist() == [0, 3, 6]
    assert selector.spec == "EveryOther(step=3)"
    assert selector.stage == "frames"


class TestMethod:
    def test_a_method_without_forward_raises(self):
        class Nothing(Method):
            def __init__(self) -> None:
                super().__init__()

        with pytest.raises(TypeError, match="Nothing must extend Reducer or Resampler"):
            Nothing()(clip())

    def test_mistakes_of_authors_are_one_line(self):
        class NoInit(Reducer):
            def __init__(self, keep: float = 0.5) -> None:
                self.set_budget(keep)

        class NoInitEither(Reducer):
            def __init__(self) -> None:
                pass

        class NoPlan(Reducer):
            pass

        class NoResample(Resampler):
            pass

        class Unstored(Reducer):
            def __init__(self, tau: float = 0.5) -> None:
                super().__init__()

        class NoBudget(Reducer):
            def __init__(self, keep: float = 0.5) -> None:
                super().__init__()
                self.keep = keep

            def plan(self, tokens: Tokens, **cues: Tensor) -> Plan:
                return Plan.top(tokens.features.norm(dim=2), self.counts(tokens), tokens)

        class Unset(NoBudget):
            def __init__(self, keep: float = 0.5) -> None:
                Reducer.__init__(self)

        for call, message in (
            (NoInit, "NoInit.__init__ must first call super().__init__()"),
            (lambda: NoInitEither()(clip()), "NoInitEither.__init__ must first call super().__init__()"),
            (lambda: Pipeline([NoInitEither()]), "NoInitEither.__init__ must first call super().__init__()"),
            (lambda: NoPlan()(clip()), "NoPlan must override plan"),
            (lambda: NoPlan().decide(clip()), "NoPlan must override plan"),
            (lambda: NoResample()(clip()), "NoResample must override resample"),
            (lambda: Unstored().spec, "argument tau of Unstored is not stored as self.tau"),
            (lambda: Unset().spec, "argument keep of Unset is not stored as self.keep; call self.set_budget(keep)"),
            (lambda: NoBudget()(clip()), "NoBudget.__init__ must call self.set_budget(keep)"),
        ):
            with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
                call()

    def test_a_full_grid_is_checked_when_the_method_is_called(self):
        class Rows(Reducer):
            full_grid = True

            def plan(self, tokens: Tokens, **cues: Tensor) -> Plan:
                raise AssertionError("not called")

        fewer = Pipeline("uniform(0.5)").methods[0](clip())
        for call in (Rows(), Rows().decide):
            with pytest.raises(ValueError, match="Rows works on whole frames"):
                call(fewer)

    def test_a_single_method_is_accepted(self):
        method = fewtokens.create_method("ring", cap=2)
        assert list(Pipeline(method).methods) == [method]
        out = fewtokens.tokenize(torch.zeros(3, 3, 32, 32), method)
        assert out.count.tolist() == [8]

    def test_an_unregistered_method_cannot_be_saved(self, tmp_path):
        class Half(Reducer):
            def __init__(self) -> None:
                super().__init__()

            def plan(self, tokens: Tokens) -> Plan:
                return Plan.keep(tokens.mask & (torch.arange(tokens.N) % 2 == 0))

        pipeline = Pipeline([Half()])
        assert pipeline(clip()).count.tolist() == [60, 60]
        with pytest.raises(ValueError, match="Half is not registered"):
            pipeline.save_pretrained(tmp_path / "p")
        assert not (tmp_path / "p").exists()

    def test_a_full_grid_is_checked_when_a_pipeline_is_built(self):
        with pytest.raises(ValueError, match=r"dycoke works on whole frames: put it before .* such as tome"):
            Pipeline("tome(0.5) | dycoke")
        with pytest.raises(ValueError, match="grt works on whole frames"):
            Pipeline("rlt | grt")
        Pipeline("uniform(1.0) | dycoke")  # keeps everything

    @pytest.mark.parametrize("spec", ["dtd(0.5)", "evs(0.3)", "dycoke"])
    def test_saved_tokens_record_how_cells_were_dropped(self, spec, tmp_path):
        """An unchanged cell has the latest token at its position, also after saving, alone and in a batch."""
        method = Pipeline(spec).methods[0]
        tokens = clip(T=6)
        out = method(tokens)
        again = Tokens.load(out.save(tmp_path / "a.safetensors"))
        back = again.unmerge()
        assignment = out.assignment.reshape(2, 6, 30)
        for b, t, s in ((0, 3, 4), (1, 5, 29), (1, 1, 0)):
            tokens_at_cell = [int(assignment[b, u, s]) for u in range(t + 1) if assignment[b, u, s] >= 0]
            y, x = divmod(s, 6)
            assert torch.equal(back[b, t, y, x], out.features[b, tokens_at_cell[-1]])
        later = Pipeline("random(0.9)").methods[0](again)
        assert later.dropped == "held"

    def test_a_plan_for_other_tokens_raises(self):
        plan = Plan.keep(torch.ones(2, 60, dtype=torch.bool))
        with pytest.raises(ValueError, match="the plan is for 2 videos of 60 tokens, got 2 videos of 120"):
            clip().apply(plan)
        soft = Plan(torch.tensor([1]), 1, weights=torch.ones(1, 1, 120))
        with pytest.raises(ValueError, match="the plan is for 1 videos of 120 tokens"):
            clip().apply(soft)
        with pytest.raises(ValueError, match=r"shares must be \[2, 60\]"):
            Plan(plan.count, 60, plan.dest, shares=torch.ones(2, 1))

    def test_an_output_beyond_the_slots_raises(self):
        with pytest.raises(ValueError, match=r"^dest has values up to 42, but num_slots is 42$"):
            Plan(torch.tensor([43]), 42, torch.arange(43)[None])
        tokens = clip()
        labels = torch.arange(tokens.N).expand(2, -1)
        with pytest.raises(ValueError, match=r"^labels has values up to 119, but groups is 60$"):
            Plan.group(labels, tokens, 60)
        with pytest.raises(ValueError, match=r"^dest has values up to 119, but num_slots is 60$"):
            Plan.group(labels, tokens, num_slots=60)

    def test_labels_may_be_sparse_and_of_padded_slots(self):
        tokens = clip(T=2, H=1, W=2, lengths=[2, 1])
        labels = torch.tensor([[7, 7, 3, -1], [5, 2, 99, -1]])  # the last two of the second video are padding
        plan = Plan.group(labels, tokens, 10, num_slots=2)
        assert plan.dest.tolist() == [[0, 0, 1, -1], [0, 1, -1, -1]]
        torch.testing.assert_close(tokens.apply(plan).features[0, 0], tokens.features[0, :2].mean(0))

    def test_bits(self):
        assert math.isclose(Signs().bits, sum(map(math.log2, Signs.codebook_sizes)))
