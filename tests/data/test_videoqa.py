"""Synthetic clips with questions: the answers are verified in the pixels."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from fewtokens.data.scenes import COLORS, SHAPES, _handwriting
from fewtokens.data.videoqa import KINDS, Example, SceneConfig, VideoQA, make_clip, make_question


def pixels(example: Example, color: str) -> np.ndarray:
    """The pixels with exactly this color, [T,H,W]."""
    return (example.frames.permute(0, 2, 3, 1) == torch.tensor(COLORS[color])).all(3).numpy()


def dominant_mask(example: Example, color: str) -> np.ndarray:
    """The pixels that are mostly covered by an object of this color, [T,H,W]."""
    return dominant_colors(example) == list(COLORS).index(color)


@lru_cache(maxsize=4)
def dominant_colors(example: Example) -> np.ndarray:
    """The index of the color that covers most of each pixel, [T,H,W]; -1 is the background."""
    frames = example.frames.permute(0, 2, 3, 1).float()
    background = frames[0].reshape(-1, 3).median(0).values
    colors = torch.tensor(list(COLORS.values())) - background  # [8,3]
    frames = frames - background
    norms = colors.square().sum(1)
    fraction = (frames @ colors.T / norms).clamp(0, 1)  # [T,H,W,8]
    # |frame - fraction * color|^2 without |frame|^2, which is the same for all colors.
    errors = fraction.square() * norms - 2 * fraction * (frames @ colors.T)
    error, index = errors.min(-1)
    covered = fraction.gather(-1, index[..., None])[..., 0] > 0.5
    return torch.where(covered & (error + frames.square().sum(-1) < 45**2), index, -1).numpy()


def clips(kind: str, count: int, attribute: str | None = None, **settings) -> list[Example]:
    data = VideoQA(SceneConfig(seed=11, **settings), "test", 40 * count, kinds=(kind,))
    numbers = [n for n in range(len(data)) if attribute in (None, data.question(n).attribute)][:count]
    assert len(numbers) == count
    return [data[n] for n in numbers]


@cache
def template(shape: str) -> np.ndarray:
    """A shape drawn by Pillow that fills the image, [24,24]."""
    image = Image.new("L", (240, 240))
    draw = ImageDraw.Draw(image)
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.42, 1.05)
    corners = {
        "square": [(0, 0), (240, 0), (240, 240), (0, 240)],
        "triangle": [(120, 0), (240, 240), (0, 240)],
        "diamond": [(120, 0), (240, 120), (120, 240), (0, 120)],
        "star": [(120 + 120 * r * np.sin(t), 126 - 120 * r * np.cos(t)) for r, t in zip(radius, angle, strict=True)],
    }
    if shape == "circle":
        draw.ellipse((0, 0, 239, 239), fill=255)
    elif shape == "cross":
        draw.rectangle((0, 82, 239, 158), fill=255)
        draw.rectangle((82, 0, 158, 239), fill=255)
    else:
        draw.polygon(corners[shape], fill=255)
    return box(np.asarray(image) > 0)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The connected components of a mask [H,W], without the few pixels where two colors mix."""
    labels, count = ndimage.label(mask)
    return [component for component in (labels == n + 1 for n in range(count)) if component.sum() > 6]


def box(mask: np.ndarray) -> np.ndarray:
    """The bounding box of a mask, resized to [24,24] in 0..1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    resized = Image.fromarray(part.astype(np.float32)).resize((24, 24), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def nearest_shape(mask: np.ndarray) -> str:
    return min(SHAPES, key=lambda shape: float(np.abs(template(shape) - box(mask)).mean()))


def test_items_do_not_depend_on_earlier_ones():
    data, other = VideoQA(items=12), VideoQA(items=30)
    forward = [data[n] for n in range(12)]
    backward = [other[n] for n in reversed(range(12))][::-1]
    for number, (a, b) in enumerate(zip(forward, backward, strict=True)):
        assert torch.equal(a.frames, b.frames)
        assert (a.question, a.answer, a.choices) == (b.question, b.answer, b.choices)
        question = data.question(number)
        assert (a.question, a.answer, a.choices) == (question.question, question.answer, question.choices)
    assert torch.equal(data[-1].frames, forward[-1].frames)
    with pytest.raises(IndexError):
        data[12]


def test_splits_and_seeds_differ():
    examples = [make_clip(split, n) for split in ("train", "val", "test") for n in range(10)]
    examples += [make_clip("train", n, SceneConfig(seed=1)) for n in range(10)]
    assert len({clip.frames.numpy().tobytes() for clip in examples}) == len(examples)


@pytest.mark.parametrize("frames", [8, 16, 128])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_all_kinds_lengths_and_sizes(frames, size):
    config = SceneConfig(frames=frames, size=size, seed=frames + size)
    for number in range(20 if frames < 128 else 10):
        clip = make_clip("train", number, config)
        assert clip.kind == KINDS[number % 10]
        assert clip.frames.shape == (frames, 3, size, size)
        assert clip.frames.dtype == torch.uint8
        assert clip.times.tolist() == [n / 2 for n in range(frames)]
        assert clip.answer in clip.answers
        if clip.format == "choice":
            assert clip.answer in clip.choices
            assert len(set(clip.choices)) == len(clip.choices) == min(4, len(clip.answers))
        else:
            assert clip.choices == ()


def test_crowded_scenes_are_possible():
    """Crowded scenes at the smallest size."""
    for kind in ("count", "order", "needle", "collision"):
        for number in range(100):
            make_clip("train", number, SceneConfig(size=32, frames=8, seed=2, camera="moving"), kinds=(kind,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 7}, "frames must be 8 to 128, got 7"), ({"frames": 129}, "frames must be 8 to 128, got 129"),
        ({"size": 31}, "at least 32"), ({"fps": 0.0}, "fps"), ({"seed": -1}, "seed"), ({"camera": "drunk"}, "camera"),
    ],
)  # fmt: skip
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**settings)


def test_invalid_questions():
    with pytest.raises(ValueError, match="split must be"):
        VideoQA(split="training")
    with pytest.raises(ValueError, match="each kind must be"):
        VideoQA(kinds=("taste",))
    with pytest.raises(ValueError, match="each format must be"):
        make_clip("train", 0, formats=())
    with pytest.raises(ValueError, match="digits=True"):
        VideoQA(SceneConfig(digits=False), kinds=("digit",))
    with pytest.raises(ValueError, match="items"):
        VideoQA(items=0)
    with pytest.raises(ValueError, match="negative"):
        make_question("train", -1)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    _handwriting.cache_clear()
    data = VideoQA(SceneConfig(digits=False, seed=8), items=27)
    assert {data[n].kind for n in range(27)} == set(KINDS) - {"digit"}
    with pytest.raises(ValueError, match=r"pip install .*digits=False"):
        make_clip("val", 0, SceneConfig(seed=77), kinds=("digit",))
    _handwriting.cache_clear()


@pytest.mark.parametrize("camera", ["static", "moving"])
def test_shape(camera):
    for clip in clips("shape", 40, camera=camera):
        (color,) = [name for name in COLORS if name in clip.question.split()]
        for mask in dominant_mask(clip, color)[[0, -1]]:
            assert nearest_shape(mask) == clip.answer


def test_color():
    for clip in clips("color", 30):
        color_of = {nearest_shape(dominant_mask(clip, name)[0]): name for name in COLORS if pixels(clip, name)[0].any()}
        (shape,) = [name for name in SHAPES if name in clip.question.rstrip("?").split()]
        assert color_of[shape] == clip.answer


def test_digit():
    """Classified by the nearest mean of the handwriting samples, which is correct for nine of ten digits."""
    samples, digits = _handwriting()
    means = np.stack([samples[digits == digit].mean(0) for digit in range(10)]).reshape(10, -1)
    correct = []
    for clip in clips("digit", 60, "colored", size=96, camera="static"):
        (color,) = [name for name in COLORS if name in clip.question.rstrip("?").split()]
        mask = dominant_mask(clip, color)[0]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        side = max(len(rows), rows[-1] - rows[0] + 1)
        middle = (columns[0] + columns[-1] + 1) // 2
        part = np.pad(mask, side)[rows[0] + side : rows[0] + 2 * side, middle - side // 2 + side :][:, :side]
        small = np.asarray(Image.fromarray(part.astype(np.float32)).resize((8, 8), Image.Resampling.BOX)).ravel()
        correct.append(str(np.argmin(((means - small) ** 2).sum(1))) == clip.answer)
    assert np.mean(correct) > 0.75


@pytest.mark.parametrize("camera", ["static", "moving"])
def test_direction(camera):
    directions = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for clip in clips("direction", 30, camera=camera):
        (color,) = [name for name in COLORS if name in clip.question.split()]
        mask = pixels(clip, color)
        centers = np.array([np.argwhere(frame).mean(0) for frame in mask])
        travel = centers[-1] - centers[0]
        along = float(travel @ directions[clip.answer])
        assert along > 64 / 4
        assert np.abs(travel).sum() - along < 2
        assert (np.diff(centers @ directions[clip.answer]) > 0).all()


def test_count():
    for clip in clips("count", 30, "object") + clips("count", 30, "color"):
        names = [name for name in COLORS if name in clip.question.rstrip("?").split()] or list(COLORS)
        for n in (0, 15):
            assert sum(len(components(dominant_mask(clip, name)[n])) for name in names) == int(clip.answer)


def test_count_of_shapes():
    for clip in clips("count", 30, "shape", size=96):
        counts = Counter[str]()
        for name in COLORS:
            counts.update(map(nearest_shape, components(dominant_mask(clip, name)[0])))
        (shape,) = [name for name in SHAPES if name in clip.question]
        assert counts[shape] == int(clip.answer)


def first_frames(clip: Example) -> dict[str, int]:
    shown = {name: pixels(clip, name).any((1, 2)) for name in COLORS}
    return {name: int(visible.argmax()) for name, visible in shown.items() if visible.any()}


@pytest.mark.parametrize("frames", [8, 40])
def test_order(frames):
    for clip in clips("order", 20, "color", frames=frames):
        first = first_frames(clip)
        assert len(set(first.values())) == len(first) == 4
        assert min(first, key=lambda name: first[name]) == clip.answer
    for clip in clips("order", 20, "pair", frames=frames):
        first = first_frames(clip)
        other = next(name for name in clip.answers if name != clip.answer)
        assert first[clip.answer] < first[other]
    for clip in clips("order", 20, "shape", frames=frames):
        first = first_frames(clip)
        earliest = min(first, key=lambda name: first[name])
        assert nearest_shape(dominant_mask(clip, earliest)[first[earliest]]) == clip.answer


@pytest.mark.parametrize(("frames", "fps"), [(8, 2.0), (16, 2.0), (128, 2.0), (16, 24.0)])
def test_moment(frames, fps):
    for clip in clips("moment", 12, frames=frames, fps=fps):
        second = float(clip.question.rstrip("?").split()[-1])
        frame = int(np.abs(clip.times.numpy() - second).argmin())
        assert abs(float(clip.times[frame]) - second) < 1e-3
        shown = [name for name in COLORS if pixels(clip, name)[frame].any()]
        assert len(shown) == 1
        shape = nearest_shape(dominant_mask(clip, shown[0])[frame])
        assert clip.answer == (shown[0] if clip.attribute == "color" else shape)
        # The other objects are visible at other times.
        assert sum(pixels(clip, name).any() for name in COLORS) == 4


def test_frame_of_a_second():
    questions = [
        question for question in VideoQA(items=300, kinds=("moment",)).questions() if "second 3?" in question.question
    ]
    assert questions
    assert {question.frame for question in questions} == {6}


@pytest.mark.parametrize("frames", [8, 16, 128])
def test_needle(frames):
    for attribute in ("color", "shape", "digit"):
        for clip in clips("needle", 8, attribute, frames=frames):
            shown = {name: pixels(clip, name).any((1, 2)) for name in COLORS}
            once = [name for name, visible in shown.items() if visible.sum() == 1]
            assert len(once) == 1
            assert all(visible.all() for name, visible in shown.items() if visible.any() and name != once[0])
            if attribute == "color":
                assert once[0] == clip.answer
            elif attribute == "shape":
                assert nearest_shape(dominant_mask(clip, once[0])[int(shown[once[0]].argmax())]) == clip.answer


def pixel_distance(clip: Example, one: str, other: str) -> int:
    """The minimum chessboard distance in pixels between two colors; pixels of mixed colors count as distance."""
    both = zip(pixels(clip, one), pixels(clip, other), strict=True)
    return min(int(ndimage.distance_transform_cdt(~a, "chessboard")[b].min()) for a, b in both)


def touches(clip: Example, one: str, other: str) -> bool:
    distance = pixel_distance(clip, one, other)
    assert distance <= 2 or distance >= 5, "neither clearly touching nor clearly apart"
    return distance <= 2


@pytest.mark.parametrize("camera", ["static", "moving"])
def test_collision(camera):
    for clip in clips("collision", 30, "whether", camera=camera):
        one, other = (name for name in clip.question.split() if name in COLORS)
        assert touches(clip, one, other) == (clip.answer == "yes")
    for clip in clips("collision", 30, "which", camera=camera):
        (one,) = [name for name in clip.question.split() if name in COLORS]
        others = [name for name in COLORS if name != one and pixels(clip, name).any()]
        assert [name for name in others if touches(clip, one, name)] == [clip.answer]


def test_leave():
    for clip in clips("leave", 30, "color"):
        absent = [name for name in COLORS if pixels(clip, name)[0].any() and not dominant_mask(clip, name)[-1].any()]
        assert absent == [clip.answer]
        remaining = [pixels(clip, name).sum((1, 2)) for name in COLORS if pixels(clip, name)[-1].any()]
        assert remaining
        assert all(areas.min() > 0.6 * areas.max() for areas in remaining)


def test_objects_are_large_enough():
    for number in range(60):
        clip = make_clip("val", number, kinds=("shape", "color", "direction", "count", "order", "moment"))
        for name in COLORS:
            for component in components(dominant_mask(clip, name)[-1]):
                assert max(np.ptp(np.argwhere(component), axis=0)) + 1 >= 9


def test_camera_and_backgrounds():
    """With a moving camera, the background moves in most clips; with a static one, never."""
    still = [make_clip("train", n, SceneConfig(camera="static")).frames[:, :, :6, :6] for n in range(40)]
    assert all(float((corner - corner[:1]).abs().float().median()) == 0 for corner in still)
    moving = [make_clip("train", n, SceneConfig(camera="moving")).frames[:, :, :6, :6] for n in range(40)]
    changed = [bool((corner[0] != corner[-1]).float().mean() > 0.5) for corner in moving]
    assert 0.3 < np.mean(changed) < 1
