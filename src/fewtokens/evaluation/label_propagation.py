"""Label propagation: the labels of the first frame carried through a video by the likeness of frozen features.

Two families of settings are in use, and a score means nothing without its own. A is that of CropMAE (2403.17823) and
ToBo (2507.06543), after the space-time random walks of Jabri et al. (2006.14613); B that of DINO (2104.14294), which
RSP (2406.07398) uses with other numbers. Both weigh alike: the softmax of the largest likenesses over a temperature
is what remains of exp(likeness / temperature) after the largest are kept and made to sum to 1.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.data.masks import MOST_OBJECTS, resize_masks

# Likenesses held at once: 64 MiB of float32.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Protocol:
    """How labels are propagated; the defaults are protocol A on DAVIS.

    Attributes:
        name: what it is called beside a score.
        size: of the frames that are encoded: "480x880" (rows x columns), "short 480" or "long 880" (that side so long,
            the other in proportion), or "native".
        multiple: with short or long, both sides go down to a multiple of it, but for the one that is given.
        images: how frames get there: "bilinear" (antialiased), or "nearest" as in the data that RSP and CropMAE made.
        context: earlier frames that vote beside the first one.
        stand_in: before there are so many, the first frame votes in place of each that is missing.
        radius: cells within which a voter must lie; 0 is anywhere.
        window: "disk": at a Euclidean distance below the radius; "square": rows and columns up to the radius.
        restrict_first: whether that holds for the first frame too.
        rows: of the grid to which the radius belongs: on others it grows in proportion. 0: it is in cells of any grid.
        top: voters of a cell, over all frames together.
        temperature: of the softmax over their cosines.
        labels: how the first mask comes to the grid: "bilinear" (one-hot at the size of the frames, then soft), or
            "nearest" (one label a cell).
        rescale: stretch each label's map to 0..1 before the largest wins.
    """

    name: str = "A"
    size: str = "480x880"
    multiple: int = 64
    images: str = "bilinear"
    context: int = 20
    stand_in: bool = True
    radius: float = 20.0
    window: str = "disk"
    restrict_first: bool = False
    rows: int = 0
    top: int = 7
    temperature: float = 0.7
    labels: str = "bilinear"
    rescale: bool = False

    def __post_init__(self) -> None:
        choices = {"images": ("bilinear", "nearest"), "window": ("disk", "square"), "labels": ("bilinear", "nearest")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if not re.fullmatch(r"native|[1-9]\d*x[1-9]\d*|(short|long) [1-9]\d*", self.size):
            raise ValueError(f"size must be such as 480x880, 'short 480', 'long 880' or native, got {self.size!r}")
        if not math.isfinite(self.radius + self.temperature):
            raise ValueError("radius and temperature must be finite; a radius of 0 is anywhere")
        if min(self.context, self.radius, self.rows) < 0 or min(self.top, self.multiple) < 1 or self.temperature <= 0:
            raise ValueError(
                "context, radius and rows must be at least 0, top and multiple at least 1, temperature above 0"
            )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns at which frames of this size are encoded."""
        if self.size == "native":
            return height, width
        if "x" in self.size:
            rows, columns = map(int, self.size.split("x"))
            return rows, columns
        which, side = self.size.split()
        given = int(side)
        fixed = min(height, width) if which == "short" else max(height, width)

        def other(length: int) -> int:
            return max(self.multiple, given * length // fixed // self.multiple * self.multiple)

        return (given, other(width)) if height == fixed else (other(height), given)

    def reach(self, rows: int) -> float:
        """The radius in cells on a grid of so many rows; infinite where voters lie anywhere."""
        if not self.radius:
            return math.inf
        return self.radius * rows / self.rows if self.rows else self.radius

    def describe(self, rows: int | None = None, *, masks: bool = True) -> str:
        """In words, to stand beside a score; with the rows of the grid the radius is that on it."""
        near = "anywhere"
        if self.radius:
            per = f" on {self.rows} rows" if self.rows and rows is None else ""
            near = f"within {self.radius if rows is None else self.reach(rows):g} cells{per} ({self.window})"
            near += "" if self.restrict_first else ", in the first frame anywhere"
        parts = [
            f"frames at {self.size}, {self.images}"
            + (f", the other side down to a multiple of {self.multiple}" if " " in self.size else ""),
            f"the first frame and {self.context} before vote"
            + (", the first also for each that is missing" if self.stand_in else ""),
            f"voters {near}",
            f"softmax of the top {self.top} cosines / {self.temperature:g}",
        ]
        if masks:
            parts += [
                f"first mask to the grid {self.labels}",
                "soft labels back bilinear"
                + (", each stretched to 0..1" if self.rescale else "")
                + ", the largest wins",
            ]
        else:
            parts.append("joints as maps of sigma 0.5 cells, back as the mean of the top 5 cells")
        return f"protocol {self.name}: {'; '.join(parts)}"


_A = Protocol()
_B = Protocol(
    "B", size="short 480", context=7, stand_in=False, radius=12, window="square", restrict_first=True, top=5,
    temperature=0.1, labels="nearest", rescale=True,
)  # fmt: skip

# Published settings by data set and name. Those of RSP and ToBo on JHMDB and VIP are not published.
PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "davis": {
        "A": _A,
        "B": _B,
        "B-rsp": dataclasses.replace(_B, name="B-rsp", context=30, radius=30, top=7),
    },
    "jhmdb": {"A": dataclasses.replace(_A, size="320x320")},
    "vip": {"A": dataclasses.replace(_A, size="long 880", top=10)},
}


def make_protocol(data: str, name: str = "A", changes: Sequence[str] = ()) -> Protocol:
    """A preset with changes.

    Args:
        data: davis, jhmdb or vip.
        name: A, B (DINO's numbers) or B-rsp; B is published for DAVIS alone.
        changes: NAME=VALUE, for any attribute of `Protocol`; its name then says so.

    Raises:
        ValueError: no such preset or attribute, or a value that it cannot have.
    """
    presets = PROTOCOLS[data]
    if name not in presets:
        raise ValueError(f"for {data} there are the protocols {', '.join(presets)}; not {name!r}")
    protocol = presets[name]
    known = asdict(protocol)
    values: dict[str, object] = {}
    for change in changes:
        key, equals, text = (part.strip() for part in change.partition("="))
        if not equals or key not in known or key == "name":
            raise ValueError(f"--set takes NAME=VALUE of {', '.join(k for k in known if k != 'name')}; got {change!r}")
        values[key] = _value(key, text, type(known[key]))
    _check_used(data, values, dataclasses.replace(protocol, **values))  # type: ignore[arg-type]
    said = f"{name} with {', '.join(f'{key}={value}' for key, value in values.items())}" if values else name
    return dataclasses.replace(protocol, **(values | {"name": said}))  # type: ignore[arg-type]


def _check_used(data: str, values: dict[str, object], protocol: Protocol) -> None:
    """Raises ValueError for a change that would change nothing."""
    unused = {"labels", "rescale"} if data == "jhmdb" else set()
    unused |= set() if " " in protocol.size else {"multiple"}
    unused |= set() if protocol.radius else {"window", "restrict_first", "rows"}
    if given := sorted(unused & set(values)):
        raise ValueError(
            f"--set {given[0]} would change nothing: labels and rescale are for masks, multiple for a size of short or "
            "long, window, restrict_first and rows for a radius above 0"
        )


def _value(key: str, text: str, kind: type) -> object:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{key} must be true or false, got {text!r}")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key} must be a {'whole ' * (kind is int)}number, got {text!r}") from None


@torch.no_grad()
def propagate(
    features: Tensor,
    labels: Tensor,
    protocol: Protocol | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Soft labels of every frame, float32 [T,h,w,K], on the device of the features; the first are those given.

    Each cell takes the weighted mean of the labels of the `top` cells most like it (cosine) among all frames that vote.
    What is predicted stays soft where it votes again. Each pair of frames is compared once, band by band of the longer
    side, so that cells out of reach are hardly looked at; the best of each frame are merged.

    Memory beside features and result: frames that vote, (1 + context) * h*w * (C + K) floats, and 64 MiB of
    likenesses; more only where one line of cells against one frame has more. Likenesses are float32.

    Args:
        features: [T,h,w,C] of any float dtype; a zero vector is like nothing.
        labels: of the first frame, [h,w,K].
        protocol: protocol A where not given.
        progress: called with (frames done, in all).

    Raises:
        ValueError: labels of another grid than the features.
    """
    protocol = protocol or Protocol()
    if features.ndim != 4 or labels.shape[:2] != features.shape[1:3]:
        raise ValueError(
            f"features of {list(features.shape)} need labels [h,w,K] of their grid; got {list(labels.shape)}"
        )
    reach = protocol.reach(features.shape[1])
    wide = features.shape[2] > features.shape[1]
    if wide:
        features, labels = features.transpose(1, 2), labels.transpose(0, 1)
    T, h, w, C = features.shape
    n, K, context = h * w, labels.shape[2], min(protocol.context, T - 1)
    top = min(protocol.top, n)
    # Slot 0 holds the first frame, the others the last ones in a ring.
    x = features.new_empty(1 + context, n, C, dtype=torch.float32)
    y = features.new_empty(1 + context, n, K, dtype=torch.float32)
    soft = features.new_empty(T, n, K, dtype=torch.float32)
    soft[0] = y[0] = labels.reshape(n, K)
    x[0] = _unit(features[0])
    bands = _bands(h, w, reach, protocol.window, x.device)
    for t in range(1, T):
        now = _unit(features[t])
        known = min(t - 1, context)
        # More copies of a voter than there are votes change nothing.
        missing = min(protocol.context - known, top) if protocol.stand_in else 0
        for band in bands:
            query = now[band.cells]
            bias = band.bias()
            # Likenesses and places [cells, so many] of each frame's best voters.
            best = [_voters(query, x[1 : 1 + known], band.near, bias, n, 1, top)] if known else []
            first = x[:1]
            if missing or protocol.restrict_first:
                near = _voters(query, first, band.near, bias, n, 0, top)
                best += [near] * (missing + protocol.restrict_first)
            if not protocol.restrict_first:
                best.append(_voters(query, first, slice(0, n), None, n, 0, top))
            value, place = (torch.cat(part, 1) for part in zip(*best, strict=True))
            value, order = value.topk(min(top, value.shape[1]), 1)
            weight = (value / protocol.temperature).softmax(1)
            chosen = y.flatten(0, 1)[place.gather(1, order)]  # [cells,top,K]
            soft[t, band.cells] = torch.bmm(weight[:, None], chosen)[:, 0]
        if context:
            slot = 1 + (t - 1) % context
            x[slot], y[slot] = now, soft[t]
        if progress is not None:
            progress(t + 1, T)
    made = soft.reshape(T, h, w, K)
    return made.transpose(1, 2) if wide else made


def _unit(frame: Tensor) -> Tensor:
    """[h,w,C] to unit vectors, float32 [h*w,C]."""
    return F.normalize(frame.float().flatten(0, 1), dim=1)


@dataclass(frozen=True, eq=False)
class _Band:
    """Lines of cells that look together: their cells, those they may reach, and which pairs are too far apart."""

    lines: tuple[int, int]
    reached: tuple[int, int]
    width: int
    reach: float
    window: str
    device: torch.device

    @property
    def cells(self) -> slice:
        return slice(self.lines[0] * self.width, self.lines[1] * self.width)

    @property
    def near(self) -> slice:
        return slice(self.reached[0] * self.width, self.reached[1] * self.width)

    def bias(self) -> Tensor | None:
        """0 where a pair may vote and -inf elsewhere, float32 [cells,near]; None where all may."""
        if math.isinf(self.reach):
            return None
        down = torch.arange(*self.lines, device=self.device)[:, None] - torch.arange(*self.reached, device=self.device)
        across = torch.arange(self.width, device=self.device)
        across = across[:, None] - across
        if self.window == "disk":
            far = (down**2)[:, None, :, None] + (across**2)[None, :, None, :] >= self.reach**2
        else:
            far = (down.abs() > self.reach)[:, None, :, None] | (across.abs() > self.reach)[None, :, None, :]
        return torch.zeros(far.shape, device=self.device).masked_fill_(far, -torch.inf).flatten(2).flatten(0, 1)


def _bands(h: int, w: int, reach: float, window: str, device: torch.device) -> list[_Band]:
    """Bands over the lines of a grid: narrow enough to leave out what is far, and for the memory."""
    steps = h if math.isinf(reach) else min(h, max(1, round(reach / 2.5)))
    steps = max(1, min(steps, _AT_ONCE // (w * h * w)))
    far = h if math.isinf(reach) else math.ceil(reach) - 1 if window == "disk" else math.floor(reach)
    return [
        _Band((a, min(h, a + steps)), (max(0, a - far), min(h, a + steps + far)), w, reach, window, device)
        for a in range(0, h, steps)
    ]


def _voters(
    query: Tensor, frames: Tensor, near: slice, bias: Tensor | None, n: int, slot: int, top: int
) -> tuple[Tensor, Tensor]:
    """The best of each frame: likeness [cells,frames*top], and place among the cells of all slots.

    Args:
        query: [cells,C]. frames: [frames,n,C], of the slots from `slot` on. near: cells that may vote.
        bias: [cells,near] that is added, or None.
    """
    values, places = [], []
    wide = near.stop - near.start
    step = max(1, _AT_ONCE // (len(query) * wide))
    for chunk in range(0, len(frames), step):
        part = frames[chunk : chunk + step, near].transpose(1, 2)
        many = query.expand(len(part), -1, -1)
        like = torch.bmm(many, part) if bias is None else torch.baddbmm(bias, many, part)
        value, index = like.topk(min(top, wide), 2)
        index += near.start + n * (slot + chunk + torch.arange(len(part), device=index.device))[:, None, None]
        values.append(value.transpose(0, 1).flatten(1))
        places.append(index.transpose(0, 1).flatten(1))
    return torch.cat(values, 1), torch.cat(places, 1)


def first_labels(
    mask: Tensor, objects: int, size: tuple[int, int], grid: tuple[int, int], how: str = "bilinear"
) -> Tensor:
    """The first frame's labels on the grid, float32 [h,w,objects+1].

    Args:
        mask: integers [H,W], 0 = background, 1..objects.
        size: rows and columns of the frames as they are encoded.
        grid: rows and columns of cells.
        how: "bilinear": one-hot at `size` (nearest), then bilinear to the grid. "nearest": one label a cell.

    Raises:
        ValueError: more objects than a mask has numbers for.
    """
    if objects > MOST_OBJECTS:
        raise ValueError(f"{objects} objects; masks have numbers and colours for {MOST_OBJECTS}")
    if how == "nearest":
        return F.one_hot(resize_masks(mask[None], grid)[0].long(), objects + 1).float()
    hot = F.one_hot(resize_masks(mask[None], size)[0].long(), objects + 1).permute(2, 0, 1)[None].float()
    return F.interpolate(hot, grid, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


def to_masks(soft: Tensor, size: tuple[int, int], *, rescale: bool = False) -> Tensor:
    """Soft labels [T,h,w,K] to masks uint8 [T,H,W]: bilinear to `size`, then the largest, the first of equals.

    With `rescale` each label's map of a frame is first stretched to 0..1 there; one without any weight stays 0.
    """
    masks = torch.zeros(len(soft), *size, dtype=torch.uint8, device=soft.device)
    for frame, mask in zip(soft, masks, strict=True):
        maps = F.interpolate(frame.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0]
        if rescale:
            low, high = maps.flatten(1).aminmax(dim=1)
            span = torch.where(high > low, high - low, 1)[:, None, None]
            maps = (maps - low[:, None, None]) / span
        # Label by label: a maximum over so short an axis is slow.
        first, *others = maps
        for number, value in enumerate(others, 1):
            mask.masked_fill_(value > first, number)
            first = torch.maximum(first, value)
    return masks
