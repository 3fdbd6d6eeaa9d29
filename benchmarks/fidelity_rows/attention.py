"""Methods that select by attention, by pixels, or by the length of the video."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import normalize, patchify
from fewtokens.methods.merging.visionzip import VisionZip
from fewtokens.methods.merging.visual_words import CLIP_MEAN, CLIP_STD, VisualWords, fit_words, save_words
from fewtokens.methods.pooling.dynamic_pool import DynamicPool
from fidelity_rows import PATCH, Agreement, Features, Row, importing, load, same_places, same_rows


def visionzip(peers: Path, features: Features) -> Agreement:
    why = "contextual tokens are the mean of their members; normalize=False sums them as published"
    return _visionzip(peers, features, True, why)


def visionzip_sums(peers: Path, features: Features) -> Agreement:
    why = "a cell whose two nearest anchors differ by 1.4e-7 in cosine, within float32 rounding"
    return _visionzip(peers, features, False, why)


def _visionzip(peers: Path, features: Features, normalize: bool, why: str) -> Agreement:
    """54 dominant and 10 contextual tokens per frame, with the same attention and keys for both."""
    x = features.tokens()
    T, n = x.grid.T, x.grid.cells_per_frame
    code = load(peers / "VisionZip" / "visionzip" / "clip_encoder.py", "transformers")
    # A class token comes first: the published code keeps it and uses its attention.
    hidden, keys = (
        torch.nn.functional.pad(value[0].unflatten(0, (T, n)), (0, 0, 1, 0))
        for value in (x.features, features.cue("keys"))
    )
    attention = torch.zeros(T, 1, n + 1, n + 1)
    attention[:, 0, 0, 1:] = features.cue("attention")[0].unflatten(0, (T, n))

    class Tower:
        _info = {"dominant": 54, "contextual": 10}  # noqa: RUF012
        vision_model = SimpleNamespace(encoder=SimpleNamespace(layers=[SimpleNamespace(metric=keys)] * 2))

        def __call__(self, *args: object, **kwargs: object) -> SimpleNamespace:
            return SimpleNamespace(attentions=[attention] * 2, hidden_states=[hidden] * 2)

    model = SimpleNamespace(vision_tower=Tower(), device="cpu", dtype=torch.float32)
    theirs, _ = code.CLIPVisionTower_VisionZip.forward(model, torch.zeros(T))
    method = VisionZip(T * 64, contextual=10 / 64, normalize=normalize)
    ours = method(x, attention=features.cue("attention"), keys=features.cue("keys"))
    return Agreement(*same_rows(ours.features[0], theirs[:, 1:].flatten(0, 1)), why)


def words_intra(peers: Path, features: Features) -> Agreement:
    """Half the patches of each frame."""
    pixels, cells, module = _words(peers, features)
    T, n = cells.grid.T, cells.grid.cells_per_frame
    positions = torch.arange(-1.0, n).expand(T, -1)[..., None]
    survivors = module.tokenize(pixels, positions, n // 2)[:, 1:, 0].long()
    theirs = (survivors + n * torch.arange(T)[:, None]).flatten()
    ours = VisualWords(0.5)(cells, pixels=patchify(features.frames().float() / 255, 1, PATCH))
    return Agreement(same_places(ours.cell[0], theirs), 0.0)


def words_inter(peers: Path, features: Features) -> Agreement:
    """A vocabulary of 100 words fitted to the clip, with a distance threshold of 0.1."""
    pixels, cells, module = _words(peers, features, inter=True)
    patches = patchify(features.frames().float() / 255, 1, PATCH)
    x = features.tokens().features[0].unflatten(0, (cells.grid.T, -1))
    with tempfile.TemporaryDirectory() as folder:
        words = fit_words([patches.flatten(0, 1)], 100)
        save_words(words, Path(folder) / "words.safetensors")
        method = VisualWords(words=str(Path(folder) / "words.safetensors"))
        ours = method(features.tokens(), pixels=patches)
    # The published code orders the values of a patch by channel first.
    words = words.unflatten(1, (-1, 3)).transpose(1, 2).flatten(1)
    module.vocab = words
    with_class = torch.cat([x[:, :1], x], 1)
    pairs = zip(pixels.split(1), with_class.split(1), strict=True)
    rows = [module.tokenize(frame, embedded, 0.1, words)[0, 1:] for frame, embedded in pairs]
    why = "patches whose two nearest words differ by 1.1e-7 in cosine, within float32 rounding"
    return Agreement(*same_rows(ours.features[0], torch.cat(rows)), why)


def _words(peers: Path, features: Features, inter: bool = False) -> tuple[torch.Tensor, Tokens, object]:
    """Frames normalized as by CLIP's processor, their cells, and the published tokenizer without its model."""
    frames = features.frames()[0].float() / 255
    with importing(peers / "visual-word-tokenizer", "tqdm"):
        from vwt.inter import InterImageTokenizer
        from vwt.intra import IntraImageTokenizer
    kind = InterImageTokenizer if inter else IntraImageTokenizer
    module = kind.__new__(kind)
    torch.nn.Module.__init__(module)
    module.patch_size = PATCH
    T, side = len(frames), frames.shape[2] // PATCH
    return normalize(frames, CLIP_MEAN, CLIP_STD), Tokens.from_cells(torch.zeros(1, T, side, side, 1)), module


def dynamic_pool(peers: Path, features: Features) -> Agreement:
    """Frames of 24 x 24, as in the published code, pooled to 8 x 8."""
    return _dynamic_pool(peers, features, 24)


def dynamic_pool_odd(peers: Path, features: Features) -> Agreement:
    return _dynamic_pool(peers, features, 14)


def _dynamic_pool(peers: Path, features: Features, side: int) -> Agreement:
    x = features.tokens(side=side)
    code = load(peers / "ByteVideoLLM" / "models" / "adapter" / "dynamic_spatial_pooling.py")
    module = code.DynamicSpatialPooling(in_token_num=side * side).eval()
    (theirs,) = module(x.features[0].unflatten(0, (x.grid.T, -1)), [x.grid.T])
    why = (
        "side is not a multiple of 8: adaptive pooling uses overlapping windows, ours assigns each cell to one window"
        if side % 8
        else ""
    )
    return Agreement(*same_rows(DynamicPool()(x).features[0], theirs.flatten(0, 1)), why)


_ZIP = "dvlab-research/VisionZip", "3151f6d"
_WORDS, _BYTE = ("wearepal/visual-word-tokenizer", "d2d6759"), ("Hon-Wong/ByteVideoLLM", "f0d5e5a")
ROWS = [
    Row("visionzip", *_ZIP, "54 + 10 of 196 per frame, the same attention and keys", visionzip),
    Row("visionzip", *_ZIP, "54 + 10 of 196 per frame, normalize=False", visionzip_sums),
    Row("visual_words", *_WORDS, "without words, half of each frame", words_intra),
    Row("visual_words", *_WORDS, "100 words, distance 0.1", words_inter),
    Row("dynamic_pool", *_BYTE, "32 frames of 24x24", dynamic_pool),
    Row("dynamic_pool", *_BYTE, "32 frames of 14x14", dynamic_pool_odd),
    Row("metok", "mnyuew/METok", "9697833", why="the published repository contains only a README"),
    Row("representation_shift", why="published code not available"),
    Row("representation_shift_in_encoder", why="published code not available"),
    Row("lftr", why="no published code"),
]
