"""Questions about videos with a saved model: every family, one encoding, streaming, errors."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fewtokens.llm import Session, attach, compress, find, load
from fewtokens.llm import session as session_module
from fewtokens.llm.chat import check_question
from fewtokens.llm.clock import STAGES
from fewtokens.llm.session import VideoPart, video_key
from fewtokens.selection import PixelScorer
from fewtokens.video import read, synthetic, write
from tests.llm.saved import SPECIALS, save
from tests.llm.tiny import FAMILIES

CLIP = synthetic("static", frames=8, size=(64, 96))
FIRST, SECOND = "what happens", "how many people are there"
FEW = "kmeans(keep=5)"


@cache
def loaded(family: str):
    folder = Path(mkdtemp())
    try:
        return load(save(family, folder), device="cpu")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save("qwen2_vl", tmp_path_factory.mktemp("models") / "qwen2_vl")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_that_of_compress_and_generate(family):
    model, processor = loaded(family)
    inputs = processor(model, CLIP, FIRST)
    for spec, options in ((FEW, {}), (None, {}), (FEW, {"layout": "collapse", "positions": "keep"})):
        pieces: list[str] = []
        answer = Session(model, processor, spec, 8, **options).ask(CLIP, FIRST, 6, pieces.append)
        compressed = compress(
            model, inputs, spec or "", items=[[("video", 8)]] if processor.backend.needs_items else None, **options
        )
        with torch.no_grad():
            out = model.generate(**compressed.inputs, max_new_tokens=6, do_sample=False)
        length = compressed.inputs["input_ids"].shape[1]
        assert answer.text == processor.tokenizer.decode(out[0, length:], skip_special_tokens=True)
        assert len(pieces) > 1 or family == "llava_next_video"  # whose output is only special tokens
        assert "".join(pieces) == answer.text
        assert answer.prompt_tokens == length and answer.new_tokens == 6
        assert answer.cells == compressed.tokens[0].grid.cells
        assert answer.tokens == (5 if spec else answer.cells)
        assert set(answer.seconds) == set(STAGES) and min(answer.seconds.values()) > 0
        assert answer.first_token == pytest.approx(sum(answer.seconds.values())) and answer.speed > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_model_gives_the_full_answer(family):
    model, processor = loaded(family)
    inputs = processor(model, CLIP, FIRST)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    text = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert Session(model, processor).ask(CLIP, FIRST, 6).text == text


def count_calls(monkeypatch) -> list[str]:
    calls: list[str] = []
    for name in ("encode_visuals", "reduce_visuals"):
        real = getattr(session_module, name)
        monkeypatch.setattr(
            session_module,
            name,
            lambda *args, _real=real, _name=name, **more: calls.append(_name) or _real(*args, **more),
        )
    return calls


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "smolvlm"])
def test_several_questions_encode_once(family, monkeypatch):
    model, processor = loaded(family)
    alone = Session(model, processor, FEW, 8).ask(CLIP, SECOND, 6)
    calls = count_calls(monkeypatch)
    session = Session(model, processor, FEW, 8)
    session.ask(CLIP, FIRST, 6)
    second = session.ask(CLIP, SECOND, 6)
    assert calls == ["encode_visuals", "reduce_visuals"]
    assert second.text == alone.text and second.prompt_tokens == alone.prompt_tokens
    assert second.seconds["decode"] == second.seconds["encode"] == 0
    full = session.unreduced().ask(CLIP, SECOND, 6)
    assert calls == ["encode_visuals", "reduce_visuals", "reduce_visuals"]
    assert full.tokens == full.cells and full.seconds["encode"] == 0


def test_a_method_that_reads_the_question_reduces_for_each(monkeypatch):
    model, processor = loaded("qwen2_vl")
    session = Session(model, processor, FEW, 8)
    session.per_question = True
    calls = count_calls(monkeypatch)
    session.ask(CLIP, FIRST, 2)
    session.ask(CLIP, SECOND, 2)
    assert calls == ["encode_visuals", "reduce_visuals", "reduce_visuals"]


def test_features_of_kept_patches_are_not_those_of_all(monkeypatch):
    model, processor = loaded("qwen2_vl")
    clip = synthetic("shapes", frames=8, size=(64, 96), seed=1)
    session = Session(model, processor, "visual_words(keep=0.5)", 8)
    calls = count_calls(monkeypatch)
    few = session.ask(clip, FIRST, 2)
    session.ask(clip, SECOND, 2)
    full = session.unreduced().ask(clip, FIRST, 2)
    assert calls.count("encode_visuals") == 2
    assert 2 * few.tokens == few.cells == full.tokens == full.cells
    before, after = Session(model, processor, "", 8), session
    assert full.text == before.ask(clip, FIRST, 2).text
    kept, everything = (
        next(iter(each._encoded.values())).encoded["video"].visuals[0].features for each in (after, before)
    )
    assert kept.shape == everything.shape and not torch.equal(kept, everything)


def test_a_part_of_a_file(tmp_path):
    model, processor = loaded("qwen2_vl")
    path = write(tmp_path / "clip.mp4", synthetic("shapes", frames=24, size=(64, 96), seed=1).frames, 8)
    session, alone = Session(model, processor, FEW, 8), Session(model, processor, FEW, 8)
    part = session.ask(VideoPart(path, 1.0, 2.0), FIRST, 6)
    expected = alone.ask(read(path, frames=8, start=1.0, end=2.0, size=processor.read_size), FIRST, 6)
    assert (part.text, part.cells) == (expected.text, expected.cells)
    assert session.ask(VideoPart(path, 1.0, 2.0), SECOND, 2).seconds["encode"] == 0
    whole, other = session.ask(path, FIRST, 2), session.ask(VideoPart(path, 2.0), FIRST, 2)
    assert whole.seconds["encode"] > 0 and other.seconds["encode"] > 0


def test_what_was_reduced_leaves_with_its_video():
    """Frames in memory are known by their id, which another object may get later."""
    model, processor = loaded("qwen2_vl")
    session = Session(model, processor, FEW, 8, cache_size=1)
    session.ask(CLIP, FIRST, 2)
    assert len(session._reduced) == 1
    session.unreduced().ask(synthetic("pan", frames=8, size=(64, 96)), FIRST, 2)
    assert len(session._encoded) == 1 and not session._reduced


def test_recent_videos_are_cached_and_changed_files_reread(tmp_path, monkeypatch):
    model, processor = loaded("qwen2_vl")
    session = Session(model, processor, "rlt(0.1)", 8, cache_size=2)
    paths = [
        write(tmp_path / f"{seed}.mp4", synthetic("shapes", size=(64, 96), seed=seed).frames, 8) for seed in range(3)
    ]
    calls = count_calls(monkeypatch)
    for path in (paths[0], paths[1], paths[0], paths[2], paths[0]):
        session.ask(path, FIRST, 2)
    assert calls.count("encode_visuals") == 3 and len(session._encoded) == len(session._reduced) == 2
    session.ask(paths[1], FIRST, 2)
    assert calls.count("encode_visuals") == 4
    write(paths[1], CLIP.frames, 8)
    session.ask(paths[1], FIRST, 2)
    assert calls.count("encode_visuals") == 5


def test_frames_are_selected_by_the_question(tmp_path, monkeypatch):
    """A relevance selector reads the file again for another question; one that does not read the question does not."""

    class ByLength(PixelScorer):
        id, needs_question = "by length", True

        def score(self, thumbnails, question, features):
            return -(thumbnails.times - len(question) / 10).abs()

    model, processor = loaded("qwen2_vl")
    path = write(tmp_path / "clip.mp4", synthetic("pan", frames=40, size=(64, 96)).frames, 8)
    times: list[list[float]] = []
    real = session_module.read
    monkeypatch.setattr(session_module, "read", lambda *args, **more: _note(real(*args, **more), times))
    by_question = Session(model, processor, FEW, select="aks(keep=4, rate=8)", scorer=ByLength())
    for question in (FIRST, SECOND, FIRST):
        assert by_question.ask(path, question, 2).tokens == 5
    assert len(times) == 2 and times[0] != times[1] and len(times[0]) == 4
    assert 1.25 in times[0] and 2.375 in times[1]  # 12 and 24 characters
    by_time = Session(model, processor, FEW, select="uniform_frames(keep=4)")
    by_time.ask(path, FIRST, 2)
    by_time.ask(path, SECOND, 2)
    assert len(times) == 3
    with pytest.raises(ValueError, match="pass select= or frames= and fps=, not both"):
        Session(model, processor, FEW, 8, select="uniform_frames")


def _note(video, times):
    times.append(video.times.tolist())
    return video


def test_memory_is_less_with_few_tokens():
    model, processor = loaded("llava_onevision")
    session = Session(model, processor, FEW, 8)
    assert session.ask(CLIP, FIRST, 2).memory is None
    few, full = (session.ask(CLIP, FIRST, 2, memory=True).memory for session in (session, session.unreduced()))
    assert 0 < few < full / 3


def test_progress():
    model, processor = loaded("internvl")
    session = Session(model, processor, FEW, 8)
    steps: list[str] = []
    session.progress = steps.append
    session.ask(CLIP, FIRST, 2)
    assert steps == ["reading", "encoding", "reducing", "answering"]


def test_longer_than_the_context():
    model, processor = loaded("llava_onevision")
    session = Session(model, processor, FEW, 8)
    with pytest.raises(
        ValueError, match=r"has 10 tokens .* may have 2040, but the context of this model is 2048; .* smaller keep"
    ):
        session.ask(CLIP, FIRST, 2040)
    session = Session(model, processor, FEW, 8, positions="keep")
    with pytest.raises(ValueError, match=r"reaches position 133 .*'renumber'"):
        session.ask(CLIP, FIRST, 2000)
    assert session.ask(CLIP, FIRST, 2).new_tokens == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": "fastvid(keep=4, attention='probe')"}, "requires a vision tower with an attention-pooling head"),
        ({"spec": "vid_tldr"}, "needs sharpness .* of each block"),
        ({"spec": "nothing_such"}, "nothing_such"),
        ({"layout": "heap"}, "layout must be one of"),
        ({"positions": "none"}, "positions must be one of"),
        ({"cache_size": 0}, "cache_size must be at least 1"),
    ],
)
def test_invalid_sessions(options, message):
    model, processor = loaded("qwen2_vl")
    with pytest.raises(ValueError, match=message):
        Session(model, processor, **options)


def test_invalid_questions():
    session = Session(*loaded("qwen2_vl"), FEW, 8)
    with attach(session.model, FEW), pytest.raises(ValueError, match="already attached to this model"):
        session.ask(CLIP, FIRST)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        session.ask(CLIP, FIRST, 0)
    with pytest.raises(ValueError, match="no such file"):
        session.ask("nowhere.mp4", FIRST)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_with_a_special_token(family):
    model, processor = loaded(family)
    session = Session(model, processor, FEW, 8)
    tokens = {*SPECIALS[family], *processor.specials, "<s>", "</s>", "<pad>", "<unk>"}
    for token in tokens:
        for question in (token, f"what is {token} ?", f"what{token}happens"):
            with pytest.raises(ValueError, match=r"contains .*, which is a special token .* remove it") as caught:
                session.ask(CLIP, question)
            assert token in str(caught.value) and "\n" not in str(caught.value)
    assert not session._encoded  # before any work
    assert session.ask(CLIP, "what is < image > | pad ?", 2).new_tokens == 2


def test_special_tokens_unknown_to_the_tokenizer():
    _, processor = loaded("smolvlm")
    plain = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "<image>": 190, "<IMAGE>": 191}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    with pytest.raises(ValueError, match="contains <image>"):
        check_question(tokenizer, "what is <image>?", processor.specials)
    tokenizer.add_special_tokens({"eos_token": AddedToken("<END>", normalized=True)})
    with pytest.raises(ValueError, match="contains <END>"):
        check_question(tokenizer, "a <END>")
    check_question(tokenizer, "a b <end")


def test_load(folder):
    model, processor = load(folder, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa" and not model.training
    assert Session(model, processor, "rlt(0.1)", 8).ask(CLIP, FIRST, 2).new_tokens == 2
    assert find(folder)[2].name == "qwen2_vl"


def copy_without(folder: Path, target: Path, *names: str) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*names))
    return target


def test_folders_that_cannot_be_loaded(folder, tmp_path):
    def refused(where: Path, message: str, **options: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load(where, **{"device": "cpu", **options})
        assert "\n" not in str(caught.value)

    refused(copy_without(folder, tmp_path / "a", "*.safetensors"), "no weights")
    refused(copy_without(folder, tmp_path / "b", "config.json"), "no config.json")
    refused(copy_without(folder, tmp_path / "c", "tokenizer*"), "cannot load the tokenizer|has no token")
    refused(tmp_path / "nowhere", "no such folder")
    refused(folder, "dtype must be one of", dtype="int8")
    other = tmp_path / "d"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    refused(other, "no video language model of type 'qwen2'; supported types: composed, internvl, .*llava_onevision")
    (other / "config.json").write_text("{")
    refused(other, "cannot")


def test_missing_weights_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    target = copy_without(folder, tmp_path / "a")
    tensors = load_file(target / "model.safetensors")
    del tensors[next(name for name in tensors if "layers.0" in name)]
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing"):
        load(target, device="cpu")


def test_a_folder_whose_images_were_renamed_is_another_video(tmp_path):
    for name, value in (("a.bmp", 0), ("b.bmp", 255)):
        Image.new("RGB", (8, 8), (value, value, value)).save(tmp_path / name)
    before = video_key(tmp_path)
    assert video_key(tmp_path) == before
    (tmp_path / "a.bmp").rename(tmp_path / "c.bmp")
    (tmp_path / "b.bmp").rename(tmp_path / "a.bmp")
    (tmp_path / "c.bmp").rename(tmp_path / "b.bmp")
    assert video_key(tmp_path) != before
