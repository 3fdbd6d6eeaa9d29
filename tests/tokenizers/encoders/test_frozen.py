"""The encoder `frozen`: its layers against transformers, what is trained, and refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers import Tokenizer, load_tokenizer
from fewtokens.tokenizers.encoders.frozen import KNOWN, Frozen
from tests.helpers.data import data_path


def frames(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_layers_equal_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    reference = transformers.Dinov2Model(config).eval()
    reference.save_pretrained(tmp_path)
    encoder = Frozen(str(tmp_path), layers=(1, 2, -1))
    x = frames(2, 3, 3, 28, 42)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = ((x.transpose(1, 2).flatten(0, 1) + 1) / 2 - mean) / std
    with torch.no_grad():
        output = reference(images, output_hidden_states=True)
        ours = encoder.latents(x)
    layers = [*output.hidden_states[1:3], output.last_hidden_state]
    expected = torch.cat([layer[:, 1:] for layer in layers], -1).reshape(2, 3, 2, 3, 96).movedim(-1, 1)
    assert ours.shape == (2, 96, 3, 2, 3)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_a_saved_tokenizer_is_loaded_without_the_network(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    network = tmp_path / "clip"
    transformers.CLIPVisionModel(config).save_pretrained(network)
    spec = f"frozen({str(network)!r}, layers=(2,), trainable={{}}) | fsq((5, 5)) > tubelet(stride=(1, 8, 8))"
    x = torch.rand(1, 2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    tokenizers = [Tokenizer.from_spec(spec.format(trainable)).eval() for trainable in (False, True)]
    folders = [each.save_pretrained(tmp_path / f"{number}") for number, each in enumerate(tokenizers)]
    shutil.rmtree(network)
    for tokenizer, folder in zip(tokenizers, folders, strict=True):
        again = load_tokenizer(folder, device="cpu")
        assert torch.equal(again.encoder.latents(x.transpose(1, 2)), tokenizer.encoder.latents(x.transpose(1, 2)))
        assert again.fingerprint() == tokenizer.fingerprint()
    settings = json.loads((folders[0] / "config.json").read_text())
    settings["networks"][str(network)]["config"]["dim"] = "many"
    (folders[0] / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"saved config of .*dim"):
        load_tokenizer(folders[0])


def test_a_stride_resizes_frames_to_the_patch_size():
    encoder, patches = Frozen(stride=(1, 16, 16)), Frozen()
    x = frames(1, 3, 1, 64, 32)
    smaller = F.interpolate(x[:, :, 0], (32, 16), mode="bilinear", antialias=True)[:, :, None]
    assert encoder.stride == (1, 16, 16)
    assert torch.allclose(encoder.latents(x), patches.latents(smaller), atol=1e-5)


def test_only_a_trainable_network_is_trained():
    for trainable in (False, True):
        torch.manual_seed(0)
        spec = f"frozen(layers=(2, -1), trainable={trainable}) | fsq((5, 5)) > tubelet(stride=(1, 8, 8))"
        tokenizer = Tokenizer.from_spec(spec).train()
        before = {name: value.clone() for name, value in tokenizer.encoder.state_dict().items()}
        trained = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, 1e-2)
        for _ in range(3):
            step = tokenizer(frames(2, 1, 3, 32, 32).add(1).div(2))
            (step.frames.square().mean() + sum(step.losses.values())).backward()
            optimizer.step()
        same = [torch.equal(value, before[name]) for name, value in tokenizer.encoder.state_dict().items()]
        assert not any(same) if trainable else all(same)
        assert tokenizer.encoder.model.training == trainable


def test_random_weights_follow_the_seed():
    x = frames(1, 3, 1, 16, 16)
    torch.manual_seed(1)
    first = Frozen(seed=3).latents(x)
    torch.manual_seed(2)
    assert torch.equal(first, Frozen(seed=3).latents(x))
    assert not torch.equal(first, Frozen(seed=4).latents(x))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("facebook/dinov2-small", 22.1),
        ("facebook/dinov2-base", 86.6),
        ("facebook/dinov2-with-registers-large", 304.4),
        ("facebook/vit-mae-large", 303.3),
        ("google/siglip2-so400m-patch14-384", 413.0),  # 428 with its pooling head
    ],
)
def test_published_sizes_of_known_networks(name, millions):
    with torch.device("meta"):
        encoder = Frozen(name)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert name in KNOWN


@pytest.mark.data
def test_real_features_tell_images_apart():
    """Patches of the same picture are closer to one another than to those of noise."""
    encoder = Frozen(str(data_path("weights", "dinov2-small")))
    ramp = torch.linspace(-1, 1, 56).expand(3, 1, 56, 56)[None]
    with torch.no_grad():
        first, second, noise = (
            encoder.latents(x).flatten(2).mean(-1) for x in (ramp, ramp * 0.9, frames(1, 3, 1, 56, 56))
        )
    assert torch.cosine_similarity(first, second) > torch.cosine_similarity(first, noise) + 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (0,)}, "layers must be -1 or in 1..4"),
        ({"layers": (5,)}, "layers must be -1 or in 1..4"),
        ({"layers": ()}, "layers must be"),
        ({"stride": (2, 8, 8)}, "stride must be 1 frame"),
        ({"network": "./missing"}, "no such folder"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Frozen(**arguments)
