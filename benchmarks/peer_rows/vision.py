"""Vision transformers: ToMe in a ViT next to its patch of timm, and a plain ViT-S/16 next to timm's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.encoders import ViT, ViTConfig, VitEncoder
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, normalize
from fewtokens.methods.merging.tome_in_encoder import TomeInEncoder
from fidelity_rows import importing, same_rows
from peer_rows import Pair, Row, Workload


def _networks(peers: Path, side: int) -> tuple[nn.Module, ViT]:
    """timm's ViT-S/16 without a head, for images of `side` pixels, and ours with the same weights."""
    with importing(peers / "ToMe", "torchvision"):
        from timm.models.vision_transformer import VisionTransformer
    torch.manual_seed(0)
    theirs = VisionTransformer(side, 16, embed_dim=384, num_heads=6, num_classes=0, global_pool="").eval()
    ours = ViT(ViTConfig(image_size=(side, side))).eval()
    tensors = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("patch_embed.proj", "patches").replace("attn.proj", "attention.out")
        name = name.replace("attn.qkv", "attention.qkv")
        tensors[f"norm_last.{name[5:]}" if name.startswith("norm.") else name] = value
    positions = tensors.pop("pos_embed")[0]
    tensors |= {"class_token": tensors.pop("cls_token")[0, 0], "class_position": positions[0]}
    ours.load_state_dict(tensors | {"positions": positions[1:].unflatten(0, ours.config.position_grid)})
    return theirs, ours


def _images(work: Workload, batch: int, side: int) -> tuple[Tensor, Tensor]:
    """Frames of the clip for ours [1,batch,3,side,side] in 0..1, and normalized for theirs [batch,3,side,side]."""
    frames = torch.nn.functional.interpolate(work.features.frames(batch)[0].float().div(255), (side, side))
    frames = frames.to(work.device)
    return frames[None], normalize(frames, IMAGENET_MEAN, IMAGENET_STD)


def _agree(ours: tuple[Tokens, dict], theirs: Tensor) -> float:
    return same_rows(ours[0].features[0], theirs[:, 1:].flatten(0, 1), 1e-3)[0]


def vit(batch: int, peers: Path, work: Workload) -> Pair:
    theirs, ours = _networks(peers, 224)
    encoder, model = VitEncoder(ours.to(work.device)), theirs.to(work.device)
    frames, images = _images(work, batch, 224)
    return Pair(lambda: encoder(frames), lambda: model(images), _agree)


def tome(batch: int, side: int, r: int, peers: Path, work: Workload) -> Pair:
    theirs, ours = _networks(peers, side)
    with importing(peers / "ToMe", "torchvision"):
        from tome.patch import timm as apply_patch
    encoder, model = VitEncoder(ours.to(work.device)), theirs.to(work.device)
    apply_patch(model)
    model.r = r
    frames, images = _images(work, batch, side)
    merge = [TomeInEncoder(r=r)]
    return Pair(lambda: encoder(frames, block_methods=merge), lambda: model(images), _agree)


_REASONS = {
    "vit": "the same operations; within the spread",
    "tome_in_encoder": "at batch 1 the matrix products are small, and the rest counts: the published patch returns "
    "neither positions nor the cells of each token",
}


def _row(method: str, task: str, reference: str, build: Any) -> Row:
    return Row(method, task, reference, build, frames=(0,), reason=_REASONS[method])


ROWS = [_row("vit", f"ViT-S/16, 224 px, batch {batch}", "timm==1.0.31", partial(vit, batch)) for batch in (1, 8)] + [
    _row(
        "tome_in_encoder",
        f"ViT-S/16, {side} px, batch {batch}, r = {r}",
        "facebookresearch/ToMe@af95e4b",
        partial(tome, batch, side, r),
    )
    for side, r in ((224, 13), (448, 52))
    for batch in (1, 8)
]
