"""RLT: from frames in memory to the patches that start a run and the lengths of the runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from einops import rearrange
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, normalize, patchify
from fidelity_rows import PATCH, load, same_places
from peer_rows import Pair, Row, Workload


def rlt(tubelet: int, peers: Path, work: Workload) -> Pair:
    """The published code receives normalized frames, ours frames in 0..1."""
    code = load(peers / "rlt" / "src" / "models" / "static_token_utils.py", "ipdb")
    frames = work.frames().float().div(255)
    unit = normalize(frames, IMAGENET_MEAN, IMAGENET_STD).transpose(1, 2).contiguous()
    grid = Grid(work.T // tubelet, *(side // PATCH for side in frames.shape[3:]))
    (method,) = registry.build("rlt(0.1)")

    def ours() -> Tokens:
        pixels = patchify(frames, tubelet, PATCH)
        return method(Tokens.from_cells(pixels.flatten(2), grid), pixels=pixels)

    def theirs() -> tuple[Tensor, Tensor, Tensor]:
        mask = code.batched_find_idxs_to_keep(unit, threshold=0.1, tubelet_size=tubelet, patch_size=PATCH)
        lengths = code.batched_get_token_lengths(mask, 1, grid.shape)
        patches = rearrange(unit, "b c (t p) (h q) (w r) -> b (t h w) c p q r", p=tubelet, q=PATCH, r=PATCH)
        return patches[mask], lengths, mask

    return Pair(ours, theirs, lambda ours, theirs: same_places(ours.cell[0], theirs[2][0].nonzero()[:, 0]))


ROWS = [
    Row(
        "rlt",
        f"tubelets of {tubelet}, tau 0.1, from frames",
        "rccchoudhury/rlt@69ec8b4",
        partial(rlt, tubelet),
    )
    for tubelet in (2, 1)
]
