"""Token files: written atomically, validated when read, never unpickled."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fewtokens.core import files, registry
from fewtokens.core.grid import Grid
from fewtokens.core.method import save_weights
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.train import checkpoint
from fewtokens.version import __version__
from tests.helpers.clips import clip


def full_tokens() -> Tokens:
    tokens = registry.build("tome(0.3)")[0](clip())
    grid = Grid(4, 5, 6, torch.tensor([0.0, 1 / 3, 0.7, 1e-9], dtype=torch.float64), torch.tensor([4, 4]))
    return tokens.replace(
        grid=grid,
        prefix=torch.randn(2, 3, 24),
        codes=torch.randint(0, 9, (2, tokens.N, 2)) * tokens.mask[..., None],
        attribution=torch.rand(2, tokens.N, 120) * tokens.mask[..., None],
        aux={"loss": torch.tensor(0.25)},
        meta={"spec": "tome(0.3)", "source": {"name": "a.mp4", "bytes": 12}, "seed": 0},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path, dtype):
    tokens = full_tokens().to(dtype)
    path = tokens.save(tmp_path / "new" / "a.safetensors", extra=[1, 2])
    again = Tokens.load(path)
    for name in ("features", "positions", "sizes", "mask", "assignment", "prefix", "codes", "attribution"):
        assert torch.equal(getattr(again, name), getattr(tokens, name)), name
    assert again.grid == tokens.grid
    assert again.aux["loss"] == 0.25
    assert again.meta == {**tokens.meta, "extra": [1, 2]}
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_loaded_tokens_outlive_the_file(tmp_path):
    tokens = full_tokens()
    path = tokens.save(tmp_path / "a.safetensors")
    again = Tokens.load(path)
    path.write_bytes(path.read_bytes()[:8])  # in place: a memory map would be truncated too
    assert torch.equal(again.features, tokens.features)


def test_the_header_records_the_origin(tmp_path):
    header = files.load_header(full_tokens().save(tmp_path / "a.safetensors"))
    assert header["kind"] == "tokens"
    assert set(header["versions"]) == {"fewtokens", "torch", "python"}
    assert header["grid"]["shape"] == [4, 5, 6]
    assert header["grid"]["times"][1] == 1 / 3
    assert header["meta"]["source"] == {"name": "a.mp4", "bytes": 12}


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = clip().save(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        clip().save(path, broken=object())
    with pytest.raises(RuntimeError), files.atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("killed")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_errors_are_one_line(tmp_path):
    good = clip().save(tmp_path / "a.safetensors")
    cases = {
        "no such file": tmp_path / "missing.safetensors",
        "invalid safetensors": tmp_path / "text.safetensors",
        "cut short": tmp_path / "short.safetensors",
        "not written by fewtokens": tmp_path / "other.safetensors",
        "contains pipeline, not tokens": tmp_path / "pipeline.safetensors",
        "update fewtokens": tmp_path / "newer.safetensors",
    }
    cases["invalid safetensors"].write_text("hello")
    cases["cut short"].write_bytes(good.read_bytes()[:-100])
    save_file({"a": torch.ones(1)}, cases["not written by fewtokens"])
    files.save(cases["contains pipeline, not tokens"], "pipeline", {}, {})
    header = json.dumps({"kind": "tokens", "version": 99})
    save_file({"a": torch.ones(1)}, cases["update fewtokens"], metadata={"fewtokens": header})
    for message, path in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            Tokens.load(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


@pytest.mark.parametrize("change", ["shape", "missing", "value", "grid"])
def test_contents_are_validated(tmp_path, change):
    tokens = clip()
    tensors = {n: getattr(tokens, n) for n in ("features", "positions", "sizes", "mask", "assignment")}
    grid = {"shape": [4, 5, 6], "times": None, "lengths": None}
    if change == "shape":
        tensors["sizes"] = tensors["sizes"][:, :-1]
    elif change == "missing":
        del tensors["assignment"]
    elif change == "value":
        tensors["assignment"] = tensors["assignment"] + 500
    else:
        grid["shape"] = [4, 5, 7]
    files.save(tmp_path / "a.safetensors", "tokens", tensors, {"grid": grid, "meta": {}})
    with pytest.raises(ValueError, match="damaged token file"):
        Tokens.load(tmp_path / "a.safetensors")


def test_partial_files_of_a_killed_process_are_removed(tmp_path):
    writer = (
        "import sys; from fewtokens.core.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half'); (temporary.parent / '.tmpforeign').write_bytes(b'')\n"
        "    print('writing', flush=True); sys.stdin.read()\n"
    )
    path = tmp_path / "a.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", writer, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    files._swept.discard(tmp_path)
    files.write_text(tmp_path / "b.txt", "x")
    assert len(list(tmp_path.glob(".*"))) == 1, "the file of a running writer is kept"
    process.kill()
    process.communicate()
    assert list(tmp_path.rglob("*.safetensors")) == []
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["b.txt"]


def test_the_longest_file_name(tmp_path):
    path = tmp_path / f"{'x' * 243}.safetensors"
    assert Tokens.load(clip().save(path)).N == clip().N


def write_folder(folder: Path) -> None:
    with files.atomic_folder(folder, last="config.json") as temporary:
        save_file({"x": torch.zeros(1)}, temporary / "x.safetensors")
        (temporary / "config.json").write_text("{}")


WRITERS = {
    "tokens": lambda folder: clip().save(folder / "a.safetensors"),
    "weights": lambda folder: save_weights(registry.build("pool_mlp('4/frame', dim=6)")[0], folder / "a.safetensors"),
    "run": lambda folder: checkpoint.save(folder / "a.safetensors", {"x": torch.zeros(1)}, {"step": 3}),
    "pipeline": lambda folder: Pipeline("pool_mlp('4/frame', dim=6)").save_pretrained(folder),
    "JSON": lambda folder: files.write_json(folder / "a.json", {}),
    "text": lambda folder: files.write_text(folder / "a.txt", "a"),
    "rows": lambda folder: files.write_rows(folder / "a.jsonl", [1]),
    "folder": write_folder,
}


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o022, 0o644), (0o077, 0o600)])
@pytest.mark.parametrize("writer", WRITERS)
def test_files_have_the_mode_of_the_umask(tmp_path, writer, mask, mode):
    before = os.umask(mask)
    try:
        WRITERS[writer](tmp_path)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert paths and {path.stat().st_mode & 0o777 for path in paths} == {mode}


@pytest.mark.parametrize("writer", ["tokens", "weights", "run", "pipeline"])
def test_the_header_records_versions(tmp_path, writer):
    WRITERS[writer](tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"  # required by transformers
    header = json.loads(metadata["fewtokens"])
    assert header["version"] == files.FORMAT_VERSION == 2
    versions = {"fewtokens": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    assert header["versions"] == versions
    assert header["kind"] == {"weights": "method"}.get(writer, writer)
    assert files.load_header(path, header["kind"]) == header


@pytest.mark.parametrize("message", ["I/O error: No space left on device (os error 28)", "something new"])
def test_write_errors_are_os_errors(tmp_path, monkeypatch, message):
    def fail(*args: object, **kwargs: object) -> None:
        raise SafetensorError(message)

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match=r"No space left|cannot be written") as error:
        clip().save(tmp_path / "a.safetensors")
    assert error.value.filename == str(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_an_os_error(tmp_path):
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"), files.atomic_file(tmp_path / "a.txt") as temporary:
        temporary.symlink_to("/dev/full")
        with temporary.open("w") as file:
            file.write("x" * 100_000)


def test_text_with_and_without_a_byte_order_mark(tmp_path):
    for name, content in {"a": "é\n".encode(), "b": "é\n".encode("utf-8-sig")}.items():
        (tmp_path / name).write_bytes(content)
        assert files.read_text(tmp_path / name) == "é\n"
    for name, content, message in [
        ("c", "é\n".encode("utf-16"), "UTF-16"), ("d", "ab\n".encode("utf-16-le"), "UTF-16"),
        ("e", b"x\n\xe9\n", "line 2 is not UTF-8"), ("f", b"\x89PNG\r\n\0", "binary"),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            files.read_text(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        files.read_text(tmp_path / "none")
    with pytest.raises(ValueError, match="no such file"):
        files.read_text(tmp_path)


def test_names_that_are_not_utf8_survive_text_and_json(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    path = files.write_json(tmp_path / "a.json", {"path": name})
    assert files.read_json(path, dict[str, str]) == {"path": name}
    assert files.write_text(tmp_path / "a.txt", name).read_bytes() == b"caf\xe9.mp4"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": 1', "nul", "1" * 5000, '{"a": "x"}', "[]"])
def test_invalid_json_is_a_one_line_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json") as error:
        files.read_json(tmp_path / "a.json", dict[str, int])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", ["[]", '"x"', "{", '{"version": "x"}', '{"version": true}', "[" * 5000])
def test_invalid_headers_are_one_line_errors(tmp_path, header):
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"fewtokens": header})
    with pytest.raises(ValueError, match="header"):
        files.load_header(tmp_path / "a.safetensors")


class TestWholeFolder:
    def write(self, folder, content):
        with files.atomic_folder(folder, last="config.json") as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / f"{content}.txt").write_text(content)
            (temporary / "weights").write_text(content)
            (temporary / "config.json").write_text(content)

    def test_other_files_of_the_folder_are_kept(self, tmp_path):
        (tmp_path / "README").write_text("mine")
        for content in ("old", "new"):
            self.write(tmp_path, content)
        assert sorted(os.listdir(tmp_path)) == ["README", "config.json", "inner", "weights"]
        assert os.listdir(tmp_path / "inner") == ["new.txt"]
        assert (tmp_path / "weights").read_text() == (tmp_path / "config.json").read_text() == "new"

    def test_a_failure_keeps_the_old_files(self, tmp_path):
        self.write(tmp_path, "old")
        with pytest.raises(OSError, match="full"), files.atomic_folder(tmp_path, last="config.json") as temporary:
            (temporary / "weights").write_text("new")
            raise OSError("full")
        assert sorted(os.listdir(tmp_path)) == ["config.json", "inner", "weights"]
        assert (tmp_path / "weights").read_text() == "old"

    def test_an_interrupt_never_mixes_old_and_new_files(self, tmp_path, monkeypatch):
        """If config.json exists, all other files belong to it."""
        replace = os.replace
        for kill_at in range(5):
            folder = tmp_path / str(kill_at)
            self.write(folder, "old")
            moves = []

            def move(source, target, moves=moves, kill_at=kill_at):
                if len(moves) == kill_at:
                    raise KeyboardInterrupt
                moves.append(target)
                replace(source, target)

            monkeypatch.setattr(files.os, "replace", move)
            with contextlib.suppress(KeyboardInterrupt):
                self.write(folder, "new")
            monkeypatch.undo()
            if (folder / "config.json").exists():
                content = (folder / "config.json").read_text()
                assert (folder / "weights").read_text() == content
                assert os.listdir(folder / "inner") == [f"{content}.txt"]
            self.write(folder, "newer")
            assert (folder / "weights").read_text() == "newer"


class TestRows:
    def test_rows_are_appended_and_read(self, tmp_path):
        path = tmp_path / "a.jsonl"
        assert files.read_rows(path) == []
        for n in range(3):
            files.append_row(path, {"n": n})
        assert files.read_rows(path, dict[str, int]) == [{"n": 0}, {"n": 1}, {"n": 2}]

    @pytest.mark.parametrize(("last_line", "count"), [('{"n": 1', 1), ('{"n": 1}', 2), ("{", 1), ("", 1)])
    def test_an_incomplete_last_line_is_removed(self, tmp_path, last_line, count):
        path = tmp_path / "a.jsonl"
        path.write_text('{"n": 0}\n' + last_line)
        assert len(files.read_rows(path, dict[str, int])) == count
        files.append_row(path, {"n": 5})
        assert len(files.read_rows(path, dict[str, int])) == count + 1

    @pytest.mark.parametrize("line", ["x", "[]", '{"n": "1"}', "null"])
    def test_an_invalid_line_is_named(self, tmp_path, line):
        (tmp_path / "a.jsonl").write_text('{"n": 0}\n' + line + '\n{"n": 2}\n')
        with pytest.raises(ValueError, match=r"a\.jsonl: line 2"):
            files.read_rows(tmp_path / "a.jsonl", dict[str, int])
