"""Metrics and traces as drawings: in the terminal, and into a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from hatoba.cli.output import table
from hatoba.errors import InvalidSpec
from hatoba.units import say_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hatoba.v1 import job_pb2

TICKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 30
BAR_WIDTH = 24
DAY = 86_400.0
"""Dates are drawn in days since 1970."""


def show_series(series: Sequence[job_pb2.MetricSeries]) -> None:
    """A line for each metric: last, lowest, highest, and its course."""
    arrays = any(one.index for one in series)
    rows = []
    for one in series:
        values = [point.value for point in one.points]
        finite = [value for value in values if math.isfinite(value)] or values
        name = f"{one.key}[{one.index}]" if arrays else one.key
        row = [name, number(values[-1]), number(min(finite)), number(max(finite)), str(len(values))]
        rows.append([*row, str(one.points[-1].step), sparkline(values)])
    heads = ["METRIC", "LAST", "LOWEST", "HIGHEST", "POINTS", "LAST STEP", "COURSE"]
    table(heads, rows, empty="no metrics were logged")


def number(value: float) -> str:
    """A value with five significant figures."""
    return f"{value:.5g}"


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """The course of values in at most `width` characters; what is not finite is a space."""
    shown = _thinned(values, width)
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, spread = min(finite), max(finite) - min(finite)
    return "".join(_tick(value, low, spread) for value in shown)


def _thinned(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    last = len(values) - 1
    return [values[round(position * last / (width - 1))] for position in range(width)]


def _tick(value: float, low: float, spread: float) -> str:
    if not math.isfinite(value):
        return " "
    share = (value - low) / spread if spread else 0.5
    return TICKS[min(int(share * len(TICKS)), len(TICKS) - 1)]


def draw(series: Sequence[job_pb2.MetricSeries], path: str, *, title: str) -> None:
    """Draw metrics into a file, one panel for each name. Needs matplotlib, the extra `demo`."""
    if not series:
        raise InvalidSpec(f"{title} has logged no metrics, so there is nothing to draw")
    keys = sorted({one.key for one in series})
    figure = _figure(2.4 * len(keys) + 0.6)
    panels = figure.subplots(len(keys), 1, squeeze=False)
    for key, panel in zip(keys, panels[:, 0], strict=True):
        for one in (one for one in series if one.key == key):
            steps = [point.step for point in one.points]
            panel.plot(steps, [point.value for point in one.points], label=f"task {one.index}")
        panel.set_ylabel(key)
        panel.grid(alpha=0.3)
    panels[-1, 0].set_xlabel("step")
    figure.suptitle(title)
    _save(figure, path)


def draw_counts(courses: Mapping[str, Sequence[float]], path: str, *, title: str) -> None:
    """Draw how many things of each kind there were by when, into a file. Needs matplotlib.

    `courses`: by kind the moments at which one more came, in seconds since 1970, in order.
    """
    if not courses:
        raise InvalidSpec(f"{title} has no devices yet, so there is nothing to draw")
    figure = _figure(4.0)
    panel = figure.subplots(1, 1)
    end = max(moments[-1] for moments in courses.values())
    for kind, moments in sorted(courses.items()):
        times = [seconds / DAY for seconds in (*moments, end)]
        counts = [*range(1, len(moments) + 1), len(moments)]
        label = kind.lower().replace("_", " ")
        panel.step(times, counts, where="post", label=f"{label}: {len(moments):,}")
    panel.xaxis_date()
    panel.set_xlabel("UTC")
    panel.set_ylabel("devices")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.autofmt_xdate()
    figure.suptitle(title)
    _save(figure, path)


def _figure(height: float) -> Figure:
    """A new figure of so many inches. Raises InvalidSpec without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidSpec(
            "--plot needs matplotlib, which is not installed", remedy="pip install 'hatoba[demo]'"
        ) from None
    return Figure(figsize=(8, height), layout="constrained")


def _save(figure: Figure, path: str) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InvalidSpec(f"{path} cannot be written: {error}") from None


def show_trace(spans: Sequence[job_pb2.Span]) -> None:
    """The tree of a trace: begin, duration, name, process, and where in time it lies."""
    if not spans:
        click.echo("no spans are kept of this job", err=True)
        return
    begin = min(span.start_unix_nanos for span in spans)
    end = max(span.end_unix_nanos for span in spans)
    processes = len({span.process for span in spans})
    total = say_seconds((end - begin) / 1e9)
    click.echo(f"trace {spans[0].trace_id}  {total}, {len(spans)} spans, {processes} processes")
    rows = []
    for depth, span in ordered(spans):
        starts = say_seconds((span.start_unix_nanos - begin) / 1e9)
        lasts = say_seconds((span.end_unix_nanos - span.start_unix_nanos) / 1e9)
        name = "  " * depth + span.name + (f"  ! {span.error}" if span.error else "")
        rows.append([starts, lasts, bar(span, begin, end), name, span.process])
    table(["BEGINS", "LASTS", "", "SPAN", "PROCESS"], rows)


def ordered(spans: Sequence[job_pb2.Span]) -> list[tuple[int, job_pb2.Span]]:
    """Spans as a tree from the top, by their begin, with their depths.

    A span whose parent was not kept stands at the top; a circle of parents cannot hang the reader.
    """
    known = {span.span_id for span in spans}
    below: dict[str, list[job_pb2.Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_unix_nanos):
        parent = span.parent_span_id if span.parent_span_id in known else ""
        below.setdefault(parent, []).append(span)
    found: list[tuple[int, job_pb2.Span]] = []
    stack = [(0, span) for span in reversed(below.pop("", []))]
    while stack:
        depth, span = stack.pop()
        found.append((depth, span))
        stack += [(depth + 1, child) for child in reversed(below.pop(span.span_id, []))]
    return found


def bar(span: job_pb2.Span, begin: int, end: int) -> str:
    """Where a span lies between the trace's begin and end."""
    scale = BAR_WIDTH / max(end - begin, 1)
    left = min(int((span.start_unix_nanos - begin) * scale), BAR_WIDTH - 1)
    width = max(round((span.end_unix_nanos - span.start_unix_nanos) * scale), 1)
    return (" " * left + "█" * min(width, BAR_WIDTH - left)).ljust(BAR_WIDTH, "·").replace(" ", "·")
