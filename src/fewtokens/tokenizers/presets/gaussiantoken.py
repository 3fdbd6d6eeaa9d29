"""GaussianToken: an image as a set of 2-D Gaussians with quantized features and geometry."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec="gaussians | geometry_vq(1024, code_dim=8) > splat",
    clip=(1, 256, 256),
    tiny=(
        "gaussians('conv2d(16, width=8, mult=(1, 2, 2), depth=1)', heads=2, points=2) "
        "| geometry_vq(256, code_dim=8) > splat(network='conv2d(width=8, mult=(1, 2, 2), depth=1)')"
    ),
    tiny_clip=(1, 32, 32),
    paper="GaussianToken: An Effective Image Tokenizer with 2D Gaussian Splatting, arXiv 2501.15619",
    license="no license",
    tokens=256,
    differs=(
        "Geometry is rounded to 8 bits per scalar and counted, so a token has 10 + 40 bits; the published code keeps "
        "five floats, does not count them, and cannot decode from codes. Gaussians begin on a regular grid, one for "
        "2 x 2 cells of the map, instead of 256 learned ones, so that images of any size are encoded. The largest "
        "scale is 3 from the start instead of falling from 4. Heads, samples and widths of the convolutions are ours. "
        "The tiny size has 16 Gaussians on a map of 8 x 8."
    ),
)
