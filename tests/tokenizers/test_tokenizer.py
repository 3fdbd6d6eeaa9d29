"""`Tokenizer`: padding, windows, bits, saving, and what it refuses; with the smallest parts."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.core.method import save_weights
from fewtokens.tokenizers import Tokenizer, create_tokenizer, get_preset, load_tokenizer
from fewtokens.tokenizers.files import read_encoded, write_encoded
from fewtokens.tokenizers.parts import to_signed
from fewtokens.video import synthetic

SPEC = "tubelet(24, stride=(2, 8, 8)) | fsq((8, 5, 5)) > tubelet(stride=(2, 8, 8))"


def build(spec: str = SPEC, **options) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.from_spec(spec, **options).eval()


def frames(T: int = 4, height: int = 32, width: int = 48) -> torch.Tensor:
    return synthetic("pan", frames=T, size=(height, width)).frames


class TestSizes:
    @pytest.mark.parametrize("size", [(1, 8, 8), (3, 17, 9), (4, 32, 48), (5, 31, 50)])
    def test_any_size_is_padded_and_cropped(self, size):
        tokenizer = build()
        tokens = tokenizer.encode(frames(*size))
        assert tokenizer.decode(tokens).shape == (1, size[0], 3, *size[1:])
        layout = tokenizer.layout(*size)
        assert layout.grid == tokens.grid.shape == (-(-size[0] // 2), -(-size[1] // 8), -(-size[2] // 8))
        assert layout.padded == (layout.grid[0] * 2, layout.grid[1] * 8, layout.grid[2] * 8)
        assert layout.tokens == tokens.N

    def test_padding_changes_no_cell_inside(self):
        tokenizer = build()
        whole, cropped = tokenizer.encode(frames(4, 32, 48)), tokenizer.encode(frames(4, 32, 48)[:3, :, :27, :44])
        inside = torch.zeros(2, 4, 6, dtype=torch.bool)
        inside[0, :3, :5] = True
        assert torch.equal(whole.codes[0][inside.flatten()], cropped.codes[0][inside.flatten()])

    def test_windows_are_videos_of_the_batch(self):
        tokenizer = build(window=4)
        video = frames(10)
        tokens = tokenizer.encode(video)
        assert tokens.B == 3
        assert torch.equal(tokens[1].codes, tokenizer.encode(video[4:8]).codes)
        decoded = tokenizer.decode(tokens)
        assert decoded.shape == (1, 10, 3, 32, 48)
        assert torch.equal(decoded[:, 4:8], tokenizer.decode(tokenizer.encode(video[4:8])))
        assert tokenizer.layout(10, 32, 48).tokens == int(tokens.count.sum())

    def test_a_window_must_be_accepted(self):
        with pytest.raises(ValueError, match="window must be an accepted number"):
            build(window=3)


class TestBits:
    def test_codes(self):
        tokenizer = build()
        tokens = tokenizer.encode(frames())
        bits = 2 * 4 * 6 * math.log2(200)
        assert float(tokenizer.bits(tokens)) == pytest.approx(bits)
        assert tokenizer.layout(4, 32, 48).bits == pytest.approx(bits)
        assert tokenizer.layout(4, 32, 48).bits_per_pixel == pytest.approx(bits / (4 * 32 * 48))

    def test_continuous_tokens(self):
        tokenizer = build("tubelet(24, stride=(2, 8, 8)) > tubelet(stride=(2, 8, 8))")
        tokens = tokenizer.encode(frames())
        assert tokens.codes is None
        assert float(tokenizer.bits(tokens)) == tokenizer.layout(4, 32, 48).bits == 48 * 24 * 32

    def test_the_assignment_is_counted_if_the_decoder_needs_it(self):
        tokenizer = build(SPEC.replace("fsq", "tome(keep=12) | fsq"))
        tokens = tokenizer.encode(frames())
        assert tokenizer.stores_assignment
        assert float(tokenizer.bits(tokens)) == pytest.approx(12 * math.log2(200) + 48 * math.log2(13))
        assert tokenizer.layout(4, 32, 48).bits == pytest.approx(float(tokenizer.bits(tokens)))
        assert tokenizer.decode(tokens).shape == (1, 4, 3, 32, 48)


def test_the_decoder_reads_codes_only():
    tokenizer = build()
    tokens = tokenizer.encode(frames())
    assert torch.equal(
        tokenizer.decode(tokens), tokenizer.decode(tokens.replace(features=torch.zeros_like(tokens.features)))
    )


def test_save_and_load(tmp_path):
    tokenizer = build(window=4)
    tokenizer.save_pretrained(tmp_path / "run")
    again = load_tokenizer(tmp_path / "run", device="cpu")
    tokens = tokenizer.encode(frames())
    assert torch.equal(again.encode(frames()).codes, tokens.codes)
    assert torch.equal(again.decode(tokens), tokenizer.decode(tokens))
    assert (again.window, again.spec) == (4, tokenizer.spec)


def test_save_and_load_in_half_precision(tmp_path):
    """The loaded tokenizer has the dtype and fingerprint of the saved one, so that it decodes its files."""
    tokenizer = build().to(torch.bfloat16)
    again = load_tokenizer(tokenizer.save_pretrained(tmp_path / "run"), device="cpu")
    assert again.fingerprint() == tokenizer.fingerprint()
    tokens = tokenizer.encode(frames())
    assert torch.equal(again.encode(frames()).codes, tokens.codes)
    write_encoded(tmp_path / "a.safetensors", tokens, tokenizer)
    read_encoded(tmp_path / "a.safetensors", again)


def test_a_saved_tokenizer_does_not_need_the_files_it_was_built_from(tmp_path):
    ends = "tubelet(16, stride=(1,8,8)) | {} > tubelet(stride=(1,8,8))"
    first = Tokenizer.from_spec(ends.format("vq(64, code_dim=8)"))
    save_weights(first.quantizer, tmp_path / "vq.safetensors")
    checkpoint = str(tmp_path / "vq.safetensors")
    tokenizer = Tokenizer.from_spec(ends.format(f"vq(64, code_dim=8, checkpoint={checkpoint!r})")).eval()
    tokenizer.save_pretrained(tmp_path / "run")
    (tmp_path / "vq.safetensors").unlink()
    again = load_tokenizer(tmp_path / "run", device="cpu")
    assert again.fingerprint() == tokenizer.fingerprint()
    with pytest.raises(ValueError, match="no such file"):
        Tokenizer.from_spec(again.spec)


def test_training_overfits_two_clips():
    torch.manual_seed(0)
    tokenizer = build(SPEC.replace("24", "64")).train()
    clips = torch.stack([frames(2, 16, 16), frames(2, 16, 16).flip(-1)]).float() / 255
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    errors = []
    for _ in range(60):
        step = tokenizer(clips)
        assert step.frames is not None
        loss = (step.frames - (2 * clips - 1)).square().mean() + sum(step.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    mean = (2 * clips - 2 * clips.mean((0, 1), keepdim=True)).square().mean()
    assert errors[-1] < float(mean) / 2


def test_a_training_step_checks_the_range_of_frames_once(monkeypatch):
    calls = []
    monkeypatch.setattr("fewtokens.tokenizers.parts.to_signed", lambda x: calls.append(x) or to_signed(x))
    video = frames()[None]
    step = build().train()(video)
    assert len(calls) == 1
    assert torch.allclose(step.target, video.float() / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="divide by 255"):
        build().train()(video.float())


class TestRefusals:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("tubelet | fsq", "encoder . methods > decoder"),
            ("tubelet > nothing", "no decoder of a tokenizer named 'nothing'"),
            ("tubelets > tubelet", "did you mean tubelet"),
            ("tubelet(size=3) > tubelet", "no argument size"),
            ("tubelet(stride=(2, 8, 8)) > tubelet", "same stride"),
            ("tubelet('x') > tubelet", "width must be"),
            ("tubelet(12) > tubelet(13)", "reads 13 channels"),
            ("tubelet | fsq | lfq > tubelet", "one quantizer"),
            ("tubelet > tubelet(stride=open('x'))", "numbers, strings"),
        ],
    )
    def test_specs(self, spec, message):
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_spec(spec)

    def test_codes_of_another_tokenizer(self):
        tokenizer = build()
        tokens = tokenizer.encode(frames())
        with pytest.raises(ValueError, match="are they of another tokenizer"):
            tokenizer.decode(tokens.replace(codes=tokens.codes + 200))
        with pytest.raises(ValueError, match="no codes"):
            tokenizer.decode(tokens.replace(codes=None))

    @pytest.mark.parametrize(("scale", "hint"), [(255.0, "divide by 255"), (2.0, "divide by 255|rescale")])
    def test_ranges(self, scale, hint):
        with pytest.raises(ValueError, match=hint):
            build().encode(frames().float() / 255 * scale)
        with pytest.raises(ValueError, match="rescale"):
            build().encode(frames().float() / 127.5 - 1)

    @pytest.mark.parametrize("name", ["larp", "atoken", "coordtok", "vitok", "magvit", "moto", "divot", "cdt", "v2l"])
    def test_frames_of_another_size_in_training(self, name):
        tokenizer = create_tokenizer(name, tiny=True)
        length, height, width = get_preset(name).tiny_clip
        for size in ((length + 1, height, width), (length, height, width + 1)):
            if tokenizer.encoder.padded(*size) == size:
                continue
            with pytest.raises(ValueError, match=r"accepts .* the next accepted size is"):
                tokenizer(torch.rand(1, size[0], 3, *size[1:]))
        with pytest.raises(ValueError, match=r"must be \[B,T,3,H,W\]"):
            tokenizer(torch.rand(length, 3, height, width))

    def test_unknown_preset(self):
        with pytest.raises(ValueError, match="no tokenizer named"):
            create_tokenizer("vidtok_fsq")
