"""Methods that compare each position with the same position in other frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, normalize, patchify
from fewtokens.methods.merging.holitom import HoliTom
from fidelity_rows import PATCH, Agreement, Features, Row, load, same_places, same_rows


def dycoke(peers: Path, features: Features) -> Agreement:
    x = features.tokens()
    code = load(peers / "DyCoke" / "llava" / "model" / "llava_arch.py", "llava")
    theirs = code.dycole_ttm(x.features[0], x.grid.cells_per_frame, 0.7)
    (method,) = registry.build("dycoke(0.7)")
    return Agreement(*same_rows(method(x).features[0], theirs))


def frame_fusion(peers: Path, features: Features) -> Agreement:
    x = features.tokens()
    n = x.grid.cells_per_frame
    code = load(peers / "FrameFusion" / "framefusion" / "main.py")
    theirs = code.FrameFusion(cost=1e-9, similarity_lower_bound=0.6, ratio_lower_bound=0.0)
    place = torch.arange(x.N)[None] % n
    theirs.prepare(place, n, torch.tensor(0), torch.tensor(x.N - 1), torch.tensor(x.N), x.N)
    rows, _, _ = theirs(x.features.clone(), torch.arange(x.N)[None], None)
    (method,) = registry.build("frame_fusion(0.6)")
    return Agreement(*same_rows(method(x).features[0], rows[0]))


def holitom_reference(peers: Path, tokens: Tokens, attention: Tensor) -> Callable[[], Tensor]:
    """Runs the published code at its settings and a quarter of the tokens; returns the output rows [M,C]."""
    tau, ratio = 0.8, 0.25
    T, n = tokens.grid.T, tokens.grid.cells_per_frame
    frames, scores = tokens.features[0].unflatten(0, (T, n)), attention[0].unflatten(0, (T, n))
    code = load(peers / "HoliTom" / "holitom" / "llava_arch.py", "llava").LlavaMetaForCausalLM_holitom()
    code.model = SimpleNamespace(image_newline=torch.zeros(0))

    def run() -> Tensor:
        similarity = torch.nn.functional.cosine_similarity(frames[:-1], frames[1:], dim=-1)
        windows, saved = code.select_static_windows(similarity, T, tau, T)
        fraction = min(ratio * T * n / (T * n - saved), 1)
        parts = code.get_static_dynamic_features(frames, scores, windows, similarity, tau)
        return torch.cat(
            [
                code.holitom(
                    still, moving, score, at, places, end - start + 1, fraction, 0, 0.6, 7, torch.float32, "no"
                )
                for still, moving, score, at, places, (start, end) in zip(
                    parts[0], parts[1], parts[3], parts[4], parts[5], windows, strict=True
                )
            ]
        )

    return run


def holitom(peers: Path, features: Features) -> Agreement:
    """At the number of tokens that the published code keeps, which rounds in each window and frame."""
    x, attention = features.tokens(), features.cue("attention")
    theirs = holitom_reference(peers, x, attention)()
    ours = HoliTom(len(theirs))(x, attention=attention)
    why = "ours keeps the exact count, the published code rounds in each window and frame"
    return Agreement(*same_rows(ours.features[0], theirs), why)


def dtd(peers: Path, features: Features) -> Agreement:
    """By features, drop above 0.5, as the published evaluation calls it; its grid is [T,2H,2W] before merging."""
    return _dtd(peers, features, "dtd(0.5)", "feature", 0.5, True)


def dtd_relative(peers: Path, features: Features) -> Agreement:
    return _dtd(peers, features, "dtd(0.8, mode='relative')", "feature", 0.8, False)


def dtd_pixel(peers: Path, features: Features) -> Agreement:
    return _dtd(peers, features, "dtd(0.1, mode='pixel')", "pixel", 0.1, True)


def _dtd(peers: Path, features: Features, spec: str, by: str, tau: float, absolute: bool) -> Agreement:
    x = features.tokens()
    T, side = x.grid.T, x.grid.H
    # A token of the published model is two frames of 28 pixels, so frames are doubled in time and size.
    frames = features.frames().float().div(255).repeat_interleave(2, 1)
    frames = frames.repeat_interleave(2, 3).repeat_interleave(2, 4)[0]
    file = peers / "TimeChat-Online" / "eval" / "qwen2_5_vl" / "modeling_qwen2_5_vl_DTD.py"
    code = load(file, "transformers", "flash_attn")
    code.OPENAI_CLIP_MEAN, code.OPENAI_CLIP_STD = IMAGENET_MEAN, IMAGENET_STD
    unit = normalize(frames, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, (T, 2))  # t p c (y a q) (x b r)
    unit = unit.unflatten(4, (side, 2, PATCH)).unflatten(3, (side, 2, PATCH))  # t p c y a q x b r
    flat = unit.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(T * side * side * 4, -1)
    ids = torch.tensor([[0, *[2] * x.N, 1]])
    cells = x.grid.positions().long().T + 1
    ends = torch.tensor([[0, T + side + 1]]).expand(3, -1)
    places = torch.cat([ends[:, :1], cells, ends[:, 1:]], 1)[:, None]
    rows = torch.cat([x.features.new_zeros(1, 1, x.C), x.features, x.features.new_zeros(1, 1, x.C)], 1)
    model = SimpleNamespace(config=SimpleNamespace(vision_start_token_id=0, vision_end_token_id=1))
    where = places[..., None].float()
    out = code.Qwen2_5_VLModel.token_drop(
        model,
        by,
        tau,
        absolute,
        rows,
        flat,
        torch.tensor([[T, 2 * side, 2 * side]]),
        (where, where),
        places,
        ids[None],
    )
    t, y, column = (out[2][:, 0, 1:-1] - 1).long()
    theirs = (t * side + y) * side + column
    (method,) = registry.build(spec)
    pixels = patchify(features.frames().float().div(255), 1, PATCH)
    ours = method(x, pixels=pixels) if "pixels" in method.needs else method(x)
    return Agreement(same_places(ours.cell[0], theirs), 0.0)


def rlt(peers: Path, features: Features) -> Agreement:
    """Tubelets of two frames, patches of 14 pixels, and the run lengths counted by the published code."""
    frames = features.frames().float().div(255)
    T, side = frames.shape[1] // 2, frames.shape[3] // PATCH
    code = load(peers / "rlt" / "src" / "models" / "static_token_utils.py", "ipdb")
    unit = normalize(frames, IMAGENET_MEAN, IMAGENET_STD).transpose(1, 2)
    mask = code.batched_find_idxs_to_keep(unit, threshold=0.1, tubelet_size=2, patch_size=PATCH)
    lengths = code.batched_get_token_lengths(mask, 1, (T, side, side))
    (method,) = registry.build("rlt(0.1)")
    cells = Tokens.from_cells(torch.zeros(1, T, side, side, 1))
    ours = method(cells, pixels=patchify(frames, 2, PATCH))
    # The published lengths are ordered by position, then time.
    order = (ours.cell[0] % side**2 * T + ours.cell[0] // side**2).argsort()
    agree = same_places(ours.cell[0], mask[0].nonzero()[:, 0])
    same = len(lengths) == ours.N and bool((ours.sizes[0][order] == lengths).all())
    return Agreement(agree if same else 0.0, 0.0)


_DTD = "yaolinli/TimeChat-Online", "25a1578"
ROWS = [
    Row("dycoke", "KD-TAO/DyCoke", "dd74634", "rate 0.7", dycoke),
    Row("frame_fusion", "thu-nics/FrameFusion", "fbec1d2", "similarity 0.6, merging of one layer", frame_fusion),
    Row("holitom", "cokeshao/HoliTom", "e9b2972", "ratio 0.25, tau 0.8, beta 0.6, k 7, the same attention", holitom),
    Row("dtd", *_DTD, "features, drop above 0.5", dtd),
    Row("dtd", *_DTD, "features, relative, drop 0.8 of each frame", dtd_relative),
    Row("dtd", *_DTD, "pixels, drop below 0.1", dtd_pixel),
    Row("rlt", "rccchoudhury/rlt", "69ec8b4", "tubelets of 2, tau 0.1, with the lengths of runs", rlt),
    Row(
        "grt",
        "Hai-chao-Zhang/DenseVideoUnderstand",
        "0d374c9",
        why="the published repository contains only the benchmark's tasks, not the gate",
    ),
]
