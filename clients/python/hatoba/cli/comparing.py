"""Jobs side by side. Pure: records and series in, rows out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hatoba.aio import short_name, state_name
from hatoba.cli.charts import number
from hatoba.cli.details import param_text
from hatoba.cli.output import between
from hatoba.plain import to_plain
from hatoba.v1 import job_pb2

# A metric of such a name is better when it is lower.
LOWER_IS_BETTER = (
    "loss",
    "error",
    "perplexity",
    "time",
    "seconds",
    "latency",
    "mse",
    "mae",
    "rmse",
)


@dataclass
class Compared:
    """A job with its metrics."""

    job: job_pb2.Job
    series: Sequence[job_pb2.MetricSeries]


def comparison(found: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: one column for each job, and a mark on rows that differ."""
    heads = ["", *(short_name(one.job.name) for one in found), ""]
    facts = [_facts(one) for one in found]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    rows = []
    for name in sorted(names, key=_order):
        cells = [fact.get(name, "-") for fact in facts]
        rows.append([name, *cells, "*" if len(set(cells)) > 1 else ""])
    return heads, rows


def _order(name: str) -> tuple[int, str]:
    groups = ("state", "ran", "param ", "last ", "best ")
    rank = next((n for n, group in enumerate(groups) if name.startswith(group)), len(groups))
    return rank, name


def _facts(one: Compared) -> dict[str, str]:
    job = one.job
    facts = {"state": state_name(job.state), "ran": between(job.start_time, job.end_time) or "-"}
    for name, value in to_plain(job.spec).get("params", {}).items():
        facts[f"param {name}"] = param_text(value)
    for series in one.series:
        key = f"{series.key}[{series.index}]" if job.counts.total > 1 else series.key
        values = [point.value for point in series.points]
        facts[f"last {key}"] = number(values[-1]) if values else "-"
        facts[f"best {key}"] = best(series.key, values)
    commit = job.spec.source.get("commit", "")
    return facts | ({"commit": commit[:12]} if commit else {})


def best(key: str, values: Sequence[float]) -> str:
    """The lowest value of losses and times, else the highest."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "-"
    lower = any(word in key.lower() for word in LOWER_IS_BETTER)
    return number(min(finite) if lower else max(finite))
