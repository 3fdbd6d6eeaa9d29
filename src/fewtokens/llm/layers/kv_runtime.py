"""Runs columns through a language model against slots of keys and values, for methods of `fewtokens.core.kv_memory`.

The model is unchanged: for one pass its rotary embedding is the identity, and its attention is a function that takes
the keys before rotation, stores them, and rotates those of slots and columns together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.kv_memory import COUNTED, INDEX, KIND, SUMMARY, Columns, KVMemory, KVSlots, position_ids
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.interface import unsupported
from fewtokens.llm.layers.attention import rotate
from fewtokens.llm.layers.hooks import language_model
from fewtokens.llm.layers.kinds import LayerKinds
from fewtokens.llm.layers.summary_tokens import SummaryTokens, summary_embedding

_NAME = "fewtokens_slots"
# The largest difference of logits, relative to their norm, between the model and its pass here.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}


class _Pass:
    """One pass through the layers.

    Args:
        context: the slots that columns attend to.
        rope: cos and sin of slots and columns, [1,m+n,d] each.
        mask: bool [n,m+n], or None if every column is seen.
        rates: whether to sum the attention to each slot.
    """

    def __init__(self, context: KVSlots, rope: tuple[Tensor, Tensor], mask: Tensor | None, rates: bool) -> None:
        self.context, self.rope, self.mask, self.rates = context, rope, mask, rates
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.ratings: list[Tensor] = []

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
        softcap: float | None = None, s_aux: Tensor | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """The attention function of the layers, on unrotated queries [1,heads,n,d] and keys [1,groups,n,d]."""
        if softcap is not None or s_aux is not None:
            raise unsupported(
                "its attention has sinks or a bound of logits, which a memory of keys does not account for"
            )
        layer = module.layer_idx
        self.keys[layer], self.values[layer] = key[0], value[0]
        held = len(self.context)
        if held:
            key = torch.cat([self.context.keys[layer][None], key], 2)
            value = torch.cat([self.context.values[layer][None], value], 2)
        cos, sin = self.rope
        query, key = rotate(query, cos[:, held:], sin[:, held:]), rotate(key, cos, sin)
        grouped = query.shape[1] != key.shape[1]
        if self.rates:
            self.ratings.append(self._rate(query, key, scaling or query.shape[-1] ** -0.5)[:held])
        out = F.scaled_dot_product_attention(query, key, value, self.mask, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None

    def _rate(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """The attention to each slot and column, the mean over heads and queries, float32 [m+n]."""
        score = query.float().unflatten(1, (key.shape[1], -1)) @ key.float()[:, :, None].transpose(3, 4) * scaling
        if self.mask is not None:
            score = score.masked_fill(~self.mask, -torch.inf)
        return score.softmax(-1).mean((0, 1, 2, 3))


class _Passes(threading.local):
    """The passes that are running in a thread; transformers would keep an attention function, and its tensors, forever.

    Attributes:
        running: the current one is last.
    """

    def __init__(self) -> None:
        self.running: list[_Pass] = []


_PASSES = _Passes()


class KVRuntime:
    """Runs a language model against slots.

    Args:
        model: a model whose layers all attend to all columns.
        backend: its family.
        method: the memory.

    Attributes:
        summary: the embedding [D] of columns of the kind `SUMMARY`; None if they have their own.
        projections: the projections of these columns instead of the model's own, by name.

    Raises:
        ValueError: the layers are of another kind, or the logits of a pass here differ from those of the model.
    """

    def __init__(self, model: Any, backend: Backend, method: KVMemory) -> None:
        self.model, self.method, self.causal_lm = model, method, backend.causal_lm(model)
        self.text = language_model(model)
        self.config = self.text.config
        self.limit = backend.context_length(model)
        self.axes = backend.axes(model)
        self.absolute = method.positions == "absolute"
        self.summary: Tensor | None = None
        self.projections: Mapping[str, nn.Module] = {}
        kinds = LayerKinds.of(self.text)
        if not all(kinds.attends) or any(kinds.windows):
            raise ValueError(
                f"{method.name} requires attention to all columns in every layer, which {backend.name} lacks"
            )
        self._check(backend)
        if method.summarizes:
            self.summary = summary_embedding(model)
            if method.checkpoint is not None:
                self.use(SummaryTokens(model).restore(method.checkpoint))

    def use(self, summaries: SummaryTokens) -> None:
        """Sets the embedding and the projections of summary tokens."""
        self.summary, self.projections = summaries.embedding, summaries.projections

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings of ids [n], [n,D]."""
        return self.model.get_input_embeddings()(ids.to(self.device))

    def empty(self) -> KVSlots:
        """No slots."""
        return KVSlots([], [], torch.zeros(0, COUNTED + 1, dtype=torch.float64))

    def run(
        self,
        columns: Columns,
        context: KVSlots,
        visible: Tensor | None = None,
        *,
        first: int = 0,
        offset: int | None = None,
        rates: bool = False,
    ) -> tuple[KVSlots, Tensor, Tensor | None]:
        """Processes columns, see `Run`.

        Args:
            first: the index of the first column in the stream.
            offset: where the text after the video begins, see `position_ids`.
            rates: also return the attention to each slot.

        Returns:
            The slots of the columns, the outputs of the last layer [n,D], and the attention to each of the m slots,
            float32 [m], the mean over columns, heads and layers, or None.

        Raises:
            ValueError: there are more positions than the context of the model has.
        """
        info = columns.info.clone()
        info[:, INDEX] = first + info[:, COUNTED].cumsum(0) - info[:, COUNTED]
        ids = position_ids(torch.cat([context.info, info]), self.axes, absolute=self.absolute, offset=offset)
        self.check_positions(int(ids.max()) + 1)
        embeddings = columns.embeddings
        if self.summary is not None:
            summary = (info[:, KIND] == SUMMARY)[:, None].to(embeddings.device)
            embeddings = torch.where(summary, self.summary.to(embeddings.dtype), embeddings)
        run, hidden = self._pass(embeddings, ids, context, visible, info, rates)
        order = range(len(self.text.layers))
        slots = KVSlots([run.keys[layer] for layer in order], [run.values[layer] for layer in order], info)
        return slots, hidden, torch.stack(run.ratings).mean(0) if rates else None

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of outputs of the last layer [n,D], [n,V]."""
        return self.causal_lm.get_output_embeddings()(hidden)

    def check_positions(self, end: int) -> None:
        """Raises a ValueError if positions up to `end` - 1 are beyond the context of the model."""
        if self.limit is None or end <= self.limit:
            return
        remedy = "positions='contiguous'" if self.absolute else "a smaller memory"
        raise ValueError(
            f"{self.method.name}: position {end - 1} is beyond the context of this model, {self.limit}; use {remedy}"
        )

    def _pass(
        self, embeddings: Tensor, ids: Tensor, context: KVSlots, visible: Tensor | None, info: Tensor, rates: bool
    ) -> tuple[_Pass, Tensor]:
        n, held = len(embeddings), ids.shape[1] - len(embeddings)
        ids = ids[:, None].to(self.device, torch.float32) if self.axes > 1 else ids.to(self.device, torch.float32)
        # Not the call, whose hook would act.
        rope = self.text.rotary_emb.forward(embeddings[None], ids)
        mask = None if visible is None else visible.to(self.device)
        if mask is None and n > 1:
            mask = torch.ones(n, held + n, dtype=torch.bool, device=self.device).tril(held)
        run = _Pass(context, rope, mask, rates)
        with self._attached(run, info):
            hidden = self.text(inputs_embeds=embeddings[None], position_ids=ids[..., held:].long(), use_cache=False)
        return run, hidden.last_hidden_state[0]

    @contextmanager
    def _attached(self, run: _Pass, info: Tensor) -> Iterator[None]:
        """Makes the layers attend by `run`."""
        from transformers import AttentionInterface

        AttentionInterface.register(_NAME, _attend)
        own = self.config._attn_implementation
        with ExitStack() as stack:
            _PASSES.running.append(run)
            stack.callback(_PASSES.running.pop)
            stack.callback(setattr, self.config, "_attn_implementation", own)
            self.config._attn_implementation = _NAME
            stack.enter_context(self.text.rotary_emb.register_forward_hook(_identity))
            summaries = (info[:, KIND] == SUMMARY).nonzero().squeeze(1).to(self.device)
            if len(summaries) and self.projections:
                for name, copy in self.projections.items():
                    original = self.text.get_submodule(name)
                    stack.enter_context(original.register_forward_hook(partial(_project, copy, summaries)))
            yield

    @torch.no_grad()
    def _check(self, backend: Backend) -> None:
        """Compares the logits of some ids with those of the model."""
        if not hasattr(self.text, "rotary_emb"):
            raise self._refusal(backend, "there is no rotary embedding")
        embeddings = self.embed(torch.arange(4) + 3)
        ids = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 4], [0, 1, 3, 2]])[: self.axes]
        positions = ids[:, None] if self.axes > 1 else ids
        expected = self.causal_lm(
            inputs_embeds=embeddings[None], position_ids=positions.to(self.device), use_cache=False
        ).logits[0]  # fmt: skip
        try:
            _, hidden = self._pass(embeddings, ids, self.empty(), None, torch.zeros(4, 1), rates=False)
            error = (self.logits(hidden) - expected).float().norm() / expected.float().norm()
        except (AttributeError, KeyError, RuntimeError, TypeError) as problem:
            raise self._refusal(backend, type(problem).__name__) from problem
        if not float(error) < _TOLERANCE.get(embeddings.dtype, 0.05):
            raise self._refusal(backend, f"logits differ by {float(error):.1e}")

    def _refusal(self, backend: Backend, reason: str) -> ValueError:
        return ValueError(
            f"{self.method.name} cannot hold the keys of {backend.name} before their rotation ({reason}); use a memory "
            "before the language model, such as 'moviechat'"
        )


def _attend(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return _PASSES.running[-1].attend(*args, **kwargs)


def _identity(module: Any, args: Any, output: Any) -> tuple[Tensor, Tensor]:
    cos, sin = output
    return torch.ones_like(cos), torch.zeros_like(sin)


def _project(copy: nn.Module, columns: Tensor, module: Any, args: Any, output: Tensor) -> Tensor:
    """Replaces the output of a projection by that of its copy in some columns."""
    return output.index_copy(1, columns, copy(args[0].index_select(1, columns)))
