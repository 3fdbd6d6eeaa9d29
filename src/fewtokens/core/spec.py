"""`Spec`: derives the spec string and the config of a class from its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from fewtokens.core import entry_points

# Packages in which the file of a class gives its name in spec strings.
_PACKAGES = ("fewtokens.methods.", "fewtokens.tokenizers.encoders", "fewtokens.tokenizers.decoders")


class _ExternalName:
    """The `name` of a class of another package, looked up in the entry points on first use."""

    def __get__(self, instance: object, owner: type) -> str:
        name = entry_points.name_of(owner) or owner.__name__
        owner.name = name  # type: ignore[attr-defined]
        return name


def format_short(kind: type, name: str, arguments: Mapping[str, Any]) -> str:
    """Formats a spec without the arguments that have their default value, except `keep`."""
    parameters = inspect.signature(kind).parameters
    shown = {
        key: value
        for key, value in arguments.items()
        if key not in parameters or value != parameters[key].default or (key == "keep" and value is not None)
    }
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in shown.items())})" if shown else name


class Spec:
    """The base class of objects that a spec string `name(argument=value, ...)` can build.

    Constructor arguments are plain values, keyword-only after the first. Each is stored as an attribute of the same
    name, so that the spec string, the config and the command-line flags can be derived from the signature.

    Attributes:
        name: the name in spec strings: that of the file in `fewtokens.methods` or among the parts of tokenizers, or of
            the entry point of another package. A class that is not registered has its class name, which no spec string
            can contain.
        arguments: the constructor arguments and their values, by name.
        spec: the spec string that builds the object; arguments that are None by default and None are omitted.
        short_spec: the spec without arguments that have their default value, except `keep`; for figures and tables.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        package, _, module = cls.__module__.rpartition(".")
        cls.name = module if package.startswith(_PACKAGES) else _ExternalName()  # type: ignore[assignment]

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor arguments and their values, by name.

        Raises:
            TypeError: the constructor does not store an argument under its own name.
        """
        names = list(inspect.signature(type(self)).parameters)
        if missing := [name for name in names if not hasattr(self, name)]:
            remedy = "; call self.set_budget(keep)" if missing[0] == "keep" and hasattr(self, "set_budget") else ""
            raise TypeError(
                f"argument {missing[0]} of {type(self).__name__} is not stored as self.{missing[0]}{remedy}"
            )
        return {name: getattr(self, name) for name in names}

    @property
    def spec(self) -> str:
        """The spec string that builds the object; arguments that are None by default and None are omitted."""
        return f"{self.name}({self.extra_repr()})"

    @property
    def short_spec(self) -> str:
        """The spec without arguments that have their default value, except `keep`: "tome(keep=0.1)" or "rlt"."""
        return format_short(type(self), self.name, self.arguments)

    def extra_repr(self) -> str:
        """The arguments of the spec string; also shown by `repr` of modules."""
        parameters = inspect.signature(type(self)).parameters
        return ", ".join(
            f"{name}={value!r}"
            for name, value in self.arguments.items()
            if value is not None or parameters[name].default is not None
        )
