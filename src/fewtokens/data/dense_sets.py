"""Videos with dense labels in their published layouts: DAVIS (masks), JHMDB (joints), VIP (human parts)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fewtokens.core.checks import check_layout
from fewtokens.core.files import read_lines
from fewtokens.video.images import is_image

# The DAVIS splits that are tried in this order by default.
_DEFAULT_SPLITS = ("2017/val", "2016/val")


@dataclass(frozen=True)
class SequenceFiles:
    """One sequence: its name, its images in order, and its labels, one mask per image or one .mat for all."""

    name: str
    images: list[Path]
    labels: list[Path]


def davis_sequences(root: str | Path, split: str | None = None) -> tuple[list[SequenceFiles], str]:
    """The sequences of a DAVIS folder and the split that listed them.

    Layout: JPEGImages/480p/NAME/00000.jpg, Annotations/480p/NAME/00000.png, ImageSets/2017/val.txt (names) or
    ImageSets/2016/val.txt (one line per frame).

    Args:
        root: the folder with JPEGImages and Annotations.
        split: a split under ImageSets, such as "2017/val", or "all" for every sequence with masks. Default: the first
            of 2017/val, 2016/val and all that exists.

    Raises:
        ValueError: the folders or the list do not exist, the list names a missing sequence, or there are no
            sequences. Frames without masks are reported by `paired`, when the sequence is read.
    """
    root = Path(root)
    images, masks = check_layout(root, "DAVIS")
    if split is None:
        split = next((name for name in _DEFAULT_SPLITS if (root / "ImageSets" / f"{name}.txt").is_file()), "all")
    if split == "all":
        names = sorted(folder.name for folder in masks.iterdir() if folder.is_dir())
    else:
        if ".." in Path(split).parts or Path(split).is_absolute():
            raise ValueError(f"split must be a name under ImageSets such as 2017/val, got {split}")
        path = root / "ImageSets" / f"{split}.txt"
        # The lists of 2016 name each frame: /JPEGImages/480p/NAME/00000.jpg and its mask.
        names = [line.split()[0].split("/")[-2] if "/" in line.split()[0] else line for line in _lines(path)]
        names = list(dict.fromkeys(names))
        _check_names(names, path)
        if missing := [name for name in names if not (images / name).is_dir()]:
            raise ValueError(f"{path}: {', '.join(missing[:5])} not found in JPEGImages/480p")
    if not names:
        raise ValueError(f"{masks}: no sequences")
    return [SequenceFiles(name, _list_images(images / name), _list_images(masks / name)) for name in names], split


def jhmdb_clips(root: str | Path, listing: str | Path | None = None) -> tuple[list[SequenceFiles], str]:
    """The clips of a JHMDB folder, with one .mat each, and the list that named them.

    Layout: joint_positions/ACTION/CLIP/joint_positions.mat, Rename_Images/ACTION/CLIP/00001.png.

    Args:
        root: the folder with both.
        listing: a text file with one clip per line: ACTION/CLIP, or the paths of its .mat and its images as in the
            test list of UVC and CropMAE, of which only ACTION/CLIP is used. Default: the test part of split 1 from
            the folder splits/ of JHMDB if it exists, all clips otherwise.

    Raises:
        ValueError: the folders or the list do not exist, the list names a missing clip, or there are no clips.
    """
    root = Path(root)
    mats, images = check_layout(root, "JHMDB")
    splits = sorted((root / "splits").glob("*_test_split1.txt"))
    if listing is not None:
        names, origin = [_clip_name(line.split(), Path(listing)) for line in _lines(Path(listing))], str(listing)
    elif splits:
        # A line is CLIP.avi and 1 (train) or 2 (test).
        rows = [(path, line.split()) for path in splits for line in _lines(path)]
        names = [
            f"{path.name.removesuffix('_test_split1.txt')}/{Path(words[0]).stem}"
            for path, words in rows if words[-1] == "2"
        ]  # fmt: skip
        origin = "test part of split 1"
    else:
        names, origin = sorted(f"{mat.parent.parent.name}/{mat.parent.name}" for mat in mats.glob("*/*/*.mat")), "all"
    names = list(dict.fromkeys(names))
    for name in names:
        _check_names(name.split("/"), Path(origin))
    if missing := [name for name in names if not (images / name).is_dir()]:
        raise ValueError(f"{origin}: {', '.join(missing[:5])} not found in Rename_Images")
    if not names:
        raise ValueError(f"{mats}: no clips")
    return [
        SequenceFiles(name, _list_images(images / name), [mats / name / "joint_positions.mat"]) for name in names
    ], origin


def vip_videos(root: str | Path, listing: str | Path | None = None) -> tuple[list[SequenceFiles], str]:
    """The videos of a VIP folder and the list that named them.

    Layout: Images/videosN/*.jpg, Annotations/Category_ids/videosN/*.png. VIP labels one frame in 25; images without
    a label are skipped.

    Args:
        root: the folder with Images and Annotations.
        listing: a text file of names. Default: lists/val_videos.txt if it exists, all videos otherwise.

    Raises:
        ValueError: the folders or the list do not exist, the list names a missing video, or there are no videos.
    """
    root = Path(root)
    images, masks = check_layout(root, "VIP")
    default = root / "lists" / "val_videos.txt"
    path = Path(listing) if listing is not None else default if default.is_file() else None
    if path is None:
        names, origin = [folder.name for folder in masks.iterdir() if folder.is_dir()], "all"
    else:
        names, origin = [line.rstrip("/").split("/")[-1] for line in _lines(path)], str(path)
        _check_names(names, path)
        if missing := [name for name in names if not (masks / name).is_dir()]:
            raise ValueError(f"{path}: {', '.join(missing[:5])} not found in {masks.name}")
    if not names:
        raise ValueError(f"{masks}: no videos")
    names = sorted(dict.fromkeys(names), key=lambda name: (len(name), name))
    videos = []
    for name in names:
        labels = _list_images(masks / name)
        stems = {label.stem for label in labels}
        videos.append(SequenceFiles(name, [p for p in _list_images(images / name) if p.stem in stems], labels))
    return videos, origin


def check_paired(files: SequenceFiles) -> None:
    """Checks that each image has a mask.

    Raises:
        ValueError: there are no images, or the first or other images have no mask.
    """
    if not files.images:
        raise ValueError(f"{files.name}: no images")
    images, labels = [p.stem for p in files.images], {p.stem for p in files.labels}
    missing = [stem for stem in images if stem not in labels]
    if images[0] in missing:
        raise ValueError(f"{files.name}: the first frame {images[0]} has no mask, so there is nothing to propagate")
    if missing:
        raise ValueError(
            f"{files.name}: {len(missing)} of {len(images)} frames have no mask to score against, {missing[0]} first"
        )
    if extra := sorted(labels - set(images)):
        raise ValueError(f"{files.name}: {len(extra)} masks without an image, {extra[0]} first")


def _list_images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if is_image(p) and not p.name.startswith(".") and p.is_file())


def _lines(path: Path) -> list[str]:
    """The stripped lines of a text file without empty lines and comments (#).

    Raises:
        ValueError: the file does not exist, is not text or has no lines.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such list")
    lines = [line.strip() for _, line in read_lines(path) if not line.lstrip().startswith("#")]
    if not lines:
        raise ValueError(f"{path}: the list is empty")
    return lines


def _clip_name(words: Sequence[str], path: Path) -> str:
    """ACTION/CLIP from a line of a JHMDB list."""
    mats = [word for word in words if word.endswith(".mat")]
    parts = PurePosixPath(mats[0]).parts[-3:-1] if mats else PurePosixPath(words[0]).parts[-2:]
    if len(parts) != 2:
        raise ValueError(
            f"{path}: a line must name ACTION/CLIP, or a .mat and a folder of images, got {' '.join(words):.80}"
        )
    return "/".join(parts)


def _check_names(names: Sequence[str], path: Path) -> None:
    """Checks that each name is that of a single folder, so that no name points outside the data set."""
    for name in names:
        # No file system accepts names longer than 255 bytes.
        invalid = "/" in name or "\\" in name or "\0" in name or len(os.fsencode(name)) > 255
        if name in ("", ".", "..") or invalid:
            raise ValueError(f"{path}: {name[:80]!r} is not a folder name")
