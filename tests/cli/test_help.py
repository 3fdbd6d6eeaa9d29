"""Help, completion and usage errors: fast, without torch, with examples that can be copied."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict

import pytest
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.cli.options import PANELS
from fewtokens.cli.root import Root
from fewtokens.cli.verbs import EXAMPLES, GROUPS, VERBS, every_verb, find
from tests.cli.test_command import COMMAND, error_line, run
from tests.helpers.command import parse

# In addition to --help of every verb.
WITHOUT_TORCH = (
    ["--help"],
    ["--version"],
    ["tokenzie"],
    ["eval", "davi"],
    ["tokenize", "clip.mp4", "--ouput", "o"],
    ["tokenize", "clip.mp4"],
    ["tokenize", "clip.mp4", "--chunk", "3", "--out", "o"],
    ["tokenize", "missing.mp4", "--out", "o.safetensors"],
    ["tokenize", "missing.mp4", "--chunked", "--out", "o"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--keep", "a lot"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--keep", "2.0"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--frames", "4", "--fps", "2"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--frames", "0"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--size", "0"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--batch", "4"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o.safetensors"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--with", "tomee"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--with", "tome(keep="],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--with", "evs(0.1) | tome(kep=0.1)"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--with", "tome(keep=8/frame)"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--device", "tpu"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--dtype", "int4"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--encoder", "./missing"],
    ["encode", "clip.mp4", "--tokenizer", "nothing", "--out", "o"],
    ["encode", "clip.mp4", "--tokenizer", "./missing", "--out", "o"],
    ["encode", "missing.mp4", "--tokenizer", "tubelet > tubelet", "--out", "o.safetensors"],
    ["encode", "a.mp4", "b.mp4", "--tokenizer", "tubelet > tubelet", "--out", "o.safetensors"],
    ["encode", "a.mp4", "--tokenizer", "tubelet > tubelet", "--frames", "4", "--fps", "2", "--out", "o"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--encoder", "vit_nothing"],
    ["tokenize", "a.mp4", "b.mp4", "--out", "o", "--encoder", "nobody/nothing"],
    ["bench", "a.mp4", "b.mp4", "--out", "o", "--encoder", "vit_nothing"],
    ["show", sys.executable, "--out", "a.png", "--tokenizer", "nobody/nothing"],
    ["ask", sys.executable, "What happens?", "--model", "nobody/nothing"],
    ["eval", "knn", "--data", ".", "--encoder", "vit_nothing"],
    ["eval", "bc", "--data", ".", "--encoder", "vit_nothing"],
    ["eval", "videoqa", "--model", "nobody/nothing"],
    ["eval", "reconstruction", ".", "--tokenizers", "./missing"],
    ["eval", "reconstruction", ".", "--tokenizers", "nobody/nothing"],
    ["train", "video-llm", "--data", "a", "--encoder", "nobody/nothing", "--llm", "l", "--out", "o"],
    ["train", "classify", "vit_nothing", "--data", ".", "--out", "o"],
    ["train", "tokenizer", ".", "--tokenizer", "nothing", "--out", "o"],
    ["train", "tokenizer", ".", "--tokenizer", "nothing > tubelet", "--out", "o"],
    ["train", "tokenizer", ".", "--init", "nobody/nothing", "--out", "o"],
    ["models", "vit_nothing"],
    ["cost", "vit_s16", "vit_nothing"],
    ["encode", "clip.mp4", "--tokenizer", "nobody/nothing", "--out", "o"],
    ["encode", "clip.mp4", "--tokenizer", "nothing > tubelet", "--out", "o"],
    ["encode", "clip.mp4", "--tokenizer", "tubelet > nothing", "--out", "o"],
    ["encode", "clip.mp4", "--tokenizer", "tubelet | nothing > tubelet", "--out", "o"],
    ["encode", "clip.mp4", "--tokenizer", "tubelet(wdth=8) > tubelet", "--out", "o"],
    ["decode", "missing.safetensors", "--out", "a.mp4"],
    ["decode", "a.safetensors", "b.safetensors", "--out", "a.mp4"],
    ["decode", "a.safetensors", "--out", "a.txt"],
    ["tokenizers", "nothing"],
    ["methods", "tomee"],
    ["methods", "--stage", "never"],
    ["cost", "--with", "full,tomee"],
    ["cost", "vit_s16", "--time", "--device", "tpu"],
    ["bench", "a.mp4", "b.mp4", "--out", "o", "--with", "tome,kmeans(keep=0.1),tomee"],
    ["bench", "--out", "o"],
    ["bench", "a.mp4", "b.mp4"],
    ["bench", "a.mp4", "b.mp4", "--out", "o", "--keep", "a lot"],
    ["bench", "--compare", "a.json"],
    ["bench", "--compare", "a.json", "b.json"],
    ["show", "missing.safetensors", "--out", "a.png"],
    ["show", sys.executable, "--out", "a.tiff"],
    ["show", sys.executable, "--out", "a.png", "--style", "oil"],
    ["show", sys.executable, "--out", "a.bmp", "--with", "tome", "--with", "evs"],
    ["show", sys.executable, "--out", "a.png", "--with", "tomee"],
    ["bench", "missing.mp4", "--out", "o"],
    ["words", "missing.mp4", "--out", "w.safetensors"],
    ["ask", "missing.mp4", "What happens?", "--model", "m"],
    ["ask", "--model", "m"],
    ["ask", "--stream", "missing.mp4", "What happens?", "--model", "m"],
    ["ask", "--stream", sys.executable, "--resume", "missing", "What happens?", "--model", "m"],
    ["ask", "clip.mp4", "What happens?", "--model", "m", "--trigger", "0.1"],
    ["train", "classify", "vit_s16", "--data", "missing", "--out", "o"],
    ["train", "tobo", "missing", "--out", "o"],
    ["train", "frames", "missing", "--out", "o"],
    ["train", "video-llm", "--data", "missing", "--encoder", "e", "--llm", "l", "--out", "o"],
    ["ask", sys.executable, "What happens?", "--model", "./missing"],
    ["ask", sys.executable, "What happens?", "--model", "m", "--dtype", "int4"],
    ["train", "tobo", ".", "--out", "o", "--epochs", "0"],
    ["train", "video-llm", "--data", "a", "--encoder", "e", "--llm", "l", "--out", "o", "--with", "tomee"],
    ["eval", "davis", "--data", "."],
    ["eval", "jhmdb", "--data", "."],
    ["eval", "vip", "--data", "."],
    ["eval", "classify", "missing", "--data", "."],
    ["eval", "knn", "--data", ".", "--encoder", "./missing"],
    ["eval", "davis", "--data", "missing"],
    ["eval", "jhmdb", "--data", "missing"],
    ["eval", "vip", "--data", "missing"],
    ["eval", "bc", "--data", "missing", "--encoder", "patches"],
    ["eval", "classify", "m", "--data", "missing"],
    ["eval", "knn", "--data", "missing"],
    ["eval", "qa", "--model", "m", "--dataset", "nextqa", "--data", "missing"],
)


def test_help_and_usage_errors_do_not_import_torch(tmp_path):
    lines = [*WITHOUT_TORCH, *([*names, "--help"] for names in every_verb())]
    code = (
        "import sys\n"
        "from fewtokens.cli import main\n"
        f"for words in {lines!r}:\n"
        "    sys.argv = ['fewtokens', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as error:\n"
        "        expected = 0 if words[-1] in ('--help', '--version') else 2\n"
        "        assert (error.code or 0) == expected, (words, error.code)\n"
        "    heavy = [name for name in ('torch', 'numpy', 'av', 'transformers') if name in sys.modules]\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mistakes = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(mistakes) == sum(words[-1] not in ("--help", "--version") for words in lines)
    assert all(line.startswith("error: ") for line in mistakes)
    assert not list(tmp_path.iterdir())


def test_the_installed_command_does_not_import_torch():
    """With everything that the start script imports."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--version']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as error:\n    assert not error.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(COMMAND)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fewtokens 0.")


def test_a_usage_error_is_one_line_that_says_what_to_do():
    for words, message in (
        (["tokenzie"], "did you mean tokenize or tokenizers? see fewtokens --help"),
        (["eval", "davi"], "did you mean davis? see fewtokens eval --help"),
        (["train", "vit_nano8"], "fewtokens train classify vit_nano8"),
        (["tokenize", "a.mp4", "--ouput", "o"], "--out"),
        (["tokenize", "a.mp4"], "missing option '--out'; see fewtokens tokenize --help"),
        (["tokenize", "a.mp4", "--out", "o", "--frames", "many"], "invalid value for '--frames'"),
    ):
        assert message in error_line(run(*words, code=2))


@pytest.mark.parametrize("group", GROUPS)
def test_groups_list_one_line_per_verb(group):
    lines = run(group, "--help").stdout.splitlines()
    for name, summary in GROUPS[group].items():
        (line,) = [line for line in lines if line.strip("│ ").startswith(f"{name} ")]
        assert summary in line
    assert run(group, code=2).stdout.splitlines()[1:3] == lines[1:3]


@pytest.mark.parametrize("names", every_verb(), ids=" ".join)
def test_every_verb_has_examples_that_its_parser_accepts(names):
    examples = find(*names).examples
    assert len(examples) >= 2
    shown = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    lines = [line.strip() for line in shown.splitlines()]
    for example in examples:
        assert example.startswith(f"fewtokens {' '.join(names)} ") or example == f"fewtokens {' '.join(names)}"
        assert example in lines  # not wrapped, even if long
        context = parse(shlex.split(example))
        find(*names).check(context)


def test_examples_of_groups_parse():
    assert run("--help").stdout.count("\n  fewtokens ") == len(Root.examples)
    for example in (*Root.examples, *(line for lines in EXAMPLES.values() for line in lines)):
        words = shlex.split(example)
        if words[-1] != "--help":
            parse(words)


@pytest.mark.parametrize("names", every_verb(), ids=" ".join)
def test_options_are_grouped_in_panels(names):
    command = find(*names).command(names[-1], "")
    panels = [param.rich_help_panel for param in command.params if param.param_type_name == "option"]
    assert set(panels) <= set(PANELS)
    assert panels == sorted(panels, key=PANELS.index)


def test_an_option_name_has_one_meaning():
    """An option of the same name is a flag in all verbs or in none."""
    flags = defaultdict(set)
    for names in every_verb():
        for param in find(*names).command(names[-1], "").params:
            for flag in param.opts if param.param_type_name == "option" else ():
                flags[flag].add(param.is_flag)
    assert not {flag for flag, kinds in flags.items() if len(kinds) > 1} - {"--compare"}
    removed = {"--methods", "--items", "--videos", "--video-size"}
    assert not removed & flags.keys()
    assert {"--encoder", "--model", "--with", "--chunked", "--video-stream"} <= flags.keys()


class TestCompletion:
    def complete(self, line: str, shell: str = "bash") -> list[str]:
        """Returns the completions that a shell offers at the end of a line, by the protocol of its script."""
        words = line.split(" ")
        environment = {**os.environ, "_FEWTOKENS_COMPLETE": f"complete_{shell}"}
        environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
        environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        done = subprocess.run([str(COMMAND)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    def test_verbs(self):
        assert set(self.complete("fewtokens ")) == set(VERBS)
        assert self.complete("fewtokens tok") == ["tokenize", "tokenizers"]

    def test_verbs_of_groups(self):
        assert set(self.complete("fewtokens eval ")) == set(GROUPS["eval"])
        assert self.complete("fewtokens train to") == ["tobo", "tokenizer", "token-dynamics"]

    def test_options(self):
        assert self.complete("fewtokens tokenize --chu") == ["--chunked", "--chunk"]
        assert self.complete("fewtokens eval davis --prot") == ["--protocol"]
        assert self.complete("fewtokens --ver") == ["--version"]

    def test_other_shells(self):
        assert any("tokenize" in line for line in self.complete("fewtokens tok", "fish"))
        assert any("tokenize" in line for line in self.complete("fewtokens tok", "zsh"))

    @pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
    def test_the_installed_script(self, tmp_path):
        """Printed by the root, sourced by bash, and called as bash does for a tab."""
        environment = {**os.environ, "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"}
        environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # so that the shell is named, not guessed
        script = subprocess.run(
            [str(COMMAND), "--show-completion", "bash"], capture_output=True, text=True, env=environment, check=True
        ).stdout
        (tmp_path / "completion.sh").write_text(script)
        ask = "source completion.sh; COMP_WORDS=(fewtokens eval da); COMP_CWORD=2; _fewtokens_completion fewtokens"
        done = subprocess.run(
            ["bash", "-c", f"{ask}; echo ${{COMPREPLY[@]}}"], capture_output=True, text=True, cwd=tmp_path,
            env=environment,
        )  # fmt: skip
        assert done.stdout.split() == ["davis"], done.stderr

    def test_it_is_offered_only_at_the_root(self):
        assert "--show-completion" in run("--help").stdout
        for names in [*every_verb(), *((group,) for group in GROUPS)]:
            assert "completion" not in CliRunner().invoke(app, [*names, "--help"]).stdout
        done = CliRunner().invoke(app, ["eval", "--show-completion"])
        assert done.exit_code == 2
