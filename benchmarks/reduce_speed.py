"""Speed of `tome` and `kmeans` on the tokens of a video, against simple implementations.

    python benchmarks/reduce_speed.py

About two minutes and 1 GB on 2 cores. Expected:

* `tome`, [1, 6272, 896] (32 frames of 196): one step of matching and merging slightly faster than a direct
  implementation of the published algorithm, with equal results; the matrix product that both compute is the limit.
* `kmeans`, K=32 on [1, 23328, 896] (32 frames of 729): compared with scikit-learn's KMeans on the same normalized
  tokens, with the same initial centroids and number of iterations; peak memory below 4 times the input.
"""

from __future__ import annotations

import argparse
import gc
import warnings

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans as SklearnKMeans

from common import peak_memory, time_side_by_side, write
from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops import spherical
from fewtokens.methods.ops.bipartite import bipartite_plan


def video_tokens(T: int, H: int, W: int, C: int, seed: int = 0) -> torch.Tensor:
    """Features similar to those of a video, [1,T*H*W,C]: static background, moving parts, noise."""
    g = torch.Generator().manual_seed(seed)
    static = torch.randn(1, 1, H, W, C, generator=g)
    changing = torch.randn(1, T, H, W, C, generator=g)
    moves = torch.rand(1, T, H, W, 1, generator=g) < 0.3
    return (torch.where(moves, changing, static) + 0.2 * torch.randn(1, T, H, W, C, generator=g)).flatten(1, 3)


def simple_tome(x: torch.Tensor, sizes: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A direct implementation of the published algorithm: full similarity table, gather, scatter."""
    metric = x / x.norm(dim=-1, keepdim=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(1, 2)
    best, match = scores.max(-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    unmerged, removed = order[:, r:], order[:, :r]
    target = match[..., None].gather(1, removed)
    merged = []
    for values in (x * sizes[..., None], sizes[..., None]):
        source, out = values[:, ::2], values[:, 1::2]
        dim = values.shape[2]
        remaining = source.gather(1, unmerged.expand(-1, -1, dim))
        moved = source.gather(1, removed.expand(-1, -1, dim))
        out = out.scatter_reduce(1, target.expand(-1, -1, dim), moved, reduce="sum")
        merged.append(torch.cat([remaining, out], 1))
    return merged[0] / merged[1], merged[1].squeeze(2)


def tome_rows() -> list[dict]:
    x = video_tokens(32, 14, 14, 896)
    tokens = Tokens.from_cells(x.reshape(1, 32, 14, 14, 896))
    rows = []
    for r in (3136, 1568, 200):
        ours = tokens.apply(bipartite_plan(tokens.features, r, tokens))
        theirs, sizes = simple_tome(x, tokens.sizes, r)
        assert torch.equal(ours.sizes.sort().values, sizes.sort().values)
        times = time_side_by_side(
            {
                "ours": lambda r=r: tokens.apply(bipartite_plan(tokens.features, r, tokens)),
                "baseline": lambda r=r: simple_tome(x, tokens.sizes, r),
                "product": lambda: x[:, ::2] @ x[:, 1::2].transpose(1, 2),
            }
        )
        # Nearly equal pairs may have a different order, so rows are sorted by their first channel.
        left, right = (rows[0][rows[0, :, 0].argsort()] for rows in (ours.features, theirs))
        rows.append(_row(f"one step of tome, r={r}, [1, 6272, 896]", times, float((left - right).abs().max())))
    (method,) = registry.build("tome(keep=0.1)")

    def all_steps() -> torch.Tensor:
        features, sizes = x, tokens.sizes
        while features.shape[1] > 627:
            features, sizes = simple_tome(features, sizes, min(features.shape[1] - 627, features.shape[1] // 2))
        return features

    times = time_side_by_side({"ours": lambda: method(tokens), "baseline": all_steps})
    rows.append(_row("tome(keep=0.1) in full, [1, 6272, 896]", times, float("nan")))
    return rows


def kmeans_rows() -> list[dict]:
    K, iterations = 32, 10
    x = video_tokens(32, 27, 27, 896)
    tokens = Tokens.from_cells(x.reshape(1, 32, 27, 27, 896))
    unit = F.normalize(x, dim=2)
    start, real, k = unit[:, :: unit.shape[1] // K][:, :K].clone(), tokens.mask, torch.tensor([K])
    array = unit[0].numpy()

    def theirs() -> SklearnKMeans:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SklearnKMeans(K, init=start[0].numpy(), n_init=1, max_iter=iterations, tol=0).fit(array)

    ours = spherical.assign(unit, real, spherical.lloyd(unit, real, start, k, iterations, 0.0), k)
    # The criterion that both minimize: mean 1 - cosine to the (normalized) centroid of the cluster.
    centroids = F.normalize(torch.from_numpy(theirs().cluster_centers_), dim=1)[None]
    distortion = float(spherical.assign(unit, real, centroids, k).distortion)
    difference = abs(float(ours.distortion) - distortion) / distortion
    times = time_side_by_side(
        {"ours": lambda: spherical.lloyd(unit, real, start, k, iterations, 0.0), "baseline": theirs}, repeats=5
    )
    rows = [
        _row(f"{iterations} iterations of k-means, K={K}, [1, 23328, 896] (baseline: scikit-learn)", times, difference)
    ]
    for spec in ("kmeans(32)", "kmeans(criterion='silhouette')", "kmeans(criterion='elbow')"):
        (method,) = registry.build(spec)
        times = time_side_by_side({"ours": lambda method=method: method(tokens)}, repeats=3)
        gc.collect()
        memory = peak_memory(lambda method=method: method(tokens)) / x.nbytes
        rows.append(_row(f"{spec} in full, [1, 23328, 896]", times, float("nan")) | {"peak / input": round(memory, 2)})
    return rows


def _row(task: str, times: dict[str, dict[str, float]], difference: float) -> dict:
    def show(name: str) -> str:
        if name not in times:
            return "-"
        t = times[name]
        return f"{t['median']:.0f} ({t['min']:.0f}..{t['max']:.0f})"

    ratio = times["baseline"]["median"] / times["ours"]["median"] if "baseline" in times else None
    return {
        "task": task,
        "ours ms": show("ours"),
        "baseline ms": show("baseline"),
        "baseline / ours": "-" if ratio is None else f"{ratio:.2f}",
        "matrix product only, ms": show("product"),
        "difference": "-" if difference != difference else f"{difference:.1e}",
        "peak / input": "-",
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    write(
        "reduce_speed",
        "tome and kmeans against simple implementations",
        "python benchmarks/reduce_speed.py",
        tome_rows() + kmeans_rows(),
        "Milliseconds: median (min..max). Difference: largest absolute difference of the features; for k-means the "
        "relative difference of the mean 1 - cosine to the centroid. Peak / input: increase in resident memory divided "
        "by the size of the features. scikit-learn uses Euclidean distances between normalized tokens and does not "
        "normalize its centroids, so it does the same work but finds slightly different clusters.",
    )
