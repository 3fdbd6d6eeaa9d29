"""MambaVideo: state-space blocks in space and time, finite scalar quantization."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "state_space(512, stride=(4, 8, 8), blocks=(2, 6), first_frame=True) | fsq((8, 8, 8, 5, 5, 5)) > "
        "state_space(width=512, stride=(4, 8, 8), blocks=(2, 6), first_frame=True)"
    ),
    clip=(17, 256, 256),
    tiny=(
        "state_space(48, stride=(4, 8, 8), blocks=(1, 2), first_frame=True) | fsq((8, 5, 5, 5)) > "
        "state_space(width=48, stride=(4, 8, 8), blocks=(1, 2), first_frame=True)"
    ),
    tiny_clip=(5, 32, 32),
    window=17,
    tiny_window=5,
    recipe={"pixel": "l1"},
    paper="MambaVideo for Discrete Video Tokenization with Channel-Split Quantization, arXiv 2507.04559",
    license="no code published",
    tokens=5120,
    differs=(
        "Only abstracts could be read, so widths, numbers of blocks and the order of scans are ours. Channel-split "
        "quantization is off, since it is the subject of a patent application (US20260089325A1): "
        "fsq((8, 8, 8, 5, 5, 5), groups=2) has two codes per token. The patent application US20260087351A1 describes "
        "MambaVideo's encoder itself, which this preset uses: patches, state-space modules and token pooling."
    ),
)
