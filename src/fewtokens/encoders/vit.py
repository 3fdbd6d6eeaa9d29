"""A vision transformer in which methods can act between attention and MLP of any block.

ViT (arXiv 2010.11929) with the numerics of the public checkpoints: pre-norm blocks; optional class token, register
tokens (arXiv 2309.16588), layer scale, query-key norm and gated MLP. No class is replaced and no forward is patched:
`walk` runs the two halves of each block separately and calls the methods in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.block_tokens import BlockTokens
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.transformer import Block

PROPORTIONAL = ("channels", "bias", "none")

# Added to the logits of masked keys: large enough to vanish in the softmax, small enough for half precision.
_MASKED = -3e4


class ViT(nn.Module):
    """A vision transformer; `embed` and `walk` map frames to tokens, `fewtokens.encoders.VitEncoder` runs it on videos.

    With tubelets in its config it is a network for clips; `fewtokens.networks.vit` adds a head, learners and the
    factorized attentions of ViViT.

    Args:
        config: hyperparameters. Parameters are initialized as in the paper (truncated normal, std 0.02).
        proportional: how attention weights merged tokens by their size: "channels" or "bias" (the same function, see
            `Attention.attend`) or "none". Use "none" for models trained on masked images and never with merging (ToMe,
            section 4).
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
        self._add_modules()
        self.reset_parameters()

    def _embedding(self, *shape: int) -> nn.Parameter:
        """Creates a learned embedding (positions, registers), filled by `reset_parameters`."""
        return nn.Parameter(torch.zeros(*shape))

    def _make_block(self) -> nn.Module:
        return Block(self.config)

    def _add_modules(self) -> None:
        """Adds the modules of a subclass."""

    def reset_parameters(self) -> None:
        """Initializes all parameters."""
        self.apply(_initialize)
        for parameter in (self.positions, self.class_token, self.class_position, self.registers):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, frames: Tensor) -> Tensor:
        """Embeds patches and adds positions; channels last.

        Args:
            frames: normalized images [F,3,H,W], or [B,3,T,H,W] in networks for clips; multiples of the patch size.

        Returns:
            [F,H',W',C], or [B,T',H',W',C].
        """
        x = self.patches(frames.to(self.patches.weight.dtype)).movedim(1, -1)
        grid = x.shape[1:-1]
        if len(grid) == 3 and len(self.positions) == 1:
            grid = (1, *grid[1:])  # the positions of one frame are used for all
        return x + resize_positions(self.positions, grid, self.config.antialias, self.config.position_offset)

    def prefix(self, frames: int) -> Tensor | None:
        """Returns class and register tokens for a number of frames, [F,P,C], or None."""
        rows = []
        if self.class_token is not None and self.class_position is not None:
            rows.append((self.class_token + self.class_position)[None])
        if self.registers is not None:
            rows.append(self.registers)
        return torch.cat(rows).expand(frames, -1, -1) if rows else None

    def walk(
        self, tokens: Tokens, block_methods: Sequence[Method] = (), needs: Sequence[str] = ()
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Runs all blocks on embedded patches, with methods between attention and MLP of each.

        Args:
            tokens: [F,N,C], one batch entry per frame, on grids of one frame; padding is masked in attention. The
                prefix is added here.
            block_methods: methods of stage "encoder".
            needs: cues of the last block to return: keys [F,N,d], attention [F,N], shift [F,N].

        Returns:
            Tokens after the last norm, sorted by position, and the cues in the same order.
        """
        prefix = self.prefix(tokens.B)
        P = 0 if prefix is None else prefix.shape[1]
        x = tokens.features if prefix is None else torch.cat([prefix.to(tokens.features.dtype), tokens.features], 1)
        x = self.norm_first(x)
        # Checked once: whether keys must be weighted or masked at all.
        padded, weighted = _may_have_padding(tokens), _may_have_merged_tokens(tokens)
        cues: dict[str, Tensor] = {}
        shift: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            weight = self._weight(tokens, P, padded, weighted)
            start = x
            x, q, k = block.attention_half(x, weight, self.proportional)
            last_block_needs = needs if layer == len(self.blocks) - 1 else ()
            requested = {*last_block_needs, *(name for method in block_methods for name in method.needs)}
            cues = _attention_cues(q, k, weight, tokens.mask, P, requested)
            if "shift" in requested:
                # Shift of the previous MLP; the first block has none and uses its attention instead.
                cues["shift"] = _update_norm(x - start, P) if shift is None else shift
            del start, q, k  # not kept while the MLP runs
            if block_methods:
                if not padded and BlockTokens.possible(tokens):
                    tokens = BlockTokens.of(tokens, x)
                else:
                    tokens = tokens.replace(features=x[:, P:], prefix=x[:, :P] if P else None)
                for index, method in enumerate(block_methods):
                    needed = {name: cues[name] for name in method.needs}
                    before, tokens = tokens, method(tokens, **needed, layer=layer, depth=len(self.blocks))
                    if last_block_needs or index < len(block_methods) - 1:
                        cues = _pool_cues(cues, before, tokens)
                weighted = True
                if isinstance(tokens, BlockTokens):
                    x, padded = tokens.rows, False
                else:
                    # After a method, frames may have unequal counts.
                    padded = padded or _may_have_padding(tokens)
                    x = tokens.features if tokens.prefix is None else torch.cat([tokens.prefix, tokens.features], 1)
            before_mlp = x if "shift" in requested else None
            x = block.mlp_half(x)
            if before_mlp is not None:
                shift = _update_norm(x - before_mlp, P)
        if shift is not None and "shift" in needs:
            cues["shift"] = shift
        x = self.norm_last(x)
        tokens = tokens.replace(features=x[:, P:], prefix=x[:, :P] if P else None)
        if not block_methods:
            return tokens, {name: cues[name] for name in needs}
        ordered = tokens.sort_by_position()
        return ordered, _pool_cues({name: cues[name] for name in needs}, tokens, ordered)

    def _weight(self, tokens: Tokens, prefix: int, padded: bool, weighted: bool) -> Tensor | None:
        """Additive weight of each key, float32 [F,P+N]: its log size, or a mask for padding; None if not needed."""
        weighted = weighted and self.proportional != "none"
        if not weighted and not padded:
            return None
        if isinstance(tokens, BlockTokens):
            return tokens.row_sizes.clamp(min=1e-6).log()
        weight = tokens.sizes.clamp(min=1e-6).log() if weighted else torch.zeros_like(tokens.sizes)
        return F.pad(weight.masked_fill(~tokens.mask, _MASKED) if padded else weight, (prefix, 0))


def _update_norm(added: Tensor, prefix: int) -> Tensor:
    """Norm of the update of each patch token by a branch, float32 [F,N]."""
    return added[:, prefix:].float().norm(dim=-1)


def _attention_cues(
    q: Tensor, k: Tensor, weight: Tensor | None, mask: Tensor, prefix: int, names: set[str]
) -> dict[str, Tensor]:
    cues = {}
    if "keys" in names:
        cues["keys"] = k[:, :, prefix:].mean(1)
    if "attention" in names:
        cues["attention"] = torch.cat(
            [
                _received_attention(*rows, None if weight is None else weight[i : i + 1])[:, prefix:]
                for i, rows in enumerate(zip(q.split(1), k.split(1), strict=True))
            ]
        )
    if "sharpness" in names:
        hidden = F.pad(mask.logical_not() * _MASKED, (prefix, 0))
        cues["sharpness"] = torch.cat(
            [_sharpness(*rows)[:, prefix:] for rows in zip(q.split(1), k.split(1), hidden.split(1), strict=True)]
        )
    return cues


def _sharpness(q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
    """Sum over keys of A log A for each query, where A is the mean attention over heads without sizes; [B,N], <= 0."""
    logits = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5 + hidden[:, None, None]
    attention = logits.softmax(-1).mean(1)
    return torch.xlogy(attention, attention).sum(-1)


def _received_attention(q: Tensor, k: Tensor, weight: Tensor | None) -> Tensor:
    """Attention that each key receives, mean over heads and queries (including the class token), [B,N]."""
    logits = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
    if weight is not None:
        logits = logits + weight[:, None, None]
    return logits.softmax(-1).mean((1, 2))


def _pool_cues(cues: dict[str, Tensor], before: Tokens, after: Tokens) -> dict[str, Tensor]:
    """Pools cues to the tokens after a method."""
    return {name: after.pool(cue, before) for name, cue in cues.items()}


def _may_have_padding(tokens: Tokens) -> bool:
    """Whether a frame may have padding; True in a compiled or exported network, which cannot inspect the data."""
    return torch.compiler.is_compiling() or not bool(tokens.mask.all())


def _may_have_merged_tokens(tokens: Tokens) -> bool:
    """Whether a token may stand for more or less than one cell; see `_may_have_padding`."""
    return torch.compiler.is_compiling() or bool((tokens.sizes != 1).logical_and(tokens.mask).any())


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resize_positions(positions: Tensor, grid: Sequence[int], antialias: bool = False, offset: float = 0.0) -> Tensor:
    """Resizes a position embedding [H,W,C] or [T,H,W,C] to another grid.

    Bicubic for images, trilinear for clips; computed in float32 and returned in the dtype of `positions`.

    Args:
        positions: the embedding.
        grid: the new size.
        antialias: only for images.
        offset: added to the new height and width where places in the old grid are computed, as in DINO; for images.
    """
    if tuple(positions.shape[:-1]) == tuple(grid):
        return positions
    rows = positions.movedim(-1, 0)[None].float()
    if len(grid) == 2 and offset:
        factors = [(new + offset) / old for new, old in zip(grid, positions.shape, strict=False)]
        rows = F.interpolate(rows, scale_factor=factors, mode="bicubic", align_corners=False, antialias=antialias)
        assert rows.shape[2:] == tuple(grid)
    elif len(grid) == 2:
        rows = F.interpolate(rows, tuple(grid), mode="bicubic", align_corners=False, antialias=antialias)
    else:
        rows = F.interpolate(rows, tuple(grid), mode="trilinear", align_corners=False)
    return rows[0].movedim(0, -1).to(positions.dtype)
