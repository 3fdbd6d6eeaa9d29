"""Layer methods decide on tensors alone, without a model, transformers or the runtime."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.kv_memory import KVMemory
from fewtokens.core.layer_method import LayerMethod, PrunePoint, counts, highest
from fewtokens.core.method import Method
from fewtokens.core.spec import Spec
from tests.helpers.layers import layer_state

SPECS = {
    "fastv": "fastv(keep=0.5)",
    "pyramid_drop": "pyramid_drop(keep=(0.5, 0.25), layers=(1, 2))",
    "holitom_inner": "holitom_inner(keep=0.5)",
    "prunevid_inner": "prunevid_inner(keep=0.5)",
    "flexselect": "flexselect(keep=0.5)",
    "sttm_inner": "sttm_inner(keep=0.5)",
    "dart": "dart(keep=0.5)",
    "sparsevlm": "sparsevlm(keep=(0.5,), layers=(1,), recycle=0)",
    "videollm_mod": "videollm_mod(keep=0.5, dim=16)",
}


def test_every_layer_method_is_covered():
    memories = {name for name in registry.layer_names() if issubclass(registry.get(name), KVMemory)}
    assert {*SPECS, "dycoke_cache", *memories} == set(registry.layer_names())
    assert {"ring_cache", "videoscan_cache", "video_xl", "video_xl_2"} <= memories


@pytest.mark.parametrize("name", registry.layer_names())
def test_a_layer_method_is_a_spec_but_not_a_method(name):
    kind = registry.get(name)
    assert issubclass(kind, LayerMethod) and issubclass(kind, Spec) and not issubclass(kind, Method)
    method = kind()
    assert (method.name, repr(method)) == (name, method.spec)
    assert registry.build(method.spec)[0].arguments == method.arguments
    acts = bool(method.cache_point(30)), bool(method.prune_points(30)), issubclass(kind, KVMemory)
    assert sum(acts) == 1
    for layer, first in method.named_layers(30):
        assert 0 <= layer <= first < 30


def test_a_default_budget_is_applied():
    """Like `--keep`: applied at the end of a chain, and only if the spec sets no budget."""
    assert [method.keep for method in registry.build("uniform | fastv(layer=1)", keep=0.25)] == [0.25, 0.25]
    assert registry.build("fastv(keep=0.5)", keep=0.25)[0].keep == 0.5
    assert registry.build("sttm_inner(tau=0.5)", keep=0.25)[0].keep is None
    assert registry.build("sttm_inner", keep=0.25)[0].keep == 0.25


@pytest.mark.parametrize("spec", SPECS.values())
def test_a_decision_on_tensors(spec):
    (method,) = registry.build(spec)
    state = layer_state()
    decision = method.choose(state, 0)
    assert decision.kept.shape == state.video.shape and decision.kept.dtype == torch.bool
    assert (decision.kept & state.video).sum(1).tolist() == [4, 4]
    for part, before in ((decision.hidden, state.hidden), *zip(decision.rope or (), state.rope, strict=False)):
        assert part is None or (part.shape == before.shape and torch.equal(part[~state.video], before[~state.video]))
    if decision.hidden is None:
        lowest_kept = state.scores.masked_fill(~decision.kept, 2.0).amin(1)
        if not spec.startswith(("prunevid", "dart", "videollm_mod")):  # which select per frame, and without attention
            assert (lowest_kept >= state.scores.masked_fill(decision.kept | ~state.video, -1.0).amax(1)).all()


def test_counts_and_ranks():
    state = layer_state()
    assert counts(state, 0.3).tolist() == [2, 2] and counts(state, 0.32, nearest=True).tolist() == [3, 3]
    assert counts(state, 100).tolist() == [8, 8] and counts(state, 0.01).tolist() == [1, 1]
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    allowed = torch.tensor([[True, True, True, False]])
    assert highest(scores, allowed, torch.tensor([1])).tolist() == [[False, True, False, False]]
    assert highest(scores, allowed, torch.tensor([4])).tolist() == allowed.tolist()
    assert PrunePoint(3).score_layer is None


def test_layer_methods_import_no_model():
    """Building all layer methods imports none of the packages above the methods."""
    code = (
        "import sys; from fewtokens.core import registry\n"
        "for name in registry.layer_names(): registry.get(name)()\n"
        "packages = ('fewtokens.llm', 'fewtokens.encoders', 'fewtokens.data', 'transformers')\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith(packages)) or 0)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert process.returncode == 0, process.stderr
