"""TokenFuser: from a few processed tokens back to the grid, and the alternatives that the paper compares.

All take the tokens y [B,T,M,C], the frames x [B,T,H,W,C] that went into the learner, and the learner's maps
[B*T,M,H*W]; all give [B,T,H,W,C], to which the caller adds x. Not methods: they lead to more tokens, not fewer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.encoders.transformer import Attention
from fewtokens.methods.learned.tokenlearner import mlp


class TokenFuser(nn.Module):
    """Mixes the tokens with one another, then gives every pixel its own gated sum of them.

    TokenLearner (arXiv 2106.11297, section 3). The mixing matrix starts at zero, so that at initialization
    learner, block and fuser together are the identity.

    The paper mixes the tokens of all frames (a matrix of num_tokens*frames squared); its code those of a
    frame. Both are here, the code's is the default. The gate is linear in the paper and in the code of 2021,
    an MLP in the code of today; linear is the default, because the paper's FLOPs are made with it.

    Args:
        num_tokens: tokens of each frame.
        dim: channels.
        mix: "frame" or "clip".
        frames: of a clip; needed for mix="clip".
        gate: "linear" (no bias) or "mlp" (64 hidden channels).
        dropout: of the MLP and of the output, in training.
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
                    f"this fuser mixes clips of {self.mixing.in_features // M} frames, got {T}; mix='frame' takes any"
                )
            y = y.flatten(1, 2)
        y = self.mixing(y.transpose(-1, -2)).transpose(-1, -2)
        y = self.norm_mixed(y).reshape(B * T, M, C)
        gate = self.gate(self.norm_grid(x.reshape(B * T, -1, C))).sigmoid()  # [B*T,H*W,M]
        return self.dropout(gate @ y).reshape(x.shape)


class Unpool(nn.Module):
    """Every pixel takes the tokens by the weights that it gave to them: sum over tokens of map * LayerNorm(token).

    The alternative of TokenLearner (arXiv 2106.11297) without a learned way back.
    """

    def __init__(self, num_tokens: int, *, dim: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, y: Tensor, x: Tensor, maps: Tensor | None = None) -> Tensor:
        if maps is None:
            raise ValueError("unpooling needs the maps of the learner")
        y = self.norm_tokens(y).flatten(0, 1)
        return (maps.transpose(1, 2) @ y).reshape(x.shape)


class Reproject(Attention):
    """One transformer layer in which every pixel asks the tokens: attention from the grid to the tokens, then an MLP.

    The alternative of TokenLearner (arXiv 2106.11297) with the largest way back. The last layer starts at zero,
    so that it begins as the identity, as the fuser does.

    Args:
        num_tokens: of a frame; any number serves.
        dim: channels, a multiple of 64 or one head is used.
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
