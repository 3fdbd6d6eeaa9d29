"""One-D-Piece, size B: 256 tokens of an image in an order of importance, of which the first few can be decoded."""

from __future__ import annotations

from fewtokens.tokenizers.preset import Preset

PRESET = Preset(
    spec=(
        "tubelet(768, stride=(1, 16, 16), positions=(1, 16, 16)) | learned_queries(256, num_layers=12, heads=12, "
        "channels=12, style='titok_mixed') | vq(4096, code_dim=12) | tail_drop(256) > titok(width=768, num_tokens=256, "
        "vqgan=((1024, 256), (512, 256, 256, 128, 128)))"
    ),
    clip=(1, 256, 256),
    tiny=(
        "tubelet(96, stride=(1, 8, 8), positions=(1, 4, 4)) | learned_queries(16, num_layers=3, heads=4, channels=8, "
        "style='titok_mixed') | vq(256, code_dim=8) | tail_drop(16) > titok(width=96, patch=8, grid=(4, 4), "
        "num_tokens=16, num_layers=3, heads=4, vqgan=((64, 32), (32, 32, 32, 32)))"
    ),
    tiny_clip=(1, 32, 32),
    window=1,
    tiny_window=1,
    recipe={"pixel": "l2"},
    paper="One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression, arXiv 2501.10064",
    license="Apache-2.0",
    tokens=256,
    figures={"rFID ImageNet 256x256, sizes S, B and L": "1.48, 1.11, 1.08"},
    differs=(
        "Trained in one stage on pixels, where the authors, as TiTok, first predict the codes of another tokenizer and "
        "then train its decoder further; the codebook follows a moving mean, theirs the gradient. The network is that "
        "of the released weights, which `load_tokenizer` reads."
    ),
)
