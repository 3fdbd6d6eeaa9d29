"""A folder that FiftyOne imports (`FiftyOneImageDetectionDataset`): the frames, and the box of each token in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewtokens.core.checks import check_comparison
from fewtokens.core.files import atomic_folder, write_json
from fewtokens.core.tokens import Tokens
from fewtokens.show.overlay import cells_in_frame
from fewtokens.show.page import jpeg_bytes
from fewtokens.show.types import Clip


def write_boxes(clip: Clip, folder: str | Path) -> Path:
    """Writes frames and boxes of tokens, as a folder with `data/000000.jpg` and so on, and `labels.json`.

        dataset = fiftyone.Dataset.from_dir("kept.fiftyone", dataset_type=fiftyone.types.FiftyOneImageDetectionDataset)

    The label of a box is the name of its result. A box is the smallest that contains the cells of the token in the
    frame, which need not be next to one another. Attributes: `token`, its index; `cells`, of the token in the frame;
    `size`, cells that it stands for in all frames; `time`, of the frame in seconds, if the clip has times.

    Args:
        clip: with at least one result.
        folder: ends in ".fiftyone". Existing frames and labels in it are replaced.

    Returns:
        The folder.

    Raises:
        ValueError: there is no result.
    """
    check_comparison(folder, len(clip.results))
    labels: dict[str, list[dict[str, Any]]] = {}
    with atomic_folder(folder, "labels.json") as temporary:
        (temporary / "data").mkdir()
        for number, frame in enumerate(clip.frames):
            (temporary / "data" / f"{number:06}.jpg").write_bytes(jpeg_bytes(frame))
            time = {} if clip.times is None else {"time": float(clip.times[number])}
            labels[f"{number:06}"] = [
                {"label": result.name, "bounding_box": box, "attributes": attributes | time}
                for result in clip.results
                for box, attributes in _boxes(result.tokens, number * result.tokens.grid.T // len(clip.frames))
            ]
        # Without classes, labels are names.
        write_json(temporary / "labels.json", {"classes": None, "labels": labels})
    return Path(folder)


def _boxes(tokens: Tokens, row: int) -> list[tuple[list[float], dict[str, float]]]:
    """The box (left, top, width and height as fractions) and the attributes of each token in a frame of the grid."""
    _, H, W = tokens.grid.shape
    y, x, ids, index, count = cells_in_frame(tokens, row)
    corners = torch.stack([x / W, y / H, (x + 1) / W, (y + 1) / H], 1)
    index = index[:, None].expand(-1, 2)
    low, high = (
        torch.zeros(len(ids), 2).scatter_reduce(0, index, part, reduce, include_self=False)
        for part, reduce in ((corners[:, :2], "amin"), (corners[:, 2:], "amax"))
    )
    boxes = torch.cat([low, high - low], 1).tolist()
    sizes = tokens.sizes[0].cpu()[ids].tolist()
    return [
        (box, {"token": token, "cells": inside, "size": size})
        for box, token, inside, size in zip(boxes, ids.tolist(), count.tolist(), sizes, strict=True)
    ]
