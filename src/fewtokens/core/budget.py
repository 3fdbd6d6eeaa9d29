"""How many tokens a method leaves: the one place where a budget is read, checked and becomes a count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fewtokens.core.grid import Grid

Unit = Literal["share", "count", "per frame", "pruning rate"]

_EXAMPLES = {
    "share": "a share of the cells in (0, 1] such as 0.1",
    "count": "a count of at least 1 such as 32",
    "per frame": "a count for each frame such as '8/frame'",
}


class NotBoth(ValueError):
    """A budget beside an argument that says how much is left in another way."""


@dataclass(frozen=True)
class Budget:
    """How many tokens a method leaves of one video.

    Args:
        value: the number.
        unit: "share" of the grid's cells, in (0, 1]; "count" of tokens of the video, at least 1; tokens "per frame", at
            least 1; or "pruning rate" in [0, 1), vLLM's share of the cells that go.
    """

    value: float | int
    unit: Unit

    @staticmethod
    def parse(keep: Any, *, caller: str = "", units: tuple[Unit, ...] = ("share", "count", "per frame")) -> Budget:
        """Reads a `keep` argument: 0.1 is a share, 32 a count, "8/frame" a count for each frame.

        Args:
            keep: float, int or str.
            caller: the method's name, for the message.
            units: what the caller takes.

        Raises:
            ValueError: not a budget, out of range, or of a unit that the caller does not take.
        """
        value, unit = _read(keep)
        if unit not in units or not (0 < value <= 1 if unit == "share" else value >= 1):
            choices = [_EXAMPLES[one] for one in units]
            who = f"{caller}: " if caller else ""
            raise ValueError(f"{who}keep must be {' or '.join(choices)}, got {keep!r}")
        return Budget(value, unit)

    @staticmethod
    def choose(
        caller: str,
        keep: Any,
        *,
        default: Any = None,
        units: tuple[Unit, ...] = ("share", "count", "per frame"),
        **instead: Any,
    ) -> Budget | None:
        """The budget of a method that takes `keep` or says in another way how much is left.

        Args:
            caller: the method's name, for the messages.
            keep: None if not given.
            default: the budget if neither is given; None where the method then works by its own default.
            units: what the caller takes.
            instead: the other arguments, None where not given.

        Returns:
            The budget; None where one of the others, or the method's own default, decides.

        Raises:
            NotBoth: more than one is given.
            ValueError: as `parse`.
        """
        given = [name for name, value in {"keep": keep, **instead}.items() if value is not None]
        if len(given) > 1:
            takes = [f"{name}=" for name in ("keep", *instead)]
            raise NotBoth(f"{caller} takes one of {', '.join(takes[:-1])} and {takes[-1]}, got {' and '.join(given)}")
        if given and given != ["keep"]:
            return None
        keep = default if keep is None else keep
        return None if keep is None and instead else Budget.parse(keep, caller=caller, units=units)

    @staticmethod
    def pruning(rate: Any, *, caller: str) -> Budget:
        """vLLM's pruning rate q: the share 1 - q of the cells stays, in double precision, cut off.

        Raises:
            ValueError: not a number in [0, 1).
        """
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"{caller}: q is a pruning rate in [0, 1), got {rate!r}")
        return Budget(rate, "pruning rate")

    def count(self, grid: Grid) -> int:
        """Tokens of one video of this grid: at least 1, at most all cells.

        A share is rounded down but for the error of floating point (0.29 of 100 is 29). A pruning rate is not: 1 - 0.8
        is a little less than 0.2, so 119 of 600 cells stay, and at a rate near 1 none may.
        """
        if self.unit == "pruning rate":
            return min(int(grid.cells * (1 - self.value)), grid.cells)
        if self.unit == "per frame":
            return grid.T * min(int(self.value), grid.cells_per_frame)
        wanted = int(self.value * grid.cells + 1e-6) if self.unit == "share" else int(self.value)
        return max(1, min(wanted, grid.cells))

    def amount(self, grid: Grid) -> float:
        """The same before it is rounded and held to the cells there are."""
        if self.unit == "pruning rate":
            return (1 - self.value) * grid.cells
        if self.unit == "share":
            return self.value * grid.cells
        return float(self.value * (grid.T if self.unit == "per frame" else 1))

    @property
    def keep(self) -> float | int | str | None:
        """The argument `keep` that gives this budget; None for a pruning rate."""
        if self.unit == "pruning rate":
            return None
        return f"{self.value}/frame" if self.unit == "per frame" else self.value


def _read(keep: Any) -> tuple[Any, Any]:
    """The number and its unit; (None, None) for what is no budget."""
    number, per_frame = keep, False
    if isinstance(keep, str):
        text, slash, unit = keep.partition("/")
        per_frame = (slash, unit) == ("/", "frame") and text.isascii() and text.isdigit() and len(text) < 10
        number = int(text) if per_frame else None
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None, None
    return number, "per frame" if per_frame else "share" if isinstance(number, float) else "count"
