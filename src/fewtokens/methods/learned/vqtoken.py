"""VQToken as released: each frame of the dynamics map attends to the centroids."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.cross_dynamics import ReferenceAttention
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.token_base import CRITERIA, check_bounds, cluster_adaptive, cluster_fixed

# Prefix of the attention in the released checkpoint.
_RELEASED = "model.cross_attention."


class VqToken(Resampler):
    """Attends from each frame's cluster map to K centroids, as the released VQToken code does.

    VQToken (arXiv 2503.16980), compatible with its released checkpoint; returns max(T, K) tokens. Each frame of the
    dynamics map is a query that attends to the centroids, which are means of unit vectors. The map holds cluster
    numbers, so renumbering the clusters changes the result (a defect of the reference), and every frame must have
    `side` x `side` cells. For the formula of the text, or a module without these defects, use `token_dynamics`. Tokens
    are in the order of the frames that query, as a language model trained on them expects.

    Attribution: the attention of each query, spread evenly over the cells of each cluster.

    Args:
        keep: K, as a fraction of the cells (float in (0, 1]) or a number of tokens (int). Default: 32. Only for
            criterion="fixed".
        dim: C, channels of the features.
        side: rows and columns of cells of a frame. Default: 27, as LLaVA-OneVision without pooling.
        criterion: "fixed", or "silhouette" or "elbow" to choose K for each video.
        between: smallest and largest K if it is chosen for each video.
        seed: random seed of the clustering.
        checkpoint: path of a safetensors file with trained parameters, or of the released checkpoint; None initializes
            them randomly.
    """

    learned = True
    full_grid = True
    paper = "Token Dynamics / VQToken, arXiv 2503.16980"
    license = "written from the paper; reference code BSD-3"
    cost = "k-means, O(N K C) per iteration; then O(max(T, K)^2 C + max(T, K) C^2)"

    def __init__(
        self,
        keep: float | int | str | None = None,
        *,
        dim: int = 384,
        side: int = 27,
        criterion: str = "fixed",
        between: tuple[int, int] = (12, 32),
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if criterion not in ("fixed", *CRITERIA):
            raise ValueError(f"criterion must be one of fixed, {', '.join(CRITERIA)}, got {criterion!r}")
        self.set_budget(keep, default=32, criterion=None if criterion == "fixed" else criterion)
        self.between = (int(between[0]), int(between[1]))
        check_bounds(*self.between)
        self.dim, self.side, self.criterion, self.seed, self.checkpoint = dim, side, criterion, seed, checkpoint
        self.attention = ReferenceAttention(dim, side)
        load_weights(self, checkpoint, released=partial(_load_released, self.attention))

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        if (self.side, self.side) != (tokens.grid.H, tokens.grid.W):
            raise ValueError(
                f"{self.name} was built for frames of {self.side} x {self.side} cells, got {tokens.grid.H} x "
                f"{tokens.grid.W}; set side= for square frames, or use token_dynamics"
            )
        with torch.no_grad():
            if self.budget is not None:
                counts = tokens.count.new_tensor([self.budget.count(grid) for grid in tokens.grid.videos(tokens.B)])
                plan = cluster_fixed(tokens, counts.minimum(tokens.count), self.seed)
            else:
                plan = cluster_adaptive(tokens, self.criterion, *self.between, self.seed)
        unit = tokens.replace(features=F.normalize(tokens.features.float(), dim=2))
        base = unit.apply(plan)
        dtype = next(self.attention.parameters()).dtype
        features, attention, count = self.attention(base.features.to(dtype), base)
        assert plan.dest is not None
        # The attention to a cluster is divided equally among its cells.
        member = plan.dest.clamp(min=0)[:, None].expand(-1, attention.shape[1], -1)
        weights = (attention / base.sizes.clamp(min=1)[:, None]).gather(2, member) * (plan.dest >= 0)[:, None]
        return Resampled(features, weights, count)

    def planned_count(self, grid: Grid) -> int | None:
        return None if self.budget is None else max(self.budget.count(grid), grid.T)


def _load_released(module: ReferenceAttention, path: str) -> None:
    """Loads the attention from a checkpoint in the released layout.

    Raises:
        ValueError: the file is not readable, or one of the 20 tensors is missing or has another shape.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except Exception as error:  # SafetensorError, or any error of torch about a dtype or a size
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    state: dict[str, Tensor] = {
        name.removeprefix(_RELEASED): value for name, value in tensors.items() if name.startswith(_RELEASED)
    }
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: no matching cross-attention of VQToken under {_RELEASED}* ({reason})") from None
