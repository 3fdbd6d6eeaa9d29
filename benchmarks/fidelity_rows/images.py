"""Methods published for images: VisPruner, FasterVLM, CDPruner, PruMerge, PixelPrune. Each frame is an image.

The first three are parts of a model's function `encode_images`, PruMerge of its vision tower; these are called
on a model whose tower returns our features and cues, and whose projector returns its input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import patchify
from fewtokens.methods.merging.prumerge import PruMerge
from fewtokens.methods.pruning.attention_topk import AttentionTopk
from fewtokens.methods.pruning.cdpruner import CdPruner
from fewtokens.methods.pruning.pixelprune import PixelPrune
from fewtokens.methods.pruning.vispruner import VisPruner
from fidelity_rows import PATCH, Agreement, Features, Row, importing, load, same_places, same_rows
from fidelity_rows.pruned import kept_cells

_BUDGET = 64  # tokens of a frame


def encode_images(clone: Path, **settings: Any) -> Callable[..., Tensor]:
    """The published `encode_images`: of what its tower returns for T images, to masks of kept tokens, bool [T,n]."""
    code = load(clone / "llava" / "model" / "llava_arch.py", "llava").LlavaMetaForCausalLM

    def run(*outputs: Tensor) -> Tensor:
        parts = SimpleNamespace(get_vision_tower=lambda: lambda *_, **__: outputs, mm_projector=nn.Identity())
        return code.encode_images(SimpleNamespace(get_model=lambda: parts, **settings), outputs[0])[1]

    return run


def by_attention(clone: Path, tokens: Tokens, attention: Tensor) -> Callable[[], Tensor]:
    """Runs VisPruner's or FasterVLM's code with 64 tokens of each frame, half of them important; returns [T,n]."""
    T, n = tokens.grid.T, tokens.grid.cells_per_frame
    run = encode_images(clone, get_visual_token_num=lambda: _BUDGET, get_important_ratio=lambda: 0.5)
    return lambda: run(tokens.features[0].unflatten(0, (T, n)), attention[0].unflatten(0, (T, 1, n)))


def vispruner(peers: Path, features: Features) -> Agreement:
    why = "in one frame of 96, two tokens differ by 3.5e-8 in cosine, within float32 rounding"
    return _by_attention(peers / "VisPruner", VisPruner(f"{_BUDGET}/frame"), features, why)


def attention_topk(peers: Path, features: Features) -> Agreement:
    return _by_attention(peers / "FasterVLM", AttentionTopk(f"{_BUDGET}/frame"), features)


def _by_attention(clone: Path, method: Reducer, features: Features, why: str = "") -> Agreement:
    x, attention = features.tokens(), features.cue("attention")
    theirs = by_attention(clone, x, attention)().flatten().nonzero()[:, 0]
    return Agreement(same_places(kept_cells(method(x, attention=attention)), theirs), 0.0, why)


def single_frames(tokens: Tokens) -> Tokens:
    """A batch [T,n,C] of videos of one frame."""
    return Tokens.from_cells(tokens.features[0].unflatten(0, (tokens.grid.T, 1, *tokens.grid.shape[1:])))


def cdpruner(peers: Path, features: Features) -> Agreement:
    """Relevance to three tokens of the clip."""
    frames = single_frames(features.tokens())
    text = features.tokens().features[0, [5, 1000, 4000]]
    run = encode_images(peers / "CDPruner", visual_token_num=_BUDGET)
    theirs = torch.cat([run(frame, frame, text) for frame in frames.features.split(1)])
    ours = CdPruner(_BUDGET, relevance="negative")(frames, text=text.expand(frames.B, -1, -1))
    return Agreement(same_places_of_frames(ours, theirs), 0.0)


def same_places_of_frames(ours: Tokens, theirs: Tensor) -> float:
    """The mean of `same_places` over videos of one frame, of which `theirs` [T,n] are the masks."""
    pairs = zip(ours.assignment >= 0, theirs, strict=True)
    shares = [same_places(row.nonzero()[:, 0], mask.nonzero()[:, 0]) for row, mask in pairs]
    return sum(shares) / len(shares)


def prumerge_reference(
    peers: Path, tokens: Tokens, queries: Tensor, keys: Tensor, *, plus: bool = False
) -> Callable[[], Tensor]:
    """Runs the published code on each frame alone; returns the output rows [M,C].

    Args:
        queries, keys: [T,1+n,C] of the last block, the class token first, heads joined.
    """
    code = load(peers / "LLaVA-PruMerge/llava/model/multimodal_encoder/clip_encoder.py", "transformers", "matplotlib")
    run_tower = getattr(code.CLIPVisionTower, f"token_prune_merge_advanced{'_plus' * plus}")
    T, n = tokens.grid.T, tokens.grid.cells_per_frame
    hidden = nn.functional.pad(tokens.features[0].unflatten(0, (T, n)), (0, 0, 1, 0))
    attention = SimpleNamespace(q_proj=nn.Identity(), k_proj=nn.Identity())

    class Tower:
        vision_model = SimpleNamespace(encoder=SimpleNamespace(layers=[SimpleNamespace(self_attn=attention)] * 24))

        def __call__(self, images: Tensor, **options: Any) -> SimpleNamespace:
            frame = int(images)
            attention.q_proj(queries[frame, None])
            attention.k_proj(keys[frame, None])
            return SimpleNamespace(hidden_states=[hidden[frame, None]])

    model = SimpleNamespace(vision_tower=Tower(), select_layer=-1, device="cpu", dtype=torch.float32)
    model.feature_select = lambda outputs: outputs.hidden_states[-1][:, 1:]
    return lambda: torch.cat([run_tower(model, torch.tensor(float(frame)))[0] for frame in range(T)])


def prumerge_cues(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
    """The cues of `prumerge`: the attention of the class token to the cells [1,N], and their keys [1,N,C]."""
    logits = (queries[:, :1] @ keys.transpose(1, 2)).squeeze(1) * keys.shape[2] ** -0.5
    return {"attention": logits.softmax(1)[:, 1:].reshape(1, -1), "keys": keys[:, 1:].reshape(1, -1, keys.shape[2])}


def prumerge(peers: Path, features: Features) -> Agreement:
    why = "the published count, int(n * (k / n)), rounds to 31 in the two frames with k = 32 of n = 196"
    return _prumerge(peers, features, 14, plus=False, why=why)


def prumerge_plus(peers: Path, features: Features) -> Agreement:
    """24 x 24 tokens, the only number that the published code accepts."""
    why = (
        "in 6 of 24 frames the distance is 1: the published code mixes every token with its neighbors, ours leaves a "
        "frame that keeps all its tokens unchanged"
    )
    return _prumerge(peers, features, 24, plus=True, why=why)


def _prumerge(peers: Path, features: Features, side: int, *, plus: bool, why: str) -> Agreement:
    """Eight frames, with the queries and keys of the encoder's last block."""
    x = features.tokens(8, side)
    outputs: list[Tensor] = []
    attention = features.encoder.vit.blocks[-1].attention
    handle = attention.qkv.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        features.encoder(features.frames(8, side))
    finally:
        handle.remove()
    queries, keys, _ = torch.cat(outputs).chunk(3, dim=2)
    theirs = prumerge_reference(peers, x, queries, keys, plus=plus)()
    ours = PruMerge(plus=plus, normalize=False)(x, **prumerge_cues(queries, keys))
    return Agreement(*same_rows(ours.features[0], theirs), why)


def pixelprune_reference(peers: Path, pixels: Tensor, grid: Grid, tau: float) -> Callable[[], list[Tensor]]:
    """Runs the published code on the pixels [N,D] of a grid; returns the kept cells of each frame."""
    with importing(peers / "PixelPrune"):
        from pixelprune.methods.pred_2d import Pred2DSelector
    selector = Pred2DSelector("max", tau, anchored=True)
    sizes = torch.tensor([[1, grid.H, grid.W]]).expand(grid.T, -1)
    return lambda: selector.select(pixels, sizes, spatial_merge_size=1)


def pixelprune(tau: float, features: Features, peers: Path) -> Agreement:
    frames = features.frames().float() / 255
    pixels = patchify(frames, 1, PATCH)
    grid = Grid(frames.shape[1], *(side // PATCH for side in frames.shape[3:]))
    theirs = pixelprune_reference(peers, pixels[0].flatten(1), grid, tau)()
    places = torch.cat([cells + grid.cells_per_frame * frame for frame, cells in enumerate(theirs)])
    ours = PixelPrune(tau)(Tokens.from_cells(pixels.flatten(2), grid), pixels=pixels)
    return Agreement(same_places(ours.cell[0], places), 0.0)


def pixelprune_exact(peers: Path, features: Features) -> Agreement:
    return pixelprune(0.0, features, peers)


def pixelprune_near(peers: Path, features: Features) -> Agreement:
    return pixelprune(0.1, features, peers)


_PRUMERGE, _PIXELPRUNE = ("42Shawn/LLaVA-PruMerge", "097c041"), ("OPPO-Mente-Lab/PixelPrune", "a870e31")
ROWS = [
    Row("vispruner", "Theia-4869/VisPruner", "aefa01a", "64 of 196 per frame, half of them important", vispruner),
    Row("attention_topk", "Theia-4869/FasterVLM", "f5d5f12", "64 of 196 per frame", attention_topk),
    Row("cdpruner", "Theia-4869/CDPruner", "9541616", "64 of 196, single frames, relevance='negative'", cdpruner),
    Row("prumerge", *_PRUMERGE, "8 frames, each alone, normalize=False", prumerge),
    Row("prumerge", *_PRUMERGE, "plus=True, 8 frames of 24x24, each alone, normalize=False", prumerge_plus),
    Row("pixelprune", *_PIXELPRUNE, "tau = 0, frames in 0..1", pixelprune_exact),
    Row("pixelprune", *_PIXELPRUNE, "tau = 0.1, frames in 0..1", pixelprune_near),
]
