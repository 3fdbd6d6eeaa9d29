"""A whole video as a few tokens that know where and when they were: centres of clusters, and attention to their map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, load_weights, planned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.cross_dynamics import CrossDynamics, PaperAttention, ReferenceAttention
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.token_base import CRITERIA, adaptive, check_bounds, fixed

MODES = ("dynamics", "paper", "reference")
# Where the released checkpoint keeps the attention.
_RELEASED = "model.cross_attention."


class TokenDynamics(Method):
    """The token base of a video (clusters by direction, as `kmeans`), updated by attention to its dynamics map.

    The map says which cluster each cell went to, [T,H,W]: it is `Tokens.assignment`. It is given to the tokens by
    "dynamics" (ours, the default: exactly K rows, indifferent to the numbering of the clusters, the plain centres
    before training), by "paper" (the formula of the text) or by "reference" (the released code: frames of the map ask,
    max(T, K) rows come out, centres are means of unit vectors, and every frame has side x side cells). The first two
    attribute by cluster; the reference by what was looked at.

    Args:
        keep: share of the cells (float) or count (int): K; 32 where nothing is said. Not for adaptive length.
        dim: C, channels of the tokens.
        mode: dynamics, paper or reference.
        criterion: "fixed", or "silhouette" or "elbow" for adaptive length.
        between: bounds of the adaptive length.
        side: cells along a frame's side, for the reference; 27 is LLaVA-OneVision's without pooling.
        seed: of the clustering.
        checkpoint: trained parameters: a safetensors file of `save_weights`, or one of the released checkpoint for the
            reference; None leaves them as they begin.
    """

    trainable = True
    paper = "Token Dynamics / VQToken, arXiv 2503.16980"
    license = "written from the paper; reference code BSD-3"
    cost = "k-means, O(N K C) an iteration; then O(K^2 C + K C^2), whatever N is"

    def __init__(
        self,
        keep: float | int | None = None,
        *,
        dim: int = 384,
        mode: str = "dynamics",
        criterion: str = "fixed",
        between: tuple[int, int] = (12, 32),
        side: int = 27,
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if criterion not in ("fixed", *CRITERIA):
            raise ValueError(f"token_dynamics chooses K by fixed, silhouette or elbow, not {criterion!r}")
        self.budget = criterion == "fixed"
        if not self.budget and keep is not None:
            raise ValueError("token_dynamics of adaptive length takes between=, not keep=")
        between = (int(between[0]), int(between[1]))
        check_bounds(*between)
        self.keep = check_keep(32 if keep is None else keep) if self.budget else None
        self.dim, self.mode, self.criterion, self.between = dim, mode, criterion, between
        self.side, self.seed, self.checkpoint = side, seed, checkpoint
        self.resamples = self.dense = mode == "reference"
        self.partition = mode != "reference"
        self.neutral = mode == "dynamics"
        makers = {"dynamics": CrossDynamics, "paper": PaperAttention}
        self.attention: nn.Module = ReferenceAttention(dim, side) if self.resamples else makers[mode](dim)
        if checkpoint is not None and mode == "reference" and not _is_ours(checkpoint):
            _load_released(self.attention, checkpoint)
        else:
            load_weights(self, "token_dynamics", checkpoint)

    def base(self, tokens: Tokens) -> Plan:
        """The clusters: where each token goes."""
        if self.budget:
            count = tokens.count.new_tensor([planned_count(grid, self.keep) for grid in tokens.grid.videos(tokens.B)])
            return fixed(tokens, count.minimum(tokens.count), self.seed)
        return adaptive(tokens, self.criterion, *self.between, self.seed)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        if self.resamples:
            return self._reference(tokens)
        base = tokens.apply(self.base(tokens))
        made = self.attention(base.features.to(_dtype(self.attention)), base)
        return base.replace(features=made.to(base.features.dtype).masked_fill(~base.mask[..., None], 0))

    def _reference(self, tokens: Tokens) -> Tokens:
        tokens = tokens.require_full_grid(self.name)
        if (self.side, self.side) != (tokens.grid.H, tokens.grid.W):
            raise ValueError(
                f"token_dynamics(mode='reference') was built for frames of {self.side} x {self.side} cells, these have "
                f"{tokens.grid.H} x {tokens.grid.W}; say side= where they are square, or take another mode"
            )
        plan = self.base(tokens)
        dtype = _dtype(self.attention)
        unit = tokens.replace(features=F.normalize(tokens.features.float(), dim=2))
        base = unit.apply(plan)
        features, looked, count = self.attention(base.features.to(dtype), base)
        assert plan.dest is not None
        # What a row saw of a cluster falls to its cells in equal parts.
        member = plan.dest.clamp(min=0)[:, None].expand(-1, looked.shape[1], -1)
        share = (looked / base.sizes.clamp(min=1)[:, None]).gather(2, member) * (plan.dest >= 0)[:, None]
        made = tokens.apply(Plan(count, features.shape[1], weights=share))
        # In the order of the frames that asked, which a language model trained on it expects.
        return made.replace(features=features.to(made.features.dtype).masked_fill(~made.mask[..., None], 0))

    def planned_count(self, grid: Grid) -> int | None:
        if self.keep is None:
            return None
        count = planned_count(grid, self.keep)
        return max(count, grid.T) if self.resamples else count


def _dtype(module: nn.Module) -> Any:
    return next(module.parameters()).dtype


def _is_ours(path: str | Path) -> bool:
    try:
        files.load_header(path, "method")
    except ValueError:
        return False
    return True


def _load_released(module: nn.Module, path: str) -> None:
    """Fills the reference attention from a checkpoint in the layout of the released one.

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
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: holds no cross-attention of VQToken under {_RELEASED}* that fits ({said})") from None
