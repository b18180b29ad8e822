"""What notebooks want of figures: tables to look at, and data frames where pandas is installed."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hatoba.errors import HatobaError

if TYPE_CHECKING:
    from pandas import DataFrame


class MissingExtra(HatobaError):
    """A package that this call needs is not installed."""


class Metrics(dict[str, list[tuple[int, float]]]):
    """Logged values as (step, value) by key."""

    def to_pandas(self) -> DataFrame:
        """One column a key, one row a step, NaN where a key has no value.

        Raises MissingExtra without pandas.
        """
        return frame(
            {key: dict(points) for key, points in self.items()},
            index=sorted({step for points in self.values() for step, _ in points}),
            name="step",
        )

    def _repr_html_(self) -> str:
        """The last value of each key, for notebooks."""
        rows = [(key, f"{points[-1][1]:g}", len(points)) for key, points in self.items() if points]
        return table(("metric", "last", "points"), rows)


def frame(
    columns: Mapping[str, Mapping[int, float]], *, index: Sequence[int], name: str
) -> DataFrame:
    """Columns over an index as a pandas frame. Raises MissingExtra."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingExtra("pandas is not installed", remedy="pip install pandas") from error
    rows = pandas.Index(index, name=name)
    return pandas.DataFrame({key: pandas.Series(one) for key, one in columns.items()}, index=rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table of plain text."""
    heads = "".join(f"<th>{html.escape(one)}</th>" for one in head)
    lines = (
        "<tr>" + "".join(f"<td>{html.escape(str(one))}</td>" for one in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>"
