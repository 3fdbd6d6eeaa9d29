"""Speed and memory of a training step of Token Bottleneck against a simple implementation.

    python benchmarks/tobo_speed.py          # small and ViT-S/16 on this machine's CPU or GPU; 2 minutes on 2 cores
    python benchmarks/tobo_speed.py --tiny   # takes seconds, to check that it runs; writes nothing

`fewtokens`    encodes source and hints once; both paths pass through the decoder as one batch
`two passes`   each path separately: two encodings of the source and of the hints, two passes of the decoder
`SiamMAE`      only the auxiliary path, to show the cost of the bottleneck path

A step is forward pass, backward pass and AdamW on frames in memory; the implementations alternate. float32 and bf16
autocast; on a GPU also fp16 and large batches. The losses of the first two are compared before timing. Memory is the
peak of tensors in addition to weights and frames; the first step, which allocates the optimizer state, is not measured.
Expected: 1.4 to 1.55 times as fast as two passes with a third less memory for the small network, 1.25 to 1.35 times
with a fifth less for ViT-S/16, because the full source is encoded once instead of twice; decoding one batch instead of
two matters at most on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common import time_side_by_side, write
from fewtokens.networks.masking import pixel_loss, pixel_targets, random_mask
from fewtokens.networks.pretraining import SiamMae, SiamMaeConfig, ToBo, ToBoConfig
from fewtokens.profiling.memory import peak_memory

NETWORKS: dict[str, dict[str, Any]] = {
    "small, 64 px": {"dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8, "image_size": (64, 64),
                     "decoder_dim": 128, "decoder_depth": 4, "decoder_num_heads": 4},
    "ViT-S/16, 224 px": {},
}  # fmt: skip
TINY = {"tiny": {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": (32, 32), "decoder_dim": 32,
                 "decoder_depth": 2, "decoder_num_heads": 2}}  # fmt: skip


def two_passes(model: ToBo, frames: Tensor, noise: Tensor) -> Tensor:
    """The same loss, with separate encodings and a separate decoder pass for each path."""
    config, decoder = model.config, model.decoder
    source, target = model.split(frames)
    expected = pixel_targets(target, config.patch_size)
    losses = []
    for path in ("tobo", "siam"):
        mask = random_mask(noise, config.mask_ratio)
        memory = decoder.memory(model._encode(source))
        slots = decoder.slots(model._encode(target, mask.visible), mask)
        squeezed = torch.cat([memory[:, :1], slots[:, 1:]], 1)
        predicted = decoder(squeezed) if path == "tobo" else decoder(slots, memory)
        losses.append(pixel_loss(predicted, expected, mask.hidden))
    return losses[0] + losses[1]


def training_step(
    model: torch.nn.Module, loss: Callable[[], Tensor], precision: torch.dtype | None, device: torch.device
) -> Callable[[], Any]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5)

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(shape: dict[str, Any], batch: int, precision: torch.dtype | None, repeats: int) -> list[dict[str, Any]]:
    """One row per implementation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = ToBo(ToBoConfig(**shape)).to(device)
    siam = SiamMae(SiamMaeConfig(**shape, mask_ratio=model.config.mask_ratio)).to(device)
    frames = torch.randint(256, (batch, 2, 3, *model.config.image_size), device=device).byte()
    noise = torch.rand(batch, model.config.patches, device=device)
    losses: dict[str, tuple[torch.nn.Module, Callable[[], Tensor]]] = {
        "fewtokens": (model, lambda: model(frames, noise)["loss"]),
        "two passes": (model, lambda: two_passes(model, frames, noise)),
        "SiamMAE": (siam, lambda: siam(frames, noise)["loss"]),
    }
    with torch.no_grad():
        torch.testing.assert_close(losses["fewtokens"][1](), losses["two passes"][1](), rtol=1e-4, atol=1e-4)
    steps = {name: training_step(network, loss, precision, device) for name, (network, loss) in losses.items()}
    times = time_side_by_side(steps, repeats)
    rows = []
    for name, step in steps.items():
        ms = times[name]
        rows.append(
            {
                "implementation": name,
                "batch": batch,
                "precision": "float32" if precision is None else str(precision).removeprefix("torch."),
                "samples/s": 1000 * batch / ms["median"],
                "ms per step (min..max)": f"{ms['median']:.0f} ({ms['min']:.0f}..{ms['max']:.0f})",
                "speedup over two passes": times["two passes"]["median"] / ms["median"],
                "memory, MiB": peak_memory(step, device) / 2**20,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main(tiny: bool) -> None:
    gpu = torch.cuda.is_available()
    if tiny:
        measure(TINY["tiny"], 4, None, 2)
        return
    tables: dict[str, Any] = {}
    for name, shape in NETWORKS.items():
        large = "ViT" in name
        batch = (128 if large else 512) if gpu else (4 if large else 32)
        for precision in (None, torch.bfloat16, *([torch.float16] if gpu else [])):
            # fp16 is timed without loss scaling, whose cost is negligible.
            tables.setdefault(name, []).extend(measure(shape, batch, precision, 20 if gpu else 5))
    write(
        "tobo_speed_gpu" if gpu else "tobo_speed",
        "A training step of Token Bottleneck against two passes",
        "python benchmarks/tobo_speed.py",
        tables,
        "Forward pass, backward pass and AdamW; medians. The first two implementations compute the same loss. Memory: "
        "peak of tensors in addition to weights, optimizer state and frames.",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="only check that it runs; writes nothing")
    main(parser.parse_args().tiny)
