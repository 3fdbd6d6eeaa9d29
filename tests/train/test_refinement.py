"""Training by a model's own answers: labels of frames, rewards, log-probabilities, and that both learn."""

# The fixtures `parts` and `conversations` are imported.
# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.data.qa_sets import Conversation
from fewtokens.llm import ModelScorer, load
from fewtokens.llm.composed import build_video_llm
from fewtokens.llm.prompts import ComposedProcessor
from fewtokens.train import refinement
from fewtokens.train.loop import fit
from fewtokens.train.refinement import QuestionClips, SelfRefinement, TeacherReward, collate_clips, log_chances, rewards
from fewtokens.train.settings import Settings
from fewtokens.train.video_llm import Reading
from fewtokens.video.footage import SmallFrames
from tests.llm import saved
from tests.llm.test_composed import ANSWERS, QUESTIONS, conversations, parts  # noqa: F401

SETTINGS = Settings(batch=4, lr=5e-3, warmup=0, weight_decay=0, workers=0, schedule="constant", log_every=5, steps=40)


@pytest.fixture(scope="module")
def words(parts, tmp_path_factory) -> Path:
    """The parts with a tokenizer that knows yes and no."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("words")
    tokenizer = AutoTokenizer.from_pretrained(parts / "llm")
    tokenizer.add_tokens(["yes", "no"])
    llm = AutoModelForCausalLM.from_pretrained(parts / "llm")
    llm.resize_token_embeddings(len(tokenizer))
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return folder


def build(parts, words, spec: str = ""):
    torch.manual_seed(0)
    model = build_video_llm(parts / "vit", words / "llm", spec=spec, pool=2, device="cpu")
    return model, ComposedProcessor(words, model, num_frames=4, read_size=32)


class Clips(torch.utils.data.Dataset):
    """Clips of bright and dark frames, with a question whose answer is "up"."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, key):
        number = key[1] if isinstance(key, tuple) else key
        generator = torch.Generator().manual_seed(number)
        bright = torch.arange(4)[torch.randperm(4, generator=generator)] < 2
        frames = torch.randint(0, 60, (4, 3, 32, 32), generator=generator) + 190 * bright[:, None, None, None]
        return {"frames": frames.to(torch.uint8), "question": QUESTIONS[1], "answer": "Up."}


def brightness(model, processor, inputs, max_new_tokens):
    """The answers of a model that sees what the answer is in bright frames."""
    return ["up" if frames.float().mean() > 128 else "three" for frames in inputs["pixel_values_videos"]]


def small_frames(frames):
    index = torch.arange(len(frames))
    return SmallFrames(index / 2, index.numpy(), 32, lambda part, size: frames[torch.from_numpy(part)])


class TestSelfRefinement:
    def test_the_localizer_learns_which_frames_suffice(self, parts, words, tmp_path, monkeypatch):
        """Afterwards, the scorer of `ask --scorer model` prefers the frames from which the answerer was right."""
        model, processor = build(parts, words)
        answerer, _ = build(parts, words)
        before = {name: value.clone() for name, value in answerer.state_dict().items()}
        monkeypatch.setattr(refinement, "write_answers", brightness)
        report = fit(
            model, SelfRefinement(answerer, processor, frames=3), Clips(), SETTINGS, tmp_path, collate=collate_clips,
            device="cpu",
        )  # fmt: skip
        assert report.metrics[-1]["agreement"] > 0.9 > report.metrics[0]["agreement"]
        assert 0.2 < report.metrics[-1]["right"] < 0.8
        sample = Clips()[99]
        scores = ModelScorer(model.eval(), processor, size=32).score(small_frames(sample["frames"]), QUESTIONS[1], None)
        bright = sample["frames"].float().mean((1, 2, 3)) > 128
        assert float(scores[bright].min()) > 0.5 > float(scores[~bright].max())
        assert all(torch.equal(value, before[name]) for name, value in answerer.state_dict().items())

    @pytest.mark.parametrize("family", ["composed", "llava_onevision", "qwen2_vl"])
    def test_labels_are_the_answers_to_each_frame_alone(self, family, parts, words, tmp_path, monkeypatch):
        if family == "composed":
            model, processor = build(parts, words, "uniform(keep=2)")
        else:
            monkeypatch.setattr(saved, "WORDS", (*saved.WORDS, "yes", "no"))
            model, processor = load(saved.save(family, tmp_path), device="cpu")
        model.eval()
        frames = torch.cat([Clips()[n]["frames"] for n in range(2)])[:5]
        refine = SelfRefinement(model, processor, max_new_tokens=4)
        told = []
        for frame in frames:
            inputs = processor(model, refinement.clip_of(frame[None]), QUESTIONS[1])
            if family == "composed":
                told += model.answer(inputs, max_new_tokens=4)
                continue
            out = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            told += processor.tokenizer.batch_decode(out, skip_special_tokens=True)
        expected = [text if n % 2 else text + " no" for n, text in enumerate(told)]
        assert refine.labels(frames, [QUESTIONS[1]] * 5, expected).tolist() == [False, True, False, True, False]
        model.requires_grad_(True)
        batch = collate_clips([Clips()[0], Clips()[1]])
        loss, numbers = refine(model, batch, torch.Generator().manual_seed(0))
        loss.backward()
        assert loss.item() > 0 and 0 <= float(numbers["right"]) <= 1
        assert any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)

    def test_errors(self, parts, words):
        model, processor = build(parts, words)
        with pytest.raises(ValueError, match="frames and max_new_tokens"):
            SelfRefinement(model, processor, frames=0)
        other, without = build(parts, parts)
        with pytest.raises(ValueError, match="no token for 'yes'"):
            SelfRefinement(other, without)


class TestTeacherReward:
    def test_rewards(self):
        """r = correct + bonus * [right and the teacher right]."""
        correct = torch.tensor([[True, False, True], [True, False, False]])
        found = rewards(correct, torch.tensor([True, False]), 0.5)
        assert found.tolist() == [[1.5, 0, 1.5], [1, 0, 0]]
        # Divided by the standard deviation of its group, the bonus would make no difference.
        plain = rewards(correct, torch.tensor([False, False]), 0.5)
        scaled = [(r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True) for r in (found, plain)]
        torch.testing.assert_close(*scaled)

    @pytest.mark.parametrize("spec", ["", "marc(1, by='typical')"])
    def test_log_probabilities_token_by_token(self, parts, words, spec):
        model, processor = build(parts, words, spec)
        model.eval()
        clips = [refinement.clip_of(Clips()[n]["frames"]) for n in range(2)]
        inputs = processor(model, clips, [QUESTIONS[0], QUESTIONS[1] + " up"])  # of different lengths
        ids = torch.tensor([[5, 7, 2, 0], [6, 8, 9, 4]])  # 2 ends the first
        with torch.no_grad():
            found = log_chances(model, processor, inputs, ids, 0.7)
            for b, length in ((0, 3), (1, 4)):
                chances = []
                for n in range(length):
                    one = processor(model, clips[b], [QUESTIONS[0], QUESTIONS[1] + " up"][b])
                    one["input_ids"] = torch.cat([one["input_ids"], ids[b : b + 1, :n]], 1)
                    one["attention_mask"] = torch.ones_like(one["input_ids"])
                    logits = model(**one).logits[0, -1] / 0.7
                    chances.append(float(logits.log_softmax(0)[ids[b, n]]))
                assert float(found[b]) == pytest.approx(sum(chances) / length, abs=1e-5)

    def test_right_answers_become_more_likely(self, parts, words, tmp_path, monkeypatch):
        """A model that answers "up" or "three" by chance learns to answer "up" with one token per event."""
        model, processor = build(parts, words, "marc(1, by='typical')")
        teacher, _ = build(parts, words)
        told = ["three", "up", "UP", "three"]
        monkeypatch.setattr(refinement, "write_answers", lambda *arguments: told)
        ids = processor.tokenizer("up three", add_special_tokens=False)["input_ids"]
        end = processor.tokenizer.eos_token_id
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
        batch = collate_clips([Clips()[n] for n in range(4)])
        inputs = processor(model, [refinement.clip_of(frames) for frames in batch["frames"]], batch["question"])
        answers = torch.tensor([[ids[n % 2], end] for n in range(4)])
        for _ in range(40):
            optimizer.zero_grad()
            (-log_chances(model, processor, inputs, answers, 1.0).mean()).backward()
            optimizer.step()

        def chance():
            with torch.no_grad():
                up = torch.tensor([[ids[0], end]] * 4)
                return float((2 * log_chances(model.eval(), processor, inputs, up, 1.0)).exp().mean())

        before = chance()
        settings = Settings(**{**SETTINGS.__dict__, "steps": 15, "lr": 3e-3})
        report = fit(
            model, TeacherReward(teacher, processor, max_new_tokens=2), Clips(), settings, tmp_path,
            collate=collate_clips, device="cpu",
        )  # fmt: skip
        assert 0.2 < before < 0.8 and chance() > before + 0.15
        assert report.metrics[-1]["right"] > report.metrics[0]["right"] and report.metrics[0]["teacher"] == 0.5

    def test_errors(self, parts, words):
        model, processor = build(parts, words)
        for wrong in ({"group": 1}, {"bonus": -1.0}, {"temperature": 0.0}, {"max_new_tokens": 0}):
            with pytest.raises(ValueError, match="group must be at least 2"):
                TeacherReward(model, processor, **wrong)


def test_unreadable_videos_are_reported(parts, conversations):
    model, _ = build(parts, parts)
    items = [Conversation(str(n), conversations / f"{n}.mp4", ((QUESTIONS[0], "up"),)) for n in (0, 99)]
    items.append(Conversation("s", conversations / "0.mp4", (("it </s>", "up"),)))
    clips = QuestionClips(items, Reading(4, 32), model.tokenizer)
    batch = collate_clips([clips[0, n] for n in range(3)])
    assert batch["frames"].shape == (1, 4, 3, 32, 32) and batch["question"] == [QUESTIONS[0]]
    assert len(batch["broken"]) == 2 and "special token" in batch["broken"][1]


def test_the_command(parts, words, conversations, tmp_path):
    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["train", "video-llm", *map(str, arguments)])
        assert done.exit_code == code and "Traceback" not in done.output, done.output
        return done

    common = ("--data", conversations / "train.jsonl", "--frames", 4, "--size", 32, "--set", "workers=0",
              "--device", "cpu", "--set", "steps=1", "--batch", 2)  # fmt: skip
    model = tmp_path / "run" / "model"
    llm = words / "llm"
    run(*common, "--encoder", parts / "vit", "--llm", llm, "--pool", 2, "--out", tmp_path / "run")
    for objective, more in (("marc", ("--with", "marc(events=1)")), ("sevila", ()), ("answers", ())):
        done = run(*common, "--from", model, "--objective", objective, *more, "--out", tmp_path / objective, "--json")
        assert json.loads(done.stdout)["steps"] == 1
        assert (tmp_path / objective / "model" / "config.json").is_file()
    out = ("--out", tmp_path / "x")
    for arguments, message in (
        (("--objective", "marc", "--with", "marc"), "--objective marc requires --from"),
        (("--from", model, "--objective", "marc"), "requires --with"),
        (("--from", model, "--objective", "other"), "--objective must be answers, sevila, marc or video_xl"),
        (("--from", model, "--encoder", parts / "vit"), "--encoder has no effect with --from"),
        (("--encoder", parts / "vit"), "give --encoder and --llm, or --from"),
        (("--from", tmp_path / "none"), "none"),
    ):
        assert message in run(*common, *arguments, *out, code=2).output.replace("\n", " ")
