"""Methods that cluster tokens, select representatives, or merge pairs: k-means, density peaks, max-min, ToMe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.centerclip import CenterClip
from fewtokens.methods.merging.testa import Testa
from fewtokens.methods.merging.visionzip import VisionZip
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.groups import merge_within
from fidelity_rows import importing, load, same_places, same_rows
from fidelity_rows.clusters import means
from fidelity_rows.merging import (
    tempme_counts,
    tempme_reference,
    testa_reference,
    tome_reference,
    vid_tldr_attention,
    vid_tldr_ours,
    vid_tldr_reference,
)
from peer_rows import Pair, Row, Workload

ITERATIONS = 10


def inertia(rows: Tensor, label: Tensor) -> float:
    """The sum of 1 - cosine to the mean direction of each cluster, for unit rows [N,C]."""
    total = torch.zeros(int(label.max()) + 1, rows.shape[1], device=rows.device).index_add_(0, label, rows)
    return float((1 - (rows * F.normalize(total, dim=1)[label]).sum(1)).sum())


def _kmeans(work: Workload, keep: float, fit: Callable[[Tensor, int], Any], init: str = "k-means++") -> Pair:
    """Ours from raw tokens to merged tokens; theirs from unit rows to labels. Agreement is a ratio of inertias."""
    tokens = work.tokens()
    (method,) = registry.build(f"kmeans({keep}, iterations={ITERATIONS}, tol=0, init={init!r})")
    rows = F.normalize(tokens.features[0], dim=1)
    clusters = method.planned_count(tokens.grid)

    def agree(ours: Tokens, theirs: Any) -> float:
        label = torch.as_tensor(theirs).long().flatten().to(rows.device)
        return min(1.0, inertia(rows, label) / inertia(rows, ours.assignment[0]))

    return Pair(lambda: method(tokens), lambda: fit(rows, clusters), agree)


def sklearn(keep: float, peers: Path, work: Workload) -> Pair:
    from sklearn.cluster import KMeans

    return _kmeans(
        work, keep, lambda rows, k: KMeans(k, n_init=1, max_iter=ITERATIONS, tol=0, random_state=0).fit_predict(rows)
    )


def faiss(keep: float, peers: Path, work: Workload, init: str = "k-means++") -> Pair:
    """Trained on all rows; by default faiss uses at most 256 for each centroid."""
    import faiss

    def fit(rows: Tensor, k: int) -> Any:
        settings = {"spherical": True, "min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
        faiss.omp_set_num_threads(torch.get_num_threads())
        model = faiss.Kmeans(rows.shape[1], k, niter=ITERATIONS, seed=1, **settings)
        model.train(rows.numpy())
        return model.index.search(rows.numpy(), 1)[1]

    return _kmeans(work, keep, fit, init)


def fast_pytorch_kmeans(keep: float, peers: Path, work: Workload, init: str = "k-means++") -> Pair:
    from fast_pytorch_kmeans import KMeans

    def fit(rows: Tensor, k: int) -> Tensor:
        return KMeans(k, max_iter=ITERATIONS, tol=0, mode="cosine").fit_predict(rows)

    return _kmeans(work, keep, fit, init)


def torch_kmeans(keep: float, peers: Path, work: Workload) -> Pair:
    from torch_kmeans import KMeans

    def fit(rows: Tensor, k: int) -> Tensor:
        settings = {"init_method": "k-means++", "num_init": 1, "max_iter": ITERATIONS, "tol": 0.0, "verbose": False}
        return KMeans(n_clusters=k, **settings)(rows[None]).labels

    return _kmeans(work, keep, fit)


def vqtoken(keep: float, peers: Path, work: Workload) -> Pair:
    code = load(peers / "VQToken" / "VQToken" / "cluster.py", "faiss")
    return _kmeans(work, keep, lambda rows, k: code.KMeansTorch(k, ITERATIONS, 0.0).fit(rows)[0])


def dpc_knn(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    code = load(peers / "TCFormer" / "tcformer_module" / "tcformer_utils.py", "mmcv")
    (method,) = registry.build("dpc_knn(0.25, neighbors=5)")
    x = tokens.features

    def theirs() -> Tensor:
        label, count = code.cluster_dpc_knn({"x": x}, tokens.N // 4, 5)
        return means(x[0], label[0], count)

    return Pair(lambda: method(tokens), theirs, lambda a, b: same_rows(a.features[0], b)[0])


def max_min(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    code = load(peers / "divprune" / "LLaVA" / "llava" / "model" / "llava_arch.py", "llava").LlavaMetaForCausalLM
    model = SimpleNamespace()
    model.pairwise_cosine_similarity = lambda rows: code.pairwise_cosine_similarity(model, rows)
    count = len(code.DivPrune(model, tokens.features[0], tokens.N, threshold_ratio=0.1)[0])
    (method,) = registry.build(f"max_min({count}, start='isolated')")
    return Pair(
        lambda: method(tokens),
        lambda: code.DivPrune(model, tokens.features[0], tokens.N, threshold_ratio=0.1)[0],
        lambda a, b: same_places(a.cell[0], b),
    )


def hourglass(peers: Path, work: Workload) -> Pair:
    """Frames by their means, with the mean included on both sides."""
    tokens = work.tokens()
    code = load(peers / "HoT" / "model" / "mixste" / "hot_mixste.py", "timm")
    (method,) = registry.build("hourglass(0.25)")
    frames = tokens.grid.T

    def theirs() -> Tensor:
        grid = tokens.features.unflatten(1, (frames, -1))
        index, _ = code.cluster_dpc_knn(grid.mean(2), frames // 4, 2)
        return grid[0, index[0].sort().values].flatten(0, 1)

    return Pair(lambda: method(tokens), theirs, lambda a, b: same_rows(a.features[0], b)[0])


def centerclip(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens(side=7)
    segments = tokens.grid.T // 2
    with importing(peers / "CenterCLIP" / "modules"):
        from cluster.fast_kmeans import batch_fast_kmedoids

    rows = tokens.features[0].unflatten(0, (segments, -1))
    start = rows.shape[1] * torch.arange(segments, device=rows.device)[:, None]
    method = CenterClip(49 * segments, iterations=100)

    def theirs() -> Tensor:
        _, index = batch_fast_kmedoids(rows, 49, threshold=1e-6, iter_limit=100, norm_p=2.0)
        return tokens.features[0, (index + start).flatten()]

    return Pair(lambda: method(tokens), theirs, lambda a, b: same_rows(a.features[0], b)[0])


def tome(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    return Pair(
        lambda: tokens.apply(bipartite_plan(tokens.features, tokens.N // 4, tokens)),
        tome_reference(peers, tokens.features),
        _same_rows,
    )


def testa(time: float, peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    method = Testa(tokens.N * 3 // 4, time=time)
    return Pair(lambda: method(tokens), testa_reference(peers, tokens, time), _same_rows)


def tempme(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    counts = tempme_counts(tokens)
    return Pair(
        lambda: tokens.apply(merge_within(tokens, tokens.frame // 2, counts)),
        tempme_reference(peers, tokens),
        _same_rows,
    )


def vid_tldr(peers: Path, work: Workload) -> Pair:
    """The attention is computed before; its sharpness is computed on both sides."""
    tokens = work.tokens()
    attention = vid_tldr_attention(tokens, 14)
    return Pair(
        vid_tldr_ours(tokens, attention),
        vid_tldr_reference(peers, tokens, attention),
        lambda a, b: same_rows(a.features.flatten(0, 1), b[0])[0],
    )


def _same_rows(ours: Tokens, theirs: Tensor) -> float:
    return same_rows(ours.features[0], theirs)[0]


def visionzip(peers: Path, work: Workload) -> Pair:
    """54 dominant and 10 contextual tokens of each frame, from the same attention and keys."""
    tokens, attention, keys = work.tokens(), work.cue("attention"), work.cue("keys")
    T, n = tokens.grid.T, tokens.grid.cells_per_frame
    code = load(peers / "VisionZip" / "visionzip" / "clip_encoder.py", "transformers")
    # A class token comes first: the published code keeps it and uses its attention.
    hidden, metric = (F.pad(value[0].unflatten(0, (T, n)), (0, 0, 1, 0)) for value in (tokens.features, keys))
    weights = torch.zeros(T, 1, n + 1, n + 1, device=tokens.device)
    weights[:, 0, 0, 1:] = attention[0].unflatten(0, (T, n))

    class Tower:
        _info = {"dominant": 54, "contextual": 10}  # noqa: RUF012
        vision_model = SimpleNamespace(encoder=SimpleNamespace(layers=[SimpleNamespace(metric=metric)] * 2))

        def __call__(self, *args: object, **kwargs: object) -> SimpleNamespace:
            return SimpleNamespace(attentions=[weights] * 2, hidden_states=[hidden] * 2)

    model = SimpleNamespace(vision_tower=Tower(), device=tokens.device, dtype=torch.float32)
    images = torch.zeros(T, device=tokens.device)
    method = VisionZip(T * 64, contextual=10 / 64, normalize=False)
    return Pair(
        lambda: method(tokens, attention=attention, keys=keys),
        lambda: code.CLIPVisionTower_VisionZip.forward(model, images)[0],
        lambda a, b: same_rows(a.features[0], b[:, 1:].flatten(0, 1))[0],
    )


_INERTIA = "fraction: their inertia divided by ours, 1 if ours is at least as low"
_CPU: dict[str, Any] = {"devices": ("cpu",), "memory": False, "unequal": _INERTIA}
_TORCH: dict[str, Any] = {"unequal": _INERTIA}
_SEEDS = "theirs begins with random rows, see init='random'; the small products of k-means++ gain little from threads"
_K32, _TENTH = "K = 32, 10 iterations", "K = a tenth, 10 iterations"
_KMEANS = [
    Row("kmeans", task, reference, partial(build, keep), (32,), **settings)
    for task, keep in ((_K32, 32), (_TENTH, 0.1))
    for reference, build, settings in (
        ("scikit-learn==1.9.1", sklearn, _CPU),
        ("fast_pytorch_kmeans==0.2.2", fast_pytorch_kmeans, _TORCH),
        ("torch-kmeans==0.2.0", torch_kmeans, _TORCH | {"threads": (1,)}),  # 40 s
        ("Hai-chao-Zhang/VQToken@019f89f", vqtoken, _TORCH),
        ("faiss-cpu==1.15.1", faiss, _CPU | {"reason": _SEEDS}),
    )
    # With 627 clusters these two take minutes or tens of GB.
    if keep == 32 or build not in (torch_kmeans, vqtoken)
]
# These two begin with random rows.
_RANDOM = [
    Row("kmeans", f"{task}, init='random'", reference, partial(build, keep, init="random"), (32,), **settings)
    for task, keep in ((_K32, 32), (_TENTH, 0.1))
    for reference, build, settings in (
        ("fast_pytorch_kmeans==0.2.2", fast_pytorch_kmeans, _TORCH),
        ("faiss-cpu==1.15.1", faiss, _CPU),
    )
]
ROWS = [
    *_KMEANS,
    *_RANDOM,
    Row(
        "dpc_knn",
        "a quarter, k 5",
        "zengwang430521/TCFormer@1ea72a8",
        dpc_knn,
        (32,),
        unequal="the published code breaks ties of density with noise of 1e-6, ours by position",
    ),
    Row("max_min", "ratio 0.1, start='isolated'", "vbdi/divprune@799e2d9", max_min, (32,)),
    Row(
        "hourglass",
        "a quarter of the frames by their means, k 2",
        "NationalGAILab/HoT@873b5bd",
        hourglass,
        reason="most of both is the mean of each frame; ours also returns positions, sizes and the token of each cell",
        unequal="pairs of frames are equally dense, and the published code breaks these ties with noise",
    ),
    Row(
        "centerclip",
        "7x7 tokens, 49 medoids of each two frames",
        "mzhaoshuai/CenterCLIP@886fe73",
        centerclip,
        unequal="clusters of two members are ties in float32",
    ),
    Row("tome", "one step, r = a quarter", "facebookresearch/ToMe@af95e4b", tome),
    Row("testa", "one step within frames, r = a quarter", "RenShuhuai-Andy/TESTA@41b9486", partial(testa, 0.0)),
    Row(
        "testa",
        "one step over frames, r = a quarter",
        "RenShuhuai-Andy/TESTA@41b9486",
        partial(testa, 1.0),
        unequal="ours ranks frames by the mean over their patches, the published code by the minimum",
    ),
    Row("tempme", "one round, pairs of frames, 30 %", "LunarShen/TempMe@e624930", tempme),
    Row("vid_tldr", "one block, 30 %", "mlvlab/vid-TLDR@a25051d", vid_tldr),
    Row(
        "visionzip",
        "54 + 10 of 196 per frame, normalize=False",
        "dvlab-research/VisionZip@3151f6d",
        visionzip,
        unequal="cells whose two nearest anchors differ in cosine by float32 rounding",
    ),
]
