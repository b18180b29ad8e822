"""What a figure is, and how figures are shown and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


class Skipped(Exception):
    """This machine cannot have what is to be measured, for the reason that the message gives."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside its floor, and whether its goal holds."""

    figure: str
    value: float
    unit: str
    floor: float | None
    ratio: float | None
    """Value to floor; None without a floor to divide by."""
    goal: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """A value and the floor of the same run, both in `unit`."""

    figure: str
    value: float
    unit: str
    floor: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value to floor; None without a floor to divide by."""
        return round(self.value / self.floor, 3) if self.floor else None

    def share_of_floor(self, least: float) -> Figure:
        """The goal is a share of the floor. Needs a floor."""
        ratio = self.ratio
        assert ratio is not None, f"{self.figure} has no floor"
        return self._figure(f"ratio >= {least:g}", ratio >= least)

    def at_least(self, least: float) -> Figure:
        """The goal is a value, in the figure's unit."""
        return self._figure(f">= {least:,g}", self.value >= least)

    def at_most(self, most: float) -> Figure:
        """The goal is a bound, in the figure's unit."""
        return self._figure(f"<= {most:g}", self.value <= most)

    def exactly(self, wanted: float) -> Figure:
        """The goal is this and nothing else, in the figure's unit."""
        return self._figure(f"= {wanted:g}", self.value == wanted)

    def at_most_over_floor(self, most: float) -> Figure:
        """The goal bounds what comes on top of the floor. Needs a floor."""
        assert self.floor is not None, f"{self.figure} has no floor"
        return self._figure(f"<= floor + {most:g}", self.value - self.floor <= most)

    def at_most_times_floor(self, most: float) -> Figure:
        """The goal bounds how often the floor it is. Needs a floor."""
        ratio = self.ratio
        assert ratio is not None, f"{self.figure} has no floor"
        return self._figure(f"ratio <= {most:g}", ratio <= most)

    def _figure(self, goal: str, holds: bool) -> Figure:
        floor = None if self.floor is None else round(self.floor, 3)
        return Figure(
            self.figure, round(self.value, 3), self.unit, floor, self.ratio, goal, bool(holds)
        )


def table(figures: Sequence[Figure]) -> str:
    """The figures as people read them, a line each below a heading."""
    lines = [("figure", "value", "unit", "floor", "ratio", "goal", "holds")]
    lines += [
        (
            one.figure,
            _number(one.value),
            one.unit,
            _number(one.floor),
            _number(one.ratio),
            one.goal,
            "yes" if one.holds else "NO",
        )
        for one in figures
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (1, 3, 4)
    shown = [
        cell.rjust(width) if column in numbers else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(shown).rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def write(figures: Sequence[Figure], path: Path) -> None:
    """Keep the figures as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")
