"""Video-LaVIT: a keyframe and the motion vectors of 24 frames after it, with a codebook each."""

from __future__ import annotations

from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.decoders.keyframe_motion import KeyframeMotion as Decoder
from fewtokens.tokenizers.encoders.keyframe_motion import KeyframeMotion as Encoder
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer


class VideoLavit(Tokenizer):
    """A tokenizer of keyframes and motion, whose decoder of motion is trained by the squared error of the vectors."""

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        encoder, decoder = self.encoder, self.decoder
        assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
        if frames.shape[1] == 1:
            return {}
        fields = decoder.fields(tokens.unmerge().movedim(-1, 1))
        return {"motion": (fields - encoder.fields(frames)).square().mean()}


PRESET = Preset(
    spec=(
        "keyframe_motion('conv_down(256)', vectors='mpeg4') | stream_vq((16384, 1024), rows=16, code_dim=32) "
        "> keyframe_motion(keyframe='conv_up')"
    ),
    clip=(25, 320, 576),
    window=25,
    tiny=(
        "keyframe_motion('conv_down(32, widths=(16, 16, 32, 32, 32), blocks=1)', channels=16, width=32, depth=1, "
        "heads=2) | stream_vq((256, 64), rows=16, code_dim=16) "
        "> keyframe_motion(keyframe='conv_up(widths=(32, 32, 32, 16, 16), blocks=1)', width=32, depth=1, heads=2)"
    ),
    tiny_clip=(9, 64, 64),
    tiny_window=9,
    kind=VideoLavit,
    recipe={"pixel": "l2"},
    paper=(
        "Video-LaVIT: Unified Video-Language Pre-training with Decoupled Visual-Motional Tokenization, arXiv 2402.03161"
    ),
    license="LaVIT community license",
    tokens=720 + 135,
    figures={"tokens of the motion": "135 for 24 frames of 320x576"},
    differs=(
        "Frames after the keyframe are warped along the decoded vectors; the video diffusion network of the paper, "
        "and its diffusion decoder of keyframes, are not here. Keyframes have the convolutions of VQGAN and keep all "
        "tokens, instead of a frozen EVA-ViT with a selector that is random even at inference, so encoding is "
        "deterministic; the published number of tokens of a keyframe varies, the one here is by formula. A block "
        "takes its longest vector; the published maximum of signed components loses motion to the left and up. "
        "Attention is over all cells of a stage, with rotary positions. Clips are 1 + 8 k frames. The tiny size finds "
        "vectors by block matching. Normalized vectors are not divided by 10, which only scales the loss."
    ),
)
