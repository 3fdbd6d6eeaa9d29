"""ETT: the caption loss reaches the encoder through codebook vectors, and not through a new table of ids."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers import Tokenizer, create_tokenizer, get_preset
from fewtokens.tokenizers.presets.ett import CaptionStage
from fewtokens.video import synthetic


class Language(torch.nn.Module):
    """A causal language model of one attention layer, with the interface of transformers."""

    def __init__(self, vocabulary: int = 11, width: int = 16) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(vocabulary, width)
        self.layer = torch.nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        self.head = torch.nn.Linear(width, vocabulary)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.words

    def forward(self, inputs_embeds: torch.Tensor):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(inputs_embeds.shape[1])
        logits = self.head(self.layer(inputs_embeds, mask, is_causal=True))
        return type("Output", (), {"logits": logits})


def build():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("ett", tiny=True).train()
    return tokenizer, CaptionStage(tokenizer.encoder.dim, Language())


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.cat([synthetic(kind, frames=4, size=(32, 32)).frames for kind in ("pan", "shapes")])[:, None] / 255


CAPTIONS = torch.tensor([[1, 2, 3, -100]] * 4 + [[4, 5, 6, 7]] * 4)


def test_published_tokens_and_bits():
    with torch.device("meta"):
        published = create_tokenizer("ett")
    layout = published.layout(*get_preset("ett").clip)
    assert (layout.tokens, layout.bits) == (256, 256 * 17)


def test_the_loss_is_the_cross_entropy_of_the_words_after_the_tokens(frames):
    tokenizer, stage = build()
    tokens = tokenizer(frames).tokens
    loss = stage.loss(tokens, CAPTIONS)
    total, count = 0.0, 0
    for b in range(8):
        words = [w for w in CAPTIONS[b].tolist() if w >= 0]
        sequence = torch.cat([stage.project(tokens.features[b]), stage.words(torch.tensor(words))])[None]
        logits = stage.language_model(inputs_embeds=sequence).logits[0]
        for position, word in enumerate(words):
            total += float(F.cross_entropy(logits[tokens.N - 1 + position], torch.tensor(word)).detach())
            count += 1
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-4)


def test_the_gradient_reaches_the_encoder_through_codes_but_not_through_a_new_table(frames):
    tokenizer, stage = build()
    first = tokenizer.encoder.network.layers[0].weight
    tokens = tokenizer(frames).tokens
    (gradient,) = torch.autograd.grad(stage.loss(tokens, CAPTIONS), first)
    assert float(gradient.norm()) > 0
    # What the language model reads are the entries of the codebook.
    entries = tokenizer.quantizer.lookup(tokens.codes)
    assert torch.equal(tokens.features.detach(), entries)
    table = torch.nn.Embedding(256, tokens.C)
    tokens = tokenizer(frames).tokens
    loss = stage.loss(tokens.replace(features=table(tokens.codes[..., 0])), CAPTIONS)
    (gradient,) = torch.autograd.grad(loss, first, allow_unused=True)
    assert gradient is None


def test_reconstruction_suffers_only_without_the_losses_of_the_tokenizer(frames):
    spec = "tubelet(32, stride=(1, 8, 8)) | vq(64, code_dim=32, cosine=False) > tubelet(stride=(1, 8, 8))"

    def train(tokenizer, stage, *, steps: int, caption: float, weight: float) -> float:
        """Returns the last error of reconstruction."""
        optimizer = torch.optim.Adam([*tokenizer.parameters(), *stage.parameters()], 2e-3)
        for _ in range(steps):
            step = tokenizer(frames)
            error = (step.frames - (2 * frames - 1)).square().mean()
            loss = weight * (error + sum(step.losses.values()))
            if caption:
                loss = loss + caption * stage.loss(step.tokens, CAPTIONS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(error.detach())

    for weight in (0.0, 4.0):
        torch.manual_seed(0)
        tokenizer, stage = Tokenizer.from_spec(spec).train(), CaptionStage(32, Language())
        before = train(tokenizer, stage, steps=110, caption=0.0, weight=1.0)
        after = train(tokenizer, stage, steps=30, caption=1.0, weight=weight)
        lost = 10 * math.log10(after / before)
        assert lost > 3 if weight == 0 else lost < 0.5


def test_refusals(frames):
    tokenizer, stage = build()
    with pytest.raises(ValueError, match="captions must be"):
        stage.loss(tokenizer(frames).tokens, CAPTIONS[:3])
