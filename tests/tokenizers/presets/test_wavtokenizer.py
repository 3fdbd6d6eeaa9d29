"""WavTokenizer: tokens per second, spectra and back, and the frequency of a tone."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.blocks.spectrum import istft, log_mel, stft


def tone(frequency: float, samples: int = 3200) -> torch.Tensor:
    return (2 * torch.pi * frequency * torch.arange(samples) / 24_000).sin()[None] / 2


def test_tokens_and_bits_of_a_second():
    with torch.device("meta"):
        published = create_tokenizer("wavtokenizer")
        slow = create_tokenizer(published.spec.replace("(2, 4, 5, 8)", "(2, 5, 6, 10)").replace("hop=320", "hop=600"))
    assert get_preset("wavtokenizer").source == "audio"
    for tokenizer, rate in ((published, 75), (slow, 40)):
        layout = tokenizer.layout(24_000, 1, 1)
        assert (layout.tokens, layout.bits) == (rate, 12 * rate)
    assert published.layout(*get_preset("wavtokenizer").clip).tokens == 225
    assert len(published.decoder.blocks) == 12


@pytest.mark.parametrize("hop", [320, 600])
def test_spectra_and_back(hop):
    sound = torch.rand(2, 8 * hop, dtype=torch.float64) - 0.5
    spectra = stft(sound, 4 * hop, hop)
    assert spectra.shape == (2, 2 * hop + 1, 8)
    assert float((istft(spectra, 4 * hop, hop) - sound).abs().max()) < 1e-12


def test_a_tone_is_in_its_mel_band():
    """The band with the most energy is that whose center, evenly spaced in mel, is nearest to the tone."""
    top = 2595 * torch.tensor(1 + 12_000 / 700).log10()
    centers = 700 * (10 ** (torch.linspace(0, 1, 102)[1:-1] * top / 2595) - 1)
    for frequency in (1000.0, 4000.0):
        band = int(log_mel(tone(frequency), 24_000)[0, :, 4].argmax())
        assert abs(band - int((centers - frequency).abs().argmin())) <= 1


def test_a_tone_after_a_short_training():
    """The strongest frequency of the reconstruction deviates by less than 1 %."""
    torch.manual_seed(0)
    tokenizer = create_tokenizer("wavtokenizer", tiny=True, seed=0).train()
    sound = tone(1500)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    for _ in range(60):
        loss = sum(tokenizer(sound).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoded = tokenizer.eval().decode(tokenizer.encode(sound))
    assert decoded.shape == sound.shape
    spectrum = torch.fft.rfft(decoded[0] * torch.hann_window(3200), 24_000).abs()
    assert abs(int(spectrum.argmax()) - 1500) < 15


def test_other_input_is_refused():
    tokenizer = create_tokenizer("wavtokenizer", tiny=True, seed=0)
    with pytest.raises(ValueError, match="mono samples"):
        tokenizer.encode(torch.zeros(2, 2, 100))
    with pytest.raises(ValueError, match=r"-1\.\.1"):
        tokenizer.encode(torch.full((100,), 300.0))
