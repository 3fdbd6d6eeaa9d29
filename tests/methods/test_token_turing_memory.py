"""The Token Turing Machine as a memory: the features of `token_turing`, in bounded state."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.method import save_weights
from fewtokens.methods.learned.token_turing import TokenTuring
from fewtokens.methods.memory.token_turing_memory import TokenTuringMemory
from tests.helpers.frames import cut, stream

SIZES = {"dim": 8, "num_layers": 1, "heads": 2}


def machine(**arguments: int) -> TokenTuringMemory:
    torch.manual_seed(0)
    return TokenTuringMemory(6, tokens=5, processed=3, **SIZES, **arguments).eval()


def sorted_rows(features: torch.Tensor) -> torch.Tensor:
    return features[0, features[0, :, 0].argsort()]


@torch.no_grad()
def test_it_returns_the_features_and_places_of_token_turing():
    memory, video = machine(), stream(7, H=2, W=3, C=8)
    method = TokenTuring(5, memory=6, read=3, **SIZES).eval()
    method.load_state_dict(memory.state_dict())  # the same names
    out, expected = memory.read(memory.push(video)), method(video)
    torch.testing.assert_close(sorted_rows(out.features), sorted_rows(expected.features))
    order = [tokens.features[0, :, 0].argsort() for tokens in (out, expected)]
    torch.testing.assert_close(out.positions[0, order[0], 1:], expected.positions[0, order[1], 1:])
    assert float(out.sizes.sum()) == pytest.approx(42)
    assert out.meta["spans"] == [[[0.0, 3.0]]]
    assert out.grid.times.tolist() == [1.5]


@torch.no_grad()
def test_a_checkpoint_of_token_turing(tmp_path):
    method = TokenTuring(5, memory=6, read=3, **SIZES)
    path = str(save_weights(method, tmp_path / "weights.safetensors"))
    memory = TokenTuringMemory(6, tokens=5, processed=3, checkpoint=path, **SIZES)
    assert torch.equal(memory.slots, method.slots)


@torch.no_grad()
def test_the_order_of_frames_matters():
    memory, video = machine(), stream(6, C=8)
    turned = video.replace(features=video.features.flip(1))
    assert not torch.allclose(memory(turned).features, memory(video).features, atol=1e-4)


def test_gradients_reach_all_parameters_through_all_frames():
    memory, video = machine(), stream(5, H=2, W=2, C=8)
    video.features.requires_grad_()
    memory.read(memory.push(cut(video, 3, 5), memory.push(cut(video, 0, 3)))).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in memory.parameters())
    assert bool((video.features.grad[0, :4] != 0).any())


def test_it_learns_to_remember_the_first_frame():
    """The frame that tells is the first of three; the others are noise."""
    torch.manual_seed(1)
    memory = TokenTuringMemory(4, tokens=1, processed=2, **SIZES)
    head = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*memory.parameters(), *head.parameters()], 3e-2)

    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        video = stream(3, B=32, C=8, seed=seed)
        label = (video.features[:, 0, 0] > 0).float()
        video.features[:, 0, 0] = 6 * label - 3
        video.features[:, 0, 1] = 6
        return head(memory.read(memory.push(video)).features[:, 0])[:, 0], label

    for seed in range(25):
        logits, label = batch(seed)
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        optimizer.step()
    with torch.no_grad():
        logits, label = batch(1000)
    assert ((logits > 0) == label.bool()).float().mean() > 0.9


def test_arguments():
    with pytest.raises(ValueError, match="processed must be an integer of at least 1, got 0"):
        TokenTuringMemory(processed=0)
    with pytest.raises(ValueError, match="set dim=4"):
        machine().push(stream(1))
