"""Token budgets: parses and validates `keep`, and converts it into a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fewtokens.core.grid import Grid

Unit = Literal["fraction", "count", "per frame", "pruning rate"]

_EXAMPLES = {
    "fraction": "a fraction of the cells in (0, 1] such as 0.1",
    "count": "a count of at least 1 such as 32",
    "per frame": "a count per frame such as '8/frame'",
}


class ConflictingArguments(ValueError):
    """Raised if `keep` is combined with an argument that replaces it."""


@dataclass(frozen=True)
class Budget:
    """The number of tokens that a method may keep of one video.

        budget = Budget.parse("8/frame")
        budget.count(Grid(16, 14, 14))  # 128

    The integer 1 is one token; the float 1.0 is all tokens.

    Args:
        value: the amount, in `unit`.
        unit: "fraction", a fraction of the grid's cells in (0, 1]; "count", tokens per video, at least 1; "per frame",
            tokens per frame, at least 1; or "pruning rate", the fraction of cells to drop in [0, 1), as in vLLM.
    """

    value: float | int
    unit: Unit

    @staticmethod
    def parse(keep: Any, *, caller: str = "", units: tuple[Unit, ...] = ("fraction", "count", "per frame")) -> Budget:
        """Parses a `keep` argument: 0.1 is a fraction of the cells, 32 a count, "8/frame" a count per frame.

        Args:
            keep: float, int or str.
            caller: name of the method, for the error message.
            units: the units that the caller accepts.

        Raises:
            ValueError: `keep` is not a budget, out of range, or of a unit that the caller does not accept.
        """
        value, unit = _read(keep)
        if unit not in units or not (0 < value <= 1 if unit == "fraction" else value >= 1):
            choices = [_EXAMPLES[accepted] for accepted in units]
            prefix = f"{caller}: " if caller else ""
            raise ValueError(f"{prefix}keep must be {' or '.join(choices)}, got {keep!r}")
        return Budget(value, unit)

    @staticmethod
    def choose(
        caller: str,
        keep: Any,
        *,
        default: Any = None,
        units: tuple[Unit, ...] = ("fraction", "count", "per frame"),
        **instead: Any,
    ) -> Budget | None:
        """Returns the budget of a method that accepts `keep` or alternatives to it, such as a threshold.

        Args:
            caller: name of the method, for error messages.
            keep: the budget, or None if not given.
            default: the budget if no argument is given; None to leave the choice to the method.
            units: the units that the caller accepts.
            instead: alternatives to `keep`, by name; None if not given. At most one argument may be given.

        Returns:
            The budget, or None if an alternative or the method's own default determines the number of tokens.

        Raises:
            ConflictingArguments: more than one argument is given.
            ValueError: `keep` is invalid, see `parse`.
        """
        present = [name for name, value in {"keep": keep, **instead}.items() if value is not None]
        if len(present) > 1:
            names = [f"{name}=" for name in ("keep", *instead)]
            raise ConflictingArguments(
                f"{caller} takes one of {', '.join(names[:-1])} and {names[-1]}, got {' and '.join(present)}"
            )
        if present and present != ["keep"]:
            return None
        keep = default if keep is None else keep
        return None if keep is None and instead else Budget.parse(keep, caller=caller, units=units)

    @staticmethod
    def pruning(rate: Any, *, caller: str) -> Budget:
        """Returns the budget for vLLM's pruning rate q, which keeps floor((1 - q) * cells) in double precision.

        Args:
            rate: the fraction of cells to drop, in [0, 1).
            caller: name of the method, for the error message.

        Raises:
            ValueError: `rate` is not a number in [0, 1).
        """
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"{caller}: q must be a pruning rate in [0, 1), got {rate!r}")
        return Budget(rate, "pruning rate")

    def count(self, grid: Grid) -> int:
        """Returns the number of tokens for one video of this grid, clamped to 1..S (0..S for a pruning rate).

        A fraction is rounded down, with a tolerance for floating-point error: 0.29 of 100 is 29. A pruning rate has no
        such tolerance, as in vLLM: 1 - 0.8 is slightly less than 0.2, so 119 of 600 cells are kept.
        """
        if self.unit == "pruning rate":
            return min(int(grid.cells * (1 - self.value)), grid.cells)
        if self.unit == "per frame":
            return grid.T * min(int(self.value), grid.cells_per_frame)
        count = int(self.value * grid.cells + 1e-6) if self.unit == "fraction" else int(self.value)
        return max(1, min(count, grid.cells))

    def amount(self, grid: Grid) -> float:
        """Returns the number of tokens before rounding and clamping."""
        if self.unit == "pruning rate":
            return (1 - self.value) * grid.cells
        if self.unit == "fraction":
            return self.value * grid.cells
        return float(self.value * (grid.T if self.unit == "per frame" else 1))

    @property
    def keep(self) -> float | int | str | None:
        """The `keep` argument that `parse` reads as this budget; None for a pruning rate."""
        if self.unit == "pruning rate":
            return None
        return f"{self.value}/frame" if self.unit == "per frame" else self.value


def _read(keep: Any) -> tuple[Any, Any]:
    """Returns the number and its unit, or (None, None) if `keep` is not a budget."""
    number, per_frame = keep, False
    if isinstance(keep, str):
        text, slash, unit = keep.partition("/")
        per_frame = (slash, unit) == ("/", "frame") and text.isascii() and text.isdigit() and len(text) < 10
        number = int(text) if per_frame else None
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None, None
    return number, "per frame" if per_frame else "fraction" if isinstance(number, float) else "count"


def budget_text(keep: float | int | str) -> str:
    """Returns a budget as a text: "10 %", "32 tokens", "8 tokens per frame"."""
    if isinstance(keep, str):
        return f"{keep.partition('/')[0]} tokens per frame"
    return f"{100 * keep:g} %" if isinstance(keep, float) else f"{keep} tokens"


def budget_order(keep: float | int | str) -> tuple[int, float]:
    """Sorts budgets: fractions, counts, counts per frame; the largest first. Unlike the value it tells 1 from 1.0."""
    if isinstance(keep, str):
        return 2, -float(keep.partition("/")[0])
    return int(isinstance(keep, int)), -keep
