"""A plain vision transformer in which a method can act between attention and MLP at any block.

ViT (arXiv 2010.11929) with the numerics of the public checkpoints: pre-norm blocks; class token, register
tokens (arXiv 2309.16588), layer scale, query-key norm, gated MLP as options. The walk never swaps a class or
patches a forward: each block is its two halves, and a method stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.transformer import Block

PROPORTIONAL = ("channels", "bias", "none")

# A key that no query may look at: large enough to vanish in the softmax, small enough for half precision.
_HIDDEN = -3e4


class ViT(nn.Module):
    """The network. Frames in, tokens out, by `embed` and `walk`; `fewtokens.encoders.VitEncoder` runs it on videos.

    A config with tubelets makes it a network for clips; `fewtokens.networks.vit` adds a head, learners and the
    factorised attentions of ViViT.

    Args:
        config: its shape. Parameters are drawn as in the paper (truncated normal of 0.02).
        proportional: how attention weighs merged tokens by their size, one of `PROPORTIONAL`. On for most
            models; "none" for those trained with masked images and never with merging (ToMe, section 4).
    """

    config: ViTConfig

    def __init__(self, config: ViTConfig, *, proportional: str = "channels") -> None:
        super().__init__()
        if proportional not in PROPORTIONAL:
            raise ValueError(f"proportional must be one of {', '.join(PROPORTIONAL)}, got {proportional!r}")
        self.config = config
        self.proportional = proportional
        C = config.dim
        convolution = nn.Conv2d if len(config.kernel) == 2 else nn.Conv3d
        self.patches: nn.Conv2d | nn.Conv3d = convolution(3, C, config.kernel, config.kernel, bias=config.patch_bias)  # type: ignore[arg-type]
        self.positions = self._embedding(*config.position_grid, C)
        self.class_token = nn.Parameter(torch.zeros(C)) if config.class_token else None
        self.class_position = self._embedding(C) if config.class_token else None
        self.registers = self._embedding(config.num_registers, C) if config.num_registers else None
        self.norm_first = nn.LayerNorm(C, config.eps) if config.norm_first else nn.Identity()
        self.blocks = nn.ModuleList(self._make_block() for _ in range(config.depth))
        self.norm_last = nn.LayerNorm(C, config.eps) if config.norm_last else nn.Identity()
        self._parts()
        self.reset_parameters()

    def _embedding(self, *shape: int) -> nn.Parameter:
        """Learned positions or registers, before `reset_parameters`."""
        return nn.Parameter(torch.zeros(*shape))

    def _make_block(self) -> nn.Module:
        return Block(self.config)

    def _parts(self) -> None:
        """What a network has beside the encoder."""

    def reset_parameters(self) -> None:
        """Draws all parameters."""
        self.apply(_initialize)
        for parameter in (self.positions, self.class_token, self.class_position, self.registers):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, frames: Tensor) -> Tensor:
        """Embedded cells with positions, channels last.

        Args:
            frames: normalized, of whole patches: images [F,3,H,W], in networks for clips [B,3,T,H,W].

        Returns:
            [F,H',W',C], or [B,T',H',W',C].
        """
        x = self.patches(frames.to(self.patches.weight.dtype)).movedim(1, -1)
        grid = x.shape[1:-1]
        if len(grid) == 3 and len(self.positions) == 1:
            grid = (1, *grid[1:])  # one frame's positions serve all
        return x + resize_positions(self.positions, grid, self.config.antialias)

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
        padded, weighed = _ragged(tokens), _weighed(tokens)
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
    """Whether a frame may have padding. A compiled or exported network cannot look, and always expects it."""
    return torch.compiler.is_compiling() or not bool(tokens.mask.all())


def _weighed(tokens: Tokens) -> bool:
    """Whether a token may stand for more or less than one cell; see `_ragged`."""
    return torch.compiler.is_compiling() or bool((tokens.sizes != 1).logical_and(tokens.mask).any())


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resize_positions(positions: Tensor, grid: Sequence[int], antialias: bool = False) -> Tensor:
    """A position embedding [H,W,C] or [T,H,W,C] for another grid.

    Images bicubic, clips bilinear in space and linear in time; in float32, returned in the dtype of `positions`.
    """
    if tuple(positions.shape[:-1]) == tuple(grid):
        return positions
    rows = positions.movedim(-1, 0)[None].float()
    if len(grid) == 2:
        rows = F.interpolate(rows, tuple(grid), mode="bicubic", align_corners=False, antialias=antialias)
    else:
        rows = F.interpolate(rows, tuple(grid), mode="trilinear", align_corners=False)
    return rows[0].movedim(0, -1).to(positions.dtype)
