"""The parts of the benchmark, each against a small reference calculation."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewtokens.core import registry
from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.encoders import Patches, VitEncoder
from fewtokens.encoders.vit import ViT, ViTConfig
from fewtokens.evaluation.bench import (
    FULL,
    Item,
    chain,
    encode,
    jobs,
    label_propagation_scores,
    measure,
    select_specs,
    unpack_assignment,
)
from fewtokens.evaluation.fidelity import neighbor_agreement, rare_cells
from fewtokens.evaluation.summary import as_markdown, best_methods, describe_columns, label_row, rank, summarize
from fewtokens.evaluation.summary import compare_runs as changes_of
from fewtokens.profiling.memory import peak_memory
from fewtokens.profiling.operations import count_operations
from fewtokens.profiling.prefill import QWEN2_7B, prefill_gflops
from fewtokens.show.plots import draw_trade_off
from fewtokens.video import synthetic


def vit():
    torch.manual_seed(0)
    return VitEncoder(ViT(ViTConfig(dim=16, depth=8, num_heads=2, patch_size=8, image_size=(32, 32))).eval())


def item(kind="static", frames=5):
    video = synthetic(kind, frames=frames, size=(32, 48))
    return Item(kind, video.frames, video.times)


@pytest.fixture(scope="module")
def static():
    encoder = vit()
    return encoder, encode(item(), encoder, repeats=1)


class TestSpecs:
    def test_all_methods_that_an_encoder_supports(self):
        specs = select_specs("all", vit())
        assert specs[:5] == list(registry.BASELINES)
        assert {"vid_tldr", "tome_in_encoder", "rlt", "visionzip", "dynamic_pool"} <= set(specs)
        assert not {"tokenlearner", "pool_mlp"} & set(specs)
        fewer = set(select_specs("all", Patches(8)))
        assert "rlt" in fewer
        assert not {"vid_tldr", "visionzip", "tome_in_encoder"} & fewer

    def test_a_list_includes_the_baselines_and_commas_inside_brackets(self):
        specs = select_specs("tempme(joins=(2, 2)), kmeans", Patches(8))
        assert specs == [*registry.BASELINES, "tempme(joins=(2, 2))", "kmeans"]

    @pytest.mark.parametrize("spec", select_specs("all", vit()))
    @pytest.mark.parametrize("keep", [0.5, 0.1, 0.02])
    def test_every_method_meets_every_budget(self, spec, keep, static):
        """Methods that count in blocks or frames may stay below the budget; none exceeds it."""
        encoder, encoded = static
        row = measure(encoded, encoder, spec, keep, repeats=1)
        budget = Budget.parse(keep).count(encoded.tokens.grid)
        per_frame = encoded.tokens.grid.T if chain(spec, keep, encoded.tokens.grid)[0].stage == "encoder" else 1
        assert 1 <= row["tokens"] <= max(budget, per_frame)


class TestMeasure:
    def test_all_tokens_reconstruct_the_features(self):
        encoder = vit()
        row = measure(encode(item(), encoder, repeats=1), encoder, FULL, 1.0)
        assert (row["cosine"], row["relative_error"], row["rare_cosine"]) == pytest.approx((1, 0, 1), abs=1e-6)
        assert row["tokens"] == row["cells"]

    def test_encoder_operations_decrease_with_the_tokens(self):
        encoder = vit()
        encoded = encode(item(), encoder, repeats=1)
        full = measure(encoded, encoder, FULL, 1.0, repeats=1)["encoder_gflops"]
        after = measure(encoded, encoder, "tome", 0.1, repeats=1)["encoder_gflops"]
        inside = measure(encoded, encoder, "tome_in_encoder", 0.1, repeats=1)["encoder_gflops"]
        before = measure(encoded, encoder, "visual_words", 0.1, repeats=1)["encoder_gflops"]
        assert full == after > inside > before > 0
        macs = count_operations(lambda: encoder(encoded.item.frames[None])).giga("macs")
        assert full == pytest.approx(2 * macs)

    def test_the_assignment_is_saved_for_the_report(self):
        encoder = Patches(8)
        encoded = encode(item(frames=20), encoder, repeats=1)
        row = measure(encoded, encoder, "uniform", 0.5, repeats=1, shown=True)
        assert row["grid"] == [8, 4, 6]
        assert unpack_assignment(row["assignment"]).shape == (8 * 24,)

    def test_features_are_cached(self, tmp_path):
        encoder, clip = vit(), item()
        first = encode(clip, encoder, repeats=2, cache=tmp_path / "a.safetensors")
        again = encode(clip, encoder, repeats=2, cache=tmp_path / "a.safetensors")
        assert torch.equal(first.tokens.features, again.tokens.features)
        assert first.milliseconds == again.milliseconds
        assert set(first.cues) == set(again.cues) == set(encoder.cues)
        other = Item(clip.name, 255 - clip.frames, clip.times)
        assert not torch.equal(encode(other, encoder, repeats=2, cache=tmp_path / "a.safetensors").full, first.full)


def test_jobs_come_clip_by_clip():
    assert list(jobs(["a", "b"], ["x"], [0.5, 3]))[:4] == [
        ("a", FULL, 1.0),
        ("a", "x", 0.5),
        ("a", "x", 3),
        ("b", FULL, 1.0),
    ]


def test_rare_cells_are_least_similar_to_their_frame():
    x = torch.randn(4, 5, 6, 8, generator=torch.Generator().manual_seed(0)) + 2
    rare = rare_cells(x, 0.05)
    rows = x.reshape(4, 30, 8).double().numpy()
    similarity = []
    for frame in rows:
        mean = frame.mean(0)
        similarity += [float(c @ mean / np.linalg.norm(c) / np.linalg.norm(mean)) for c in frame]
    assert set(np.flatnonzero(rare.flatten().numpy())) == set(np.argsort(similarity)[:6])


def test_neighbor_agreement():
    full = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.9, 0.2]])
    assert neighbor_agreement(full, full) == pytest.approx((1, 1))
    swapped = full[[0, 2, 1, 3]]
    nearest, ranks = neighbor_agreement(swapped, full)
    assert nearest < 1
    assert ranks < 1


def test_prefill_against_a_sum_over_matrices():
    tokens, m = 100, QWEN2_7B
    layer = tokens * (m.dim * m.dim * 2 + m.dim * m.kv_dim * 2 + 3 * m.dim * m.mlp_dim)
    layer += sum(2 * m.dim * (t + 1) for t in range(tokens))  # each token attends to itself and the previous ones
    assert prefill_gflops(tokens) == pytest.approx(2 * m.layers * layer / 1e9)


def test_peak_memory_is_the_memory_in_use_at_one_time():
    def run():
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        del a
        c = b * 2  # still 8,000
        return c.sum()

    assert 8000 <= peak_memory(run, torch.device("cpu")) < 8100


def test_operations_are_counted_in_inference_mode_too():
    layer = nn.Linear(8, 16)
    with torch.inference_mode():
        assert count_operations(layer, torch.ones(4, 8)).giga("macs") == 4 * 8 * 16 / 1e9


def test_summary_and_best(tmp_path):
    def row(clip, method, keep, cosine, ms):
        return {"clip": clip, "method": method, "keep": keep, "cosine": cosine, "total_ms": ms, "vector": [cosine, 1.0]}

    rows = [row(c, FULL, 1.0, 1.0, 9) for c in "abc"]
    rows += [row(c, "x", 0.1, v, 3) for c, v in zip("abc", (0.2, 0.4, 0.6), strict=True)]
    rows += [row(c, "y", 0.1, 0.5, 2) for c in "abc"]
    summary = summarize(rows)
    assert [(line["method"], line["clips"]) for line in summary] == [(FULL, 3), ("x", 3), ("y", 3)]
    assert summary[1]["cosine"] == pytest.approx(0.4)
    assert best_methods(summary, "cosine") == {0.1: ["y", "x"]}
    assert best_methods(summary, "total_ms", 1) == {0.1: ["y"]}
    with pytest.raises(ValueError, match="cannot be read"):
        changes_of(tmp_path / "a.json", tmp_path / "b.json")


def test_the_best_row_and_the_pareto_front():
    def line(method, cosine, ms, **more):
        return {"method": method, "keep": 0.1, "cosine": cosine, "total_ms": ms, **more}

    lines = [
        line(FULL, 1.0, 9) | {"keep": 1.0},
        line("slow", 0.9, 8),
        line("equal", 0.9, 9),  # as good, but slower
        line("fast", 0.5, 1),
        line("worse", 0.4, 2),
        line("over", 0.99, 1, over_budget=2),
        line("unknown", None, 1),
    ]
    ranked = rank(lines, "cosine")
    assert [(row["method"], row["standing"]) for row in ranked] == [
        (FULL, ""), ("slow", "best"), ("equal", ""), ("fast", "front"), ("worse", ""), ("unknown", ""), ("over", ""),
    ]  # fmt: skip
    by_time = rank(lines, "total_ms")
    assert [row["method"] for row in by_time][1:3] == ["fast", "unknown"] and by_time[1]["standing"] == "best"
    assert "standing" not in lines[0]


def test_without_times_the_pareto_front_is_that_of_tokens():
    def line(method, cosine, tokens):
        return {"method": method, "keep": 0.1, "cosine": cosine, "tokens": tokens}

    lines = [line(FULL, 1.0, 90) | {"keep": 1.0}, line("few", 0.5, 2), line("many", 0.9, 9), line("worse", 0.4, 3)]
    ranked = rank(lines, "cosine")
    assert [(row["method"], row["standing"]) for row in ranked[1:]] == [
        ("many", "best"),
        ("few", "front"),
        ("worse", ""),
    ]
    (note,) = [note for note in describe_columns(ranked) if note.startswith("standing")]
    assert "front of cosine and tokens" in note and "better and of fewer tokens" in note
    (note,) = [
        note for note in describe_columns(rank([row | {"total_ms": 1} for row in lines], "cosine")) if "front" in note
    ]
    assert "front of cosine and total ms" in note and "better and faster" in note


class Greedy(Reducer):
    """Keeps the first 80 % of the cells, whatever the budget, and does not plan a number of tokens."""

    def planned_count(self, grid):
        return None

    def plan(self, tokens):
        slots = int(0.8 * tokens.N)
        return Plan.keep((torch.arange(tokens.N) < slots).expand(tokens.B, -1), slots)


def test_a_method_that_exceeds_the_budget_is_marked_and_not_ranked(static, monkeypatch):
    encoder, encoded = static
    rows = [measure(encoded, encoder, spec, keep, repeats=1) for spec, keep in ((FULL, 1.0), ("random", 0.1))]
    monkeypatch.setattr("fewtokens.evaluation.bench.registry.build", lambda *_, **__: [Greedy()])
    rows.append(measure(encoded, encoder, "greedy", 0.1, repeats=1))
    summary = summarize(rows)
    assert summary[2]["cosine"] > summary[1]["cosine"]
    assert [line["over_budget"] for line in summary] == [0, 0, 1]
    assert label_row(rows[2])["over_budget"] is True
    assert best_methods(summary, "cosine") == {0.1: ["random"]}
    assert f"| `greedy` | {rows[2]['tokens']} (over budget) |" in as_markdown(summary)
    assert any(note.startswith("over budget: ") for note in describe_columns(summary))


def test_a_fixed_budget_above_the_requested_one_is_shown_as_a_chain(static):
    encoder, encoded = static
    row = measure(encoded, encoder, "evs(keep=0.8)", 0.1, repeats=1)
    assert label_row(row)["label"] == "evs(keep=0.8) + tome"
    assert label_row(measure(encoded, encoder, "tome | uniform", 0.1, repeats=1))["label"] == "tome | uniform"


def test_notes_describe_the_columns_that_are_present(static):
    encoder, encoded = static
    notes = describe_columns(summarize([measure(encoded, encoder, FULL, 1.0, repeats=1)]))
    assert any(note.startswith("rel. error: ") for note in notes)
    assert not any(note.startswith(("J&F", "PSNR", "+ tome", "nearest", "method ms")) for note in notes)


def test_a_budget_that_a_method_cannot_reach_is_reached_by_merging():
    grid = Grid(10, 4, 4)
    assert [method.name for method in chain("evs", 0.05, grid)] == ["evs", "tome"]
    assert [method.name for method in chain("evs", 0.5, grid)] == ["evs"]
    assert [method.name for method in chain("dycoke", 0.1, grid)] == ["dycoke", "tome"]


def test_the_spread_of_a_sum_of_times_is_the_sum_of_spreads(monkeypatch):
    """The encoder's three runs and the method's: 10, 12, 14 and 100, 900, 300 ms."""
    encoder = Patches(8)
    encoded = replace(encode(item(), encoder, repeats=3), milliseconds=(10.0, 12.0, 14.0))
    monkeypatch.setattr("fewtokens.evaluation.bench.timings", lambda *_: (100.0, 900.0, 300.0))
    row = measure(encoded, encoder, "kmeans", 0.1, repeats=3)
    assert row["method_ms_spread"] == 400
    assert (row["total_ms"], row["total_ms_spread"]) == (312, 402)
    assert (row["method_ms_min"], row["method_ms_max"]) == (100, 900)
    assert (row["total_ms_min"], row["total_ms_max"]) == (110, 914)
    assert "312.0 (110.0 to 914.0)" in as_markdown(summarize([row]))
    alone = measure(encoded, encoder, FULL, 1.0, repeats=3)
    assert (alone["total_ms"], alone["total_ms_spread"]) == (12, 2)
    monkeypatch.setattr("fewtokens.evaluation.bench.timings", lambda *_: (100.0,))
    once = measure(replace(encoded, milliseconds=(10.0,)), encoder, "kmeans", 0.1, repeats=1)
    assert once["total_ms"] == 110
    assert once["method_ms_spread"] is None
    assert once["total_ms_spread"] is None


def test_cached_features_belong_to_their_frames(tmp_path):
    """Frames of the same shape and sum are still distinguished; a damaged cache is overwritten."""
    encoder, clip = Patches(8), item()
    cache = tmp_path / "a.safetensors"
    first = encode(clip, encoder, repeats=1, cache=cache)
    reversed_clip = Item(clip.name, clip.frames.flip(0), clip.times)
    assert torch.equal(encode(reversed_clip, encoder, repeats=1, cache=cache).full, first.full.flip(0))
    cache.write_bytes(cache.read_bytes()[:100])
    assert torch.equal(encode(clip, encoder, repeats=1, cache=cache).full, first.full)
    assert cache.stat().st_size > 100


def results(tmp_path: Path, name: str, **changes: Any) -> Path:
    rows = [{"clip": clip, "method": FULL, "keep": 1.0, "repeats": 3} for clip in "ab"]
    context = {"settings": {"frames": 8}, "machine": {"cores": 2}, "sources": {"a": {"bytes": 1, "mtime_ns": 5}}}
    summary = [{"keep": 1.0, "method": FULL, "cosine": 1.0}]
    path = tmp_path / name
    path.write_text(json.dumps({**context, "summary": summary, "rows": rows} | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"settings": {"frames": 16}}, ["frames: 8 and 16"]),
        ({"machine": {"cores": 64}}, ["cores: 2 and 64"]),
        ({"rows": [{"clip": "a", "repeats": 3}]}, ["clips: a, b and a"]),
        ({"rows": [{"clip": c, "repeats": 1} for c in "ab"]}, ["repeats: 3 and 1"]),
        ({"sources": {"a": {"bytes": 1, "mtime_ns": 6}}}, ["different files with the same name: a"]),
    ],
)
def test_differences_between_runs_are_reported(tmp_path, changes, expected):
    lines, differences = changes_of(results(tmp_path, "a.json"), results(tmp_path, "b.json", **changes))
    assert [line["delta_cosine"] for line in lines] == [0]
    assert differences == expected


class TestPlots:
    """Plots, read from matplotlib's axes."""

    @staticmethod
    def plot(monkeypatch, tmp_path: Path, summary: list[dict[str, Any]], measure: str) -> dict[str, Any]:
        pyplot = pytest.importorskip("matplotlib.pyplot")
        figures: list[Any] = []
        monkeypatch.setattr(pyplot, "close", figures.append)
        draw_trade_off(summary, measure, tmp_path / "a.png", baselines=("random",), full=FULL)
        (figure,) = figures
        lines = {line.get_label(): line for line in figure.axes[-1].get_lines()}
        return {"lines": lines, "all": figure.axes[0].get_lines()}

    @staticmethod
    def summary(keeps: tuple[float, ...]) -> list[dict[str, Any]]:
        rows = [{"method": FULL, "keep": 1.0, "tokens": 100, "total_ms": 9, "cosine": 1.0, "rank_correlation": 1.0}]
        for number, name in enumerate(["random", *(f"m{n}" for n in range(9))]):
            for keep in keeps:
                # A smaller budget takes longer, so that time and budget order the points differently.
                rows.append(
                    {"method": name, "keep": keep, "tokens": 100 * keep, "total_ms": 1 / keep, "method_ms": 1.0,
                     "cosine": keep - number / 100, "rank_correlation": keep + number / 100}
                )  # fmt: skip
        return rows

    def test_colors_are_the_same_in_all_plots(self, monkeypatch, tmp_path):
        one = self.plot(monkeypatch, tmp_path, self.summary((0.1, 0.5)), "cosine")["lines"]
        other = self.plot(monkeypatch, tmp_path, self.summary((0.1, 0.5)), "rank_correlation")["lines"]
        shared = {name for name in one.keys() & other.keys() if not name.startswith("_")}
        assert len(shared) >= 4
        assert all(one[name].get_color() == other[name].get_color() for name in shared)
        styles = {(line.get_color(), line.get_marker()) for name, line in one.items() if name.startswith("m")}
        assert len(styles) == len([name for name in one if name.startswith("m")])

    def test_lines_are_in_the_order_of_the_budget(self, monkeypatch, tmp_path):
        lines = self.plot(monkeypatch, tmp_path, self.summary((0.1, 0.5, 0.25)), "cosine")["lines"]
        assert lines["m0"].get_xdata().tolist() == pytest.approx([10, 4, 2])
        assert lines["m0"].get_ydata().tolist() == pytest.approx([0.09, 0.24, 0.49])

    def test_without_times_there_is_one_panel(self, monkeypatch, tmp_path):
        rows = [{name: value for name, value in row.items() if "_ms" not in name} for row in self.summary((0.1, 0.5))]
        lines = self.plot(monkeypatch, tmp_path, rows, "cosine")["lines"]
        assert lines["m0"].get_xdata().tolist() == pytest.approx([10, 50])  # percent of the tokens
        assert len(lines["m0"].figure.axes) == 1

    def test_one_budget_shows_every_method(self, monkeypatch, tmp_path):
        summary = self.summary((0.1,))
        summary[1]["rank_correlation"] = math.inf  # not plotted, without a warning
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lines = self.plot(monkeypatch, tmp_path, summary, "rank_correlation")["all"]
        points = [line for line in lines if len(line.get_xdata()) == 1 and line.get_label() != "Pareto front"]
        assert len(points) == 9
        assert all(line.get_linestyle() == "None" for line in points)
        low, high = points[0].axes.get_xlim()
        assert high / low > 3
        assert all(line.get_marker() not in ("", "None", None) for line in points)


def test_a_first_mask_without_an_object_is_refused():
    with pytest.raises(ValueError, match="the first mask contains no object"):
        label_propagation_scores(torch.rand(4, 3, 3, 8), torch.zeros(4, 48, 48, dtype=torch.uint8))
