"""Methods as one would write them down from their papers: a loop for each token, frame or segment. Slow, and plain.

Features come as [T,H,W,C] in float64. What comes out is a list of (feature, members), members the numbers of the cells
that a token stands for; `same_tokens` compares that with what a method gave. benchmarks/family_speed.py times them.
"""

from __future__ import annotations

import itertools

import numpy as np

from fewtokens.core.tokens import Tokens
from tests.helpers.clips import clip

Token = tuple[np.ndarray, list[int]]


def video(T: int = 6, H: int = 4, W: int = 5, C: int = 12, seed: int = 0) -> tuple[Tokens, np.ndarray]:
    """A clip, and its features in float64 [T,H,W,C]."""
    tokens = clip(T, H, W, C, 1, seed=seed)
    return tokens, tokens.features[0].double().numpy().reshape(T, H, W, C)


def frames_left(target: int, time: float) -> int:
    """Of the 6 frames of 20 cells of `video`: the power `time` of the budget's share, enough for it and no more."""
    return min(target, max(round(6 * (target / 120) ** time), -(-target // 20)))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(unit(a) @ unit(b))


def cells_of(x: np.ndarray, t: int) -> list[Token]:
    """The cells of a frame as tokens."""
    _, H, W, C = x.shape
    return [(value, [t * H * W + place]) for place, value in enumerate(x[t].reshape(-1, C))]


def mean_of(tokens: list[Token]) -> Token:
    """Tokens put together, by the cells they stand for."""
    members = [cell for _, cells in tokens for cell in cells]
    total = sum(value * len(cells) for value, cells in tokens)
    return total / len(members), members


def merge_down(tokens: list[Token], target: int) -> list[Token]:
    """ToMe's bipartite merging, pair by pair, step by step, until there are `target` tokens."""
    while len(tokens) > target:
        r = min(len(tokens) - target, len(tokens) // 2)
        a, b = tokens[::2], tokens[1::2]
        table = unit(np.stack([value for value, _ in b]))
        pairs = []
        for number, (value, _) in enumerate(a):
            like = table @ unit(value)
            pairs.append((-like.max(), number, int(like.argmax())))
        pairs.sort()
        groups = [[token] for token in b]
        for _, source, into in pairs[:r]:
            groups[into].append(a[source])
        tokens = [a[source] for _, source, _ in pairs[r:]] + [mean_of(group) for group in groups]
    return tokens


def share(total: int, sizes: list[int], weights: list[float] | None = None) -> list[int]:
    """One place each as far as they go, then Sainte-Lague's rule, never more than a group has."""
    weights = [float(size) for size in sizes] if weights is None else weights
    counts = [0] * len(sizes)
    for group, size in enumerate(sizes):
        if size and sum(counts) < total:
            counts[group] = 1
    while sum(counts) < total:
        open_groups = [g for g, size in enumerate(sizes) if counts[g] < size]
        counts[min(open_groups, key=lambda g: ((counts[g] + 0.5) / weights[g], g))] += 1
    return counts


def by_place(tokens: list[Token], shape: tuple[int, ...]) -> list[Token]:
    """In the order of mean time, row, column."""

    def key(token: Token) -> tuple[float, ...]:
        places = np.stack(np.unravel_index(token[1], shape)).mean(1)
        return tuple(round(float(value) * 1024) for value in places)

    return sorted(tokens, key=key)


def tome_video(x: np.ndarray, target: int, within: str) -> list[Token]:
    T, H, W, _ = x.shape
    n = H * W
    if within == "frame":
        counts = share(target, [n] * T)
        return [token for t in range(T) for token in merge_down(cells_of(x, t), counts[t])]
    tokens = []
    for t in range(T):
        frame = cells_of(x, t)
        # The cell that moves to place 0 of an odd frame is its last one.
        tokens += [frame[-1], *frame[:-1]] if t % 2 and n % 2 == 0 else frame
    return merge_down(tokens, target)


def merge_windows(x: np.ndarray, of_each: int, window: int) -> list[Token]:
    T, H, W, _ = x.shape
    out = []
    for t in range(T):
        frame = cells_of(x, t)
        for y in range(0, H, window):
            for column in range(0, W, window):
                inside = [
                    frame[i * W + j]
                    for i in range(y, min(y + window, H))
                    for j in range(column, min(column + window, W))
                ]
                out += merge_down(inside, min(of_each, len(inside)))
    return out


def tempme(x: np.ndarray, target: int, joins: tuple[int, ...]) -> list[Token]:
    T, H, W, _ = x.shape
    start = T * H * W
    groups = [cells_of(x, t) for t in range(T)]
    frames = 1
    for number, join in enumerate((1, *joins), 1):
        frames *= join
        joined = [[] for _ in range(-(-T // frames))]
        for tokens in groups:
            for token in tokens:
                when = np.mean([cell // (H * W) for cell in token[1]])
                joined[round(when) // frames].append(token)
        sizes = [len(group) for group in joined]
        part = (np.float32(target) / np.float32(start)) ** (number / (len(joins) + 1))
        wanted = min(max(int(np.ceil(start * part)), len(joined), target), sum(sizes))
        wanted = target if number == len(joins) + 1 else wanted
        counts = share(wanted, sizes)
        merged = []
        for group, count in zip(joined, counts, strict=True):
            group = by_place(group, (T, H, W))
            # Tokens at the same mean place stand in the order of what they were made from.
            place = {cell: number for number, (_, cells) in enumerate(group) for cell in cells}
            few = merge_down(group, count)
            merged.append(sorted(few, key=lambda token: round(1024 * np.mean([place[cell] for cell in token[1]]))))
        groups = [by_place([token for group in merged for token in group], (T, H, W))]
    return groups[0]


def testa(x: np.ndarray, target: int, frames: int) -> list[Token]:
    T, H, W, _ = x.shape
    rows = [(unit(x[t]).reshape(-1), [t]) for t in range(T)]
    merged = by_place(merge_down(rows, frames), (T,))
    counts = share(target, [H * W] * len(merged))
    out = []
    for (_, members), count in zip(merged, counts, strict=True):
        cells = [
            (x[members, place // W, place % W].mean(0), [t * H * W + place for t in sorted(members)])
            for place in range(H * W)
        ]
        out += merge_down(cells, count)
    return out


def lftr(x: np.ndarray, target: int, frames: int) -> list[Token]:
    T, H, W, C = x.shape
    means = x.reshape(T, -1, C).mean(1)
    novelty = [2.0] + [1 - cosine(means[t], means[t - 1]) for t in range(1, T)]
    stays = sorted(sorted(range(T), key=lambda t: (-novelty[t], t))[:frames])
    counts = share(target, [H * W] * len(stays))
    out = []
    for number, (t, count) in enumerate(zip(stays, counts, strict=True)):
        run = range(t, stays[number + 1] if number + 1 < len(stays) else T)
        cells = [
            (x[list(run), place // W, place % W].mean(0), [s * H * W + place for s in run]) for place in range(H * W)
        ]
        rows = unit(np.stack([value for value, _ in cells]))
        scores = [1 - (row @ rows.sum(0) - row @ row) / max(1, H * W - 1) for row in rows]
        kept = sorted(sorted(range(H * W), key=lambda i: (-scores[i], i))[:count])
        groups = {place: [cells[place]] for place in kept}
        for place in range(H * W):
            if place not in groups:
                groups[kept[int((rows[kept] @ rows[place]).argmax())]].append(cells[place])
        out += [mean_of(group) for group in groups.values()]
    return out


def metok(x: np.ndarray, target: int | None, events: int, key_events: int, key_frames: int) -> list[Token]:
    T, H, W, C = x.shape
    means = x.reshape(T, -1, C).mean(1)
    likeness = [cosine(means[t], means[t + 1]) for t in range(T - 1)]
    cuts = sorted(sorted(range(T - 1), key=lambda t: (likeness[t], t))[: events - 1])
    starts = [0, *(t + 1 for t in cuts)]
    relevance = [cosine(mean, means.mean(0)) for mean in means]
    parts = [list(range(s, e)) for s, e in zip(starts, [*starts[1:], T], strict=True)]
    keys = sorted(range(len(parts)), key=lambda p: (-max(relevance[t] for t in parts[p]), p))[:key_events]
    strides = {}
    for number, part in enumerate(parts):
        best = sorted(part, key=lambda t: (-relevance[t], t))[:key_frames]
        for t in part:
            strides[t] = {0: 8, 1: 4, 2: 2}[(number in keys) + (t in best)]
    if target is not None:
        counts = share(target, [H * W] * T, [strides[t] ** -2.0 for t in range(T)])
        return [token for t in range(T) for token in merge_down(cells_of(x, t), counts[t])]
    out = []
    for t in range(T):
        frame, s = cells_of(x, t), strides[t]
        for y in range(0, H, s):
            for column in range(0, W, s):
                inside = [frame[i * W + j] for i in range(y, min(y + s, H)) for j in range(column, min(column + s, W))]
                out.append(mean_of(inside))
    return out


def peaks(x: np.ndarray, neighbors: int) -> np.ndarray:
    """Density-peak scores of rows, log(rho * delta)."""
    n = len(x)
    distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2)) / np.sqrt(x.shape[1])
    k = min(neighbors, n)
    density = np.array([-(np.sort(row)[:k] ** 2).mean() for row in distance])
    scores = []
    for i in range(n):
        denser = [j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        delta = min(distance[i, j] for j in denser) if denser else distance.max()
        scores.append(density[i] + np.log(max(delta, 1e-30)))
    return np.array(scores)


def cluster(tokens: list[Token], count: int, neighbors: int) -> list[Token]:
    """Clusters around density peaks."""
    if not count:
        return []
    x = np.stack([value for value, _ in tokens])
    scores = peaks(x, neighbors)
    centres = sorted(sorted(range(len(x)), key=lambda i: (-scores[i], i))[:count])
    groups: dict[int, list[Token]] = {i: [] for i in centres}
    for i, token in enumerate(tokens):
        nearest = i if i in groups else min(centres, key=lambda c: (round(float(((x[c] - x[i]) ** 2).sum()), 9), c))
        groups[nearest].append(token)
    return [mean_of(group) for group in groups.values()]


def contiguous(labels: list[int]) -> list[int]:
    """PruneVid's segments: the first frame of each frame's.

    Of each label the runs of the greatest length stay, unless that is 1; each stretch of what does not stay takes the
    label of the longer run beside it, the left one of equals, from left to right; nothing beside it: label 0.
    """
    runs = [(label, len(list(same))) for label, same in itertools.groupby(labels)]
    longest = {label: max(length for other, length in runs if other == label) for label, _ in runs}
    now: list[int | None] = []
    for label, length in runs:
        now += [label if length == longest[label] > 1 else None] * length
    while None in now:
        start = now.index(None)
        end = next((t for t in range(start, len(now)) if now[t] is not None), len(now))
        left = [list(same) for _, same in itertools.groupby(now[:start])][-1:]
        right = [list(same) for _, same in itertools.groupby(now[end:])][:1]
        beside = max([*left, *right], key=len, default=[0])
        now[start:end] = [beside[0]] * (end - start)
    first = 0
    out = []
    for t, label in enumerate(now):
        first = t if t and label != now[t - 1] else first
        out.append(first)
    return out


def prunevid(x: np.ndarray, tau: float, segments: float, ratio: float, neighbors: int) -> list[Token]:
    T, H, W, C = x.shape
    n = H * W
    means = x.reshape(T, n, C).mean(1)
    scores = peaks(means, neighbors)
    number = max(1, int(segments * T + 1e-6))
    centres = sorted(sorted(range(T), key=lambda t: (-scores[t], t))[:number])
    labels = [t if t in centres else min(centres, key=lambda c: ((means[c] - means[t]) ** 2).sum()) for t in range(T)]
    first = contiguous(labels)
    sets: list[list[Token]] = []
    for start in sorted(set(first)):
        frames = [t for t in range(T) if first[t] == start]
        static, dynamic = [], {t: [] for t in frames}
        for place in range(n):
            values = x[frames, place // W, place % W]
            pairs = [cosine(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
            if pairs and np.mean(pairs) > tau:
                static.append((values.mean(0), [t * n + place for t in frames]))
            else:
                for t, value in zip(frames, values, strict=True):
                    dynamic[t].append((value, [t * n + place]))
        sets += [static, *dynamic.values()]
    out = []
    for tokens in sets:
        count = max(1, int(len(tokens) * ratio + 1e-6)) if len(tokens) > 14 else len(tokens)
        out += cluster(tokens, count, neighbors) if len(tokens) > 14 else tokens
    return out


def kept(x: np.ndarray, cells: list[int]) -> list[Token]:
    """Cells that stay as they are."""
    flat = x.reshape(-1, x.shape[-1])
    return [(flat[cell], [cell]) for cell in sorted(cells)]


def change(x: np.ndarray) -> np.ndarray:
    """1 - cosine of every cell to the same place a frame before, cell by cell; infinite in the first frame, [T*H*W]."""
    n = x.shape[1] * x.shape[2]
    flat = x.reshape(-1, x.shape[-1])
    return np.array([np.inf if cell < n else 1 - cosine(flat[cell], flat[cell - n]) for cell in range(len(flat))])


def evs(x: np.ndarray, target: int) -> list[Token]:
    moved = change(x)
    return kept(x, sorted(range(len(moved)), key=lambda cell: (-moved[cell], cell))[:target])


def dtd(x: np.ndarray, tau: float) -> list[Token]:
    return kept(x, [cell for cell, moved in enumerate(change(x)) if 1 - moved <= tau])


def dycoke(x: np.ndarray, rate: float) -> list[Token]:
    T, n = x.shape[0], x.shape[1] * x.shape[2]
    flat = x.reshape(T, n, -1)
    stays = int((1 - rate) * n + 1e-6)
    cells = []
    for t in range(T):
        earlier = t - 1 if t % 4 in (1, 3) else t - 2 if t % 4 == 2 and t - 2 < T - 4 else None
        places = range(n)
        if earlier is not None:
            like = [cosine(flat[t, place], flat[earlier, place]) for place in range(n)]
            places = sorted(range(n), key=lambda place: (like[place], place))[:stays]
        cells += [t * n + place for place in places]
    return kept(x, cells)


def frame_fusion(x: np.ndarray, similarity: float) -> list[Token]:
    T, n = x.shape[0], x.shape[1] * x.shape[2]
    flat = x.reshape(T, n, -1)
    out = []
    for place in range(n):
        chain = [0]
        for t in range(1, T + 1):
            if t < T and cosine(flat[t, place], flat[t - 1, place]) >= similarity:
                chain.append(t)
                continue
            out.append((flat[chain, place].mean(0), [s * n + place for s in chain]))
            chain = [t]
    return out


def vidcom2(x: np.ndarray, target: int) -> list[Token]:
    T, n, C = x.shape[0], x.shape[1] * x.shape[2], x.shape[3]
    flat = x.reshape(-1, C)
    calm = np.sort(np.argsort(flat.var(0), kind="stable")[: C // 2])
    y = unit(flat[:, calm]).reshape(T, n, -1)

    def like(z: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return sum(np.exp(-((z - centre) ** 2).sum(-1) / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    to_video = like(y, y.reshape(T * n, -1).mean(0))
    alike = np.stack([to_video[t] + like(y[t], y[t].mean(0)) for t in range(T)])
    v = -to_video.mean(1) / 0.01
    weight = np.exp(v - v.max()) / np.exp(v - v.max()).sum()
    target = max(T, target)
    cells = set()
    for t in range(T):
        wanted = round(min(1.0, target / (T * n) * (1 + weight[t] - 1 / T)) * n)
        order = sorted(range(n), key=lambda place: (alike[t, place], place))
        cells |= {t * n + place for place in order[: max(1, wanted)]}
    # The sum is mended wherever in the video that is: the most alike go, or the least alike of the others come.
    order = sorted(range(T * n), key=lambda cell: (alike.flat[cell], cell))
    inside, outside = [cell for cell in order if cell in cells], [cell for cell in order if cell not in cells]
    return kept(x, sorted([*inside, *outside][:target]))


def max_min(x: np.ndarray, target: int) -> list[Token]:
    rows = unit(x.reshape(-1, x.shape[-1]))
    chosen = [int((rows @ rows.mean(0)).argmin())]
    near = rows @ rows[chosen[0]]
    while len(chosen) < target:
        near[chosen] = np.inf
        chosen.append(int(near.argmin()))
        near = np.maximum(near, rows @ rows[chosen[-1]])
    return kept(x, chosen)


def same_tokens(out: Tokens, expected: list[Token], tolerance: float = 1e-4) -> None:
    """Asserts that a method's tokens of one video stand for the same cells and have the same features."""
    source = out.assignment[0].numpy()
    ours = {frozenset(np.flatnonzero(source == m).tolist()): out.features[0, m].numpy() for m in range(out.N)}
    theirs = {frozenset(members): value for value, members in expected}
    assert set(ours) == set(theirs)
    for members, value in theirs.items():
        np.testing.assert_allclose(ours[members], value, rtol=tolerance, atol=tolerance)


def blocks(x: np.ndarray, shape: tuple[int, int, int]) -> list[Token]:
    """Means over blocks, where cell i of n goes to block floor(i * m / n) of m along each axis."""
    groups: dict[tuple[int, ...], list[Token]] = {}
    for number, place in enumerate(np.ndindex(x.shape[:3])):
        block = tuple(i * m // n for i, m, n in zip(place, shape, x.shape[:3], strict=True))
        groups.setdefault(block, []).append((x[place], [number]))
    return [mean_of(group) for group in groups.values()]


def uniform_hash(seed: int, n: int) -> list[float]:
    """MurmurHash3's 32-bit finalizer over place and seed in plain integers, the upper 24 bits as numbers in [0,1)."""
    out = []
    for place in range(n):
        h = (place * 0x9E3779B1 + seed * 0x85EBCA77 + 0x165667B1) % 2**32
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        h = h * 0xC2B2AE35 % 2**32
        h ^= h >> 16
        out.append((h >> 8) / 2**24)
    return out


def kmeans_plus_plus(x: np.ndarray, count: int, seed: int, draws: int = 5) -> np.ndarray:
    """Greedy k-means++ by 1 - cosine on unit rows [N,C], of each `draws` candidates the one that fits best."""
    numbers = iter(uniform_hash(seed, count * draws))
    far, chosen = np.ones(len(x)), []
    for _ in range(count):
        chance = np.cumsum(far if far.sum() > 0 else np.ones(len(x)))
        candidates = [x[min(int((chance <= next(numbers) * chance[-1]).sum()), len(x) - 1)] for _ in range(draws)]
        after = []
        for candidate in candidates:
            distance = 1 - x @ candidate
            distance[distance < 1e-6] = 0
            after.append(np.minimum(far, distance) if chosen else distance)
        best = int(np.argmin([row.sum() for row in after]))
        chosen.append(candidates[best])
        far = after[best]
    return np.array(chosen)


def kmeans(x: np.ndarray, count: int, seed: int) -> list[int]:
    """The labels of spherical k-means from k-means++, cell by cell; no cluster may run empty."""
    rows = unit(x.reshape(-1, x.shape[-1]))
    centres = kmeans_plus_plus(rows, count, seed)
    for _ in range(50):
        labels = [int((centres @ row).argmax()) for row in rows]
        assert len(set(labels)) == count
        moved = unit(np.stack([rows[np.array(labels) == k].sum(0) for k in range(count)]))
        if np.linalg.norm(moved - centres) <= 1e-4:
            centres = moved
            break
        centres = moved
    return [int((centres @ row).argmax()) for row in rows]
