"""Methods that merge by similarity inside or after an encoder: ToMe and methods based on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.testa import Testa
from fewtokens.methods.merging.vid_tldr import VidTldr
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.groups import merge_within
from fidelity_rows import Agreement, Features, Row, load, same_rows


def tome_reference(peers: Path, x: Tensor) -> Callable[[], Tensor]:
    """Runs one published step of matching and merging of [1,N,C]; r is a quarter; returns the output rows [M,C]."""
    code = load(peers / "ToMe" / "tome" / "merge.py")

    def run() -> Tensor:
        merge, _ = code.bipartite_soft_matching(x, x.shape[1] // 4)
        return code.merge_wavg(merge, x)[0][0]

    return run


def tome(peers: Path, features: Features) -> Agreement:
    """One step of matching and merging by features; r is a quarter of the tokens."""
    tokens = features.tokens()
    ours = tokens.apply(bipartite_plan(tokens.features, tokens.N // 4, tokens)).features
    return Agreement(*same_rows(ours[0], tome_reference(peers, tokens.features)()))


def testa_reference(peers: Path, tokens: Tokens, time: float) -> Callable[[], Tensor]:
    """Runs one published step within frames, or over frames if `time` is 1; returns the output rows [M,C]."""
    T, n = tokens.grid.T, tokens.grid.cells_per_frame
    code = load(peers / "TESTA" / "testa" / "merge.py")
    kind, r = ("frame", T // 4) if time else ("patch", n // 4)

    def run() -> Tensor:
        grid = tokens.features.unflatten(1, (T, n))
        grid = grid.transpose(1, 2) if time else grid
        merge, _ = code.bipartite_soft_matching(grid, r, merging_type=kind)
        return code.merge_wavg(merge, grid)[0][0].flatten(0, 1)

    return run


def testa_patches(peers: Path, features: Features) -> Agreement:
    """One step within each frame."""
    return _testa(peers, features, time=0.0)


def testa_frames(peers: Path, features: Features) -> Agreement:
    """One step over frames."""
    return _testa(peers, features, time=1.0)


def _testa(peers: Path, features: Features, time: float) -> Agreement:
    x = features.tokens()
    ours = Testa(x.N * 3 // 4, time=time)(x)
    why = (
        "ours ranks frames by the mean over their patches, the published code by the mode, which is the minimum"
        if time
        else ""
    )
    return Agreement(*same_rows(ours.features[0], testa_reference(peers, x, time)()), why)


def tempme_counts(tokens: Tokens) -> Tensor:
    """The number of tokens after one round of each pair of frames, 30 % fewer, int64 [1,T/2]."""
    n = 2 * tokens.grid.cells_per_frame
    return torch.full((1, tokens.grid.T // 2), n - int(0.3 * n), device=tokens.device)


def tempme_reference(peers: Path, tokens: Tokens) -> Callable[[], Tensor]:
    """Runs one published round, in which pairs of frames are joined and 30 % merge; returns the output rows [M,C]."""
    n = 2 * tokens.grid.cells_per_frame
    code = load(peers / "TempMe" / "tvr" / "models" / "module_tome_merge.py")
    clips = tokens.features[0].unflatten(0, (-1, n))

    def run() -> Tensor:
        merge, _ = code.bipartite_soft_matching(clips, int(0.3 * n), 0, 2)
        return code.merge_wavg(merge, clips)[0].flatten(0, 1)

    return run


def tempme(peers: Path, features: Features) -> Agreement:
    """One round: pairs of consecutive frames are joined, and 30 % of their tokens merge."""
    x = features.tokens()
    ours = x.apply(merge_within(x, x.frame // 2, tempme_counts(x)))
    return Agreement(*same_rows(ours.features[0], tempme_reference(peers, x)()))


def vid_tldr_attention(tokens: Tokens, heads: int) -> Tensor:
    """The attention within each frame, computed from the features, [T,heads,H*W,H*W]."""
    frames = tokens.features[0].unflatten(0, (tokens.grid.T, -1))
    split = frames.unflatten(2, (heads, -1)).transpose(1, 2)
    return (split @ split.transpose(2, 3) / 8).softmax(3)


def vid_tldr_reference(peers: Path, tokens: Tokens, attention: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Runs one published block, 30 %, on each frame; returns the output rows [M,C] and their sizes [M,1]."""
    code = load(peers / "vid-TLDR" / "multi_modality" / "utils" / "vid_TLDR.py")
    frames = tokens.features[0].unflatten(0, (tokens.grid.T, -1))

    def run() -> tuple[Tensor, Tensor]:
        info = {"use": True, "r": [0.3], "source_trace": False, "source": None, "size": None}
        out = code.vidTLDR(frames, attention, info, 0)
        return out.flatten(0, 1), info["size"].flatten(0, 1)

    return run


def vid_tldr_ours(tokens: Tokens, attention: Tensor) -> Callable[[], Tokens]:
    """Runs ours in the same way, with each frame as a video; the sharpness of the attention is computed, too."""
    frames = Tokens.from_cells(tokens.features[0].unflatten(0, tokens.grid.shape)[:, None])
    method = VidTldr(r=[0.3])

    def run() -> Tokens:
        mean = attention.mean(1)
        sharpness = torch.special.xlogy(mean, mean).sum(2)
        return method(frames, sharpness=sharpness, layer=0, depth=12)

    return run


def vid_tldr(peers: Path, features: Features) -> Agreement:
    """One block, each frame separately; the attention of six heads is computed from the features."""
    x = features.tokens()
    attention = vid_tldr_attention(x, 6)
    ours = vid_tldr_ours(x, attention)()
    sized = torch.cat([ours.features, ours.sizes[..., None]], 2)
    return Agreement(*same_rows(sized.flatten(0, 1), torch.cat(vid_tldr_reference(peers, x, attention)(), 1)))


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
