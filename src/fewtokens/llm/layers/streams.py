"""Two streams of visual tokens in a `ComposedVideoLLM`: few in the prompt, all of them outside the self-attention.

    frames -> encoder -> projector -> methods -> few tokens in the prompt (fast)
                                  -> all tokens, keys and values of cross-attention in some decoder layers (slow)

The presets differ in which rows read the slow tokens, and how:

    slow_fast    text rows add gated cross-attention with the layer's own queries
    crosslmm     fast tokens read the slow ones before a layer, text rows after it
    vista_llama  no slow tokens: text rows see the fast ones at the same distance everywhere
    iva          text rows add gated cross-attention to the frames that each finds most relevant
    vamba        text rows average self-attention and cross-attention; a Mamba-2 mixer updates the slow tokens

They are modules with forward hooks on the decoder layers. The slow tokens do not depend on the text, so that their keys
and values are computed once per prompt, before the first layer, and stay with the cache for the answer and later turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewtokens.core.plan import take_rows
from fewtokens.core.shapes import shape_repr
from fewtokens.llm.features import layout_of
from fewtokens.llm.interface import cache_of, unsupported
from fewtokens.llm.layers.attention import rotate
from fewtokens.llm.layers.cache import to_slots
from fewtokens.llm.layers.mamba2 import Mamba2

_ATTRIBUTE = "_streams_by_fewtokens"
# The argument of decoder layers that carries a `Pass`. As an argument it also reaches recomputed layers.
_ARGUMENT = "streams"
# The submodules of decoder layers and of their attention that streams account for.
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"}


@dataclass
class Prompt:
    """The slow tokens of a batch of prompts.

    Attributes:
        slow: [B,S,D], all visual tokens of each prompt, at the hidden size of the language model.
        visual: bool [B,L], the columns of the prompt that contain fast tokens.
        frames: T, the number of frames of each video; the slow tokens of a frame are next to one another.
        entries: what each block reads, such as keys and values [B,heads,S,d]; empty before the first pass.
    """

    slow: Tensor
    visual: Tensor
    frames: int = 1
    entries: list[list[Tensor]] = field(default_factory=list)
    _repeated: Prompt | None = None

    __repr__ = shape_repr

    def repeat(self, rows: int) -> Prompt:
        """Repeats each prompt (beams) until there are `rows` rows; the result is stored."""
        count = len(self.slow)
        if rows == count:
            return self
        if rows % count:
            raise ValueError(f"the cache belongs to {count} prompts with a video, not to {rows}")
        if self._repeated is None or len(self._repeated.slow) != rows:
            times = rows // count
            self._repeated = Prompt(
                self.slow.repeat_interleave(times, 0),
                self.visual.repeat_interleave(times, 0),
                self.frames,
                [[tensor.repeat_interleave(times, 0) for tensor in entry] for entry in self.entries],
            )
        return self._repeated


@dataclass
class Pass:
    """One pass of a prompt, or of tokens after it, through the language model.

    Attributes:
        prompt: the slow tokens.
        first: the number of columns in the cache before it.
        visual: bool [B,n], which of its rows are fast tokens.
        text: int64 [B,m], the other rows, right-aligned, -1 is padding; None if those are all rows.
        fast: int64 [B,m], the rows of fast tokens; None if there are none.
        real: bool [B,first+n], columns that are not padding; None if there is no padding.
        reached: the blocks whose layer has run.
    """

    prompt: Prompt
    first: int
    visual: Tensor
    text: Tensor | None
    fast: Tensor | None
    real: Tensor | None
    reached: set[int] = field(default_factory=set)

    __repr__ = shape_repr


def take(rows: Tensor, slots: Tensor | None) -> Tensor:
    """Rows [B,m,D] of rows [B,n,D]; arbitrary at padding."""
    return rows if slots is None else take_rows(rows, slots.clamp(min=0))


def put(rows: Tensor, slots: Tensor | None, values: Tensor) -> Tensor:
    """Replaces rows [B,n,D] at `slots` with values [B,m,D]."""
    values = values.to(rows.dtype)
    if slots is None:
        return values
    real = slots >= 0
    row = torch.arange(len(rows), device=rows.device)[:, None].expand_as(real)
    return rows.index_put((row[real], slots[real]), values[real])


@dataclass
class Attention:
    """The self-attention of a layer, for a block that reads its inputs.

    Attributes:
        module: the attention of transformers.
        hidden: [B,n,D], its input, after the layer's norm.
        rope: cos and sin [B or 1,n,d].
        cache: the cache of the model, or None.
    """

    module: Any
    hidden: Tensor
    rope: tuple[Tensor, Tensor]
    cache: Any

    __repr__ = shape_repr

    def rope_of(self, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        """cos and sin [B,m,d] of some rows."""
        cos, sin = (take(part.expand(len(self.hidden), -1, -1), slots) for part in self.rope)
        return cos, sin


class Block(nn.Module):
    """The part of a preset in one decoder layer; its methods return what they receive, unless a preset overrides them.

    Args:
        layer: the decoder layer; new projections start as copies of those of its attention.
        last: whether no later layer has a block.

    Class attributes:
        every: the default distance between layers with a block; the first is layer 0.
    """

    every: ClassVar[int] = 1

    def __init__(self, layer: Any, *, last: bool) -> None:
        super().__init__()

    def read(self, layer: Any, slow: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns what the block reads of the slow tokens [B,S,D], and the slow tokens for the next block."""
        return [], slow

    def before(self, hidden: Tensor, layer: Any, entry: list[Tensor], current: Pass) -> Tensor:
        """Changes the input [B,n,D] of the layer."""
        return hidden

    def mix(self, mixed: Tensor, attention: Attention, entry: list[Tensor], current: Pass) -> Tensor:
        """Changes the concatenated heads [B,n,heads*d] of the self-attention, before its output projection."""
        return mixed

    def attended(self, output: Tensor, attention: Attention, entry: list[Tensor], current: Pass) -> Tensor:
        """Changes the output [B,n,D] of the self-attention."""
        return output

    def after(self, hidden: Tensor, layer: Any, entry: list[Tensor], current: Pass) -> Tensor:
        """Changes the output [B,n,D] of the layer."""
        return hidden


class SlowFast(Block):
    """heads += tanh(w h + b) tanh(g) cross-attention, on text rows; h are the heads of the self-attention.

    The queries are those of the self-attention, after rotation; keys and values come from new projections of the slow
    tokens, after the layer's norm. g is 0 at the start, so that the model is unchanged. Slow-Fast (arXiv 2504.01328),
    with the layers and the gate of its published code.
    """

    every: ClassVar[int] = 8

    def __init__(self, layer: Any, *, last: bool) -> None:
        super().__init__(layer, last=last)
        attention = layer.self_attn
        self.k_proj, self.v_proj = copy_linear(attention.k_proj), copy_linear(attention.v_proj)
        weight = attention.o_proj.weight
        self.gate = nn.Linear(weight.shape[1], 1, dtype=weight.dtype)
        self.strength = nn.Parameter(weight.new_zeros(1))

    def read(self, layer: Any, slow: Tensor) -> tuple[list[Tensor], Tensor]:
        return keys_and_values(layer, slow, self.k_proj, self.v_proj), slow

    def mix(self, mixed: Tensor, attention: Attention, entry: list[Tensor], current: Pass) -> Tensor:
        text = take(mixed, current.text)
        queries = heads(attention.module, "q", take(attention.hidden, current.text))
        queries = rotate(queries, *attention.rope_of(current.text))
        found = cross_attention(queries, *entry, scale=attention.module.scaling)
        gate = self.gate(text.to(self.gate.weight.dtype)).tanh() * self.strength.tanh()
        return put(mixed, current.text, text + gate * found)


class CrossAttention(nn.Module):
    """Attention of rows to slow tokens, without positions; its projections start as copies of a layer's own."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.q_proj, self.k_proj = copy_linear(attention.q_proj), copy_linear(attention.k_proj)
        self.v_proj, self.o_proj = copy_linear(attention.v_proj), copy_linear(attention.o_proj)

    def read(self, layer: Any, slow: Tensor) -> list[Tensor]:
        """Returns keys and values of the slow tokens [B,S,D]."""
        return keys_and_values(layer, slow, self.k_proj, self.v_proj)

    def forward(
        self, attention: Any, normed: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """Returns [B,m,D] for rows [B,m,D] after the norm of their layer, whose self-attention is `attention`.

        `mask`: bool [B,1,m,S], the slow tokens that each row sees; None for all.
        """
        queries = heads(attention, "q", normed.to(self.q_proj.weight.dtype), self.q_proj)
        return self.o_proj(cross_attention(queries, keys, values, scale=attention.scaling, mask=mask))


class CrossLMM(Block):
    """Fast tokens += tanh(g) cross-attention before the layer (V2V); text rows likewise after it (T2V).

    In the layer between them, text reads the updated fast tokens. g is 0 at the start, so that the model is unchanged.
    CrossLMM (arXiv 2505.17020); its code is not published, so that the layers, the gates and the start of the
    projections are those of this package.
    """

    every: ClassVar[int] = 4

    def __init__(self, layer: Any, *, last: bool) -> None:
        super().__init__(layer, last=last)
        self.fast, self.text = CrossAttention(layer), CrossAttention(layer)
        weight = layer.self_attn.o_proj.weight
        self.fast_gate, self.text_gate = (nn.Parameter(weight.new_zeros(1)) for _ in range(2))

    def read(self, layer: Any, slow: Tensor) -> tuple[list[Tensor], Tensor]:
        return [*self.fast.read(layer, slow), *self.text.read(layer, slow)], slow

    def before(self, hidden: Tensor, layer: Any, entry: list[Tensor], current: Pass) -> Tensor:
        if current.fast is None:
            return hidden
        rows = take(hidden, current.fast)
        found = self.fast(layer.self_attn, layer.input_layernorm(rows), *entry[:2])
        return put(hidden, current.fast, rows + self.fast_gate.tanh() * found)

    def after(self, hidden: Tensor, layer: Any, entry: list[Tensor], current: Pass) -> Tensor:
        rows = take(hidden, current.text)
        found = self.text(layer.self_attn, layer.input_layernorm(rows), *entry[2:])
        return put(hidden, current.text, rows + self.text_gate.tanh() * found)


class Iva(Block):
    """Text rows += tanh(g) cross-attention to the slow tokens of the `keep` frames that each finds most relevant.

    The relevance of a frame for a row is the mean logit of its tokens: the product of the row's queries, averaged over
    heads, and the mean key of the frame. So the attention itself trains the selection. g is 0 at the start, so that the
    model is unchanged. Interactive Visual Adapter (arXiv 2402.13546), whose code is not published: there the states of
    the instruction select the frames; here each row selects its own, so that rows do not depend on later ones.
    """

    every: ClassVar[int] = 4
    keep: int = 8

    def __init__(self, layer: Any, *, last: bool) -> None:
        super().__init__(layer, last=last)
        self.cross = CrossAttention(layer)
        self.gate = nn.Parameter(self.cross.o_proj.weight.new_zeros(1))

    def read(self, layer: Any, slow: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.cross.read(layer, slow), slow

    def attended(self, output: Tensor, attention: Attention, entry: list[Tensor], current: Pass) -> Tensor:
        normed = take(attention.hidden, current.text)
        seen = self.frames_of(attention.module, normed, entry[0], current.prompt.frames)
        found = self.cross(attention.module, normed, *entry, mask=seen)
        return put(output, current.text, take(output, current.text) + self.gate.tanh() * found)

    @torch.no_grad()
    def frames_of(self, module: Any, normed: Tensor, keys: Tensor, frames: int) -> Tensor | None:
        """Returns the slow tokens of the frames that rows [B,m,D] select, bool [B,1,m,S]; None for all.

        Args:
            module: the self-attention of the layer.
            keys: [B,groups,S,d], of the slow tokens of T frames.
        """
        if frames <= self.keep:
            return None
        queries = heads(module, "q", normed.to(self.cross.q_proj.weight.dtype), self.cross.q_proj)
        queries = queries.unflatten(1, (keys.shape[1], -1)).mean(2)
        means = keys.unflatten(2, (frames, -1)).mean(3)
        score = (queries.float() @ means.float().transpose(2, 3)).mean(1)  # [B,m,T]
        seen = torch.zeros_like(score, dtype=torch.bool).scatter(2, score.topk(self.keep, 2).indices, True)
        return seen.repeat_interleave(keys.shape[2] // frames, 2)[:, None]


class VistaLlama(Block):
    """Text rows see fast tokens without rotation, hence at the same distance everywhere, in one softmax with the text.

    The logit of text row i and column j is q[i] k[j] / sqrt(d), with rotated q and k if j is text and without rotation
    if j is a fast token. It adds no parameters and reads no slow tokens. Vista-LLaMA (arXiv 2312.08870); its sequential
    projector is the method `vista_llama`.
    """

    def mix(self, mixed: Tensor, attention: Attention, entry: list[Tensor], current: Pass) -> Tensor:
        module, hidden = attention.module, attention.hidden
        unrotated = heads(module, "k", hidden)
        queries = heads(module, "q", take(hidden, current.text))
        rotated = rotate(queries, *attention.rope_of(current.text))
        if attention.cache is None:
            keys = rotate(unrotated, *attention.rope_of(None))
            values = heads(module, "v", hidden)
        else:  # which the self-attention has updated
            stored = attention.cache.layers[module.layer_idx]
            keys, values = stored.keys, stored.values
        if current.fast is not None:
            earlier = entry if current.first else []
            entry[:] = [torch.cat([*earlier, unrotated], 2)]
        length = keys.shape[2]
        plain = F.pad(entry[0], (0, 0, 0, length - entry[0].shape[2]))
        visual = F.pad(current.prompt.visual[:, :length], (0, max(0, length - current.prompt.visual.shape[1])))
        fast = visual[:, None, :, None]
        # With zeros in one half of each key, the product is that of the other half.
        keys = torch.cat([keys.masked_fill(fast, 0), plain.masked_fill(~fast, 0)], -1)
        rows = torch.arange(mixed.shape[1], device=mixed.device).expand(len(mixed), -1)
        rows = (rows if current.text is None else current.text.clamp(min=0))[..., None] + current.first
        column = torch.arange(length, device=mixed.device)
        seen = column <= rows
        if current.real is not None:
            seen = seen & current.real[:, None]
        seen = seen | (column == rows)  # a softmax over nothing is NaN
        found = cross_attention(
            torch.cat([rotated, queries], -1), keys, values, scale=module.scaling, mask=seen[:, None]
        )
        return put(mixed, current.text, found)


class Vamba(Block):
    """Text rows: a self-attention + (1 - a) cross-attention; slow tokens += Mamba-2 of their norm, after the layer.

    a is one number per layer in [0, 1], .5 at the start, and the cross-attention starts as a copy of the
    self-attention. Vamba (arXiv 2503.11579), which has no fast tokens: here the methods choose how few there are. The
    slow tokens skip the MLP and do not depend on the text.
    """

    def __init__(self, layer: Any, *, last: bool) -> None:
        super().__init__(layer, last=last)
        self.cross = CrossAttention(layer)
        weight = self.cross.o_proj.weight
        self.share = nn.Parameter(weight.new_full((1,), 0.5))
        # No layer reads the slow tokens after the last one.
        self.norm = None if last else nn.RMSNorm(len(weight), eps=1e-6, dtype=weight.dtype)
        self.mixer = None if last else Mamba2(len(weight)).to(weight.dtype)

    def read(self, layer: Any, slow: Tensor) -> tuple[list[Tensor], Tensor]:
        entry = self.cross.read(layer, slow)
        if self.mixer is None or self.norm is None:
            return entry, slow
        return entry, slow + self.mixer(self.norm(slow))

    def attended(self, output: Tensor, attention: Attention, entry: list[Tensor], current: Pass) -> Tensor:
        found = self.cross(attention.module, take(attention.hidden, current.text), *entry)
        share = self.share.clamp(0, 1)
        return put(output, current.text, share * take(output, current.text) + (1 - share) * found)


PRESETS: dict[str, type[Block]] = {
    "slow_fast": SlowFast, "crosslmm": CrossLMM, "vista_llama": VistaLlama, "vamba": Vamba, "iva": Iva,
}  # fmt: skip
"""The presets of `Streams` by name."""


class Streams(nn.Module):
    """Cross-attention of a language model to slow visual tokens, in some of its decoder layers.

    Args:
        text: the language model without its head; the hooks stay on its layers.
        spec: a preset of `PRESETS`, or with the distance between its layers: "slow_fast" or "slow_fast(every=4)"; for
            "iva" also the number of frames that a row reads: "iva(every=4, keep=8)".

    Attributes:
        spec: the complete spec.
        layers: the indices of the decoder layers that have a block.
        prompt: the prompt that the model is reading; None after it, see `reading`.

    Raises:
        ValueError: an unknown preset, or layers that are not supported.
    """

    def __init__(self, text: Any, spec: str) -> None:
        super().__init__()
        name, every, keep = parse(spec)
        check_layers(text)
        self.spec = f"{name}(every={every})" if keep is None else f"{name}(every={every}, keep={keep})"
        self.layers = list(range(0, len(text.layers), every))
        kind = PRESETS[name]
        self.blocks = nn.ModuleList([kind(text.layers[index], last=index == self.layers[-1]) for index in self.layers])
        for block in self.blocks:
            if isinstance(block, Iva) and keep is not None:
                block.keep = keep
        self.prompt: Prompt | None = None
        text.register_forward_pre_hook(self._begin, with_kwargs=True)
        text.register_forward_hook(self._end, with_kwargs=True)
        for number, index in enumerate(self.layers):
            layer = text.layers[index]
            layer.register_forward_pre_hook(partial(self._before, number), with_kwargs=True)
            layer.register_forward_hook(partial(self._after, number), with_kwargs=True)
            layer.self_attn.register_forward_pre_hook(partial(self._open, number), with_kwargs=True)
            layer.self_attn.register_forward_hook(partial(self._close, number), with_kwargs=True, always_call=True)

    def extra_repr(self) -> str:
        return self.spec

    @contextmanager
    def reading(self, features: Any) -> Iterator[None]:
        """Makes the slow tokens of a prompt available to the layers.

        Args:
            features: the reduced output of the encoder, whose last_hidden_state [B,S,D] has all tokens.

        Raises:
            ValueError: a prompt without a video, or with several.
        """
        layout, slow = layout_of(features), features.last_hidden_state
        if layout is None or slow is None:
            raise ValueError("the features of this prompt do not include the slow tokens; pass its frames or cells")
        if [video.row for video in layout.videos] != list(range(len(layout.visual))):
            raise ValueError("a model with two streams requires one video in each prompt of a batch")
        self.prompt = Prompt(slow, layout.visual, layout.videos[0].tokens.grid.T)
        try:
            yield
        finally:
            self.prompt = None

    def _begin(self, text: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        cache = cache_of(kwargs)
        prompt = self.prompt if self.prompt is not None else getattr(cache, _ATTRIBUTE, None)
        if prompt is None:
            return None
        if not prompt.entries:
            slow = prompt.slow.to(next(self.parameters(), prompt.slow).dtype)
            for number, index in enumerate(self.layers):
                entry, slow = self._block(number).read(text.layers[index], slow)
                prompt.entries.append(entry)
        rows: Any = kwargs.get("inputs_embeds")
        rows = kwargs.get("input_ids", args[0] if args else None) if rows is None else rows
        B, n = rows.shape[:2]
        first = 0 if cache is None else int(cache.get_seq_length())
        prompt = prompt.repeat(B)
        visual = F.pad(prompt.visual[:, first:], (0, n))[:, :n]
        # Only a prompt has fast tokens, so that generated tokens do not wait for a GPU.
        in_prompt = first < prompt.visual.shape[1]
        slots, fast = (to_slots(~visual), to_slots(visual)) if in_prompt else (None, None)
        mask = kwargs.get("attention_mask")
        real = mask[:, : first + n].bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        return args, kwargs | {_ARGUMENT: Pass(prompt, first, visual, slots, fast, real)}

    def _end(self, text: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        current: Pass | None = kwargs.get(_ARGUMENT)
        if current is None:
            return
        if len(current.reached) < len(self.blocks):
            raise unsupported("decoder layers receive no further arguments, so that they cannot read slow tokens")
        if (cache := cache_of(output)) is not None and self.prompt is not None:
            setattr(cache, _ATTRIBUTE, self.prompt)

    def _before(self, number: int, layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        current: Pass | None = kwargs.get(_ARGUMENT)
        if current is None:
            return None
        current.reached.add(number)
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = self._block(number).before(hidden, layer, current.prompt.entries[number], current)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _after(self, number: int, layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        current: Pass | None = kwargs.get(_ARGUMENT)
        if current is None:
            return None
        return self._block(number).after(output, layer, current.prompt.entries[number], current)

    def _open(self, number: int, attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Adds a hook to the output projection, which adapters may have replaced, for one pass."""
        current: Pass | None = kwargs.get(_ARGUMENT)
        if current is None:
            return
        inputs = self._attention(attention, args, kwargs)
        if inputs.hidden.shape[1] != current.visual.shape[1]:
            raise ValueError("a model with two streams cannot drop tokens inside the language model; use other methods")

        def mix(projection: Any, args: Any) -> Any:
            entry = current.prompt.entries[number]
            return (self._block(number).mix(args[0], inputs, entry, current), *args[1:])

        attention.__dict__[_ATTRIBUTE] = attention.o_proj.register_forward_pre_hook(mix)

    def _close(self, number: int, attention: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        handle = attention.__dict__.pop(_ATTRIBUTE, None)
        if handle is None:
            return None
        handle.remove()
        if output is None:  # after an exception
            return None
        current = kwargs[_ARGUMENT]
        inputs = self._attention(attention, args, kwargs)
        mixed = self._block(number).attended(output[0], inputs, current.prompt.entries[number], current)
        return (mixed, *output[1:])

    def _block(self, number: int) -> Block:
        return cast(Block, self.blocks[number])

    @staticmethod
    def _attention(module: Any, args: Any, kwargs: dict[str, Any]) -> Attention:
        hidden = args[0] if args else kwargs["hidden_states"]
        if "position_embeddings" not in kwargs:
            raise unsupported("the attention of decoder layers receives no position_embeddings")
        return Attention(module, hidden, kwargs["position_embeddings"], cache_of(kwargs))


def check_layers(text: Any) -> None:
    """Raises a ValueError if the layers of a language model differ from what streams expect."""
    kinds = set(getattr(text.config, "layer_types", None) or ["full_attention"])
    if any(getattr(layer.self_attn, "sliding_window", None) for layer in text.layers if hasattr(layer, "self_attn")):
        kinds |= {"sliding_attention"}
    if kinds != {"full_attention"}:
        raise ValueError(f"a second stream requires layers of full attention, got {sorted(kinds)}")
    for layer in text.layers:
        parts = {name for name, _ in layer.named_children()}
        if parts != _LAYER:
            raise unsupported(f"decoder layers differ in {', '.join(sorted(parts ^ _LAYER))}")
        own = {name for name, _ in layer.self_attn.named_children()}
        if not {"q_proj", "k_proj"} <= own <= _ATTENTION:
            raise unsupported(f"the attention of decoder layers consists of {', '.join(sorted(own))}")


def parse(spec: str) -> tuple[str, int, int | None]:
    """Returns the preset of a spec, the distance between its layers, and the frames that a row of `Iva` reads.

    Raises:
        ValueError: the spec cannot be parsed, or names no preset.
    """
    number = r"\s*(?:(\w+)\s*=\s*(\d{1,4})\s*)"
    match = re.fullmatch(rf"\s*(\w+)\s*(?:\({number}?(?:,{number})?\)\s*)?", spec)
    values = {} if match is None else {key: int(value) for key, value in (match.group(2, 3), match.group(4, 5)) if key}
    if match is None or not values.keys() <= {"every", "keep"}:
        raise ValueError(f"cannot read streams {spec[:80]!r}; write it like 'slow_fast' or 'slow_fast(every=4)'")
    name = match[1]
    if name not in PRESETS:
        raise ValueError(f"streams must be one of {', '.join(PRESETS)}, got {name[:80]!r}")
    if "keep" in values and PRESETS[name] is not Iva:
        raise ValueError(f"streams: keep has no effect in {name}")
    for key, value in values.items():
        if value < 1:
            raise ValueError(f"streams: {key} must be at least 1, got {value}")
    keep = values.get("keep", Iva.keep) if PRESETS[name] is Iva else None
    return name, values.get("every", PRESETS[name].every), keep


def copy_linear(source: Any) -> nn.Linear:
    """Returns a linear layer with a copy of the weights of another, without adapters, to be trained."""
    weight, bias = source.weight, source.bias
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def heads(attention: Any, which: str, hidden: Tensor, projection: Any = None) -> Tensor:
    """Queries ("q"), keys ("k") or values ("v") [B,heads,M,d] before rotation.

    Args:
        hidden: [B,M,D], after the layer's input norm.
        projection: a linear layer that replaces the attention's own.
    """
    projection = getattr(attention, f"{which}_proj") if projection is None else projection
    projected = projection(hidden).unflatten(2, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    return (projected if norm is None else norm(projected)).transpose(1, 2)


def keys_and_values(layer: Any, slow: Tensor, k_proj: nn.Linear, v_proj: nn.Linear) -> list[Tensor]:
    """Keys and values [B,heads,S,d] of tokens [B,S,D], after the layer's input norm; without positions."""
    normed = layer.input_layernorm(slow).to(k_proj.weight.dtype)
    return [heads(layer.self_attn, "k", normed, k_proj), heads(layer.self_attn, "v", normed, v_proj)]


def cross_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Attention of queries [B,heads,m,d] to keys [B,groups,S,d]: heads concatenated, [B,m,heads*d].

    Args:
        mask: bool [B,1,m,S], the keys that each query sees; None for all.
    """
    keys, values = keys.to(queries.dtype), values.to(queries.dtype)
    found = F.scaled_dot_product_attention(queries, keys, values, mask, scale=scale, enable_gqa=True)
    return found.transpose(1, 2).flatten(2)
