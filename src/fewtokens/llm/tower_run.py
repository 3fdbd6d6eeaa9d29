"""Encodes images and videos with the methods of a chain that act before or inside the vision tower."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.method import CUES, Method, Reducer
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import RowLayout, Shape, VisualFeatures, join_layouts
from fewtokens.llm.interface import unsupported
from fewtokens.llm.tower_merging import BLOCK_CUES, TowerMerging
from fewtokens.llm.tower_patches import (
    CannotSkipError,
    PatchChoice,
    VideoChoice,
    patches_of_cells,
    require_tower,
    skip_patches,
)

TOWERS = ("kept", "full")
# Cues that do not come from inside the vision tower.
_OTHER_CUES = {"pixels", "text", "frame_global"}
Groups = list[tuple[str, int]]


@dataclass(frozen=True)
class TowerMethods:
    """The methods of a chain that act before or inside the vision tower.

    Attributes:
        before: the first methods, as far as they decide from pixels; patches that they do not read are not encoded.
        inside: the first methods, if they act between the blocks.
    """

    before: tuple[Method, ...] = ()
    inside: tuple[Method, ...] = ()

    @classmethod
    def of(cls, pipeline: Pipeline, tower: str = "kept") -> TowerMethods:
        """Those of a chain.

        Args:
            tower: see `compress`; with "full" none acts before the tower.

        Raises:
            ValueError: `tower` is neither "kept" nor "full", or a method cannot act inside the tower.
        """
        if tower not in TOWERS:
            raise ValueError(f"tower must be one of {', '.join(TOWERS)}, got {tower!r}")
        methods: list[Any] = list(pipeline.methods)
        inside = tuple(method for method in methods if method.stage == "encoder")
        # Cues of a tower are those of all patches.
        reading = [
            method
            for method in methods
            if method.stage != "encoder" and set(getattr(method, "needs", ())) - _OTHER_CUES
        ]
        for method in inside:
            if methods[0].stage != "encoder" or reading:
                other = reading[0] if methods[0].stage == "encoder" else methods[0]
                raise ValueError(
                    f"{method.name} acts inside the vision tower, where it cannot be combined with {other.name}; use "
                    "one of them"
                )
            for need in set(method.needs) - set(BLOCK_CUES):
                remedy = "; use vid_tldr(by='shift')" if method.name == "vid_tldr" else ""
                raise ValueError(
                    f"{method.spec} needs {need} ({CUES[need]}) of each block, which vision towers of language models "
                    f"do not provide{remedy}"
                )
        first = takewhile(lambda method: isinstance(method, Reducer) and method.decides_from_pixels, methods)
        before = first if tower == "kept" and not reading else ()
        return cls(tuple(before), inside)

    @property
    def specs(self) -> tuple[str, ...]:
        """What the features of a video depend on."""
        return tuple(method.spec for method in (*self.before, *self.inside))


@dataclass
class Expected:
    """The images and videos of one modality, as far as they are known before encoding.

    Attributes:
        groups: ("image" or "video", its number of entries), in order.
        layouts: the rows of each group; None if they form no grid.
        shapes: (frames, rows, columns) of the patches of each entry.
        merges: the number of patches of each entry that are merged along each side; None if the tower takes frames.
    """

    groups: Groups
    layouts: list[RowLayout | None]
    shapes: list[Shape]
    merges: list[int | None]

    def entries(self) -> list[slice]:
        """The entries of each group."""
        ends = torch.tensor([0, *(count for _, count in self.groups)]).cumsum(0).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]


class TowerRun:
    """Encodes one modality of a prompt.

    Args:
        groups: the images and videos, from the rows [n,D] of the entries and the prompt of each row, int64 [sum of n].
        only_images: whether the prompt is known to have no video.

    Attributes:
        choice: which patches are encoded; None for all.
    """

    def __init__(
        self,
        backend: Backend,
        model: Any,
        modality: str,
        prompt: dict[str, Any],
        methods: TowerMethods,
        groups: Callable[[list[Tensor], Tensor], Groups],
        *,
        only_images: bool = False,
    ) -> None:
        self._arguments = backend, model, modality, prompt
        # Images are not reduced; some families take videos as images.
        has_videos = modality == "video" or (backend.needs_items and not only_images)
        self.groups, self._methods = groups, methods if has_videos else TowerMethods()
        self.choice: PatchChoice | None = None
        self._merging: TowerMerging | None = None
        self._expected = self._expect() if self._methods != TowerMethods() else None

    def encode(self) -> Any:
        """Returns the output of the encoder.

        Rows of patches that are not encoded have no meaning; rows of merged patches are equal, but for DeepStack.

        Warns if patches cannot be left out.

        Raises:
            ValueError: methods cannot act inside the vision tower.
        """
        backend, model, modality, prompt = self._arguments
        if self._methods.inside:
            name = self._methods.inside[0].name
            try:
                self._merging = self._merge()
                if self._merging is not None:
                    with self._merging.attached():
                        return backend.encode(model, modality, prompt)
            except CannotSkipError as reason:
                raise ValueError(
                    f"{name} acts between the blocks of a vision tower, which that of {backend.name} does not support: "
                    f"{reason}; use a method of the stage 'tokens'"
                ) from None
        elif self._methods.before:
            try:
                self.choice = self._choose()
                if not self.choice.is_full:
                    with skip_patches(model, modality, self.choice, prompt.get(f"{modality}_grid_thw")):
                        return backend.encode(model, modality, prompt)
            except CannotSkipError as reason:
                # What is decided stays valid for the features of all patches.
                warnings.warn(f"the vision tower of {backend.name} encodes all patches: {reason}", stacklevel=2)
        return backend.encode(model, modality, prompt)

    def note(self, visuals: Sequence[VisualFeatures]) -> None:
        """Stores with the videos what the methods have decided.

        Raises:
            ValueError: the encoder returned rows of another grid than expected.
        """
        backend = self._arguments[0]
        grids = [None] * len(visuals) if self._expected is None else self._expected.layouts
        for visual, layout in zip(visuals, grids, strict=True):
            if layout is not None and visual.layout != layout:
                raise unsupported(f"{backend.name} returns cells {visual.grid} instead of {layout.grid}")
        if self.choice is not None:
            for visual, video in zip(visuals, self.choice.videos, strict=True):
                if video is not None:
                    visual.plans, visual.pixels, visual.encoded = video.plans, video.pixels, video.cells
        if self._merging is not None:
            frames = 0
            for visual in visuals:
                assert visual.grid is not None and visual.layout is not None
                cells = visual.layout.cells(visual.features.device)
                rows = [values[cells] for values in (visual.features, *visual.deepstack)]
                plan = self._merging.plan(slice(frames, frames + visual.grid.T), rows)
                index = torch.arange(plan.num_slots, device=plan.count.device)[None]
                same = Plan(plan.count, plan.num_slots, index, index)
                # One plan for all methods together.
                visual.plans = [plan, *[same] * (len(self._methods.inside) - 1)]
                frames += visual.grid.T

    def _choose(self) -> PatchChoice:
        """Decides which patches the methods before the tower read.

        Raises:
            CannotSkipError: it is not known before encoding which rows will be cells.
        """
        backend, model, modality, prompt = self._arguments
        if self._expected is None:
            raise CannotSkipError("its number of rows is not known before")
        if backend.raster:
            raise CannotSkipError("its patches are in raster order")
        choice, shapes, merges = PatchChoice(), self._expected.shapes, self._expected.merges
        for (kind, _), own, layout in zip(
            self._expected.groups, self._expected.entries(), self._expected.layouts, strict=True
        ):
            if kind == "image" or layout is None:
                choice.videos.append(None)
                choice.patches += [torch.ones(shape, dtype=torch.bool) for shape in shapes[own]]
                choice.merges += merges[own]
                continue
            pixels = backend.pixels(model, modality, prompt, own, layout)
            video = VideoChoice.by(self._methods.before, layout.grid, pixels)
            t, (_, h, w) = sum(shape[0] for shape in shapes[own]), shapes[own][0]
            choice.videos.append(video)
            choice.patches.append(patches_of_cells(video.cells.reshape(layout.grid.shape), (t, h, w)).cpu())
            choice.merges.append(merges[own][0])
        return choice

    def _merge(self) -> TowerMerging | None:
        """Prepares the methods inside the tower; None if there are no videos.

        Raises:
            CannotSkipError: frames differ in size, or rows of the language model share patches.
        """
        _, model, modality, prompt = self._arguments
        expected = self._expected
        if expected is None or any(layout is None for layout in expected.layouts):
            raise CannotSkipError("its rows are not known before")
        kinds = {kind for kind, _ in expected.groups}
        if kinds == {"image"}:
            return None
        if len(kinds) > 1:
            raise CannotSkipError("the prompt also has images, which it encodes together with the video")
        grids = [layout.grid for layout in expected.layouts if layout is not None]
        sizes = {
            (grid.H, grid.W, shape[1:], merge)
            for grid in grids
            for shape, merge in zip(expected.shapes, expected.merges, strict=True)
        }
        if len(sizes) > 1:
            raise CannotSkipError("frames differ in size")
        (H, W, (h, w), merge), frames = sizes.pop(), sum(shape[0] for shape in expected.shapes)
        side = h // H
        if (h, w) != (H * side, W * side) or merge not in (None, side):
            raise CannotSkipError("its rows share patches")
        if frames != sum(grid.T for grid in grids):
            raise CannotSkipError("it averages frames")
        tower = require_tower(model, modality)
        shapes = prompt.get(f"{modality}_grid_thw")
        windows = None if shapes is None else tower.windows(shapes)
        packed = merge is not None
        raster = self._arguments[0].raster or not packed
        return TowerMerging(
            self._methods.inside, tower, frames, (H, W), side, packed=packed, raster=raster, windows=windows
        )

    def _expect(self) -> Expected | None:
        """What is known before encoding; None if the number of rows is not."""
        backend, model, modality, prompt = self._arguments
        grids = prompt.get(f"{modality}_grid_thw")
        pixels = next(prompt[name] for name in backend.pixel_inputs[modality] if prompt.get(name) is not None)
        if grids is None and pixels.ndim == 5 and modality == "image":
            pixels = pixels.flatten(0, 1)
            pixels = pixels[pixels.flatten(1).any(1)]  # others are padding
        count = len(pixels if grids is None else grids)
        sizes = None if backend.latents else backend.shapes(model, modality, prompt, count)
        patch = (1, 1) if grids is not None else _patch_size(model)
        if sizes is None or len(sizes) != count or patch is None:
            return None
        shapes = [(t, h // patch[0], w // patch[1]) for t, h, w in sizes]
        merges = list(backend.merges(model, modality, prompt, count))
        weights = [t * h * w / (merge or 1) ** 2 for (t, h, w), merge in zip(shapes, merges, strict=True)]
        ids = prompt["input_ids"]
        totals = [int((ids == placeholder).sum()) for placeholder in backend.placeholders(model, modality)]
        for total in totals if grids is None else (round(sum(weights)), *totals):
            rows = split_rows(weights, total)
            try:
                _, at = backend.locate(model, modality, prompt, total)
            except ValueError:
                continue
            if rows is None:
                continue
            entries = [pixels.new_empty(n, 0) for n in rows]
            groups = self.groups(entries, at[:, 0])
            layouts = backend.layouts(model, modality, prompt, entries)
            expected = Expected(groups, [], shapes, merges)
            expected.layouts = [join_layouts(layouts[own]) for own in expected.entries()]
            return expected
        return None


def _patch_size(model: Any) -> tuple[int, int] | None:
    """The height and width of a patch of the vision tower; None if the config does not specify it."""
    side = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    return (side, side) if isinstance(side, int) else None if side is None else tuple(side)


def split_rows(weights: Sequence[float], total: int) -> list[int] | None:
    """Splits `total` rows by weights, such as numbers of patches; None if that leaves fractions."""
    scale = total / sum(weights)
    rows = [round(weight * scale) for weight in weights]
    exact = all(abs(count - weight * scale) < 1e-6 for count, weight in zip(rows, weights, strict=True))
    return rows if exact and all(rows) else None
