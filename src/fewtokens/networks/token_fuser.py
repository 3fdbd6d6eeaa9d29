"""TokenFuser, which maps a few processed tokens back to the grid, and the alternatives compared in the paper.

All take the tokens y [B,T,M,C], the input of the learner x [B,T,H,W,C] and the maps of the learner [B*T,M,H*W]; all
return [B,T,H,W,C], to which the caller adds x. They are not methods, because they increase the number of tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.encoders.transformer import Attention
from fewtokens.methods.learned.tokenlearner import mlp
from fewtokens.methods.ops.per_frame import in_parts


class TokenFuser(nn.Module):
    """Mixes the tokens linearly, then returns a gated sum of them for every pixel.

    TokenLearner (arXiv 2106.11297, section 3). The mixing matrix is initialized to zero, so that initially learner,
    block and fuser together are the identity. The paper mixes the tokens of all frames (a square matrix of
    num_tokens*frames), its code those of one frame. The gate is linear in the paper and in the code of 2021, an MLP in
    the current code; the paper's FLOPs are those of the linear gate.

    Args:
        num_tokens: number of tokens per frame.
        dim: channels.
        mix: "frame" (as in the code) or "clip" (as in the paper).
        frames: number of frames of a clip; required for mix="clip".
        gate: "linear" (no bias) or "mlp" (64 hidden channels).
        dropout: rate in the MLP and on the output, in training.
    """

    def __init__(
        self,
        num_tokens: int,
        *,
        dim: int,
        mix: str = "frame",
        frames: int = 1,
        gate: str = "linear",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if mix not in ("frame", "clip"):
            raise ValueError(f"mix must be 'frame' or 'clip', got {mix!r}")
        if gate not in ("linear", "mlp"):
            raise ValueError(f"gate must be 'linear' or 'mlp', got {gate!r}")
        self.mix = mix
        mixed = num_tokens * (frames if mix == "clip" else 1)
        self.norm_tokens = nn.LayerNorm(dim, eps=1e-6)
        self.mixing = nn.Linear(mixed, mixed)
        self.norm_mixed = nn.LayerNorm(dim, eps=1e-6)
        self.norm_grid = nn.LayerNorm(dim, eps=1e-6)
        self.gate = nn.Linear(dim, num_tokens, bias=False) if gate == "linear" else mlp(dim, num_tokens, 64, dropout)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.mixing.weight)
        nn.init.zeros_(self.mixing.bias)
        if gate == "linear":
            nn.init.xavier_uniform_(self.gate.weight)  # type: ignore[arg-type]

    def forward(self, y: Tensor, x: Tensor, maps: Tensor | None = None) -> Tensor:
        B, T, M, C = y.shape
        y = self.norm_tokens(y)
        if self.mix == "clip":
            if self.mixing.in_features != T * M:
                raise ValueError(
                    f"clips must have {self.mixing.in_features // M} frames for mix='clip', got {T}; use mix='frame'"
                )
            y = y.flatten(1, 2)
        y = self.mixing(y.transpose(-1, -2)).transpose(-1, -2)
        y = self.norm_mixed(y).reshape(B * T, M, C)
        gate = in_parts(lambda grid: self.gate(self.norm_grid(grid)).sigmoid(), x.reshape(B * T, -1, C))  # [B*T,H*W,M]
        return self.dropout(gate @ y).reshape(x.shape)


class Unpool(nn.Module):
    """Unpools tokens with the maps of the learner: for each pixel, the sum over tokens of map * LayerNorm(token).

    The alternative of TokenLearner (arXiv 2106.11297) without additional learned weights.
    """

    def __init__(self, num_tokens: int, *, dim: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, y: Tensor, x: Tensor, maps: Tensor | None = None) -> Tensor:
        if maps is None:
            raise ValueError("unpooling requires the maps of the learner")
        y = self.norm_tokens(y).flatten(0, 1)
        return (maps.transpose(1, 2) @ y).reshape(x.shape)


class Reproject(Attention):
    """One transformer layer with cross-attention from the grid to the tokens, then an MLP.

    The largest of the alternatives in TokenLearner (arXiv 2106.11297). The last layers are initialized to zero, so that
    with the residual it is initially the identity, as the fuser.

    Args:
        num_tokens: number of tokens per frame; not used.
        dim: channels; heads of 64 channels if it is a multiple of 64, otherwise one head.
    """

    def __init__(self, num_tokens: int, *, dim: int) -> None:
        super().__init__(dim, dim // 64 if dim % 64 == 0 else 1, cross=True)
        self.norm_grid = nn.LayerNorm(dim, eps=1e-6)
        self.norm_tokens = nn.LayerNorm(dim, eps=1e-6)
        self.norm_mixed = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        for layer in (self.q, self.kv, self.fc1):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.out, self.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, x: Tensor, maps: Tensor | None = None) -> Tensor:  # type: ignore[override]
        grid, y = x.reshape(-1, x.shape[2] * x.shape[3], x.shape[4]), y.flatten(0, 1)
        mixed = self.attend(*self.project(self.norm_grid(grid), self.norm_tokens(y)))
        mixed = mixed + self.fc2(F.gelu(self.fc1(self.norm_mixed(grid + mixed)), approximate="tanh"))
        return mixed.reshape(x.shape)


FUSERS: dict[str, type[nn.Module]] = {"fuser": TokenFuser, "unpool": Unpool, "reproject": Reproject}
