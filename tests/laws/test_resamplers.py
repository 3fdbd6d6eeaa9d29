"""Laws of learned resamplers, in addition to those of all methods."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.batch import collate
from fewtokens.core.method import save_weights
from fewtokens.methods.learned.attentional_pool import AttentionalPool
from fewtokens.methods.learned.langdc import LangDc
from fewtokens.methods.learned.linvt import LinVt
from fewtokens.methods.learned.llama_vid import LlamaVid
from fewtokens.methods.learned.perceiver import Perceiver
from fewtokens.methods.learned.ppllava import PpLlava
from fewtokens.methods.learned.pvc import Pvc
from fewtokens.methods.learned.qformer import QFormer
from fewtokens.methods.learned.storm import Storm
from fewtokens.methods.learned.token_turing import TokenTuring
from fewtokens.methods.learned.vista_llama import VistaLlama
from tests.helpers.clips import assert_same_tokens, clip
from tests.helpers.resamplers import GUIDED, SPECS, C, D, build, run_method, text_features, video


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_every_parameter(name):
    method = build(name)
    out = run_method(method, video())
    generator = torch.Generator().manual_seed(3)
    (out.features * torch.randn(out.features.shape, generator=generator, dtype=torch.float64)).sum().backward()
    for label, parameter in method.named_parameters():
        assert parameter.grad is not None, label
        assert bool(parameter.grad.isfinite().all()), label
        assert float(parameter.grad.abs().max()) > 1e-9, label


@pytest.mark.parametrize("name", SPECS)
def test_samples_do_not_mix(name):
    method, videos, texts = build(name), [video(T, B=1, seed=T) for T in (4, 2, 5)], text_features(3)
    out = run_method(method, collate(videos), texts)
    for b, tokens in enumerate(videos):
        assert_same_tokens(out[b], run_method(method, tokens, texts[b : b + 1]), 1e-6)
    order = [2, 0, 1]
    assert_same_tokens(run_method(method, collate(videos).select(order), texts[order]), out.select(order), 1e-6)
    # Gradients do not flow between videos.
    tokens = video()
    features = tokens.features.clone().requires_grad_()
    out = run_method(method, tokens.replace(features=features)).features[0]
    # Weighted, since the plain sum of normalized features is constant.
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert float(features.grad[0].abs().max()) > 0
    assert float(features.grad[1].abs().max()) == 0


@pytest.mark.parametrize("name", SPECS)
def test_padding_is_ignored(name):
    method, tokens = build(name), video(lengths=[2, 4])
    noise = tokens.features.where(tokens.mask[..., None], 1e3)
    assert_same_tokens(run_method(method, tokens.replace(features=noise)), run_method(method, tokens), 1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_parameters_in_half_precision(name):
    reference, method = build(name), build(name).to(torch.bfloat16)
    out = run_method(method, video().to(torch.bfloat16)).check()
    assert out.features.dtype == torch.bfloat16
    expected = run_method(reference, video()).features.detach()
    # Compares means over tokens, since bfloat16 may reorder tokens of nearly equal mean time.
    torch.testing.assert_close(out.features.double().mean(1), expected.mean(1), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", GUIDED)
def test_the_text_changes_the_output(name):
    method, tokens = build(name), video()
    first, second = run_method(method, tokens, text_features(seed=0)), run_method(method, tokens, text_features(seed=1))
    assert not torch.allclose(first.features, second.features, atol=1e-3)
    assert not torch.allclose(first.attribution, second.attribution, atol=1e-4)
    text = text_features()
    text.requires_grad_()
    run_method(method, tokens, text).features.square().sum().backward()
    assert float(text.grad.abs().max()) > 0


@pytest.mark.parametrize("name", GUIDED)
def test_invalid_text_features(name):
    with pytest.raises(ValueError, match="set text_dim"):
        run_method(build(name), video(), torch.zeros(2, 3, D + 1).double())
    with pytest.raises(ValueError, match=r"text of shape \[B,L,D\]"):
        run_method(build(name), video(), torch.zeros(1, 3, D).double())


@pytest.mark.parametrize("name", ["perceiver", "qformer", "attentional_pool", "token_turing"])
def test_merged_input_tokens(name):
    """Attribution refers to cells, also for merged input tokens."""
    (tome,) = registry.build("tome(0.4)")
    merged = tome(video())
    out = run_method(build(name), merged).check()
    assert out.count.tolist() == [5, 5]
    assert bool((out.assignment >= 0).all())
    torch.testing.assert_close(out.sizes.sum(1), torch.full((2,), 48.0))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Perceiver, {"keep": 0}, "perceiver: keep must be a count"),
        (QFormer, {"num_layers": 0}, "num_layers"),
        (AttentionalPool, {"hidden": -1}, "hidden"),
        (TokenTuring, {"memory": 2.5}, "memory"),
        (LlamaVid, {"keep": True}, "llama_vid: keep must be"),
        (PpLlava, {"kernel": (2, 3)}, "kernel"),
        (PpLlava, {"tau": 0.0}, "tau"),
        (Storm, {"pool": 0}, "pool"),
        (LangDc, {"most": 0}, "most"),
        (LangDc, {"vocabulary": 1}, "vocabulary"),
        (Pvc, {"repeat": 0}, "repeat"),
        (VistaLlama, {"keep": 32}, "vista_llama: keep must be"),
        (Pvc, {"num_layers": 0}, "num_layers"),
        (LinVt, {"scales": ()}, "scales"),
        (LinVt, {"selected": 0}, "selected"),
    ],
)
def test_invalid_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("name", SPECS)
def test_weights_are_saved_and_loaded(name, tmp_path):
    method = build(name).float()
    path = save_weights(method, tmp_path / "method.safetensors")
    (again,) = registry.build(SPECS[name], dim=C, checkpoint=str(path))
    tokens = video().to(torch.float32)
    text = text_features().float()
    assert torch.equal(run_method(method, tokens, text).features, run_method(again.eval(), tokens, text).features)
    with pytest.raises(ValueError, match="set dim"):
        run_method(method, clip(C=C + 1), text)
