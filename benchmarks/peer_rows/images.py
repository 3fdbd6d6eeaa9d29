"""Methods published for images, and those inside a language model that were published for them.

Published code that returns only which tokens are kept is followed by the selection of their rows.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.layer_method import LayerMethod
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import patchify
from fewtokens.methods.layers.dart import Dart
from fewtokens.methods.layers.sparsevlm import SparseVlm
from fidelity_rows import PATCH, same_places, same_rows
from fidelity_rows.images import (
    by_attention,
    encode_images,
    pixelprune_reference,
    prumerge_reference,
    same_places_of_frames,
    single_frames,
)
from fidelity_rows.inside import Prompt, dart_reference, sparsevlm_reference
from fidelity_rows.pruned import kept_cells
from peer_rows import Pair, Row, Workload


def attended(spec: str, repository: str, peers: Path, work: Workload) -> Pair:
    """64 tokens of each frame, all frames as one batch of images."""
    tokens, attention = work.tokens(), work.cue("attention")
    (method,) = registry.build(spec)
    choose = by_attention(peers / repository, tokens, attention)

    def theirs() -> tuple[Tensor, Tensor]:
        mask = choose().flatten()
        return mask, tokens.features[0, mask]

    def agree(ours: Tokens, theirs: tuple[Tensor, Tensor]) -> float:
        return same_places(kept_cells(ours), theirs[0].nonzero()[:, 0])

    return Pair(lambda: method(tokens, attention=attention), theirs, agree)


def cdpruner(peers: Path, work: Workload) -> Pair:
    frames = single_frames(work.tokens())
    text = frames.features[0, [5, 100, 150]]
    (method,) = registry.build("cdpruner(64, relevance='negative')")
    cue = text.expand(frames.B, -1, -1)
    choose = encode_images(peers / "CDPruner", visual_token_num=64)

    def theirs() -> tuple[Tensor, Tensor]:
        mask = choose(frames.features, frames.features, text)
        return mask, frames.features[mask]

    return Pair(lambda: method(frames, text=cue), theirs, lambda a, b: same_places_of_frames(a, b[0]))


def prumerge(peers: Path, work: Workload) -> Pair:
    """The features are the keys. Theirs computes the attention, whose logits are in a further channel of the keys.

    Its selection reads no more channels of the keys than the features have.
    """
    tokens, attention = work.tokens(), work.cue("attention")
    shares = attention[0].unflatten(0, (tokens.grid.T, -1))
    logits = torch.cat([1 - shares.sum(1, keepdim=True), shares], 1).log() * tokens.C**0.5
    keys = torch.cat([F.pad(tokens.features[0].unflatten(0, shares.shape), (0, 0, 1, 0)), logits[..., None]], 2)
    queries = torch.zeros_like(keys)
    queries[..., -1] = 1
    (method,) = registry.build("prumerge(normalize=False)")
    return Pair(
        lambda: method(tokens, attention=attention, keys=tokens.features),
        prumerge_reference(peers, tokens, queries, keys),
        lambda ours, theirs: same_rows(ours.features[0], theirs)[0],
    )


def pixelprune(tau: float, peers: Path, work: Workload) -> Pair:
    pixels = patchify(work.frames().float() / 255, 1, PATCH)
    grid = Grid(work.T, *(side // PATCH for side in work.frames().shape[3:]))
    cells = Tokens.from_cells(pixels.flatten(2), grid)
    (method,) = registry.build(f"pixelprune({tau})")

    rows = pixels[0].flatten(1)
    choose = pixelprune_reference(peers, rows, grid, tau)

    def theirs() -> tuple[Tensor, Tensor]:
        places = torch.cat([kept + grid.cells_per_frame * frame for frame, kept in enumerate(choose())])
        return places, rows[places]

    return Pair(lambda: method(cells, pixels=pixels), theirs, lambda a, b: same_places(a.cell[0], b[0]))


def dart(peers: Path, work: Workload) -> Pair:
    """The decision; both receive hidden states and keys."""
    prompt = Prompt(work.features, work.T)
    each = prompt.N // 32
    method = Dart(4 + 8 * each)
    state = prompt.state(method)
    return Pair(
        lambda: method.choose(state, 0).kept,
        dart_reference(peers, prompt, each),
        lambda ours, theirs: same_places((ours & state.video)[0].nonzero()[:, 0], theirs),
    )


def sparsevlm(peers: Path, work: Workload) -> Pair:
    """The decision and the recycled tokens; both receive hidden states and attention."""
    prompt = Prompt(work.features, work.T)
    method: LayerMethod = SparseVlm((300,), layers=(2,))
    state = prompt.state(method)

    def ours() -> Tensor:
        method.raters(prompt.hidden, state.video, state.question)
        decision = method.choose(state, 0)
        assert decision.hidden is not None
        return decision.hidden[0, (decision.kept & state.video)[0]]

    return Pair(ours, sparsevlm_reference(peers, prompt), lambda ours, theirs: same_rows(ours, theirs)[0])


_LAYER: dict[str, Any] = {"devices": ("cpu",)}
_ROUNDING = "two tokens differ in cosine by float32 rounding"
_RANGE = "the published code scales relevance by the range of all frames together, ours by that of each"
_ORDER = "theirs visits pivots in the order of a Python set"
_COUNT = "the published count, int(n * (k / n)), loses a token to rounding in some frames"
ROWS = [
    Row(
        "vispruner",
        "64 of 196 per frame",
        "Theia-4869/VisPruner@aefa01a",
        partial(attended, "vispruner('64/frame')", "VisPruner"),
        unequal=_ROUNDING,
    ),
    Row(
        "attention_topk",
        "64 of 196 per frame",
        "Theia-4869/FasterVLM@f5d5f12",
        partial(attended, "attention_topk('64/frame')", "FasterVLM"),
        reason="theirs is one topk; ours ranks frames of any size and also returns positions, sizes and cells",
    ),
    Row(
        "cdpruner",
        "64 of 196 per frame",
        "Theia-4869/CDPruner@9541616",
        cdpruner,
        unequal=_RANGE,
        reason="the same products; at each step ours also ranks tokens that add no volume by relevance",
    ),
    Row(
        "prumerge",
        "32 neighbors, normalize=False",
        "42Shawn/LLaVA-PruMerge@097c041",
        prumerge,
        devices=("cpu",),
        unequal=_COUNT,
    ),
    *(
        Row(
            "pixelprune",
            f"tau = {tau}, from pixels",
            "OPPO-Mente-Lab/PixelPrune@a870e31",
            partial(pixelprune, tau),
            reason="at tau = 0 most of both is the comparison of neighboring cells; ours also finds the token of each "
            "dropped cell",
        )
        for tau in (0.0, 0.1)
    ),
    Row("dart", "the decision, a quarter", "ModelTC/LightCompress@9701d03", dart, (8, 32), unequal=_ORDER, **_LAYER),
    Row(
        "sparsevlm",
        "300 of 1,568 and recycled tokens at one layer",
        "Gumpest/SparseVLMs@26a5f48",
        sparsevlm,
        (8,),
        **_LAYER,
    ),
]
