"""Methods that merge by similarity inside or after an encoder: ToMe and methods based on it."""

from __future__ import annotations

from pathlib import Path

import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.testa import Testa
from fewtokens.methods.merging.vid_tldr import VidTldr
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.groups import merge_within
from fidelity_rows import Agreement, Features, Row, load, same_rows


def tome(peers: Path, features: Features) -> Agreement:
    """One step of matching and merging by features; r is a quarter of the tokens."""
    tokens = features.tokens()
    r = tokens.N // 4
    code = load(peers / "ToMe" / "tome" / "merge.py")
    merge, _ = code.bipartite_soft_matching(tokens.features, r)
    theirs, _ = code.merge_wavg(merge, tokens.features)
    ours = tokens.apply(bipartite_plan(tokens.features, r, tokens)).features
    return Agreement(*same_rows(ours[0], theirs[0]))


def testa_patches(peers: Path, features: Features) -> Agreement:
    """One step within each frame."""
    return _testa(peers, features, time=0.0)


def testa_frames(peers: Path, features: Features) -> Agreement:
    """One step over frames."""
    return _testa(peers, features, time=1.0)


def _testa(peers: Path, features: Features, time: float) -> Agreement:
    x = features.tokens()
    T, n = x.grid.T, x.grid.cells_per_frame
    code = load(peers / "TESTA" / "testa" / "merge.py")
    grid = x.features.unflatten(1, (T, n))  # b t l d
    if time:
        grid = grid.transpose(1, 2)  # b l t d
    kind, r = ("frame", T // 4) if time else ("patch", n // 4)
    merge, _ = code.bipartite_soft_matching(grid, r, merging_type=kind)
    theirs, _ = code.merge_wavg(merge, grid)
    ours = Testa(x.N * 3 // 4, time=time)(x)
    why = (
        "ours ranks frames by the mean over their patches, the published code by the mode, which is the minimum"
        if time
        else ""
    )
    return Agreement(*same_rows(ours.features[0], theirs[0].flatten(0, 1)), why)


def tempme(peers: Path, features: Features) -> Agreement:
    """One round: pairs of consecutive frames are joined, and 30 % of their tokens merge."""
    x = features.tokens()
    n = x.grid.cells_per_frame
    r = int(0.3 * 2 * n)
    code = load(peers / "TempMe" / "tvr" / "models" / "module_tome_merge.py")
    clips = x.features[0].unflatten(0, (-1, 2 * n))
    merge, _ = code.bipartite_soft_matching(clips, r, 0, 2)
    theirs, _ = code.merge_wavg(merge, clips)
    counts = torch.full((1, len(clips)), 2 * n - r)
    ours = x.apply(merge_within(x, x.frame // 2, counts))
    return Agreement(*same_rows(ours.features[0], theirs.flatten(0, 1)))


def vid_tldr(peers: Path, features: Features) -> Agreement:
    """One block, each frame separately; the attention of six heads is computed from the features."""
    x = features.tokens()
    frames = x.features[0].unflatten(0, (x.grid.T, -1))
    heads = frames.unflatten(2, (6, -1)).transpose(1, 2)
    attention = (heads @ heads.transpose(2, 3) / 8).softmax(3)
    code = load(peers / "vid-TLDR" / "multi_modality" / "utils" / "vid_TLDR.py")
    info = {"use": True, "r": [0.3], "source_trace": False, "source": None, "size": None}
    theirs = code.vidTLDR(frames, attention, info, 0)
    mean = attention.mean(1)
    tokens = Tokens.from_cells(frames.unflatten(1, (1, x.grid.H, x.grid.W)))
    ours = VidTldr(r=[0.3])(tokens, sharpness=torch.special.xlogy(mean, mean).sum(2), layer=0, depth=12)
    sized = torch.cat([ours.features, ours.sizes[..., None]], 2)
    return Agreement(*same_rows(sized.flatten(0, 1), torch.cat([theirs, info["size"]], 2).flatten(0, 1)))


ROWS = [
    Row("tome", "facebookresearch/ToMe", "af95e4b", "one step, [6272,384], r = a quarter", tome),
    Row("tome_video", why="no published code for videos; its step is that of `tome`"),
    Row("tome_in_encoder", why="its step is that of `tome`, see its row"),
    Row("merge_windows", why="our own, for windowed encoders; its step is that of `tome`"),
    Row("merge_windows_in_encoder", why="our own, for windowed encoders; its step is that of `tome`"),
    Row("testa", "RenShuhuai-Andy/TESTA", "41b9486", "one step within frames, r = a quarter", testa_patches),
    Row("testa", "RenShuhuai-Andy/TESTA", "41b9486", "one step over frames, 8 of 32", testa_frames),
    Row("tempme", "LunarShen/TempMe", "e624930", "one round, pairs of frames, 30 %", tempme),
    Row("vid_tldr", "mlvlab/vid-TLDR", "a25051d", "one block, 30 %, with sizes", vid_tldr),
]
