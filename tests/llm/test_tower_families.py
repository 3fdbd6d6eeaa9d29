"""The columns of `fewtokens llm-families` on vision towers, against what happens in the tower of each family.

A cue of a row must be that of the patches that its features come from, found by gradients, and of the queries and keys
that the tower's own attention receives.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.llm import attach, backend_of, compress, tower
from fewtokens.llm.families import FAMILIES
from fewtokens.llm.interface import version
from fewtokens.llm.tower import Tower
from fewtokens.llm.tower_run import TowerMethods
from fewtokens.llm.visuals import encode_visuals
from tests.llm.families import accepts, build
from tests.llm.family_towers import CUES, IMAGES_ONLY, Columns, First, Pairs, Read, columns_of, example, read, tested

# A row is a convolution over its own patches and their neighbors; its cue is that of its own patches.
OVERLAPPING = ("step3p7",)
# Whose examples differ before transformers 5.24, and with them what can be merged.
OLDER = ("kimi_k25", "nemotron_h_omni") if version() < (5, 24) else ()
BY_FOLDER = {family.folder: family for family in FAMILIES}


def having(column: str) -> list[str]:
    return [folder for folder in tested() if getattr(BY_FOLDER[folder], column) and folder not in OLDER]


def reading(*cues: str) -> list[str]:
    return [folder for folder in tested() if set(cues) & set(BY_FOLDER[folder].cues)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def found(folder: str) -> Tower:
    modality = "video" if accepts(build(folder), "video") and folder not in IMAGES_ONLY else "image"
    one = tower.tower_of(build(folder), modality)
    assert one is not None
    return one


def encode(folder: str) -> Tensor:
    """The rows of the cells of the example, with their graph."""
    model, one = build(folder), example(folder)
    modality = "video" if accepts(model, "video") and folder not in IMAGES_ONLY else "image"
    backend = backend_of(model)
    rows = torch.cat(backend.entries(model, backend.encode(model, modality, one.inputs)))
    if folder in IMAGES_ONLY:  # the small version, then the tiles with a newline after each row
        return torch.cat([rows[: 6 * 6], rows[6 * 6 :].unflatten(0, (-1, 7))[:, :-1].flatten(0, 1)])
    return rows[one.visuals[0].cells()]


def sources(folder: str) -> Tensor:
    """Which patches of the block that the language model reads each row depends on, bool [cells,rows of the block]."""
    states: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    one = found(folder)
    hook = one.blocks[one.used].register_forward_hook(keep)
    try:
        with torch.enable_grad():
            rows = encode(folder)
            weights = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
            gradients = [torch.autograd.grad((row * weights).sum(), states, retain_graph=True) for row in rows]
    finally:
        hook.remove()
    parts = [torch.cat([part.flatten(0, -2).abs().sum(1) for part in row]) for row in gradients]
    return torch.stack(parts) > 0


@pytest.mark.parametrize("folder", tested())
def test_the_columns_are_what_attach_does(folder):
    family = BY_FOLDER[folder]
    with torch.no_grad():
        columns = columns_of(folder)
        merges = columns.merges if folder in OLDER else family.merges
        assert Columns(family.cues, family.skips, merges) == columns
        model, one = build(folder), example(folder)
        for cue in set(CUES) - set(family.cues) - {"pixels"}:
            options = {"images": [Read(cue)]} if folder in IMAGES_ONLY else {}
            with pytest.raises(ValueError, match=rf"{cue}|cues|placeholder"):
                compress(model, one.inputs, [Read(cue)], items=one.items, **options)


@pytest.mark.parametrize("folder", reading("attention", "keys"))
def test_a_cue_is_that_of_the_patches_of_its_row(folder, monkeypatch):
    expected = sources(folder)
    start = 0

    def number(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys that number the patches."""
        nonlocal start
        count, total = x.shape[:-1].numel(), expected.shape[1]
        keys = torch.eye(total)[start : start + count].reshape(*x.shape[:-1], 1, total)
        start += count
        return x[..., None, :], keys

    monkeypatch.setattr(tower, "project", number)
    with torch.no_grad():
        keys = torch.cat(read(folder, Read("keys")))
    if folder in OVERLAPPING:
        assert bool((expected | (keys <= 0)).all()) and expected.sum() > (keys > 0).sum()
    else:
        assert torch.equal(keys > 0, expected)
    torch.testing.assert_close(keys.sum(1), torch.ones(len(keys)))


@contextmanager
def received(attention: Any) -> Iterator[list[Tensor]]:
    """Collects the attention that each key receives [n], from what an attention module passes to its kernel."""
    values: list[Tensor] = []
    real = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def kernel(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **options: Any) -> Any:
        if module is attention:
            mask = options.get("attention_mask", mask)
            k = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            scores = query @ k.transpose(2, 3) * (options.get("scaling") or query.shape[-1] ** -0.5)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            values.append(scores.softmax(3).mean(1).sum(1).flatten())
        if "attention_mask" not in options:
            return real(module, query, key, value, mask, **options)
        return real(module, query, key, value, **options)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = kernel
    try:
        yield values
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = real


@pytest.mark.parametrize("folder", reading("attention"))
def test_attention_is_that_of_the_kernel_of_the_tower(folder):
    if folder in (*OVERLAPPING, "llava_onevision"):
        pytest.skip("rows are sums of patches with unequal weights; for LLaVA-OneVision see test_tower.py")
    one, rows = found(folder), sources(folder).float()
    rule = AttentionRule(("received",))
    with torch.no_grad():
        with received(one.attentions[one.layer(-1)]) as values:
            encode(folder)
        actual = torch.cat(read(folder, Read("attention", rule)))
    expected = rows @ torch.cat(values) / rows.sum(1)
    torch.testing.assert_close(actual / actual.sum(), expected / expected.sum(), rtol=1e-4, atol=1e-7)
    assert expected.std() > 1e-4 * expected.mean()


@contextmanager
def counting(folder: str) -> Iterator[list[list[int]]]:
    """The numbers of rows that the attention of each block of the tower processes."""
    one = found(folder)
    counts: list[list[int]] = [[] for _ in one.blocks]
    hooks = [
        tower.projections(attention)[0].register_forward_pre_hook(
            lambda _, args, own=own: own.append(args[0].numel() // args[0].shape[-1])
        )
        for attention, own in zip(one.attentions, counts, strict=True)
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("folder", having("skips"))
def test_the_tower_processes_fewer_patches(folder):
    model, one = build(folder), example(folder)
    with torch.no_grad(), counting(folder) as counts:
        compress(model, one.inputs, "", items=one.items)
        every = [sum(own) for own in counts]
        compress(model, one.inputs, [First()], items=one.items)
        kept = [sum(own) - before for own, before in zip(counts, every, strict=True)]
    assert all(2 * few < many for few, many in zip(kept, every, strict=True))


@pytest.mark.parametrize("folder", having("merges"))
def test_the_tower_merges_between_its_blocks(folder):
    model, one = build(folder), example(folder)
    with torch.no_grad():
        with counting(folder) as counts:
            tokens = compress(model, one.inputs, [Pairs()], items=one.items).tokens[0]
        with attach(model, "tome_in_encoder(r=0)", items=one.items) as few:
            out = few(**one.inputs).logits
        with attach(model, "tome(keep=1.0)", items=one.items) as few:
            torch.testing.assert_close(out, few(**one.inputs).logits, rtol=0, atol=1e-6)
        modality = "video" if accepts(model, "video") else "image"
        methods = TowerMethods((), (Pairs(),))
        needs: dict[str, Any] = {"methods": methods}
        (visual,) = encode_visuals(backend_of(model), model, one.inputs, one.items, **needs)[modality].visuals
        rows = visual.features[one.visuals[0].cells()].unflatten(0, (tokens.grid.T, -1))
        torch.testing.assert_close(rows[:, 0], rows[:, 1], rtol=1e-4, atol=1e-5)
        assert (rows[:, 1] - rows[:, 2]).abs().max() > 1e-3
    sums = [sum(own) for own in counts]
    assert len(sums) < 2 or sums[1] < sums[0]
    assert tokens.grid.cells > tokens.N and int(tokens.sizes.sum()) == tokens.grid.cells


def test_most_families_have_cues():
    assert len(reading("attention")) > 40 and len(having("skips")) > 20 and len(having("merges")) > 20
