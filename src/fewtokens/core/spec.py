"""Constructor arguments, spec string and config, each made from the others."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class Spec:
    """Something that a spec string builds: `name(argument=value, ...)`.

    Arguments are plain values, keyword-only after the first, each stored under its own name, so that the config, the
    flag and the spec string are all made from the signature.

    Attributes:
        name: the name in spec strings. In `fewtokens.methods` it is the file's name; a class registered by an entry
            point has the name of that; any other one has its class name, and is known to nobody else.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        package, _, module = cls.__module__.rpartition(".")
        cls.name = module if package.startswith("fewtokens.methods.") else cls.__name__

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments and their values here."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def spec(self) -> str:
        """The spec string that builds this again; arguments that are None are left out."""
        return f"{self.name}({self.extra_repr()})"

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if value is not None)
