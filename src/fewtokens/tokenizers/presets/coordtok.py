"""CoordTok, size L: three planes of continuous tokens for a long clip, decoded at any coordinates."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "tubelet(1024, stride=(4, 8, 8)) | learned_queries(1280, num_layers=24, heads=16, channels=8) > "
        "coordinates(width=1024, stride=(4, 8, 8), planes=(32, 16, 16), num_layers=24, heads=16)"
    ),
    clip=(128, 128, 128),
    tiny=(
        "tubelet(96, stride=(2, 8, 8)) | learned_queries(48, num_layers=3, heads=4, channels=8) > "
        "coordinates(width=96, stride=(2, 8, 8), planes=(4, 4, 4), num_layers=3, heads=4, samples=64)"
    ),
    tiny_clip=(8, 32, 32),
    window=128,
    tiny_window=8,
    recipe={"pixel": "l2"},
    paper="Efficient Long Video Tokenization via Coordinate-based Patch Reconstruction, arXiv 2411.14762",
    license="license of the code unclear",
    tokens=1280,
    figures={"rFVD UCF-101 128 frames, 3.125 % random patches per step, against random frames": "238 against 479"},
    differs=(
        "The planes are the outputs of learned queries in one transformer with the tubelets, where the authors "
        "alternate cross- and self-attention. The tubelets of the encoder, 4x8x8, could not be confirmed. The second "
        "stage, with 4096 coordinates and a perceptual loss, is a matter of training."
    ),
)
