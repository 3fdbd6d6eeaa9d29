"""What the processors of all models share: placeholders by the contract, and identities that contain the spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm.multimodal.processing import PromptUpdateDetails

from fewtokens.core.grid import Grid
from fewtokens.serve.contract import planned
from fewtokens.serve.vllm.settings import KEY, identity_of


class FewTokensProcessor:
    """A mixin, before the processor of a model in the bases of a class."""

    info: Any
    # Rows after the cells of a video that are not cells, such as a newline.
    tail = 0

    def grid(self, item: Any) -> Grid:
        """The grid of a processed video, a dict of fields with `data`."""
        raise NotImplementedError

    def placeholder(self) -> int:
        """The id that stands for a row of a video."""
        return int(self.info.get_hf_config().video_token_id)

    def layout(self, ids: list[int], placeholder: int, count: int) -> Any:
        """The ids of a video with `count` placeholders instead of those in `ids`."""
        first = ids.index(placeholder)
        return [*ids[:first], *[placeholder] * count, *(token for token in ids[first:] if token != placeholder)]

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        identity = identity_of(self.info.ctx.model_config)
        if identity is None:
            return updates

        def shorten(update: Any) -> Any:
            def content(index: int) -> Any:
                stock = update.content(index) if callable(update.content) else update.content
                ids = stock.full if isinstance(stock, PromptUpdateDetails) else stock
                count = planned(identity["spec"], self.grid(out_mm_kwargs["video"][index])) + self.tail
                return self.layout(list(ids), self.placeholder(), count)

            return replace(update, replacement=content)

        return [shorten(update) if update.modality == "video" else update for update in updates]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Adds the spec and the version to what identifies a video in all caches."""
        if KEY in inputs.hf_processor_mm_kwargs:
            raise ValueError("the spec of fewtokens is that of the engine; it cannot be set in a request")
        if identity := identity_of(self.info.ctx.model_config):
            inputs = replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEY: identity})
        return super()._get_mm_hashes(inputs)  # type: ignore[misc]
