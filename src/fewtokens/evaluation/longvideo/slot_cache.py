"""Questions in words about a stream that a `KVMemory` holds in the key-value cache of a `SlotReader`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewtokens.core.kv_memory import INDEX, RAW, Columns, KVMemory, KVSlots, KVState, slot_info
from fewtokens.evaluation.longvideo.language import END, LONGEST, Question, Reads, SlotReader

if TYPE_CHECKING:
    from transformers import DynamicCache


class SlotCache:
    """The frames of one video in the key-value cache of a reader.

    A frame is one column, embedded as a slot of a memory before the language model is, and reads the columns that are
    held. All of them have the position 0, at which keys are not rotated.

    Args:
        reader: the language model.
        memory: which columns are held, and which a question reads.

    Attributes:
        state: what is held.
    """

    def __init__(self, reader: SlotReader, memory: KVMemory) -> None:
        self.reader, self.memory, self.llm = reader, memory, reader.llm.base_model
        self.state = KVState(KVSlots([], [], slot_info(RAW, 0)))

    @torch.inference_mode()
    def push(self, features: Tensor, seconds: Tensor) -> None:
        """Adds frames [T,C] at `seconds` [T], sequentially."""
        spans = seconds[None, :, None].expand(-1, -1, 3)
        embedded = self.reader.embed_slots(Reads(features[None], spans, spans[..., 0] >= 0))[0]
        for frame, second in zip(embedded, seconds.tolist(), strict=True):
            columns = Columns(frame[None], slot_info(RAW, 1, second=second, step=self.state.steps))
            self.memory.write(columns, self.state, self._run)
            self.state.steps += 1

    @torch.inference_mode()
    def answer(self, question: Question) -> tuple[list[str], int]:
        """Answers a question by greedy decoding.

        Returns:
            The words of the answer, up to the end or the `LONGEST`, and the number of columns that it reads.
        """
        vocabulary, output = self.reader.vocabulary, self.reader.llm.get_output_embeddings()
        ids, second = vocabulary.encode(question.words), torch.tensor([[question.second]])
        slots = self.memory.read(self.state, partial(self._rate, ids, second))
        answer: list[str] = []
        while len(answer) < LONGEST:
            read, _ = self._process(self._embed(ids, second), slots, position=1)
            answer.append(vocabulary.words[int(output(read.last_hidden_state[0, -1]).argmax())])
            if answer[-1] == END:
                return answer[:-1], len(slots)
            ids = [*ids, *vocabulary.encode(answer[-1:])]
        return answer, len(slots)

    def _embed(self, ids: list[int], second: Tensor) -> Tensor:
        return self.reader.embed_words(torch.tensor(ids)[None, None], second)[0, 0]

    def _rate(self, ids: list[int], second: Tensor, slots: KVSlots) -> Tensor:
        """The attention of a question to each slot, the mean over its words, heads and layers."""
        own = self.llm.config._attn_implementation
        self.llm.set_attn_implementation("eager")  # the only one that returns the attention
        try:
            read, _ = self._process(self._embed(ids, second), slots, position=1, output_attentions=True)
        finally:
            self.llm.set_attn_implementation(own)
        return torch.stack(read.attentions).mean((0, 1, 2, 3))[: len(slots)]

    def _run(self, columns: Columns, context: KVSlots, visible: Tensor | None = None) -> KVSlots:
        n, m, info = len(columns), len(context), columns.info.clone()
        info[:, INDEX] = self.state.columns + torch.arange(n)
        self.state.columns += n
        _, cache = self._process(columns.embeddings, context, position=None, visible=visible)
        keys, values = ([getattr(layer, name)[0, :, m:] for layer in cache.layers] for name in ("keys", "values"))
        return KVSlots(keys, values, info)

    def _process(
        self, embedded: Tensor, context: KVSlots, *, position: int | None, visible: Tensor | None = None, **options: Any
    ) -> tuple[Any, DynamicCache]:
        """Processes columns [n,D] after slots.

        Args:
            position: of the first column; the others follow. None for 0 of all.
            visible: bool [n,m+n], which slots and columns each attends to; None for all up to itself.
        """
        from transformers import DynamicCache

        n, m, cache = len(embedded), len(context), DynamicCache()
        for layer, (key, value) in enumerate(zip(context.keys, context.values, strict=True)):
            cache.update(key[None], value[None], layer)
        seen = torch.ones(n, m + n, dtype=torch.bool).tril(m) if visible is None else visible
        positions = torch.zeros(n, dtype=torch.long) if position is None else torch.arange(position, position + n)
        output = self.llm(
            inputs_embeds=embedded[None], position_ids=positions[None], past_key_values=cache, use_cache=True,
            attention_mask=torch.zeros(1, 1, n, m + n).masked_fill(~seen, torch.finfo(torch.float32).min), **options,
        )  # fmt: skip
        return output, cache
