"""Reference implementations of methods, written from their papers with a loop over tokens, frames or segments.

Features are [T,H,W,C] in float64. The result is a list of (feature, members); members are the indices of the cells that
a token stands for. `assert_same_tokens` compares it with the output of a method; benchmarks/family_speed.py times them.
"""

from __future__ import annotations

import itertools

import numpy as np

from fewtokens.core.tokens import Tokens
from tests.helpers.clips import clip

Token = tuple[np.ndarray, list[int]]


def video(T: int = 6, H: int = 4, W: int = 5, C: int = 12, seed: int = 0) -> tuple[Tokens, np.ndarray]:
    """Returns a clip, and its features in float64 [T,H,W,C]."""
    tokens = clip(T, H, W, C, 1, seed=seed)
    return tokens, tokens.features[0].double().numpy().reshape(T, H, W, C)


def num_kept_frames(target: int, time: float) -> int:
    """Returns how many of the 6 frames (20 cells each) of `video` to keep: (kept fraction) ** `time`, clamped."""
    return min(target, max(round(6 * (target / 120) ** time), -(-target // 20)))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(unit(a) @ unit(b))


def frame_tokens(x: np.ndarray, t: int) -> list[Token]:
    """Returns the cells of a frame as tokens."""
    _, H, W, C = x.shape
    return [(value, [t * H * W + position]) for position, value in enumerate(x[t].reshape(-1, C))]


def merge(tokens: list[Token]) -> Token:
    """Merges tokens; the feature is their mean, weighted by size."""
    members = [cell for _, cells in tokens for cell in cells]
    total = sum(value * len(cells) for value, cells in tokens)
    return total / len(members), members


def merge_down(tokens: list[Token], target: int) -> list[Token]:
    """ToMe's bipartite merging, in steps, until `target` tokens remain."""
    while len(tokens) > target:
        r = min(len(tokens) - target, len(tokens) // 2)
        a, b = tokens[::2], tokens[1::2]
        table = unit(np.stack([value for value, _ in b]))
        pairs = []
        for index, (value, _) in enumerate(a):
            similarity = table @ unit(value)
            pairs.append((-similarity.max(), index, int(similarity.argmax())))
        pairs.sort()
        groups = [[token] for token in b]
        for _, source, target_index in pairs[:r]:
            groups[target_index].append(a[source])
        tokens = [a[source] for _, source, _ in pairs[r:]] + [merge(group) for group in groups]
    return tokens


def allocate(total: int, sizes: list[int], weights: list[float] | None = None) -> list[int]:
    """Allocates `total` tokens to groups: one per group, then by Sainte-Lague's rule, at most its size per group."""
    weights = [float(size) for size in sizes] if weights is None else weights
    counts = [0] * len(sizes)
    for group, size in enumerate(sizes):
        if size and sum(counts) < total:
            counts[group] = 1
    while sum(counts) < total:
        open_groups = [g for g, size in enumerate(sizes) if counts[g] < size]
        counts[min(open_groups, key=lambda g: ((counts[g] + 0.5) / weights[g], g))] += 1
    return counts


def sort_by_position(tokens: list[Token], shape: tuple[int, ...]) -> list[Token]:
    """Sorts tokens by mean time, row and column."""

    def key(token: Token) -> tuple[float, ...]:
        mean = np.stack(np.unravel_index(token[1], shape)).mean(1)
        return tuple(round(float(value) * 1024) for value in mean)

    return sorted(tokens, key=key)


def tome_video(x: np.ndarray, target: int, within: str) -> list[Token]:
    T, H, W, _ = x.shape
    n = H * W
    if within == "frame":
        counts = allocate(target, [n] * T)
        return [token for t in range(T) for token in merge_down(frame_tokens(x, t), counts[t])]
    tokens = []
    for t in range(T):
        frame = frame_tokens(x, t)
        # In odd frames the last cell moves to position 0.
        tokens += [frame[-1], *frame[:-1]] if t % 2 and n % 2 == 0 else frame
    return merge_down(tokens, target)


def merge_windows(x: np.ndarray, per_window: int, window: int) -> list[Token]:
    T, H, W, _ = x.shape
    out = []
    for t in range(T):
        frame = frame_tokens(x, t)
        for y in range(0, H, window):
            for column in range(0, W, window):
                inside = [
                    frame[i * W + j]
                    for i in range(y, min(y + window, H))
                    for j in range(column, min(column + window, W))
                ]
                out += merge_down(inside, min(per_window, len(inside)))
    return out


def tempme(x: np.ndarray, target: int, joins: tuple[int, ...]) -> list[Token]:
    T, H, W, _ = x.shape
    start = T * H * W
    groups = [frame_tokens(x, t) for t in range(T)]
    frames = 1
    for step, join in enumerate((1, *joins), 1):
        frames *= join
        joined = [[] for _ in range(-(-T // frames))]
        for tokens in groups:
            for token in tokens:
                time = np.mean([cell // (H * W) for cell in token[1]])
                joined[round(time) // frames].append(token)
        sizes = [len(group) for group in joined]
        part = (np.float32(target) / np.float32(start)) ** (step / (len(joins) + 1))
        count = min(max(int(np.ceil(start * part)), len(joined), target), sum(sizes))
        count = target if step == len(joins) + 1 else count
        counts = allocate(count, sizes)
        merged = []
        for group, count in zip(joined, counts, strict=True):
            group = sort_by_position(group, (T, H, W))
            # Tokens with the same mean position are ordered by the tokens they were merged from.
            rank = {cell: index for index, (_, cells) in enumerate(group) for cell in cells}
            reduced = merge_down(group, count)
            merged.append(sorted(reduced, key=lambda token: round(1024 * np.mean([rank[cell] for cell in token[1]]))))
        groups = [sort_by_position([token for group in merged for token in group], (T, H, W))]
    return groups[0]


def testa(x: np.ndarray, target: int, frames: int) -> list[Token]:
    T, H, W, _ = x.shape
    rows = [(unit(x[t]).reshape(-1), [t]) for t in range(T)]
    merged = sort_by_position(merge_down(rows, frames), (T,))
    counts = allocate(target, [H * W] * len(merged))
    out = []
    for (_, members), count in zip(merged, counts, strict=True):
        cells = [
            (x[members, position // W, position % W].mean(0), [t * H * W + position for t in sorted(members)])
            for position in range(H * W)
        ]
        out += merge_down(cells, count)
    return out


def lftr(x: np.ndarray, target: int, frames: int) -> list[Token]:
    T, H, W, C = x.shape
    means = x.reshape(T, -1, C).mean(1)
    novelty = [2.0] + [1 - cosine(means[t], means[t - 1]) for t in range(1, T)]
    key_frames = sorted(sorted(range(T), key=lambda t: (-novelty[t], t))[:frames])
    counts = allocate(target, [H * W] * len(key_frames))
    out = []
    for index, (t, count) in enumerate(zip(key_frames, counts, strict=True)):
        run = range(t, key_frames[index + 1] if index + 1 < len(key_frames) else T)
        cells = [
            (x[list(run), position // W, position % W].mean(0), [s * H * W + position for s in run])
            for position in range(H * W)
        ]
        rows = unit(np.stack([value for value, _ in cells]))
        scores = [1 - (row @ rows.sum(0) - row @ row) / max(1, H * W - 1) for row in rows]
        survivors = sorted(sorted(range(H * W), key=lambda i: (-scores[i], i))[:count])
        groups = {position: [cells[position]] for position in survivors}
        for position in range(H * W):
            if position not in groups:
                groups[survivors[int((rows[survivors] @ rows[position]).argmax())]].append(cells[position])
        out += [merge(group) for group in groups.values()]
    return out


def metok(x: np.ndarray, target: int | None, events: int, key_events: int, key_frames: int) -> list[Token]:
    T, H, W, C = x.shape
    means = x.reshape(T, -1, C).mean(1)
    similarity = [cosine(means[t], means[t + 1]) for t in range(T - 1)]
    cuts = sorted(sorted(range(T - 1), key=lambda t: (similarity[t], t))[: events - 1])
    starts = [0, *(t + 1 for t in cuts)]
    relevance = [cosine(mean, means.mean(0)) for mean in means]
    parts = [list(range(s, e)) for s, e in zip(starts, [*starts[1:], T], strict=True)]
    keys = sorted(range(len(parts)), key=lambda p: (-max(relevance[t] for t in parts[p]), p))[:key_events]
    strides = {}
    for index, part in enumerate(parts):
        best = sorted(part, key=lambda t: (-relevance[t], t))[:key_frames]
        for t in part:
            strides[t] = {0: 8, 1: 4, 2: 2}[(index in keys) + (t in best)]
    if target is not None:
        counts = allocate(target, [H * W] * T, [strides[t] ** -2.0 for t in range(T)])
        return [token for t in range(T) for token in merge_down(frame_tokens(x, t), counts[t])]
    out = []
    for t in range(T):
        frame, s = frame_tokens(x, t), strides[t]
        for y in range(0, H, s):
            for column in range(0, W, s):
                inside = [frame[i * W + j] for i in range(y, min(y + s, H)) for j in range(column, min(column + s, W))]
                out.append(merge(inside))
    return out


def density_peak_scores(x: np.ndarray, neighbors: int) -> np.ndarray:
    """Returns the density-peak score of each row, log(rho * delta)."""
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
    """Clusters tokens around density peaks."""
    if not count:
        return []
    x = np.stack([value for value, _ in tokens])
    scores = density_peak_scores(x, neighbors)
    centers = sorted(sorted(range(len(x)), key=lambda i: (-scores[i], i))[:count])
    groups: dict[int, list[Token]] = {i: [] for i in centers}
    for i, token in enumerate(tokens):
        nearest = i if i in groups else min(centers, key=lambda c: (round(float(((x[c] - x[i]) ** 2).sum()), 9), c))
        groups[nearest].append(token)
    return [merge(group) for group in groups.values()]


def contiguous_segments(labels: list[int]) -> list[int]:
    """Returns the first frame of the PruneVid segment of each frame.

    Of each label only the longest runs are kept, and only if they are longer than 1. From left to right, each gap takes
    the label of the longer of its adjacent runs (the left one if equal), or 0 if there is none.
    """
    runs = [(label, len(list(same))) for label, same in itertools.groupby(labels)]
    longest = {label: max(length for other, length in runs if other == label) for label, _ in runs}
    segments: list[int | None] = []
    for label, length in runs:
        segments += [label if length == longest[label] > 1 else None] * length
    while None in segments:
        start = segments.index(None)
        end = next((t for t in range(start, len(segments)) if segments[t] is not None), len(segments))
        left = [list(same) for _, same in itertools.groupby(segments[:start])][-1:]
        right = [list(same) for _, same in itertools.groupby(segments[end:])][:1]
        adjacent = max([*left, *right], key=len, default=[0])
        segments[start:end] = [adjacent[0]] * (end - start)
    first = 0
    out = []
    for t, label in enumerate(segments):
        first = t if t and label != segments[t - 1] else first
        out.append(first)
    return out


def prunevid(x: np.ndarray, tau: float, segments: float, ratio: float, neighbors: int) -> list[Token]:
    T, H, W, C = x.shape
    n = H * W
    means = x.reshape(T, n, C).mean(1)
    scores = density_peak_scores(means, neighbors)
    count = max(1, int(segments * T + 1e-6))
    centers = sorted(sorted(range(T), key=lambda t: (-scores[t], t))[:count])
    labels = [t if t in centers else min(centers, key=lambda c: ((means[c] - means[t]) ** 2).sum()) for t in range(T)]
    first = contiguous_segments(labels)
    sets: list[list[Token]] = []
    for start in sorted(set(first)):
        frames = [t for t in range(T) if first[t] == start]
        static, dynamic = [], {t: [] for t in frames}
        for position in range(n):
            values = x[frames, position // W, position % W]
            pairs = [cosine(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
            if pairs and np.mean(pairs) > tau:
                static.append((values.mean(0), [t * n + position for t in frames]))
            else:
                for t, value in zip(frames, values, strict=True):
                    dynamic[t].append((value, [t * n + position]))
        sets += [static, *dynamic.values()]
    out = []
    for tokens in sets:
        count = max(1, int(len(tokens) * ratio + 1e-6)) if len(tokens) > 14 else len(tokens)
        out += cluster(tokens, count, neighbors) if len(tokens) > 14 else tokens
    return out


def keep_cells(x: np.ndarray, cells: list[int]) -> list[Token]:
    """Returns these cells as unchanged tokens."""
    flat = x.reshape(-1, x.shape[-1])
    return [(flat[cell], [cell]) for cell in sorted(cells)]


def frame_change(x: np.ndarray) -> np.ndarray:
    """Returns 1 - cosine of each cell to the same position in the previous frame, [T*H*W]; inf in the first frame."""
    n = x.shape[1] * x.shape[2]
    flat = x.reshape(-1, x.shape[-1])
    return np.array([np.inf if cell < n else 1 - cosine(flat[cell], flat[cell - n]) for cell in range(len(flat))])


def evs(x: np.ndarray, target: int) -> list[Token]:
    change = frame_change(x)
    return keep_cells(x, sorted(range(len(change)), key=lambda cell: (-change[cell], cell))[:target])


def dtd(x: np.ndarray, tau: float) -> list[Token]:
    return keep_cells(x, [cell for cell, change in enumerate(frame_change(x)) if 1 - change <= tau])


def dycoke(x: np.ndarray, rate: float) -> list[Token]:
    T, n = x.shape[0], x.shape[1] * x.shape[2]
    flat = x.reshape(T, n, -1)
    count = int((1 - rate) * n + 1e-6)
    cells = []
    for t in range(T):
        reference = t - 1 if t % 4 in (1, 3) else t - 2 if t % 4 == 2 and t - 2 < T - 4 else None
        positions = range(n)
        if reference is not None:
            similarity = [cosine(flat[t, i], flat[reference, i]) for i in range(n)]
            positions = sorted(range(n), key=lambda i: (similarity[i], i))[:count]
        cells += [t * n + i for i in positions]
    return keep_cells(x, cells)


def frame_fusion(x: np.ndarray, similarity: float) -> list[Token]:
    T, n = x.shape[0], x.shape[1] * x.shape[2]
    flat = x.reshape(T, n, -1)
    out = []
    for position in range(n):
        chain = [0]
        for t in range(1, T + 1):
            if t < T and cosine(flat[t, position], flat[t - 1, position]) >= similarity:
                chain.append(t)
                continue
            out.append((flat[chain, position].mean(0), [s * n + position for s in chain]))
            chain = [t]
    return out


def vidcom2(x: np.ndarray, target: int) -> list[Token]:
    T, n, C = x.shape[0], x.shape[1] * x.shape[2], x.shape[3]
    flat = x.reshape(-1, C)
    channels = np.sort(np.argsort(flat.var(0), kind="stable")[: C // 2])
    y = unit(flat[:, channels]).reshape(T, n, -1)

    def kernel_similarity(z: np.ndarray, center: np.ndarray) -> np.ndarray:
        return sum(np.exp(-((z - center) ** 2).sum(-1) / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    to_video = kernel_similarity(y, y.reshape(T * n, -1).mean(0))
    similarity = np.stack([to_video[t] + kernel_similarity(y[t], y[t].mean(0)) for t in range(T)])
    v = -to_video.mean(1) / 0.01
    weight = np.exp(v - v.max()) / np.exp(v - v.max()).sum()
    target = max(T, target)
    cells = set()
    for t in range(T):
        count = round(min(1.0, target / (T * n) * (1 + weight[t] - 1 / T)) * n)
        order = sorted(range(n), key=lambda position: (similarity[t, position], position))
        cells |= {t * n + position for position in order[: max(1, count)]}
    # Corrects the total over the full video: removes the most similar cells, or adds the least similar of the others.
    order = sorted(range(T * n), key=lambda cell: (similarity.flat[cell], cell))
    inside, outside = [cell for cell in order if cell in cells], [cell for cell in order if cell not in cells]
    return keep_cells(x, sorted([*inside, *outside][:target]))


def max_min(x: np.ndarray, target: int) -> list[Token]:
    rows = unit(x.reshape(-1, x.shape[-1]))
    selected = [int((rows @ rows.mean(0)).argmin())]
    nearest_similarity = rows @ rows[selected[0]]
    while len(selected) < target:
        nearest_similarity[selected] = np.inf
        selected.append(int(nearest_similarity.argmin()))
        nearest_similarity = np.maximum(nearest_similarity, rows @ rows[selected[-1]])
    return keep_cells(x, selected)


def assert_same_tokens(out: Tokens, expected: list[Token], tolerance: float = 1e-4) -> None:
    """Asserts that the tokens of one video stand for the expected cells and have the expected features."""
    assignment = out.assignment[0].numpy()
    actual = {frozenset(np.flatnonzero(assignment == m).tolist()): out.features[0, m].numpy() for m in range(out.N)}
    by_members = {frozenset(members): value for value, members in expected}
    assert set(actual) == set(by_members)
    for members, value in by_members.items():
        np.testing.assert_allclose(actual[members], value, rtol=tolerance, atol=tolerance)


def blocks(x: np.ndarray, shape: tuple[int, int, int]) -> list[Token]:
    """Averages over blocks; along each axis, cell i of n belongs to block floor(i * m / n) of m."""
    groups: dict[tuple[int, ...], list[Token]] = {}
    for cell, position in enumerate(np.ndindex(x.shape[:3])):
        block = tuple(i * m // n for i, m, n in zip(position, shape, x.shape[:3], strict=True))
        groups.setdefault(block, []).append((x[position], [cell]))
    return [merge(group) for group in groups.values()]


def uniform_hash(seed: int, n: int) -> list[float]:
    """MurmurHash3's 32-bit finalizer of position and seed, in Python integers; its upper 24 bits as floats in [0,1)."""
    out = []
    for position in range(n):
        h = (position * 0x9E3779B1 + seed * 0x85EBCA77 + 0x165667B1) % 2**32
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        h = h * 0xC2B2AE35 % 2**32
        h ^= h >> 16
        out.append((h >> 8) / 2**24)
    return out


def kmeans_plus_plus(x: np.ndarray, count: int, seed: int, draws: int = 5) -> np.ndarray:
    """Greedy k-means++ by 1 - cosine on unit rows [N,C]; picks the best of `draws` candidates per center."""
    randoms = iter(uniform_hash(seed, count * draws))
    nearest_distance, selected = np.ones(len(x)), []
    for _ in range(count):
        cumulative = np.cumsum(nearest_distance if nearest_distance.sum() > 0 else np.ones(len(x)))
        candidates = [
            x[min(int((cumulative <= next(randoms) * cumulative[-1]).sum()), len(x) - 1)] for _ in range(draws)
        ]
        distances = []
        for candidate in candidates:
            distance = 1 - x @ candidate
            distance[distance < 1e-6] = 0
            distances.append(np.minimum(nearest_distance, distance) if selected else distance)
        best = int(np.argmin([row.sum() for row in distances]))
        selected.append(candidates[best])
        nearest_distance = distances[best]
    return np.array(selected)


def kmeans(x: np.ndarray, count: int, seed: int) -> list[int]:
    """Returns the label of each cell by spherical k-means, initialized by k-means++; clusters must not become empty."""
    rows = unit(x.reshape(-1, x.shape[-1]))
    centers = kmeans_plus_plus(rows, count, seed)
    for _ in range(50):
        labels = [int((centers @ row).argmax()) for row in rows]
        assert len(set(labels)) == count
        updated = unit(np.stack([rows[np.array(labels) == k].sum(0) for k in range(count)]))
        if np.linalg.norm(updated - centers) <= 1e-4:
            centers = updated
            break
        centers = updated
    return [int((centers @ row).argmax()) for row in rows]
