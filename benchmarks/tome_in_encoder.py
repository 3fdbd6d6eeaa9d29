"""How much of the FLOP saving of merging inside an encoder arrives as time.

    python benchmarks/tome_in_encoder.py

About two minutes on 2 cores. ViT-S/16 with random weights, 224 px, batch 8, `tome_in_encoder(r=13)`.
The FLOP ratio is 1.72 (4.54 to 2.64 GMAC a frame). Expected: a wall-time ratio of about 1.5 on a CPU, the
matching costing the rest; the matching and merging of one block faster than the published algorithm written
plainly, with equal results. On a machine with CUDA it runs there too, in bfloat16.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from common import time_side_by_side, write
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import ViT, ViTConfig, VitEncoder
from fewtokens.methods.merging.tome_in_encoder import TomeInEncoder
from fewtokens.methods.ops.bipartite import bipartite_plan
from reduce_speed import plain_tome


def flops(encoder: VitEncoder, frames: torch.Tensor, inside: list) -> float:
    """GMAC for one frame; counted on the unfused attention, for the fused kernel of the CPU is not counted."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(frames, inside=inside)
    return counter.get_total_flops() / 2e9 / frames.shape[1]


def whole(device: str, dtype: torch.dtype) -> list[dict]:
    torch.manual_seed(0)
    vit = ViT(ViTConfig()).eval().to(device, dtype)
    encoder = VitEncoder(vit)
    frames = torch.rand(1, 8, 3, 224, 224, device=device)
    merge = [TomeInEncoder(r=13)]

    def merged(how: str):
        def run():
            vit.proportional = how
            return encoder(frames, inside=merge)

        return run

    runs = {"plain": lambda: encoder(frames)} | {how: merged(how) for how in ("channels", "bias", "none")}
    times = time_side_by_side(runs, 9)
    base, small = flops(encoder, frames, []), flops(encoder, frames, merge)
    rows = []
    for name, t in times.items():
        rows.append(
            {
                "what": f"ViT-S/16, 224 px, batch 8, {device} {str(dtype).removeprefix('torch.')}",
                "run": "plain" if name == "plain" else f"tome r=13, sizes by {name}",
                "ms": f"{t['median']:.1f} ({t['min']:.1f}..{t['max']:.1f})",
                "time ratio": f"{times['plain']['median'] / t['median']:.2f}",
                "GMAC a frame": f"{base if name == 'plain' else small:.2f}",
                "FLOP ratio": f"{1 if name == 'plain' else base / small:.2f}",
            }
        )
    return rows


def one_block() -> list[dict]:
    """Matching on keys [8,196,64] and merging of features [8,196,384], without a class token."""
    torch.manual_seed(0)
    keys, features = torch.randn(8, 196, 64), torch.randn(8, 196, 384)
    tokens = Tokens.from_cells(features.reshape(8, 1, 14, 14, 384))

    def plain():
        # The published form matches on keys and merges features; here both are moved as one tensor.
        both = torch.cat([keys, features], 2)
        metric = keys / keys.norm(dim=-1, keepdim=True)
        scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        best, match = scores.max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        rest, gone = order[:, 13:], order[:, :13]
        target = match[..., None].gather(1, gone)
        out = []
        for values in (both[..., 64:] * 1.0, torch.ones(8, 196, 1)):
            source, kept_b, width = values[:, ::2], values[:, 1::2], values.shape[2]
            moved = source.gather(1, gone.expand(-1, -1, width))
            merged = kept_b.scatter_reduce(1, target.expand(-1, -1, width), moved, reduce="sum")
            out.append(torch.cat([source.gather(1, rest.expand(-1, -1, width)), merged], 1))
        return out[0] / out[1]

    def ours():
        return tokens.apply(bipartite_plan(keys, 13, tokens)).features

    difference = float((ours() - plain()).abs().max())
    assert plain_tome(features, tokens.sizes, 13)[0].shape == ours().shape
    times = time_side_by_side({"ours": ours, "plain": plain}, 51)
    return [
        {
            "what": "matching and merging of one block, keys [8,196,64], features [8,196,384], r=13",
            "run": name,
            "ms": f"{t['median']:.2f} ({t['min']:.2f}..{t['max']:.2f})",
            "time ratio": f"{times['plain']['median'] / t['median']:.2f}",
            "GMAC a frame": "-",
            "FLOP ratio": f"difference {difference:.0e}" if name == "ours" else "-",
        }
        for name, t in times.items()
    ]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    rows = whole("cpu", torch.float32)
    if torch.cuda.is_available():
        rows += whole("cuda", torch.bfloat16)
    write(
        "tome_in_encoder",
        "Merging inside ViT-S/16: time against FLOPs",
        "python benchmarks/tome_in_encoder.py",
        rows + one_block(),
        "Milliseconds: median (least..most), the runs taking turns. Baseline is fused attention (SDPA), not the eager "
        "attention against which the paper's factor of 2 was measured.",
    )
