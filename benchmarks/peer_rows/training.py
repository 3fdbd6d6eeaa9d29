"""A training step of ToBo, MAE and RSP with ViT-S/16 at 224 px: forward pass, backward pass and AdamW."""

from __future__ import annotations

import collections.abc
import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributions
from torch import Tensor, nn

from fewtokens.networks.pretraining import Mae, PretrainingConfig, ToBo, ToBoConfig
from fewtokens.networks.rsp import Rsp, RspConfig
from fewtokens.train.optimizer import make_optimizer
from fewtokens.train.settings import Settings
from fidelity_rows import importing
from peer_rows import Pair, Row, Workload

BATCH = 4
SIZES = {
    "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "decoder_embed_dim": 512, "decoder_depth": 8,
    "decoder_num_heads": 16, "mlp_ratio": 4, "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}  # fmt: skip


@contextlib.contextmanager
def _published(peers: Path, name: str) -> Iterator[None]:
    """Makes a clone importable with the timm in it (or that of `tobo`), which was written for older releases."""
    folder = peers / name / "timm"
    folder = folder if folder.is_dir() else peers / "tobo" / "timm"
    six = types.ModuleType("torch._six")
    six.container_abcs = collections.abc  # type: ignore[attr-defined]
    modules: dict[str, Any] = {"torch._six": six}
    for package, path in (("timm", folder), ("timm.models", folder / "models")):
        modules[package] = types.ModuleType(package)
        modules[package].__path__ = [str(path)]
    data = modules["timm.data"] = types.ModuleType("timm.data")
    for constant in ("IMAGENET_DEFAULT", "IMAGENET_INCEPTION"):
        vars(data).update({f"{constant}_MEAN": (0.5,) * 3, f"{constant}_STD": (0.5,) * 3})
    others = {key: module for key, module in sys.modules.items() if key.partition(".")[0] != "timm"}
    with (
        patch.dict(sys.modules, others | modules, clear=True),
        patch.object(np, "float", float, create=True),
        importing(peers / name, "torchvision"),
    ):
        yield


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        with torch.enable_grad():
            loss().backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _pair(work: Workload, ours: nn.Module, theirs: nn.Module, run: Callable[[Tensor, Tensor], Tensor]) -> Pair:
    ours.train().to(work.device)
    theirs.train().to(work.device)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (BATCH, 2, 3, 224, 224), generator=generator, dtype=torch.uint8).to(work.device)
    source, target = frames.float().div(255).sub(0.5).div(0.25).unbind(1)
    inputs = frames if not isinstance(ours, Mae) else frames[:, 1:]
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    return Pair(
        _step(
            ours,
            make_optimizer(ours, Settings(lr=1e-5)),
            lambda: ours(inputs, torch.rand(BATCH, 196, device=work.device))["loss"],
        ),
        _step(theirs, torch.optim.AdamW(trained, 1e-5, weight_decay=0.05), lambda: run(source, target)),
    )


def tobo(peers: Path, work: Workload) -> Pair:
    with _published(peers, "tobo"):
        import models_tobo

        # The settings of its training script; the mask of the paper.
        paths = {"tgt_path": "csm", "tobo_path": "sm"}
        theirs = models_tobo.tobo(**SIZES, **paths, mask_ratio=0.9, batch_size=BATCH, repeated_sampling=1)
    return _pair(work, ToBo(ToBoConfig()), theirs, lambda source, target: sum(theirs([source, target], 0)))


def mae(peers: Path, work: Workload) -> Pair:
    with _published(peers, "mae"):
        import models_mae

        theirs = models_mae.MaskedAutoencoderViT(**SIZES, norm_pix_loss=True)
    return _pair(work, Mae(PretrainingConfig()), theirs, lambda source, target: theirs(target)[0])


def rsp(peers: Path, work: Workload) -> Pair:
    with _published(peers, "RSP"):
        import models_rsp

        theirs = models_rsp.RSP(**SIZES)
    return _pair(work, Rsp(RspConfig()), theirs, lambda source, target: theirs(source, target, 0)[0])


ROWS = [
    Row(name, f"training step, ViT-S/16, 224 px, batch {BATCH}", reference, build, frames=(0,), threads=(2,))
    for name, reference, build in (
        ("tobo", "naver-ai/tobo@fa41194", tobo),
        ("mae", "facebookresearch/mae@efb2a80", mae),
        ("rsp", "huiwon-jang/RSP@5ea2b91", rsp),
    )
]
