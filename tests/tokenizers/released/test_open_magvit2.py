"""Released weights of Open-MAGVIT2: random ones in their layout, against a recomputation by their names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fewtokens.tokenizers import load_tokenizer
from tests.tokenizers.streaming import noise

BITS, WIDTH = 6, 16


class Released:
    """The released networks by their formulas; tensors are drawn under the released names when they are first read.

    Args:
        mult: factor of the channels of each level.
        is_video: whether convolutions are 3x3x3 and causal; otherwise all clips have one frame.
    """

    def __init__(self, mult: tuple[int, ...], is_video: bool) -> None:
        self.mult, self.is_video = mult, is_video
        self.tensors: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def tensor(self, name, *shape):
        if name not in self.tensors:
            scale = 0.3 if len(shape) == 1 else shape[1] ** -0.5 / 2
            self.tensors[name] = scale * torch.randn(shape, generator=self.generator) + name.endswith("norm1.weight")
        return self.tensors[name]

    def conv(self, name, x, out, kernel=3, stride=(1, 1, 1), bias=True):
        axes, name = (3, f"{name}.conv_1") if self.is_video else (2, name)
        weight = self.tensor(f"{name}.weight", out, x.shape[1], *[kernel] * axes)
        constant = self.tensor(f"{name}.bias", out) if bias else None
        if self.is_video:
            half = kernel // 2
            return F.conv3d(F.pad(x, (half, half, half, half, kernel - 1, 0)), weight, constant, stride)
        return F.conv2d(x[:, :, 0], weight, constant, stride[1:], kernel // 2)[:, :, None]

    def norm(self, name, x):
        # 32 groups in networks of the released width.
        channels = x.shape[1]
        weight, bias = self.tensor(f"{name}.weight", channels), self.tensor(f"{name}.bias", channels)
        return F.silu(F.group_norm(x, channels // 4, weight, bias, 1e-6))

    def blocks(self, name, x, out, count=2):
        for i in range(count):
            prefix = f"{name}.{i}"
            h = self.conv(f"{prefix}.conv1", self.norm(f"{prefix}.norm1", x), out, bias=False)
            h = self.conv(f"{prefix}.conv2", self.norm(f"{prefix}.norm2", h), out, bias=False)
            x = h + (x if x.shape[1] == out else self.conv(f"{prefix}.nin_shortcut", x, out, 1, bias=False))
        return x

    def stride(self, level):
        return (2 if self.is_video and self.mult[level] != 1 else 1, 2, 2)

    def encode(self, x):
        x = self.conv("encoder.conv_in", x, WIDTH, bias=False)
        for level, factor in enumerate(self.mult):
            x = self.blocks(f"encoder.down.{level}.block", x, WIDTH * factor)
            if level < len(self.mult) - 1:
                x = self.conv(f"encoder.down.{level}.downsample", x, WIDTH * factor, stride=self.stride(level))
        x = self.blocks("encoder.mid_block", x, x.shape[1])
        return self.conv("encoder.conv_out", self.norm("encoder.norm_out", x), BITS, 1)

    def decode(self, z):
        x = self.conv("decoder.conv_in", z, WIDTH * self.mult[-1])
        x = self.blocks("decoder.mid_block", x, x.shape[1])
        for level in reversed(range(len(self.mult))):
            flat, name = z.flatten(2), f"decoder.adaptive.{level}"
            linear = [(self.tensor(f"{name}.{part}.weight", x.shape[1], BITS),
                       self.tensor(f"{name}.{part}.bias", x.shape[1])) for part in ("gamma", "beta")]  # fmt: skip
            scale, shift = F.linear((flat.var(2) + 1e-6).sqrt(), *linear[0]), F.linear(flat.mean(2), *linear[1])
            x = F.group_norm(x, x.shape[1] // 4, eps=1e-6) * scale[..., None, None, None] + shift[..., None, None, None]
            x = self.blocks(f"decoder.up.{level}.block", x, WIDTH * self.mult[level])
            if level:
                t, h, w = self.stride(level - 1)
                channels, (T, H, W) = x.shape[1], x.shape[2:]
                x = self.conv(f"decoder.up.{level}.upsample.conv1", x, channels * t * h * w)
                x = x.view(-1, t, h, w, channels, T, H, W).permute(0, 4, 5, 1, 6, 2, 7, 3)
                x = x.reshape(-1, channels, T * t, H * h, W * w)
                x = torch.cat([x[:, :, :1], x[:, :, t:]], 2)
        return self.conv("decoder.conv_out", self.norm("decoder.norm_out", x), 3)


def released(mult, is_video):
    """A network, and random frames [1,3,T,H,W] with their latents and their decoded signs."""
    network = Released(mult, is_video)
    x = noise(5 if is_video else 1, 16, 24)
    latents = network.encode(x)
    return network, x, latents, network.decode((latents > 0) * 2.0 - 1)


@pytest.mark.parametrize(("mult", "is_video"), [((1, 2, 2), True), ((1, 1, 2), False)])
@torch.no_grad()
def test_a_checkpoint_gives_the_released_network(mult, is_video, tmp_path):
    """Of Lightning, with the weights of a loss and settings; the moving averages are those that are used."""
    network, x, latents, frames = released(mult, is_video)
    state = {name: torch.full_like(value, 7.0) for name, value in network.tensors.items()}
    state |= {f"model_ema.{name.replace('.', '')}": value for name, value in network.tensors.items()}
    state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1),
              "loss.discriminator.conv.weight": torch.zeros(3)}  # fmt: skip
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.3"}, tmp_path / "video.ckpt")
    tokenizer = load_tokenizer(tmp_path, device="cpu")
    assert (tokenizer.window, tokenizer.encoder.causal) == ((17, False) if is_video else (None, True))
    torch.testing.assert_close(tokenizer.encoder.latents(x), latents, atol=1e-5, rtol=1e-4)
    tokens = tokenizer.encode((x.transpose(1, 2) + 1) / 2)
    # Their first bit counts least.
    expected = ((latents > 0) * 2 ** torch.arange(BITS)[:, None, None, None]).sum(1).flatten(1)
    assert torch.equal(tokens.codes[..., 0], expected)
    torch.testing.assert_close(tokenizer.decoder(tokens).transpose(1, 2), frames, atol=1e-4, rtol=1e-4)


def test_a_safetensors_file_and_what_does_not_fit(tmp_path):
    state, path = released((1, 2, 2), True)[0].tensors, tmp_path / "video.safetensors"

    def load(tensors):
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        return load_tokenizer(path, device="cpu")

    # Two windows of 17 frames, 1 + 16 of which are cells of 2 frames, and of 4 x 4 pixels.
    assert load(state).encode(torch.rand(20, 3, 9, 7)).codes.shape == (2, 9 * 3 * 2, 1)
    with pytest.raises(ValueError, match=r"missing: encoder\.norm_out\.bias"):
        load({name: value for name, value in state.items() if name != "encoder.norm_out.bias"})
    with pytest.raises(ValueError, match=r"unexpected: decoder\.extra"):
        load(state | {"decoder.extra": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"unexpected tensors of Open-MAGVIT2: quant_conv\.weight"):
        load(state | {"quant_conv.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"of a different size: decoder\.conv_out\.weight"):
        load(state | {"decoder.conv_out.conv_1.weight": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"missing moving averages: model_ema\.decoder"):
        load(state | {"model_ema.decay": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"it has no weights encoder\.conv_in\.weight"):
        load({name: value for name, value in state.items() if name != "encoder.conv_in.conv_1.weight"})
