"""Methods that cluster tokens or select representatives."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from fewtokens.core import registry
from fewtokens.methods.clustering.centerclip import CenterClip
from fewtokens.methods.pruning.max_min import MaxMin
from fidelity_rows import Agreement, Features, Row, importing, load, same_places, same_rows


def means(x: torch.Tensor, label: torch.Tensor, count: int) -> torch.Tensor:
    """The mean of each cluster, [count,C]."""
    total = torch.zeros(count, x.shape[1]).index_add_(0, label, x)
    return total / torch.zeros(count).index_add_(0, label, torch.ones(len(x)))[:, None]


def dpc_knn(peers: Path, features: Features) -> Agreement:
    """On eight frames, because the published code keeps all distances in memory."""
    x = features.tokens(frames=8)
    code = load(peers / "TCFormer" / "tcformer_module" / "tcformer_utils.py", "mmcv")
    label, count = code.cluster_dpc_knn({"x": x.features}, x.N // 4, 5)
    (method,) = registry.build("dpc_knn(0.25, neighbors=5)")
    why = "the published code breaks ties of density with noise of 1e-6, ours by position"
    return Agreement(*same_rows(method(x).features[0], means(x.features[0], label[0], count)), why)


def hourglass(peers: Path, features: Features) -> Agreement:
    """The noise that breaks ties of density is replaced by a tiny decreasing ramp: ours breaks them by position."""
    x = features.tokens()
    frames = x.features.double().unflatten(1, (x.grid.T, -1)).mean(2)
    code = load(peers / "HoT" / "model" / "mixste" / "hot_mixste.py", "timm")
    first, second = (set(code.cluster_dpc_knn(frames, 8, 2)[0][0].tolist()) for _ in range(2))
    with patch("torch.rand", lambda shape, **_: torch.linspace(1e-3, 0, shape[1], dtype=torch.float64)[None]):
        index, _ = code.cluster_dpc_knn(frames, 8, 2)
    (method,) = registry.build("hourglass(0.25)")
    ours = method(x).frame[0].unique()
    why = (
        "with 2 neighbors, pairs of frames are equally dense, and the published code breaks these ties with noise: "
        f"two of its runs have {len(first & second)} of 8 frames in common"
    )
    return Agreement(same_places(ours, index[0]), 0.0, why)


def max_min(peers: Path, features: Features) -> Agreement:
    why = "starts with the token farthest from the mean; start='isolated' starts as published"
    return _max_min(peers, features, "mean", why)


def max_min_isolated(peers: Path, features: Features) -> Agreement:
    return _max_min(peers, features, "isolated", "")


def _max_min(peers: Path, features: Features, start: str, why: str) -> Agreement:
    """On eight frames, because the published code keeps all distances in memory."""
    x = features.tokens(frames=8)
    code = load(peers / "divprune" / "LLaVA" / "llava" / "model" / "llava_arch.py", "llava").LlavaMetaForCausalLM
    model = SimpleNamespace()
    model.pairwise_cosine_similarity = lambda rows: code.pairwise_cosine_similarity(model, rows)
    index, _ = code.DivPrune(model, x.features[0], x.N, threshold_ratio=0.1)
    ours = MaxMin(len(index), start=start)(x)
    return Agreement(same_places(ours.cell[0], index), 0.0, why)


def centerclip(peers: Path, features: Features) -> Agreement:
    return _centerclip(peers, features, "medoids")


def centerclip_spectral(peers: Path, features: Features) -> Agreement:
    """Settings of the published script: 5 neighbors per frame; sigma is adapted to the scale of these features."""
    return _centerclip(peers, features, "spectral", sigma=20.0)


def _centerclip(peers: Path, features: Features, algorithm: str, sigma: float | None = None) -> Agreement:
    """In float64 with exact distances, because clusters of two members are ties."""
    x = features.tokens(frames=12, side=7)
    rows = x.features[0].double().unflatten(0, (6, -1))
    exact = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    stop = {"threshold": 1e-6, "iter_limit": 100, "norm_p": 2.0}
    with importing(peers / "CenterCLIP" / "modules"), patch("torch.cdist", exact):
        from cluster.fast_kmeans import batch_fast_kmedoids
        from cluster.spectral import batch_spectral_clustering

        if sigma is None:
            _, index = batch_fast_kmedoids(rows, 49, **stop)
        else:
            _, index = batch_spectral_clustering(rows, 49, "KNN", knn_k=10, sigma=sigma, **stop)
    theirs = (index + rows.shape[1] * torch.arange(len(rows))[:, None]).flatten()
    ours = CenterClip(len(theirs), iterations=100, algorithm=algorithm, sigma=sigma)(x)
    return Agreement(same_places(ours.cell[0], theirs), 0.0, "float32 against float64" if sigma else "")


_DIVPRUNE = "vbdi/divprune", "799e2d9"
ROWS = [
    Row("dpc_knn", "zengwang430521/TCFormer", "1ea72a8", "8 frames, a quarter, k 5", dpc_knn),
    Row("hourglass", "NationalGAILab/HoT", "873b5bd", "8 of 32 frames by their means, k 2", hourglass),
    Row("max_min", *_DIVPRUNE, "8 frames, ratio 0.1", max_min),
    Row("max_min", *_DIVPRUNE, "8 frames, ratio 0.1, start='isolated'", max_min_isolated),
    Row("centerclip", "mzhaoshuai/CenterCLIP", "886fe73", "12 frames of 7x7, 49 medoids of each two", centerclip),
    Row(
        "centerclip",
        "mzhaoshuai/CenterCLIP",
        "886fe73",
        "spectral, 12 frames of 7x7, 49 of each two, k 10, sigma 20",
        centerclip_spectral,
    ),
]
