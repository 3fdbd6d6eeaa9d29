"""A training step of Token Bottleneck against the straightforward way: samples a second and memory.

    python benchmarks/tobo_speed.py          # small and ViT-S/16 on this machine's CPU or GPU; 2 minutes on 2 cores
    python benchmarks/tobo_speed.py --tiny   # seconds, to see that it runs; writes nothing

`fewtokens`    source and hints are encoded once, both paths go through the decoder as one batch
`two passes`   each path by itself: its own encoding of the source and of the hints, its own pass of the decoder
`SiamMAE`      the auxiliary path alone, for what the bottleneck's path adds

A step is forward, backward and AdamW on frames that are in memory; the ways take turns. float32 and bf16 autocast; on a
GPU fp16 and large batches too. The losses of the first two are compared before anything is timed. Memory is that of
tensors alive at most beyond weights and frames; the optimizer's state is among them on its first step only, which is
not measured. Expected: 1.4 to 1.55 times as fast as two passes with a third less memory for the small network, 1.25 to
1.35 times with a fifth less for ViT-S/16, since the whole source is encoded once instead of twice; one batch instead of
two in the decoder matters on a GPU at most.
"""

from __future__ import annotations

import sys
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
    """The same loss, each path from its own encodings and through the decoder by itself."""
    config, decoder = model.config, model.decoder
    source, target = model.split(frames)
    wanted = pixel_targets(target, config.patch_size)
    losses = []
    for path in ("tobo", "siam"):
        mask = random_mask(noise, config.mask_ratio)
        memory = decoder.memory(model._encode(source))
        slots = decoder.slots(model._encode(target, mask.visible), mask)
        squeezed = torch.cat([memory[:, :1], slots[:, 1:]], 1)
        predicted = decoder(squeezed) if path == "tobo" else decoder(slots, memory)
        losses.append(pixel_loss(predicted, wanted, mask.hidden))
    return losses[0] + losses[1]


def step_of(
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
    """A row for each way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = ToBo(ToBoConfig(**shape)).to(device)
    siam = SiamMae(SiamMaeConfig(**shape, mask_ratio=model.config.mask_ratio)).to(device)
    frames = torch.randint(256, (batch, 2, 3, *model.config.image_size), device=device).byte()
    noise = torch.rand(batch, model.config.patches, device=device)
    ways: dict[str, tuple[torch.nn.Module, Callable[[], Tensor]]] = {
        "fewtokens": (model, lambda: model(frames, noise)["loss"]),
        "two passes": (model, lambda: two_passes(model, frames, noise)),
        "SiamMAE": (siam, lambda: siam(frames, noise)["loss"]),
    }
    with torch.no_grad():
        torch.testing.assert_close(ways["fewtokens"][1](), ways["two passes"][1](), rtol=1e-4, atol=1e-4)
    steps = {name: step_of(network, loss, precision, device) for name, (network, loss) in ways.items()}
    times = time_side_by_side(steps, repeats)
    rows = []
    for name, step in steps.items():
        took = times[name]
        rows.append(
            {
                "way": name,
                "batch": batch,
                "precision": "float32" if precision is None else str(precision).removeprefix("torch."),
                "samples/s": 1000 * batch / took["median"],
                "ms a step (least..most)": f"{took['median']:.0f} ({took['min']:.0f}..{took['max']:.0f})",
                "times as fast as two passes": times["two passes"]["median"] / took["median"],
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
            # fp16 is timed without the scaled loss, which costs nothing that can be seen here.
            tables.setdefault(name, []).extend(measure(shape, batch, precision, 20 if gpu else 5))
    write(
        "tobo_speed_gpu" if gpu else "tobo_speed",
        "A training step of Token Bottleneck against two passes",
        "python benchmarks/tobo_speed.py",
        tables,
        "Forward, backward, AdamW; medians. Both ways give the same loss. Memory: tensors alive at most beyond "
        "weights, optimizer state and frames.",
    )


if __name__ == "__main__":
    main("--tiny" in sys.argv[1:])
