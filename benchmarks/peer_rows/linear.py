"""Methods that read the features once: EVS, VidCom2, DyCoke, FrameFusion, DTD."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD
from fidelity_rows import importing, load, same_places, same_rows
from fidelity_rows.pruned import kept_cells, scale_channels
from peer_rows import Pair, Row, Workload

SIDE = 14


def _same_features(ours: Tokens, theirs: Tensor) -> float:
    return same_rows(ours.features[0], theirs)[0]


def _vllm(module: str, spec: str, peers: Path, tokens: Tokens) -> Pair:
    """vLLM's mask, with the rows that it selects."""
    with importing(peers / "vllm" / "vllm" / "multimodal" / "video_prune"):
        reference = __import__(module)
    (method,) = registry.build(spec)
    x, shape = tokens.features[0], (tokens.grid.T, SIDE, SIDE)

    def theirs() -> tuple[Tensor, Tensor]:
        mask = reference.compute_retention_mask(x, shape, 1, 0.75)
        return mask, x[mask]

    def agree(ours: Tokens, theirs: tuple[Tensor, Tensor]) -> float:
        return same_places(kept_cells(ours), theirs[0].nonzero().flatten())

    return Pair(lambda: method(tokens), theirs, agree, x.clone)


def evs(peers: Path, work: Workload) -> Pair:
    return _vllm("evs", "evs(q=0.75)", peers, work.tokens())


def vidcom2(peers: Path, work: Workload) -> Pair:
    return _vllm("vidcom2", "vidcom2(q=0.75)", peers, scale_channels(work.tokens()))


def vidcom2_authors(peers: Path, work: Workload) -> Pair:
    tokens = scale_channels(work.tokens())
    with importing(peers / "VidCom2" / "token_compressor" / "vidcom2"):
        import vidcom2 as reference
    (method,) = registry.build("vidcom2(0.25)")
    x = tokens.features[0]
    return Pair(
        lambda: method(tokens),
        lambda: reference.vidcom2_compression(x, "qwen2_vl", 0.25, frame_token_len=SIDE**2),
        _same_features,
        x.clone,
    )


def dycoke(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    code = load(peers / "DyCoke" / "llava" / "model" / "llava_arch.py", "llava")
    (method,) = registry.build("dycoke(0.7)")
    x = tokens.features[0]
    return Pair(lambda: method(tokens), lambda: code.dycole_ttm(x, SIDE**2, 0.7), _same_features, x.clone)


def frame_fusion(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    code = load(peers / "FrameFusion" / "framefusion" / "main.py")
    place = torch.arange(tokens.N, device=tokens.device)[None]
    end = torch.tensor(tokens.N)
    (method,) = registry.build("frame_fusion(0.6)")

    def theirs() -> Any:
        model = code.FrameFusion(cost=1e-9, similarity_lower_bound=0.6, ratio_lower_bound=0.0)
        model.prepare(place % SIDE**2, SIDE**2, torch.tensor(0), end - 1, end, tokens.N)
        return model(tokens.features, place, None)[0][0]

    return Pair(lambda: method(tokens), theirs, _same_features, tokens.features.clone)


def dtd(peers: Path, work: Workload) -> Pair:
    """The published function also rearranges the pixels, and selects position ids and rotary embeddings."""
    tokens = work.tokens()
    code = load(
        peers / "TimeChat-Online" / "eval" / "qwen2_5_vl" / "modeling_qwen2_5_vl_DTD.py", "transformers", "flash_attn"
    )
    code.OPENAI_CLIP_MEAN, code.OPENAI_CLIP_STD = IMAGENET_MEAN, IMAGENET_STD
    (method,) = registry.build("dtd(0.5)")
    T, device = tokens.grid.T, tokens.device
    ids = torch.tensor([[0, *[2] * tokens.N, 1]], device=device)
    cells = tokens.grid.positions(device).long().T + 1
    ends = torch.tensor([[0, T + SIDE + 1]], device=device).expand(3, -1)
    places = torch.cat([ends[:, :1], cells, ends[:, 1:]], 1)[:, None]
    rotary = places[..., None].float()
    rows = torch.nn.functional.pad(tokens.features, (0, 0, 1, 1))
    grid = torch.tensor([[T, 2 * SIDE, 2 * SIDE]], device=device)
    model = SimpleNamespace(config=SimpleNamespace(vision_start_token_id=0, vision_end_token_id=1))
    pixels = torch.zeros(4 * tokens.N, 3 * 2 * 14 * 14, device=device)  # rearranged, but not compared in this mode

    def theirs() -> Any:
        return code.Qwen2_5_VLModel.token_drop(
            model, "feature", 0.5, True, rows, pixels, grid, (rotary, rotary), places, ids[None]
        )

    def agree(ours: Tokens, theirs: Any) -> float:
        t, y, column = (theirs[2][:, 0, 1:-1] - 1).long()
        return same_places(ours.cell[0], (t * SIDE + y) * SIDE + column)

    return Pair(lambda: method(tokens), theirs, agree, tokens.features.clone)


ROWS = [
    Row("evs", "q = 0.75", "vllm-project/vllm@d750efb", evs),
    Row("vidcom2", "q = 0.75, channels times 0.5..1.5", "vllm-project/vllm@0f17ee0", vidcom2),
    Row(
        "vidcom2",
        "a quarter, channels times 0.5..1.5",
        "xuyang-liu16/VidCom2@944a17d",
        vidcom2_authors,
        unequal="the published code leaves the sum of the counts per frame to rounding",
    ),
    Row("dycoke", "rate 0.7", "KD-TAO/DyCoke@dd74634", dycoke),
    Row(
        "dtd", "features, drop above 0.5; theirs rearranges pixels too", "yaolinli/TimeChat-Online@25a1578", dtd, (32,)
    ),
    Row("frame_fusion", "similarity 0.6, merging of one layer", "thu-nics/FrameFusion@fbec1d2", frame_fusion),
]
