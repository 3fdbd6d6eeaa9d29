"""Small DAVIS, JHMDB and VIP folders in their public layouts, with scenes whose labels are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def texture(h, w, seed=0):
    """Coloured blocks of 8x8 pixels, each unlike the others; uint8 [h,w,3]."""
    g = np.random.default_rng(seed)
    return np.kron(g.integers(0, 256, (-(-h // 8), -(-w // 8), 3)), np.ones((8, 8, 1)))[:h, :w].astype(np.uint8)


def scene(frames=5, h=64, w=96, step=8, objects=2):
    """Squares of their own texture that move right over a still one: frames uint8 [T,h,w,3] and masks [T,h,w]."""
    ground = texture(h, w)
    pictures, masks = [], []
    for t in range(frames):
        picture, mask = ground.copy(), np.zeros((h, w), dtype=np.uint8)
        for number in range(1, objects + 1):
            y, x = 8 + 32 * (number - 1), 8 + step * t
            picture[y : y + 24, x : x + 24] = texture(24, 24, number)
            mask[y : y + 24, x : x + 24] = number
        pictures.append(picture)
        masks.append(mask)
    return np.stack(pictures), np.stack(masks)


def save_mask(path: Path, mask, palette=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette:
        image.putpalette([*range(256)] * 3)
    image.save(path)


def save_picture(path: Path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))


def make_davis(root: Path, names=("one", "two")) -> Path:
    """Two objects in the first sequence, one in the others; a list of 2017."""
    for number, name in enumerate(names):
        pictures, masks = scene(objects=2 if number == 0 else 1, step=8 if number == 0 else 0)
        for t, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            save_picture(root / "JPEGImages" / "480p" / name / f"{t:05}.jpg", picture)
            save_mask(root / "Annotations" / "480p" / name / f"{t:05}.png", mask)
    (root / "ImageSets" / "2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(names) + "\n")
    return root


def make_jhmdb(root: Path, clips=("jump/first", "run/second")) -> Path:
    """15 joints at corners of blocks in a picture that moves right by a block of 8 pixels a frame."""
    from scipy.io import savemat

    ground = texture(128, 160)
    start = np.stack([16 + 8 * (np.arange(15) % 5), 24 + 8 * (np.arange(15) // 5) * 3])
    for clip in clips:
        places = np.stack([start + np.array([[8 * t], [0]]) for t in range(4)], 2)
        for t in range(4):
            save_picture(root / "Rename_Images" / clip / f"{t + 1:05}.png", np.roll(ground, 8 * t, 1))
        folder = root / "joint_positions" / clip
        folder.mkdir(parents=True)
        savemat(folder / "joint_positions.mat", {"pos_img": places + 1})
    return root


def make_vip(root: Path, names=("videos2", "videos10")) -> Path:
    """Classes 5 and 13; pictures between the labelled ones, which are left out."""
    for name in names:
        pictures, masks = scene(frames=4)
        for t, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            classes = np.array([0, 5, 13], dtype=np.uint8)[mask]
            if t == 3:
                classes[:4, :4] = 255
            save_picture(root / "Images" / name / f"{25 * t + 1:012}.jpg", picture)
            save_picture(root / "Images" / name / f"{25 * t + 9:012}.jpg", picture)
            save_mask(root / "Annotations" / "Category_ids" / name / f"{25 * t + 1:012}.png", classes, palette=False)
    return root
