"""What people read about a job: why it waits, how it ended, and what to type next.

Pure: records in, text out.
"""

from __future__ import annotations

from hatoba.aio import short_name, state_name
from hatoba.batch import short_resource
from hatoba.cli.output import between, moment
from hatoba.following import TERMINAL
from hatoba.units import say_bytes
from hatoba.v1 import common_pb2, job_pb2

WAITING = frozenset(
    {
        common_pb2.JOB_STATE_QUEUED,
        common_pb2.JOB_STATE_HELD,
        common_pb2.JOB_STATE_BLOCKED,
        common_pb2.JOB_STATE_LAUNCHING,
        common_pb2.JOB_STATE_WAITING,
    }
)
LAST_LINES = 3
FIGURES = {
    "memory_limit_by": "memory held by",
    "memory_peak_bytes": "memory peak",
    "memory_limit_bytes": "memory limit",
    "timeout_seconds": "time limit",
    "run_seconds": "ran for",
}


def describe(job: job_pb2.Job) -> str:
    """A job's name and what it does now, in a line: `digits-42  RUNNING for 3m12s`."""
    state = state_name(job.state)
    name = short_name(job.name)
    if job.state in TERMINAL:
        ran = between(job.start_time, job.end_time)
        return f"{name}  {state}" + (f" after {ran}" if ran else "")
    waits = job.state in WAITING or not job.start_time.seconds
    since = between(job.create_time if waits else job.start_time, job.end_time)
    return f"{name}  {state}" + (f" for {since}" if since else "")


def needs(resources: common_pb2.Resources) -> str:
    """What a task asked for: `4 cpus, 16 GiB, 2 GPUs`; a place when it stated nothing."""
    parts = []
    if resources.cpus:
        parts.append(f"{resources.cpus:g} cpu{'' if resources.cpus == 1 else 's'}")
    if resources.memory_bytes:
        parts.append(say_bytes(resources.memory_bytes))
    if resources.gpus:
        parts.append(f"{resources.gpus} GPU{'' if resources.gpus == 1 else 's'}")
    return ", ".join(parts) or "one place (no resources stated)"


def waiting_rows(job: job_pb2.Job) -> list[tuple[str, str]]:
    """Why a job does not run yet: what it needs, what is free, and what can be done."""
    name = short_name(job.name)
    rows = [
        ("waits", job.waiting_reason or _plain_reason(job)),
        ("needs", needs(job.spec.resources)),
    ]
    rows.append(("in", f"queue {job.spec.queue or 'default'}, priority {job.spec.priority}"))
    next_steps = [f"hatoba explain {name}", f"hatoba jobs cancel {name}"]
    if job.state == common_pb2.JOB_STATE_HELD:
        next_steps.insert(0, f"hatoba jobs release {name}")
    elif (
        "cpus" in job.waiting_reason or "GPU" in job.waiting_reason or "free" in job.waiting_reason
    ):
        next_steps.insert(0, "hatoba hosts list")
    return [*rows, ("next", "\n".join(next_steps))]


def _plain_reason(job: job_pb2.Job) -> str:
    if job.state == common_pb2.JOB_STATE_HELD:
        return "it is held until somebody releases it"
    if job.state == common_pb2.JOB_STATE_BLOCKED:
        return "for " + ", ".join(short_name(name) for name in job.spec.after_ok)
    if job.state == common_pb2.JOB_STATE_LAUNCHING:
        return "it is being launched"
    return "for its turn"


def failure_rows(job: job_pb2.Job) -> list[tuple[str, str]]:
    """Why a job ended badly: the cause, its figure, the last lines it wrote, what to type next."""
    cause = job.cause
    rows = [("cause", cause.message or cause_name(cause)), ("figure", figure(cause))]
    lines = [line.rstrip() for line in cause.last_log_lines][-LAST_LINES:]
    rows.append(("last lines", "\n".join(lines)))
    return [*rows, ("next", "\n".join(next_commands(job)))]


def cause_name(cause: common_pb2.Cause) -> str:
    """The cause's code in words: `out of memory`; empty when there is none."""
    if not cause.code:
        return ""
    code = common_pb2.CauseCode.Name(cause.code).removeprefix("CAUSE_CODE_")
    return code.replace("_", " ").lower()


def figure(cause: common_pb2.Cause) -> str:
    """The numbers behind a cause: exit code or signal, then the evidence."""
    parts = []
    if cause.HasField("exit_code"):
        parts.append(f"exit code {cause.exit_code}")
    if cause.HasField("signal"):
        parts.append(f"signal {cause.signal}")
    for key, value in sorted(cause.evidence.items()):
        parts.append(f"{FIGURES.get(key, key.replace('_', ' '))} {_amount(key, value)}")
    return ", ".join(parts)


def _amount(key: str, value: str) -> str:
    return say_bytes(float(value)) if key.endswith("_bytes") and value.isdigit() else value


def next_commands(job: job_pb2.Job) -> list[str]:
    """What to type after a bad ending, the most useful first."""
    name, cause = short_name(job.name), job.cause
    code = cause.code
    if code == common_pb2.CAUSE_CODE_ENVIRONMENT_FAILED:
        return [f"hatoba logs {name} --stream build"]
    if code == common_pb2.CAUSE_CODE_INPUT_CHANGED:
        # The same version would find the same again.
        return ["hatoba datasets import s3://BUCKET/PREFIX NAME"]
    if code == common_pb2.CAUSE_CODE_OUT_OF_MEMORY:
        return [f"hatoba run --memory {_more_memory(job)} -- {_command(job)}"]
    if code == common_pb2.CAUSE_CODE_RUN_TIMEOUT:
        longer = f"{max(job.spec.timeout.seconds, 1) * 2}s"
        return [f"hatoba run --timeout {longer} -- {_command(job)}"]
    if code == common_pb2.CAUSE_CODE_UPSTREAM_FAILED:
        return [f"hatoba jobs get {short_name(parent)}" for parent in job.spec.after_ok][
            :LAST_LINES
        ]
    if cause.origin in {common_pb2.ORIGIN_INFRASTRUCTURE, common_pb2.ORIGIN_PREEMPTION}:
        return [f"hatoba jobs rerun {name} --from-checkpoint", f"hatoba logs {name} --tail 50"]
    return [f"hatoba logs {name} --tail 50", f"hatoba jobs rerun {name}"]


def _more_memory(job: job_pb2.Job) -> str:
    asked = job.spec.resources.memory_bytes
    return f"{max(asked * 2 // 2**20, 1)}Mi" if asked else "4Gi"


def _command(job: job_pb2.Job) -> str:
    import shlex

    text = shlex.join(job.spec.command)
    return text if len(text) <= 80 else text[:77] + "..."


def ending(job: job_pb2.Job) -> str:
    """How a followed job ended, for its follower."""
    line = describe(job)
    if job.state == common_pb2.JOB_STATE_SUCCEEDED:
        told = [f"  {word}  {value}" for word, value in published_rows(job) if value]
        return "\n".join([line, *told])
    if job.state not in TERMINAL:
        return line
    rows = failure_rows(job)
    if job.state == common_pb2.JOB_STATE_CANCELLED:
        rows = [row for row in rows if row[0] == "cause"]
    # The log was just shown; its last lines need no second telling.
    told = [
        f"  {name}  " + value.replace("\n", "\n        ")
        for name, value in rows
        if _useful(name, value)
    ]
    return "\n".join([line, *told])


def published_rows(job: job_pb2.Job) -> list[tuple[str, str]]:
    """What became of outputs that were to be published: what they add up to, and as what."""
    return [("summary", job.summary), ("published", short_resource(job.published))]


def _useful(name: str, value: str) -> bool:
    return bool(value) and name != "last lines"


def queue_line(job: job_pb2.Job) -> str:
    """Where an unfinished job stands in line: `digits-7  QUEUED in queue night, priority 5`."""
    place = f"queue {job.spec.queue or 'default'}, priority {job.spec.priority}"
    return f"{short_name(job.name)}  {state_name(job.state)} in {place}"


def event_line(event: common_pb2.Event) -> str:
    """One event in a line: time, job, task, from and to, and why."""
    about = short_name(event.job)
    if event.HasField("index"):
        about += f"[{event.index}]" + (f" attempt {event.attempt}" if event.attempt else "")
    why = _with_note(event)
    by = "" if event.actor in {"", "system"} else f" by {event.actor}"
    clock = moment(event.time)[-8:]
    before, after = state_name(getattr(event, "from")), state_name(event.to)
    change = after if before == after else f"{before} -> {after}"
    return f"{clock}  {about}  {change}{by}" + (f"  ({why})" if why else "")


def state_line(event: common_pb2.Event) -> str:
    """What a follower is told of an event that moved its job, or sent a task into a retry."""
    name = short_name(event.job)
    clock = moment(event.time)[-8:]
    if event.job_from != event.job_to:
        attempt = f" (attempt {event.attempt})" if event.attempt > 1 else ""
        if event.reason == "retry":
            attempt = f" for another attempt: {_with_note(event)}"
        return f"{clock}  {name}  {state_name(event.job_to)}{attempt}"
    return f"{clock}  {name}  attempt {event.attempt} ended: {_with_note(event)}"


def _with_note(event: common_pb2.Event) -> str:
    note = "" if event.note == event.cause.message else event.note
    return " ".join(part for part in (event.cause.message, note) if part) or event.reason
