"""Label propagation: carries the labels of the first frame through a video by the similarity of frozen features.

Two protocols are in use, and a score means nothing without its protocol. A is that of CropMAE (arXiv 2403.17823) and
ToBo (2507.06543), after the space-time random walks of Jabri et al. (2006.14613); B is that of DINO (2104.14294), which
RSP (2406.07398) uses with other values. Both compute the same weights: the softmax of the largest similarities over a
temperature equals exp(similarity / temperature) of the largest, normalized to sum 1.
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

from fewtokens.data.masks import MAX_OBJECTS, resize_masks

# Similarities in memory at a time: 64 MiB of float32.
_MAX_SIMILARITIES = 2**24


@dataclass(frozen=True)
class Protocol:
    """How labels are propagated; the defaults are protocol A on DAVIS.

    Attributes:
        name: the name reported with scores.
        size: size of the encoded frames: "480x880" (rows x columns), "short 480" or "long 880" (length of that side,
            the other in proportion), or "native".
        multiple: with "short" or "long", the other side is rounded down to a multiple of this.
        images: interpolation to that size: "bilinear" (antialiased), or "nearest" as in the data of RSP and CropMAE.
        context: number of previous frames that vote in addition to the first frame.
        stand_in: at the start of the video, the first frame votes again for each missing previous frame.
        radius: maximum distance of a voter in cells; 0 for no limit.
        window: "disk": Euclidean distance below the radius; "square": rows and columns up to the radius.
        restrict_first: whether the radius applies to the first frame too.
        rows: rows of the grid for which the radius is specified; it scales in proportion on other grids. 0 to use the
            same radius on all grids.
        top: number of voters of a cell, over all frames together.
        temperature: temperature of the softmax over their cosines.
        labels: how the first mask is resized to the grid: "bilinear" (one-hot at the size of the frames, then soft), or
            "nearest" (one label per cell).
        rescale: stretch the map of each label to 0..1 before taking the largest.
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
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be {' or '.join(values)}, got {getattr(self, name)!r}")
        if not re.fullmatch(r"native|[1-9]\d*x[1-9]\d*|(short|long) [1-9]\d*", self.size):
            raise ValueError(f"size must be like 480x880, 'short 480', 'long 880' or native, got {self.size!r}")
        if not math.isfinite(self.radius + self.temperature):
            raise ValueError("radius and temperature must be finite; use radius 0 for no limit")
        if min(self.context, self.radius, self.rows) < 0 or min(self.top, self.multiple) < 1 or self.temperature <= 0:
            raise ValueError(
                "context, radius and rows must be at least 0, top and multiple at least 1, temperature above 0"
            )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns at which frames of this size are encoded."""
        if self.size == "native":
            return height, width
        if "x" in self.size:
            rows, columns = map(int, self.size.split("x"))
            return rows, columns
        side, text = self.size.split()
        length = int(text)
        native_length = min(height, width) if side == "short" else max(height, width)

        def scaled(other: int) -> int:
            return max(self.multiple, length * other // native_length // self.multiple * self.multiple)

        return (length, scaled(width)) if height == native_length else (scaled(height), length)

    def reach(self, rows: int) -> float:
        """Returns the radius in cells on a grid with this number of rows; infinite for no limit."""
        if not self.radius:
            return math.inf
        return self.radius * rows / self.rows if self.rows else self.radius

    def describe(self, rows: int | None = None, *, masks: bool = True) -> str:
        """Describes the settings in words, to report with a score.

        Args:
            rows: rows of the grid, to report the radius on it; None to report the radius as specified.
            masks: whether the labels are masks; False for joints.
        """
        window = "anywhere"
        if self.radius:
            grid = f" on {self.rows} rows" if self.rows and rows is None else ""
            window = f"within {self.radius if rows is None else self.reach(rows):g} cells{grid} ({self.window})"
            window += "" if self.restrict_first else ", in the first frame anywhere"
        parts = [
            f"frames at {self.size}, {self.images}"
            + (f", the other side rounded down to a multiple of {self.multiple}" if " " in self.size else ""),
            f"the first frame and {self.context} previous frames vote"
            + (", the first also for missing ones" if self.stand_in else ""),
            f"voters {window}",
            f"softmax of the top {self.top} cosines / {self.temperature:g}",
        ]
        if masks:
            parts += [
                f"first mask resized to the grid {self.labels}",
                "soft labels resized to the frames bilinear"
                + (", each stretched to 0..1" if self.rescale else "")
                + ", argmax",
            ]
        else:
            parts.append("joints as maps of sigma 0.5 cells, predicted as the mean of the top 5 cells")
        return f"protocol {self.name}: {'; '.join(parts)}"


_A = Protocol()
_B = Protocol(
    "B", size="short 480", context=7, stand_in=False, radius=12, window="square", restrict_first=True, top=5,
    temperature=0.1, labels="nearest", rescale=True,
)  # fmt: skip

# Published protocols by data set and name. Those of RSP and ToBo on JHMDB and VIP are not published. The scripts of B
# normalize red by a standard deviation of .228, a typing error; here it is .229, as of the encoder.
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
    """Returns a preset with changes.

    Args:
        data: davis, jhmdb or vip.
        name: A, B (DINO's values) or B-rsp; B is published only for DAVIS.
        changes: NAME=VALUE for any attribute of `Protocol` except its name, to which the changes are added.

    Raises:
        ValueError: no such preset or attribute, an invalid value, or a change without effect.
    """
    presets = PROTOCOLS[data]
    if name not in presets:
        raise ValueError(f"the protocol for {data} must be one of {', '.join(presets)}, got {name!r}")
    protocol = presets[name]
    defaults = asdict(protocol)
    values: dict[str, object] = {}
    for change in changes:
        key, equals, text = (part.strip() for part in change.partition("="))
        if not equals or key not in defaults or key == "name":
            names = ", ".join(setting for setting in defaults if setting != "name")
            raise ValueError(f"--set must be NAME=VALUE with a name of {names}, got {change!r}")
        values[key] = _parse_value(key, text, type(defaults[key]))
    _check_used(data, values, dataclasses.replace(protocol, **values))  # type: ignore[arg-type]
    full_name = f"{name} with {', '.join(f'{key}={value}' for key, value in values.items())}" if values else name
    return dataclasses.replace(protocol, **(values | {"name": full_name}))  # type: ignore[arg-type]


def _check_used(data: str, values: dict[str, object], protocol: Protocol) -> None:
    """Raises ValueError for a change without effect."""
    unused = {"labels", "rescale"} if data == "jhmdb" else set()
    unused |= set() if " " in protocol.size else {"multiple"}
    unused |= set() if protocol.radius else {"window", "restrict_first", "rows"}
    if names := sorted(unused & set(values)):
        raise ValueError(
            f"--set {names[0]} has no effect: labels and rescale apply to masks, multiple to a size with short or "
            "long, and window, restrict_first and rows to a radius above 0"
        )


def _parse_value(key: str, text: str, kind: type) -> object:
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
    """Propagates labels; returns soft labels of every frame, float32 [T,h,w,K], on the device of the features.

    Each cell receives the weighted mean of the labels of the `top` most similar cells (cosine) among all voting frames.
    Predicted labels stay soft when they vote. Each pair of frames is compared once, in bands along the longer side, so
    that few cells beyond the radius are compared; the best voters of each frame are then merged.

    Memory in addition to features and result: (1 + context) * h*w * (C + K) floats for the voting frames, and 64 MiB of
    float32 similarities, or more if those of one line of cells and one frame exceed this.

    Args:
        features: [T,h,w,C] of any float dtype; a zero vector has similarity 0 to all others.
        labels: labels of the first frame, [h,w,K]; they are the first result.
        protocol: the settings. Default: protocol A.
        progress: called with (frames done, total).

    Raises:
        ValueError: features and labels have different grids.
    """
    protocol = protocol or Protocol()
    if features.ndim != 4 or labels.shape[:2] != features.shape[1:3]:
        raise ValueError(
            f"features must be [T,h,w,C] and labels [h,w,K], got {list(features.shape)} and {list(labels.shape)}"
        )
    reach = protocol.reach(features.shape[1])
    wide = features.shape[2] > features.shape[1]
    if wide:
        features, labels = features.transpose(1, 2), labels.transpose(0, 1)
    T, h, w, C = features.shape
    n, K, context = h * w, labels.shape[2], min(protocol.context, T - 1)
    top = min(protocol.top, n)
    # Slot 0 holds the first frame; the others are a ring buffer of the previous frames.
    x = features.new_empty(1 + context, n, C, dtype=torch.float32)
    y = features.new_empty(1 + context, n, K, dtype=torch.float32)
    soft = features.new_empty(T, n, K, dtype=torch.float32)
    soft[0] = y[0] = labels.reshape(n, K)
    x[0] = _unit(features[0])
    bands = _bands(h, w, reach, protocol.window, x.device)
    for t in range(1, T):
        current = _unit(features[t])
        previous = min(t - 1, context)
        # More copies of a voter than `top` have no effect.
        missing = min(protocol.context - previous, top) if protocol.stand_in else 0
        for band in bands:
            query = current[band.cells]
            bias = band.bias()
            # Similarities and indices [cells, voters] of the best voters of each frame.
            best = [_voters(query, x[1 : 1 + previous], band.near, bias, n, 1, top)] if previous else []
            first = x[:1]
            if missing or protocol.restrict_first:
                near = _voters(query, first, band.near, bias, n, 0, top)
                best += [near] * (missing + protocol.restrict_first)
            if not protocol.restrict_first:
                best.append(_voters(query, first, slice(0, n), None, n, 0, top))
            similarity, index = (torch.cat(part, 1) for part in zip(*best, strict=True))
            similarity, order = similarity.topk(min(top, similarity.shape[1]), 1)
            weight = (similarity / protocol.temperature).softmax(1)
            votes = y.flatten(0, 1)[index.gather(1, order)]  # [cells,top,K]
            soft[t, band.cells] = torch.bmm(weight[:, None], votes)[:, 0]
        if context:
            slot = 1 + (t - 1) % context
            x[slot], y[slot] = current, soft[t]
        if progress is not None:
            progress(t + 1, T)
    soft = soft.reshape(T, h, w, K)
    return soft.transpose(1, 2) if wide else soft


def _unit(frame: Tensor) -> Tensor:
    """[h,w,C] to unit vectors, float32 [h*w,C]."""
    return F.normalize(frame.float().flatten(0, 1), dim=1)


@dataclass(frozen=True, eq=False)
class _Band:
    """Lines of cells that are processed together.

    Attributes:
        lines: range of these lines.
        reachable: range of the lines within the radius.
        width: cells per line.
        reach: the radius in cells.
        window: "disk" or "square", see `Protocol`.
        device: device of `bias`.
    """

    lines: tuple[int, int]
    reachable: tuple[int, int]
    width: int
    reach: float
    window: str
    device: torch.device

    @property
    def cells(self) -> slice:
        return slice(self.lines[0] * self.width, self.lines[1] * self.width)

    @property
    def near(self) -> slice:
        return slice(self.reachable[0] * self.width, self.reachable[1] * self.width)

    def bias(self) -> Tensor | None:
        """Returns 0 for pairs within the radius and -inf for others, float32 [cells,near]; None without a radius."""
        if math.isinf(self.reach):
            return None
        down = torch.arange(*self.lines, device=self.device)[:, None]
        down = down - torch.arange(*self.reachable, device=self.device)
        across = torch.arange(self.width, device=self.device)
        across = across[:, None] - across
        if self.window == "disk":
            far = (down**2)[:, None, :, None] + (across**2)[None, :, None, :] >= self.reach**2
        else:
            far = (down.abs() > self.reach)[:, None, :, None] | (across.abs() > self.reach)[None, :, None, :]
        return torch.zeros(far.shape, device=self.device).masked_fill_(far, -torch.inf).flatten(2).flatten(0, 1)


def _bands(h: int, w: int, reach: float, window: str, device: torch.device) -> list[_Band]:
    """Splits the lines of a grid into bands, narrow enough to skip distant cells and to fit in memory."""
    steps = h if math.isinf(reach) else min(h, max(1, round(reach / 2.5)))
    steps = max(1, min(steps, _MAX_SIMILARITIES // (w * h * w)))
    far = h if math.isinf(reach) else math.ceil(reach) - 1 if window == "disk" else math.floor(reach)
    return [
        _Band((a, min(h, a + steps)), (max(0, a - far), min(h, a + steps + far)), w, reach, window, device)
        for a in range(0, h, steps)
    ]


def _voters(
    query: Tensor, frames: Tensor, near: slice, bias: Tensor | None, n: int, slot: int, top: int
) -> tuple[Tensor, Tensor]:
    """Returns the best voters of each frame: similarities [cells,frames*top], and indices into the cells of all slots.

    Args:
        query: [cells,C].
        frames: [frames,n,C], the frames in the slots from `slot` on.
        near: cells that may vote.
        bias: [cells,near], added to the similarities, or None.
        n: cells per frame.
        slot: slot of the first of `frames`.
        top: voters per frame.
    """
    values, indices = [], []
    count = near.stop - near.start
    step = max(1, _MAX_SIMILARITIES // (len(query) * count))
    for chunk in range(0, len(frames), step):
        part = frames[chunk : chunk + step, near].transpose(1, 2)
        queries = query.expand(len(part), -1, -1)
        similarity = torch.bmm(queries, part) if bias is None else torch.baddbmm(bias, queries, part)
        value, index = similarity.topk(min(top, count), 2)
        index += near.start + n * (slot + chunk + torch.arange(len(part), device=index.device))[:, None, None]
        values.append(value.transpose(0, 1).flatten(1))
        indices.append(index.transpose(0, 1).flatten(1))
    return torch.cat(values, 1), torch.cat(indices, 1)


def first_labels(
    mask: Tensor, objects: int, size: tuple[int, int], grid: tuple[int, int], how: str = "bilinear"
) -> Tensor:
    """Returns the labels of the first frame on the grid, float32 [h,w,objects+1].

    Args:
        mask: integers [H,W], 0 for the background, 1..objects for objects.
        objects: number of objects.
        size: rows and columns of the encoded frames.
        grid: rows and columns of cells.
        how: "bilinear": one-hot at `size` (nearest), then bilinear to the grid. "nearest": one label per cell.

    Raises:
        ValueError: more objects than a mask can represent.
    """
    if objects > MAX_OBJECTS:
        raise ValueError(f"a mask can represent at most {MAX_OBJECTS} objects, got {objects}")
    if how == "nearest":
        return F.one_hot(resize_masks(mask[None], grid)[0].long(), objects + 1).float()
    one_hot = F.one_hot(resize_masks(mask[None], size)[0].long(), objects + 1).permute(2, 0, 1)[None].float()
    return F.interpolate(one_hot, grid, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


def to_masks(soft: Tensor, size: tuple[int, int], *, rescale: bool = False) -> Tensor:
    """Converts soft labels [T,h,w,K] to masks uint8 [T,H,W]: bilinear to `size`, then argmax (the first if equal).

    Args:
        soft: soft labels.
        size: rows and columns of the masks.
        rescale: stretch the map of each label in each frame to 0..1 before the argmax; empty maps stay 0.
    """
    # Along each axis at most two cells contribute to a pixel, so these products are the sums of `F.interpolate`.
    down, across = (_interpolation(*pair, soft.device) for pair in zip(size, soft.shape[1:3], strict=True))
    columns = soft.float().movedim(3, 1) @ across.T  # [T,K,h,W]
    masks = torch.zeros(len(soft), *size, dtype=torch.uint8, device=soft.device)
    for frame, mask in zip(columns, masks, strict=True):
        # A loop over the labels: argmax over such a short axis is slow.
        largest = None
        for number, column in enumerate(frame):
            value = down @ column
            if rescale:
                low, high = value.aminmax()
                value.sub_(low).div_(torch.where(high > low, high - low, 1))
            if largest is None:
                largest = value
                continue
            # Numbers increase, so the last label that is larger than all before it is the largest number.
            torch.maximum(mask, (value > largest).to(torch.uint8).mul_(number), out=mask)
            torch.maximum(value, largest, out=largest)
    return masks


def _interpolation(pixels: int, cells: int, device: torch.device) -> Tensor:
    """The weight of each cell in each pixel in bilinear interpolation along one axis, float32 [pixels,cells]."""
    position = ((torch.arange(pixels, device=device) + 0.5) * (cells / pixels) - 0.5).clamp(min=0)
    before = position.floor().long().clamp(max=cells - 1)
    fraction = (position - before)[:, None]
    weight = torch.zeros(pixels, cells, device=device).scatter_(1, before[:, None], 1 - fraction)
    return weight.scatter_add_(1, (before + 1).clamp(max=cells - 1)[:, None], fraction)
