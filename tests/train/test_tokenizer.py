"""Training of tokenizers: losses, exact resuming, adversarial steps, parts that are frozen, collapse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fewtokens.core import files
from fewtokens.data.footage import Footage, find_footage
from fewtokens.data.packed import write_frames
from fewtokens.tokenizers import Tokenizer, load_tokenizer
from fewtokens.train.tokenizer import ReconstructionObjective, build_tokenizer, effective_use, train_tokenizer
from fewtokens.train.tokenizer_recipe import make_tokenizer_recipe
from tests.video.makers import moving_frames

SPEC = "tubelet(24, stride=(2, 8, 8)) | {} > tubelet(stride=(2, 8, 8))"
VQ = SPEC.format("vq(16)")
SMALL = {
    "size": 16, "frames": 4, "steps": 6, "batch": 3, "visits": 2, "workers": 0, "log_every": 2, "save_every": 3,
    "eval_every": 0.0, "shown": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> list[Footage]:
    folder = tmp_path_factory.mktemp("frames")
    for seed in range(4):
        pixels = torch.from_numpy(np.ascontiguousarray(moving_frames(8, 24, 20, seed)))
        write_frames(folder / f"{seed}.npy", [pixels.permute(0, 3, 1, 2)])
    return list(find_footage(folder).items)


class Stop(Exception):
    pass


def tensors(folder):
    return files.load(folder / "tokenizer" / "model.safetensors", "tokenizer")[0]


@pytest.mark.parametrize(
    "changes", [{}, {"gan_weight": 0.1, "gan_start": 2, "gan_width": 8, "size": 32}], ids=["plain", "gan"]
)
@pytest.mark.filterwarnings("ignore:gan_start")
def test_a_resumed_run_is_bit_equal(footage, tmp_path, changes):
    """Codebooks move by their means, and restart at random tokens."""
    recipe = make_tokenizer_recipe(VQ, **(SMALL | changes))
    train_tokenizer(footage, recipe, tmp_path / "whole", device="cpu")

    def stop(done, total, numbers):
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        train_tokenizer(footage, recipe, tmp_path / "parts", device="cpu", progress=stop)
    report = train_tokenizer(footage, recipe, tmp_path / "parts", device="cpu")
    assert report.resumed_at == 3
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert not any("discriminator" in name or "steps" in name for name in whole)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_the_result_reconstructs_better_and_loads(footage, tmp_path):
    recipe = make_tokenizer_recipe(SPEC.format("fsq"), **(SMALL | {"steps": 60, "eval_every": 1.0, "lr": 1e-2}))
    report = train_tokenizer(footage, recipe, tmp_path, device="cpu")
    scores = [line["psnr"] for line in report.metrics if "psnr" in line]
    assert scores[-1] > scores[0] + 0.5
    assert {"psnr", "psnr_mean_frame", "usage"} == report.scores.keys()
    tokenizer = load_tokenizer(tmp_path / "tokenizer", device="cpu")
    assert isinstance(tokenizer, Tokenizer)
    assert json.loads((tmp_path / "tokenizer" / "config.json").read_text())["trained"]["steps"] == 60
    for name in ("curves.png", "reconstructions.png", "index.html"):
        assert (tmp_path / name).stat().st_size > 1000


def test_a_frozen_encoder_stays_bit_equal(footage, tmp_path):
    """The finish of the decoder alone, as the second stage of VidTok."""
    recipe = make_tokenizer_recipe(SPEC.format("fsq"), **SMALL, rates={"pipeline": 0.0})
    before = {name: value.clone() for name, value in build_tokenizer(recipe).state_dict().items()}
    train_tokenizer(footage, recipe, tmp_path, device="cpu")
    after = tensors(tmp_path)
    changed = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}


def test_another_quantizer_starts_from_the_trained_parts(footage, tmp_path):
    continuous = Tokenizer.from_spec("tubelet(24, stride=(2, 8, 8)) > tubelet(stride=(2, 8, 8))")
    discrete = Tokenizer.from_spec(VQ)
    assert discrete.start_from(continuous) == len(continuous.state_dict())
    assert torch.equal(discrete.encoder.project.weight, continuous.encoder.project.weight)
    with pytest.raises(ValueError, match="no tensor"):
        discrete.start_from(Tokenizer.from_spec("tubelet(8) > tubelet"))


def test_images_first(footage, tmp_path):
    """The first steps see single frames, of each clip one."""
    spec = SPEC.replace("(2, 8, 8)", "(1, 8, 8)").format("fsq")
    recipe = make_tokenizer_recipe(spec, **SMALL, images=1)
    tokenizer = build_tokenizer(recipe)
    objective = ReconstructionObjective(recipe, tokenizer)
    shapes = []
    tokenizer.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    frames = torch.randint(256, (3, 4, 3, 16, 16), dtype=torch.uint8)
    for _ in range(2):
        objective(tokenizer, {"frames": frames}, torch.Generator().manual_seed(0))
    assert shapes == [(3, 1, 3, 16, 16), (3, 4, 3, 16, 16)]
    # A step of two parts.
    recipe = make_tokenizer_recipe(spec, **(SMALL | {"batch": 6}), images=1, accumulate=2)
    tokenizer = build_tokenizer(recipe)
    objective = ReconstructionObjective(recipe, tokenizer)
    sizes: list[int] = []
    tokenizer.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[1]))
    for _ in range(4):
        objective(tokenizer, {"frames": frames}, torch.Generator().manual_seed(0))
    assert sizes == [1, 1, 4, 4]


def test_a_collapsed_codebook_is_reported(footage, tmp_path):
    recipe = make_tokenizer_recipe(SPEC.format("vq(1024, restart=0, decay=0.01)"), **(SMALL | {"steps": 1}))
    tokenizer = build_tokenizer(recipe)
    with torch.no_grad():
        tokenizer.encoder.project.weight.zero_()
    with pytest.warns(UserWarning, match="the codebook has collapsed"):
        train_tokenizer(footage, recipe, tmp_path, tokenizer=tokenizer, device="cpu")


def test_an_early_discriminator_is_a_warning(footage, tmp_path):
    recipe = make_tokenizer_recipe(VQ, **(SMALL | {"steps": 1, "size": 32}), gan_weight=0.1, gan_start=0, gan_width=4)
    with pytest.warns(UserWarning, match="gan_start=0: before a tokenizer reconstructs"):
        train_tokenizer(footage, recipe, tmp_path, device="cpu")


def test_use_of_codes():
    codes = torch.tensor([[0, 3], [1, 3], [2, 3], [3, -1]])
    assert effective_use(codes, (4, 8)) == pytest.approx(1 / 3)
    assert effective_use(codes[:, :1], (4,)) == pytest.approx(1.0)
    assert effective_use(codes[:, :1], (1024,)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel": "l3"}, "pixel must be one of l1, l2"),
        ({"gan_weight": 1.0}, "at least 32 pixels, got size=16"),
        ({"gram_weight": 1.0}, "gram_weight requires perceptual"),
        ({"shade": 1}, "no setting shade"),
        ({"size": 20}, "a height that is a multiple of 8"),
        ({"perceptual": "no/such/file"}, "no such folder"),
    ],
)
def test_refusals(footage, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe = make_tokenizer_recipe(VQ, **(SMALL | changes))
        train_tokenizer(footage, recipe, tmp_path, device="cpu")
