"""Released weights of BSQ-ViT: random ones in their layout, against a recomputation with layers of torch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fewtokens.tokenizers import load_tokenizer
from tests.tokenizers.streaming import noise

BITS, WIDTH, PATCH, SIDE = 10, 64, 4, 4
# Ours and theirs, inside a block.
LAYERS = {"norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj",
          "self_attn.out_proj": "attn.out_proj"}  # fmt: skip


class Half(nn.Module):
    """Positions, norm, two pre-norm blocks and norm: what encoder and decoder share."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(SIDE * SIDE, WIDTH))
        if frames > 1:
            self.temporal_positional_embedding = nn.Parameter(torch.randn(frames, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 1, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )

    def forward(self, x):
        frames = x.shape[1] // SIDE**2
        positions = self.positional_embedding.repeat(frames, 1)
        if frames > 1:
            positions = positions + self.temporal_positional_embedding.repeat_interleave(SIDE**2, 0)
        x = self.ln_pre(x + positions)
        frame = torch.arange(frames).repeat_interleave(SIDE**2)
        for block in self.blocks:
            x = block(x, frame[:, None] < frame)
        return self.ln_post(x)

    def released(self, prefix):
        """The tensors under the released names."""
        state = {}
        for name, value in self.state_dict().items():
            name = name.replace("self_attn.in_proj_", "attn.in_proj_")
            for own, theirs in LAYERS.items():
                name = name.replace(f".{own}.", f".{theirs}.")
            state[f"{prefix}.{name.replace('blocks.', 'transformer.resblocks.')}"] = value
        return state


class Network(nn.Module):
    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames, self.halves = frames, nn.ModuleList([Half(frames), Half(frames)])
        self.conv1 = nn.Linear(3 * PATCH**2, WIDTH, bias=False)
        self.quant, self.post = nn.Linear(WIDTH, BITS), nn.Linear(BITS, WIDTH)
        self.ffn, self.conv_out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, 3 * PATCH**2)

    def forward(self, x):
        """Encodes and decodes frames [1,3,T,H,W]; returns bits of -1 and 1, [1,N,K], and frames."""
        grid = x.unflatten(3, (SIDE, PATCH)).unflatten(5, (SIDE, PATCH))
        u = self.quant(self.halves[0](self.conv1(grid.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3))))
        bits = (u > 0) * 2.0 - 1
        y = self.conv_out(torch.tanh(self.ffn(self.halves[1](self.post(bits / BITS**0.5)))))
        y = y.view(1, -1, SIDE, SIDE, 3, PATCH, PATCH).permute(0, 4, 1, 2, 5, 3, 6)
        return bits, y.reshape(x.shape)

    def released(self):
        parts = {"encoder.conv1": self.conv1, "quant_embed": self.quant, "post_quant_embed": self.post,
                 "decoder.ffn.0": self.ffn, "decoder.conv_out": self.conv_out}  # fmt: skip
        state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        state |= {"quantize.basis": 2 ** torch.arange(BITS - 1, -1, -1), "quantize.group_basis": torch.ones(1).long()}
        return state | self.halves[0].released("encoder") | self.halves[1].released("decoder")


def network(frames: int) -> Network:
    torch.manual_seed(0)
    built = Network(frames).eval()
    for parameter in built.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return built


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_a_checkpoint_gives_the_released_network(frames, tmp_path):
    """Of images, and of videos with the mask of the paper; the moving averages are those that are used."""
    theirs, x = network(frames), noise(frames, SIDE * PATCH, SIDE * PATCH)
    averages = {f"module.module.{name}": value for name, value in theirs.released().items()}
    state = {f"module.{name}": torch.zeros_like(value) for name, value in theirs.released().items()}
    torch.save({"iter": 7, "state_dict": state, "ema_state_dict": averages}, tmp_path / "checkpoint.pt")
    tokenizer = load_tokenizer(tmp_path / "checkpoint.pt", device="cpu")
    assert tokenizer.encoder.causal and tokenizer.window == (None if frames == 1 else frames)
    bits, decoded = theirs(x)
    tokens = tokenizer.encode((x.transpose(1, 2) + 1) / 2)
    # Their first bit counts most.
    assert torch.equal(tokens.codes[..., 0], ((bits > 0) * 2 ** torch.arange(BITS - 1, -1, -1)).sum(-1))
    torch.testing.assert_close(tokenizer.decoder(tokens).transpose(1, 2), decoded, atol=1e-5, rtol=1e-4)


def test_a_safetensors_file_and_what_does_not_fit(tmp_path):
    """Weights of images encode videos of any size, frame by frame."""
    state, path = network(1).released(), tmp_path / "image.safetensors"

    def load(tensors):
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        return load_tokenizer(path, device="cpu")

    video = torch.rand(1, 2, 3, 20, 24)
    tokenizer = load(state)
    tokens = tokenizer.encode(video)
    assert tokens.codes.shape == (1, 2 * 5 * 6, 1)
    assert torch.equal(tokens.codes[:, 30:], tokenizer.encode(video[:, 1:]).codes)
    with pytest.raises(ValueError, match=r"missing: decoder\.ln_pre\.bias"):
        load({name: value for name, value in state.items() if name != "decoder.ln_pre.bias"})
    with pytest.raises(ValueError, match=r"unexpected: quantize\.embedding\.weight"):
        load(state | {"quantize.embedding.weight": torch.zeros(4, BITS)})
    with pytest.raises(ValueError, match=r"of a different size: decoder\.conv_out\.weight"):
        load(state | {"decoder.conv_out.weight": torch.zeros(2 * 3 * PATCH**2, 4 * WIDTH)})
    with pytest.raises(ValueError, match=r"no tensor encoder\.positional_embedding with 2 axes"):
        load(state | {"encoder.positional_embedding": torch.zeros(3)})
