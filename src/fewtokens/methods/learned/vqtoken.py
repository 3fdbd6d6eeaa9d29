"""VQToken as released: frames of the dynamics map ask, centroids answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.cross_dynamics import ReferenceAttention
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.token_base import CRITERIA, adaptive, check_bounds, fixed

# Where the released checkpoint keeps the attention.
_RELEASED = "model.cross_attention."


class VqToken(Resampler):
    """The released code of VQToken: each frame of the map of clusters asks, and max(T, K) rows come out.

    VQToken (arXiv 2503.16980). Centroids are means of unit vectors; the map is given as cluster numbers, so numbering
    the clusters otherwise changes the result (a defect of the reference); every frame has side x side cells. The text's
    formula, and a module without these defects, are `token_dynamics`. The tokens come in the order of the frames that
    asked, which a language model trained on them expects.

    Attribution: what a row looked at, spread evenly over the cells of each cluster.

    Args:
        keep: share of the cells (float) or count (int): K; 32 by default. Not for adaptive length.
        dim: C, channels of the tokens.
        side: cells along a frame's side; 27 is LLaVA-OneVision's without pooling.
        criterion: "fixed", or "silhouette" or "elbow" for adaptive length.
        between: bounds of the adaptive length.
        seed: of the clustering.
        checkpoint: trained parameters: a safetensors file of `save_weights`, or the released checkpoint; None leaves
            them random.
    """

    learned = True
    full_grid = True
    paper = "Token Dynamics / VQToken, arXiv 2503.16980"
    license = "written from the paper; reference code BSD-3"
    cost = "k-means, O(N K C) an iteration; then O(max(T, K)^2 C + max(T, K) C^2)"

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
            raise ValueError(f"{self.name} chooses K by fixed, silhouette or elbow, not {criterion!r}")
        self.take_budget(keep, default=32, criterion=None if criterion == "fixed" else criterion)
        self.between = (int(between[0]), int(between[1]))
        check_bounds(*self.between)
        self.dim, self.side, self.criterion, self.seed, self.checkpoint = dim, side, criterion, seed, checkpoint
        self.attention = ReferenceAttention(dim, side)
        if checkpoint is not None and not _is_ours(checkpoint):
            _load_released(self.attention, checkpoint)
        else:
            load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        tokens = tokens.require_full_grid(self.name)
        if (self.side, self.side) != (tokens.grid.H, tokens.grid.W):
            raise ValueError(
                f"{self.name} was built for frames of {self.side} x {self.side} cells, these have "
                f"{tokens.grid.H} x {tokens.grid.W}; say side= if they are square, or take token_dynamics"
            )
        with torch.no_grad():
            if self.budget is not None:
                counts = tokens.count.new_tensor([self.budget.count(grid) for grid in tokens.grid.videos(tokens.B)])
                plan = fixed(tokens, counts.minimum(tokens.count), self.seed)
            else:
                plan = adaptive(tokens, self.criterion, *self.between, self.seed)
        unit = tokens.replace(features=F.normalize(tokens.features.float(), dim=2))
        base = unit.apply(plan)
        dtype = next(self.attention.parameters()).dtype
        features, looked, count = self.attention(base.features.to(dtype), base)
        assert plan.dest is not None
        # What a row saw of a cluster falls to its cells in equal parts.
        member = plan.dest.clamp(min=0)[:, None].expand(-1, looked.shape[1], -1)
        share = (looked / base.sizes.clamp(min=1)[:, None]).gather(2, member) * (plan.dest >= 0)[:, None]
        return Resampled(features, share, count)

    def planned_count(self, grid: Grid) -> int | None:
        return None if self.budget is None else max(self.budget.count(grid), grid.T)


def _is_ours(path: str | Path) -> bool:
    try:
        files.load_header(path, "method")
    except ValueError:
        return False
    return True


def _load_released(module: ReferenceAttention, path: str) -> None:
    """Fills the attention from a checkpoint in the layout of the released one.

    Raises:
        ValueError: the file cannot be read, or lacks some of the 20 tensors or has them in other shapes.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except Exception as error:  # SafetensorError, and whatever torch says of a dtype or a size
        raise ValueError(f"{path}: not a safetensors file that can be read ({error})") from None
    own: dict[str, Tensor] = {
        name.removeprefix(_RELEASED): value for name, value in tensors.items() if name.startswith(_RELEASED)
    }
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: holds no cross-attention of VQToken under {_RELEASED}* that fits ({reason})"
        ) from None
