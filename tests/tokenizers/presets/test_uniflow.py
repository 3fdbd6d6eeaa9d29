"""UniFlow: published sizes, the teacher, which layers are compared, and what distillation keeps."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.presets.uniflow import UniFlow
from fewtokens.video import synthetic


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_size():
    with torch.device("meta"):
        published = create_tokenizer("uniflow")
    layout = published.layout(*get_preset("uniflow").clip)
    assert (layout.tokens, layout.bits) == (1024, 1024 * 64 * 32)
    assert count(published.encoder) / 1e6 == pytest.approx(304, rel=0.01)

    # By the layers of the released config, without its two learned tables of positions.
    def linear(a, b):
        return a * b + b

    d, pixels = 1024, 3 * 14 * 14
    blocks = 6 * (linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + 4 * d)
    head = linear(pixels, d) + linear(d, d) + linear(256, d) + linear(d, d)
    head += 12 * (2 * d + 2 * linear(d, d) + linear(d, 3 * d)) + linear(d, 2 * d) + linear(d, pixels)
    assert count(published.decoder) == linear(64, d) + linear(d, d) + blocks + head
    assert count(published.methods[0]) == linear(d, d) + linear(d, 64)


def test_the_teacher_is_frozen_and_equal_at_the_start():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("uniflow", tiny=True).train()
    frames = synthetic("pan", frames=1, size=(32, 32)).frames[None]
    before = {name: value.clone() for name, value in tokenizer.teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 3e-2)
    losses = []
    for _ in range(5):
        step = tokenizer(frames)
        losses.append(step.losses["distillation"].item())
        optimizer.zero_grad()
        sum(step.losses.values()).backward()
        optimizer.step()
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses[-1] > 1e-4
    assert not tokenizer.teacher.training
    for name, value in tokenizer.teacher.state_dict().items():
        assert torch.equal(value, before[name])
    first = tokenizer.encoder.model.patches.weight
    assert not torch.equal(first, tokenizer.teacher.network.model.patches.weight)


def layer_distances(tokenizer: UniFlow, frames: torch.Tensor) -> list[float]:
    """1 - cosine of the outputs of each block of encoder and teacher, by hooks."""
    outputs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    handles = [
        block.register_forward_hook(lambda _, __, out, found=found: found.append(out[:, -16:]))
        for network, found in zip((tokenizer.encoder, tokenizer.teacher.network), outputs, strict=True)
        for block in network.model.blocks
    ]
    with torch.no_grad():
        for network in (tokenizer.encoder, tokenizer.teacher.network):
            network.latents((frames.float() / 127.5 - 1).transpose(1, 2))
    for handle in handles:
        handle.remove()
    return [float(1 - torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(*outputs, strict=True)]


def test_all_layers_are_compared_and_later_ones_weigh_more():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("uniflow", tiny=True)
    frames = synthetic("pan", frames=1, size=(32, 32)).frames[None]
    blocks = tokenizer.encoder.model.blocks
    for changed in reversed(range(len(blocks))):
        with torch.no_grad():
            for parameter in blocks[changed].parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        distances = layer_distances(tokenizer, frames)
        assert all(d == pytest.approx(0, abs=1e-5) for d in distances[:changed])
        assert all(d > 1e-3 for d in distances[changed:])
        numbers = range(1, len(blocks) + 1)
        expected = sum(n * d for n, d in zip(numbers, distances, strict=True)) / sum(numbers)
        assert float(tokenizer(frames).losses["distillation"].detach()) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_an_untrained_decoder_predicts_gray():
    tokenizer = create_tokenizer("uniflow", tiny=True, seed=0).eval()
    frames = synthetic("pan", frames=1, size=(32, 32)).frames[None]
    assert torch.equal(tokenizer.decode(tokenizer.encode(frames)), torch.full((1, 1, 3, 32, 32), 0.5))


def test_distillation_keeps_the_features():
    """Trained for pixels, the encoder leaves its teacher; with the distillation it stays far closer."""
    frames = torch.stack([synthetic(kind, frames=1, size=(32, 32)).frames for kind in ("pan", "shapes")])
    last = {}
    for names in (("diffusion",), ("diffusion", "distillation")):
        torch.manual_seed(0)
        tokenizer = create_tokenizer("uniflow", tiny=True).train()
        optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 3e-3)
        for _ in range(30):
            losses = tokenizer(frames).losses
            optimizer.zero_grad()
            sum(losses[name] for name in names).backward()
            optimizer.step()
        last[len(names)] = layer_distances(tokenizer.eval(), frames)[-1]
    assert last[2] < 0.5 * last[1], last
