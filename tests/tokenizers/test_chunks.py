"""Encoding and decoding in chunks equals the whole, in bounded memory."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import Tokenizer
from fewtokens.tokenizers.chunks import can_encode_chunks, decode_chunks, encode_chunks
from fewtokens.tokenizers.files import EncodedWriter, read_encoded
from fewtokens.video import synthetic

CAUSAL = {
    "conv": "causal_conv(8, stride=(4, 8, 8)) | lfq(10) > causal_conv(width=8, stride=(4, 8, 8))",
    "tubelets": "tubelet(24, stride=(2, 8, 8)) | bsq(10) > tubelet(stride=(2, 8, 8))",
    "continuous": "causal_conv(8, stride=(4, 8, 8)) > causal_conv(width=8, stride=(4, 8, 8))",
}
FULL = (
    "tubelet_transformer(24, stride=(2, 8, 8), layers=(('full', 1),), heads=2) | lfq(10) > "
    "tubelet_transformer(width=24, stride=(2, 8, 8), layers=(('full', 1),), heads=2)"
)


def build(spec: str, **options) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.from_spec(spec, **options).eval()


def frames(T: int) -> torch.Tensor:
    return synthetic("pan", frames=T, size=(30, 44)).frames


def run(tokenizer: Tokenizer, video: torch.Tensor, path, chunk: int = 5, **options):
    writer = EncodedWriter(tokenizer)
    for tokens in encode_chunks(tokenizer, video.split(chunk), **options):
        writer.add(tokens)
    return read_encoded(writer.save(path), tokenizer)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 13, 15])
@pytest.mark.parametrize("name", CAUSAL)
def test_steps_equal_the_whole(name, length, rows, tmp_path):
    tokenizer = build(CAUSAL[name])
    video = frames(length)
    whole = tokenizer.encode(video)
    tokens = run(tokenizer, video, tmp_path / "a.safetensors", rows=rows)
    assert tokens.grid.shape == whole.grid.shape and tokens.meta["size"] == [length, 30, 44]
    if whole.codes is None:
        assert torch.allclose(tokens.features, whole.features, atol=1e-5)
    else:
        assert (tokens.codes == whole.codes).float().mean() > 0.999
    expected = tokenizer.decode(tokens)[0]
    parts = list(decode_chunks(tokenizer, tokens, rows=rows))
    assert len(parts) == -(-tokens.grid.T // rows)
    assert torch.allclose(torch.cat(parts), expected, atol=1e-5)


@pytest.mark.parametrize("length", [2, 4, 9])
@pytest.mark.parametrize("spec", [FULL, CAUSAL["conv"], FULL.replace("| lfq", "| tome(keep=9) | lfq")])
def test_windows_equal_the_whole(spec, length, tmp_path):
    tokenizer = build(spec, window=4 if spec is not CAUSAL["conv"] else 5)
    video = frames(length)
    whole = tokenizer.encode(video)
    tokens = run(tokenizer, video, tmp_path / "a.safetensors", chunk=3)
    assert torch.equal(tokens.codes, whole.codes)
    assert torch.allclose(torch.cat(list(decode_chunks(tokenizer, tokens))), tokenizer.decode(whole)[0], atol=1e-5)


def test_state_is_bounded():
    tokenizer = build(CAUSAL["conv"])
    longest = 0

    def chunks():
        for _ in range(20):
            yield frames(7)

    state_sizes = []
    original = tokenizer.encoder.step

    def step(x, state):
        nonlocal longest
        longest = max(longest, x.shape[2])
        latents, state = original(x, state)
        state_sizes.append(sum(value.numel() for value in _tensors(state)))
        return latents, state

    tokenizer.encoder.step = step
    rows = sum(tokens.grid.T for tokens in encode_chunks(tokenizer, chunks(), rows=2))
    assert rows == 1 + -(-139 // 4)
    assert longest == 9 and len(state_sizes) > 10 and len(set(state_sizes[1:-1])) == 1


def _tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for value in values for tensor in _tensors(value)]


def test_refusals():
    tokenizer = build(FULL)
    assert not can_encode_chunks(tokenizer)
    with pytest.raises(ValueError, match="cannot encode a video in chunks; encode it whole"):
        next(encode_chunks(tokenizer, [frames(4)]))
    assert not can_encode_chunks(build(CAUSAL["conv"].replace("| lfq", "| tome(keep=9) | lfq")))
    with pytest.raises(ValueError, match="no frames"):
        list(encode_chunks(build(CAUSAL["conv"]), []))
    with pytest.raises(ValueError, match="one video"):
        list(encode_chunks(build(CAUSAL["conv"]), [frames(4)[None].repeat(2, 1, 1, 1, 1)]))
    whole = build(FULL)
    tokens = whole.encode(frames(4))
    assert torch.equal(next(decode_chunks(whole, tokens)), whole.decode(tokens)[0])
