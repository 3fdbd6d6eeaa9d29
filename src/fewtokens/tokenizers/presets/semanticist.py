"""Semanticist: ordered tokens like principal components, decoded by diffusion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewtokens.methods.pruning.tail_drop import TailDrop
from fewtokens.tokenizers.decoders.dit import Dit
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Reconstruction, Tokenizer


class Semanticist(Tokenizer):
    """A tokenizer whose decoder is aligned with DINOv2, and whose nested dropout begins late in training.

    Attributes:
        nested_start: training step at which `tail_drop` begins to drop tokens. Without a counter of steps, which
            training adds, it begins at once.
    """

    nested_start = 50

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        assert isinstance(self.decoder, Dit)
        self.decoder.align("facebook/dinov2-base")

    def forward(self, frames: Tensor) -> Reconstruction:
        steps = getattr(self, "steps", None)
        for method in self.methods:
            if isinstance(method, TailDrop):
                method.train(self.training and (steps is None or int(steps) > self.nested_start))
        return super().forward(frames)


PRESET = Preset(
    spec=(
        "tubelet(768, stride=(1, 16, 16)) | learned_queries(256, num_layers=12, heads=12, ordered=True) "
        "| bottleneck(16, standardize=True) | tail_drop(share='video') "
        "> dit(stride=(1, 16, 16), size=(1024, 24), slots=256, network='xwen99/mar-vae-kl16', objective='ddpm', "
        "steps=250)"
    ),
    clip=(1, 256, 256),
    tiny=(
        "tubelet(64, stride=(1, 8, 8)) | learned_queries(16, num_layers=2, heads=2, ordered=True) "
        "| bottleneck(8, standardize=True) | tail_drop(share='video') "
        "> dit(stride=(1, 8, 8), size=(64, 3), slots=16, patch=4, objective='x', steps=1)"
    ),
    tiny_clip=(1, 32, 32),
    window=1,
    tiny_window=1,
    kind=Semanticist,
    recipe={"steps": 400},
    paper='"Principal Components" Enable A New Language of Images, arXiv 2503.08685',
    license="MIT",
    tokens=256,
    differs=(
        "Nested dropout begins at step 50 of 400 at the tiny size (epoch 50 of 400 in the paper; set nested_start). "
        "The decoder does not predict variances, takes deterministic steps (DDIM) and adds fixed positions to the "
        "slots; it drops all slots of a sample with a probability of 0.1 during nested dropout too. Positions of "
        "patches in the encoder are a projection of sines, and it has no class token. The teacher of the tiny size is "
        "a random ViT, and its decoder predicts pixels in one step."
    ),
)
