"""Checks of arguments that need no torch, so that the command line reports a wrong one at once."""

from __future__ import annotations

import glob
import math
import os
from importlib.util import find_spec
from pathlib import Path

# In the order in which "auto" prefers them.
DEVICES = ("cuda", "mps", "cpu")
DTYPES = ("float32", "float16", "bfloat16")

SCORERS = (
    "'clip:FOLDER' (a text-image model), 'features' (novelty of the pixels), 'features:ENCODER' or, in a session, "
    "'model' (its language model)"
)
SUFFIXES = (".png", ".html", ".mp4", ".gif", ".rrd", ".fiftyone")
DOCUMENTS = (".html", ".rrd", ".fiftyone")  # which hold any number of results, and have no style
IMAGES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"])
STYLES = ("fill", "outline", "mean")  # see `fewtokens.show.overlay`
MAX_COLUMNS = 5  # of a comparison that is no page

ENGINES = ("local", "ray")  # of a job, see `fewtokens.jobs`
TOKEN_FORMATS = ("safetensors", "shards", "webdataset", "parquet", "hf")

# The folders that a data set must contain.
LAYOUTS = {
    "DAVIS": ("JPEGImages/480p", "Annotations/480p"),
    "JHMDB": ("joint_positions", "Rename_Images"),
    "VIP": ("Images", "Annotations/Category_ids"),
}


def is_collection(text: str) -> bool:
    """Whether a path names several videos: a list (.txt), a pattern, or a folder without images directly in it."""
    path = Path(text)
    if path.is_dir():
        with os.scandir(path) as entries:
            return not any(Path(entry.name).suffix.lower() in IMAGES for entry in entries)
    return (not path.exists() and glob.has_magic(text)) or path.suffix.lower() == ".txt"


def check_device(name: str) -> None:
    """Raises ValueError if this is not the name of a device, available or not: "auto", "cpu", "cuda:1"."""
    kind, _, index = name.partition(":")
    if name != "auto" and (kind not in DEVICES or (index and not index.isdigit())):
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {name!r}")


def check_dtype(name: str) -> None:
    """Raises ValueError if this is not the name of a dtype."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")


def check_engine(name: str) -> None:
    """Raises ValueError if this is not the name of an engine of jobs."""
    if name not in ENGINES:
        raise ValueError(f"engine must be {' or '.join(ENGINES)}, got {name!r}")


def check_format(name: str) -> None:
    """Raises ValueError if this is not the name of a format of token data sets."""
    if name not in TOKEN_FORMATS:
        raise ValueError(f"format must be one of {', '.join(TOKEN_FORMATS)}, got {name!r}")


def check_scorer(name: str) -> None:
    """Raises ValueError if this is not the name of a scorer, see `fewtokens.selection.load_scorer`; loads nothing."""
    kind, _, model = name.partition(":")
    alone = name in ("features", "model")
    if not alone and (kind not in ("clip", "features") or not model):
        raise ValueError(f"scorer must be {SCORERS}, got {name!r}")


def check_near(seconds: float) -> None:
    """Raises ValueError if this is not a number of seconds between a candidate and its thumbnail."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"near must be a number of seconds of at least 0, got {seconds!r}")


def check_overlay(path: str | Path, style: str) -> None:
    """Raises ValueError if the suffix or the style is unknown, before any work is done."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
    _check_rerun(path)
    if style not in (*STYLES, "maps"):
        raise ValueError(f"style must be one of {', '.join(STYLES)}, maps, got {style!r}")
    if style == "maps" and Path(path).suffix != ".png":
        raise ValueError(f"{path}: maps require a .png")


def check_comparison(path: str | Path, count: int) -> None:
    """Raises ValueError unless the path can hold a comparison of `count` results, before any work is done."""
    if count < 1:
        raise ValueError("a comparison requires at least one spec")
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: a comparison must be a {', '.join(SUFFIXES)}")
    _check_rerun(path)
    if count > MAX_COLUMNS and suffix not in DOCUMENTS:
        raise ValueError(
            f"{path}: a {suffix} has columns for at most {MAX_COLUMNS} results, got {count}; write an .html page"
        )


def _check_rerun(path: str | Path) -> None:
    if Path(path).suffix == ".rrd" and find_spec("rerun") is None:
        raise ValueError(f"{path}: a recording requires rerun-sdk; install it with pip install 'fewtokens[rerun]'")


def check_layout(root: Path, name: str) -> tuple[Path, Path]:
    """Returns the two folders of a data set of `LAYOUTS`; raises ValueError if one does not exist."""
    first, second = LAYOUTS[name]
    if not (root / first).is_dir() or not (root / second).is_dir():
        raise ValueError(f"{root}: not a {name} folder; it must contain {first} and {second}")
    return root / first, root / second
