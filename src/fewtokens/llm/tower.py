"""The vision tower of a language model: its blocks, and cues that hooks on one of them compute while it encodes.

`Tower` finds the blocks, also for leaving out patches (`tower_patches`) and for merging between them (`tower_merging`).

A hook on an attention module receives its input, from which the module's own projections make queries and keys once
more. Scores are computed in blocks of queries, so that no table over all patches of a video exists; the attention of
the tower itself stays fused. The values of patches become rows of the language model in the same way as its features.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.method import Method
from fewtokens.llm.backends.rows import RowLayout
from fewtokens.llm.interface import (
    attribute,
    full_attention_layers,
    output_layer,
    unsupported,
    vision_tower,
    vision_windows,
)
from fewtokens.llm.layers.attention import rotate
from fewtokens.llm.tower_rows import join_parts, pool_frames, pool_packed, pool_tiles, unmapped

TOWER_CUES = ("attention", "keys", "shift")
# Entries of the scores that are computed at a time (16 MiB in float32).
_MAX_ENTRIES = 1 << 22
_CLASS_TOKENS = ("class_embedding", "cls_token", "class_token")
_REGISTERS = ("register_tokens", "reg_token", "cls_register_token")
# The projections of an attention module: to queries and keys, or to queries, keys and values at once.
_PROJECTIONS = (("q_proj", "k_proj"), ("q", "k"), ("qkv",))


class Tower:
    """The vision tower of a model, as a list of blocks.

    Attributes:
        module: the tower.
        attentions: its attention modules, one for each block: those with projections to queries and keys.
        blocks: the numbered modules that contain them.
        used: the layer whose output the language model reads.
        full: the layers whose attention spans whole frames; the others attend within windows.
        has_class: whether the first token of each frame is a class token.
        prefix: the number of class and register tokens at the start of each frame.
        head: the attention-pooling head of SigLIP, if the tower has one.
    """

    def __init__(self, model: Any, module: nn.Module) -> None:
        self.module = module
        layers: dict[str, nn.Module] = {}
        for name, part in module.named_modules():
            block = re.match(r"(.*\.)?\d+(?=\.)", name)
            if block is not None and projections(part):
                layers.setdefault(block[0], part)
        self.attentions = list(layers.values())
        self.blocks = [module.get_submodule(name) for name in layers]
        self.used = min(output_layer(model, len(layers)), len(layers) - 1)
        self.full = full_attention_layers(module, len(layers))
        counts = {name.rpartition(".")[2]: parameter for name, parameter in module.named_parameters()}
        self.has_class = any(name in counts for name in _CLASS_TOKENS)
        registers = [counts[name].shape[-2] for name in _REGISTERS if name in counts]
        self.prefix = int(self.has_class) + sum(registers)
        self.head = next((part for part in module.modules() if _is_pooling_head(part)), None)

    @property
    def cues(self) -> tuple[str, ...]:
        """Names of the cues that it can provide, keys of `CUES`."""
        return TOWER_CUES if norm_before_mlp(self.blocks[0]) is not None else TOWER_CUES[:2]

    def windows(self, shapes: Tensor) -> tuple[Tensor, Tensor] | None:
        """The groups of patches in the order of windows, and their borders; see `interface.vision_windows`."""
        return vision_windows(self.module, shapes)

    def layer(self, layer: int | str) -> int:
        """The index of the layer that an `AttentionRule` names.

        In a tower with windows, -1 and "last" are the last layer up to there that attends to whole frames.

        Raises:
            ValueError: the tower has no such layer.
        """
        depth = len(self.attentions)
        index = depth - 1 if layer == "last" else self.used + 1 + int(layer) if int(layer) < 0 else int(layer)
        if not 0 <= index < depth:
            raise ValueError(f"layer {layer} is not in the vision tower, which has {depth} layers")
        earlier = [number for number in self.full if number <= index]
        return max(earlier) if layer in (-1, "last") and earlier else index

    def query(self, rule: AttentionRule) -> str:
        """The query of a rule that the tower uses, a key of `QUERIES`; "received" instead of a lacking class token.

        Raises:
            ValueError: the tower has no attention-pooling head.
        """
        possible = {"class": self.has_class, "probe": self.head is not None}
        query = next((query for query in rule.queries if possible.get(query, True)), rule.queries[-1])
        if query == "probe" and self.head is None:
            raise ValueError(
                "attention='probe' requires a vision tower with an attention-pooling head (SigLIP with "
                "vision_use_head); use 'received' or 'mean_query'"
            )
        return query if query != "class" or self.has_class else "received"

    @contextmanager
    def recording(self, needs: Collection[str], rule: AttentionRule) -> Iterator[Recording]:
        """Records cues while the tower encodes inside the block; the hooks are removed at its end.

        Args:
            needs: names of cues, of which those in `cues` are recorded.
            rule: which attention; keys and shift are those of its layer.

        Raises:
            ValueError: as `layer` and `query`.
        """
        names = set(needs) & set(self.cues)
        recording = Recording(self, names, rule)
        index = self.layer(rule.layer) if names else 0
        hooks = []
        try:
            if recording.query == "probe" and self.head is not None:
                hooks.append(self.head.register_forward_pre_hook(recording.record_probe))
            if "keys" in names or ("attention" in names and recording.query != "probe"):
                attention = self.attentions[index]
                hooks.append(attention.register_forward_pre_hook(recording.record_attention, with_kwargs=True))
            if "shift" in names:
                norm = norm_before_mlp(self.blocks[index])
                assert norm is not None
                hooks.append(norm.register_forward_pre_hook(recording.record_before_mlp))
                hooks.append(self.blocks[index].register_forward_hook(recording.record_shift))
            yield recording
        finally:
            for hook in hooks:
                hook.remove()


class Recording:
    """What the hooks of a tower recorded; `rows` maps it to the rows of the language model."""

    def __init__(self, tower: Tower, names: set[str], rule: AttentionRule) -> None:
        self._tower, self._names, self._heads = tower, names, rule.heads
        self.query = tower.query(rule) if "attention" in names else ""
        # Of each call: [frames,patches,c], or [patches,c] of a tower that packs all frames into one sequence.
        self._values: dict[str, list[Tensor]] = {}
        self._before_mlp: Tensor | None = None

    @torch.no_grad()
    def record_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of an attention module."""
        inputs = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
        inputs |= inputs.pop("kwargs", {})
        x, boundaries = next(iter(inputs.values())), inputs.get("cu_seqlens")
        if boundaries is None:
            boundaries = _boundaries(x, inputs.get("attention_mask"))
        x = x if boundaries is None else x.reshape(-1, x.shape[-1])
        q, k = project(module, x)
        if "keys" in self._names:
            self._add("keys", k.float().flatten(-2) if self._heads == "joined" else k.float().mean(-2))
        if "attention" not in self._names or self.query == "probe":
            return
        if (rotary := inputs.get("position_embeddings")) is not None:
            cos, sin = (part if boundaries is None else part.reshape(len(x), -1) for part in rotary)
            # Positions [F,n,2] are those of the axes of a frame, each for its part of the channels (Gemma 4).
            positions = inputs.get("position_ids")
            axes = positions.shape[2] if positions is not None and positions.ndim == 3 else 1
            q, k = rotate_rows(q, cos, sin, axes), rotate_rows(k, cos, sin, axes)
        q, k = q.float(), k.float()
        scale = getattr(module, "scale", None) or getattr(module, "scaling", None) or q.shape[-1] ** -0.5
        if self._heads == "joined":
            q, k, scale = q.flatten(-2)[..., None, :], k.flatten(-2)[..., None, :], (q.shape[-2] * q.shape[-1]) ** -0.5
        elif q.shape[-2] != k.shape[-2]:  # heads that share keys
            k = k.repeat_interleave(q.shape[-2] // k.shape[-2], -2)
        mask, prefix = inputs.get("attention_mask"), self._tower.prefix
        if boundaries is None:
            self._add("attention", self._attend(q, k, scale, mask, prefix))
            return
        attention = q.new_empty(len(x), q.shape[-2] if self.query == "mean_query" else 1)
        for index in segments(boundaries):
            values = self._attend(q[index], k[index], scale, None, 0)
            # Sums over queries, so that windows of different size are comparable; `rows` divides by those of a frame.
            attention[index] = values if self.query == "mean_query" else values * index.shape[1]
        self._add("attention", attention)

    def _attend(self, q: Tensor, k: Tensor, scale: float, mask: Tensor | None, prefix: int) -> Tensor:
        """The values of this recording's query for queries and keys [S,n,heads,d]: [S,n,1] or, of "mean_query", logits.

        Logits [S,n,heads] of the mean query are averaged over the patches of a cell before the softmax, which is the
        same as averaging the keys.
        """
        if self.query == "mean_query":
            return torch.einsum("shd,snhd->snh", q[:, prefix:].mean(1) * scale, k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        if self.query == "class":
            q, mask = q[:, :, :1], None if mask is None or mask.shape[-2] == 1 else mask[..., :1, :]
        return received_attention(q, k, scale, mask)[..., None]

    @torch.no_grad()
    def record_probe(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook of an attention-pooling head."""
        attention: Any = module.attention
        weight, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        q, k = (F.linear(x, weight[n], bias[n]) for n, x in enumerate((module.probe, args[0])))
        q, k = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).float() for x in (q, k))
        values = received_attention(q.expand(len(k), -1, -1, -1), k, q.shape[-1] ** -0.5, None)
        self._add("attention", values[..., None])

    def record_before_mlp(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook of the norm before the MLP."""
        self._before_mlp = args[0].detach()

    def record_shift(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook of a block."""
        after = output[0] if isinstance(output, tuple) else output
        assert self._before_mlp is not None
        self._add("shift", (after.detach() - self._before_mlp).float().norm(dim=-1, keepdim=True))
        self._before_mlp = None

    def _add(self, name: str, values: Tensor) -> None:
        """Adds the values of frames [F,n,c] without their class tokens, or of packed patches [n,c]."""
        values = values if values.ndim == 2 else values[:, self._tower.prefix :]
        self._values.setdefault(name, []).append(values)

    def rows(
        self,
        layouts: Sequence[RowLayout | None],
        frames: Sequence[int],
        shapes: Any,
        order: Tensor | None,
        *,
        raster: bool = False,
    ) -> list[Any]:
        """Returns the cues of each image or video by name, float32 [cells,...]; None without a grid.

        Args:
            layouts: the cells of each.
            frames: the number of frames of each, in the order in which the tower encoded them.
            shapes: int [E,3], (t, h, w) of the patches of each, or of its parts; None for towers that encode frames
                separately.
            order: the groups of patches of a tower with windows, in the order in which it processes them, or None.
            raster: see `Backend`.

        Raises:
            ValueError: the tower was not called, or its patches do not match the rows.
        """
        values = {name: torch.cat(parts) for name, parts in self._values.items()}
        if missing := self._names - set(values):
            raise unsupported(f"{type(self._tower.module).__name__} did not compute {', '.join(sorted(missing))}")
        is_packed = shapes is not None
        entries = [] if shapes is None else join_parts(shapes.tolist(), frames)
        lengths = [math.prod(shape) for shape in entries] if is_packed else list(frames)
        values = {name: self._unpack(name, value, 0 if is_packed else sum(lengths)) for name, value in values.items()}
        if any(len(value) != sum(lengths) for value in values.values()):
            raise unmapped(f"{type(self._tower.module).__name__} encodes other patches than those of the prompt")
        if order is not None:
            back = order.argsort()
            values = {name: value.unflatten(0, (len(back), -1))[back].flatten(0, 1) for name, value in values.items()}
        parts = {name: value.split(lengths) for name, value in values.items()}
        results: list[dict[str, Tensor] | None] = []
        for number, layout in enumerate(layouts):
            if layout is None:
                results.append(None)
                continue
            grid, tiles = layout.grid, layout.tiles
            own = {name: part[number] for name, part in parts.items()}
            steps = entries[number][0] if is_packed else 0
            if is_packed and "attention" in own and self.query in ("received", "class"):
                own["attention"] = own["attention"] * (steps / lengths[number])
            if tiles is not None:
                if self.query == "mean_query":  # of each tile
                    own["attention"] = own["attention"].softmax(1).mean(2, keepdim=True)
                cells = {name: pool_tiles(value, grid, tiles) for name, value in own.items()}
            elif is_packed and not raster:
                cells = {name: pool_packed(value, grid, steps) for name, value in own.items()}
            else:
                if is_packed:
                    own = {name: value.unflatten(0, (steps, -1)) for name, value in own.items()}
                cells = {name: pool_frames(value, grid) for name, value in own.items()}
            if self.query == "mean_query" and tiles is None:
                logits = cells["attention"].unflatten(0, (grid.T, -1))
                cells["attention"] = logits.softmax(1).mean(2, keepdim=True).flatten(0, 1)
            results.append({name: value if name == "keys" else value[:, 0] for name, value in cells.items()})
        return results

    def _unpack(self, name: str, values: Tensor, frames: int) -> Tensor:
        """Brings values into the form [frames,patches,c], or [patches,c] if `frames` is 0: the tower has grids."""
        if values.ndim == 3 and len(values) == frames:
            return values
        values = values.flatten(0, -2)
        if not frames or len(values) % frames:
            return values
        # Frames that the tower packs without a grid.
        count = len(values) // frames
        is_sum = name == "attention" and self.query in ("received", "class")
        return (values / count if is_sum else values).unflatten(0, (frames, count))


def tower_of(model: Any, modality: str = "video") -> Tower | None:
    """Returns the vision tower of a modality, or None if the model has none with attention layers."""
    module = vision_tower(model, modality)
    tower = None if module is None else Tower(model, module)
    return tower if tower is not None and tower.blocks else None


def check_attention(model: Any, family: str, method: Method) -> None:
    """Checks that the vision tower of a model has the attention that a method reads.

    Warns if the user requests that of a class token, which the tower does not have.

    Raises:
        ValueError: it has no such layer or query.
    """
    tower, rule = tower_of(model), method.attention_rule
    if tower is None:
        return
    tower.layer(rule.layer)
    if tower.query(rule) not in rule.queries:
        warnings.warn(
            f"{method.name}: the vision tower of this {family} has no class token; the attention that a patch receives "
            "from all others is used instead",
            stacklevel=2,
        )


@contextmanager
def record_cues(
    model: Any,
    modality: str,
    inputs: Mapping[str, Any],
    needs: Collection[str],
    rule: AttentionRule,
    *,
    raster: bool = False,
) -> Iterator[Callable[[Sequence[Any]], None]]:
    """Records cues of a model's vision tower while it encodes inside the block.

    Yields a function that sets `cues` of the images or videos, as `Backend.visuals` returns them.

    Args:
        modality: "image" or "video".
        inputs: the prompt.
        needs: names of cues; those that the tower does not provide are ignored.
        rule: which attention.
        raster: see `Backend`.
    """
    tower = tower_of(model, modality) if set(needs) & set(TOWER_CUES) else None
    if tower is None:
        yield lambda visuals: None
        return
    with tower.recording(needs, rule) as recording:

        def set_cues(visuals: Sequence[Any]) -> None:
            layouts = [visual.layout for visual in visuals]
            per_frame = next((layout.grid.cells_per_frame for layout in layouts if layout is not None), 0)
            if not per_frame:
                return
            shapes = inputs.get(f"{modality}_grid_thw")
            frames = [
                len(visual.features) // per_frame if layout is None
                else layout.grid.T if layout.tiles is None else math.prod(layout.tiles.shape)
                for visual, layout in zip(visuals, layouts, strict=True)
            ]  # fmt: skip
            windows = None if shapes is None else tower.windows(shapes)
            order = None if windows is None else windows[0]
            parts = recording.rows(layouts, frames, shapes, order, raster=raster)
            for visual, cues in zip(visuals, parts, strict=True):
                device = visual.features.device  # that of the projector, which may differ from that of the tower
                visual.cues = {name: cue.to(device) for name, cue in (cues or {}).items()}

        yield set_cues


def _is_pooling_head(module: nn.Module) -> bool:
    return hasattr(module, "probe") and isinstance(getattr(module, "attention", None), nn.MultiheadAttention)


def _boundaries(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """The boundaries of sequences packed into one [N,C], or [1,N,C] with a block-diagonal mask; otherwise None."""
    if x.ndim == 2:
        return torch.tensor([0, len(x)], device=x.device)
    if len(x) > 1 or mask is None or mask.shape[-2] != x.shape[1]:
        return None
    allowed = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    return F.pad(allowed.to(torch.uint8).argmax(1).unique(), (0, 1), value=x.shape[1])


def norm_before_mlp(block: nn.Module) -> nn.Module | None:
    """The norm before the MLP of a block: the second of two, or the third of four; None of any other number."""
    norms = [child for child in block.children() if "norm" in type(child).__name__.lower()]
    return norms[len(norms) // 2] if len(norms) in (2, 4) else None


def projections(attention: nn.Module) -> list[nn.Module]:
    """The projections to queries and to keys of an attention module, or the one to all; none of any other module."""
    if hasattr(attention, "use_rel_pos"):  # of SAM: scores depend on relative positions
        return []
    children = dict(attention.named_children())
    names = next((names for names in _PROJECTIONS if children.keys() >= set(names)), ())
    return [children[name] for name in names]


def project(attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The queries and keys of an attention module before rotary positions, [...,heads,d], for its input [...,C]."""
    found = projections(attention)
    q, k = found[0](x).chunk(3, -1)[:2] if len(found) == 1 else (projection(x) for projection in found)
    d = _head_size(attention, q.shape[-1])
    return _by_head(attention, q, "q_norm", d), _by_head(attention, k, "k_norm", d)


def projected_keys(attention: nn.Module, output: Tensor) -> Tensor:
    """The keys [...,heads,d] in the output of the last of `projections`."""
    k = output.chunk(3, -1)[1] if len(projections(attention)) == 1 else output
    return _by_head(attention, k, "k_norm", _head_size(attention, k.shape[-1]))


def _head_size(attention: Any, width: int) -> int:
    """The channels of a head, of `width` channels of queries."""
    if (d := getattr(attention, "head_dim", None)) is not None:
        return d
    names = ("num_heads", "num_attention_heads")
    heads = next((getattr(attention, name) for name in names if hasattr(attention, name)), 0)
    return width // (heads or attribute(attribute(attention, "config"), "num_attention_heads"))


def _by_head(attention: nn.Module, value: Tensor, norm_name: str, d: int) -> Tensor:
    """Splits queries or keys [...,heads*d] into heads [...,heads,d] and normalizes them."""
    norm, split = getattr(attention, norm_name, None), value.unflatten(-1, (-1, d))
    if norm is None or isinstance(norm, nn.Identity):
        return split
    # A norm has a weight for each channel of what it normalizes: all heads together, or one head.
    is_joined = next(norm.parameters(), split.new_empty(d)).numel() != d
    return norm(value).unflatten(-1, (-1, d)) if is_joined else norm(split)


def rotate_rows(x: Tensor, cos: Tensor, sin: Tensor, axes: int = 1) -> Tensor:
    """Applies rotary positions [...,N,r] to the first r channels of queries or keys [...,N,heads,d]; float32.

    Args:
        axes: the number of equal parts of these channels that are rotated separately.
    """
    first, rest = x.float().tensor_split([cos.shape[-1]], -1)
    cos, sin = (part.float().expand(*x.shape[:-2], -1).flatten(0, -2)[:, None] for part in (cos, sin))
    parts = zip(*(part.chunk(axes, -1) for part in (first.flatten(0, -3)[:, :, None], cos, sin)), strict=True)
    turned = torch.cat([rotate(*part) for part in parts], -1).view(first.shape)
    return torch.cat([turned, rest], -1)


def segments(boundaries: Tensor) -> Iterator[Tensor]:
    """The indices of sequences in a packed one, grouped by length: int64 [S,n].

    Args:
        boundaries: int [S+1], the start of each sequence, and the end of the last.
    """
    starts, lengths = boundaries[:-1].long(), boundaries.diff()
    for length in lengths.unique().tolist():
        yield starts[lengths == length][:, None] + torch.arange(length, device=starts.device)


def received_attention(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The attention that each key receives, averaged over heads and queries, [S,n].

    Args:
        q, k: float32 queries [S,heads,m,d] and keys [S,heads,n,d].
        scale: of the products.
        mask: bool [S or 1,1,m or 1,n], True for keys to attend to, or values to add; None for all.
    """
    (S, heads, m, _), n = q.shape, k.shape[2]
    total = k.new_zeros(S, n)
    rows = max(1, min(m, _MAX_ENTRIES // (heads * n)))
    at_once = max(1, _MAX_ENTRIES // (heads * n * rows))
    for start in range(0, S, at_once):
        here = slice(start, start + at_once)
        keys = k[here].transpose(2, 3) * scale
        for row in range(0, m, rows):
            scores = q[here, :, row : row + rows] @ keys
            if mask is not None:
                part = mask if len(mask) == 1 else mask[here]
                part = part if part.shape[-2] == 1 else part[..., row : row + rows, :]
                scores = scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part
            total[here] += scores.softmax(3).sum((1, 2))
    return total / (heads * m)
