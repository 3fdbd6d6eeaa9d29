"""A class that is built from plain arguments, and written down as the spec string that builds it again."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class Spec:
    """Constructor arguments as a spec string: `tome(keep=0.25)`.

    Arguments are plain values, each stored under its own name.

    Class attributes:
        name: the name in spec strings; by default the name of the module.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = cls.__module__.rpartition(".")[2]

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments and their values here."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def spec(self) -> str:
        """The spec string that builds this object again; arguments that are None are left out."""
        return f"{self.name}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """The arguments as a spec string writes them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if value is not None)
