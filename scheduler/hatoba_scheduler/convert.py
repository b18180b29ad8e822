"""Between stored records and the messages of the contract."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from hatoba.v1 import common_pb2, job_pb2, queue_pb2, worker_pb2
from hatoba_scheduler.domain.naming import job_name, queue_name
from hatoba_scheduler.domain.records import (
    Attempt,
    Cause,
    Checkpoint,
    Counts,
    Event,
    Host,
    Job,
    LabelRequirement,
    ManifestRef,
    Micros,
    Progress,
    Queue,
    Resources,
    Task,
    Usage,
)
from hatoba_scheduler.domain.states import JobState, Operator

LAST_SECOND = 253_402_300_799
"""The end of the year 9999, where the contract's times end."""


def micros(stamp: Timestamp) -> Micros:
    """Microseconds since 1970; 0 for an unset time and for one outside the years 1970 to 9999."""
    if not 0 <= stamp.seconds <= LAST_SECOND:
        return 0
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def set_time(stamp: Timestamp, time: Micros) -> None:
    """Fill in a time field; leaves it unset for 0."""
    if time:
        stamp.seconds, rest = divmod(time, 1_000_000)
        stamp.nanos = rest * 1000


def manifest_of(ref: common_pb2.ManifestRef) -> ManifestRef:
    """The record of a manifest reference."""
    return ManifestRef(ref.digest, ref.total_bytes, ref.files)


def manifest_to_proto(ref: ManifestRef) -> common_pb2.ManifestRef:
    """The message of a manifest reference."""
    return common_pb2.ManifestRef(digest=ref.digest, total_bytes=ref.total_bytes, files=ref.files)


def usage_of(usage: job_pb2.Usage) -> Usage:
    """The record of a usage."""
    return Usage(
        usage.cpu_seconds,
        usage.memory_peak_bytes,
        usage.gpu_peak,
        usage.memory_limit_by,
        usage.image,
    )


def progress_of(told: job_pb2.Progress) -> Progress:
    """The record of a progress."""
    return Progress(told.done, told.total, told.message, micros(told.time))


def progress_to_proto(progress: Progress) -> job_pb2.Progress:
    """The message of a progress."""
    out = job_pb2.Progress(done=progress.done, total=progress.total, message=progress.message)
    set_time(out.time, progress.time)
    return out


def checkpoint_to_proto(checkpoint: Checkpoint) -> job_pb2.Checkpoint:
    """The message of a checkpoint."""
    out = job_pb2.Checkpoint(
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        manifest=manifest_to_proto(checkpoint.manifest),
        metrics=dict(checkpoint.metrics),
    )
    set_time(out.create_time, checkpoint.create_time)
    return out


def cause_to_proto(cause: Cause) -> common_pb2.Cause:
    """The message of a cause."""
    return common_pb2.Cause(
        code=common_pb2.CauseCode.ValueType(cause.code),
        origin=common_pb2.Origin.ValueType(cause.origin),
        message=cause.message,
        retryable=cause.retryable,
        exit_code=cause.exit_code,
        signal=cause.signal,
        evidence=dict(cause.evidence),
        last_log_lines=cause.last_log_lines,
    )


def state_to_proto(state: JobState) -> common_pb2.JobState.ValueType:
    """The contract's number of a state."""
    return common_pb2.JobState.ValueType(state)


@functools.lru_cache(maxsize=4096)
def counts_to_proto(counts: Counts) -> common_pb2.TaskCounts:
    """The message of task counts, shared: not to be changed; states with none are left out."""
    by_state = {JobState(n).name: count for n, count in enumerate(counts) if count}
    return common_pb2.TaskCounts(total=sum(counts), by_state=by_state)


def resources_to_proto(amount: Resources) -> common_pb2.Resources:
    """The message of an amount of resources."""
    return common_pb2.Resources(
        cpus=amount.cpus, memory_bytes=amount.memory, gpus=amount.gpus, named=dict(amount.named)
    )


def resources_of(told: common_pb2.Resources) -> Resources:
    """The record of an amount; it has no slots."""
    named = tuple(sorted(told.named.items())) if told.named else ()
    return Resources(told.cpus, told.memory_bytes, told.gpus, 0, named)


def requirements_of(told: Iterable[job_pb2.LabelRequirement]) -> tuple[LabelRequirement, ...]:
    """The records of requirements on labels."""
    return tuple(
        LabelRequirement(one.key, Operator(one.operator or Operator.IN), tuple(one.values))
        for one in told
    )


def etag(job: Job) -> str:
    """Changes with what UpdateJob can change."""
    return f"{job.uid[-12:]}-{job.settings_version}"


def job_to_proto(job: Job, spec: job_pb2.JobSpec | None) -> job_pb2.Job:
    """The message of a job; its spec with what has changed since submit."""
    out = job_pb2.Job(
        name=job_name(job.project, job.name),
        uid=job.uid,
        state=state_to_proto(job.state),
        desired=common_pb2.Desired.ValueType(job.desired),
        counts=counts_to_proto(job.counts),
        version=job.version,
        etag=etag(job),
        created_by=job.created_by,
        trace_id=job.trace_id,
        rerun_of=job.rerun_of,
        generation=job.generation,
        inherited=str(job.terms.inherited),
        backends=job.terms.backends,
    )
    if spec is not None:
        _put_spec(out.spec, spec, job)
    if job.cause is not None and job.state.terminal:
        out.cause.CopyFrom(cause_to_proto(job.cause))
    if job.outputs is not None:
        out.outputs.CopyFrom(manifest_to_proto(job.outputs))
    set_time(out.create_time, job.create_time)
    set_time(out.start_time, job.start_time)
    set_time(out.end_time, job.end_time)
    return out


def _put_spec(out: job_pb2.JobSpec, spec: job_pb2.JobSpec, job: Job) -> None:
    out.CopyFrom(spec)
    out.priority, out.queue, out.hold = job.priority, job.queue, job.hold
    if out.labels or job.labels:
        out.labels.clear()
        out.labels.update(dict(job.labels))


def task_to_proto(job: Job, task: Task, progress: Progress | None = None) -> job_pb2.Task:
    """The message of a started task."""
    out = job_pb2.Task(
        job=job_name(job.project, job.name),
        index=task.index,
        state=state_to_proto(task.state),
        attempt=task.attempt,
        version=task.version,
        memory_bytes=task.adapted.memory,
        avoided_hosts=task.adapted.avoid,
        on_demand=task.adapted.on_demand,
        preemptions=task.adapted.preempted,
    )
    if task.cause is not None:
        out.cause.CopyFrom(cause_to_proto(task.cause))
    if task.outputs is not None:
        out.outputs.CopyFrom(manifest_to_proto(task.outputs))
    if progress is not None:
        out.progress.CopyFrom(progress_to_proto(progress))
    if job.terms.devices:
        out.device = job.terms.devices[task.index]
    set_time(out.not_before, task.not_before)
    set_time(out.start_time, task.start_time)
    set_time(out.end_time, task.end_time)
    return out


def unstarted_to_proto(job: Job, index: int) -> job_pb2.Task:
    """The message of a task that never started."""
    dropped = index in job.dropped
    device = job.terms.devices[index] if job.terms.devices else ""
    return job_pb2.Task(
        job=job_name(job.project, job.name),
        index=index,
        state=state_to_proto(JobState.CANCELLED if dropped else job.unstarted_state),
        device=device,
    )


def usage_to_proto(usage: Usage) -> job_pb2.Usage:
    """The message of a usage."""
    return job_pb2.Usage(
        cpu_seconds=usage.cpu_seconds,
        memory_peak_bytes=usage.memory_peak_bytes,
        gpu_peak=usage.gpu_peak,
        memory_limit_by=usage.memory_limit_by,
        image=usage.image,
    )


def attempt_to_proto(job: Job, attempt: Attempt) -> job_pb2.Attempt:
    """The message of an attempt."""
    out = job_pb2.Attempt(
        job=job_name(job.project, job.name),
        index=attempt.index,
        number=attempt.number,
        external_name=attempt.name,
        fence=attempt.fence,
        backend=attempt.backend,
        host=attempt.host,
        gpus=attempt.gpus,
        state=attempt_state_to_proto(attempt),
        release=common_pb2.Release.ValueType(attempt.release),
        usage=usage_to_proto(attempt.usage),
        fenced=attempt.fenced,
        generation=attempt.generation,
        address=attempt.address,
    )
    if attempt.cause is not None:
        out.cause.CopyFrom(cause_to_proto(attempt.cause))
    if attempt.checkpoint is not None:
        out.checkpoint.CopyFrom(checkpoint_to_proto(attempt.checkpoint))
    if attempt.outputs is not None:
        out.outputs.CopyFrom(manifest_to_proto(attempt.outputs))
    for stamp, time in (
        (out.unknown_since, attempt.unknown_since),
        (out.create_time, attempt.create_time),
        (out.claim_time, attempt.claim_time),
        (out.start_time, attempt.start_time),
        (out.end_time, attempt.end_time),
    ):
        set_time(stamp, time)
    return out


def attempt_state_to_proto(attempt: Attempt) -> common_pb2.AttemptState.ValueType:
    """The contract's number of an attempt's state."""
    return common_pb2.AttemptState.ValueType(attempt.state)


def event_to_proto(event: Event) -> common_pb2.Event:
    """The message of an event."""
    out = common_pb2.Event(
        seq=event.seq,
        job=job_name(event.project, event.job_name),
        job_seq=event.job_seq,
        index=event.index,
        attempt=event.attempt,
        to=state_to_proto(event.to_state),
        job_from=state_to_proto(event.job_from),
        job_to=state_to_proto(event.job_to),
        terminal=event.terminal,
        job_terminal=event.job_terminal,
        actor=event.actor,
        reason=event.reason,
        trace_id=event.trace_id,
        note=event.note,
        queue=event.queue,
    )
    setattr(out, "from", int(event.from_state))
    if event.cause is not None:
        out.cause.CopyFrom(cause_to_proto(event.cause))
    set_time(out.time, event.time)
    return out


def queue_to_proto(queue: Queue) -> queue_pb2.Queue:
    """The message of a queue."""
    out = queue_pb2.Queue(
        name=queue_name(queue.project, queue.name),
        weight=queue.weight,
        max_running=queue.max_running,
        max_pending=queue.max_pending,
        etag=queue_etag(queue),
        created_by=queue.created_by,
        labels=dict(queue.labels),
        parent=queue.parent,
        no_borrowing=queue.no_borrowing,
        cordoned=queue.cordoned,
        cordon_reason=queue.cordon_reason,
        draining=queue.draining,
    )
    # What is not set stays absent, so that nobody takes it for a limit of nothing.
    if queue.quota != Resources():
        out.quota.CopyFrom(resources_to_proto(queue.quota))
    if queue.guaranteed != Resources():
        out.guaranteed.CopyFrom(resources_to_proto(queue.guaranteed))
    set_time(out.create_time, queue.create_time)
    return out


def queue_etag(queue: Queue) -> str:
    """Changes with every update of a queue."""
    return f"q{queue.version}"


def host_to_proto(host: Host, connected: bool, used: tuple[Resources, int]) -> worker_pb2.Host:
    """The message of a host; `used` is what live attempts hold of it, and how many they are."""
    out = worker_pb2.Host(
        name=f"hosts/{host.name}",
        connected=connected,
        cordoned=host.cordoned,
        declared_gone=host.declared_gone,
        cpus=host.capacity.cpus,
        memory_bytes=host.capacity.memory,
        gpus=host.gpus,
        slots=host.capacity.slots,
        reserved=resources_to_proto(used[0]),
        slots_used=used[0].slots,
        attempts=used[1],
        labels=dict(host.labels),
        version=host.version,
        embedded=host.embedded,
        draining=host.draining,
        named=dict(host.capacity.named),
        cordon_reason=host.cordon_reason,
    )
    set_time(out.last_seen, host.last_seen)
    set_time(out.quarantined_until, host.quarantined_until)
    return out


def pairs(mapping: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """A map field's items in a fixed order."""
    return tuple(sorted(mapping))
