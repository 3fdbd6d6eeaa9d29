"""A plain vision transformer in which a method can act between attention and MLP at any block.

ViT (arXiv 2010.11929) with the numerics of the public checkpoints: pre-norm blocks; class token, register
tokens (arXiv 2309.16588), layer scale, query-key norm, gated MLP as options. The walk never swaps a class or
patches a forward: each block is its two halves, and a method stands between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens

PROPORTIONAL = ("channels", "bias", "none")

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}

# A key that no query may look at: large enough to vanish in the softmax, small enough for half precision.
_HIDDEN = -3e4


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT.

    Attributes:
        width, depth, heads: channels, blocks, attention heads.
        patch: side of a patch in pixels.
        positions: rows and columns of the learned position embedding; other grids resize it.
        hidden: channels inside the MLP; 0 means 4 * width.
        class_token: one prefix token; registers: that many more, without position.
        qkv_bias, patch_bias: biases of these layers.
        qk_norm: LayerNorm on queries and keys of each head.
        layer_scale: learned scale of each residual branch.
        norm_first, norm_last: LayerNorm before the first block (CLIP), after the last one.
        gated: SwiGLU instead of the plain MLP.
        activation: gelu, gelu_pytorch_tanh, quick_gelu or silu.
        antialias: how positions shrink to a smaller grid.
        eps: of every LayerNorm.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16
    positions: tuple[int, int] = (14, 14)
    hidden: int = 0
    class_token: bool = True
    registers: int = 0
    qkv_bias: bool = True
    patch_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    norm_first: bool = False
    norm_last: bool = True
    gated: bool = False
    activation: str = "gelu"
    antialias: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.patch, *self.positions) < 1:
            raise ValueError(
                "width, depth, heads, patch and positions must be at least 1, got "
                f"{self.width}, {self.depth}, {self.heads}, {self.patch} and {self.positions}"
            )
        if min(self.hidden, self.registers) < 0 or not self.eps > 0:
            raise ValueError(
                f"hidden and registers must be at least 0 and eps above 0, got {self.hidden}, {self.registers} and "
                f"{self.eps}"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of the heads {self.heads}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}")


class Attention(nn.Module):
    """Multi-head self-attention that can weigh each key by how many patches it stands for."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.out = nn.Linear(config.width, config.width)
        head = config.width // config.heads
        self.q_norm = nn.LayerNorm(head, config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, config.eps) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [B,N,C], each [B,heads,N,C/heads]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, how: str = "channels") -> Tensor:
        """softmax(q k^T / sqrt(d) + weight) v, projected: [B,N,C].

        Args:
            q: queries [B,heads,N,d]; k, v likewise.
            weight: [B,N] float32 added to the logits of each key (log of its size; `_HIDDEN` hides it), or
                None.
            how: "bias" adds it as a mask; otherwise it goes into extra channels of queries and keys, so that
                the fused kernels without a mask still serve. Both are the same function.
        """
        if weight is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif how == "bias":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=weight.to(q.dtype)[:, None, None])
        else:
            mixed = _attend_with_channels(q, k, v, weight)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _attend_with_channels(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Attention with the weight of each key inside the dot product: q gets 1/scale, k gets the weight.

    In half precision the weight is split into two channels, its rounded value and what rounding lost.
    Channels are filled up with zeros to a multiple of 8, as the fused kernels want.
    """
    heads, d = q.shape[1], q.shape[3]
    scale = d**-0.5
    coarse = weight.to(k.dtype)
    extra = [coarse]
    if k.dtype != torch.float32:
        extra.append((weight - coarse.float()).to(k.dtype))
    fill = -(d + len(extra)) % 8
    keys = torch.stack(extra, -1)[:, None].expand(-1, heads, -1, -1)
    k = F.pad(torch.cat([k, keys], -1), (0, fill))
    q = F.pad(F.pad(q, (0, len(extra)), value=1 / scale), (0, fill))
    v = F.pad(v, (0, len(extra) + fill))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :d]


class Mlp(nn.Module):
    """Two layers, or SwiGLU."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = config.hidden or 4 * config.width
        self.gated = config.gated
        self.activation = _ACTIVATIONS["silu" if config.gated else config.activation]
        self.fc1 = nn.Linear(config.width, 2 * hidden if config.gated else hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return self.fc2(self.activation(gate) * x)
        return self.fc2(self.activation(x))


class Block(nn.Module):
    """One block, in its two halves."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = Mlp(config)
        self.scale1 = nn.Parameter(torch.ones(config.width)) if config.layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(config.width)) if config.layer_scale else None

    def forward(self, x: Tensor, drop: float = 0.0) -> Tensor:
        """Both halves, nothing in between. `drop` is the rate of stochastic depth (arXiv 1603.09382), in training."""
        x = self.dropped(x, self.first(x, None, "none")[0], drop)
        return self.dropped(x, self.second(x), drop)

    def dropped(self, before: Tensor, after: Tensor, rate: float) -> Tensor:
        """What a half added is left out for some samples, and scaled up for the others."""
        if not rate or not self.training:
            return after
        kept = torch.rand(len(after), *[1] * (after.ndim - 1), device=after.device) >= rate
        return before + (after - before) * kept / (1 - rate)

    def first(self, x: Tensor, weight: Tensor | None, how: str) -> tuple[Tensor, Tensor, Tensor]:
        """After attention and its residual; also the queries and keys."""
        q, k, v = self.attention.project(self.norm1(x))
        y = self.attention.attend(q, k, v, weight, how)
        return x + (y if self.scale1 is None else self.scale1 * y), q, k

    def second(self, x: Tensor) -> Tensor:
        """After the MLP and its residual."""
        y = self.mlp(self.norm2(x))
        return x + (y if self.scale2 is None else self.scale2 * y)


class ViT(nn.Module):
    """The network. Frames in, tokens out, by `embed` and `walk`; `fewtokens.encoders.VitEncoder` runs it on videos.

    Args:
        config: its shape. Parameters are drawn as in the paper (truncated normal of 0.02).
        proportional: how attention weighs merged tokens by their size, one of `PROPORTIONAL`. On for most
            models; "none" for those trained with masked images and never with merging (ToMe, section 4).
    """

    def __init__(self, config: ViTConfig, *, proportional: str = "channels") -> None:
        super().__init__()
        if proportional not in PROPORTIONAL:
            raise ValueError(f"proportional must be one of {', '.join(PROPORTIONAL)}, got {proportional!r}")
        self.config = config
        self.proportional = proportional
        C = config.width
        self.patches = nn.Conv2d(3, C, config.patch, config.patch, bias=config.patch_bias)
        self.positions = nn.Parameter(torch.zeros(*config.positions, C))
        self.class_token = nn.Parameter(torch.zeros(C)) if config.class_token else None
        self.class_position = nn.Parameter(torch.zeros(C)) if config.class_token else None
        self.registers = nn.Parameter(torch.zeros(config.registers, C)) if config.registers else None
        self.norm_first = nn.LayerNorm(C, config.eps) if config.norm_first else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_last = nn.LayerNorm(C, config.eps) if config.norm_last else nn.Identity()
        self.apply(_initialise)
        for parameter in (self.positions, self.class_token, self.class_position, self.registers):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, frames: Tensor) -> Tensor:
        """Normalised frames [F,3,H,W] (whole patches) to embedded patches with positions, [F,H'*W',C]."""
        x = self.patches(frames.to(self.patches.weight.dtype))
        return x.flatten(2).transpose(1, 2) + self._positions(x.shape[2], x.shape[3])

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding resized to a grid, [rows*columns,C]; bicubic, in float32."""
        if (rows, columns) == self.config.positions:
            return self.positions.flatten(0, 1)
        grid = self.positions.permute(2, 0, 1)[None].float()
        grid = F.interpolate(
            grid, (rows, columns), mode="bicubic", align_corners=False, antialias=self.config.antialias
        )
        return grid[0].permute(1, 2, 0).flatten(0, 1).to(self.positions.dtype)

    def prefix(self, frames: int) -> Tensor | None:
        """Class and register tokens for so many frames, [F,P,C], or None."""
        rows = []
        if self.class_token is not None and self.class_position is not None:
            rows.append((self.class_token + self.class_position)[None])
        if self.registers is not None:
            rows.append(self.registers)
        return torch.cat(rows).expand(frames, -1, -1) if rows else None

    def walk(
        self, tokens: Tokens, inside: Sequence[Method] = (), needs: Sequence[str] = ()
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """All blocks over embedded patches, methods acting between attention and MLP of each.

        Args:
            tokens: one video a frame: [F,N,C] on grids of one frame; padding is hidden from attention. The
                prefix is added here.
            inside: methods of the stage "encoder".
            needs: cues of the last block to give: keys [F,N,d], attention [F,N], shift [F,N].

        Returns:
            Tokens after the last norm, in the order of their positions, and the cues, in that order too.
        """
        prefix = self.prefix(tokens.B)
        P = 0 if prefix is None else prefix.shape[1]
        x = tokens.features if prefix is None else torch.cat([prefix.to(tokens.features.dtype), tokens.features], 1)
        x = self.norm_first(x)
        # Looked at once: whether keys must be weighed or hidden at all.
        padded = _ragged(tokens)
        weighed = bool((tokens.sizes != 1).logical_and(tokens.mask).any())
        cues: dict[str, Tensor] = {}
        shift: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            weight = self._weight(tokens, P, padded, weighed)
            start = x
            x, q, k = block.first(x, weight, self.proportional)
            at_end = needs if layer == len(self.blocks) - 1 else ()
            asked = {*at_end, *(name for method in inside for name in method.needs)}
            cues = _cues(q, k, weight, tokens.mask, P, asked)
            if "shift" in asked:
                # Of the MLP before; the first block has none, so its attention stands in.
                cues["shift"] = _length(x - start, P) if shift is None else shift
            if inside:
                tokens = tokens.replace(features=x[:, P:], prefix=x[:, :P] if P else None)
                for number, method in enumerate(inside):
                    wanted = {name: cues[name] for name in method.needs}
                    before, tokens = tokens, method(tokens, **wanted, layer=layer, depth=len(self.blocks))
                    if at_end or number < len(inside) - 1:
                        cues = _follow(cues, before, tokens)
                # A method may leave frames of unequal counts, unless all had equal ones and it takes so many of each.
                padded, weighed = padded or _ragged(tokens), True
                x = tokens.features if tokens.prefix is None else torch.cat([tokens.prefix, tokens.features], 1)
            start = x
            x = block.second(x)
            if "shift" in asked:
                shift = _length(x - start, P)
        if shift is not None and "shift" in needs:
            cues["shift"] = shift
        x = self.norm_last(x)
        tokens = tokens.replace(features=x[:, P:], prefix=x[:, :P] if P else None)
        if not inside:
            return tokens, {name: cues[name] for name in needs}
        ordered = tokens.ordered()
        return ordered, _follow({name: cues[name] for name in needs}, tokens, ordered)

    def _weight(self, tokens: Tokens, prefix: int, padded: bool, weighed: bool) -> Tensor | None:
        """What attention adds for each key, [F,P+N] float32, or None: log sizes, and what hides padding."""
        weighed = weighed and self.proportional != "none"
        if not weighed and not padded:
            return None
        weight = tokens.sizes.clamp(min=1e-6).log() if weighed else torch.zeros_like(tokens.sizes)
        return F.pad(weight.masked_fill(~tokens.mask, _HIDDEN), (prefix, 0))


def _length(added: Tensor, prefix: int) -> Tensor:
    """How far a branch moved each patch token, float32 [F,N]."""
    return added[:, prefix:].float().norm(dim=-1)


def _cues(q: Tensor, k: Tensor, weight: Tensor | None, mask: Tensor, prefix: int, names: set[str]) -> dict[str, Tensor]:
    cues = {}
    if "keys" in names:
        cues["keys"] = k[:, :, prefix:].mean(1)
    if "attention" in names:
        cues["attention"] = torch.cat(
            [
                _received(*rows, None if weight is None else weight[i : i + 1])[:, prefix:]
                for i, rows in enumerate(zip(q.split(1), k.split(1), strict=True))
            ]
        )
    if "sharpness" in names:
        hidden = F.pad(mask.logical_not() * _HIDDEN, (prefix, 0))
        cues["sharpness"] = torch.cat(
            [_sharpness(*rows)[:, prefix:] for rows in zip(q.split(1), k.split(1), hidden.split(1), strict=True)]
        )
    return cues


def _sharpness(q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
    """Sum over keys of A log A for each query, A the attention without sizes, mean over heads; [B,N], at most 0."""
    logits = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5 + hidden[:, None, None]
    attention = logits.softmax(-1).mean(1)
    return torch.xlogy(attention, attention).sum(-1)


def _received(q: Tensor, k: Tensor, weight: Tensor | None) -> Tensor:
    """Attention that each key receives, mean over heads and queries (the class token's among them), [B,N]."""
    logits = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
    if weight is not None:
        logits = logits + weight[:, None, None]
    return logits.softmax(-1).mean((1, 2))


def _follow(cues: dict[str, Tensor], before: Tokens, after: Tokens) -> dict[str, Tensor]:
    """The cues of the tokens that came out."""
    return {name: after.pool(cue, before) for name, cue in cues.items()}


def _ragged(tokens: Tokens) -> bool:
    return not bool(tokens.mask.all())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
