"""CDT: a causal encoder and a diffusion decoder that needs one step."""

from __future__ import annotations

from torch import Tensor

from fewtokens.tokenizers.decoders.causal_unet import CausalUnet
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Reconstruction, Tokenizer


class Cdt(Tokenizer):
    """A tokenizer whose reconstruction in training is the prediction of clean frames at a random noise level.

    So the losses of reconstruction apply to it: the squared error is that of the diffusion, and a perceptual one is
    added.
    """

    def forward(self, frames: Tensor) -> Reconstruction:
        assert isinstance(self.decoder, CausalUnet)
        unit, target = self._convert(frames)
        tokens = self._encode(unit)
        return Reconstruction(self.decoder.denoise_random(tokens, target), tokens, dict(tokens.aux), target)


PRESET = Preset(
    spec="causal_unet(128) | gaussian(16) > causal_unet()",
    clip=(17, 256, 256),
    tiny="causal_unet(8, channels=8) | gaussian(8) > causal_unet(width=4, context=8)",
    tiny_clip=(5, 32, 32),
    kind=Cdt,
    recipe={"pixel": "l2"},
    paper="Rethinking Video Tokenization: A Conditioned Diffusion-based Approach, arXiv 2503.03708",
    license="MIT",
    tokens=5 * 32 * 32,
    parameters=192.6,
    differs=(
        "The number of parameters is counted in the authors' code; with copied weights its base model and ours differ "
        "by less than 1e-5. Its factor of 1.3 for the latents of generators is left out. The training code is not "
        "released: the weight of the KL divergence, 1e-6, and the perceptual loss, off unless it is given, are ours, "
        "and so is the initialization, in which only the last convolution is zero."
    ),
)
