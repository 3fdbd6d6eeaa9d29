"""Laws of all frame selectors. The tests run over the registry, so that every registered selector is tested."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.selection import NEEDS, FrameSelector, Selection

# Selectors with arguments other than the defaults.
VARIANTS = [
    "aks(stop_top='leaf_quota', depth=3)",
    "aks(tau=0.2)",
    "f2c(anchors=3)",
    "quota(600, grid=14, frames=20)",
    "kffocus(keep=8, key=16, other=4)",
    "dcode(alpha=0.5)",
    "scene_changes(rate=2.0)",
    "koala(segments=3, frames=4)",
    "timemarker(most=16, tokens=160, grid=8)",
]
SPECS = [*registry.selector_names(), *VARIANTS]
# Selectors whose number of frames is not `keep`: it follows from the video.
FROM_VIDEO = {"intp", "koala", "quota", "timemarker"}
THRESHOLD = {"scene_changes(rate=2.0)"}
RELEVANCE = [name for name in registry.selector_names() if "relevance" in registry.create_method(name).needs]


def build(spec: str, **arguments) -> FrameSelector:
    (selector,) = registry.build(spec)
    width = {"dim": 16} if "dim" in selector.arguments else {}
    return registry.create_method(selector.name, **{**selector.arguments, **width, **arguments})


def with_budget(spec: str, keep: float | int) -> FrameSelector:
    return build(spec) if spec.split("(")[0] in FROM_VIDEO or spec in THRESHOLD else build(spec, keep=keep)


def run(selector: FrameSelector, T: int, seed: int = 0, *, constant: bool = False, **inputs) -> Selection:
    """Selects among T random pictures, of which neighbors are similar, with random scores."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.arange(T) // 7 * (not constant)
    codes = torch.randn(T, 16, generator=generator)
    noise = 0.2 * torch.randn(T, 16, generator=generator) * (not constant)
    scores = torch.full((T,), 0.3) if constant else torch.rand(T, generator=generator)
    available = {"relevance": scores, "features": codes[scene] + noise, "question": "What happens?"} | inputs
    return selector.select(torch.arange(T) / 2, torch.zeros(T, 3, 8, 8, dtype=torch.uint8), **available)


def check(selection: Selection, T: int) -> None:
    assert selection.index.dtype == torch.int64 and selection.scale.shape == (len(selection), 2)
    assert 1 <= len(selection) <= T
    assert bool((selection.index.diff() > 0).all()) and int(selection.index[0]) >= 0 and int(selection.index[-1]) < T
    assert bool(((selection.scale > 0) & (selection.scale <= 1)).all())


def planned_tokens(selector: FrameSelector, T: int, grid: int) -> float:
    """The maximum number of tokens that a selector states."""
    arguments = selector.arguments
    if "tokens" in arguments:
        return arguments["tokens"]
    K = selector.num_frames(T)
    return K * arguments["key"] if "key" in arguments else K * grid**2


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("T", "keep"), [(90, 13), (90, 1), (5, 13), (1, 1), (64, 0.05), (33, 32)])
@pytest.mark.parametrize("constant", [False, True])
def test_the_budget_is_exact_and_frames_are_in_order(spec, T, keep, constant):
    selector = with_budget(spec, keep)
    selection = run(selector, T, constant=constant)
    check(selection, T)
    if selector.sizes:
        grid = selector.arguments.get("grid", 27)
        assert int(selection.tokens(grid, grid).sum()) <= planned_tokens(selector, T, grid)
    elif spec not in THRESHOLD:
        assert len(selection) == min(T, selector.num_frames(T)) and selection.full_size


@pytest.mark.parametrize("spec", SPECS)
def test_results_are_repeatable(spec):
    selector = with_budget(spec, 6)
    a, b = (run(selector, 50, seed=3) for _ in range(2))
    assert torch.equal(a.index, b.index) and torch.equal(a.scale, b.scale)


@pytest.mark.parametrize("spec", SPECS)
def test_values_that_are_not_finite_are_refused_by_name(spec):
    selector = with_budget(spec, 6)
    for need, shape in (("relevance", (50,)), ("features", (50, 16))):
        for value in (math.nan, math.inf):
            values = torch.rand(shape)
            values[17] = value
            if need in selector.needs:
                with pytest.raises(ValueError, match=rf"^{selector.name}: {need} must be finite, got .* candidate 17 "):
                    run(selector, 50, **{need: values})
            else:
                check(run(selector, 50, **{need: values}), 50)


@pytest.mark.parametrize("name", RELEVANCE)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_needle_is_found_by_relevance_and_missed_by_uniform(name, seed):
    """One of 2,000 candidates is relevant; the budget is 5 %."""
    T = 2000
    needle = int(torch.randint(0, T, (1,), generator=torch.Generator().manual_seed(seed)))
    needle += needle in registry.create_method("uniform_frames", keep=0.05).select(torch.arange(T)).index
    scores = 0.1 * torch.rand(T, generator=torch.Generator().manual_seed(seed))
    scores[needle] = 1
    selector = build(name, **({"tokens": 20 * T} if name == "quota" else {"keep": 0.05}))
    selection = run(selector, T, seed, relevance=scores)
    assert needle in selection.index
    counts = selection.tokens(27, 27)
    assert counts[selection.index == needle] == counts.max()
    assert int(counts.sum()) <= 0.05 * T * 27**2
    uniform = registry.create_method("uniform_frames", keep=0.05).select(torch.arange(T))
    assert needle not in uniform.index


@pytest.mark.parametrize("name", registry.selector_names())
def test_declarations(name):
    kind = registry.get(name)
    selector = kind()
    assert issubclass(kind, FrameSelector) and selector.name == name and selector.stage == "frames"
    assert set(selector.needs) <= set(NEEDS)
    assert kind.paper and kind.license and kind.cost and inspect.getdoc(kind)
    assert len(inspect.signature(kind).parameters) <= 8
    assert ("rate" in selector.arguments) <= bool({"features", "relevance"} & set(selector.needs))
