"""Counts, rows and cells of specs that an engine can serve."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.serve import planned, positions, reduce
from tests.serve.by_hand import shorten

KEEPING = ("random", "uniform", "tail_drop", "dtd", "evs", "hourglass", "max_min", "vidcom2")
FROM_PIXELS = ("grt", "rlt")
MERGING = ("kmeans", "tome", "tome_video", "dpc_knn", "merge_windows", "testa", "frame_fusion", "mean_pool")
# The means of these are not those of all members with equal weights.
OTHER = ("centerclip", "fewer_frames", "downsample", "dycoke", "dynamic_pool", "lftr", "metok", "prunevid", "scissor",
         "sttm", "tempme", "visual_words")  # fmt: skip
POOLING = ("grid_split", "spatial_pool")
CHAINS = ("evs(keep=0.5) | kmeans(keep={})", "rlt(keep=0.6) | tome(keep={})", "spatial_pool(stride=2) | dtd(keep={})")
REFUSED = {
    "llama_vid": "depends on the question",
    "ppllava": "depends on the question",
    "visionzip(keep=0.1)": "cue attention and keys",
    "holitom(keep=0.1)": "cue attention",
    "representation_shift(keep=0.1)": "cue shift",
    "tome_in_encoder(keep=0.5)": "inside the encoder",
    "fastv(keep=0.5)": "inside the language model",
    "token_dynamics(keep=32)": "weights trained for one model",
    "evs(tau=0.1)": "depends on the video.*keep=",
    "rlt(tau=0.1) | tome(keep=0.1)": "rlt.*depends on the video",
    "scissor(tau=0.9)": "depends on the video",
}


def specs() -> list[str]:
    every = (*KEEPING, *FROM_PIXELS, *MERGING, *OTHER)
    return [f"{name}(keep={{}})" for name in every] + [f"{name}(keep={{}})" for name in POOLING] + list(CHAINS)


def test_every_method_is_served_or_refused():
    """A new method is in one of the lists above, or has a reason."""
    listed = {*KEEPING, *FROM_PIXELS, *MERGING, *OTHER, *POOLING}
    for name in set(registry.names()) - listed:
        keep = registry.build(name, dim=8, text_dim=8)[0].spec
        with pytest.raises(ValueError, match=r"cannot be served: it|budget with keep="):
            planned(keep, Grid(2, 4, 4))


@pytest.mark.parametrize("template", specs())
def test_counts_are_exact(template):
    """Over 2,000 random grids, budgets and contents: constant, nearly constant and random rows."""
    draw = random.Random(template)
    for _ in range(59):
        grid = Grid(draw.randint(1, 7), draw.randint(1, 7), draw.randint(1, 7))
        counts = ["'3/frame'", "'9/frame'"] if "grid_split" in template or "spatial_pool" in template else [1, 5, 40]
        spec = template.format(draw.choice([0.03, 0.1, 0.25, 0.5, 0.77, 1.0, *counts]))
        S, noise = grid.cells, draw.choice([0.0, 1e-3, 1.0])
        generator = torch.Generator().manual_seed(draw.randint(0, 1 << 30))
        rows = torch.ones(S, 6) + noise * torch.randn(S, 6, generator=generator)
        pixels = torch.full((S, 1, 12), 0.5) + min(noise, 0.4) * torch.rand(S, 1, 12, generator=generator)
        out = reduce(spec, rows, grid, width=4, pixels=pixels)
        K = planned(spec, grid)
        assert 1 <= K == len(out.rows) == len(out.cell), (spec, grid)
        assert bool((out.cell[1:] >= out.cell[:-1]).all()) and int(out.cell[0]) >= 0 and int(out.cell[-1]) < S
        assert bool(out.rows.isfinite().all()) and out.rows.shape[1] == 6
        assert int(out.assignment.max()) < K and int(out.assignment.min()) >= -1
        if "split" not in spec and "pool(" not in spec.replace("mean_pool(", ""):
            assert torch.equal(out.assignment[out.cell], torch.arange(K)), (spec, grid)


# Runs of an unchanged patch and clusters are represented by a copy of one member, which need not be in the middle.
@pytest.mark.parametrize("name", [*KEEPING, *FROM_PIXELS, "centerclip"])
def test_kept_rows_are_copies_at_their_cells(name):
    rows = torch.randn(3 * 4 * 5, 10, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(60, 1, 12, generator=torch.Generator().manual_seed(2))
    out = reduce(f"{name}(keep=0.3)", rows, Grid(3, 4, 5), width=6, pixels=pixels)
    assert len(out.cell) == planned(f"{name}(keep=0.3)", Grid(3, 4, 5)) == len(set(out.cell.tolist())) < 60
    assert torch.equal(out.rows, rows[out.cell])


@pytest.mark.parametrize("name", MERGING)
def test_a_merge_is_a_mean_in_all_columns(name):
    """Rows, DeepStack columns and cells against means and distances in exact arithmetic."""
    grid = 4, 5, 6
    rows = torch.randn(120, 9, generator=torch.Generator().manual_seed(3)).double()
    out = reduce(f"{name}(keep=0.2)", rows, Grid(*grid), width=5)
    means, cells = shorten(f"{name}(keep=0.2)", rows, grid, width=5)
    torch.testing.assert_close(out.rows, means, rtol=0, atol=1e-6)
    assert out.cell.tolist() == cells
    assert bool((torch.bincount(out.assignment + 1)[1:] > 1).any())


def test_two_values_of_a_cluster():
    """Three cells of one value and one of another, with DeepStack columns that disagree with the features."""
    rows = torch.tensor([[1.0, 0.0, 10.0], [1.0, 0.1, 20.0], [1.0, 0.2, 30.0], [-5.0, 0.0, 7.0]])
    out = reduce("kmeans(keep=2)", rows, Grid(1, 1, 4), width=2)
    torch.testing.assert_close(out.rows, torch.tensor([[1.0, 0.1, 20.0], [-5.0, 0.0, 7.0]]))
    assert out.cell.tolist() == [1, 3] and out.assignment.tolist() == [0, 0, 0, 1]


def test_deepstack_columns_do_not_change_the_decision():
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(4))
    more = torch.cat([rows, 100 * torch.randn(60, 4, generator=torch.Generator().manual_seed(5))], 1)
    for name in ("kmeans", "tome", "dtd"):
        alone, wide = (reduce(f"{name}(keep=0.2)", x, Grid(3, 4, 5), width=8) for x in (rows, more))
        assert torch.equal(alone.rows, wide.rows[:, :8]) and torch.equal(alone.cell, wide.cell)


def test_pooled_rows_take_the_center_of_their_window():
    """Windows of 3 x 3 cells at 4 x 4: the tie of an edge of two cells goes to the earlier."""
    rows = torch.arange(32.0)[:, None]
    out = reduce("spatial_pool(stride=3)", rows, Grid(2, 4, 4))
    torch.testing.assert_close(out.rows[:4, 0], torch.tensor([5.0, 7.0, 13.0, 15.0]))
    assert out.cell.tolist() == [5, 7, 13, 15, 21, 23, 29, 31]
    assert reduce("spatial_pool(stride=4)", rows, Grid(2, 4, 4)).cell.tolist() == [5, 21]


def test_positions_are_those_of_the_cells():
    full = torch.stack([torch.arange(12), 100 + torch.arange(12), 200 + torch.arange(12)], 1)
    out = reduce("random(keep=5)", torch.randn(12, 4), Grid(3, 2, 2))
    assert positions(out.cell, full).tolist() == [[c, 100 + c, 200 + c] for c in out.cell.tolist()]


@pytest.mark.parametrize("spec", REFUSED)
def test_refusals_have_a_reason_in_one_line(spec):
    with pytest.raises(ValueError, match=REFUSED[spec]) as error:
        planned(spec, Grid(2, 4, 4))
    assert "\n" not in str(error.value) and spec.partition("(")[0] in str(error.value)


def test_rows_that_do_not_fit_the_grid():
    with pytest.raises(ValueError, match="2 x 3 x 4 has 24 rows"):
        reduce("tome(keep=0.1)", torch.randn(25, 4), Grid(2, 3, 4))
    with pytest.raises(ValueError, match="rlt requires the cue pixels"):
        reduce("rlt(keep=0.1)", torch.randn(24, 4), Grid(2, 3, 4))


def test_no_engine_and_no_transformers_are_needed():
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vllm", "sglang", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
import fewtokens.serve
from fewtokens.core.grid import Grid
out = fewtokens.serve.reduce("kmeans(keep=3)", torch.randn(12, 4), Grid(3, 2, 2))
assert len(out.rows) == fewtokens.serve.planned("kmeans(keep=3)", Grid(3, 2, 2)) == 3
print([name for name in sys.modules if name.startswith(("fewtokens.llm", "vllm", "sglang", "transformers"))])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
