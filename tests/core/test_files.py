"""Token files: whole or not there, checked on reading, never unpickled."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from fewtokens import files, registry
from fewtokens.grid import Grid
from fewtokens.tokens import Tokens
from tests.clips import clip


def everything() -> Tokens:
    tokens = registry.build("tome(0.3)")[0](clip())
    grid = Grid(4, 5, 6, torch.tensor([0.0, 1 / 3, 0.7, 1e-9], dtype=torch.float64), torch.tensor([4, 4]))
    return tokens.replace(
        grid=grid,
        prefix=torch.randn(2, 3, 24),
        codes=torch.randint(0, 9, (2, tokens.N)),
        weights=torch.rand(2, tokens.N, 120),
        aux={"loss": torch.tensor(0.25)},
        meta={"spec": "tome(0.3)", "source": {"name": "a.mp4", "bytes": 12}, "seed": 0},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path, dtype):
    tokens = everything().to(dtype)
    path = tokens.save(tmp_path / "new" / "a.safetensors", extra=[1, 2])
    again = Tokens.load(path)
    for name in ("features", "positions", "sizes", "mask", "source", "prefix", "codes", "weights"):
        assert torch.equal(getattr(again, name), getattr(tokens, name)), name
    assert again.grid == tokens.grid
    assert again.aux["loss"] == 0.25
    assert again.meta == {**tokens.meta, "extra": [1, 2]}
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_the_header_says_where_it_comes_from(tmp_path):
    header = files.load_header(everything().save(tmp_path / "a.safetensors"))
    assert header["kind"] == "tokens"
    assert set(header["versions"]) == {"fewtokens", "torch", "python"}
    assert header["grid"]["shape"] == [4, 5, 6]
    assert header["grid"]["times"][1] == 1 / 3
    assert header["meta"]["source"] == {"name": "a.mp4", "bytes": 12}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = clip().save(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        clip().save(path, broken=object())
    with pytest.raises(RuntimeError), files.whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("killed")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_what_is_wrong_is_said(tmp_path):
    good = clip().save(tmp_path / "a.safetensors")
    cases = {
        "no such file": tmp_path / "missing.safetensors",
        "not a readable safetensors": tmp_path / "text.safetensors",
        "cut short": tmp_path / "short.safetensors",
        "not one that fewtokens wrote": tmp_path / "other.safetensors",
        "holds pipeline, not tokens": tmp_path / "pipeline.safetensors",
        "update fewtokens": tmp_path / "newer.safetensors",
    }
    cases["not a readable safetensors"].write_text("hello")
    cases["cut short"].write_bytes(good.read_bytes()[:-100])
    save_file({"a": torch.ones(1)}, cases["not one that fewtokens wrote"])
    files.save(cases["holds pipeline, not tokens"], "pipeline", {}, {})
    header = json.dumps({"kind": "tokens", "version": 99})
    save_file({"a": torch.ones(1)}, cases["update fewtokens"], metadata={"fewtokens": header})
    for says, path in cases.items():
        with pytest.raises(ValueError, match=says) as caught:
            Tokens.load(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


@pytest.mark.parametrize("change", ["shape", "missing", "value", "grid"])
def test_contents_are_checked(tmp_path, change):
    tokens = clip()
    tensors = {n: getattr(tokens, n) for n in ("features", "positions", "sizes", "mask", "source")}
    grid = {"shape": [4, 5, 6], "times": None, "lengths": None}
    if change == "shape":
        tensors["sizes"] = tensors["sizes"][:, :-1]
    elif change == "missing":
        del tensors["source"]
    elif change == "value":
        tensors["source"] = tensors["source"] + 500
    else:
        grid["shape"] = [4, 5, 7]
    files.save(tmp_path / "a.safetensors", "tokens", tensors, {"grid": grid, "meta": {}})
    with pytest.raises(ValueError, match="damaged token file"):
        Tokens.load(tmp_path / "a.safetensors")
