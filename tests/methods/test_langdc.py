"""LangDC against loops, and trained to name the objects of a scene."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.langdc import END, LangDc
from tests.helpers.clips import clip
from tests.helpers.resamplers import (
    C,
    build,
    layer_norm,
    linear,
    mlp,
    position_embedding,
    run_method,
    softmax,
    to_numpy,
    video,
)


def states_by_loops(method, cells, words):
    """The last hidden states of a caption about cells [n,C]; cells see all cells, words what is before them."""
    n = len(cells)
    earlier = [to_numpy(method.start), *(to_numpy(method.words)[word] for word in words[:-1])]
    h = np.concatenate([cells, np.stack(earlier) + to_numpy(method.order)[: len(words)]])
    for layer in method.layers:
        y, attention = layer_norm(h, layer.norm1), layer.attention
        q, k, v = linear(y, attention.query), linear(y, attention.key), linear(y, attention.value)
        mixed, d = np.zeros_like(h), C // 2
        for head in range(2):
            part = slice(head * d, (head + 1) * d)
            for row in range(len(h)):
                seen = range(n) if row < n else range(row + 1)
                weights = softmax(np.array([q[row, part] @ k[s, part] / math.sqrt(d) for s in seen]))
                mixed[row, part] = weights @ v[: len(seen), part]
        h = h + linear(mixed, attention.out)
        h = h + mlp(layer_norm(h, layer.norm2), layer.mlp)
    return layer_norm(h[n:], method.norm)


@pytest.mark.parametrize("lengths", [None, [5, 2]])
def test_against_loops(lengths):
    method, tokens = build("langdc"), video(T=5, lengths=lengths)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():  # so that captions have different lengths
        method.words.mul_(50)
        method.order.mul_(50)
        method.words[END] = 2 * torch.randn(C, generator=generator, dtype=torch.float64)
    out = run_method(method, tokens).check()
    ended = set()
    for b, T in enumerate(lengths or [5, 5]):
        rows = []
        for first in range(0, T, 2):
            frames = min(2, T - first)
            cells = slice(first * 12, (first + frames) * 12)
            x, places = to_numpy(tokens.features[b, cells]), to_numpy(tokens.positions[b, cells]) - [first, 0, 0]
            read = layer_norm(x, method.seen) + position_embedding(places, 3, 4, method.places)
            caption = []
            while len(caption) < 4:
                states = states_by_loops(method, read, [*caption, END])
                word = int((states[-1] @ to_numpy(method.words).T).argmax())
                if word == END:
                    break
                caption.append(word)
            ended.add(len(caption))
            grid = x.reshape(frames, 3, 4, C).mean(0)
            rows += [grid[i : i + 2, j : j + 2].mean((0, 1)) for i in (0, 1) for j in (0, 2)]
            if caption:
                rows += list(linear(states_by_loops(method, read, caption), method.out))
        assert int(out.count[b]) == len(rows)
        np.testing.assert_allclose(to_numpy(out.features[b, : len(rows)]), np.array(rows), rtol=1e-5, atol=1e-6)
    assert len(ended) > 1


# A scene is a frame of 4 x 4 cells; each of up to six objects fills a cell with its own vector.
OBJECTS, SIDE, WIDTH = 6, 4, 24


def scenes(count, generator):
    """Frames with 0 to 6 objects: tokens, the number of objects, and captions that name them in order."""
    vectors = 3 * torch.eye(OBJECTS, WIDTH)
    present = torch.rand(count, OBJECTS, generator=generator) < torch.rand(count, 1, generator=generator)
    cells = 0.1 * torch.randn(count, SIDE * SIDE, WIDTH, generator=generator)
    places = torch.rand(count, SIDE * SIDE, generator=generator).argsort(1)[:, :OBJECTS]
    cells.scatter_add_(1, places[..., None].expand(-1, -1, WIDTH), present[..., None] * vectors)
    words = torch.where(present, torch.arange(1, OBJECTS + 1), OBJECTS + 1).sort(1).values
    captions = words.where(words <= OBJECTS, torch.tensor(END))
    return Tokens.from_cells(cells, Grid(1, SIDE, SIDE)), present.sum(1), captions[:, None]


@pytest.fixture(scope="module")
def captioner():
    """Trained for half a minute to name the objects of a scene."""
    torch.manual_seed(0)
    method = LangDc(OBJECTS, frames=1, side=1, vocabulary=OBJECTS + 1, num_layers=2, heads=4, dim=WIDTH)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3, weight_decay=0)
    first = None
    for _ in range(300):
        tokens, _, captions = scenes(64, generator)
        loss = method.caption_loss(tokens, captions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.3 * first
    return method.eval()


def ranks(values):
    """Ranks with the mean of ties."""
    order = values[:, None]
    return ((order > values) + 0.5 * (order == values)).float().sum(1)


def test_the_number_of_tokens_follows_the_density_of_the_scene(captioner):
    tokens, objects, _ = scenes(256, torch.Generator().manual_seed(7))
    with torch.no_grad():
        out = captioner(tokens).check()
    length = out.count - 1  # without the mean of the frame
    correlation = torch.corrcoef(torch.stack([ranks(length), ranks(objects)]))[0, 1]
    assert correlation > 0.9  # the specification requires .5
    assert int(length.min()) == 0 and int(length.max()) > 3


def test_hidden_states_are_passed_not_words(captioner):
    """Two scenes with the same caption have different tokens, which words would not."""
    tokens, _, _ = scenes(32, torch.Generator().manual_seed(8))
    noise = torch.randn(tokens.features.shape, generator=torch.Generator().manual_seed(9))
    other = tokens.replace(features=tokens.features + 0.03 * noise)
    same = (captioner.captions(tokens) == captioner.captions(other)).flatten(1).all(1)
    assert int(same.sum()) > 25
    with torch.no_grad():
        first, second = (captioner(each)[int(same.nonzero()[0])] for each in (tokens, other))
    soft = slice(1, None)
    assert first.N == second.N > 1
    assert float((first.features[0, soft] - second.features[0, soft]).abs().amax(1).min()) > 1e-3
    # The tokens are the projected states themselves.
    clip_of_first = tokens[int(same.nonzero()[0])]
    _, mask, cache = captioner._read(clip_of_first)
    words = captioner.captions(clip_of_first)[0]
    states = captioner._states(words, cache, mask)[0, : first.N - 1]
    torch.testing.assert_close(first.features[0, soft], captioner.out(states).detach())


@pytest.mark.parametrize("most", [1, 3, 6])
def test_the_cap(captioner, most):
    short = LangDc(most, frames=1, side=1, vocabulary=OBJECTS + 1, num_layers=2, heads=4, dim=WIDTH).eval()
    state = captioner.state_dict()
    short.load_state_dict(state | {"order": state["order"][: most + 1]})
    tokens, _, _ = scenes(64, torch.Generator().manual_seed(9))
    with torch.no_grad():
        full, cut = captioner(tokens), short(tokens)
    assert torch.equal(cut.count, full.count.clamp(max=1 + most))
    assert int(cut.count.max()) == 1 + min(most, int(full.count.max()) - 1)


def test_an_untrained_captioner_stops_at_the_cap():
    torch.manual_seed(0)
    out = LangDc(5, dim=24, vocabulary=4096)(clip(9, 5, 6, 24)).check()
    assert out.count.tolist() == [3 * (16 + 5)] * 2  # three clips of up to four frames


def test_captions_are_checked():
    method, tokens = build("langdc"), video()
    for shape in [(2, 3, 4), (2, 2, 5), (1, 2, 3)]:
        with pytest.raises(ValueError, match=r"captions must be \[2,2,L\] with L of at most 4"):
            method.caption_loss(tokens, torch.ones(shape, dtype=torch.int64))


def test_the_loss_of_a_caption():
    """The mean over words and ends, from the states of the loops; what follows an end does not count."""
    method, tokens = build("langdc"), video(T=2, B=1)
    caption = [3, 5, END, 7]
    read = layer_norm(to_numpy(tokens.features[0]), method.seen)
    read = read + position_embedding(to_numpy(tokens.positions[0]), 3, 4, method.places)
    logits = states_by_loops(method, read, caption) @ to_numpy(method.words).T
    expected = -np.mean([np.log(softmax(logits[n])[word]) for n, word in enumerate(caption[:3])])
    loss = method.caption_loss(tokens, torch.tensor([[caption]]))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
