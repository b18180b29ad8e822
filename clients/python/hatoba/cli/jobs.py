"""`hatoba jobs ...`: everything that is done with jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hatoba.cli.output import age, between, emit, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import job_pb2


@click.group(cls=Group)
def jobs() -> None:
    """Submit, list, look at, cancel and compare jobs."""


@jobs.command("list")
@click.option("--state", metavar="STATE", help="Only these, for example RUNNING.")
@click.option("--queue", metavar="QUEUE", help="Only of this queue.")
@click.option("--active", is_flag=True, help="Only unfinished ones.")
@click.option(
    "--filter",
    "expression",
    metavar="EXPR",
    help="Terms joined by AND, for example `labels.team = vision`.",
)
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many."
)
@output_option
@server_options()
def list_jobs(
    state: str | None,
    queue: str | None,
    active: bool,
    expression: str | None,
    limit: int,
    output: str,
) -> None:
    """List jobs, newest first."""
    from hatoba.v1 import job_pb2

    terms = [expression or "", f"state = {state.upper()}" if state else ""]
    terms += [f"queue = {queue}" if queue else "", "active = true" if active else ""]
    wanted = " AND ".join(term for term in terms if term)
    found = with_client(lambda client: client.jobs(wanted, limit=limit))
    emit(
        job_pb2.ListJobsResponse(jobs=found),
        output,
        lambda: show_jobs(found, wide=output == "wide"),
    )


def show_jobs(found: Sequence[job_pb2.Job], *, wide: bool = False) -> None:
    """A table of jobs."""
    from hatoba.aio import short_name, state_name
    from hatoba.cli.words import needs

    heads = ["JOB", "STATE", "TASKS", "QUEUE", "AGE", "RAN", "PROGRESS"]
    rows = []
    for job in found:
        row = [
            short_name(job.name),
            state_name(job.state),
            _tasks(job),
            job.spec.queue or "default",
        ]
        row += [age(job.create_time), between(job.start_time, job.end_time), progress_of(job)]
        if wide:
            row += [job.spec.backend, job.created_by, needs(job.spec.resources), job.uid]
        rows.append(row)
    if wide:
        heads += ["BACKEND", "BY", "NEEDS", "UID"]
    table(heads, rows, empty="no jobs")


def _tasks(job: job_pb2.Job) -> str:
    """`7/10`: how many of the tasks have succeeded."""
    done = job.counts.by_state.get("SUCCEEDED", 0)
    return f"{done}/{job.counts.total or 1}"


def progress_of(job: job_pb2.Job) -> str:
    """`40% epoch 4/10`, as far as the job says."""
    told = job.progress
    share = (
        f"{told.done / told.total:.0%}" if told.total else (f"{told.done:g}" if told.done else "")
    )
    return f"{share} {told.message}".strip()


@jobs.command("get")
@click.argument("job")
@output_option
@server_options()
def get(job: str, output: str) -> None:
    """Show one job: why it waits, how it goes, or why it ended."""
    from hatoba.v1 import job_pb2

    async def read(client: AsyncClient) -> tuple[job_pb2.Job, list[job_pb2.Attempt]]:
        record = await client.get(job)
        request = job_pb2.ListAttemptsRequest(job=record.name, page_size=1000)
        if output in {"json", "yaml"}:
            return record, []
        return record, list((await client.call(request, job_pb2.ListAttemptsResponse)).attempts)

    record, attempts = with_client(read)
    emit(record, output, lambda: show_job(record, attempts, wide=output == "wide"))


def show_job(job: job_pb2.Job, attempts: Sequence[job_pb2.Attempt], *, wide: bool = False) -> None:
    """The screen of one job."""
    from hatoba.cli.details import job_rows
    from hatoba.cli.words import describe

    click.echo(describe(job))
    pairs(job_rows(job, attempts, wide=wide))


@jobs.command("cancel")
@click.argument("names", nargs=-1, metavar="JOB...")
@click.option("--filter", "expression", metavar="EXPR", help="All unfinished jobs that match.")
@click.option("--reason", default="", metavar="TEXT", help="Kept with the jobs.")
@output_option
@server_options()
def cancel(names: tuple[str, ...], expression: str | None, reason: str, output: str) -> None:
    """End jobs: politely, then by force. Asking again does no harm."""
    from hatoba.v1 import job_pb2

    if bool(names) == bool(expression):
        raise click.UsageError("name jobs, or give --filter")
    results = with_client(
        lambda client: client.cancel(*names, filter=expression or "", reason=reason)
    )
    reply = job_pb2.CancelJobsResponse(results=results)
    emit(reply, output, lambda: show_cancelled(results))


def show_cancelled(results: Sequence[job_pb2.CancelResult]) -> None:
    """What a cancel did to each job."""
    from hatoba.aio import short_name, state_name
    from hatoba.v1 import job_pb2

    rows = []
    for result in results:
        outcome = job_pb2.CancelOutcome.Name(result.outcome).removeprefix("CANCEL_OUTCOME_")
        rows.append((short_name(result.job), outcome, state_name(result.state), result.why))
    table(["JOB", "OUTCOME", "STATE", "WAITS FOR"], rows, empty="nothing matches")
