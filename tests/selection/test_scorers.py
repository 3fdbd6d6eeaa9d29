"""Scorers: features, novelty, and tiny text-image models of transformers with random weights."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F

import fewtokens
from fewtokens.selection import EncoderScorer, Oracle, PixelScorer, TextImageScorer, load_scorer
from fewtokens.video.footage import SmallFrames
from tests.helpers.footage import write_scenes

pytest.importorskip("transformers")
LIMIT, SIDE = 12, 32
WORDS = ["[UNK]", "[PAD]", "what", "is", "the", "color", "of", "a", "red", "car", "in", "this", "video", "?"]


def small_frames(frames):
    times = torch.arange(len(frames)) / 2
    return SmallFrames(
        times, torch.arange(len(frames)).numpy(), SIDE, lambda index, size: frames[torch.from_numpy(index)]
    )


def save_tokenizer(folder):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def folder(request, tmp_path_factory):
    import transformers as hf

    text = {
        "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": LIMIT, "eos_token_id": 13, "pad_token_id": 1,
        "bos_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
    }
    if request.param == "siglip2":
        vision["num_patches"] = (SIDE // 8) ** 2
    else:
        vision["image_size"] = SIDE
    extra = {"projection_dim": 12} if request.param == "clip" else {}
    if request.param != "clip":
        text["projection_size"] = 16
    name = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}[request.param]
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(text_config=text, vision_config=vision, **extra)
    path = tmp_path_factory.mktemp(request.param)
    getattr(hf, f"{name}Model")(config).eval().save_pretrained(path)
    save_tokenizer(path)
    return path


def test_scores_are_the_cosines_of_the_model(folder):
    """Against the logits of the model's own forward pass, which are the cosines up to scale and bias."""
    import transformers as hf

    frames = torch.randint(0, 256, (5, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).byte()
    scorer = TextImageScorer(folder, device="cpu")
    assert scorer.size == SIDE and scorer.needs_question
    question = "what is the color of this car ?"
    features = scorer.features(frames)
    scores = scorer.score(small_frames(frames), question, features)
    model = hf.AutoModel.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    padding = {} if model.config.model_type == "clip" else {"padding": "max_length", "max_length": LIMIT}
    ids = tokenizer(question, return_tensors="pt", **padding)["input_ids"]
    mean, std = torch.tensor(scorer.mean)[:, None, None], torch.tensor(scorer.std)[:, None, None]
    pixels = (frames.float() / 255 - mean) / std
    inputs = {"pixel_values": pixels}
    if model.config.model_type == "siglip2":
        patches = pixels.unflatten(2, (4, 8)).unflatten(4, (4, 8)).permute(0, 2, 4, 3, 5, 1).reshape(5, 16, -1)
        inputs = {
            "pixel_values": patches, "pixel_attention_mask": torch.ones(5, 16, dtype=torch.int64),
            "spatial_shapes": torch.full((5, 2), 4),
        }  # fmt: skip
    with torch.no_grad():
        logits = model(input_ids=ids, **inputs).logits_per_image[:, 0]
    bias = getattr(model, "logit_bias", torch.zeros(1))
    expected = (logits - bias.detach()) / model.logit_scale.detach().exp()
    torch.testing.assert_close(scores, expected.flatten(), rtol=1e-4, atol=1e-5)


def test_a_long_question_is_cut_with_a_warning(folder):
    scorer = load_scorer(f"clip:{folder}", device="cpu")
    words = "what is the color of a red car in this video"
    with pytest.warns(UserWarning, match=rf"the question has \d+ tokens, of which .* reads the first {LIMIT}"):
        long = scorer.text_features(f"{words} {words}")
    if scorer.model.config.model_type == "siglip2":  # whose tokenizer knows no words here
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = scorer.text_features(f"{words} what")
    torch.testing.assert_close(long, cut)


def test_frames_of_a_file_by_a_question(folder, tmp_path):
    write_scenes(tmp_path / "clip.mp4", 40, 10)
    videos = [
        fewtokens.read(tmp_path / "clip.mp4", select="aks(keep=2, rate=4)", question=question, scorer=f"clip:{folder}")
        for question in ("red car", "red car", "what color ?")
    ]
    assert all(len(video) == 2 for video in videos)
    assert torch.equal(videos[0].times, videos[1].times)
    assert videos[0].reading["scorer"] == f"clip:{folder}" and videos[0].reading["question"] == "red car"


def test_models_without_a_text_tower(tmp_path):
    import transformers as hf

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf.Dinov2Model(hf.Dinov2Config(**small, patch_size=8, image_size=16)).save_pretrained(tmp_path / "dino")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("clip:dino", "dino: a dinov2 has no text tower"),
        ("clip:empty", "no config.json"),
        ("clip:", "scorer must be 'clip:FOLDER'"),
        ("features:", "scorer must be 'clip:FOLDER'"),
        ("blip:x", "scorer must be 'clip:FOLDER'"),
    ):
        kind, _, model = name.partition(":")
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load_scorer(f"{kind}:{tmp_path / model}" if model and kind == "clip" else name)
        assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer(folder, tmp_path):
    import shutil

    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder / file, tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer"):
        TextImageScorer(tmp_path, device="cpu")


def test_novelty_is_one_minus_the_cosine_to_the_frame_before():
    frames = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    frames[3] = frames[2]
    scorer = PixelScorer()
    x = scorer.features(frames)
    scores = scorer.score(small_frames(frames), None, x)
    expected = [0.0] + [1 - float(F.cosine_similarity(x[t], x[t - 1], dim=0)) for t in range(1, 6)]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-6, rtol=0)
    assert scores[0] == 0 and scores[3].abs() < 1e-6 < scores[1]


def test_features_of_an_encoder():
    frames = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    scorer = load_scorer("features:patches")
    assert isinstance(scorer, EncoderScorer) and scorer.id.startswith("features:patches")
    encoder = fewtokens.load_encoder("patches")
    for frame, row in zip(frames, scorer.features(frames), strict=True):
        torch.testing.assert_close(row, encoder(frame[None, None])[0].features[0].mean(0))


def test_an_oracle_scores_by_time():
    frames = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    oracle = Oracle(lambda times: -times)
    assert oracle.score(small_frames(frames), None, None).tolist() == [0, -0.5, -1, -1.5]
    assert oracle.id != Oracle(lambda times: times).id and load_scorer(oracle) is oracle
