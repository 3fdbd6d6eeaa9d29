"""Speculative decoding: a draft that sees few visual tokens proposes, the model with all of them decides.

    out = speculate(model, inputs, "tome(keep=0.05)", max_new_tokens=64)
    text = tokenizer.decode(out.tokens)
    out.accepted_per_pass  # the output is that of the model itself, in fewer passes

The law of acceptance is that of Leviathan et al. (arXiv 2211.17192). Drafts with compressed visual tokens are from
FLASH (arXiv 2505.12728), whose trained draft proposes several tokens in one pass. Here any model is the draft, by
default the model itself with a shortened prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import Methods, as_pipeline
from fewtokens.llm.compress import compress, compress_each
from fewtokens.llm.interface import cache_name, cache_of, drop_last, is_filled, unwrap
from fewtokens.llm.prompt_editor import Compressed

# Inputs with a value for each column of a prompt, in their last dimension.
_BY_COLUMN = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids"}


@dataclass
class Speculation:
    """An answer by speculative decoding.

    Attributes:
        tokens: int64 [n], the new tokens; the last one ends the sequence if the model ended it.
        accepted: the number of proposed tokens that each pass of the model accepted.
        proposed: the number of tokens that each pass checked.
    """

    tokens: Tensor
    accepted: list[int] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)

    __repr__ = shape_repr

    @property
    def acceptance(self) -> float:
        """The fraction of proposed tokens that were accepted; 0 if none was proposed."""
        return sum(self.accepted) / max(1, sum(self.proposed))

    @property
    def accepted_per_pass(self) -> float:
        """The mean number of tokens that a pass of the model added, at least 1; 0 if only the prompt was read."""
        return (sum(self.accepted) + len(self.accepted)) / max(1, len(self.accepted))


@torch.no_grad()
def speculate(
    model: Any,
    inputs: Any,
    spec: Methods,
    *,
    draft: Any = None,
    draft_inputs: Any = None,
    num_draft: int = 4,
    max_new_tokens: int = 128,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Speculation:
    """Generates with a model that sees all visual tokens, helped by a draft that sees few of them.

    Greedy decoding returns the tokens that the model generates alone, up to ties within rounding, without the other
    settings of its `generation_config` such as a repetition penalty; sampling draws from the model's distribution, of
    all tokens. Whether it is faster depends on the draft: with the model itself as the draft only its
    cache is smaller.

    Args:
        model: a model that takes precomputed features, as for `compress`, whose cache can be shortened: with full
            attention in all layers.
        inputs: one prompt, as for `compress`.
        spec: the methods that shorten the draft's prompt, see `compress`.
        draft: another model with the same tokens. Default: `model`.
        draft_inputs: its prompt. Default: `inputs`; if the draft is the model, it is encoded once for both, in full,
            unless methods act inside the vision tower.
        num_draft: the number of tokens that the draft proposes before each pass of the model, at least 1.
        max_new_tokens: the maximum number of new tokens.
        do_sample: sample instead of taking the most likely token.
        temperature: of sampling, above 0.
        seed: of sampling.
        options: layout, positions, items and, for the draft, images of `compress`.

    Raises:
        ValueError: as `compress`; several prompts; a cache that cannot be shortened; or models with different tokens.
    """
    if num_draft < 1 or max_new_tokens < 1:
        raise ValueError(f"num_draft and max_new_tokens must be at least 1, got {num_draft} and {max_new_tokens}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; do_sample=False takes the most likely token")
    model = unwrap(model)
    draft = model if draft is None else unwrap(draft)
    draft_inputs = inputs if draft_inputs is None else draft_inputs
    if draft is model and draft_inputs is inputs:
        prompts = _shared(model, inputs, spec, options)
    else:
        prompts = compress(model, inputs, "", **_whole(options)), compress(draft, draft_inputs, spec, **options)
    target, helper = _Stream(model, prompts[0]), _Stream(draft, prompts[1])
    generator = torch.Generator(device=model.device).manual_seed(seed)
    choose = _Choice(temperature if do_sample else None, generator)
    stop = _stop_tokens(model)
    helper_logits = helper.start()
    new = [choose.token(target.start())]
    if helper_logits.shape[-1] != target.vocabulary:
        raise ValueError(
            f"the draft has {helper_logits.shape[-1]} tokens, the model {target.vocabulary}; use models with the same "
            "tokenizer"
        )
    result = Speculation(torch.empty(0, dtype=torch.int64))
    while len(new) < max_new_tokens and new[-1] not in stop:
        count = min(num_draft, max_new_tokens - len(new))
        drafted, draft_logits = _propose(helper, new, count, choose)
        logits = target.extend([new[-1], *drafted])
        accepted, token = choose.verify(logits, draft_logits, drafted)
        result.accepted.append(accepted)
        result.proposed.append(count)
        ended = next((index for index, token in enumerate(drafted[:accepted]) if token in stop), None)
        new += [*drafted[:accepted], token] if ended is None else drafted[: ended + 1]
        target.shorten(len(new) - 1)
        helper.shorten(min(helper.length, len(new) - 1))
    result.tokens = torch.tensor(new[:max_new_tokens], device=model.device)
    return result


def _shared(model: Any, inputs: Any, spec: Methods, options: dict[str, Any]) -> Sequence[Compressed]:
    """The prompt with all visual tokens, and the draft's, of the same features unless methods act inside the tower."""
    pipeline = as_pipeline(spec, model)  # learned methods are built once
    whole = _whole(options)
    if "tower" in options or whole != options or any(method.stage == "encoder" for method in pipeline.methods):
        return compress(model, inputs, "", **whole), compress(model, inputs, pipeline, **options)
    return compress_each(model, inputs, ["", pipeline], tower="full", **options)


def _whole(options: dict[str, Any]) -> dict[str, Any]:
    """The options for the prompt with all visual tokens, also those of images."""
    return {name: value for name, value in options.items() if name != "images"}


def _propose(helper: _Stream, new: Sequence[int], count: int, choose: _Choice) -> tuple[list[int], Tensor]:
    """The `count` tokens that a draft proposes after the tokens `new`, and its logits for them, [count,V]."""
    drafted: list[int] = []
    rows = []
    feed = list(new[helper.length :])
    for _ in range(count):
        rows.append(helper.extend(feed)[-1])
        drafted.append(choose.token(rows[-1]))
        feed = drafted[-1:]
    return drafted, torch.stack(rows)


class _Stream:
    """A model with the cache of one prompt and of the tokens after it.

    Attributes:
        length: the number of tokens after the prompt in the cache.
        vocabulary: the number of logits.
    """

    def __init__(self, model: Any, prompt: Compressed) -> None:
        self.model, self.inputs = model, dict(prompt.inputs)
        if len(self.inputs["input_ids"]) != 1:
            raise ValueError(
                f"speculative decoding takes one prompt, got {len(self.inputs['input_ids'])}; the number of accepted "
                "tokens would differ between them"
            )
        if is_filled(cache_of(self.inputs)):
            raise ValueError("speculative decoding starts with an empty cache; pass the whole conversation")
        mask = self.inputs.get("attention_mask")
        if mask is not None and mask.ndim == 2 and not bool(mask.all()):  # of a prompt without a video
            for name in _BY_COLUMN & self.inputs.keys():
                self.inputs[name] = self.inputs[name][..., mask[0].bool()]
        axes = backend_of(model).axes(model)
        if axes > 1 and self.inputs.get("position_ids") is None:
            # The model would continue from those of the last prompt that it has read.
            count = torch.arange(self.inputs["input_ids"].shape[1], device=self.inputs["input_ids"].device)
            self.inputs["position_ids"] = count.expand(1 + axes, 1, -1)
        self.length = self.vocabulary = 0

    def start(self) -> Tensor:
        """Reads the prompt; returns the logits of the next token, [V]."""
        out = self.model(**self.inputs, use_cache=True)
        self.cache = cache_of(out)
        self.columns = self.inputs["input_ids"].shape[1]
        self.positions = self.inputs.get("position_ids")
        self.vocabulary = out.logits.shape[-1]
        return out.logits[0, -1].float()

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Reads further tokens; returns the logits after each, [m,V]."""
        ids = torch.tensor([list(tokens)], device=self.inputs["input_ids"].device)
        total = self.columns + self.length + len(tokens)
        inputs = {"input_ids": ids, "attention_mask": ids.new_ones(1, total), cache_name(self.model): self.cache}
        if self.positions is not None:
            # Text continues from the last column of the prompt, one step on every axis.
            inputs["position_ids"] = self.positions[..., -1:] + torch.arange(
                self.length + 1, self.length + 1 + len(tokens), device=ids.device
            )
        self.length += len(tokens)
        return self.model(**inputs, use_cache=True).logits[0].float()

    def shorten(self, length: int) -> None:
        """Removes the tokens after the first `length` from the cache."""
        drop_last(self.cache, self.length - length)
        self.length = length


class _Choice:
    """How tokens are chosen: the most likely one, or by sampling at a temperature."""

    def __init__(self, temperature: float | None, generator: torch.Generator) -> None:
        self.temperature, self.generator = temperature, generator

    def token(self, logits: Tensor) -> int:
        """A token for logits [V]."""
        if self.temperature is None:
            return int(logits.argmax())
        return int(torch.multinomial(self._probs(logits), 1, generator=self.generator))

    def verify(self, logits: Tensor, draft_logits: Tensor, drafted: Sequence[int]) -> tuple[int, int]:
        """The number of accepted tokens of k `drafted` ones, and the token after them.

        Args:
            logits: of the model, [k+1,V].
            draft_logits: of the draft, [k,V].
        """
        tokens = torch.tensor(drafted, device=logits.device)
        if self.temperature is None:
            best = logits.argmax(1)
            accepted = int((best[:-1] == tokens).long().cumprod(0).sum())
            return accepted, int(best[accepted])
        p, q = self._probs(logits)[None], self._probs(draft_logits)[None]
        count, token = verify(p, q, tokens[None], self.generator)
        return int(count), int(token)

    def _probs(self, logits: Tensor) -> Tensor:
        assert self.temperature is not None
        return (logits / self.temperature).softmax(-1)


def verify(p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Accepts or rejects drafted tokens so that the result is distributed as the model's own samples.

    A token x is accepted with probability min(1, p(x) / q(x)). The first rejected one is replaced by a sample of the
    positive part of p - q, normalized; if all are accepted, one more token is sampled from p.

    Args:
        p: probabilities of the model, [N,k+1,V].
        q: those of the draft, [N,k,V].
        drafted: int64 [N,k], samples of q.
        generator: of the random numbers.

    Returns:
        The number of accepted tokens, int64 [N], and the token after them, int64 [N].
    """
    N, k, _ = q.shape
    chance = p[:, :k].gather(2, drafted[..., None]) / q.gather(2, drafted[..., None]).clamp(min=1e-30)
    uniform = torch.rand(N, k, generator=generator, device=p.device, dtype=p.dtype)
    accepted = (uniform < chance.squeeze(2)).long().cumprod(1).sum(1)
    at = accepted[:, None, None]
    here = p.gather(1, at.expand(-1, 1, p.shape[2])).squeeze(1)
    rest = (here - F.pad(q, (0, 0, 0, 1)).gather(1, at.expand(-1, 1, q.shape[2])).squeeze(1)).clamp(min=0)
    # Equal distributions never reject, except by rounding.
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, here)
    return accepted, torch.multinomial(rest, 1, generator=generator).squeeze(1)


def _stop_tokens(model: Any) -> set[int]:
    """The tokens that end a sequence."""
    stop = getattr(model.generation_config, "eos_token_id", None)
    return set() if stop is None else {stop} if isinstance(stop, int) else set(stop)
