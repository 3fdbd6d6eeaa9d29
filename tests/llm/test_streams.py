"""Two streams of visual tokens: what each preset reads, caches, training, saving and the command line."""

# The fixtures `parts` and `conversations` are imported.
# ruff: noqa: F811

from __future__ import annotations

import json
import math
from contextlib import contextmanager

import pytest
import torch
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.llm.attach import attach
from fewtokens.llm.composed import load_video_llm
from fewtokens.llm.layers.mamba2 import Mamba2, chunked_scan
from fewtokens.llm.layers.streams import PRESETS, parse
from fewtokens.train.video_llm import add_lora
from tests.llm.test_composed import QUESTIONS, Items, batch, build, conversations, parts  # noqa: F401

FEW = "uniform(keep=4)"
GATED = ("slow_fast", "crosslmm", "iva")
EVERY = {name: f"{name}(every=1)" for name in PRESETS} | {"iva": "iva(every=1, keep=2)"}


def pair(parts, streams):
    """The same model without and with streams."""
    base = build(parts, FEW).eval()
    enlarge(base, 6)
    two = build(parts, FEW, streams=streams).eval()
    two.load_state_dict(base.state_dict(), strict=False)
    return base, two


def enlarge(model, factor):
    """Makes the weights of the layers as large as trained ones, so that a wrong row changes the logits."""
    with torch.no_grad():
        for parameter in model.language_model.layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)


def open_gates(model, value=0.7):
    """Sets every gate, and random weights large enough that a wrong row changes the logits."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.streams.named_parameters():
            if name.endswith(("strength", "gate", "share")) and parameter.numel() == 1:
                parameter.fill_(value)
            elif "_proj" in name and parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
    return model


def questions(model):
    return model.encode_questions(QUESTIONS) | {"pixel_values_videos": batch(model)["pixel_values_videos"]}


def row(inputs, b):
    return {name: value[b : b + 1] for name, value in inputs.items()}


@contextmanager
def recording(module, store, *, inputs=False):
    """Stores the first input, or the output, of each call of a module."""

    def hook(module, args, kwargs, output):
        first = args[0] if args else kwargs["hidden_states"]
        output = output[0] if isinstance(output, tuple) else output
        store.append((first if inputs else output).detach())

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield store
    finally:
        handle.remove()


def slow_of(model, inputs):
    return model.project(model.cells(inputs["pixel_values_videos"])[0])


class TestPresets:
    @pytest.mark.parametrize("name", GATED)
    def test_a_gated_preset_starts_as_the_model(self, parts, name):
        base, two = pair(parts, EVERY[name])
        inputs = batch(base)
        assert torch.equal(base(**inputs).logits, two(**inputs).logits)
        # The gate decides: opened, it changes the logits.
        assert not torch.equal(base(**inputs).logits, open_gates(two)(**inputs).logits)

    @pytest.mark.parametrize("name", ["slow_fast", "vista_llama", "vamba", "iva"])
    def test_only_text_rows_change(self, parts, name):
        base, two = pair(parts, f"{name}(every=2)")
        assert two.streams.layers == [0]
        open_gates(two)
        inputs, before, after = batch(base), [], []
        with recording(base.language_model.layers[0], before), recording(two.language_model.layers[0], after):
            base(**inputs)
            two(**inputs)
        visual = two.compress(inputs).layout.visual
        assert torch.equal(before[0][visual], after[0][visual])
        real = two.compress(inputs).inputs["attention_mask"].bool()
        changed = ((before[0] - after[0]).abs() > 1e-5).any(-1)
        # Vista-LLaMA changes only rows that come after fast tokens.
        seen = visual.cumsum(1) > 0 if name == "vista_llama" else torch.ones_like(visual)
        assert torch.equal(changed & real, real & ~visual & seen)

    @pytest.mark.parametrize("name", PRESETS)
    def test_slow_tokens_never_enter_the_self_attention(self, parts, name):
        _, two = pair(parts, EVERY[name])
        inputs, rows = batch(two), []
        attention = two.language_model.layers[1].self_attn
        with recording(attention, rows, inputs=True):
            out = two(**inputs, use_cache=True)
        text = int(inputs["attention_mask"].sum(1).max()) - 1
        assert slow_of(two, inputs).shape[1] == 16  # 4 frames of 2 x 2 cells
        assert rows[0].shape[1] == text + 4
        assert {layer.keys.shape[2] for layer in out.past_key_values.layers} == {text + 4}

    @pytest.mark.parametrize("name", PRESETS)
    def test_gradients_reach_every_parameter(self, parts, name):
        _, two = pair(parts, EVERY[name])
        open_gates(two, 0.6).train()
        inputs = batch(two)
        two(**inputs).loss.backward()
        gradients = {name: parameter.grad for name, parameter in two.named_parameters() if "mask_token" not in name}
        assert not [name for name, gradient in gradients.items() if gradient is None or not bool(gradient.any())]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        kept = {name: gradient.clone() for name, gradient in gradients.items()}
        two.zero_grad()
        two.checkpointing = True
        two(**inputs).loss.backward()
        for name, parameter in two.named_parameters():
            if name in kept:
                torch.testing.assert_close(parameter.grad, kept[name], rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_batch_equals_its_prompts(self, parts, name):
        _, two = pair(parts, EVERY[name])
        inputs = questions(open_gates(two))
        assert not bool(inputs["attention_mask"].all())  # some are padded
        with torch.no_grad():
            together = two(**inputs).logits[:, -1]
            alone = torch.cat([two(**row(inputs, b)).logits[:, -1] for b in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_cache_gives_the_full_pass(self, parts, name):
        _, two = pair(parts, EVERY[name])
        inputs = questions(open_gates(two))
        answer = torch.randint(4, 12, (3, 5), generator=torch.Generator().manual_seed(2))
        full_inputs = {name: torch.cat([inputs[name], extra], 1) for name, extra in
                       (("input_ids", answer), ("attention_mask", torch.ones_like(answer)))}  # fmt: skip
        with torch.no_grad():
            full = two(**inputs | full_inputs).logits[:, -6:]
            short = two.compress(inputs).inputs
            out = two(**short, use_cache=True)
            logits, mask = [out.logits[:, -1:]], short["attention_mask"]
            position = short["position_ids"].amax(1, keepdim=True)
            for part in (answer[:, :1], answer[:, 1:3], answer[:, 3:]):
                mask = torch.cat([mask, torch.ones_like(part)], 1)
                positions = position + 1 + torch.arange(part.shape[1])
                position = positions[:, -1:]
                out = two(
                    part, attention_mask=mask, position_ids=positions, past_key_values=out.past_key_values,
                    use_cache=True,
                )  # fmt: skip
                logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, 1), full, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", PRESETS)
    def test_beams(self, parts, name):
        """A beam search with caches equals one without."""
        _, two = pair(parts, EVERY[name])
        inputs = questions(open_gates(two))
        options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
        cached = two.generate(**inputs, **options)
        alone = [two.generate(**row(inputs, b), **options)[0, -5:] for b in range(3)]
        assert torch.equal(cached[:, -5:], torch.stack(alone))
        assert torch.equal(cached[:, -5:], two.generate(**inputs, **options, use_cache=False)[:, -5:])

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_later_turn_still_reads_the_video(self, parts, name):
        _, two = pair(parts, EVERY[name])
        inputs = row(two._expand_markers(questions(open_gates(two))), 1)
        text = torch.randint(4, 12, (1, 4), generator=torch.Generator().manual_seed(3))
        whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], text], 1)}
        whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(text)], 1)
        with torch.no_grad(), attach(two, FEW) as few:
            expected = few(**whole).logits[:, -1]
            cache = few(**inputs, use_cache=True).past_key_values
            # Another video in between does not disturb it.
            few(**row(two._expand_markers(questions(two)), 2))
            mask = torch.ones(1, int(cache.get_seq_length()) + 4, dtype=torch.int64)
            later = few(input_ids=text, attention_mask=mask, past_key_values=cache, use_cache=True).logits[:, -1]
        torch.testing.assert_close(later, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_prompt_without_a_video_is_the_language_model(self, parts, name):
        base, two = pair(parts, EVERY[name])
        ids = torch.tensor([[5, 6, 7, 8]])
        assert torch.equal(two(ids).logits, base(ids).logits)

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_language_model_in_bfloat16(self, parts, name):
        """As `load(dtype="bfloat16")` makes it: the other parts stay in float32."""
        _, two = pair(parts, EVERY[name])
        inputs = questions(open_gates(two))
        with torch.no_grad():
            expected = two(**inputs).logits[:, -1]
            two.llm.to(torch.bfloat16)
            actual = two(**inputs).logits[:, -1]
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))

    def test_adapters_added_later_are_used(self, parts):
        pytest.importorskip("peft")
        _, two = pair(parts, EVERY["slow_fast"])
        inputs = batch(open_gates(two))
        plain = two(**inputs).logits
        add_lora(two, 2)
        two.eval()
        assert torch.equal(two(**inputs).logits, plain)  # adapters start at 0
        with torch.no_grad():
            for name, parameter in two.llm.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
            adapted = two(**inputs).logits
            two.llm = two.llm.merge_and_unload()
            torch.testing.assert_close(two(**inputs).logits, adapted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(adapted, plain, atol=1e-3)

    def test_methods_that_drop_tokens_inside_the_language_model_are_refused(self, parts):
        _, two = pair(parts, EVERY["slow_fast"])
        inputs = two._expand_markers(questions(two))
        with (
            pytest.raises(ValueError, match="cannot drop tokens inside the language model"),
            torch.no_grad(),
            attach(two, "fastv(keep=0.5, layer=1)") as few,
        ):
            few(**inputs)
        assert not two.language_model.layers[1].self_attn.o_proj._forward_pre_hooks

    def test_specs(self):
        assert parse("slow_fast") == ("slow_fast", 8, None)
        assert parse(" vamba( every = 3 ) ") == ("vamba", 3, None)
        assert parse("iva") == ("iva", 4, 8) and parse("iva(keep=2)") == ("iva", 4, 2)
        assert parse("iva( every=2, keep = 3)") == ("iva", 2, 3)
        for wrong, message in (
            ("fast", "must be one of slow_fast, crosslmm, vista_llama, vamba, iva"),
            ("vamba(keep=2)", "keep has no effect in vamba"),
            ("iva(keep=0)", "at least 1"),
            ("vamba(every=0)", "at least 1"),
            ("vamba(layers=3)", "write it like"),
            ("vamba(", "write it like"),
        ):
            with pytest.raises(ValueError, match=message):
                parse(wrong)


class TestSlowFast:
    def test_the_formula(self, parts):
        """The output of the first layer's attention, recomputed head by head."""
        base, two = pair(parts, "slow_fast(every=2)")
        open_gates(two)
        inputs = batch(two)
        mixed, normed, output = [], [], []
        attention, block = two.language_model.layers[0].self_attn, two.streams.blocks[0]
        base_attention = base.language_model.layers[0].self_attn
        with recording(base_attention.o_proj, mixed, inputs=True), recording(base_attention, normed, inputs=True):
            base(**inputs)
        with recording(attention, output):
            two(**inputs)
        short = two.compress(inputs)
        slow = two.language_model.layers[0].input_layernorm(slow_of(two, inputs))
        cos, sin = two.language_model.rotary_emb(normed[0], short.inputs["position_ids"])
        d = attention.head_dim
        for b, i in ((0, 0), (1, 7), (2, 9)):  # a row before the video, and rows after it
            assert not short.layout.visual[b, i] and short.inputs["attention_mask"][b, i]
            query = attention.q_proj(normed[0][b, i]).view(4, d)
            half = torch.cat([-query[:, d // 2 :], query[:, : d // 2]], 1)
            query = query * cos[b, i] + half * sin[b, i]
            keys, values = block.k_proj(slow[b]).view(16, 2, d), block.v_proj(slow[b]).view(16, 2, d)
            found = []
            for head in range(4):
                weight = (keys[:, head // 2] @ query[head] / d**0.5).softmax(0)
                found.append(weight @ values[:, head // 2])
            gate = torch.tanh(block.gate.weight[0] @ mixed[0][b, i] + block.gate.bias) * torch.tanh(block.strength)
            expected = attention.o_proj(mixed[0][b, i] + gate * torch.cat(found))
            torch.testing.assert_close(output[0][b, i], expected, rtol=1e-4, atol=1e-5)

    def test_the_number_of_parameters(self, parts):
        _, two = pair(parts, EVERY["slow_fast"])
        attention = two.language_model.layers[0].self_attn
        own = sum(p.numel() for proj in (attention.k_proj, attention.v_proj) for p in proj.parameters())
        for block in two.streams.blocks:
            assert sum(p.numel() for p in block.parameters()) == own + 24 + 2
        fresh = build(parts, FEW, streams=EVERY["slow_fast"])
        for block, layer in zip(fresh.streams.blocks, fresh.language_model.layers, strict=True):
            assert torch.equal(block.k_proj.weight, layer.self_attn.k_proj.weight)
            assert torch.equal(block.v_proj.weight, layer.self_attn.v_proj.weight)


class TestCrossLMM:
    def test_fast_tokens_read_before_text_does(self, parts):
        _, two = pair(parts, "crosslmm(every=2)")
        open_gates(two)
        inputs = batch(two)
        layer, block = two.language_model.layers[0], two.streams.blocks[0]
        embedded = two.embed(two.compress(inputs).inputs)["inputs_embeds"]
        visual = two.compress(inputs).layout.visual
        slow = layer.input_layernorm(slow_of(two, inputs))

        def read(cross, rows, b):
            q = cross.q_proj(layer.input_layernorm(rows)).view(-1, 4, 6).transpose(0, 1)
            k, v = (p(slow[b]).view(16, 2, 6).repeat_interleave(2, 1).transpose(0, 1) for p in
                    (cross.k_proj, cross.v_proj))  # fmt: skip
            found = (q @ k.transpose(1, 2) / 6**0.5).softmax(-1) @ v
            return cross.o_proj(found.transpose(0, 1).flatten(1))

        entered = embedded.clone()
        for b in range(3):
            entered[b, visual[b]] += torch.tanh(block.fast_gate) * read(block.fast, embedded[b, visual[b]], b)
        with recording(layer, plain := []):
            two.llm(**two.embed(two.compress(inputs).inputs) | {"inputs_embeds": entered})
        with recording(layer, actual := []):
            two(**inputs)
        expected = plain[0].clone()
        for b in range(3):
            text = ~visual[b]
            expected[b, text] += torch.tanh(block.text_gate) * read(block.text, plain[0][b, text], b)
        torch.testing.assert_close(actual[0], expected, rtol=1e-4, atol=1e-5)


class TestIva:
    def test_a_row_reads_its_frames(self, parts):
        """The output of the first layer's attention, recomputed head by head, over the cells of two of four frames."""
        base, two = pair(parts, "iva(every=2, keep=2)")
        open_gates(two)
        inputs = batch(two)
        before, output, normed = [], [], []
        attention, block = two.language_model.layers[0].self_attn, two.streams.blocks[0]
        with recording(base.language_model.layers[0].self_attn, before):
            base(**inputs)
        with recording(attention, output), recording(attention, normed, inputs=True):
            two(**inputs)
        visual = two.compress(inputs).layout.visual
        slow = two.language_model.layers[0].input_layernorm(slow_of(two, inputs))
        chosen = set()
        for b, i in ((0, 0), (1, 7), (2, 9)):
            assert not visual[b, i]
            query = block.cross.q_proj(normed[0][b, i]).view(4, 6)
            keys = block.cross.k_proj(slow[b]).view(16, 2, 6).repeat_interleave(2, 1)
            values = block.cross.v_proj(slow[b]).view(16, 2, 6).repeat_interleave(2, 1)
            logits = torch.einsum("hd,shd->hs", query, keys)
            best = logits.view(4, 4, 4).mean((0, 2)).topk(2).indices
            chosen.add(tuple(sorted(best.tolist())))
            cells = torch.cat([torch.arange(4) + 4 * t for t in best.tolist()])
            weights = (logits[:, cells] / 6**0.5).softmax(1)
            found = block.cross.o_proj(torch.einsum("hs,shd->hd", weights, values[cells]).flatten())
            torch.testing.assert_close(output[0][b, i], before[0][b, i] + math.tanh(0.7) * found, rtol=1e-4, atol=1e-5)
        assert len(chosen) > 1

    def test_only_its_frames_receive_a_gradient(self, parts):
        _, two = pair(parts, "iva(every=2, keep=1)")
        block, layer = open_gates(two).streams.blocks[0], two.language_model.layers[0]
        generator = torch.Generator().manual_seed(0)
        slow = torch.randn(1, 16, 24, generator=generator, requires_grad=True)
        row = torch.randn(1, 1, 24, generator=generator)
        entry, _ = block.read(layer, slow)
        seen = block.frames_of(layer.self_attn, row, entry[0], 4)
        block.cross(layer.self_attn, row, *entry, mask=seen).square().sum().backward()
        used = slow.grad[0].abs().sum(1).view(4, 4) > 0
        assert used.all(1).sum() == 1 and used.sum() == 4
        assert block.frames_of(layer.self_attn, row, entry[0], 1) is None  # not more frames than it reads


class TestVistaLlama:
    def weights(self, parts, shift):
        """The heads of the last row in the first layer, with the inputs and values of that layer."""
        two = build(parts, FEW, streams="vista_llama").eval()
        attention = two.language_model.layers[0].self_attn
        inputs = row(questions(two), 1)
        short = two.compress(inputs).inputs
        ids = short["input_ids"]
        # Text rows after the video move away from it.
        moved = short["position_ids"] + shift * (torch.arange(ids.shape[1]) > 8)
        normed, mixed = [], []
        with torch.no_grad():
            attention.q_proj.weight.mul_(12)
            with recording(attention, normed, inputs=True), recording(attention.o_proj, mixed, inputs=True):
                two(**short | {"position_ids": moved})
        values = attention.v_proj(normed[0])[0].view(-1, 2, 6).double()
        return two, normed[0], mixed[0][0, -1].view(4, 6).double(), values, moved

    @pytest.mark.parametrize("shift", [10, 1000])
    def test_one_softmax_without_rotation_to_fast_tokens(self, parts, shift):
        two, normed, actual, values, positions = self.weights(parts, shift)
        attention = two.language_model.layers[0].self_attn
        visual = two.compress(row(questions(two), 1)).layout.visual[0]
        cos, sin = two.language_model.rotary_emb(normed, positions)

        def turn(x, i):
            return x * cos[0, i] + torch.cat([-x[3:], x[:3]]) * sin[0, i]

        last = normed.shape[1] - 1
        for head in range(4):
            query = attention.q_proj(normed[0, last]).view(4, 6)[head]
            keys = attention.k_proj(normed[0]).view(-1, 2, 6)[:, head // 2]
            logits = [
                (query @ keys[j] if visual[j] else turn(query, last) @ turn(keys[j], j)) / 6**0.5
                for j in range(last + 1)
            ]
            expected = torch.stack(logits).softmax(0).double() @ values[:, head // 2]
            torch.testing.assert_close(actual[head], expected, rtol=1e-4, atol=1e-5)

    def test_the_ratio_of_two_fast_tokens_does_not_depend_on_the_distance(self):
        """On the attention itself, with values that show the weights."""
        ratios = {}
        for preset in ("vista_llama", "rotated"):
            for distance in (10, 1000):
                weights = attention_weights(preset, distance, torch.Generator().manual_seed(1))
                ratios[preset, distance] = float((weights[0] / weights[1]).log())
        assert ratios["vista_llama", 10] == pytest.approx(ratios["vista_llama", 1000], abs=1e-6)
        assert abs(ratios["rotated", 10] - ratios["rotated", 1000]) > 0.1

    @pytest.mark.parametrize(("distance", "rotated"), [(8, -3.06843), (998, 2.22103)])
    def test_golden_numbers(self, distance, rotated):
        """Fast tokens at positions 0 and 1 with the keys (4, 0) and (0, 1), a text row with the query (1, 1).

        They are the two channels that are rotated, by a radian per position, of a head of four. Without rotation the
        logits are 4 / 2, 1 / 2 and, as the key of the text row is 0, 0. With it, the logits are 2 (cos a - sin a) and
        (cos b + sin b) / 2 at the distances a and b.
        """
        hidden = torch.eye(3, dtype=torch.float64)[None]
        query, key = torch.zeros(2, 3, 4, dtype=torch.float64)
        query[2, [0, 2]] = 1
        key[0, 0], key[1, 2] = 4, 1
        angles = torch.tensor([0.0, 1.0, 1.0 + distance], dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0])
        weights = last_row("vista_llama", hidden, query, key, angles)
        assert weights.tolist() == pytest.approx([0.736125, 0.164252, 0.099623], abs=1e-6)  # softmax(2, .5, 0)
        assert float((weights[0] / weights[1]).log()) == pytest.approx(1.5, abs=1e-12)
        a, b = 1 + distance, distance
        ratio = 2 * (math.cos(a) - math.sin(a)) - (math.cos(b) + math.sin(b)) / 2
        weights = last_row("rotated", hidden, query, key, angles)
        assert float((weights[0] / weights[1]).log()) == pytest.approx(ratio, abs=1e-9)
        assert ratio == pytest.approx(rotated, abs=1e-5)


def attention_weights(preset, distance, generator):
    """The weights of a text row for two fast tokens and itself, with random rows and projections."""
    d = 8
    weight = [torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in range(2)]
    hidden = torch.randn(1, 3, d, generator=generator, dtype=torch.float64)
    angles = torch.tensor([0.0, 1.0, 1.0 + distance], dtype=torch.float64)[:, None] * 100.0 ** -torch.arange(4).div(4)
    return last_row(preset, hidden, *weight, angles)


def last_row(preset, hidden, query, key, angles):
    """The weights of the last of three rows [1,3,D] through `VistaLlama.mix`, or with rotation of all of them.

    `query` and `key` [D,d] are the projections, `angles` [3,d/2] those of the rotation.
    """
    from types import SimpleNamespace

    from fewtokens.llm.layers.attention import rotate
    from fewtokens.llm.layers.streams import Attention, Pass, Prompt, VistaLlama, heads

    d = key.shape[1]

    def project(matrix):
        return lambda x: x @ matrix

    module = SimpleNamespace(
        q_proj=project(query), k_proj=project(key), head_dim=d, scaling=d**-0.5,
        v_proj=lambda x: torch.eye(3, d, dtype=torch.float64)[None],
    )  # fmt: skip
    rope = tuple(part.repeat(1, 2)[None] for part in (angles.cos(), angles.sin()))
    if preset == "rotated":
        q, k = (rotate(heads(module, name, hidden), *rope) for name in "qk")
        return (q[0, 0, 2] @ k[0, 0].T * module.scaling).softmax(0)
    visual = torch.tensor([[True, True, False]])
    current = Pass(Prompt(hidden, visual, [[]]), 0, visual, torch.tensor([[2]]), torch.tensor([[0, 1]]), None)
    block = VistaLlama(None, last=True)
    mixed = block.mix(torch.zeros(1, 3, d, dtype=torch.float64), Attention(module, hidden, rope, None), [], current)
    return mixed[0, 2, :3]


class TestVamba:
    @pytest.mark.parametrize("length", [1, 24, 64, 150])
    def test_the_mixer_is_that_of_transformers(self, length):
        from transformers import Mamba2Config, Mamba2Model

        torch.manual_seed(0)
        config = Mamba2Config(
            hidden_size=24, num_heads=3, head_dim=16, state_size=128, n_groups=1, expand=2, conv_kernel=4,
            num_hidden_layers=1, vocab_size=8, chunk_size=32,
        )  # fmt: skip
        reference = Mamba2Model(config).layers[0].mixer.eval()
        mixer = Mamba2(24)
        assert mixer.head == 16
        mixer.load_state_dict(reference.state_dict())
        with torch.no_grad():
            mixer.dt_bias.add_(2)  # large steps, so that the state decays
            reference.dt_bias.add_(2)
            x = torch.randn(2, length, 24)
            torch.testing.assert_close(mixer(x), reference(x), rtol=1e-4, atol=1e-5)

    def test_the_scan_is_the_recurrence(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 19, 3, 4, generator=generator)
        decay = -torch.rand(2, 19, 3, generator=generator)
        b, c = torch.randn(2, 2, 19, 5, generator=generator)
        state, expected = torch.zeros(2, 3, 4, 5), []
        for t in range(19):
            state = state * decay[:, t].exp()[..., None, None] + x[:, t, :, :, None] * b[:, t, None, None]
            expected.append((state * c[:, t, None, None]).sum(-1))
        torch.testing.assert_close(chunked_scan(x, decay, b, c, chunk=8), torch.stack(expected, 1))

    def test_cross_attention_starts_as_a_copy(self, parts):
        fresh = build(parts, FEW, streams="vamba")
        assert fresh.streams.layers == [0, 1]
        for block, layer in zip(fresh.streams.blocks, fresh.language_model.layers, strict=True):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                assert torch.equal(getattr(block.cross, name).weight, getattr(layer.self_attn, name).weight)
            assert block.share.item() == 0.5
        base, two = pair(parts, "vamba")
        inputs = batch(base)
        assert not torch.equal(base(**inputs).logits, two(**inputs).logits)
        for share in (1.0, 1.5):  # clamped
            with torch.no_grad():
                for block in two.streams.blocks:
                    block.share.fill_(share)
            assert torch.equal(base(**inputs).logits, two(**inputs).logits)

    def test_slow_tokens_are_causal_and_do_not_depend_on_the_text(self, parts):
        _, two = pair(parts, "vamba")
        inputs = batch(two)

        def entries(inputs):
            with torch.no_grad():
                cache = two(**inputs, use_cache=True).past_key_values
            return [tensor for entry in vars(cache)["_streams_by_fewtokens"].entries for tensor in entry]

        first = entries(inputs)
        changed = inputs["input_ids"].clone()
        changed[:, -3:] = 5
        assert all(torch.equal(a, b) for a, b in zip(first, entries(inputs | {"input_ids": changed}), strict=True))
        frames = inputs["pixel_values_videos"].clone()
        frames[:, 2] = 255 - frames[:, 2]  # 4 cells per frame
        for before, after in zip(first, entries(inputs | {"pixel_values_videos": frames}), strict=True):
            different = (before != after).any(-1).any(1)
            assert not bool(different[:, :8].any())
            assert bool(different[:, 8:12].all())
        assert bool((first[2] != entries(inputs | {"pixel_values_videos": frames})[2])[:, :, 12:].any())


class TestTraining:
    @pytest.mark.parametrize("name", PRESETS)
    def test_training_lowers_the_loss_and_the_model_is_saved(self, parts, tmp_path, name):
        from fewtokens.train.settings import Settings
        from fewtokens.train.video_llm import train_video_llm

        model = build(parts, FEW, streams=EVERY[name])
        start = {name: value.clone() for name, value in model.streams.state_dict().items()}
        settings = Settings(
            steps=12, batch=3, lr=0.02, warmup=0, weight_decay=0, rates={"encoder": 0.0}, workers=0,
            schedule="constant", log_every=1,
        )  # fmt: skip
        report = train_video_llm(model, Items(model), settings, tmp_path, device="cpu")
        assert report.metrics[-1]["loss"] < 0.9 * report.metrics[0]["loss"]
        assert not [name for name, value in model.streams.named_parameters() if torch.equal(value, start[name])]
        loaded = load_video_llm(tmp_path / "model", device="cpu")
        assert loaded.streams.spec == EVERY[name]
        inputs = batch(model)
        assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        assert config["config"]["streams"] == EVERY[name]

    def test_an_answer_that_only_slow_tokens_contain(self, parts):
        """The answer is the brightness of the clip, the frame of the only fast token is black."""
        model = build(parts, "uniform(keep=1)")
        inputs = batch(model)
        frames = {int(tokens.positions[0, 0, 0]) for tokens in model.compress(inputs).tokens}
        clips = torch.ones_like(inputs["pixel_values_videos"])
        clips *= torch.tensor([0, 120, 255], dtype=torch.uint8)[:, None, None, None, None]
        clips[:, sorted(frames)] = 0
        same = {name: inputs[name][:1].expand(3, -1).clone() for name in ("input_ids", "attention_mask", "labels")}
        answer = (same["labels"][0] != -100).nonzero()[0]
        for b in range(3):
            same["labels"][b, answer] = same["input_ids"][b, answer] = 5 + b
        losses = {}
        for streams in ("", EVERY["slow_fast"]):
            model = build(parts, "uniform(keep=1)", streams=streams)
            enlarge(model, 3)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
            for _ in range(70):
                optimizer.zero_grad()
                loss = model(**same, pixel_values_videos=clips).loss
                loss.backward()
                optimizer.step()
            losses[streams] = loss.item()
        # Without streams the answer is a guess among three: log 3 on one of the tokens with a label.
        count = int((same["labels"][0] != -100).sum())
        assert losses[""] > 0.9 * math.log(3) / count
        assert losses[EVERY["slow_fast"]] < 0.1 * losses[""]


class TestCommand:
    def run(self, *args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    def test_train_and_ask(self, parts, conversations, tmp_path):
        words = ("train", "video-llm", "--data", conversations / "train.jsonl", "--encoder", parts / "vit", "--llm",
                 parts / "llm", "--pool", 2, "--frames", 4, "--size", 32, "--set", "workers=0", "--device", "cpu",
                 "--set", "steps=3", "--batch", 3, "--with", "mean_pool(keep=4)")  # fmt: skip
        done = self.run(*words, "--streams", "slow_fast(every=1)", "--out", tmp_path / "run")
        assert done.exit_code == 0, done.output
        answer = self.run("ask", conversations / "0.mp4", QUESTIONS[0], "--model", tmp_path / "run" / "model", "--json",
                          "--device", "cpu")  # fmt: skip
        assert answer.exit_code == 0, answer.output
        for other in (("--streams", "vamba"), ()):
            refused = self.run(*words, *other, "--out", tmp_path / "run")
            assert refused.exit_code == 2 and "streams" in refused.output

    def test_an_unknown_preset(self, parts, conversations, tmp_path):
        refused = self.run("train", "video-llm", "--data", conversations / "train.jsonl", "--encoder", parts / "vit",
                           "--llm", parts / "llm", "--streams", "fast", "--out", tmp_path / "run")  # fmt: skip
        assert refused.exit_code == 2
        assert "streams must be one of slow_fast, crosslmm, vista_llama, vamba" in " ".join(refused.output.split())
        assert not (tmp_path / "run").exists()
