"""The parts of transformers that fewtokens relies on, in one place, so that a name that changes raises an error.

Tested at both ends of the range that pyproject.toml allows: `make test-lowest`, `make test-newest`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# The cache as an argument and in an output: the first name since transformers 5.24, the second before.
CACHE_NAMES = ("cache", "past_key_values")
# The names of vision towers, as in `get_encoder` of transformers.
_TOWERS = ("video_tower", "vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")


def version() -> tuple[int, int]:
    """The major and minor version of the installed transformers."""
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def unsupported(problem: str) -> ValueError:
    """The error for an interface of transformers that differs from the supported one."""
    import transformers

    return ValueError(
        f"transformers {transformers.__version__} is not supported: {problem}; install a supported release with "
        "pip install 'fewtokens[llm]'"
    )


def attribute(owner: Any, name: str) -> Any:
    """Returns an attribute of an object of transformers.

    Raises:
        ValueError: the object has no such attribute.
    """
    value = getattr(owner, name, None)
    if value is None:
        raise unsupported(f"{type(owner).__name__} has no {name}")
    return value


def cache_of(source: Any) -> Any | None:
    """Returns the cache in the arguments or the output of a model, under either name, or None."""
    if isinstance(source, Mapping):  # outputs are mappings too
        return next((source[name] for name in CACHE_NAMES if name in source and source[name] is not None), None)
    return next((value for name in CACHE_NAMES if (value := getattr(source, name, None)) is not None), None)


def layer_cache(inputs: Mapping[str, Any]) -> Any | None:
    """Returns the cache that a decoder layer receives.

    Raises:
        ValueError: caches are in use, but the layer receives none under a known name.
    """
    if not any(name in inputs for name in CACHE_NAMES) and inputs.get("use_cache", True):
        raise unsupported(f"decoder layers receive a cache under another name than {' or '.join(CACHE_NAMES)}")
    return cache_of(inputs)


def cache_name(model: Any) -> str:
    """The name under which a model takes its cache."""
    parameters = inspect.signature(model.forward).parameters
    name = next((name for name in CACHE_NAMES if name in parameters), None)
    if name is None:
        raise unsupported(f"{type(model).__name__} takes its cache under another name than {' or '.join(CACHE_NAMES)}")
    return name


def drop_last(cache: Any, columns: int) -> None:
    """Removes the last columns from a cache.

    Raises:
        ValueError: a layer has a state that cannot be shortened, such as that of linear attention or of a window.
    """
    kinds = {type(layer).__name__ for layer in attribute(cache, "layers")}
    if kinds != {"DynamicLayer"}:
        raise ValueError(
            f"the cache of this model has layers of the kinds {', '.join(sorted(kinds))}, from which rejected tokens "
            "cannot be removed; models with full attention in all layers are required"
        )
    if columns:
        cache.crop(-columns)


def is_filled(cache: Any | None) -> bool:
    """Whether a cache contains columns of an earlier pass."""
    return cache is not None and int(cache.get_seq_length()) > 0


def unwrap(model: Any) -> Any:
    """Returns the model of transformers inside the wrappers of peft, torch.compile, DataParallel and DDP.

    Adapters stay active in its layers. Of a compiled model the original is returned, because compiled code would not
    contain hooks that are registered later.

    Raises:
        ValueError: the peft adapters act on prompts, outside the layers.
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._orig_mod
        elif _is_peft(model):
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    f"{model.active_peft_config.peft_type} adapters put virtual tokens before the prompt, which is not "
                    "supported; use adapters inside the layers, such as LoRA"
                )
            model = model.get_base_model()
        else:
            return model


def _is_peft(model: Any) -> bool:
    # A peft model exists only if peft has been imported.
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def vision_tower(model: Any, modality: str = "video") -> nn.Module | None:
    """Returns the module that encodes the images or videos of a model, or None."""
    owners = (getattr(model, "base_model", model), model)
    names = (f"{modality}_tower", *_TOWERS)
    modules = (getattr(owner, name, None) for owner in owners for name in names)
    return next((module for module in modules if isinstance(module, nn.Module)), None)


def output_layer(model: Any, depth: int) -> int:
    """The index of the block of a vision tower of `depth` blocks whose output the language model reads."""
    layers = getattr(model.config, "vision_feature_layer", None)
    layers = [-1] if layers is None else [layers] if isinstance(layers, int) else layers
    # hidden_states[0] is the input of the first block.
    return max(layer if layer >= 0 else depth + 1 + layer for layer in layers) - 1


def full_attention_layers(tower: nn.Module, depth: int) -> list[int]:
    """The layers of a vision tower of `depth` layers that attend to whole frames instead of windows."""
    if not hasattr(tower, "window_size"):
        return list(range(depth))
    layers = getattr(tower, "fullatt_block_indexes", None)
    if layers is None:
        kinds = attribute(attribute(tower, "config"), "layer_types")
        layers = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    return sorted(layers)


def vision_windows(tower: nn.Module, shapes: Tensor) -> tuple[Tensor, Tensor] | None:
    """The windows within which most layers of a vision tower attend, or None without windows.

    Args:
        shapes: int64 [V,3], (t, h, w) of the patches of each image or video.

    Returns:
        The groups of patches in the order in which the tower processes them, window by window, int64 [G], and the
        borders of the windows in this order, int64 [windows+1].
    """
    if not hasattr(tower, "window_size"):
        return None
    owner: Any = tower
    if hasattr(owner, "get_window_index"):  # transformers before 5.20
        order, borders = owner.get_window_index(shapes)
        borders = torch.as_tensor(borders, device=shapes.device).unique_consecutive()
    else:
        try:
            from transformers.vision_utils import get_vision_window_index
        except ImportError:
            raise unsupported("transformers.vision_utils has no get_vision_window_index") from None
        order, borders = get_vision_window_index(shapes, owner.spatial_merge_size, owner.window_size, owner.patch_size)
    return order.to(shapes.device), borders.to(shapes.device).long() // owner.spatial_merge_size**2
