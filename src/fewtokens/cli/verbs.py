"""The verbs and groups of verbs, with one line of help for each; a verb is imported when it is called."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fewtokens.cli.command import Verb, write_examples

# A verb is in the file of its name, a verb of a group in the folder of the group; see `find` for the exception.
VERBS = {
    "demo": "Run every method on two generated videos. No weights needed.",
    "methods": "List the methods, or describe one.",
    "models": "List the networks, or describe one.",
    "cost": "Count operations, parameters, memory and time of a network.",
    "tokenize": "Turn videos into few tokens and save them.",
    "export": "Copy tokens to WebDataset, Parquet or Hugging Face datasets.",
    "encode": "Encode videos with a tokenizer, to files that can be decoded.",
    "decode": "Decode encoded videos to videos and images.",
    "tokenizers": "List the tokenizers, or describe one.",
    "ask": "Ask a video language model about a video, with few visual tokens.",
    "llm-families": "List the families of video language models.",
    "words": "Fit the vocabulary of the method visual_words.",
    "bench": "Compare methods on your videos with your encoder.",
    "show": "Draw the region of the video that each token stands for.",
    "page": "Compare methods on your clips in a browser.",
    "train": "Train a network on your images or videos.",
    "eval": "Score a trained network or a frozen encoder.",
    "doctor": "Check the installation and optional dependencies.",
}
TRAIN = {
    "classify": "Train a classifier on labeled images or videos.",
    "tobo": "Pre-train an encoder on videos with Token Bottleneck.",
    "mae": "Pre-train an encoder on frames as a masked autoencoder.",
    "siam-mae": "Pre-train an encoder on pairs of frames with SiamMAE.",
    "rsp": "Pre-train an encoder to predict later frames with RSP.",
    "crop-mae": "Pre-train an encoder on crops of frames with CropMAE.",
    "tokenizer": "Train a tokenizer, which encodes videos and decodes them.",
    "bpe": "Merge frequent pairs of a tokenizer's codes into new ones.",
    "frames": "Decode videos before pre-training, to read them faster.",
    "video-llm": "Train a video language model from an encoder and an LLM.",
    "token-dynamics": "Train a compressor in a trained video language model.",
}
EVAL = {
    "davis": "Score mask propagation on DAVIS (J and F).",
    "jhmdb": "Score joint propagation on JHMDB (PCK).",
    "vip": "Score human-part propagation on VIP (mean IoU).",
    "reconstruction": "Score what tokenizers keep of videos per bit.",
    "bc": "Score robot tasks by behavior cloning on frozen features.",
    "classify": "Score a trained classifier.",
    "fewshot": "Score a frozen encoder by a few-shot probe.",
    "linear": "Score a frozen encoder by a linear probe.",
    "knn": "Score a frozen encoder by nearest neighbors.",
    "qa": "Score a video language model on public question sets.",
    "videoqa": "Score a video language model on generated clips.",
}
GROUPS = {"train": TRAIN, "eval": EVAL}
EXAMPLES = {
    "train": (
        "fewtokens train classify tokenlearner_vit_nano8_8at2 --data photos/ --out run --size 64 --epochs 30",
        "fewtokens train tobo videos/ --out run",
        "fewtokens train tobo --help",
    ),
    "eval": (
        "fewtokens eval davis --data DAVIS/ --encoder run/model --out scores/",
        "fewtokens eval classify run/model --data photos/",
        "fewtokens eval davis --help",
    ),
}
_PRETRAINING = ("tobo", "mae", "siam-mae", "rsp", "crop-mae")


def find(*names: str) -> Verb:
    """Returns the verb with these names, such as ("eval", "davis")."""
    file = "pretraining" if names[0] == "train" and names[1] in _PRETRAINING else names[-1]
    module = import_module(".".join(["fewtokens.cli", *names[:-1], file.replace("-", "_")]))
    verb = getattr(module, names[-1].replace("-", "_"))
    assert isinstance(verb, Verb)
    return verb


def every_verb() -> list[tuple[str, ...]]:
    """Returns the names of every verb, such as ("eval", "davis")."""
    return [(name, *sub) for name in VERBS for sub in ([(each,) for each in GROUPS[name]] if name in GROUPS else [()])]


class Verbs(TyperGroup):
    """A group that lists its verbs from a table, and imports a verb when it is called."""

    prefix: tuple[str, ...] = ()
    table: Mapping[str, str] = VERBS
    examples: tuple[str, ...] = ()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns what help and completion need: the name of a verb and its line of help."""
        if cmd_name not in self.table:
            return None
        return TyperCommand(cmd_name, callback=None, help=self.table[cmd_name], rich_markup_mode="rich")

    def load(self, name: str) -> TyperCommand | TyperGroup:
        """Imports a verb or builds a group."""
        if name in GROUPS and not self.prefix:
            return _group(name)
        return find(*self.prefix, name).command(name, self.table[name])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        write_examples(formatter, self.examples)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in self.table:
            return name, self.load(name), args[1:]
        if ctx.resilient_parsing:
            return None, None, args[1:]
        close = difflib.get_close_matches(name, self.table, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"verbs: {', '.join(self.table)}"
        if self.prefix == ("train",) and not close:
            hint += f"; to train a network: {ctx.command_path} classify {name}"
        return ctx.fail(f"no verb {name!r} in {ctx.command_path}; {hint}")


def _group(name: str) -> TyperGroup:
    kind = type(
        f"{name.capitalize()}Verbs", (Verbs,), {"prefix": (name,), "table": GROUPS[name], "examples": EXAMPLES[name]}
    )
    app = typer.Typer(
        name=name, cls=kind, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
    )
    app.callback(help=VERBS[name])(lambda: None)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group
