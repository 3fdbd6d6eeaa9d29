"""Weights of a network of images for one of videos: the central inflation of MAGVIT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d


@torch.no_grad()
def inflate(video: nn.Module, image: nn.Module) -> None:
    """Copies the weights of a network that was trained on images into one of videos with the same layers.

        inflate(create_tokenizer("magvit"), image)  # "magvit(strides=...) | ...", 1 in time, trained on frames

    A kernel over time keeps what it has at the frame of its output (MAGVIT, arXiv 2212.05199: the center; of a causal
    convolution, the last) and is zero elsewhere. So a still video initially has the cells of its image.

    Raises:
        ValueError: the networks have different layers.
    """
    state = dict(image.state_dict())
    for name, layer in video.named_modules():
        weight = state.get(f"{name}.weight")
        if isinstance(layer, CausalConv3d) and weight is not None and weight.ndim == 5:
            state[f"{name}.weight"] = _kernel(layer, weight)
    files.check_fit(video.state_dict(), state, "the networks must have the same layers")
    video.load_state_dict(state)


def _kernel(layer: CausalConv3d, weight: Tensor) -> Tensor:
    """The kernel [O,C,T,H,W] of a layer from that of an image [O,C,1,H,W]."""
    length = layer.kernel_size[0]
    inflated = weight.new_zeros(*weight.shape[:2], length, *weight.shape[3:])
    inflated[:, :, length - 1 if layer.causal else length // 2] = weight[
        :, :, -1 if layer.causal else weight.shape[2] // 2
    ]
    return inflated
