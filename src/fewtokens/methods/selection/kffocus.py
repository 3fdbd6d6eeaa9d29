"""KFFocus: more tokens for the key frame of each scene, fewer for the other frames."""

from __future__ import annotations

import math

import torch

from fewtokens.core.selection import Candidates, FrameSelector, Selection, evenly_spaced
from fewtokens.methods.ops.scene_tilling import scene_cuts


class Kffocus(FrameSelector):
    """Selects the key frame of each scene with many tokens, and evenly spaced other frames with few.

    KFFocus (arXiv 2508.08989), a variant. The video is cut into scenes by SceneTilling (`scene_changes`), where the
    paper follows the temporal redundancy of a video codec; the key frame of a scene is the one most similar to its
    mean. If there are more scenes than frames, the deepest cuts count.

    Args:
        keep: number of frames (int), or fraction of the candidates (float). Default: 32.
        key: number of tokens of a key frame, in a nearly square grid, so that 7 becomes 2 x 3. Default: 64, ours.
        other: number of tokens of any other frame, as of `key`. Default: 8, 2 x 4, ours.
        grid: rows and columns of cells of a full frame, to which `key` and `other` refer. Default: 16, ours.
        rate: candidates per second, "keyframes" of the codec, or "all" frames. Default: 1.
    """

    sizes = True
    paper = "variant of KFFocus: Highlighting Keyframes for Enhanced Video Understanding, arXiv 2508.08989"
    license = "written from the abstract; no code"
    cost = "O(T C), and a thumbnail per candidate"

    def __init__(
        self,
        keep: float | int = 32,
        *,
        key: int = 64,
        other: int = 8,
        grid: int = 16,
        rate: float | str = 1.0,
    ) -> None:
        if not 1 <= other <= key <= grid**2:
            raise ValueError(
                f"kffocus: other, key and the cells of the grid must satisfy 1 <= other <= key <= grid^2, "
                f"got {other}, {key} and {grid}"
            )
        self.set_budget(keep, rate)
        self.key, self.other, self.grid = key, other, grid

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def choose(self, candidates: Candidates) -> Selection:
        T, K, x = len(candidates), candidates.count, candidates.features
        cuts = scene_cuts((x[1:] * x[:-1]).sum(1), limit=K - 1) if T > 1 else torch.zeros(0, dtype=torch.int64)
        scene = torch.zeros(T, dtype=torch.int64)
        scene[cuts + 1] = 1
        scene = scene.cumsum(0)
        sums = torch.zeros(len(cuts) + 1, x.shape[1]).index_add_(0, scene, x)
        typical = (x * sums[scene]).sum(1)
        # Descending by similarity within each scene: the first one of each is its key frame.
        order = typical.argsort(descending=True, stable=True)
        order = order[scene[order].argsort(stable=True)]
        lengths = scene.bincount()
        keys = order[lengths.cumsum(0) - lengths]
        others = torch.ones(T, dtype=torch.bool)
        others[keys] = False
        rest = others.nonzero().squeeze(1)
        index = torch.cat([keys, rest[evenly_spaced(len(rest), K - len(keys))]]).sort().values
        is_key = ~others[index]
        key, other = (torch.tensor(_nearly_square(tokens, self.grid)) for tokens in (self.key, self.other))
        cells = torch.where(is_key[:, None], key, other)
        return Selection(index, cells.double() / self.grid, {"cuts": cuts, "key": is_key})


def _nearly_square(tokens: int, side: int) -> tuple[int, int]:
    """Rows and columns of at most this number of tokens, up to `side`; exact for 8 = 2 x 4 and squares."""
    rows = math.isqrt(tokens)
    return rows, min(tokens // rows, side)
