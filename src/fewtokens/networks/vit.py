"""ViT and ViViT, optionally with TokenLearner: the networks of arXiv 2106.11297 and 2103.15691.

One network for images and clips: an image is a clip of one frame. A learner can reduce each frame to a few tokens:

    without fuser   the learner is before block `at`, and later blocks process only its tokens
    with fuser      every block from `at` on: learner, block, fuser back to the grid, residual
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.legacy import current_spec
from fewtokens.core.method import Method
from fewtokens.core.network_names import ATTENTION
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.frames import normalize, to_unit
from fewtokens.encoders.transformer import Block
from fewtokens.encoders.vit import ViT
from fewtokens.methods.ops.per_frame import resample_frames
from fewtokens.networks.attention import FactorizedDotBlock, FactorizedSelfBlock
from fewtokens.networks.base import Model
from fewtokens.networks.token_fuser import FUSERS, TokenFuser

HEADS = ("gap", "gmp", "gsp", "token")

# Receives the name and the value of an intermediate output.
Keep = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class VisionConfig(ViTConfig):
    """Hyperparameters of a ViT or ViViT classifier.

    Attributes:
        tubelet_size: frames per tubelet.
        num_frames: frames per clip of the position embedding; it is resized for other lengths.
        num_classes: number of outputs.
        head: input of the classifier: mean ("gap"), maximum ("gmp") or sum ("gsp") over tokens, or a class token
            ("token"). Determines `class_token`.
        attention: one of `ATTENTION`; the last three are the factorized attentions of ViViT (section 3.3 there).
            Positions are learned for every tubelet; in the factorized encoder separately for the tubelets of a frame
            and for the frames, as in the published code.
        temporal_depth: number of temporal blocks of the factorized encoder.
        learner: spec of a per-frame learner such as "tokenlearner('8/frame')"; "" for none.
        at: index of the block that follows the learner.
        fuser: "fuser", "unpool" or "reproject" to map back to the grid in every block from `at` on; "" for none.
        fuser_mix, fuser_gate: arguments of `TokenFuser`.
        stochastic_depth: rate at the last block, increasing linearly from 0; in training. In the factorized encoder the
            last spatial block, for each frame; temporal blocks have none.
        head_bias: initial bias of the classifier; -10 is used with the sigmoid loss.
        mean, std: normalization of pixels, RGB in 0..1.

    The other attributes are those of `ViTConfig`; the default activation is that of the paper's code.
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
        # The spelling of earlier versions.
        object.__setattr__(self, "attention", str(self.attention).replace("factorised", "factorized"))
        for name, allowed in (("head", HEADS), ("attention", ATTENTION), ("fuser", ("", *FUSERS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}")
        if self.class_token and self.head != "token":
            raise ValueError("class_token=True requires head='token'")
        object.__setattr__(self, "class_token", self.head == "token")
        if min(self.tubelet_size, self.num_frames, self.num_classes) < 1:
            raise ValueError(
                "tubelet_size, num_frames and num_classes must be at least 1, "
                f"got {self.tubelet_size}, {self.num_frames} and {self.num_classes}"
            )
        if self.temporal_depth < 1 or min(self.std) <= 0:
            raise ValueError(
                f"temporal_depth must be at least 1 and std above 0, got {self.temporal_depth} and {self.std}"
            )
        super().__post_init__()
        if self.num_frames < self.tubelet_size:
            raise ValueError(f"num_frames must be at least tubelet_size {self.tubelet_size}, got {self.num_frames}")
        if self.antialias:
            raise ValueError("antialias is not supported: positions of tubelets are resized without it")
        if self.learner and not 0 <= self.at < self.depth:
            raise ValueError(f"at must be a block index from 0 to {self.depth - 1}, got {self.at}")
        prefix = self.class_token or self.num_registers > 0
        if self.learner and (self.attention != "joint" or prefix):
            raise ValueError("a learner requires joint attention, a head over tokens (gap, gmp, gsp) and no registers")
        if self.fuser and not self.learner:
            raise ValueError(f"the fuser {self.fuser!r} requires a learner")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must be in [0, 1), got {self.stochastic_depth}")
        if self.attention in ("factorized_self", "factorized_dot") and prefix:
            raise ValueError(f"attention {self.attention!r} supports no class token and no registers; use head='gap'")

    @property
    def grid(self) -> tuple[int, int, int]:
        """T, H, W of the tubelets; remaining frames and pixels at the border are ignored."""
        _, H, W = super().grid
        return self.num_frames // self.tubelet_size, H, W

    @property
    def kernel(self) -> tuple[int, ...]:
        """Frames, height and width of a tubelet."""
        return self.tubelet_size, self.patch_size, self.patch_size

    @property
    def blocks(self) -> int:
        """Number of blocks, including the temporal ones of the factorized encoder."""
        return self.depth + (self.temporal_depth if self.attention == "factorized_encoder" else 0)

    @property
    def position_grid(self) -> tuple[int, ...]:
        """Grid of the position embedding; frames of the factorized encoder share spatial positions."""
        T, H, W = self.grid
        return 1 if self.attention == "factorized_encoder" else T, H, W


class VisionTransformer(Model, ViT):
    """A ViT or ViViT classifier.

    Maps frames [B,T,3,H,W] or images [B,3,H,W] (uint8, or float in 0..1) to logits [B,classes].
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
        kinds: dict[str, type[Block]] = {"factorized_self": FactorizedSelfBlock, "factorized_dot": FactorizedDotBlock}
        return kinds.get(self.config.attention, Block)(self.config)

    def _add_modules(self) -> None:
        config, C = self.config, self.config.dim
        self.learners = nn.ModuleDict()
        self.fusers = nn.ModuleDict()
        if config.learner:
            layers = range(config.at, config.depth) if config.fuser else [config.at]
            self.learners = nn.ModuleDict({str(layer): build_learner(config) for layer in layers})
        if config.fuser:
            self.fusers = nn.ModuleDict({str(layer): self._fuser() for layer in range(config.at, config.depth)})
        if config.attention == "factorized_encoder":
            has_token = config.class_token
            self.temporal_positions = self._embedding(config.grid[0], C)
            self.temporal_token = nn.Parameter(torch.zeros(C)) if has_token else None
            self.temporal_token_position = self._embedding(C) if has_token else None
            self.temporal_blocks = nn.ModuleList(Block(config) for _ in range(config.temporal_depth))
            self.temporal_norm = nn.LayerNorm(C, config.eps)
        self.head = nn.Linear(C, config.num_classes)

    def version_error(self, tensors: Mapping[str, Tensor]) -> str:
        positions = tensors.get("positions")
        if self.config.attention != "factorized_encoder" or positions is None or positions.ndim != 4:
            return ""
        if len(positions) == 1 and ("temporal_token" in tensors) == ("temporal_token_position" in tensors):
            return ""
        return (
            "saved by an earlier fewtokens, whose factorized encoder had separate positions for each frame; retrain it "
            "(frames now share positions, as published)"
        )

    def reset_parameters(self) -> None:
        initialize(self)

    def _fuser(self) -> nn.Module:
        config = self.config
        num_tokens = getattr(build_learner(config), "num_tokens", 0)
        if config.fuser == "fuser":
            if not num_tokens:
                raise ValueError(f"the fuser requires a learner with a fixed number of tokens, got {config.learner!r}")
            return TokenFuser(
                num_tokens,
                dim=config.dim,
                mix=config.fuser_mix,
                frames=config.grid[0],
                gate=config.fuser_gate,
            )
        return FUSERS[config.fuser](num_tokens, dim=config.dim)

    def prepare(self, frames: Tensor) -> Tensor:
        """Prepares the frames of `forward` for `embed`: normalized clips [B,3,T,H,W].

        Raises:
            ValueError: frames of another shape, or smaller than a tubelet.
        """
        frames = frames[:, None] if frames.ndim == 4 else frames
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"frames must be [B,T,3,H,W] or [B,3,H,W], got {list(frames.shape)}")
        smallest = self.config.kernel
        if any(size < minimum for size, minimum in zip((frames.shape[1], *frames.shape[3:]), smallest, strict=True)):
            raise ValueError(
                f"clips must be at least one tubelet ({'x'.join(map(str, smallest))}), got {list(frames.shape)}"
            )
        return normalize(to_unit(frames), self.config.mean, self.config.std).transpose(1, 2)

    def walk(
        self, tokens: Tokens, inside: Sequence[Method] = (), needs: Sequence[str] = ()
    ) -> tuple[Tokens, dict[str, Tensor]]:
        if self.config.attention != "joint" or self.config.learner:
            raise ValueError("methods between blocks require joint attention and no learner")
        return super().walk(tokens, inside, needs)

    def intermediates(self, frames: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Returns intermediate outputs by name.

        Names: embedded, block0..., learner{i} (its maps), tokens (after the last norm), temporal{i}, pre_logits,
        logits.

        Args:
            frames: as for `forward`.
            names: the outputs to return; others are freed as soon as possible. None for all.
        """
        outputs: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            if names is None or name in names:
                outputs[name] = value

        x, prefix, T = self._run_blocks(self.embed(self.prepare(frames)), keep)
        x = self.norm_last(x)
        keep("tokens", x[:, prefix:] if x.ndim == 3 else x)
        if self.config.attention == "factorized_encoder":
            x, prefix = self._run_temporal_blocks(self._pool(x, prefix), T, keep), 0
        x = self._pool(x, prefix)
        keep("pre_logits", x)
        keep("logits", self.head(x))
        return outputs

    def forward(self, frames: Tensor) -> Tensor:
        return self.intermediates(frames, ("logits",))["logits"]

    def features(self, frames: Tensor) -> Tensor:
        """Returns the input of the classifier, [B,C]."""
        return self.intermediates(frames, ("pre_logits",))["pre_logits"]

    def tokens(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        """Returns the last tokens as `Tokens` [B,N,C], with the maps of a learner as attribution.

        With a fuser these are the cells of the grid.

        Raises:
            ValueError: the factorized encoder, whose last tokens are frames.
        """
        if self.config.attention == "factorized_encoder":
            raise ValueError("the factorized encoder returns one token per frame, not cells of a grid")
        outputs = self.intermediates(frames, ("embedded", "tokens", f"learner{self.config.at}"))
        T, H, W = outputs["embedded"].shape[1:4]
        step = self.config.tubelet_size
        seconds = None if times is None else torch.as_tensor(times)[..., : T * step : step]
        cells = Tokens.from_cells(outputs["embedded"].flatten(1, 3), Grid(T, H, W, seconds))
        if self.config.learner and not self.config.fuser:
            maps = outputs[f"learner{self.config.at}"]
            cells = cells.apply(resample_frames(cells, maps.detach().abs().clamp(min=1e-12)).plan)
        return cells.replace(features=outputs["tokens"].reshape(cells.B, cells.N, -1))

    def _run_blocks(self, x: Tensor, keep: Keep) -> tuple[Tensor, int, int]:
        """Runs all blocks; returns the tokens, the number of prefix tokens and the number of frames."""
        keep("embedded", x)
        B, T, H, W, C = x.shape
        attention = self.config.attention
        prefix = 0
        if attention == "joint":
            x = x.flatten(1, 3)
        elif attention == "factorized_encoder":
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
                tokens, maps = self.learners[key].learn(grid.flatten(0, 1))  # type: ignore[operator]
                keep(f"learner{layer}", maps)
                tokens = tokens.reshape(B, -1, C)
                if key in self.fusers:
                    tokens = self._block(block, tokens, layer)
                    x = x + self.fusers[key](tokens.reshape(B, T, -1, C), grid, maps).reshape(x.shape)
                    keep(f"block{layer}", x)
                    continue
                x = tokens
            x = self._block(block, x, layer)
            keep(f"block{layer}", x)
        return x, prefix, T

    def _block(self, block: nn.Module, x: Tensor, layer: int) -> Tensor:
        rate = self.config.stochastic_depth * layer / max(1, self.config.depth - 1)

        if self.checkpointing and self.training:
            return checkpoint(block, x, rate, use_reentrant=False)
        return block(x, rate)

    def _run_temporal_blocks(self, x: Tensor, frames: int, keep: Keep) -> Tensor:
        """Runs the temporal blocks of the factorized encoder: frames [B*T,C] to [B,T(+1),C]."""
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
            keep(f"temporal{layer}", x)
        return self.temporal_norm(x)

    def _pool(self, x: Tensor, prefix: int) -> Tensor:
        """Returns the class token, or pools the tokens after the prefix as `head` specifies, [B,C]."""
        if self.config.head == "token":
            return x[:, 0]
        x = x.flatten(1, -2)[:, prefix:]
        if self.config.head == "gmp":
            return x.amax(1)
        return x.mean(1) if self.config.head == "gap" else x.sum(1)


def build_learner(config: VisionConfig) -> nn.Module:
    """Builds the learner of a config, for its dim and grid.

    Raises:
        ValueError: not a single method that works frame by frame.
    """
    spec = current_spec(config.learner)
    parameters = inspect.signature(registry.get(registry.parse(spec)[0][0])).parameters
    sized = {"side": max(config.grid[1:])} if "side" in parameters else {}
    (learner, *others) = registry.build(spec, dim=config.dim, **sized)
    if others or not hasattr(learner, "learn"):
        raise ValueError(
            f"learner must be one per-frame learner such as tokenlearner('8/frame'), got {config.learner!r}"
        )
    return learner


def initialize(model: VisionTransformer) -> None:
    """Initializes as the paper's code: Xavier for attention and MLP, MLP biases near zero, head zero."""
    for module in model.modules():
        if isinstance(module, Block):
            for name, linear in module.named_modules():
                if not isinstance(linear, nn.Linear):
                    continue
                # Queries, keys and values are initialized separately.
                parts = linear.weight.chunk(3) if name.endswith("qkv") else [linear.weight]
                for part in parts:
                    nn.init.xavier_uniform_(part)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            nn.init.normal_(module.mlp.fc1.bias, std=1e-6)
            nn.init.normal_(module.mlp.fc2.bias, std=1e-6)
            if isinstance(module, FactorizedSelfBlock):
                nn.init.zeros_(module.attention_time.out.weight)
    fan_in = model.patches.weight[0].numel()
    nn.init.trunc_normal_(model.patches.weight, std=fan_in**-0.5)
    if model.patches.bias is not None:
        nn.init.zeros_(model.patches.bias)
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, model.config.head_bias)
