"""Made clips with questions: the answers are true in the pixels."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from fewtokens.data.scenes import COLOURS, SHAPES, _handwriting
from fewtokens.data.videoqa import KINDS, Example, SceneConfig, VideoQA, make_clip, make_question


def pixels(example: Example, colour: str) -> np.ndarray:
    """Where the frames have just this colour, [T,H,W]."""
    return (example.frames.permute(0, 2, 3, 1) == torch.tensor(COLOURS[colour])).all(3).numpy()


def near(example: Example, colour: str) -> np.ndarray:
    """Where an object of this colour covers most of a pixel, [T,H,W]: whose mixture with the ground it is."""
    return owners(example) == list(COLOURS).index(colour)


@lru_cache(maxsize=4)
def owners(example: Example) -> np.ndarray:
    """The number of the colour that covers most of each pixel, [T,H,W]; -1 is the ground."""
    frames = example.frames.permute(0, 2, 3, 1).float()
    ground = frames[0].reshape(-1, 3).median(0).values
    ways = torch.tensor(list(COLOURS.values())) - ground  # [8,3]
    frames = frames - ground
    long = ways.square().sum(1)
    share = (frames @ ways.T / long).clamp(0, 1)  # [T,H,W,8]
    # |frame - share * way|^2, but for what is the same for all colours.
    rest = share.square() * long - 2 * share * (frames @ ways.T)
    least, owner = rest.min(-1)
    most = share.gather(-1, owner[..., None])[..., 0] > 0.5
    return torch.where(most & (least + frames.square().sum(-1) < 45**2), owner, -1).numpy()


def clips(kind: str, count: int, attribute: str | None = None, **settings) -> list[Example]:
    data = VideoQA(SceneConfig(seed=11, **settings), "test", 40 * count, kinds=(kind,))
    numbers = [n for n in range(len(data)) if attribute in (None, data.question(n).attribute)][:count]
    assert len(numbers) == count
    return [data[n] for n in numbers]


@cache
def template(shape: str) -> np.ndarray:
    """A shape drawn by Pillow, its box as wide as the picture, [24,24]."""
    picture = Image.new("L", (240, 240))
    draw = ImageDraw.Draw(picture)
    turn = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.42, 1.05)
    corners = {
        "square": [(0, 0), (240, 0), (240, 240), (0, 240)],
        "triangle": [(120, 0), (240, 240), (0, 240)],
        "diamond": [(120, 0), (240, 120), (120, 240), (0, 120)],
        "star": [(120 + 120 * r * np.sin(t), 126 - 120 * r * np.cos(t)) for r, t in zip(radius, turn, strict=True)],
    }
    if shape == "circle":
        draw.ellipse((0, 0, 239, 239), fill=255)
    elif shape == "cross":
        draw.rectangle((0, 82, 239, 158), fill=255)
        draw.rectangle((82, 0, 158, 239), fill=255)
    else:
        draw.polygon(corners[shape], fill=255)
    return box(np.asarray(picture) > 0)


def blobs(mask: np.ndarray) -> list[np.ndarray]:
    """Each part of a mask [H,W] that hangs together; single pixels where two colours mix are none."""
    labels, count = ndimage.label(mask)
    return [part for part in (labels == n + 1 for n in range(count)) if part.sum() > 6]


def box(mask: np.ndarray) -> np.ndarray:
    """What is in the box round a mask, resized to [24,24] in 0..1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    resized = Image.fromarray(part.astype(np.float32)).resize((24, 24), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def shape_of(mask: np.ndarray) -> str:
    return min(SHAPES, key=lambda shape: float(np.abs(template(shape) - box(mask)).mean()))


def test_the_same_whatever_was_asked_before():
    data, other = VideoQA(items=12), VideoQA(items=30)
    forth = [data[n] for n in range(12)]
    back = [other[n] for n in reversed(range(12))][::-1]
    for number, (a, b) in enumerate(zip(forth, back, strict=True)):
        assert torch.equal(a.frames, b.frames)
        assert (a.question, a.answer, a.choices) == (b.question, b.answer, b.choices)
        question = data.question(number)
        assert (a.question, a.answer, a.choices) == (question.question, question.answer, question.choices)
    assert torch.equal(data[-1].frames, forth[-1].frames)
    with pytest.raises(IndexError):
        data[12]


def test_splits_and_seeds_differ():
    made = [make_clip(split, n) for split in ("train", "val", "test") for n in range(10)]
    made += [make_clip("train", n, SceneConfig(seed=1)) for n in range(10)]
    assert len({clip.frames.numpy().tobytes() for clip in made}) == len(made)


@pytest.mark.parametrize("frames", [8, 16, 128])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_every_kind_at_every_length_and_size(frames, size):
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


def test_many_scenes_find_room():
    """Crowded scenes in the smallest picture."""
    for kind in ("count", "order", "needle", "collision"):
        for number in range(100):
            make_clip("train", number, SceneConfig(size=32, frames=8, seed=2, camera="moving"), kinds=(kind,))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 7}, "8 to 128 frames, got 7"), ({"frames": 129}, "8 to 128 frames, got 129"),
        ({"size": 31}, "at least 32"), ({"fps": 0.0}, "fps"), ({"seed": -1}, "seed"), ({"camera": "drunk"}, "camera"),
    ],
)  # fmt: skip
def test_impossible_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        SceneConfig(**settings)


def test_impossible_questions():
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
def test_shape_is_true(camera):
    for clip in clips("shape", 40, camera=camera):
        (colour,) = [name for name in COLOURS if name in clip.question.split()]
        for mask in near(clip, colour)[[0, -1]]:
            assert shape_of(mask) == clip.answer


def test_colour_is_true():
    for clip in clips("colour", 30):
        seen = {shape_of(near(clip, name)[0]): name for name in COLOURS if pixels(clip, name)[0].any()}
        (shape,) = [name for name in SHAPES if name in clip.question.rstrip("?").split()]
        assert seen[shape] == clip.answer


def test_digit_is_true():
    """By the nearest mean of the handwriting, which is right for nine of ten digits."""
    written, digits = _handwriting()
    means = np.stack([written[digits == digit].mean(0) for digit in range(10)]).reshape(10, -1)
    right = []
    for clip in clips("digit", 60, "coloured", size=96, camera="static"):
        (colour,) = [name for name in COLOURS if name in clip.question.rstrip("?").split()]
        mask = near(clip, colour)[0]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        side = max(len(rows), rows[-1] - rows[0] + 1)
        middle = (columns[0] + columns[-1] + 1) // 2
        part = np.pad(mask, side)[rows[0] + side : rows[0] + 2 * side, middle - side // 2 + side :][:, :side]
        small = np.asarray(Image.fromarray(part.astype(np.float32)).resize((8, 8), Image.Resampling.BOX)).ravel()
        right.append(str(np.argmin(((means - small) ** 2).sum(1))) == clip.answer)
    assert np.mean(right) > 0.75


@pytest.mark.parametrize("camera", ["static", "moving"])
def test_direction_is_true(camera):
    ways = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for clip in clips("direction", 30, camera=camera):
        (colour,) = [name for name in COLOURS if name in clip.question.split()]
        mask = pixels(clip, colour)
        middles = np.array([np.argwhere(frame).mean(0) for frame in mask])
        moved = middles[-1] - middles[0]
        along = float(moved @ ways[clip.answer])
        assert along > 64 / 4
        assert np.abs(moved).sum() - along < 2
        assert (np.diff(middles @ ways[clip.answer]) > 0).all()


def test_count_is_true():
    for clip in clips("count", 30, "object") + clips("count", 30, "colour"):
        names = [name for name in COLOURS if name in clip.question.rstrip("?").split()] or list(COLOURS)
        for n in (0, 15):
            assert sum(len(blobs(near(clip, name)[n])) for name in names) == int(clip.answer)


def test_count_of_shapes_is_true():
    for clip in clips("count", 30, "shape", size=96):
        found = Counter[str]()
        for name in COLOURS:
            found.update(map(shape_of, blobs(near(clip, name)[0])))
        (shape,) = [name for name in SHAPES if name in clip.question]
        assert found[shape] == int(clip.answer)


def first_frames(clip: Example) -> dict[str, int]:
    shown = {name: pixels(clip, name).any((1, 2)) for name in COLOURS}
    return {name: int(there.argmax()) for name, there in shown.items() if there.any()}


@pytest.mark.parametrize("frames", [8, 40])
def test_order_is_true(frames):
    for clip in clips("order", 20, "colour", frames=frames):
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
        assert shape_of(near(clip, earliest)[first[earliest]]) == clip.answer


@pytest.mark.parametrize(("frames", "fps"), [(8, 2.0), (16, 2.0), (128, 2.0), (16, 24.0)])
def test_moment_is_true(frames, fps):
    for clip in clips("moment", 12, frames=frames, fps=fps):
        second = float(clip.question.rstrip("?").split()[-1])
        frame = int(np.abs(clip.times.numpy() - second).argmin())
        assert abs(float(clip.times[frame]) - second) < 1e-3
        there = [name for name in COLOURS if pixels(clip, name)[frame].any()]
        assert len(there) == 1
        assert clip.answer == (there[0] if clip.attribute == "colour" else shape_of(near(clip, there[0])[frame]))
        # The others are in the clip at other times.
        assert sum(pixels(clip, name).any() for name in COLOURS) == 4


def test_second_three_is_frame_six():
    asked = [
        question for question in VideoQA(items=300, kinds=("moment",)).questions() if "second 3?" in question.question
    ]
    assert asked
    assert {question.frame for question in asked} == {6}


@pytest.mark.parametrize("frames", [8, 16, 128])
def test_needle_is_true(frames):
    for attribute in ("colour", "shape", "digit"):
        for clip in clips("needle", 8, attribute, frames=frames):
            shown = {name: pixels(clip, name).any((1, 2)) for name in COLOURS}
            once = [name for name, there in shown.items() if there.sum() == 1]
            assert len(once) == 1
            assert all(there.all() for name, there in shown.items() if there.any() and name != once[0])
            if attribute == "colour":
                assert once[0] == clip.answer
            elif attribute == "shape":
                assert shape_of(near(clip, once[0])[int(shown[once[0]].argmax())]) == clip.answer


def gap(clip: Example, one: str, other: str) -> int:
    """The fewest pixels, by rows or columns, from one colour to the other; their mixed edges count as pixels."""
    both = zip(pixels(clip, one), pixels(clip, other), strict=True)
    return min(int(ndimage.distance_transform_cdt(~a, "chessboard")[b].min()) for a, b in both)


def touches(clip: Example, one: str, other: str) -> bool:
    found = gap(clip, one, other)
    assert found <= 2 or found >= 5, "neither clearly together nor clearly apart"
    return found <= 2


@pytest.mark.parametrize("camera", ["static", "moving"])
def test_collision_is_true(camera):
    for clip in clips("collision", 30, "whether", camera=camera):
        one, other = (name for name in clip.question.split() if name in COLOURS)
        assert touches(clip, one, other) == (clip.answer == "yes")
    for clip in clips("collision", 30, "which", camera=camera):
        (one,) = [name for name in clip.question.split() if name in COLOURS]
        others = [name for name in COLOURS if name != one and pixels(clip, name).any()]
        assert [name for name in others if touches(clip, one, name)] == [clip.answer]


def test_leave_is_true():
    for clip in clips("leave", 30, "colour"):
        gone = [name for name in COLOURS if pixels(clip, name)[0].any() and not near(clip, name)[-1].any()]
        assert gone == [clip.answer]
        stay = [pixels(clip, name).sum((1, 2)) for name in COLOURS if pixels(clip, name)[-1].any()]
        assert stay
        assert all(areas.min() > 0.6 * areas.max() for areas in stay)


def test_objects_are_large_enough():
    for number in range(60):
        clip = make_clip("val", number, kinds=("shape", "colour", "direction", "count", "order", "moment"))
        for name in COLOURS:
            for blob in blobs(near(clip, name)[-1]):
                assert max(np.ptp(np.argwhere(blob), axis=0)) + 1 >= 9


def test_camera_and_backgrounds():
    """What lies behind the objects moves in about half of the clips where it can be seen to."""
    still = [make_clip("train", n, SceneConfig(camera="static")).frames[:, :, :6, :6] for n in range(40)]
    assert all(float((corner - corner[:1]).abs().float().median()) == 0 for corner in still)
    moving = [make_clip("train", n, SceneConfig(camera="moving")).frames[:, :, :6, :6] for n in range(40)]
    changed = [bool((corner[0] != corner[-1]).float().mean() > 0.5) for corner in moving]
    assert 0.3 < np.mean(changed) < 1
