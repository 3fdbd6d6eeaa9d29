"""The cost of few tokens: the values of the paper's tables, retention with its denominator, the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.core.grid import Grid
from fewtokens.evaluation.budget import language_model, tok_dense, token_cost
from fewtokens.profiling.prefill import LANGUAGE_MODELS, LanguageModel

SMALL = LanguageModel("small", layers=2, dim=32, mlp_dim=64, kv_dim=32)


@pytest.mark.parametrize(
    ("accuracy", "tokens", "published"), [(57.46, 32, 1.796), (57.72, 13.08, 4.413), (58.38, 11_664, 0.005)]
)
def test_tokdense_of_the_published_rows(accuracy, tokens, published):
    assert tok_dense(accuracy, tokens) == pytest.approx(published, abs=5e-4)


def test_tokdense_requires_a_token():
    with pytest.raises(ValueError, match="TokDense requires at least one token"):
        tok_dense(50, 0)


def test_token_cost():
    grid = Grid(4, 9, 9)
    cost = token_cost("token_dynamics(keep=32)", grid, SMALL, text=10, pooled=True, accuracy=50.0)
    assert (cost.tokens, cost.cells, cost.frames, cost.pooled) == (32, 324, 4, True)
    assert cost.retention == 32 / 324
    assert cost.tokdense == 50 / 32
    assert (cost.module, cost.llm) == ("O((n + m^2) d)", "O(m^2 d L)")
    # At least one step of k-means: every token with every centroid, in the seeding and again in each iteration.
    assert cost.module_gflops > 2 * 2 * 324 * 32 * 32 / 1e9
    # Weights of two layers on 42 tokens, and causal attention.
    weights = 32 * (2 * 32 + 2 * 32 + 3 * 64)
    assert cost.prefill_gflops == pytest.approx(2 * 2 * (42 * weights + 42 * 43 // 2 * 2 * 32) / 1e9)
    full = token_cost("full", grid, SMALL, text=10)
    assert (full.tokens, full.retention, full.module, full.module_gflops, full.tokdense) == (324, 1.0, "0", 0.0, None)


def test_prefill_grows_faster_than_linearly():
    grid = Grid(32, 27, 27)
    model = LANGUAGE_MODELS["qwen2-0.5b"]
    full = token_cost("full", grid, model).prefill_gflops
    # 23,328 tokens at 2 operations for each of about 0.36 G weights, plus attention.
    assert full > 2 * 23_328 * 0.357


def test_language_models_by_folder(tmp_path):
    config = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config | {"num_key_value_heads": 2}}))
    model = language_model(tmp_path)
    assert (model.layers, model.dim, model.mlp_dim, model.kv_dim) == (3, 64, 96, 32)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(ValueError, match="num_attention_heads is missing"):
        language_model(tmp_path)
    assert language_model("qwen2.5-7b") == replace(language_model("qwen2-7b"), name="Qwen2.5-7B")
    with pytest.raises(ValueError, match=r"a folder with a config.json or one of qwen2-0\.5b"):
        language_model("gpt")


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["cost", *arguments])

    def test_json(self):
        result = self.run("--with", "uniform(keep=8)", "--with", "kmeans(keep=4)", "--grid", "2x4x4",
                          "--accuracy", "40", "--accuracy", "50", "--json")  # fmt: skip
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)
        assert [row["spec"] for row in rows] == ["full", "uniform(keep=8)", "kmeans(keep=4)"]
        assert [row["tokens"] for row in rows] == [32, 8, 4]
        assert [row["tokdense"] for row in rows] == [None, 5.0, 12.5]

    def test_table(self):
        result = self.run("--with", "kmeans(keep=4)", "--grid", "2x4x4", "--pooled")
        assert result.exit_code == 0, result.output
        for text in ("TokDense", "12.500 %", "frames", "pooled", "O((n + m^2) d)"):
            assert text in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--with", "kmeans", "--grid", "4x4"), "frames x rows x columns"),
            (("--with", "kmeans", "--llm", "gpt"), "config.json or one of"),
            (("--with", "visionzip"), "so it cannot count this method; use bench"),
            (("--with", "fastv"), "fastv acts inside the language model; cost counts only methods before"),
            (("--with", "kmeans", "--accuracy", "1", "--accuracy", "2"), "--accuracy must be given once per SPEC"),
            (("vit_s16", "--with", "kmeans"), "not both"),
            ((), "give a network, such as vit_s16"),
            (("--with", "nosuch"), "no method called"),
        ],
    )
    def test_invalid_input(self, arguments, message):
        result = self.run(*arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"hidden_size": 64.5}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
        ({"num_attention_heads": 65}, "head_dim must be at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"head_dim": []}, "head_dim must be a whole number"),
        ({"text_config": [1]}, "text_config must be an object"),
    ],
)
def test_invalid_configs(tmp_path, change, message):
    sizes = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sizes), encoding="utf-8-sig")
    assert language_model(tmp_path).dim == 64
    path.write_text(json.dumps(sizes | change))
    with pytest.raises(ValueError, match=message):
        language_model(tmp_path)
    for text in ("[]", "{", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config.json"):
            language_model(tmp_path)
