"""ViT and ViViT, plain or with TokenLearner: the networks of arXiv 2106.11297 and 2103.15691.

One network for images and clips: an image is a clip of one frame. Tubelets are embedded, blocks attend, and at
chosen layers a learner makes few tokens of each frame:

    without fuser   learner before block `at`, the blocks from there on see its tokens alone
    with fuser      in every block from `at` on: learner, block, fuser back to the grid, residual
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.legacy import current_spec
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.frames import normalize, to_unit
from fewtokens.encoders.transformer import Block
from fewtokens.encoders.vit import ViT
from fewtokens.methods.ops.per_frame import resampled_frames
from fewtokens.networks.attention import FactorisedDotBlock, FactorisedSelfBlock
from fewtokens.networks.base import Model
from fewtokens.networks.token_fuser import FUSERS, TokenFuser

ATTENTION = ("joint", "factorised_encoder", "factorised_self", "factorised_dot")
HEADS = ("gap", "gmp", "gsp", "token")


@dataclass(frozen=True)
class VisionConfig(ViTConfig):
    """The shape of a ViT or ViViT that classifies.

    Attributes:
        tubelet_size: frames of a tubelet.
        num_frames: of the clip that positions are learned for; others resize them.
        num_classes: outputs.
        head: what is classified: mean ("gap"), maximum ("gmp") or sum ("gsp") over the tokens, or a class token. It
            decides on `class_token`.
        attention: one of `ATTENTION`; the last three are ViViT's factorised ones (section 3.3 there). Positions are
            learned for every tubelet; in the factorised encoder once for the tubelets of a frame and once for the
            frames, as in the published code.
        temporal_depth: blocks over time of the factorised encoder.
        learner: spec of a per-frame learner such as "tokenlearner('8/frame')"; "" for none.
        at: 0-based layer; the learner stands immediately before this block.
        fuser: "", or fuser, unpool, reproject: back to the grid in every layer from `at` on.
        fuser_mix, fuser_gate: of the TokenFuser.
        stochastic_depth: rate at the last block, growing linearly from 0; in training.
        head_bias: initial bias of the classifier; -10 goes with the sigmoid loss.
        mean, std: of the normalization, RGB in 0..1.

    The other attributes are those of `ViTConfig`; the paper's code has another activation than its default.
    """

    class_token: bool = False
    activation: str = "gelu_pytorch_tanh"
    tubelet_size: int = 1
    num_frames: int = 1
    num_classes: int = 1000
    head: str = "gap"
    attention: str = "joint"
    temporal_depth: int = 4
    learner: str = ""
    at: int = 0
    fuser: str = ""
    fuser_mix: str = "frame"
    fuser_gate: str = "linear"
    stochastic_depth: float = 0.0
    head_bias: float = 0.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, known in (("head", HEADS), ("attention", ATTENTION), ("fuser", ("", *FUSERS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if self.class_token and self.head != "token":
            raise ValueError("a class token goes with head='token'")
        object.__setattr__(self, "class_token", self.head == "token")
        if min(self.tubelet_size, self.num_frames, self.num_classes) < 1:
            raise ValueError("tubelet_size, num_frames and num_classes must be at least 1")
        if self.temporal_depth < 1 or min(self.std) <= 0:
            raise ValueError(
                f"temporal_depth must be at least 1 and std above 0, got {self.temporal_depth} and {self.std}"
            )
        super().__post_init__()
        if self.num_frames < self.tubelet_size:
            raise ValueError(f"a clip of {self.num_frames} frames holds no tubelet of {self.tubelet_size}")
        if self.antialias:
            raise ValueError("antialias is for the positions of images; those of tubelets are resized without it")
        if self.learner and not 0 <= self.at < self.depth:
            raise ValueError(f"at must be a layer of 0 to {self.depth - 1}, got {self.at}")
        prefix = self.class_token or self.num_registers > 0
        if self.learner and (self.attention != "joint" or prefix):
            raise ValueError(
                "a learner goes with joint attention, a head over the tokens (gap, gmp, gsp), no registers"
            )
        if self.fuser and not self.learner:
            raise ValueError(f"the fuser {self.fuser!r} needs a learner")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must be in [0, 1), got {self.stochastic_depth}")
        if self.attention in ("factorised_self", "factorised_dot") and prefix:
            raise ValueError(f"attention {self.attention!r} has no class token and no registers; take head='gap'")

    @property
    def grid(self) -> tuple[int, int, int]:
        """T, H, W of the tubelets; what is left over at the border is not seen."""
        _, H, W = super().grid
        return self.num_frames // self.tubelet_size, H, W

    @property
    def kernel(self) -> tuple[int, ...]:
        """Frames, height and width of a tubelet."""
        return self.tubelet_size, self.patch_size, self.patch_size

    @property
    def blocks(self) -> int:
        """Blocks over the tokens, and over the frames of the factorised encoder."""
        return self.depth + (self.temporal_depth if self.attention == "factorised_encoder" else 0)

    @property
    def position_grid(self) -> tuple[int, ...]:
        """The grid that positions are learned for; the frames of the factorised encoder share those in space."""
        T, H, W = self.grid
        return 1 if self.attention == "factorised_encoder" else T, H, W


class VisionTransformer(Model, ViT):
    """A ViT or ViViT classifier.

    Frames [B,T,3,H,W] or images [B,3,H,W] in, uint8 or float in 0..1; logits [B,classes] out.
    """

    kind = "vit"
    config_type = VisionConfig
    config: VisionConfig

    def __init__(self, config: VisionConfig) -> None:
        ViT.__init__(self, config)
        self.checkpointing = False

    def _embedding(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape) * 0.02)

    def _make_block(self) -> nn.Module:
        kinds: dict[str, type[Block]] = {"factorised_self": FactorisedSelfBlock, "factorised_dot": FactorisedDotBlock}
        return kinds.get(self.config.attention, Block)(self.config)

    def _parts(self) -> None:
        config, C = self.config, self.config.dim
        self.learners = nn.ModuleDict()
        self.fusers = nn.ModuleDict()
        if config.learner:
            layers = range(config.at, config.depth) if config.fuser else [config.at]
            self.learners = nn.ModuleDict({str(layer): build_learner(config) for layer in layers})
        if config.fuser:
            self.fusers = nn.ModuleDict({str(layer): self._fuser() for layer in range(config.at, config.depth)})
        if config.attention == "factorised_encoder":
            by_token = config.class_token
            self.temporal_positions = self._embedding(config.grid[0], C)
            self.temporal_token = nn.Parameter(torch.zeros(C)) if by_token else None
            self.temporal_token_position = self._embedding(C) if by_token else None
            self.temporal_blocks = nn.ModuleList(Block(config) for _ in range(config.temporal_depth))
            self.temporal_norm = nn.LayerNorm(C, config.eps)
        self.head = nn.Linear(C, config.num_classes)

    def outdated(self, tensors: Mapping[str, Tensor]) -> str:
        positions = tensors.get("positions")
        if self.config.attention != "factorised_encoder" or positions is None or positions.ndim != 4:
            return ""
        if len(positions) == 1 and ("temporal_token" in tensors) == ("temporal_token_position" in tensors):
            return ""
        return (
            "saved by an earlier fewtokens, whose factorised encoder learned positions for each frame; the published "
            "one shares them over all frames, so train it again"
        )

    def reset_parameters(self) -> None:
        initialize(self)

    def _fuser(self) -> nn.Module:
        config = self.config
        num_tokens = getattr(build_learner(config), "num_tokens", 0)
        if config.fuser == "fuser":
            if not num_tokens:
                raise ValueError(f"the fuser mixes a known number of tokens, which {config.learner!r} does not have")
            return TokenFuser(
                num_tokens,
                dim=config.dim,
                mix=config.fuser_mix,
                frames=config.grid[0],
                gate=config.fuser_gate,
            )
        return FUSERS[config.fuser](num_tokens, dim=config.dim)

    def prepare(self, frames: Tensor) -> Tensor:
        """Normalized clips [B,3,T,H,W], for `embed`, of frames as `forward` takes them.

        Raises:
            ValueError: frames of another shape, or smaller than a tubelet.
        """
        frames = frames[:, None] if frames.ndim == 4 else frames
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"frames must be [B,T,3,H,W] or [B,3,H,W], got {list(frames.shape)}")
        smallest = self.config.kernel
        if any(have < want for have, want in zip((frames.shape[1], *frames.shape[3:]), smallest, strict=True)):
            raise ValueError(f"clips must hold a tubelet of {'x'.join(map(str, smallest))}, got {list(frames.shape)}")
        return normalize(to_unit(frames), self.config.mean, self.config.std).transpose(1, 2)

    def walk(
        self, tokens: Tokens, inside: Sequence[Method] = (), needs: Sequence[str] = ()
    ) -> tuple[Tokens, dict[str, Tensor]]:
        if self.config.attention != "joint" or self.config.learner:
            raise ValueError("methods act between plain blocks: joint attention, and no learner")
        return super().walk(tokens, inside, needs)

    def intermediates(self, frames: Tensor) -> dict[str, Tensor]:
        """Everything by name: embedded, block0.., learner{i} (maps), tokens (last norm), pre_logits, logits."""
        named: dict[str, Tensor] = {}
        x = self.embed(self.prepare(frames))
        named["embedded"] = x
        grid = x.shape[1:4]
        x, prefix = self._walk(x, named)
        x = self.norm_last(x)
        named["tokens"] = x[:, prefix:] if x.ndim == 3 else x
        if self.config.attention == "factorised_encoder":
            x, prefix = self._over_time(self._pool(x, prefix), grid[0], named), 0
        named["pre_logits"] = self._pool(x, prefix)
        named["logits"] = self.head(named["pre_logits"])
        return named

    def forward(self, frames: Tensor) -> Tensor:
        return self.intermediates(frames)["logits"]

    def features(self, frames: Tensor) -> Tensor:
        """What the classifier sees, [B,C]."""
        return self.intermediates(frames)["pre_logits"]

    def tokens(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        """The last tokens as `Tokens` [B,N,C], with the learner's maps as their weights where it has one.

        With a fuser these are the cells of the grid. Not for the factorised encoder, whose last tokens are frames.
        """
        if self.config.attention == "factorised_encoder":
            raise ValueError("the factorised encoder ends with one token for each frame, not with cells of the grid")
        named = self.intermediates(frames)
        T, H, W = named["embedded"].shape[1:4]
        step = self.config.tubelet_size
        seconds = None if times is None else torch.as_tensor(times)[..., : T * step : step]
        cells = Tokens.from_cells(named["embedded"].flatten(1, 3), Grid(T, H, W, seconds))
        if self.config.learner and not self.config.fuser:
            maps = named[f"learner{self.config.at}"]
            cells = cells.apply(resampled_frames(cells, maps.detach().abs().clamp(min=1e-12)).plan)
        return cells.replace(features=named["tokens"].reshape(cells.B, cells.N, -1))

    def _walk(self, x: Tensor, named: dict[str, Tensor]) -> tuple[Tensor, int]:
        """All blocks; the tokens, and how many prefix tokens come first."""
        B, T, H, W, C = x.shape
        attention = self.config.attention
        prefix = 0
        if attention == "joint":
            x = x.flatten(1, 3)
        elif attention == "factorised_encoder":
            x = x.reshape(B * T, H * W, C)
        else:
            x = x.flatten(2, 3)
        if (start := self.prefix(len(x))) is not None:
            x, prefix = torch.cat([start.to(x.dtype), x], 1), start.shape[1]
        x = self.norm_first(x)
        for layer, block in enumerate(self.blocks):
            key = str(layer)
            if key in self.learners:
                grid = x.reshape(B, T, H, W, C)
                few, maps = self.learners[key].learn(grid.flatten(0, 1))  # type: ignore[operator]
                named[f"learner{layer}"] = maps
                few = few.reshape(B, -1, C)
                if key in self.fusers:
                    few = self._block(block, few, layer)
                    x = x + self.fusers[key](few.reshape(B, T, -1, C), grid, maps).reshape(x.shape)
                    named[f"block{layer}"] = x
                    continue
                x = few
            x = self._block(block, x, layer)
            named[f"block{layer}"] = x
        return x, prefix

    def _block(self, block: nn.Module, x: Tensor, layer: int) -> Tensor:
        rate = self.config.stochastic_depth * layer / max(1, self.config.depth - 1)

        if self.checkpointing and self.training:
            return checkpoint(block, x, rate, use_reentrant=False)
        return block(x, rate)

    def _over_time(self, x: Tensor, frames: int, named: dict[str, Tensor]) -> Tensor:
        """The factorised encoder's second half: frames [B*T,C] to [B,T(+1),C]."""
        per_frame = x.unflatten(0, (-1, frames))
        positions: Tensor = self.temporal_positions
        if len(positions) != frames:
            positions = F.interpolate(positions.T[None], frames, mode="linear", align_corners=False)[0].T
        x = per_frame + positions.to(per_frame.dtype)
        if self.temporal_token is not None and self.temporal_token_position is not None:
            start = (self.temporal_token + self.temporal_token_position).to(x.dtype)
            x = torch.cat([start.expand(len(x), 1, -1), x], 1)
        for layer, block in enumerate(self.temporal_blocks):
            assert isinstance(block, Block)
            x = self._block(block, x, 0)
            named[f"temporal{layer}"] = x
        return self.temporal_norm(x)

    def _pool(self, x: Tensor, prefix: int) -> Tensor:
        """[B,C]: the class token, or what the head takes of the tokens after the prefix."""
        if self.config.head == "token":
            return x[:, 0]
        x = x.flatten(1, -2)[:, prefix:]
        if self.config.head == "gmp":
            return x.amax(1)
        return x.mean(1) if self.config.head == "gap" else x.sum(1)


def build_learner(config: VisionConfig) -> nn.Module:
    """The learner of a spec, for this network's dim and grid.

    Raises:
        ValueError: not one method, or one that does not work frame by frame.
    """
    spec = current_spec(config.learner)
    takes = inspect.signature(registry.get(registry.parse(spec)[0][0])).parameters
    sized = {"side": max(config.grid[1:])} if "side" in takes else {}
    (learner, *others) = registry.build(spec, dim=config.dim, **sized)
    if others or not hasattr(learner, "learn"):
        raise ValueError(f"{config.learner!r} is not one per-frame learner such as tokenlearner('8/frame')")
    return learner


def initialize(model: VisionTransformer) -> None:
    """As the paper's code: Xavier for attention and MLP, biases of the MLP near zero, the head zero."""
    for module in model.modules():
        if isinstance(module, Block):
            for linear in (layer for layer in module.modules() if isinstance(layer, nn.Linear)):
                # Queries, keys and values are drawn each for themselves.
                parts = linear.weight.chunk(3) if linear.out_features == 3 * linear.in_features else [linear.weight]
                for part in parts:
                    nn.init.xavier_uniform_(part)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            nn.init.normal_(module.mlp.fc1.bias, std=1e-6)
            nn.init.normal_(module.mlp.fc2.bias, std=1e-6)
            if isinstance(module, FactorisedSelfBlock):
                nn.init.zeros_(module.attention_time.out.weight)
    fan_in = model.patches.weight[0].numel()
    nn.init.trunc_normal_(model.patches.weight, std=fan_in**-0.5)
    if model.patches.bias is not None:
        nn.init.zeros_(model.patches.bias)
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, model.config.head_bias)
