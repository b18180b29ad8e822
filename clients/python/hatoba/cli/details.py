"""The rows of the screen of one job. Pure: records in, names and values out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hatoba.aio import short_name
from hatoba.cli.output import between, moment
from hatoba.cli.words import WAITING, failure_rows, needs, published_rows, waiting_rows
from hatoba.following import TERMINAL
from hatoba.plain import to_plain
from hatoba.units import say_bytes, say_seconds
from hatoba.v1 import common_pb2, job_pb2

Rows = list[tuple[str, str]]
SHOWN_ATTEMPTS = 5
SHOWN_NOTES = 10
SHOWN_DEVICES = 20


def job_rows(
    job: job_pb2.Job,
    attempts: Sequence[job_pb2.Attempt],
    history: Sequence[common_pb2.Event] = (),
    *,
    wide: bool = False,
) -> Rows:
    """What the screen of one job says, the most wanted first."""
    rows: Rows = []
    if job.state in WAITING:
        rows += waiting_rows(job)
    elif job.state in TERMINAL and job.state != common_pb2.JOB_STATE_SUCCEEDED:
        rows += failure_rows(job)
    else:
        rows += _going(job)
    rows += [
        ("command", shlex.join(job.spec.command)),
        ("params", _params(job)),
        ("inputs", _inputs(job)),
        ("code", _code(job)),
        ("tasks", _tasks(job)),
        ("taken over", _inherited(job)),
        ("gang", _gang(job)),
        ("devices", _devices(job)),
        ("may run on", ", ".join(job.backends)),
    ]
    rows += [("attempts", _attempts(attempts)), ("history", _history(history))]
    rows += [("outputs", _outputs(job)), *published_rows(job)]
    rows.append(("models", ", ".join(map(short_reference, job.models))))
    rows.append(("submitted", f"{moment(job.create_time)} by {job.created_by or 'somebody'}"))
    return rows + (_wide(job) if wide else [])


def _going(job: job_pb2.Job) -> Rows:
    told = job.progress
    share = f"{told.done:g} of {told.total:g} ({told.done / told.total:.0%})" if told.total else ""
    return [
        ("progress", f"{share} {told.message}".strip()),
        ("asked for", needs(job.spec.resources)),
    ]


def _params(job: job_pb2.Job) -> str:
    values = to_plain(job.spec).get("params", {})
    return " ".join(f"{name}={param_text(value)}" for name, value in sorted(values.items()))


def param_text(value: object) -> str:
    """A parameter as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _inputs(job: job_pb2.Job) -> str:
    return "\n".join(_input_line(one) for one in job.spec.inputs)


def _input_line(told: job_pb2.Input) -> str:
    size = f"{told.manifest.files} files, {say_bytes(told.manifest.total_bytes)}"
    mode = "" if not told.mode else job_pb2.InputMode.Name(told.mode).rpartition("_")[2].lower()
    what = short_reference(told.source) if told.source else "a directory"
    return "  ".join(filter(None, [told.name, what, size, mode]))


def _code(job: job_pb2.Job) -> str:
    """The recorded version, and the commit that it stood on."""
    commit = job.spec.source.get("commit", "")[:12]
    changed = "+" if commit and job.spec.source.get("dirty") == "true" else ""
    at = f"at commit {commit}{changed}" if commit else ""
    return " ".join(filter(None, [short_reference(job.spec.code_version), at]))


def short_reference(resource: str) -> str:
    """`datasets/faces:3` for a resource name with a version; others without their project."""
    parts = resource.split("/")
    if len(parts) == 6 and parts[4] == "versions":
        return f"{parts[2]}/{parts[3]}:{parts[5]}"
    return "/".join(parts[2:]) if parts[0] == "projects" else resource


def _tasks(job: job_pb2.Job) -> str:
    if job.counts.total < 2:
        return ""
    states = ", ".join(f"{count} {state}" for state, count in sorted(job.counts.by_state.items()))
    return f"{job.counts.total}: {states}"


def _inherited(job: job_pb2.Job) -> str:
    return f"tasks {job.inherited} of {short_name(job.rerun_of)}" if job.inherited else ""


def _devices(job: job_pb2.Job) -> str:
    """Where its tasks run: `[0] cam-1, [1] cam-2`."""
    names = job.spec.devices.names
    if len(names) < 2:
        return "".join(names)
    told = [f"[{index}] {name}" for index, name in enumerate(names[:SHOWN_DEVICES])]
    if len(names) > SHOWN_DEVICES:
        told.append(f"{len(names) - SHOWN_DEVICES} more")
    return ", ".join(told)


def _gang(job: job_pb2.Job) -> str:
    if job.spec.replicas < 2:
        return ""
    begun = f", generation {job.generation}" if job.generation else ", not begun"
    return f"{job.spec.replicas} members{begun}"


def _history(events: Sequence[common_pb2.Event]) -> str:
    """What was decided about the job and why, the newest last."""
    lines = [
        f"{moment(event.time)}  {_about(event)}{event.note}" for event in events[-SHOWN_NOTES:]
    ]
    if len(events) > SHOWN_NOTES:
        lines.insert(0, f"({len(events) - SHOWN_NOTES} more before)")
    return "\n".join(lines)


def _about(event: common_pb2.Event) -> str:
    """Which attempt it is about: `attempt 2: `, of a task `[7] attempt 2: `."""
    if not event.attempt:
        return ""
    index = f"[{event.index}] " if event.index else ""
    return f"{index}attempt {event.attempt}: "


def _attempts(attempts: Sequence[job_pb2.Attempt]) -> str:
    lines = [attempt_line(attempt) for attempt in attempts[-SHOWN_ATTEMPTS:]]
    if len(attempts) > SHOWN_ATTEMPTS:
        lines.insert(0, f"({len(attempts) - SHOWN_ATTEMPTS} more before)")
    return "\n".join(lines)


def attempt_line(attempt: job_pb2.Attempt) -> str:
    """One attempt in a line: where it ran, how it ended, what it used."""
    state = common_pb2.AttemptState.Name(attempt.state).removeprefix("ATTEMPT_STATE_")
    parts = [f"{attempt.number} {state}"]
    if attempt.index:
        parts[0] = f"[{attempt.index}] {parts[0]}"
    if attempt.generation:
        parts[0] += f" of generation {attempt.generation}"
    if attempt.host or attempt.backend:
        parts.append(f"on {short_name(attempt.host) or attempt.backend}")
    parts.append(between(attempt.start_time, attempt.end_time))
    parts.append(usage_text(attempt.usage))
    if attempt.unknown_since.seconds:
        parts.append(f"not reachable since {moment(attempt.unknown_since)}")
    return "  ".join(part for part in parts if part)


def usage_text(usage: job_pb2.Usage) -> str:
    """The highest use in words: `peak 210 MiB, 12s of cpu`."""
    parts = [f"peak {say_bytes(usage.memory_peak_bytes)}"] if usage.memory_peak_bytes else []
    if usage.cpu_seconds:
        parts.append(f"{say_seconds(usage.cpu_seconds)} of cpu")
    if usage.memory_limit_by:
        parts.append(f"memory held by {usage.memory_limit_by}")
    if usage.image:
        parts.append(f"in {usage.image}")
    return ", ".join(parts)


def _outputs(job: job_pb2.Job) -> str:
    if not job.outputs.digest:
        return ""
    size = say_bytes(job.outputs.total_bytes)
    return f"{job.outputs.files} files, {size}; hatoba jobs outputs {short_name(job.name)} DIR"


def _wide(job: job_pb2.Job) -> Rows:
    source = " ".join(f"{name}={value}" for name, value in sorted(job.spec.source.items()))
    labels = " ".join(f"{name}={value}" for name, value in sorted(job.spec.labels.items()))
    return [
        ("uid", job.uid),
        ("backend", job.spec.backend),
        ("labels", labels),
        ("source", source),
        ("rerun of", short_name(job.rerun_of)),
        ("trace", job.trace_id),
        ("etag", job.etag),
    ]
