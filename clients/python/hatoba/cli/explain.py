"""`hatoba explain`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from hatoba.cli.output import emit, moment, output_option, pairs
from hatoba.cli.session import server_options, with_client
from hatoba.units import say_seconds

if TYPE_CHECKING:
    from hatoba.v1 import deployment_pb2, job_pb2

SHOWN_COMMIT = 12
DEVICE = "devices/"
PREDICTION = re.compile(r"(?:.*/)?predictions/.*|[0-9a-f]{32}")


@click.command()
@click.argument("what", metavar="JOB|devices/NAME|predictions/TRACE_ID")
@output_option
@server_options()
def explain(what: str, output: str) -> None:
    """Say why a job or a device is where it is, or what stands behind a prediction.

    Of a job (NAME-N or jobs/NAME-N): the reason that matters most, its place in its queue, what
    would have to change, and when it may start. Of a device: what is wanted of it, what runs there,
    and why not. Of a prediction: its model, job, code and data; the trace id is in the reply's
    header hatoba-trace-id. Predictions are kept by sampling.
    """
    if what.startswith(DEVICE):
        from hatoba.cli.devices import show_explanation

        device = with_client(lambda client: client.devices.get(what))
        emit(device, output, lambda: show_explanation(device))
        return
    if not PREDICTION.fullmatch(what):
        from hatoba.cli import plan

        plan.show(with_client(lambda client: client.explain(what.removeprefix("jobs/"))), output)
        return
    found = with_client(lambda client: client.deployments.explain(what))
    emit(found, output, lambda: show(found))


def show(found: deployment_pb2.PredictionExplanation) -> None:
    """What stands behind a prediction, in words."""
    from hatoba.aio import short_name
    from hatoba.cli.deployments import version

    one = found.prediction
    took = one.duration.ToMicroseconds() / 1e6
    click.echo(f"predictions/{one.trace_id}  {one.status} in {say_seconds(took)}")
    pairs(
        [
            ("when", moment(one.time)),
            ("deployment", f"{short_name(one.deployment)}, revision {one.revision}"),
            ("replica", one.replica),
            ("model", version(one.model_version) + aliases(found)),
            ("metrics", metrics(found)),
            ("job", short_name(found.job)),
            ("code", code(found)),
            ("datasets", "\n".join(version(dataset.name) for dataset in found.datasets)),
            ("captured as", one.item),
            ("spans", "\n".join(span_line(span) for span in found.spans)),
        ]
    )


def aliases(found: deployment_pb2.PredictionExplanation) -> str:
    """Names that point to the version now, in brackets."""
    names = ", ".join(found.model_version.aliases)
    return f" ({names})" if names else ""


def metrics(found: deployment_pb2.PredictionExplanation) -> str:
    """How good the version is."""
    return ", ".join(f"{k} {v:g}" for k, v in sorted(found.model_version.metrics.items()))


def code(found: deployment_pb2.PredictionExplanation) -> str:
    """Which code made the version: its name, commit, remote."""
    from hatoba.cli.deployments import version

    one = found.code
    if not one.name:
        return found.model_version.git_commit[:SHOWN_COMMIT]
    dirty = " with changes" if one.dirty else ""
    commit = f"commit {one.git_commit[:SHOWN_COMMIT]}{dirty}" if one.git_commit else ""
    return "  ".join(part for part in (version(one.name), commit, one.git_remote) if part)


def span_line(span: job_pb2.Span) -> str:
    """One span in a line."""
    took = (span.end_unix_nanos - span.start_unix_nanos) / 1e9
    failed = f"  {span.error}" if span.error else ""
    return f"{span.name}  {say_seconds(took)}{failed}"
