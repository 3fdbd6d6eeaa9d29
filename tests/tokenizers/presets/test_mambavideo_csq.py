"""MambaVideo: tokens of the published strides, causality, channel-split quantization as an option."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers import Tokenizer, get_preset
from tests.tokenizers.presets.tiny import build, clips, published

TINY = get_preset("mambavideo_csq").tiny


def test_published_size():
    _, layout = published("mambavideo_csq")
    assert layout.grid == (5, 32, 32)
    assert layout.tokens == 5120
    assert layout.bits == pytest.approx(5120 * math.log2(64000))


@torch.no_grad()
def test_causality_is_exact():
    tokenizer, frames, changed = build("mambavideo_csq"), clips("mambavideo_csq"), clips("mambavideo_csq")
    changed[:, 1:] = 1 - changed[:, 1:]
    before, after = tokenizer.encode(frames), tokenizer.encode(changed)
    assert tokenizer.encoder.causal
    assert torch.equal(before.codes[:, :16], after.codes[:, :16])
    assert not torch.equal(before.codes[:, 16:], after.codes[:, 16:])
    assert torch.equal(tokenizer.decode(before)[:, :1], tokenizer.decode(after)[:, :1])


@torch.no_grad()
def test_channel_split_quantization_is_off_and_one_group_is_the_base():
    torch.manual_seed(0)
    base = build("mambavideo_csq").quantizer
    assert base.groups == 1
    split = Tokenizer.from_spec(TINY.replace("fsq((8, 5, 5, 5))", "fsq((8, 5, 5, 5), groups=3)")).quantizer
    assert split.bits == pytest.approx(3 * base.bits)
    one = Tokenizer.from_spec(TINY.replace("fsq((8, 5, 5, 5))", "fsq((8, 5, 5, 5), groups=1)")).quantizer
    one.load_state_dict(base.state_dict())
    features = torch.randn(1, 9, 48)
    assert torch.equal(one.quantize(features).features, base.quantize(features).features)
    # Code g changes only channels 4 g .. 4 g + 3 before the output layer.
    codes = split.quantize(features).codes
    changed = codes.clone()
    changed[..., 1] = (changed[..., 1] + 1) % 1000
    split.project_out = torch.nn.Identity()
    channels = (split.lookup(codes) != split.lookup(changed)).any(1)[0].nonzero().flatten().tolist()
    assert channels
    assert set(channels) <= {4, 5, 6, 7}


@pytest.mark.parametrize(
    ("arguments", "message"), [("stride=(1, 8, 8)", "stride must be even"), ("blocks=(2,)", "two counts")]
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_spec(f"state_space({arguments}) > tubelet")
