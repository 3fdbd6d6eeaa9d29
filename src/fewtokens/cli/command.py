"""How a function becomes a verb: its options in groups, its examples, its modes, its errors of one line."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from fewtokens.cli.errors import check_numbers, refuse, reported
from fewtokens.cli.options import PANELS, RUN

DEBUG = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error instead of one line.", rich_help_panel=RUN)
]


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to use a verb in which some of its options have no meaning; giving them is an error.

    Attributes:
        name: as tests name it.
        chosen: whether these values, by parameter, choose it. Several modes may be chosen at once.
        unused: the parameters without a meaning in it.
        why: ends the message, after several options: "belong to --chunked".
    """

    name: str
    chosen: Callable[[Mapping[str, Any]], bool]
    unused: tuple[str, ...]
    why: str


class Verb:
    """A function with what the command line needs to know of it.

    Attributes:
        function: parameters are options and arguments in typer's own annotations, or dataclasses of such fields.
        examples: lines to copy, each beginning with "fewtokens".
        modes: see `Mode`; checked before the function is called.
        help: the docstring, if nothing else is given.
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
        """The parameters of the function, with the fields of a dataclass in its place.

        If the parameter has a default, an instance, its values are the defaults of the fields; a field that has no
        default in the class stays required.
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
        """The arguments of the function: the fields of each dataclass put together."""
        names = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in self.groups.items()}
        groups = {
            name: kind(**{field: values.pop(field) for field in names[name]}) for name, kind in self.groups.items()
        }
        return values | groups

    def check(self, context: typer.Context) -> None:
        """Raises a ValueError for numbers that cannot be meant, and for options without a meaning in the mode."""
        check_numbers(context.params)
        for mode in self.modes:
            if mode.chosen(context.params):
                refuse(context, mode.unused, mode.why)

    def command(self, name: str, short_help: str) -> TyperCommand:
        """What parses the command line and calls the function."""

        def run(context: typer.Context, debug: bool, **values: Any) -> None:
            with reported(debug):
                self.check(context)
                if needs_context:
                    values["context"] = context
                self.function(**self._pack(values))

        needs_context = any(parameter.name == "context" for parameter in self.parameters)
        parameters = [parameter for parameter in self.parameters if parameter.name != "context"]
        parameters.insert(0, inspect.Parameter("context", _KEYWORD, annotation=typer.Context))
        parameters.append(inspect.Parameter("debug", _KEYWORD, annotation=DEBUG, default=False))
        parameters.sort(key=_panel)
        # typer reads both.
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
    """Below the help, one to a line. Not by rich, which breaks long lines, so that they cannot be copied."""
    formatter.write("\n".join([" Examples:", "", *(f"  {example}" for example in examples), ""]))


def _panel(parameter: inspect.Parameter) -> int:
    """Arguments come first, in their order; options in the order of their panels."""
    panels = [getattr(part, "rich_help_panel", None) for part in getattr(parameter.annotation, "__metadata__", ())]
    return PANELS.index(panels[0]) if panels and panels[0] else -1


class _Command(TyperCommand):
    """Puts --help beside the other options of the run, and the examples below, one to a line as they are typed."""

    examples: tuple[str, ...] = ()

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = RUN
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        write_examples(formatter, self.examples)
