"""Golden values in plain numpy, gradients, causality and independence of samples, for the learned resamplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fewtokens.core import registry
from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.method import save_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.attentional_pool import AttentionalPool
from fewtokens.methods.learned.linvt import LinVt
from fewtokens.methods.learned.llama_vid import LlamaVid
from fewtokens.methods.learned.perceiver import Perceiver
from fewtokens.methods.learned.ppllava import PpLlava
from fewtokens.methods.learned.qformer import QFormer
from fewtokens.methods.learned.storm import Storm
from fewtokens.methods.learned.token_turing import TokenTuring
from fewtokens.methods.ops.resample import fitting_heads
from fewtokens.methods.ops.scan import selective_scan
from tests.helpers.clips import clip, same

C, D = 8, 6
SPECS = {
    "perceiver": "perceiver(5, num_layers=2, heads=2)",
    "qformer": "qformer(5, num_layers=3, heads=2)",
    "attentional_pool": "attentional_pool(5, hidden=7)",
    "token_turing": "token_turing(5, memory=6, read=3, num_layers=2, heads=2)",
    "llama_vid": f"llama_vid('5/frame', text_dim={D})",
    "ppllava": f"ppllava((2, 2, 3), tau=0.3, text_dim={D})",
    "storm": "storm(2, spatial=2, state=3, num_layers=2)",
    "linvt": f"linvt(5, text_dim={D}, selected=14, scales=(1, 3), num_layers=2, heads=2)",
}
GUIDED = [name for name, spec in SPECS.items() if "text_width" in spec]


def build(name: str):
    torch.manual_seed(0)
    (method,) = registry.build(SPECS[name], dim=C)
    return method.double().eval()


def video(T: int = 4, H: int = 3, W: int = 4, B: int = 2, seed: int = 0, lengths=None) -> Tokens:
    return clip(T, H, W, C, B, seed=seed, lengths=lengths).to(torch.float64)


def query(B: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(B, 3, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(method, tokens: Tokens, text: torch.Tensor | None = None) -> Tokens:
    text = query(tokens.B) if text is None else text
    return method(tokens, **({"text": text} if "text" in method.needs else {}))


# The pieces again, in numpy.


def array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    y = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * array(layer.weight) + array(layer.bias)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    parts = np.exp(x - x.max(axis, keepdims=True))
    return parts / parts.sum(axis, keepdims=True)


def mlp(x: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    return linear(gelu(linear(x, layers[0])), layers[2])


def attention(x: np.ndarray, seen: np.ndarray, layer, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Head by head, query by query, for one sample."""
    q, k, v = linear(x, layer.query), linear(seen, layer.key), linear(seen, layer.value)
    d = q.shape[1] // heads
    mixed, weights = np.zeros_like(q), np.zeros((len(x), len(seen)))
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        for m in range(len(x)):
            share = softmax(np.array([q[m, part] @ k[n, part] / math.sqrt(d) for n in range(len(seen))]))
            mixed[m, part] = sum(share[n] * v[n, part] for n in range(len(seen)))
            weights[m] += share / heads
    return linear(mixed, layer.out), weights


def places(positions: np.ndarray, H: int, W: int, layer) -> np.ndarray:
    rows = []
    for t, y, x in positions:
        angles = [c * 10_000 ** (-k / 8) for c in (t, (y + 0.5) * 16 / H, (x + 0.5) * 16 / W) for k in range(8)]
        rows.append([*np.sin(angles), *np.cos(angles)])
    return np.array(rows) @ array(layer.layer.weight).T


def summary(x: np.ndarray, layer) -> np.ndarray:
    return softmax(mlp(norm(x, layer.norm), layer.mlp), 0).T


def compare(out: Tokens, b: int, features: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> None:
    """Features and attribution, put in the order of mean time, row and column."""
    weights = weights / weights.sum(1, keepdims=True)
    where = np.round(weights @ positions * 1024)
    order = np.lexsort((where[:, 2], where[:, 1], where[:, 0]))
    np.testing.assert_allclose(array(out.features[b]), features[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(array(out.attribution[b]), weights[order], rtol=1e-4, atol=1e-6)


def test_perceiver_against_loops():
    method, tokens = build("perceiver"), video()
    out = run(method, tokens)
    for b in range(2):
        where = array(tokens.positions[b])
        x = array(tokens.features[b]) + places(where, 3, 4, method.places)
        latents, looks = array(method.latents), np.zeros((5, len(x)))
        for layer in method.layers:
            asking = norm(latents, layer.norm_latents)
            mixed, look = attention(asking, np.concatenate([norm(x, layer.norm_seen), asking]), layer.attention, 2)
            looks += look[:, : len(x)] / 2
            latents = latents + mixed
            latents = latents + mlp(norm(latents, layer.norm_mlp), layer.mlp)
        compare(out, b, norm(latents, method.norm), looks, where)


def test_qformer_against_loops():
    method, tokens = build("qformer"), video()
    out = run(method, tokens)
    assert [layer.cross is not None for layer in method.layers] == [True, False, True]
    for b in range(2):
        where = array(tokens.positions[b])
        x = norm(array(tokens.features[b]) + places(where, 3, 4, method.places), method.norm_seen)
        queries, looks = norm(array(method.queries), method.norm_queries), np.zeros((5, len(x)))
        for layer in method.layers:
            queries = norm(queries + attention(queries, queries, layer.attention, 2)[0], layer.norm1)
            if layer.cross is not None:
                mixed, look = attention(queries, x, layer.cross, 2)
                queries, looks = norm(queries + mixed, layer.norm2), looks + look / 2
            queries = norm(queries + mlp(queries, layer.mlp), layer.norm3)
        compare(out, b, queries, looks, where)


def test_attentional_pool_against_loops():
    method, tokens = build("attentional_pool"), video()
    out = run(method, tokens)
    for b in range(2):
        x = array(tokens.features[b])
        maps = summary(x, method.summary)
        features = np.array([sum(maps[m, n] * x[n] for n in range(len(x))) for m in range(5)])
        compare(out, b, features, maps, array(tokens.positions[b]))


def test_token_turing_against_loops():
    method, tokens = build("token_turing"), video()
    out, m, n = run(method, tokens), 6, 12
    for b in range(2):
        where = array(tokens.positions[b])
        memory, held = np.zeros((m, C)), np.zeros((m, 4 * n))
        for t in range(4):
            cells = slice(t * n, (t + 1) * n)
            marks = np.concatenate([array(method.slots), places(where[cells] * [0, 1, 1], 3, 4, method.places)])
            both = np.concatenate([memory, array(tokens.features[b, cells])])
            of_cells = np.concatenate([held, np.eye(4 * n)[cells]])
            reading = summary(both + marks, method.reader)
            o, of_outputs = reading @ both + array(method.order), reading @ of_cells
            for block in method.blocks:
                y = norm(o, block.norm1)
                o = o + attention(y, y, block.attention, 2)[0]
                o = o + mlp(norm(o, block.norm2), block.mlp)
            o = norm(o, method.norm)
            marks, both = np.concatenate([marks, array(method.outputs)]), np.concatenate([both, o])
            writing = summary(both + marks, method.writer)
            memory, held = writing @ both, writing @ np.concatenate([of_cells, of_outputs])
        maps = summary(memory + array(method.slots), method.last)
        compare(out, b, maps @ memory, maps @ held, where)


def test_llama_vid_against_loops():
    method, tokens, text = build("llama_vid"), video(), query()
    out = run(method, tokens, text)
    assert out.count.tolist() == [4 * 5] * 2
    for b in range(2):
        for t in range(4):
            x = array(tokens.features[b]).reshape(4, 12, C)[t]
            q, k = linear(array(text[b]), method.query), linear(x, method.key)
            looks = np.mean([softmax(k @ q[row] / math.sqrt(C)) for row in range(3)], 0)
            made = [linear(looks @ x, method.context)]
            square = x.reshape(3, 4, C)
            # Adaptive pooling of 3 rows to 2 shares the middle one.
            for rows in (slice(0, 2), slice(1, 3)):
                for columns in (slice(0, 2), slice(2, 4)):
                    made.append(linear(square[rows, columns].mean((0, 1)), method.content))
            np.testing.assert_allclose(array(out.features[b, t * 5 : t * 5 + 5]), np.array(made), rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(array(out.attribution[b, t * 5, t * 12 : t * 12 + 12]), looks, rtol=1e-6)


def test_two_tokens_for_each_frame():
    out = LlamaVid(dim=C)(clip(C=C), text=torch.randn(2, 1, C))
    assert out.count.tolist() == [8, 8]
    assert out.positions[0, :, 0].tolist() == pytest.approx([0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("lengths", [None, [4, 3]])
def test_ppllava_against_loops(lengths):
    method, tokens, text = build("ppllava"), video(lengths=lengths), query()
    out = run(method, tokens, text)
    for b, T in enumerate(lengths or [4, 4]):
        x = array(tokens.features[b])
        asked = array(text[b]).mean(0)
        logits = np.zeros(T * 12)
        for n in range(T * 12):
            y = linear(x[n], method.to_text)
            logits[n] = y @ asked / math.sqrt((y @ y + 1e-6) * (asked @ asked + 1e-6)) / 0.3
        whole = softmax(logits).reshape(T, 3, 4)  # over the whole video, as the paper writes it
        rows, cells = [], x[: T * 12].reshape(T, 3, 4, C)
        for t in range(0, T, 2):
            for row in range(0, 3, 2):
                for column in range(0, 4, 3):
                    here = np.zeros((T, 3, 4))
                    window = (slice(t, t + 2), slice(row, row + 2), slice(column, column + 3))
                    here[window] = whole[window] / whole[window].sum()
                    rows.append(here.flatten())
        weights = np.array(rows)
        assert int(out.count[b]) == len(weights) == 8
        features = weights @ cells.reshape(-1, C)
        compare(out[b], 0, features, weights, array(tokens.positions[b, : T * 12]))


def test_ppllava_far_from_the_text_is_still_a_mean():
    """At tau=0.01 a softmax over the whole video is zero in float32 in windows unlike the text."""
    tokens = clip(2, 3, 6, C, 1)
    text = tokens.features[:, :1]
    tokens = tokens.replace(features=torch.cat([text.expand(-1, 18, -1), -text.expand(-1, 18, -1)], 1))
    out = PpLlava((1, 3, 3), dim=C)(tokens, text=text)
    torch.testing.assert_close(out.features[0, 2:], -text[0].expand(2, -1))
    assert out.sizes.tolist() == [[9.0] * 4]


@pytest.mark.parametrize(("length", "block"), [(1, 4), (7, 4), (8, 4), (13, 64), (37, 5)])
def test_selective_scan_against_one_step_after_another(length, block):
    torch.manual_seed(0)
    u, step = torch.randn(2, length, 3).double(), torch.rand(2, length, 3).double()
    step[0, 2:4] = 0
    rate, into, out = -torch.rand(3, 2).double(), torch.randn(2, length, 2).double(), torch.randn(2, length, 2).double()
    given = selective_scan(u, step, rate, into, out, block=block)
    for b in range(2):
        h = np.zeros((3, 2))
        for place in range(length):
            for e in range(3):
                for d in range(2):
                    forget = math.exp(float(step[b, place, e] * rate[e, d]))
                    h[e, d] = forget * h[e, d] + float(step[b, place, e] * u[b, place, e] * into[b, place, d])
            np.testing.assert_allclose(given[b, place].numpy(), h @ out[b, place].numpy(), rtol=1e-9, atol=1e-12)


def scanned(u: np.ndarray, direction) -> np.ndarray:
    """One direction of the mixer over [L,E], one token after another."""
    taps = array(direction.convolution.weight)[:, 0]
    h, given = np.zeros(direction.log_rate.shape), []
    for place in range(len(u)):
        v = array(direction.convolution.bias).copy()
        for tap in range(4):
            if place - 3 + tap >= 0:
                v += taps[:, tap] * u[place - 3 + tap]
        v = v * sigmoid(v)
        chosen, r, s = linear(v, direction.select), direction.rank, direction.state
        step = np.log1p(np.exp(linear(chosen[:r], direction.step)))
        into, out = chosen[r : r + s], chosen[r + s :]
        h = np.exp(-step[:, None] * np.exp(array(direction.log_rate))) * h + np.outer(step * v, into)
        given.append(h @ out + array(direction.skip) * v)
    return np.array(given)


@pytest.mark.parametrize("lengths", [None, [4, 3]])
def test_storm_against_one_step_after_another(lengths):
    method, tokens = build("storm"), video(lengths=lengths)
    out = run(method, tokens)
    for b, T in enumerate(lengths or [4, 4]):
        x = array(tokens.features[b, : T * 12])
        for layer in method.layers:
            u, gate = np.split(linear(norm(x, layer.norm), layer.inside), 2, 1)
            mixed = scanned(u, layer.onward) + scanned(u[::-1], layer.back)[::-1]
            x = x + linear(mixed * gate * sigmoid(gate), layer.out)
        cells = x.reshape(T, 3, 4, C)
        # Four windows of each pair of frames; the last row, and the odd last frame, stand alone.
        pooled = [
            cells[t : t + 2, row : row + 2, column : column + 2].mean((0, 1, 2))
            for t in range(0, T, 2)
            for row in (0, 2)
            for column in (0, 2)
        ]
        np.testing.assert_allclose(array(out[b].features[0]), np.array(pooled), rtol=1e-7, atol=1e-9)


def test_storm_without_its_mixer_is_average_pooling():
    method, tokens = build("storm"), video(T=6)
    for layer in method.layers:
        nn.init.zeros_(layer.out.weight)
    pooled = tokens.features.reshape(2, 3, 2, 3, 4, C).mean(2)
    expected = nn.functional.avg_pool2d(pooled.flatten(0, 1).permute(0, 3, 1, 2), 2, ceil_mode=True)
    torch.testing.assert_close(run(method, tokens).features, expected.flatten(2).transpose(1, 2).reshape(2, 12, C))


def test_linvt_against_loops():
    method, tokens, text = build("linvt"), video(), query()
    out = run(method, tokens, text)
    for b in range(2):
        where = array(tokens.positions[b])
        x = array(tokens.features[b]) + places(where, 3, 4, method.places)
        x = x.reshape(4, 12, C)
        x = x + np.stack([attention(*[norm(frame, method.norm_space)] * 2, method.space, 2)[0] for frame in x])
        across = [attention(*[norm(x[:, place], method.norm_time)] * 2, method.time, 2)[0] for place in range(12)]
        x = (x + np.stack(across, 1)).reshape(48, C)
        score = linear(x, method.score)[:, 0]
        chosen = sorted(sorted(range(48), key=lambda n: -score[n])[:14])
        gated = x * sigmoid(score)[:, None]
        runs = [chosen[start : start + scale] for scale in (1, 3) for start in range(0, 14, scale)]
        assert len(runs) == 14 + 5
        pooled = np.stack([gated[run].mean(0) for run in runs])
        queries = array(method.queries)
        for layer in method.layers:
            own = norm(queries, layer.norms[0])
            queries = queries + attention(own, own, layer.own, 2)[0]
            queries = queries + attention(norm(queries, layer.norms[1]), pooled, layer.video, 2)[0]
            queries = queries + attention(norm(queries, layer.norms[2]), array(text[b]), layer.text, 2)[0]
            queries = queries + mlp(norm(queries, layer.norms[3]), layer.mlp)
        q, k = linear(norm(queries, method.norm_queries), method.query), linear(pooled, method.key)
        made, weights = np.zeros((5, C)), np.zeros((5, 48))
        for h in (slice(0, 4), slice(4, 8)):
            look = softmax(q[:, h] @ k[:, h].T / 2)
            made[:, h] = look @ pooled[:, h]
            # Convex: within the bounds of what was selected.
            assert bool((made[:, h] <= pooled[:, h].max(0)).all() and (made[:, h] >= pooled[:, h].min(0)).all())
            for share, run_of in zip(look.T, runs, strict=True):
                weights[:, run_of] += share[:, None] / len(run_of) / 2
        compare(out, b, made, weights, where)
        assert sorted((out.assignment[b] >= 0).nonzero().squeeze(1).tolist()) == chosen


# Laws.


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_every_parameter(name):
    method = build(name)
    out = run(method, video())
    generator = torch.Generator().manual_seed(3)
    (out.features * torch.randn(out.features.shape, generator=generator, dtype=torch.float64)).sum().backward()
    for label, parameter in method.named_parameters():
        assert parameter.grad is not None, label
        assert bool(parameter.grad.isfinite().all()), label
        assert float(parameter.grad.abs().max()) > 1e-9, label


@pytest.mark.parametrize("name", SPECS)
def test_samples_do_not_mix(name):
    method, videos, texts = build(name), [video(T, B=1, seed=T) for T in (4, 2, 5)], query(3)
    out = run(method, collate(videos), texts)
    for b, one in enumerate(videos):
        same(out[b], run(method, one, texts[b : b + 1]), 1e-6)
    order = [2, 0, 1]
    same(run(method, collate(videos).select(order), texts[order]), out.select(order), 1e-6)
    # By gradients: nothing of one video is felt in another.
    tokens = video()
    features = tokens.features.clone().requires_grad_()
    run(method, tokens.replace(features=features)).features[0].sum().backward()
    assert float(features.grad[0].abs().max()) > 0
    assert float(features.grad[1].abs().max()) == 0


@pytest.mark.parametrize("name", SPECS)
def test_what_is_padded_is_not_looked_at(name):
    method, tokens = build(name), video(lengths=[2, 4])
    noise = tokens.features.where(tokens.mask[..., None], 1e3)
    same(run(method, tokens.replace(features=noise)), run(method, tokens), 1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_parameters_in_half_precision(name):
    exact, method = build(name), build(name).to(torch.bfloat16)
    out = run(method, video().to(torch.bfloat16)).check()
    assert out.features.dtype == torch.bfloat16
    wanted = run(exact, video()).features.detach()
    # As sets of numbers: bfloat16 may put tokens of nearly equal mean time in another order.
    torch.testing.assert_close(out.features.double().mean(1), wanted.mean(1), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", GUIDED)
def test_the_text_matters(name):
    method, tokens = build(name), video()
    one, other = run(method, tokens, query(seed=0)), run(method, tokens, query(seed=1))
    assert not torch.allclose(one.features, other.features, atol=1e-3)
    assert not torch.allclose(one.attribution, other.attribution, atol=1e-4)
    text = query()
    text.requires_grad_()
    run(method, tokens, text).features.square().sum().backward()
    assert float(text.grad.abs().max()) > 0


@pytest.mark.parametrize("name", GUIDED)
def test_another_text_is_named(name):
    with pytest.raises(ValueError, match="say text_width"):
        run(build(name), video(), torch.zeros(2, 3, D + 1).double())
    with pytest.raises(ValueError, match=r"text as \[B,L,D\]"):
        run(build(name), video(), torch.zeros(1, 3, D).double())


def frames_of(tokens: Tokens) -> list[Tokens]:
    _, H, W = tokens.grid.shape
    return [Tokens.from_cells(frame, Grid(1, H, W)) for frame in tokens.features.split(H * W, 1)]


def test_the_turing_machine_frame_after_frame_is_the_whole():
    method, tokens = build("token_turing"), video()
    memory, memories = None, []
    for frame in frames_of(tokens):
        memory, out = method.advance(frame, memory)
        assert out.shape == (2, 3, C)
        memories.append(memory)
    maps = method.last(memory + method.slots)
    rows = run(method, tokens).features.detach()
    expected = (maps @ memory).detach()
    # The same rows, in the order of time.
    distance = (rows[:, :, None] - expected[:, None]).abs().amax(3)
    assert float(distance.amin(2).max()) < 1e-12
    assert sorted(distance.argmin(2)[0].tolist()) == list(range(5))
    # Later frames do not change earlier memories.
    changed = tokens.replace(features=torch.cat([tokens.features[:, :24], -tokens.features[:, 24:]], 1))
    memory = None
    for number, frame in enumerate(frames_of(changed)):
        memory, _ = method.advance(frame, memory)
        assert torch.equal(memory, memories[number]) is (number < 2)


def test_a_frame_without_tokens_leaves_the_memory():
    method, tokens = build("token_turing"), video(T=3)
    (drop,) = registry.build("fewer_frames(24)")
    two = drop(tokens)  # the middle or the last frame is gone
    out = run(method, two)
    kept = sorted(set(two.frame[0].tolist()))
    assert len(kept) == 2
    memory = None
    for t in kept:
        memory, _ = method.advance(frames_of(tokens)[t], memory)
    expected = (method.last(memory + method.slots) @ memory).detach()
    distance = (out.features.detach()[:, :, None] - expected[:, None]).abs().amax(3)
    assert float(distance.amin(2).max()) < 1e-12


def test_a_long_video_forgets_and_stays_sound():
    method = TokenTuring(4, dim=C, memory=4, read=2, num_layers=1)
    out = method(clip(120, 3, 3, C, 1)).check()
    assert float(out.sizes.sum()) == pytest.approx(120 * 9, rel=1e-4)
    assert bool((out.assignment >= 0).all())


@pytest.mark.parametrize("name", ["perceiver", "qformer", "attentional_pool", "token_turing"])
def test_after_another_method(name):
    """What was merged away is credited to the cells, and the merged tokens are looked at where they stand."""
    (tome,) = registry.build("tome(0.4)")
    merged = tome(video())
    out = run(build(name), merged).check()
    assert out.count.tolist() == [5, 5]
    assert bool((out.assignment >= 0).all())
    torch.testing.assert_close(out.sizes.sum(1), torch.full((2,), 48.0))


def test_heads_divide_the_width():
    assert [fitting_heads(width, 8) for width in (12, 13, 16, 384, 4)] == [6, 1, 8, 8, 4]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Perceiver, {"keep": 0}, "perceiver: keep must be a count"),
        (QFormer, {"num_layers": 0}, "num_layers"),
        (AttentionalPool, {"hidden": -1}, "hidden"),
        (TokenTuring, {"memory": 2.5}, "memory"),
        (LlamaVid, {"keep": True}, "llama_vid: keep must be"),
        (PpLlava, {"kernel": (2, 3)}, "kernel"),
        (PpLlava, {"tau": 0.0}, "tau"),
        (Storm, {"pool": 0}, "pool"),
        (LinVt, {"scales": ()}, "scales"),
        (LinVt, {"selected": 0}, "selected"),
    ],
)
def test_impossible_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("name", SPECS)
def test_weights_are_saved_and_read(name, tmp_path):
    method = build(name).float()
    path = save_weights(method, tmp_path / "method.safetensors")
    (again,) = registry.build(SPECS[name], dim=C, checkpoint=str(path))
    tokens = video().to(torch.float32)
    text = query().float()
    assert torch.equal(run(method, tokens, text).features, run(again.eval(), tokens, text).features)
    with pytest.raises(ValueError, match="say dim"):
        run(method, clip(C=C + 1), text)
