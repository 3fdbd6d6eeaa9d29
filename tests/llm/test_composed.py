"""A composed video language model: its inputs of the language model, training, saving, loading and questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.core.tokens import Tokens
from fewtokens.data.qa_sets import Conversation
from fewtokens.llm.chat import IGNORE_INDEX, VIDEO_MARKER, collate_turns, encode_turns
from fewtokens.llm.composed import ComposedVideoLLM, build_video_llm, is_video_llm, load_video_llm
from fewtokens.llm.load import VideoLLM
from fewtokens.train.loop import fit
from fewtokens.train.settings import Settings
from fewtokens.train.video_llm import Conversations, Reading, add_lora, answer_loss
from fewtokens.video import read, synthetic, write

QUESTIONS = ("which digit is it", "where does it go", "what is in the video")
ANSWERS = ("three", "up", "a digit")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a tiny DINOv2 and a tiny Llama with its tokenizer, with random weights."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("parts")
    tokenizer_model = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer_model.pre_tokenizer = pre_tokenizers.Whitespace()
    special = trainers.WordLevelTrainer(special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer_model.train_from_iterator([*QUESTIONS, *ANSWERS, "USER : ASSISTANT :"], special)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_model, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    hf.Dinov2Model(
        hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    ).save_pretrained(folder / "vit")
    hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(folder / "llm")  # fmt: skip
    tokenizer.save_pretrained(folder / "llm")
    return folder


def build(parts, spec: str = "", **options) -> ComposedVideoLLM:
    torch.manual_seed(0)
    return build_video_llm(parts / "vit", parts / "llm", spec=spec, pool=2, device="cpu", **options)


def batch(model: ComposedVideoLLM, count: int = 3, frames: int = 4) -> dict:
    lines = [encode_turns(model.tokenizer, [(q, a)]) for q, a in zip(QUESTIONS, ANSWERS, strict=True)][:count]
    clips = torch.randint(0, 255, (count, frames, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return collate_turns(lines, 0) | {"pixel_values_videos": clips.to(torch.uint8)}


class TestTurns:
    def test_only_answers_have_labels(self, parts):
        tokenizer = build(parts).tokenizer
        ids, labels = encode_turns(tokenizer, [(QUESTIONS[0], ANSWERS[2]), (QUESTIONS[1], ANSWERS[1])])
        assert (ids == VIDEO_MARKER).sum() == 1
        answer_ids = ids[labels != IGNORE_INDEX]
        assert tokenizer.decode(answer_ids).split() == ["a", "digit", "</s>", "up", "</s>"]
        assert torch.equal(labels[labels != IGNORE_INDEX], answer_ids)
        question_ids, no_labels = encode_turns(tokenizer, [(QUESTIONS[0], None)])
        assert torch.equal(question_ids, ids[: len(question_ids)])
        assert bool((no_labels == IGNORE_INDEX).all())

    def test_a_chat_template(self, parts):
        tokenizer = build(parts).tokenizer
        tokenizer.chat_template = (
            "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<s>assistant: {% endif %}"
        )
        ids, labels = encode_turns(tokenizer, [(QUESTIONS[0], ANSWERS[2]), (QUESTIONS[1], ANSWERS[1])])
        assert tokenizer.decode(ids[labels != IGNORE_INDEX]).split() == ["a", "digit", "</s>", "up", "</s>"]
        tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
        with pytest.raises(ValueError, match="conversations of one turn"):
            encode_turns(tokenizer, [(QUESTIONS[0], ANSWERS[2]), (QUESTIONS[1], ANSWERS[1])])

    def test_special_tokens(self, parts):
        tokenizer = build(parts).tokenizer
        for number, question in enumerate(("where </s> to", "<s>", "is <pad> it")):
            turns = [(QUESTIONS[0], ANSWERS[0])] * number + [(question, None)]
            with pytest.raises(ValueError, match="which is a special token"):
                encode_turns(tokenizer, turns)
        # In a question, the marker of the video's position is ordinary text.
        ids, _ = encode_turns(tokenizer, [(QUESTIONS[0], ANSWERS[0]), ("<<the video>> it", None)])
        assert (ids == VIDEO_MARKER).sum() == 1 and int((ids == VIDEO_MARKER).nonzero()[0]) < 5

    def test_conversations_with_special_tokens_are_excluded_from_training(self, parts, conversations):
        tokenizer = build(parts).tokenizer
        items = [
            Conversation(str(n), conversations / f"{n}.mp4", ((question, "up"),))
            for n, question in enumerate(("it </s>", "it"))
        ]
        samples = [Conversations(items, Reading(4, 32), tokenizer)[number] for number in range(2)]
        assert "special token" in samples[0]["broken"] and "line" in samples[1]


class TestEmbedding:
    @pytest.mark.parametrize("left", [False, True])
    @pytest.mark.parametrize("positions", ["keep", "renumber"])
    def test_columns_by_loops(self, parts, left, positions):
        model = build(parts, "kmeans(criterion='silhouette', k_min=2, k_max=7)", positions=positions)
        inputs = batch(model)
        lines = [encode_turns(model.tokenizer, [(q, a)]) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
        inputs |= collate_turns(lines, 0, left=left)
        short = model.compress(inputs)
        embedded = model.embed(short.inputs)
        embed = model.llm.get_input_embeddings()
        for b, (ids, labels) in enumerate(lines):
            rows, expected_labels, expected_positions = [], [], []
            at = 0
            for id, label in zip(ids.tolist(), labels.tolist(), strict=True):
                if id == VIDEO_MARKER:
                    tokens = short.tokens[b]
                    for n in range(tokens.N):
                        rows.append(tokens.features[0, n])
                        expected_labels.append(IGNORE_INDEX)
                        t, y, x = tokens.positions[0, n].round().long().tolist()
                        expected_positions.append(at + (n if positions == "renumber" else (t * 2 + y) * 2 + x))
                    at += tokens.N if positions == "renumber" else tokens.grid.cells
                else:
                    rows.append(embed(torch.tensor(id)))
                    expected_labels.append(label)
                    expected_positions.append(at)
                    at += 1
            real = embedded["attention_mask"][b].bool()
            assert int(real.sum()) == len(rows)
            assert bool(real[-1 if left else 0])
            torch.testing.assert_close(embedded["inputs_embeds"][b, real], torch.stack(rows))
            assert embedded["labels"][b, real].tolist() == expected_labels
            assert embedded["position_ids"][b, real].tolist() == expected_positions

    def test_single_prompts_equal_a_batch(self, parts):
        model = build(parts, "kmeans(criterion='silhouette', k_min=2, k_max=7)").eval()
        inputs = batch(model)
        ids = model.encode_questions(QUESTIONS)
        together = model.answer(ids | {"pixel_values_videos": inputs["pixel_values_videos"]}, max_new_tokens=4)
        for b, question in enumerate(QUESTIONS):
            alone = model.answer(
                model.encode_questions([question]) | {"pixel_values_videos": inputs["pixel_values_videos"][b : b + 1]},
                max_new_tokens=4,
            )
            assert alone == [together[b]]

    def test_encoded_cells_give_the_same_loss(self, parts):
        model = build(parts, "scissor(keep=5)").eval()
        inputs = batch(model)
        cells, grid = model.cells(inputs["pixel_values_videos"])
        assert grid.shape == (4, 2, 2)
        encoded = {name: value for name, value in inputs.items() if name != "pixel_values_videos"} | {
            "video_cells": cells,
            "video_grid": grid,
        }
        assert torch.equal(model(**inputs).loss, model(**encoded).loss)

    def test_cues_of_encoded_cells(self, parts):
        model = build(parts, "visionzip(keep=5)").eval()
        inputs = batch(model)
        frames = inputs.pop("pixel_values_videos")
        cells, grid = model.cells(frames)
        _, cues = model.video_encoder(frames, needs=("attention", "keys"))
        # A cue of a cell is the mean over its 2 x 2 patches.
        pooled = {
            name: cue.reshape(3, 4, 2, 2, 2, 2, -1).mean((3, 5)).reshape(3, 16, *cue.shape[2:])
            for name, cue in cues.items()
        }
        encoded = inputs | {"video_cells": cells, "video_grid": grid}
        expected = model(**inputs, pixel_values_videos=frames).loss
        assert torch.equal(model(**encoded, video_cues=pooled).loss, expected)
        with pytest.raises(ValueError, match="methods that read keys require the frames"):
            model(**encoded, video_cues={"attention": pooled["attention"]})

    def test_pooling_is_a_pixel_shuffle(self, parts):
        model = build(parts)
        inputs = batch(model)
        cells, _ = model.cells(inputs["pixel_values_videos"])
        unpooled = model.video_encoder(inputs["pixel_values_videos"])[0].features.reshape(3, 4, 4, 4, 16)
        block = unpooled[1, 2, 2:4, 0:2].reshape(-1)
        torch.testing.assert_close(cells[1, 2 * 4 + 1 * 2 + 0], block)
        with pytest.raises(ValueError, match="cannot be pooled by 2"):
            model.cells(torch.zeros(1, 2, 3, 24, 24, dtype=torch.uint8))

    def test_an_untrained_pvc_has_the_logits_of_average_pooling(self, parts):
        pooled, progressive = (build(parts, spec).eval() for spec in ("spatial_pool(stride=2)", "pvc(2)"))
        inputs = batch(pooled)
        assert [tokens.N for tokens in progressive.compress(inputs).tokens] == [4, 4, 4]
        torch.testing.assert_close(progressive(**inputs).logits, pooled(**inputs).logits, rtol=1e-5, atol=1e-6)

    def test_errors(self, parts):
        with pytest.raises(ValueError, match="provides only the attention received in its last block"):
            build(parts, "visionzip(keep=0.2, attention='class')")
        with pytest.raises(ValueError, match="needs sharpness, which composed models cannot provide"):
            build(parts, "vid_tldr")
        with pytest.raises(ValueError, match="positions must be"):
            build(parts, positions="some")
        with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
            build_video_llm(parts / "vit", parts / "vit", device="cpu")

    def test_positions_of_a_prompt_with_frames_are_refused(self, parts):
        model = build(parts, "token_dynamics(keep=4)")
        inputs = batch(model)
        with pytest.raises(ValueError, match="leave out position_ids in prompts with a video"):
            model(**inputs, position_ids=torch.arange(inputs["input_ids"].shape[1])[None].expand(3, -1))

    def test_a_mask_of_none_is_none(self, parts):
        model = build(parts, "token_dynamics(keep=4)")
        inputs = batch(model, 1)
        expected = model(input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"])
        given = model(
            input_ids=inputs["input_ids"], attention_mask=None, pixel_values_videos=inputs["pixel_values_videos"]
        )
        assert torch.equal(given.logits, expected.logits)
        ids = model.generate(
            inputs["input_ids"],
            attention_mask=None,
            pixel_values_videos=inputs["pixel_values_videos"],
            max_new_tokens=2,
        )
        assert ids.shape[0] == 1


class Items(torch.utils.data.Dataset):
    def __init__(self, model: ComposedVideoLLM) -> None:
        self.inputs = batch(model)
        self.lines = [encode_turns(model.tokenizer, [(q, a)]) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key):
        number = key[1]
        return {"line": self.lines[number], "pixel_values_videos": self.inputs["pixel_values_videos"][number]}


def train(parts, out, steps, *, spec="token_dynamics(keep=4)", rates=None, lora=None):
    from fewtokens.train.video_llm import train_video_llm

    model = build(parts, spec)
    if lora:
        torch.manual_seed(3)
        add_lora(model, lora)
    settings = Settings(steps=steps, batch=3, lr=0.02, warmup=0, weight_decay=0, rates=rates or {}, workers=0,
                        save_every=5, schedule="constant", log_every=5)  # fmt: skip
    report = train_video_llm(model, Items(model), settings, out, device="cpu")
    return model, report


class TestTraining:
    def test_answers_are_memorized(self, parts, tmp_path):
        model, report = train(parts, tmp_path, 60)
        assert report.metrics[-1]["loss"] < 0.1
        model.eval()
        inputs = batch(model)
        assert model.answer(
            model.encode_questions(QUESTIONS) | {"pixel_values_videos": inputs["pixel_values_videos"]}
        ) == list(ANSWERS)
        assert is_video_llm(tmp_path / "model")
        again = load_video_llm(tmp_path / "model", device="cpu")
        assert again.compressor.spec == model.compressor.spec
        assert again.answer(
            again.encode_questions(QUESTIONS) | {"pixel_values_videos": inputs["pixel_values_videos"]}
        ) == list(ANSWERS)
        other = load_video_llm(tmp_path / "model", spec="uniform(keep=4)", device="cpu")
        assert [tokens.N for tokens in other.compress(inputs).tokens] == [4, 4, 4]

    def test_parts_learn_at_their_rates(self, parts, tmp_path):
        before = {
            name: value.detach().clone() for name, value in build(parts, "token_dynamics(keep=4)").named_parameters()
        }
        model, _ = train(parts, tmp_path, 2, rates={"encoder": 0.0, "llm": 0.0})
        for name, value in model.named_parameters():
            frozen = name.startswith(("encoder.", "llm."))
            # The gate is 0 at initialization, so the first step changes only the gate.
            if frozen or not name.startswith("compressor."):
                assert torch.equal(value, before[name]) == frozen, name
        uniform, _ = train(parts, tmp_path / "plain", 1, spec="uniform(keep=4)", rates={"compressor": 2.0})
        assert not torch.equal(uniform.projector[0].weight, before["projector.0.weight"])
        slow, _ = train(parts, tmp_path / "slow", 1, rates={"projector": 0.01})
        fast, _ = train(parts, tmp_path / "fast", 1)
        moved = [(m.projector[0].weight.detach() - before["projector.0.weight"]).abs().mean() for m in (slow, fast)]
        assert float(moved[1] / moved[0]) == pytest.approx(100, rel=0.01)

    def test_an_unknown_part(self, parts, tmp_path):
        with pytest.raises(ValueError, match="the parts of this network are compressor, encoder, llm, projector"):
            train(parts, tmp_path, 1, rates={"head": 1.0})

    def test_resumed_is_bit_equal(self, parts, tmp_path):
        full, _ = train(parts, tmp_path / "whole", 10)
        model = build(parts, "token_dynamics(keep=4)")
        settings = Settings(steps=10, batch=3, lr=0.02, warmup=0, weight_decay=0, workers=0, save_every=5,
                            schedule="constant", log_every=5)  # fmt: skip
        from fewtokens.train.video_llm import make_collate

        class StopError(Exception):
            pass

        def stop(done, total, numbers):
            if done == 6:
                raise StopError

        with pytest.raises(StopError):
            fit(model, answer_loss, Items(model), settings, tmp_path / "cut", collate=make_collate(0), progress=stop,
                device="cpu")  # fmt: skip
        resumed, report = train(parts, tmp_path / "cut", 10)
        assert report.resumed_at == 5
        for (name, expected), actual in zip(full.named_parameters(), resumed.parameters(), strict=True):
            assert torch.equal(expected, actual), name

    def test_adapters(self, parts, tmp_path):
        pytest.importorskip("peft")
        before = build(parts).llm.state_dict()
        model, report = train(parts, tmp_path, 40, lora=4, rates={"encoder": 0.0})
        assert report.metrics[-1]["loss"] < report.metrics[0]["loss"]
        saved = load_video_llm(tmp_path / "model", device="cpu")
        assert saved.llm.state_dict().keys() == before.keys()
        assert not torch.equal(
            saved.llm.model.layers[0].self_attn.q_proj.weight, before["model.layers.0.self_attn.q_proj.weight"]
        )
        assert torch.equal(saved.llm.model.embed_tokens.weight, before["model.embed_tokens.weight"])
        inputs = batch(model)
        torch.testing.assert_close(saved(**inputs).loss, model.eval()(**inputs).loss, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("spec", ["pvc(2)", "vista_llama('2/frame')", "langdc(3, side=1, num_layers=1)"])
    def test_methods_are_trained_and_saved(self, parts, tmp_path, spec):
        model, report = train(parts, tmp_path, 3, spec=spec)
        assert report.steps == 3
        loaded, inputs = load_video_llm(tmp_path / "model", device="cpu"), batch(model)
        assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)

    def test_query_aware_methods_get_gradients(self, parts):
        model = build(parts, "llama_vid")
        inputs = batch(model)
        model(**inputs).loss.backward()
        assert all(p.grad is not None for p in model.compressor.parameters())
        assert all(isinstance(tokens, Tokens) for tokens in model.compress(inputs).tokens)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    lines = []
    for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        clip = synthetic("digits", frames=6, size=(32, 32), seed=number)
        write(folder / f"{number}.mp4", clip.frames, fps=6)
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": str(number), "video": f"{number}.mp4", "conversations": turns}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class TestCommand:
    def run(self, *args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    def test_train_and_fine_tune(self, parts, conversations, tmp_path):
        listing = conversations / "train.jsonl"
        data = (
            "--data",
            listing,
            "--val",
            listing,
            "--frames",
            4,
            "--size",
            32,
            "--set",
            "workers=0",
            "--device",
            "cpu",
        )
        first = ("train", "video-llm", *data, "--encoder", parts / "vit", "--llm", parts / "llm", "--pool", 2,
                 "--out", tmp_path / "run", "--set", "steps=60", "--batch", 3, "--lr", 0.02,
                 "--set", "warmup=0")  # fmt: skip
        dry = self.run(*first, "--dry-run")
        assert dry.exit_code == 0, dry.output
        assert "3 training and 3 test conversations, 60 steps" in dry.output
        done = self.run(*first)
        assert done.exit_code == 0, done.output
        assert "100.0" in done.output
        assert (tmp_path / "run" / "curves.png").is_file()
        second = self.run("train", "token-dynamics", "--model", tmp_path / "run" / "model", *data, "--with",
                          "token_dynamics(keep=4)", "--out", tmp_path / "few", "--set", "steps=3",
                          "--json")  # fmt: skip
        assert second.exit_code == 0, second.output
        assert json.loads(second.stdout)["steps"] == 3
        trained = load_video_llm(tmp_path / "few" / "model", device="cpu")
        assert trained.compressor.spec.startswith("token_dynamics(keep=4")

    def test_two_processes(self, parts, conversations, tmp_path):
        """Each process computes a part of every step; the network is saved once."""
        args = ["train", "video-llm", "--data", conversations / "train.jsonl", "--encoder", parts / "vit",
                 "--llm", parts / "llm", "--pool", 2, "--with", "token_dynamics(keep=4)",
                 "--frames", 4, "--size", 32, "--set", "workers=0", "--set", "steps=3",
                 "--batch", 2, "--device", "cpu", "--out", tmp_path / "run"]  # fmt: skip
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fewtokens"]
        done = subprocess.run(
            [sys.executable, *launcher, *map(str, args)], capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("Model") == 1
        assert is_video_llm(tmp_path / "run" / "model")

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--data", "none.jsonl", "--encoder", "VIT", "--llm", "LLM"), "no such file"),
            (("--data", "DATA", "--encoder", "none/", "--llm", "LLM"), "none"),
            (("--data", "DATA", "--encoder", "VIT", "--llm", "VIT"), "cannot be loaded as a causal language model"),
            (("--data", "DATA", "--encoder", "VIT", "--llm", "LLM", "--with", "nothing(3)"), "no method called"),
            (
                ("--data", "DATA", "--encoder", "VIT", "--llm", "LLM", "--set", "crops=3"),
                "has no effect on language models",
            ),
            (("--data", "DATA", "--encoder", "VIT", "--llm", "LLM", "--lora", "0"), "rank"),
        ],
    )
    def test_bad_input_is_one_line(self, parts, conversations, tmp_path, args, message):
        paths = {"VIT": parts / "vit", "LLM": parts / "llm", "DATA": conversations / "train.jsonl"}
        result = self.run("train", "video-llm", *(paths.get(arg, arg) for arg in args), "--out", tmp_path / "out")
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def saved_model(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("asked")
    build(parts, "token_dynamics(keep=4)").eval().save_pretrained(out, trained={"frames": 4, "size": 32})
    return out


class TestAsking:
    def test_a_session_encodes_once_and_equals_the_model(self, saved_model, conversations):
        session = VideoLLM.from_pretrained(saved_model, device="cpu").session()
        pieces: list[str] = []
        first = session.ask(conversations / "0.mp4", QUESTIONS[0], 5, pieces.append)
        second = session.ask(conversations / "0.mp4", QUESTIONS[1], 5)
        assert "".join(pieces) == first.text
        assert (first.tokens, first.cells) == (4, 16)
        assert first.seconds["encode"] > 0 == second.seconds["encode"]
        clip = read(conversations / "0.mp4", frames=4, size=32)
        frames = clip.frames[None]
        model = session.model
        batch = [model.encode_questions([question]) | {"pixel_values_videos": frames} for question in QUESTIONS[:2]]
        expected = [model.answer(inputs, max_new_tokens=5)[0] for inputs in batch]
        assert [first.text.strip(), second.text.strip()] == expected
        full = session.unreduced().ask(conversations / "0.mp4", QUESTIONS[0], 5)
        assert (full.tokens, full.cells, full.seconds["encode"]) == (16, 16, 0.0)

    def test_the_command(self, saved_model, conversations):
        command = [
            "ask",
            str(conversations / "0.mp4"),
            *QUESTIONS,
            "--model",
            str(saved_model),
            "--with",
            "uniform(keep=3)",
        ]
        result = CliRunner().invoke(app, [*command, "--json", "--compare", "--max-new-tokens", "4"])
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)["answers"]
        assert [row["visual_tokens"] for row in rows] == [16, 3] * 3
        refused = CliRunner().invoke(
            app, ["ask", str(conversations / "0.mp4"), "so?", "--model", str(saved_model), "--fps", "2"]
        )
        assert refused.exit_code == 2
        assert "have no effect" in " ".join(refused.output.split())

    def test_a_question_with_a_special_token(self, saved_model, conversations):
        session = VideoLLM.from_pretrained(saved_model, device="cpu").session()
        with pytest.raises(ValueError, match="contains </s>, which is a special token"):
            session.ask(conversations / "0.mp4", "what </s>")
        assert not session._encoded

    def test_random_weights_are_warned_about(self, saved_model):
        with pytest.warns(UserWarning, match="perceiver has random weights"):
            VideoLLM.from_pretrained(saved_model, device="cpu").session("perceiver(4)")

    def test_too_long(self, saved_model, conversations):
        session = VideoLLM.from_pretrained(saved_model, device="cpu").session()
        with pytest.raises(ValueError, match="the context of this model is 2048"):
            session.ask(conversations / "0.mp4", QUESTIONS[0], 2040)
