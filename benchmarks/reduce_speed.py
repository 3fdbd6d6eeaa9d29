"""Speed of `tome` and `kmeans` on the tokens of a video, against straightforward versions.

    python benchmarks/reduce_speed.py

About two minutes and 1 GB on 2 cores. Expected there:
* `tome`, [1, 6272, 896] (32 frames of 196): one step of matching and merging a little faster than the
  published algorithm written plainly, with equal results; the product that both must do is the limit.
* `kmeans`, K=32 on [1, 23328, 896] (32 frames of 729): beside scikit-learn's KMeans on the same normalised
  tokens from the same starts for the same iterations; peak memory below 4 times the input.
"""

from __future__ import annotations

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
    """Features like a video's: a still background, moving parts, noise. [1,T*H*W,C]."""
    g = torch.Generator().manual_seed(seed)
    still = torch.randn(1, 1, H, W, C, generator=g)
    fresh = torch.randn(1, T, H, W, C, generator=g)
    moves = torch.rand(1, T, H, W, 1, generator=g) < 0.3
    return (torch.where(moves, fresh, still) + 0.2 * torch.randn(1, T, H, W, C, generator=g)).flatten(1, 3)


def plain_tome(x: torch.Tensor, sizes: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The published algorithm as one would write it down: whole similarity table, gather, scatter."""
    metric = x / x.norm(dim=-1, keepdim=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(1, 2)
    best, match = scores.max(-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    rest, gone = order[:, r:], order[:, :r]
    target = match[..., None].gather(1, gone)
    merged = []
    for values in (x * sizes[..., None], sizes[..., None]):
        source, out = values[:, ::2], values[:, 1::2]
        width = values.shape[2]
        kept = source.gather(1, rest.expand(-1, -1, width))
        moved = source.gather(1, gone.expand(-1, -1, width))
        out = out.scatter_reduce(1, target.expand(-1, -1, width), moved, reduce="sum")
        merged.append(torch.cat([kept, out], 1))
    return merged[0] / merged[1], merged[1].squeeze(2)


def tome_rows() -> list[dict]:
    x = video_tokens(32, 14, 14, 896)
    tokens = Tokens.from_cells(x.reshape(1, 32, 14, 14, 896))
    rows = []
    for r in (3136, 1568, 200):
        ours = tokens.apply(bipartite_plan(tokens.features, r, tokens))
        theirs, sizes = plain_tome(x, tokens.sizes, r)
        assert torch.equal(ours.sizes.sort().values, sizes.sort().values)
        times = time_side_by_side(
            {
                "ours": lambda r=r: tokens.apply(bipartite_plan(tokens.features, r, tokens)),
                "plain": lambda r=r: plain_tome(x, tokens.sizes, r),
                "product": lambda: x[:, ::2] @ x[:, 1::2].transpose(1, 2),
            }
        )
        # Nearly equal pairs may come in another order, so rows are compared by their first channel.
        mine, other = (rows[0][rows[0, :, 0].argsort()] for rows in (ours.features, theirs))
        rows.append(_row(f"one step of tome, r={r}, [1, 6272, 896]", times, float((mine - other).abs().max())))
    (method,) = registry.build("tome(keep=0.1)")

    def whole() -> torch.Tensor:
        features, sizes = x, tokens.sizes
        while features.shape[1] > 627:
            features, sizes = plain_tome(features, sizes, min(features.shape[1] - 627, features.shape[1] // 2))
        return features

    times = time_side_by_side({"ours": lambda: method(tokens), "plain": whole})
    rows.append(_row("tome(keep=0.1) in all steps, [1, 6272, 896]", times, float("nan")))
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
    # The criterion that both lower: mean 1 - cosine to the (normalised) mean of the own cluster.
    centres = F.normalize(torch.from_numpy(theirs().cluster_centers_), dim=1)[None]
    distortion = float(spherical.assign(unit, real, centres, k).distortion)
    difference = abs(float(ours.distortion) - distortion) / distortion
    times = time_side_by_side(
        {"ours": lambda: spherical.lloyd(unit, real, start, k, iterations, 0.0), "plain": theirs}, repeats=5
    )
    rows = [
        _row(f"{iterations} iterations of k-means, K={K}, [1, 23328, 896] (plain = scikit-learn)", times, difference)
    ]
    for spec in ("kmeans(32)", "kmeans(criterion='silhouette')", "kmeans(criterion='elbow')"):
        (method,) = registry.build(spec)
        times = time_side_by_side({"ours": lambda method=method: method(tokens)}, repeats=3)
        gc.collect()
        memory = peak_memory(lambda method=method: method(tokens)) / x.nbytes
        rows.append(_row(f"{spec} whole, [1, 23328, 896]", times, float("nan")) | {"peak / input": round(memory, 2)})
    return rows


def _row(what: str, times: dict[str, dict[str, float]], difference: float) -> dict:
    def show(name: str) -> str:
        if name not in times:
            return "-"
        t = times[name]
        return f"{t['median']:.0f} ({t['min']:.0f}..{t['max']:.0f})"

    ratio = times["plain"]["median"] / times["ours"]["median"] if "plain" in times else None
    return {
        "what": what,
        "ours ms": show("ours"),
        "plain ms": show("plain"),
        "plain / ours": "-" if ratio is None else f"{ratio:.2f}",
        "matrix product alone ms": show("product"),
        "difference": "-" if difference != difference else f"{difference:.1e}",
        "peak / input": "-",
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    write(
        "reduce_speed",
        "tome and kmeans against straightforward versions",
        "python benchmarks/reduce_speed.py",
        tome_rows() + kmeans_rows(),
        "Milliseconds: median (least..most). Difference: largest absolute one of the features; for k-means of "
        "the mean 1 - cosine to the own centre, relative. Peak / input: rise of the resident memory over the size "
        "of the features. scikit-learn measures Euclidean distance between normalised tokens and does not normalise "
        "its centres, so it is the same work and not quite the same clustering.",
    )
