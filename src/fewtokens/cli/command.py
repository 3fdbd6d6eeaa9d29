"""Turns a function into a verb, with grouped options, examples, modes and one-line errors."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from fewtokens.cli.errors import check_numbers, refuse, report_errors
from fewtokens.cli.options import PANELS, RUN, Check

DEBUG = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error instead of one line.", rich_help_panel=RUN)
]


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to use a verb in which some of its options have no effect; giving those is an error.

    Attributes:
        name: label in tests.
        chosen: whether the values of the parameters select the mode. Several modes can be selected together.
        unused: parameters that have no effect in it.
        why: end of the message, in the plural: "require --chunked".
    """

    name: str
    chosen: Callable[[Mapping[str, Any]], bool]
    unused: tuple[str, ...]
    why: str


class Verb:
    """A function that the command line can call.

    Attributes:
        function: its parameters are annotated as options or arguments of typer, or are dataclasses of such fields.
        examples: command lines that can be copied, each beginning with "fewtokens".
        modes: checked before the function is called.
        help: text of --help. Default: the docstring of the function.
    """

    def __init__(
        self,
        function: Callable[..., None],
        examples: Sequence[str],
        modes: Sequence[Mode] = (),
        help: str | None = None,
    ) -> None:
        self.function, self.examples, self.modes = function, tuple(examples), tuple(modes)
        paragraphs = (help or inspect.cleandoc(function.__doc__ or "")).split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        self.groups: dict[str, Any] = {}  # parameters that are dataclasses
        self.parameters = self._expand()

    def _expand(self) -> list[inspect.Parameter]:
        """Returns the parameters of the function, with each dataclass replaced by its fields.

        If such a parameter has a default, an instance, the values of that instance are the defaults of the fields;
        a field without a default in the class stays required.
        """
        hints = get_type_hints(self.function, include_extras=True)
        parameters = []
        for parameter in inspect.signature(self.function).parameters.values():
            kind = hints[parameter.name]
            if not dataclasses.is_dataclass(kind):
                parameters.append(parameter.replace(annotation=kind, kind=_KEYWORD))
                continue
            self.groups[parameter.name] = kind
            fields = get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                default = inspect.Parameter.empty
                if field.default is not dataclasses.MISSING:
                    default = getattr(parameter.default, field.name, field.default)
                annotation = fields[field.name]
                parameters.append(inspect.Parameter(field.name, _KEYWORD, annotation=annotation, default=default))
        return parameters

    def _pack(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of the function, with the fields of each dataclass collected in an instance."""
        names = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in self.groups.items()}
        groups = {
            name: kind(**{field: values.pop(field) for field in names[name]}) for name, kind in self.groups.items()
        }
        return values | groups

    def check(self, context: typer.Context) -> None:
        """Raises ValueError for numbers out of range, options without effect in the selected modes, wrong names."""
        check_numbers(context.params)
        for mode in self.modes:
            if mode.chosen(context.params):
                refuse(context, mode.unused, mode.why)
        for check, value in self._checks(context):
            check.function(value)

    def find(self, context: typer.Context) -> None:
        """Raises ValueError if a model that an option names is not found."""
        for check, value in self._checks(context):
            if check.find is not None:
                check.find(value)

    def _checks(self, context: typer.Context) -> list[tuple[Check, Any]]:
        """Returns the checks of the options with their values, if they have one."""
        return [
            (part, context.params[parameter.name])
            for parameter in self.parameters
            for part in getattr(parameter.annotation, "__metadata__", ())
            if isinstance(part, Check) and context.params[parameter.name] is not None
        ]

    def command(self, name: str, short_help: str) -> TyperCommand:
        """Returns the command that parses the command line and calls the function."""

        def run(context: typer.Context, debug: bool, **values: Any) -> None:
            with report_errors(debug):
                self.check(context)
                self.find(context)
                if needs_context:
                    values["context"] = context
                self.function(**self._pack(values))

        needs_context = any(parameter.name == "context" for parameter in self.parameters)
        parameters = [parameter for parameter in self.parameters if parameter.name != "context"]
        parameters.insert(0, inspect.Parameter("context", _KEYWORD, annotation=typer.Context))
        parameters.append(inspect.Parameter("debug", _KEYWORD, annotation=DEBUG, default=False))
        parameters.sort(key=_panel)
        # typer reads the signature and the annotations.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        app.command(name, cls=_Command, help=self.help, short_help=short_help)(run)
        command = typer.main.get_command(app)
        assert isinstance(command, _Command)
        command.examples = self.examples
        return command


def verb(*examples: str, modes: Sequence[Mode] = ()) -> Callable[[Callable[..., None]], Verb]:
    """Turns a function into a `Verb`."""
    return lambda function: Verb(function, examples, modes)


def write_examples(formatter: Any, examples: Sequence[str]) -> None:
    """Writes examples below the help, one per line. Not with rich: it wraps long lines, so they could not be copied."""
    formatter.write("\n".join([" Examples:", "", *(f"  {example}" for example in examples), ""]))


def _panel(parameter: inspect.Parameter) -> int:
    """Sort key: arguments first, in their order, then options by panel."""
    panels = [getattr(part, "rich_help_panel", None) for part in getattr(parameter.annotation, "__metadata__", ())]
    return PANELS.index(panels[0]) if panels and panels[0] else -1


class _Command(TyperCommand):
    """A command whose help lists --help in the panel "Run", and the examples at the end."""

    examples: tuple[str, ...] = ()

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = RUN
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line; an option with one value that is given twice is an error, not overridden."""
        if not ctx.resilient_parsing and "--help" not in args:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            counts = Counter(param.name for param in order)
            for param in self.params:
                single = (
                    param.param_type_name == "option" and not param.multiple and not getattr(param, "is_flag", False)
                )
                if single and counts[param.name] > 1:
                    ctx.fail(f"{param.opts[0]} is given {counts[param.name]} times; give it once")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        write_examples(formatter, self.examples)
