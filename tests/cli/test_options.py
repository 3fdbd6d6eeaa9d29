"""How functions become verbs: groups of options, modes, errors, progress, tables."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from fewtokens.cli import app, console, tables
from fewtokens.cli.command import Verb
from fewtokens.cli.options import names_of
from fewtokens.cli.verbs import every_verb, find
from fewtokens.video import synthetic, write
from tests.cli.test_command import error_line, quick
from tests.helpers.command import parse


@dataclass(frozen=True)
class Group:
    needed: Annotated[int, typer.Option("--needed", rich_help_panel="Input")]
    size: Annotated[int, typer.Option("--size", rich_help_panel="Input")] = 3
    name: Annotated[str, typer.Option("--name", rich_help_panel="Input")] = "a"


class TestGroups:
    def call(self, *words: str) -> dict[str, Any]:
        values: dict[str, Any] = {}

        def function(path: Path, group: Group = Group(needed=1, size=5), more: bool = False) -> None:
            values.update(path=path, group=group, more=more)

        command = Verb(function, ["fewtokens x"]).command("x", "")
        assert not command.main(list(words), "x", standalone_mode=False)
        return values

    def test_fields_are_options_and_are_collected_in_an_instance(self):
        assert self.call("p", "--needed", "2", "--name", "b", "--more") == {
            "path": Path("p"), "group": Group(2, 5, "b"), "more": True,
        }  # fmt: skip

    def test_a_default_instance_sets_defaults_except_of_required_fields(self):
        assert self.call("p", "--needed", "2")["group"] == Group(2, 5, "a")
        with pytest.raises(Exception, match="needed"):
            self.call("p")


# A command line that selects each declared mode.
SAMPLES = {
    ("tokenize", "whole"): "clip.mp4 --out o",
    ("tokenize", "chunked"): "clip.mp4 --chunked --out o",
    ("tokenize", "job"): "'clips/*.mp4' --out o",
    ("tokenize", "no job"): "clip.mp4 --out o",
    ("tokenize", "local"): "clip.mp4 --engine local --out o",
    ("tokenize", "patches"): "clip.mp4 --encoder patches --out o",
    ("tokenize", "selecting"): "clip.mp4 --select uniform_frames --out o",
    ("tokenize", "not selecting"): "clip.mp4 --out o",
    ("encode", "job"): "'clips/*.mp4' --tokenizer 'tubelet > tubelet' --out o",
    ("encode", "no job"): "clip.mp4 --tokenizer 'tubelet > tubelet' --out o",
    ("encode", "local"): "clip.mp4 --tokenizer 'tubelet > tubelet' --engine local --out o",
    ("train frames", "job"): "videos --engine local --out o",
    ("train frames", "no job"): "videos --out o",
    ("train frames", "local"): "videos --engine local --out o",
    ("ask", "stream"): "--stream cam.mkv --model m",
    ("ask", "no stream"): "clip.mp4 q --model m",
    ("show", "token files"): "a.safetensors --out a.png",
    ("show", "not one token file"): "clip.mp4 --encoder e --out a.png",
    ("show", "comparison"): "clip.mp4 --with tome --with evs --encoder e --out a.png",
    ("show", "page"): "clip.mp4 --encoder e --out a.html",
    ("show", "patches"): "clip.mp4 --out a.png",
    ("show", "tokenizer"): "clip.mp4 --tokenizer 'tubelet > tubelet' --out a.png",
    ("cost", "few tokens"): "--with uniform",
    ("cost", "networks"): "vit_s16 --time",
    ("cost", "networks without --time"): "vit_s16",
    ("bench", "compare"): "a.json b.json --compare",
    ("bench", "without DAVIS"): "clip.mp4 --encoder e --out o",
    ("bench", "DAVIS alone"): "--davis D --encoder e --out o",
    ("bench", "patches"): "clip.mp4 --davis D --out o",
    ("bench", "selecting"): "clip.mp4 --select uniform_frames --encoder e --out o",
    ("bench", "not selecting"): "clip.mp4 --davis D --encoder e --out o",
    ("bench", "job"): "clip.mp4 --engine local --encoder e --out o",
    ("bench", "no job"): "clip.mp4 --davis D --encoder e --out o",
    ("bench", "local"): "clip.mp4 --engine local --encoder e --out o",
    **{(f"eval {name}", "patches"): "--data D --out o" for name in ("davis", "jhmdb", "vip")},
    **{(f"eval {name}", "nothing written"): "--data D --encoder e" for name in ("davis", "jhmdb", "vip")},
    ("eval reconstruction", "images"): "photos --images --tokenizers t",
    ("eval reconstruction", "no distance"): "clip.mp4 --tokenizers t",
    ("eval bc", "no task"): "--data D --encoder e --out o",
    ("eval bc", "no camera"): "--data D --encoder e --out o",
    ("eval bc", "existing demonstrations"): "--data D --task t --encoder e --out o",
    ("eval bc", "recording"): "--task t --write-demos w",
    ("eval bc", "nothing written"): "--task t --encoder e",
    **{(f"eval {name}", "test set"): "--data D --val V" for name in ("fewshot", "linear", "knn")},
    ("train video-llm", "from"): "--data D --from M --out o",
    ("train classify", "test set"): "vit_s16 --data D --val V --out o",
}  # fmt: skip
# Values of options that are checked before anything runs; others accept any text.
VALUES = {
    "--device": "cpu",
    "--engine": "local",
    "--format": "shards",
    "--dtype": "float32",
    "--with": "uniform",
    "--tokenizer": "tubelet > tubelet",
    "--codecs": "jpeg",
    "--select": "uniform_frames",
    "--scorer": "features",
    "--sort": "tokens",
}
MODES = [(" ".join(names), mode.name) for names in every_verb() for mode in find(*names).modes]


def option(annotation: Any) -> list[str]:
    """Returns a flag, with a value that its type accepts."""
    kind, info, *_ = get_args(annotation)
    flag = info.default if isinstance(info.default, str) else info.param_decls[0]
    kinds = {kind, *get_args(kind)} | {part for each in get_args(kind) for part in get_args(each)}
    if bool in kinds:
        return [flag]
    return [flag, "40" if int in kinds else "0.5" if float in kinds else VALUES.get(flag, "x")]


def _without(words: list[str], flag: list[str]) -> list[str]:
    """Removes an option that is already on a command line, since options cannot be given twice."""
    if flag[0] not in words:
        return words
    at = words.index(flag[0])
    return words[:at] + words[at + len(flag) :]


def test_every_mode_is_covered():
    assert set(SAMPLES) == set(MODES)
    assert {verb for verb, _ in MODES} >= {"tokenize", "show", "cost", "bench"}


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_an_option_is_rejected_in_exactly_the_modes_in_which_it_has_no_effect(name, mode):
    verb = find(*name.split())
    words = ["fewtokens", *name.split(), *shlex.split(SAMPLES[name, mode])]

    def chosen(params: dict[str, Any]) -> list[Any]:
        return [each for each in verb.modes if each.chosen(params)]

    context = parse(words)
    verb.check(context)
    modes = chosen(context.params)
    assert mode in [each.name for each in modes]
    unused = {parameter for each in modes for parameter in each.unused}
    assert unused <= {parameter.name for parameter in verb.parameters}
    for parameter in verb.parameters:
        if (
            get_origin(parameter.annotation) is not Annotated
            or type(get_args(parameter.annotation)[1]).__name__ == "ArgumentInfo"
        ):
            continue
        flag = option(parameter.annotation)
        context = parse([*_without(words, flag), *flag])
        if parameter.name in unused:
            with pytest.raises(ValueError, match=flag[0]):
                verb.check(context)
        elif chosen(context.params) == modes:
            verb.check(context)


def test_debug_prints_the_traceback(tmp_path, capsys):
    words = ("methods", "tomee")
    line = error_line(quick(*words, code=2))
    done = quick(*words, "--debug", code=2)
    assert "Traceback (most recent call last)" in done.stderr
    assert "syntax.py" in done.stderr
    assert line.removeprefix("error: ").split(";")[0] in done.stderr


class TestTables:
    def lines(self, monkeypatch, rows: list[dict[str, Any]], width: int = 80) -> list[str]:
        monkeypatch.setattr(console.out, "width", width)
        with console.out.capture() as capture:
            console.out.print(tables.table("title", rows))
        return capture.get().splitlines()

    def test_columns_that_do_not_fit_follow_below_with_the_names_repeated(self, monkeypatch):
        rows = [{"method": f"method_{row}", **{f"number {n}": 1000 * row + n for n in range(20)}} for row in (1, 2)]
        lines = self.lines(monkeypatch, rows)
        assert max(map(len, lines)) <= 80
        text = " ".join(lines)
        assert all(f"{1000 * row + n}" in text for row in (1, 2) for n in range(20))
        assert text.count("method_1") == text.count("method_2") > 1

    def test_numbers_and_method_names_are_not_wrapped(self, monkeypatch):
        rows = [
            {"method": "representation_shift", "what": "long " * 40, "retention": 0.123, "none": None, "n": 12345.6}
        ]
        text = self.lines(monkeypatch, rows, 60)
        assert max(map(len, text)) <= 60
        assert any("representation_shift" in line and "12.30 %" in line and "12346" in line for line in text)

    @pytest.mark.parametrize(
        "words",
        [
            ["methods"], ["methods", "tome"], ["models"], ["models", "vit_s16"], ["llm-families"],
            ["llm-families", "qwen3_vl"], ["doctor"],
            ["cost", "tokenlearner_vit_l16_16at12", "vit_l16", "vit_s16"],
            ["cost", "--with", "token_dynamics(keep=32),tome(keep=0.1),kmeans(keep=0.1)", "--grid", "32x9x9"],
            ["demo", "--frames", "2", "--size", "32", "--out", "OUT"],
            ["bench", "clip.mp4", "--with", "tome_video(within='frame')", "--keep", "0.5", "--frames", "2",
             "--size", "32", "--repeats", "1", "--out", "OUT"],
        ],
    )  # fmt: skip
    def test_verbs_fit_80_columns(self, words, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        if "clip.mp4" in words:
            write(tmp_path / "clip.mp4", synthetic("static", frames=3, size=(32, 32)).frames, 10)
        done = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
        assert done.exit_code == 0, done.output
        # Command lines to copy are not wrapped.
        lines = [line for line in done.stdout.splitlines() if not line.startswith("  fewtokens ")]
        assert max(map(len, lines)) <= 80
        assert "…" not in done.stdout


class TestMethods:
    def test_all_are_listed_by_stage(self):
        from fewtokens.core import registry

        done = quick("methods")
        stages = [line.split(":")[0] for line in done.stdout.splitlines() if line.split(":")[0] in
                  ("frames", "pixels", "encoder", "tokens", "llm")]  # fmt: skip
        assert stages == ["frames", "pixels", "encoder", "tokens", "llm"]
        for name in registry.every_name():
            assert any(line.startswith(f"{name} ") for line in done.stdout.splitlines()), name
        assert "Merges the most similar tokens of a video pairwise" in done.stdout

    def test_layer_methods_are_described(self):
        text = quick("methods", "fastv").stdout
        assert "stage llm" in text and "arXiv" in text

    def test_first_sentences(self):
        from fewtokens.cli.methods import summary_of

        assert summary_of("Does `this`, cf. arXiv 1.2. Then that.\n\nMore.") == "Does this, cf. arXiv 1.2"
        assert summary_of("One\nsentence.") == "One sentence"


class TestProgress:
    def test_long_loops_report_progress(self, tmp_path, monkeypatch):
        """All verbs use the same function; here for a video in chunks."""
        from contextlib import contextmanager

        calls = []

        @contextmanager
        def record(title, total, **options):
            yield lambda done, total=total, title=None: calls.append((done, total))

        monkeypatch.setattr("fewtokens.cli.tokenize.progress", record)
        clip = write(tmp_path / "clip.mp4", synthetic("static", frames=12, size=(32, 32)).frames, 1)
        quick("tokenize", clip, "--chunked", "--chunk", 5, "--with", "rlt", "--size", 32, "--out", tmp_path / "o")
        assert calls == [(4, 12), (9, 12), (11, 12)]

    def test_all_loops_use_it(self):
        """No verb has a separate progress bar."""
        root = Path(console.__file__).parent
        bars = [path.name for path in root.rglob("*.py") if "rich.progress" in path.read_text()]
        assert bars == ["progress.py"]


def test_names_of_groups():
    assert names_of(Group, without=("size",)) == ("needed", "name")
    assert isinstance(console.out, Console)


def test_a_token_file_of_an_earlier_version_is_read(tmp_path):
    """It called `video_stream` `stream`."""
    from fewtokens import Tokens

    clip = write(tmp_path / "clip.mp4", synthetic("static", frames=4, size=(32, 32)).frames, 10)
    out = tmp_path / "a.safetensors"
    words = ("tokenize", clip, "--frames", 2, "--size", 32, "--out", out)
    quick(*words)
    tokens = Tokens.load(out)
    reading = dict(tokens.meta["reading"])
    reading["stream"] = reading.pop("video_stream")
    tokens.replace(meta={**tokens.meta, "reading": reading}).save(out)
    assert "skipped" in quick(*words).stderr
    quick("show", out, "--out", tmp_path / "a.png")
    del reading["size"]
    tokens.replace(meta={**tokens.meta, "reading": reading}).save(out)
    assert "has no size" in error_line(quick("show", out, "--out", tmp_path / "a.png", code=2))
