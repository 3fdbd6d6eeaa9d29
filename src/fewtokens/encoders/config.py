"""The config of all vision transformers: encoders, classifiers, pre-training networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.identity import rename_keys
from fewtokens.core.plain import conform, one_line


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if x.requires_grad or torch.compiler.is_compiling():
        return F.gelu(x, approximate=approximate)
    return torch.ops.aten.gelu_(x, approximate=approximate)


# They may overwrite their input if it does not require a gradient: the hidden layer is the largest tensor of a block.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu,
    "gelu_pytorch_tanh": lambda x: _gelu(x, "tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}

# Names of earlier versions. Files that contain them are still read; as arguments they raise an error with the new name.
OLD_NAMES = {
    "width": "dim", "heads": "num_heads", "hidden": "mlp_dim", "patch": "patch_size", "tubelet": "tubelet_size",
    "size": "image_size", "frames": "num_frames", "classes": "num_classes", "registers": "num_registers",
    "decoder_width": "decoder_dim", "decoder_heads": "decoder_num_heads", "widths": "dims",
}  # fmt: skip


@dataclass(frozen=True)
class ViTConfig:
    """Hyperparameters of a ViT. The configs of complete networks derive from it.

    Attributes:
        dim, depth, num_heads: number of channels, blocks and attention heads.
        mlp_dim: hidden channels of the MLP; 0 for 4 * dim.
        patch_size: side of a patch in pixels.
        image_size: height and width in pixels of the position embedding; it is resized for other sizes.
        class_token: whether to prepend a class token.
        num_registers: number of register tokens, which have no position embedding.
        qkv_bias, patch_bias: whether these layers have biases.
        qk_norm: whether to normalize queries and keys of each head (LayerNorm).
        layer_scale: whether each residual branch has a learned scale.
        norm_first, norm_last: LayerNorm before the first block (CLIP) and after the last one.
        gated: SwiGLU instead of a two-layer MLP.
        activation: gelu, gelu_pytorch_tanh, quick_gelu or silu.
        antialias: whether to resize positions with antialiasing; only for images.
        position_offset: see `fewtokens.encoders.vit.resize_positions`; 0.1 in the published code of DINO and ToBo.
        eps: epsilon of every LayerNorm.
    """

    dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_dim: int = 0
    patch_size: int = 16
    image_size: tuple[int, int] = (224, 224)
    class_token: bool = True
    num_registers: int = 0
    qkv_bias: bool = True
    patch_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    norm_first: bool = False
    norm_last: bool = True
    gated: bool = False
    activation: str = "gelu"
    position_offset: float = 0.0
    antialias: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        for name in ("dim", "depth", "num_heads", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.mlp_dim, self.num_registers) < 0 or not self.eps > 0:
            raise ValueError(
                f"mlp_dim and num_registers must be at least 0 and eps above 0, got {self.mlp_dim}, "
                f"{self.num_registers} and {self.eps}"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if min(self.image_size) < self.patch_size:
            raise ValueError(f"image_size must be at least patch_size {self.patch_size}, got {self.image_size}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """T, H, W of the cells of the position embedding; remaining pixels at the border are ignored."""
        return 1, self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel of the patch embedding: (height, width) in pixels, preceded by frames in networks for clips."""
        return self.patch_size, self.patch_size

    @property
    def position_grid(self) -> tuple[int, ...]:
        """The grid of the position embedding."""
        return self.grid[1:]

    @property
    def blocks(self) -> int:
        """Number of blocks of the complete network."""
        return self.depth

    def encoder(self) -> ViTConfig:
        """Returns the `ViTConfig` part of this config."""
        return ViTConfig(**{field.name: getattr(self, field.name) for field in fields(ViTConfig)})


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the keys of earlier versions in a config read from a file.

    "positions", formerly the grid of the position embedding, becomes the size in pixels if the patch size is known.
    """
    current = rename_keys(dict(values), OLD_NAMES)
    grid, patch = current.get("positions"), current.get("patch_size")
    if isinstance(grid, list | tuple) and isinstance(patch, int) and all(isinstance(side, int) for side in grid):
        del current["positions"]
        current["image_size"] = [side * patch for side in grid]
    return current


def make_vit_config(values: Mapping[str, Any], where: str) -> ViTConfig:
    """Builds a `ViTConfig` from a file of this or an earlier version.

    Raises:
        ValueError: unknown names, or values of a wrong type or out of range; the message starts with `where`.
    """
    current = current_names(values)
    check_names(current, ViTConfig, where)
    conform(current, ViTConfig, where)
    try:
        return ViTConfig(**current)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error)[:300]}") from None


def check_names(values: Mapping[str, Any], kind: Any, where: str) -> None:
    """Raises ValueError for unknown names; the message contains the new name of a renamed setting."""
    names = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - names)
    if not unknown:
        return
    if hint := rename_hint(unknown, names):
        raise ValueError(f"{where}: {hint}")
    raise ValueError(f"{where}: unknown settings {one_line(', '.join(unknown))}; available: {', '.join(sorted(names))}")


def rename_hint(unknown: list[str], names: set[str]) -> str:
    """Returns a hint such as "width is now called dim" for the first renamed setting; "" if there is none."""
    old = [name for name in unknown if OLD_NAMES.get(name) in names]
    return f"{old[0]} is now called {OLD_NAMES[old[0]]}" if old else ""
