"""`hatoba jobs ...`: everything that is done with jobs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from hatoba.cli.attaching import exec_command, forward
from hatoba.cli.options import PARAM, VARIABLE, params_of, unique
from hatoba.cli.output import age, between, emit, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import common_pb2, job_pb2

MOST_EVENTS = 1000
"""A job with more events than these shows no history: `hatoba jobs watch` does."""


@click.group(cls=Group)
def jobs() -> None:
    """Submit, list, look at, cancel and compare jobs."""


jobs.add_command(exec_command)
jobs.add_command(forward)


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

    async def read(client: AsyncClient) -> JobScreen:
        record = await client.get(job)
        request = job_pb2.ListAttemptsRequest(job=record.name, page_size=1000)
        if output in {"json", "yaml"}:
            return JobScreen(record, [], [])
        attempts = list((await client.call(request, job_pb2.ListAttemptsResponse)).attempts)
        return JobScreen(record, attempts, await _history(client, record, attempts))

    screen = with_client(read)
    emit(screen.job, output, lambda: screen.show(wide=output == "wide"))


class JobScreen(NamedTuple):
    """What there is to be shown of one job."""

    job: job_pb2.Job
    attempts: Sequence[job_pb2.Attempt]
    history: Sequence[common_pb2.Event]

    def show(self, *, wide: bool) -> None:
        """Write the screen."""
        from hatoba.cli.details import job_rows
        from hatoba.cli.words import describe

        click.echo(describe(self.job))
        pairs(job_rows(self.job, self.attempts, self.history, wide=wide))


async def _history(
    client: AsyncClient, job: job_pb2.Job, attempts: Sequence[job_pb2.Attempt]
) -> list[common_pb2.Event]:
    """Events that say what was decided and why; of a job with very many none are read."""
    from hatoba.following import Resync

    ended_badly = any(one.number > 1 or one.HasField("cause") for one in attempts)
    if not ended_badly or job.version > MOST_EVENTS:
        return []
    noted = []
    async with aclosing(client.events(job.name, cursor="0")) as events:
        async for event in events:
            if isinstance(event, Resync):
                break
            if event.note:
                noted.append(event)
            if event.job_seq >= job.version:
                break
    return noted


@jobs.command("cancel")
@click.argument("names", nargs=-1, metavar="[JOB]...")
@click.option("--filter", "filter", metavar="EXPR", help="All unfinished jobs that match.")
@click.option("--queue", metavar="QUEUE", help="All unfinished jobs of this queue.")
@click.option(
    "--indices", metavar="0-4,7", help="Only these tasks of the one array JOB; the others go on."
)
@click.option("--reason", default="", metavar="TEXT", help="Kept with the jobs.")
@output_option
@server_options()
def cancel(names: tuple[str, ...], output: str, **said: str | None) -> None:
    """End jobs: politely, then by force. Asking again does no harm. Never taken back."""
    from hatoba.v1 import job_pb2

    if bool(names) == bool(said["filter"] or said["queue"]):
        raise click.UsageError("name jobs, or choose them by --filter and --queue; one of the two")
    wanted = {name: value or "" for name, value in said.items()}
    parts = output in {"table", "wide"}

    async def cancel_all(client: AsyncClient) -> job_pb2.CancelJobsResponse:
        every = job_pb2.CancelJobsResponse()
        async for part in client.cancelled(*names, **wanted):
            every.results.extend(part)
            if parts:
                show_cancelled(part)
        return every

    every = with_client(cancel_all)
    if not parts:
        emit(every, output, lambda: None)


def show_cancelled(results: Sequence[job_pb2.CancelResult]) -> None:
    """What a cancel did to each job."""
    from hatoba.aio import short_name, state_name
    from hatoba.v1 import job_pb2

    rows = []
    for result in results:
        outcome = job_pb2.CancelOutcome.Name(result.outcome).removeprefix("CANCEL_OUTCOME_")
        rows.append((short_name(result.job), outcome, state_name(result.state), result.why))
    table(["JOB", "OUTCOME", "STATE", "WAITS FOR"], rows, empty="nothing matches")


@jobs.command("submit")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Job file, YAML or JSON; several documents are several jobs. `-` reads stdin.",
)
@click.option(
    "-p", "--param", "params", multiple=True, type=PARAM, metavar="K=V", help="Set a parameter."
)
@click.option(
    "--code",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Directory to bring along. [default: the job file's]",
)
@click.option("--no-code", is_flag=True, help="Bring no directory along.")
@click.option("--check", is_flag=True, help="Let the server check it and submit nothing.")
@click.option("--follow", is_flag=True, help="Follow the job as `hatoba run` does; for one job.")
@output_option
@server_options()
@click.pass_context
def submit(ctx: click.Context, /, files: tuple[str, ...], output: str, **said: Any) -> None:
    """Submit jobs from files. Prints their names."""
    from hatoba.cli.submitting import Submission, read_files

    documents = read_files(files, params_of(said["params"]), said["code"], no_code=said["no_code"])
    submission = Submission(documents, output, check=said["check"])
    if said["follow"] and len(documents) != 1:
        raise click.UsageError(f"--follow is for one job, and there are {len(documents)}")
    ctx.exit(submission.follow() if said["follow"] else submission.send())


@jobs.command("watch")
@click.argument("names", nargs=-1, required=True, metavar="JOB...")
@click.option(
    "--cursor", default="0", metavar="CURSOR", help="Begin after this event. [default: the oldest]"
)
@output_option
@server_options()
@click.pass_context
def watch(ctx: click.Context, /, names: tuple[str, ...], cursor: str, output: str) -> None:
    """Every change of these jobs until all have ended."""
    from hatoba.cli.events import stream_events

    ctx.exit(stream_events(names, cursor, output))


@jobs.command("rerun")
@click.argument("job")
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    type=PARAM,
    metavar="K=V",
    help="Parameter to set or replace.",
)
@click.option(
    "--env", multiple=True, type=VARIABLE, metavar="K=V", help="Variable to set or replace."
)
@click.option("--from-checkpoint", is_flag=True, help="Begin from its newest checkpoint.")
@click.option(
    "--failed-only",
    is_flag=True,
    help="Of an array only the tasks that did not succeed; the others count as they ended.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the job file: queue=night, resources.memory=8Gi.",
)
@output_option
@server_options()
def rerun(job: str, output: str, changes: tuple[str, ...], **said: Any) -> None:
    """Make a new job from an old one; prints its name. The old one stays as it is."""
    from hatoba.jobfile import read_overrides

    async def again(client: AsyncClient) -> job_pb2.Job:
        old = await client.job(job)
        overrides, fields = read_overrides(changes, old.record.spec)
        new = await old.rerun(
            params=params_of(said["params"]),
            env=unique(said["env"], "--env"),
            from_checkpoint=said["from_checkpoint"],
            failed_only=said["failed_only"],
            overrides=overrides if fields else None,
            override_fields=fields,
        )
        return new.record

    show_name(with_client(again), output)


def show_name(job: job_pb2.Job, output: str) -> None:
    """A new job's name alone, so that a script can take it."""
    from hatoba.aio import short_name

    emit(job, output, lambda: click.echo(short_name(job.name)))


@jobs.command("outputs")
@click.argument("job")
@click.argument("directory", required=False, metavar="[DIR]")
@click.option("--index", type=click.IntRange(0), metavar="N", help="Of this task of an array.")
@server_options()
def outputs(job: str, directory: str | None, index: int | None) -> None:
    """Fetch what JOB left in its outputs directory into DIR. [default: ./JOB]"""
    from pathlib import Path

    async def fetch(client: AsyncClient) -> Path:
        found = await client.job(job)
        return await found.outputs(directory or found.name, index=index)

    click.echo(with_client(fetch))


@jobs.command("metrics")
@click.argument("job")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--index", type=click.IntRange(0), metavar="N", help="Of this task of an array.")
@click.option(
    "--plot", type=click.Path(dir_okay=False), metavar="FILE.png", help="Draw them into a file."
)
@output_option
@server_options()
def metrics(
    job: str, keys: tuple[str, ...], index: int | None, plot: str | None, output: str
) -> None:
    """Show what JOB logged by `log_metrics`."""
    from hatoba.cli.charts import draw, show_series
    from hatoba.v1 import job_pb2

    async def read(client: AsyncClient) -> list[job_pb2.MetricSeries]:
        return await (await client.job(job)).series(*keys, index=index)

    series = with_client(read)
    if plot:
        draw(series, plot, title=job)
        click.echo(f"drew {len(series)} metrics into {plot}", err=True)
        return
    emit(job_pb2.QueryMetricsResponse(series=series), output, lambda: show_series(series))


@jobs.command("compare")
@click.argument("first", metavar="JOB")
@click.argument("others", nargs=-1, required=True, metavar="JOB...")
@server_options()
def compare(first: str, others: tuple[str, ...]) -> None:
    """Params, states, durations and metrics of jobs side by side; what differs is marked with *."""
    from hatoba.cli.comparing import Compared, comparison

    async def read(client: AsyncClient) -> list[Compared]:
        jobs = [await client.job(name) for name in (first, *others)]
        return [Compared(job.record, await job.series()) for job in jobs]

    heads, rows = comparison(with_client(read))
    table(heads, rows)


@jobs.command("trace")
@click.argument("job")
@output_option
@server_options()
def trace(job: str, output: str) -> None:
    """Draw the trace of JOB: what happened when, in which process."""
    from hatoba.cli.charts import show_trace
    from hatoba.v1 import job_pb2

    async def read(client: AsyncClient) -> job_pb2.GetJobTraceResponse:
        request = job_pb2.GetJobTraceRequest(job=client.job_name(job))
        return await client.call(request, job_pb2.GetJobTraceResponse)

    reply = with_client(read)
    emit(reply, output, lambda: show_trace(reply.spans))


@jobs.command("hold")
@click.argument("names", nargs=-1, required=True, metavar="JOB...")
@output_option
@server_options()
def hold(names: tuple[str, ...], output: str) -> None:
    """Keep jobs back that have not started."""
    _hold(names, output, hold=True)


@jobs.command("release")
@click.argument("names", nargs=-1, required=True, metavar="JOB...")
@output_option
@server_options()
def release(names: tuple[str, ...], output: str) -> None:
    """Let held jobs go."""
    _hold(names, output, hold=False)


@jobs.command("update")
@click.argument("job")
@click.option("--priority", type=click.IntRange(-1000, 1000), metavar="N", help="New priority.")
@click.option("--queue", metavar="QUEUE", help="New queue.")
@click.option("--etag", default="", metavar="ETAG", help="Only if it is still as read.")
@output_option
@server_options()
def update(job: str, priority: int | None, queue: str | None, etag: str, output: str) -> None:
    """Move an unfinished job to another place in line."""
    from hatoba.cli.words import queue_line

    if priority is None and queue is None:
        raise click.UsageError("nothing to change: say --priority or --queue")
    changed = with_client(
        lambda client: client.update(job, priority=priority, queue=queue, etag=etag)
    )
    emit(changed, output, lambda: click.echo(queue_line(changed)))


def _hold(names: tuple[str, ...], output: str, *, hold: bool) -> None:
    """Of jobs that cannot be changed each is told of; the others are changed all the same."""
    from hatoba.cli.main import show_error
    from hatoba.errors import HatobaError
    from hatoba.v1 import job_pb2

    refused: list[HatobaError] = []

    async def change(client: AsyncClient) -> list[job_pb2.Job]:
        changed = []
        for name in names:
            try:
                changed.append(await (client.hold(name) if hold else client.release(name)))
            except HatobaError as error:
                refused.append(error)
        return changed

    changed = with_client(change)
    if changed:
        emit(job_pb2.ListJobsResponse(jobs=changed), output, lambda: show_jobs(changed))
    for error in refused[:-1]:
        show_error(error)
    if refused:
        raise refused[-1]
