"""Videos with dense labels in their public layouts: DAVIS (masks), JHMDB (joints), VIP (parts of people)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fewtokens.core.files import read_lines
from fewtokens.video.images import is_image

# The lists of DAVIS that are looked for, in this order, where none is named.
_LISTS = ("2017/val", "2016/val")


@dataclass(frozen=True)
class SequenceFiles:
    """One sequence: its name, its pictures in order, and its labels: a mask for each picture, or one .mat for all."""

    name: str
    pictures: list[Path]
    labels: list[Path]


def davis_sequences(root: str | Path, split: str | None = None) -> tuple[list[SequenceFiles], str]:
    """The sequences of a DAVIS folder, and which list named them.

    Layout: JPEGImages/480p/NAME/00000.jpg, Annotations/480p/NAME/00000.png, ImageSets/2017/val.txt (names) or
    ImageSets/2016/val.txt (a line for each frame).

    Args:
        root: holds JPEGImages and Annotations.
        split: a list in ImageSets, such as "2017/val", or "all": whatever has masks. Where it is not given, 2017/val
            or else 2016/val if there, and all otherwise.

    Raises:
        ValueError: no such folders or list, a list that names a sequence that is not there, no sequences at all. A
            sequence of which frames lack masks is one only when it is read (`paired`).
    """
    root = Path(root)
    pictures, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
    if not pictures.is_dir() or not masks.is_dir():
        raise ValueError(f"{root}: no DAVIS folder; it must hold JPEGImages/480p and Annotations/480p")
    if split is None:
        split = next((name for name in _LISTS if (root / "ImageSets" / f"{name}.txt").is_file()), "all")
    if split == "all":
        names = sorted(part.name for part in masks.iterdir() if part.is_dir())
    else:
        if ".." in Path(split).parts or Path(split).is_absolute():
            raise ValueError(f"{split}: a list is named as 2017/val, inside ImageSets")
        path = root / "ImageSets" / f"{split}.txt"
        # The lists of 2016 name each frame: /JPEGImages/480p/NAME/00000.jpg and its mask.
        names = [line.split()[0].split("/")[-2] if "/" in line.split()[0] else line for line in _lines(path)]
        names = list(dict.fromkeys(names))
        _check_names(names, path)
        if absent := [name for name in names if not (pictures / name).is_dir()]:
            raise ValueError(f"{path}: names {', '.join(absent[:5])}, which JPEGImages/480p does not have")
    if not names:
        raise ValueError(f"{masks}: no sequences")
    return [SequenceFiles(name, _images(pictures / name), _images(masks / name)) for name in names], split


def jhmdb_clips(root: str | Path, listing: str | Path | None = None) -> tuple[list[SequenceFiles], str]:
    """The clips of a JHMDB folder, and which list named them; each has one .mat.

    Layout: joint_positions/ACTION/CLIP/joint_positions.mat, Rename_Images/ACTION/CLIP/00001.png.

    Args:
        root: holds both.
        listing: a text file. A line names a clip: ACTION/CLIP, or, as the test list of UVC and CropMAE does, its .mat
            and its pictures; only ACTION/CLIP of these is used. Where it is not given, clips that the folder splits/
            of JHMDB has as the test part of split 1 if there, and all otherwise.

    Raises:
        ValueError: no such folders or list, a list that names a clip that is not there, no clips at all.
    """
    root = Path(root)
    mats, pictures = root / "joint_positions", root / "Rename_Images"
    if not mats.is_dir() or not pictures.is_dir():
        raise ValueError(f"{root}: no JHMDB folder; it must hold joint_positions and Rename_Images")
    splits = sorted((root / "splits").glob("*_test_split1.txt"))
    if listing is not None:
        names, said = [_clip_name(line.split(), Path(listing)) for line in _lines(Path(listing))], str(listing)
    elif splits:
        # A line is CLIP.avi and 1 (train) or 2 (test).
        found = [(path, line.split()) for path in splits for line in _lines(path)]
        names = [
            f"{path.name.removesuffix('_test_split1.txt')}/{Path(words[0]).stem}"
            for path, words in found if words[-1] == "2"
        ]  # fmt: skip
        said = "test part of split 1"
    else:
        names, said = sorted(f"{one.parent.parent.name}/{one.parent.name}" for one in mats.glob("*/*/*.mat")), "all"
    names = list(dict.fromkeys(names))
    for name in names:
        _check_names(name.split("/"), Path(said))
    if absent := [name for name in names if not (pictures / name).is_dir()]:
        raise ValueError(f"{said}: names {', '.join(absent[:5])}, which Rename_Images does not have")
    if not names:
        raise ValueError(f"{mats}: no clips")
    return [
        SequenceFiles(name, _images(pictures / name), [mats / name / "joint_positions.mat"]) for name in names
    ], said


def vip_videos(root: str | Path, listing: str | Path | None = None) -> tuple[list[SequenceFiles], str]:
    """The videos of a VIP folder, and which list named them.

    Layout: Images/videosN/*.jpg, Annotations/Category_ids/videosN/*.png. VIP labels one frame in 25; pictures without
    a label are left out.

    Args:
        root: holds Images and Annotations.
        listing: a text file of names; where it is not given, lists/val_videos.txt if there, and all otherwise.

    Raises:
        ValueError: no such folders or list, a list that names a video that is not there, no videos at all.
    """
    root = Path(root)
    pictures, masks = root / "Images", root / "Annotations" / "Category_ids"
    if not pictures.is_dir() or not masks.is_dir():
        raise ValueError(f"{root}: no VIP folder; it must hold Images and Annotations/Category_ids")
    usual = root / "lists" / "val_videos.txt"
    path = Path(listing) if listing is not None else usual if usual.is_file() else None
    if path is None:
        names, said = [part.name for part in masks.iterdir() if part.is_dir()], "all"
    else:
        names, said = [line.rstrip("/").split("/")[-1] for line in _lines(path)], str(path)
        _check_names(names, path)
        if absent := [name for name in names if not (masks / name).is_dir()]:
            raise ValueError(f"{path}: names {', '.join(absent[:5])}, which {masks.name} does not have")
    if not names:
        raise ValueError(f"{masks}: no videos")
    names = sorted(dict.fromkeys(names), key=lambda name: (len(name), name))
    found = []
    for name in names:
        labels = _images(masks / name)
        known = {label.stem for label in labels}
        found.append(SequenceFiles(name, [p for p in _images(pictures / name) if p.stem in known], labels))
    return found, said


def paired(files: SequenceFiles) -> None:
    """Sees that each picture has its mask.

    Raises:
        ValueError: no pictures, no mask for the first one, or for some others.
    """
    if not files.pictures:
        raise ValueError(f"{files.name}: no pictures")
    pictures, labels = [p.stem for p in files.pictures], {p.stem for p in files.labels}
    missing = [stem for stem in pictures if stem not in labels]
    if pictures[0] in missing:
        raise ValueError(f"{files.name}: its first frame {pictures[0]} has no mask, so there is nothing to propagate")
    if missing:
        raise ValueError(
            f"{files.name}: {len(missing)} of {len(pictures)} frames have no mask to score against, {missing[0]} first"
        )
    if extra := sorted(labels - set(pictures)):
        raise ValueError(f"{files.name}: {len(extra)} masks without a picture, {extra[0]} first")


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if is_image(p) and not p.name.startswith(".") and p.is_file())


def _lines(path: Path) -> list[str]:
    """The lines that hold anything, without spaces around them and without comments (#).

    Raises:
        ValueError: no such file, one that is no text, or one without lines.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such list")
    lines = [line.strip() for _, line in read_lines(path) if not line.lstrip().startswith("#")]
    if not lines:
        raise ValueError(f"{path}: an empty list")
    return lines


def _clip_name(words: Sequence[str], path: Path) -> str:
    """ACTION/CLIP from a line of a JHMDB list."""
    of_mat = [word for word in words if word.endswith(".mat")]
    parts = PurePosixPath(of_mat[0]).parts[-3:-1] if of_mat else PurePosixPath(words[0]).parts[-2:]
    if len(parts) != 2:
        raise ValueError(
            f"{path}: a line names ACTION/CLIP, or a .mat and a folder of pictures; not {' '.join(words):.80}"
        )
    return "/".join(parts)


def _check_names(names: Sequence[str], path: Path) -> None:
    """No name of a list leads out of its folder."""
    for name in names:
        # No file system takes names of more than 255 bytes.
        strange = "/" in name or "\\" in name or "\0" in name or len(os.fsencode(name)) > 255
        if name in ("", ".", "..") or strange:
            raise ValueError(f"{path}: {name[:80]!r} is no name of a folder")
