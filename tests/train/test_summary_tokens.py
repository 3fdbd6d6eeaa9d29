"""Training summary tokens: the loss is that of the stream, the model stays as it is, and the file gives its answers."""

# The fixtures `parts` and `conversations` are imported.
# ruff: noqa: F811

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.core.kv_memory import SUMMARY, TEXT, Columns, KVSlots, slot_info
from fewtokens.data.qa_sets import read_conversations
from fewtokens.llm import Session, StreamSession, load
from fewtokens.llm.chat import IGNORE_INDEX, encode_turns
from fewtokens.llm.prompts import ComposedProcessor
from fewtokens.train import summary_tokens, video_llm
from fewtokens.train.settings import Settings
from fewtokens.train.summary_tokens import MemoryReader, train_summary_tokens
from fewtokens.train.video_llm import Conversations, Reading, evaluator, make_collate
from fewtokens.video import Video
from tests.llm.test_composed import ANSWERS, QUESTIONS, build, conversations, parts  # noqa: F401

SPEC = "video_xl(3, window=8)"  # of 4 cells per frame
READING = Reading(4, 32)
SETTINGS = Settings(
    batch=3, lr=2e-2, warmup=0, weight_decay=0, workers=0, schedule="constant", log_every=1, steps=12
)  # fmt: skip


@pytest.fixture
def no_curves(monkeypatch) -> None:
    """Drawing takes longer than these runs."""
    for module in (summary_tokens, video_llm):
        monkeypatch.setattr(module, "draw_curves", lambda *arguments, **options: None)


def reader(parts, spec: str = SPEC) -> MemoryReader:
    model = build(parts)
    return MemoryReader(model, ComposedProcessor(parts, model, num_frames=4, read_size=32), spec)


def data(parts, conversations) -> Conversations:
    items = list(read_conversations(conversations / "train.jsonl", None))
    return Conversations(items, READING, build(parts).tokenizer)


def batch(samples, number: int = 3) -> dict:
    made = make_collate(0)([samples[n] for n in range(number)])
    assert not made.pop("broken")
    return made


def test_the_loss_is_that_of_a_stream_token_by_token(parts, conversations):
    """Two conversations of different lengths, one with two turns, against frames pushed to a stream one by one."""
    trained = reader(parts)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    samples = [data(parts, conversations)[n] for n in range(2)]
    turns = [(QUESTIONS[1], ANSWERS[1]), (QUESTIONS[2], ANSWERS[2])]
    samples[1]["line"] = encode_turns(trained.tokenizer, turns)
    stream, losses = trained.stream, []
    for sample, question in zip(samples, (QUESTIONS[0], QUESTIONS[1]), strict=True):
        ids, labels = sample["line"]
        session = StreamSession(stream.model, stream.processor, SPEC)
        session._kv.runtime.use(trained.summaries)
        for frame in sample["pixel_values_videos"]:
            session.push(frame[None])
        state, kv = session._state, session._kv
        assert (state.slots.kind == SUMMARY).sum() == 16 // 3
        first, _ = encode_turns(trained.tokenizer, [(question, None)])
        with torch.no_grad():
            logits = kv.prefill(state, question)[-1:]
            _, suffix = kv._text(question, state.layout.grid)
            slots, _, _ = kv.runtime.run(kv._question(state, question), state.slots, first=state.columns)
            slots = KVSlots.concatenate([state.slots, slots])
            for n in range(len(first), len(ids)):
                if labels[n] != IGNORE_INDEX:
                    losses.append(-logits[-1].log_softmax(-1)[ids[n]])
                column = Columns(kv.runtime.embed(ids[n : n + 1]), slot_info(TEXT, 1))
                new, hidden, _ = kv.runtime.run(column, slots, first=state.columns + len(suffix) + n - len(first))
                slots, logits = KVSlots.concatenate([slots, new]), kv.runtime.logits(hidden)
    together = make_collate(0)(samples)
    together.pop("broken")
    assert len(losses) == 2 + 2 + 3
    torch.testing.assert_close(trained(**together), torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_only_summary_tokens_are_trained(parts, conversations, tmp_path):
    """The loss falls, the model is unchanged, and a session with the file answers as the network that was trained."""
    trained, samples = reader(parts), data(parts, conversations)
    model = trained.stream.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate = evaluator(samples.items, READING, answer=MemoryReader.answer)
    report = train_summary_tokens(trained, samples, SETTINGS, tmp_path, evaluate=evaluate, device="cpu")
    losses = [line["loss"] for line in report.metrics if "loss" in line]
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (tmp_path / "curves.png").is_file() and 0 <= report.scores["exact_match"] <= 100
    assert (tmp_path / "state.safetensors").stat().st_size < 4 * (
        tmp_path / "summary_tokens.safetensors"
    ).stat().st_size

    spec = trained.spec(tmp_path / "summary_tokens.safetensors")
    assert spec == f"video_xl(ratio=3, window=8, checkpoint={str(tmp_path / 'summary_tokens.safetensors')!r})"
    processor = trained.stream.processor
    session = Session(model, processor, spec)
    frames = samples[0]["pixel_values_videos"]
    answer = session.ask(Video(frames, torch.arange(4.0)), QUESTIONS[0], 32).text
    assert [answer] == trained.answer(frames[None], QUESTIONS[:1])
    # Training goes on from a file.
    again = reader(parts, spec)
    with torch.no_grad():
        loss = trained(**batch(samples))
        assert torch.equal(again(**batch(samples)), loss)
        assert float(reader(parts)(**batch(samples))) > float(loss) + 0.1


def test_a_resumed_run_equals_an_uninterrupted_one(parts, conversations, tmp_path, no_curves):
    samples = data(parts, conversations)
    short = replace(SETTINGS, steps=3, batch=1)
    train_summary_tokens(reader(parts), samples, short, tmp_path / "whole", device="cpu")
    train_summary_tokens(reader(parts), samples, replace(short, steps=1), tmp_path / "parts", device="cpu")
    with pytest.warns(UserWarning, match="resumed at step 1/3"):
        report = train_summary_tokens(reader(parts), samples, short, tmp_path / "parts", device="cpu")
    assert report.resumed_at == 1
    whole, resumed = (load_file(tmp_path / name / "summary_tokens.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_half_precision(parts, conversations, tmp_path, no_curves):
    half = replace(SETTINGS, steps=4, precision="bf16")
    report = train_summary_tokens(reader(parts), data(parts, conversations), half, tmp_path, device="cpu")
    losses = [line["loss"] for line in report.metrics]
    assert losses[-1] < losses[0]


def test_errors(parts, conversations, tmp_path):
    for spec in ("ring_cache(cap=8)", "mean_pool(keep=4)", "mean_pool(keep=4) | video_xl"):
        with pytest.raises(ValueError, match="is not one memory with summary tokens"):
            reader(parts, spec)
    samples = data(parts, conversations)
    for few in ("video_xl(17)", "video_xl(8, window=99, attention='step_expansion')"):
        with pytest.raises(ValueError, match="leaves no summary token of these videos; use more frames"):
            reader(parts, few)(**batch(samples))
    for name in ("checkpointing", "compile", "shard"):
        with pytest.raises(ValueError, match=f"without {name}; use --set {name}=false"):
            train_summary_tokens(reader(parts), samples, replace(SETTINGS, **{name: True}), tmp_path)
    inside = build(parts, "videollm_mod(keep=0.5)")
    with pytest.raises(ValueError, match="methods inside its language model, which video_xl would skip"):
        MemoryReader(inside, ComposedProcessor(parts, inside), SPEC)


def test_the_command(parts, conversations, tmp_path, no_curves):
    def run(*arguments, code=0):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        assert done.exit_code == code and "Traceback" not in done.output, done.output
        return done

    def train(*arguments, code=0):
        listing = conversations / "train.jsonl"
        common = ("--data", listing, "--batch", 3, "--set", "workers=0", "--device", "cpu")
        return run("train", "video-llm", *common, *arguments, code=code)

    base, few = tmp_path / "run" / "model", tmp_path / "few"
    few_frames = ("--frames", 4, "--size", 32)
    train(*few_frames, "--encoder", parts / "vit", "--llm", parts / "llm", "--pool", 2, "--set", "steps=1",
          "--out", tmp_path / "run")  # fmt: skip
    memory = ("--from", base, "--objective", "video_xl", "--set", "steps=2")
    start = (*few_frames, *memory)
    chosen = ("--with", SPEC, "--out", few)
    dry = train(*start, *chosen, "--dry-run", "--json")
    assert list(json.loads(dry.stdout)["parameters"]) == ["summaries"]
    done = train(*start, *chosen, "--val", conversations / "train.jsonl")
    spec = f"video_xl(ratio=3, window=8, checkpoint={str(few / 'summary_tokens.safetensors')!r})"
    assert f'fewtokens ask VIDEO QUESTION --model {base} --with "{spec}"' in done.stdout
    assert "exact match" in done.stdout and not (few / "model").exists()
    video = conversations / "0.mp4"
    told = run("ask", video, QUESTIONS[0], "--model", base, "--with", spec, "--device", "cpu", "--json")
    answer = Session(*load(base, "cpu"), spec).ask(video, QUESTIONS[0])
    assert json.loads(told.stdout)["answers"][0]["answer"] == answer.text
    other = train(*memory, "--frames", 6, "--size", 32, "--with", SPEC, "--out", tmp_path / "six")
    assert f"--model {base} --frames 6 --with" in other.stdout
    again = train(*start, *chosen, "--val", conversations / "train.jsonl", "--json")
    assert json.loads(again.stdout)["resumed_at"] == 2 and json.loads(again.stdout)["spec"] == spec

    out = ("--out", tmp_path / "x")
    for arguments, message in (
        ((*few_frames, "--objective", "video_xl", "--with", "video_xl"), "--objective video_xl requires --from"),
        (start, "--objective video_xl requires --with, a memory with summary tokens"),
        ((*start, "--with", "mean_pool(keep=4)"), "is not one memory with summary tokens"),
        ((*start, "--with", "mean_pool(keep=4) | video_xl"), "is not one memory with summary tokens"),
        ((*start, "--with", "video_xl(99)"), "leaves no summary token of these videos"),
        ((*start, "--with", "video_xl", "--lora", 4), "--lora has no effect on summary tokens"),
        ((*memory, "--with", "video_xl", "--size", 64), "reads frames of 32 pixels; use --size 32"),
        ((*start, "--with", "video_xl", "--set", "checkpointing=true"), "use --set checkpointing=false"),
        ((*start, "--with", "video_xl", "--llm", parts / "llm"), "--llm has no effect with --from"),
    ):
        assert message in " ".join(train(*arguments, *out, code=2).output.split())
