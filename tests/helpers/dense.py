"""Writes small DAVIS, JHMDB and VIP data sets in their public layouts, with synthetic scenes and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def texture(h, w, seed=0):
    """Random colored blocks of 8x8 pixels; uint8 [h,w,3]."""
    g = np.random.default_rng(seed)
    return np.kron(g.integers(0, 256, (-(-h // 8), -(-w // 8), 3)), np.ones((8, 8, 1)))[:h, :w].astype(np.uint8)


def scene(frames=5, h=64, w=96, step=8, objects=2):
    """Textured squares that move right over a static background: frames uint8 [T,h,w,3] and masks [T,h,w]."""
    ground = texture(h, w)
    images, masks = [], []
    for t in range(frames):
        image, mask = ground.copy(), np.zeros((h, w), dtype=np.uint8)
        for label in range(1, objects + 1):
            y, x = 8 + 32 * (label - 1), 8 + step * t
            image[y : y + 24, x : x + 24] = texture(24, 24, label)
            mask[y : y + 24, x : x + 24] = label
        images.append(image)
        masks.append(mask)
    return np.stack(images), np.stack(masks)


def save_mask(path: Path, mask, palette=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette:
        image.putpalette([*range(256)] * 3)
    image.save(path)


def save_image(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))


def make_davis(root: Path, names=("one", "two")) -> Path:
    """Two objects in the first sequence, one in the others; with the list 2017/val."""
    for index, name in enumerate(names):
        images, masks = scene(objects=2 if index == 0 else 1, step=8 if index == 0 else 0)
        for t, (image, mask) in enumerate(zip(images, masks, strict=True)):
            save_image(root / "JPEGImages" / "480p" / name / f"{t:05}.jpg", image)
            save_mask(root / "Annotations" / "480p" / name / f"{t:05}.png", mask)
    (root / "ImageSets" / "2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(names) + "\n")
    return root


def make_jhmdb(root: Path, clips=("jump/first", "run/second")) -> Path:
    """15 joints at block corners of an image that moves right by 8 pixels (one block) per frame."""
    from scipy.io import savemat

    ground = texture(128, 160)
    start = np.stack([16 + 8 * (np.arange(15) % 5), 24 + 8 * (np.arange(15) // 5) * 3])
    for clip in clips:
        joints = np.stack([start + np.array([[8 * t], [0]]) for t in range(4)], 2)
        for t in range(4):
            save_image(root / "Rename_Images" / clip / f"{t + 1:05}.png", np.roll(ground, 8 * t, 1))
        folder = root / "joint_positions" / clip
        folder.mkdir(parents=True)
        savemat(folder / "joint_positions.mat", {"pos_img": joints + 1})
    return root


def make_vip(root: Path, names=("videos2", "videos10")) -> Path:
    """Classes 5 and 13; unlabeled images between the labeled ones are ignored."""
    for name in names:
        images, masks = scene(frames=4)
        for t, (image, mask) in enumerate(zip(images, masks, strict=True)):
            classes = np.array([0, 5, 13], dtype=np.uint8)[mask]
            if t == 3:
                classes[:4, :4] = 255
            save_image(root / "Images" / name / f"{25 * t + 1:012}.jpg", image)
            save_image(root / "Images" / name / f"{25 * t + 9:012}.jpg", image)
            save_mask(root / "Annotations" / "Category_ids" / name / f"{25 * t + 1:012}.png", classes, palette=False)
    return root
