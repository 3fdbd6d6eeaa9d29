"""Codebooks that are trained by gradient: the search, entropies, restarts, attention."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.methods.ops import codebooks
from fewtokens.methods.ops.codebooks import AttentionBook, Codebook, entropies, nearest, take


@pytest.mark.parametrize("entries", [1 << 24, 60])
@pytest.mark.parametrize("measure", ["euclidean", "cosine", "dot"])
def test_the_nearest_entry(measure, entries, monkeypatch):
    """By brute force, for one table and for a table per group; in blocks of rows too."""
    monkeypatch.setattr(codebooks, "_MAX_DISTANCES", entries)
    torch.manual_seed(0)
    x, tables = torch.randn(3, 2, 7, 4), 2 * torch.randn(3, 20, 4)

    def search(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        pairs = x[..., None, :], table
        if measure == "euclidean":
            return (pairs[0] - pairs[1]).square().sum(-1).argmin(-1)
        if measure == "cosine":
            return torch.nn.functional.cosine_similarity(*pairs, dim=-1).argmax(-1)
        return (pairs[0] * pairs[1]).sum(-1).argmax(-1)

    assert torch.equal(nearest(x, tables[0], measure), search(x, tables[0]))
    assert torch.equal(
        nearest(x, tables, measure), torch.stack([search(*pair) for pair in zip(x, tables, strict=True)])
    )


def test_no_entry():
    table = torch.randn(5, 3)
    rows = take(table, torch.tensor([[4, -1]]))
    assert torch.equal(rows, torch.stack([table[4], torch.zeros(3)])[None])
    book = Codebook(5, 3, groups=2)
    rows = book.entries(torch.tensor([[4, -1], [-1, 1]]))
    assert torch.equal(
        rows, torch.stack([book.table[0, 4], torch.zeros(3), torch.zeros(3), book.table[1, 1]]).view_as(rows)
    )


def test_entropies():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]]).clamp(min=-200)
    sample, batch = entropies(logits)
    torch.testing.assert_close(sample, torch.tensor(math.log(2) / 2))
    mean = (0.75, 0.25)
    torch.testing.assert_close(batch, torch.tensor(-sum(p * math.log(p) for p in mean)))


def test_unused_entries_restart_near_the_most_used():
    """The rule of ReVQ: every 50 calls, at most a fifth of the entries, the least used to the most used, noise 0.1."""
    book = Codebook(40, 64, groups=2)
    before = book.table.detach().clone()
    # In group 0 the entries 7, 3 and 5 are used; in group 1 all but entry 9, and entry 4 twice.
    first = torch.tensor([7] * 20 + [3] * 15 + [5] * 5)
    second = torch.arange(40)
    second[9] = 4
    for _ in range(49):
        book.restart()
    book.record(torch.stack([first, second]))
    assert torch.equal(book.table, before)
    book.restart()
    moved = (book.table != before).any(-1)
    assert moved.sum(1).tolist() == [8, 1]
    assert not bool(moved[0, [3, 5, 7]].any())
    distances = (book.table[0, moved[0]][:, None] - before[0, [7, 3, 5]]).square().mean(-1).sqrt()
    torch.testing.assert_close(distances.min(1).values, torch.full((8,), 0.1), atol=0.03, rtol=0)
    # Of eight, three near the first two entries and two near the third.
    assert distances.argmin(1).bincount().tolist() == [3, 3, 2]
    torch.testing.assert_close(
        (book.table[1, 9] - before[1, 4]).square().mean().sqrt(), torch.tensor(0.1), atol=0.03, rtol=0
    )
    assert not bool(book.count.any())


def _restart_in_a_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    book = Codebook(40, 4)
    for _ in range(49):
        book.restart()
    book.record(torch.arange(10) + 15 * rank)
    book.restart()
    torch.save(book.table.detach(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_processes_restart_the_same_entries(tmp_path):
    """Each process has counted other codes; the tables stay equal, and no entry that any of them used moves."""
    torch.multiprocessing.spawn(_restart_in_a_process, (str(tmp_path),), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    moved = (first != Codebook(40, 4).table).any(1)
    assert int(moved.sum()) == 8 and not bool(moved[[*range(10), *range(15, 25)]].any())


def test_a_distant_codebook_comes_back():
    torch.manual_seed(0)
    book = Codebook(20, 2)
    torch.nn.init.normal_(book.table, 30.0, 0.01)
    optimizer = torch.optim.Adam(book.parameters(), 0.3)
    for _ in range(400):
        x = torch.randn(64, 2)
        book.restart()
        codes = book.codes(x)
        book.record(codes)
        optimizer.zero_grad()
        (book.entries(codes) - x).square().mean().backward()
        optimizer.step()
    assert len(book.codes(torch.randn(1000, 2)).unique()) >= 18


def test_attention_trains_every_entry():
    torch.manual_seed(0)
    book = AttentionBook(30, 6)
    x = torch.randn(50, 6)
    value, _ = book.attend(x, book.codes(x))
    assert torch.equal(value, book.entries(book.codes(x)))
    value.square().sum().backward()
    assert bool((book.table.grad != 0).any(1).all())
