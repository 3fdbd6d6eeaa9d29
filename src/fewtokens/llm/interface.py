"""What is asked of transformers, in one place, so that another name in another release is an error and not a silence.

Tested at both ends of the range that pyproject.toml allows: `make test-lowest`, `make test-newest`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# A cache as an argument and in an output: the first name since transformers 5.24, the other one before.
CACHE_NAMES = ("cache", "past_key_values")


def version() -> tuple[int, int]:
    """Major and minor number of the installed transformers."""
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def changed(what: str) -> ValueError:
    """The error for an interface of transformers that is not the one that is known here."""
    import transformers

    return ValueError(
        f"transformers {transformers.__version__} {what}, as none of the releases does that fewtokens knows; install "
        "one that its requirements allow (pip install 'fewtokens[llm]')"
    )


def attribute(owner: Any, name: str) -> Any:
    """An attribute of an object of transformers.

    Raises:
        ValueError: it has none of this name.
    """
    value = getattr(owner, name, None)
    if value is None:
        raise changed(f"has no {name} in {type(owner).__name__}")
    return value


def cache_of(given: Any) -> Any | None:
    """The cache among the arguments of a model or in its output, under either name, or None."""
    if isinstance(given, Mapping):  # outputs are mappings too
        return next((given[name] for name in CACHE_NAMES if name in given and given[name] is not None), None)
    return next((value for name in CACHE_NAMES if (value := getattr(given, name, None)) is not None), None)


def layer_cache(inputs: Mapping[str, Any]) -> Any | None:
    """The cache that a decoder layer is given.

    Raises:
        ValueError: it is given none under a known name, though caches are in use.
    """
    if not any(name in inputs for name in CACHE_NAMES) and inputs.get("use_cache", True):
        raise changed(f"hands its decoder layers a cache under another name than {' or '.join(CACHE_NAMES)}")
    return cache_of(inputs)


def filled(cache: Any | None) -> bool:
    """Whether a cache holds columns of an earlier pass."""
    return cache is not None and int(cache.get_seq_length()) > 0


def check_parameters(function: Callable[..., Any], known: tuple[str, ...], who: str) -> None:
    """Raises a ValueError where a function of transformers takes what is not known here."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    takes = [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind not in kinds]
    if other := [name for name in takes if name not in known]:
        raise changed(f"has {who} take {', '.join(other)}")


def unwrapped(model: Any) -> Any:
    """The model of transformers inside what peft, torch.compile, DataParallel and DDP put around it.

    Adapters stay in its layers and act. A compiled model is taken as it was before: hooks that come later would not be
    in what was compiled.

    Raises:
        ValueError: peft's adapters are of a kind that acts on prompts, outside of the layers.
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._orig_mod
        elif _is_peft(model):
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    f"adapters of the kind {model.active_peft_config.peft_type} put virtual tokens before the prompt, "
                    "which is made here; adapters inside the layers (LoRA and its like) work"
                )
            model = model.get_base_model()
        else:
            return model


def _is_peft(model: Any) -> bool:
    # Whoever has such a model has imported peft.
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)
