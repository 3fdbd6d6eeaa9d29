"""The trainable part of a `KVMemory` with summary tokens: one embedding, and copies of the q, k and v projections."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.llm.interface import unsupported
from fewtokens.llm.layers.hooks import language_model

_KIND = "summary tokens"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def summary_embedding(model: Any) -> Tensor:
    """The embedding [D] of the end-of-sequence token, with which a summary token starts.

    Raises:
        ValueError: the model has no such token.
    """
    for config in (language_model(model).config, model.generation_config):
        stop = getattr(config, "eos_token_id", None)
        if stop is not None:
            return model.get_input_embeddings().weight[stop if isinstance(stop, int) else stop[0]]
    raise ValueError("the model has no end-of-sequence token, whose embedding is that of a summary token")


class SummaryTokens(nn.Module):
    """An embedding and projections for summary tokens, equal to the model's own before training.

    The queries of the last layer have no effect on what a memory holds, and are not trained.

    Args:
        model: a video language model whose layers have `self_attn` with `q_proj`, `k_proj` and `v_proj`.

    Attributes:
        names: the projections that are replaced, by their names in the language model.

    Raises:
        ValueError: the layers have other projections, or there is no end-of-sequence token.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        text = language_model(model)
        self.embedding = nn.Parameter(summary_embedding(model).detach().clone())
        self.names = [f"layers.{n}.self_attn.{name}" for n in range(len(text.layers)) for name in _PROJECTIONS]
        try:
            originals = [text.get_submodule(name) for name in self.names]
        except AttributeError as error:
            raise unsupported(f"its attention has no separate projections ({error})") from None
        self.copies = nn.ModuleList(deepcopy(original).requires_grad_(True) for original in originals)
        # Nothing reads what a summary attends to in the last layer.
        self.projections[self.names[-len(_PROJECTIONS)]].requires_grad_(False)

    @property
    def projections(self) -> dict[str, nn.Module]:
        """The copies by name."""
        return dict(zip(self.names, self.copies, strict=True))

    def save(self, path: str | Path) -> Path:
        """Writes the weights to a safetensors file, atomically."""
        return files.save(path, _KIND, {name: value.detach() for name, value in self.state_dict().items()}, {})

    @torch.no_grad()
    def restore(self, path: str | Path) -> SummaryTokens:
        """Loads the weights that `save` wrote.

        Raises:
            ValueError: the file does not exist, is corrupt, or is of another model.
        """
        tensors, _ = files.load(path, _KIND)
        own = {name: value.shape for name, value in self.state_dict().items()}
        if {name: value.shape for name, value in tensors.items()} != own:
            raise ValueError(f"{path}: the summary tokens are of a model with other layers")
        self.load_state_dict(tensors)
        return self
