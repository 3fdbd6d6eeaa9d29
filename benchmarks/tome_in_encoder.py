"""How much of the FLOPs saved by merging inside an encoder becomes saved time.

    python benchmarks/tome_in_encoder.py

About two minutes on 2 cores. ViT-S/16 with random weights, 224 px, batch 8, `tome_in_encoder(r=13)`; the FLOP ratio is
1.72 (4.54 to 2.64 GMACs per frame). Expected: a time ratio of about 1.5 on a CPU, the rest being the cost of matching;
matching and merging of one block faster than a direct implementation of the published algorithm, with equal results. If
CUDA is available, it runs there too, in bfloat16.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from common import time_side_by_side, write
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import ViT, ViTConfig, VitEncoder
from fewtokens.methods.merging.tome_in_encoder import TomeInEncoder
from fewtokens.methods.ops.bipartite import bipartite_plan
from reduce_speed import simple_tome


def flops(encoder: VitEncoder, frames: torch.Tensor, inside: list) -> float:
    """GMACs per frame, counted with unfused attention because the counter misses the fused kernel of the CPU."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(frames, block_methods=inside)
    return counter.get_total_flops() / 2e9 / frames.shape[1]


def networks(device: str, dtype: torch.dtype) -> list[dict]:
    torch.manual_seed(0)
    vit = ViT(ViTConfig()).eval().to(device, dtype)
    encoder = VitEncoder(vit)
    frames = torch.rand(1, 8, 3, 224, 224, device=device)
    merge = [TomeInEncoder(r=13)]

    def merged(proportional: str):
        def run():
            vit.proportional = proportional
            return encoder(frames, block_methods=merge)

        return run

    runs = {"unreduced": lambda: encoder(frames)} | {sizes: merged(sizes) for sizes in ("channels", "bias", "none")}
    times = time_side_by_side(runs, 9)
    base, small = flops(encoder, frames, []), flops(encoder, frames, merge)
    rows = []
    for name, t in times.items():
        rows.append(
            {
                "setting": f"ViT-S/16, 224 px, batch 8, {device} {str(dtype).removeprefix('torch.')}",
                "run": name if name == "unreduced" else f"tome r=13, sizes by {name}",
                "ms": f"{t['median']:.1f} ({t['min']:.1f}..{t['max']:.1f})",
                "time ratio": f"{times['unreduced']['median'] / t['median']:.2f}",
                "GMACs per frame": f"{base if name == 'unreduced' else small:.2f}",
                "FLOP ratio": f"{1 if name == 'unreduced' else base / small:.2f}",
            }
        )
    return rows


def one_block() -> list[dict]:
    """Matching on keys [8,196,64] and merging of features [8,196,384], without a class token."""
    torch.manual_seed(0)
    keys, features = torch.randn(8, 196, 64), torch.randn(8, 196, 384)
    tokens = Tokens.from_cells(features.reshape(8, 1, 14, 14, 384))

    def simple():
        # The published algorithm matches on keys and merges features; here both are moved as one tensor.
        both = torch.cat([keys, features], 2)
        metric = keys / keys.norm(dim=-1, keepdim=True)
        scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        best, match = scores.max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        unmerged, removed = order[:, 13:], order[:, :13]
        target = match[..., None].gather(1, removed)
        out = []
        for values in (both[..., 64:] * 1.0, torch.ones(8, 196, 1)):
            source, destination, dim = values[:, ::2], values[:, 1::2], values.shape[2]
            moved = source.gather(1, removed.expand(-1, -1, dim))
            merged = destination.scatter_reduce(1, target.expand(-1, -1, dim), moved, reduce="sum")
            out.append(torch.cat([source.gather(1, unmerged.expand(-1, -1, dim)), merged], 1))
        return out[0] / out[1]

    def ours():
        return tokens.apply(bipartite_plan(keys, 13, tokens)).features

    difference = float((ours() - simple()).abs().max())
    assert simple_tome(features, tokens.sizes, 13)[0].shape == ours().shape
    times = time_side_by_side({"ours": ours, "baseline": simple}, 51)
    return [
        {
            "setting": "matching and merging of one block, keys [8,196,64], features [8,196,384], r=13",
            "run": name,
            "ms": f"{t['median']:.2f} ({t['min']:.2f}..{t['max']:.2f})",
            "time ratio": f"{times['baseline']['median'] / t['median']:.2f}",
            "GMACs per frame": "-",
            "FLOP ratio": f"difference {difference:.0e}" if name == "ours" else "-",
        }
        for name, t in times.items()
    ]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_grad_enabled(False)
    rows = networks("cpu", torch.float32)
    if torch.cuda.is_available():
        rows += networks("cuda", torch.bfloat16)
    write(
        "tome_in_encoder",
        "Merging inside ViT-S/16: time against FLOPs",
        "python benchmarks/tome_in_encoder.py",
        rows + one_block(),
        "Milliseconds: median (min..max); the runs alternate. The baseline uses fused attention (SDPA), not the eager "
        "attention with which the paper measured its factor of 2.",
    )
