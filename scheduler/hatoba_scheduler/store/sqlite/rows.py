"""Records as rows and back.

sqlite3 binds exact ints, floats and texts fast and everything else through its adapters, so enums
and flags become ints here and "none" is empty text, 0 or -1.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

from hatoba_scheduler.domain.models import Alias, Model, ModelState, ModelVersion, Move, MoveState
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    ANYWHERE,
    AS_ASKED,
    PLAIN,
    Adapted,
    Attempt,
    Cause,
    Checkpoint,
    Counts,
    Event,
    Host,
    Job,
    LabelRequirement,
    ManifestRef,
    MetricPoint,
    Placement,
    Queue,
    Resources,
    RetryMutation,
    RetryPolicy,
    RetryRule,
    Task,
    Terms,
    TokenRecord,
    Usage,
)
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    Desired,
    GangPolicy,
    JobState,
    Operator,
    Origin,
    Release,
    RetryAction,
    Spot,
    Strategy,
)
from hatoba_scheduler.store.base import Parked
from hatoba_scheduler.store.sqlite.statements import Row

_JOB_STATES = {int(state): state for state in JobState}
_ATTEMPT_STATES = {int(state): state for state in AttemptState}
_DESIRED = {int(desired): desired for desired in Desired}
_RELEASES = {int(release): release for release in Release}
_MODEL_STATES = {int(state): state for state in ModelState}
_MOVE_STATES = {int(state): state for state in MoveState}
_FLAGS = {0: False, 1: True}

_dump: Callable[[object], str] = json.JSONEncoder(
    separators=(",", ":"), check_circular=False
).encode
_load: Callable[[str], Any] = json.JSONDecoder().decode


# -- parts: JSON arrays in a fixed order -------------------------------------------------------


def cause_text(cause: Cause | None) -> str:
    """A cause as it is stored; empty for none."""
    if cause is None:
        return ""
    return _dump(
        (
            int(cause.code),
            int(cause.origin),
            cause.message,
            cause.retryable,
            cause.exit_code,
            cause.signal,
            cause.evidence,
            cause.last_log_lines,
        )
    )


def cause_from(text: str) -> Cause | None:
    """A stored cause; None for empty text."""
    if not text:
        return None
    code, origin, message, retryable, exit_code, signal, evidence, lines = _load(text)
    return Cause(
        CauseCode(code),
        Origin(origin),
        message,
        retryable,
        exit_code,
        signal,
        _pairs(evidence),
        tuple(lines),
    )


def _pairs(values: list[list[Any]]) -> tuple[tuple[Any, Any], ...]:
    return tuple([(key, value) for key, value in values])


def _manifest_text(manifest: ManifestRef | None) -> str:
    if manifest is None:
        return ""
    return _dump((manifest.digest, manifest.total_bytes, manifest.files))


def _manifest(text: str) -> ManifestRef | None:
    return ManifestRef(*_load(text)) if text else None


def _checkpoint_text(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return ""
    kept = checkpoint.manifest
    return _dump(
        (
            checkpoint.step,
            checkpoint.attempt,
            (kept.digest, kept.total_bytes, kept.files),
            checkpoint.metrics,
            checkpoint.create_time,
        )
    )


def _checkpoint(text: str) -> Checkpoint | None:
    if not text:
        return None
    step, attempt, manifest, metrics, create_time = _load(text)
    return Checkpoint(step, attempt, ManifestRef(*manifest), _pairs(metrics), create_time)


@functools.lru_cache(maxsize=1024)
def _resources_text(resources: Resources) -> str:
    return _dump(resources) if any(resources) else ""


@functools.lru_cache(maxsize=1024)
def _resources(text: str) -> Resources:
    if not text:
        return Resources()
    cpus, memory, gpus, slots, *named = _load(text)
    return Resources(cpus, memory, gpus, slots, _pairs(named[0]) if named else ())


@functools.lru_cache(maxsize=1024)
def _retries_text(retries: RetryPolicy) -> str:
    return _dump(
        (
            retries.user,
            retries.infrastructure,
            retries.preemption,
            retries.backoff,
            retries.max_backoff,
            retries.rules,
        )
    )


@functools.lru_cache(maxsize=1024)
def _retries(text: str) -> RetryPolicy:
    user, infrastructure, preemption, backoff, longest, *rules = _load(text)
    return RetryPolicy(
        user,
        infrastructure,
        preemption,
        backoff,
        longest,
        tuple(_rule(rule) for rule in rules[0]) if rules else (),
    )


def _rule(stored: list[Any]) -> RetryRule:
    causes, origins, exit_codes, action, limit, mutate = stored
    return RetryRule(
        tuple(CauseCode(code) for code in causes),
        tuple(Origin(origin) for origin in origins),
        tuple(exit_codes),
        RetryAction(action),
        limit,
        RetryMutation(*mutate),
    )


def _placement(stored: list[Any]) -> Placement:
    require, prefer, strategy, apart_from, near, apart = stored
    return Placement(
        _requirements(require),
        _requirements(prefer),
        Strategy(strategy),
        _pairs(apart_from),
        _pairs(near),
        apart,
    )


def _requirements(stored: list[Any]) -> tuple[LabelRequirement, ...]:
    return tuple(
        LabelRequirement(key, Operator(operator), tuple(values)) for key, operator, values in stored
    )


@functools.lru_cache(maxsize=1024)
def _terms_text(terms: Terms) -> str:
    if terms is PLAIN or terms == PLAIN:
        return ""
    return _dump(
        (
            terms.gang,
            int(terms.gang_policy),
            terms.gang_timeout,
            () if terms.placement == ANYWHERE else terms.placement,
            terms.start_after,
            terms.deadline,
            terms.max_queue_time,
            terms.timeout,
            terms.stop_after,
            terms.lost_after,
            terms.never_preempt,
            terms.max_preemptions,
            terms.preempt_grace,
            int(terms.spot),
            terms.backends,
            str(terms.inherited),
            *((terms.devices,) if terms.devices else ()),
        )
    )


@functools.lru_cache(maxsize=1024)
def _terms(text: str) -> Terms:
    if not text:
        return PLAIN
    gang, policy, timeout, placement, *rest = _load(text)
    start, deadline, queued, run, stop, lost, never, most, grace, spot, *rest = rest
    backends, inherited, *devices = rest
    return Terms(
        gang,
        GangPolicy(policy),
        timeout,
        _placement(placement) if placement else ANYWHERE,
        start,
        deadline,
        queued,
        run,
        stop,
        lost,
        never,
        most,
        grace,
        Spot(spot),
        tuple(backends),
        Ranges.parse(inherited),
        tuple(devices[0]) if devices else (),
    )


def _adapted_text(adapted: Adapted) -> str:
    if adapted is AS_ASKED or adapted == AS_ASKED:
        return ""
    return _dump(
        (
            adapted.memory,
            adapted.avoid,
            adapted.on_demand,
            adapted.spot_losses,
            adapted.rule_uses,
            adapted.preempted,
        )
    )


def _adapted(text: str) -> Adapted:
    if not text:
        return AS_ASKED
    memory, avoid, on_demand, losses, uses, preempted = _load(text)
    return Adapted(memory, tuple(avoid), on_demand, losses, tuple(uses), preempted)


@functools.lru_cache(maxsize=4096)
def _counts_text(counts: Counts) -> str:
    return _dump(counts)


@functools.lru_cache(maxsize=4096)
def _counts(text: str) -> Counts:
    return tuple(_load(text))


@functools.lru_cache(maxsize=1024)
def _ranges(text: str) -> Ranges:
    return Ranges.parse(text)


@functools.lru_cache(maxsize=1024)
def _ranges_text(ranges: Ranges) -> str:
    return str(ranges) if ranges.runs else ""


def _unstarted_text(job: Job) -> str:
    """Tasks without a row: those that may start, and after a `;` those cancelled alone."""
    text = _ranges_text(job.unstarted)
    return f"{text};{job.dropped}" if job.dropped else text


_NO_USAGE = Usage()


def _usage_text(usage: Usage) -> str:
    if usage is _NO_USAGE or usage == _NO_USAGE:
        return ""
    told = (usage.cpu_seconds, usage.memory_peak_bytes, usage.gpu_peak, usage.memory_limit_by)
    return _dump((*told, usage.image) if usage.image else told)


def _usage(text: str) -> Usage:
    return Usage(*_load(text)) if text else _NO_USAGE


def _texts(text: str) -> tuple[str, ...]:
    return tuple(_load(text)) if text else ()


def _text_pairs(text: str) -> tuple[tuple[Any, Any], ...]:
    return _pairs(_load(text)) if text else ()


# -- jobs ----------------------------------------------------------------------------------------


def new_job_row(job: Job, base_name: str) -> Row:
    """A job to insert, after its id and number."""
    return (
        base_name,
        job.uid,
        job.project,
        job.queue,
        job.backend,
        job.priority,
        job.size,
        job.max_parallel,
        1 if job.fail_fast else 0,
        _resources_text(job.resources),
        _retries_text(job.retries),
        int(job.state),
        int(job.desired),
        job.version,
        job.settings_version,
        _unstarted_text(job),
        int(job.unstarted_state),
        _counts_text(job.counts),
        1 if job.hold else 0,
        _dump(job.blocked_on) if job.blocked_on else "",
        job.created_by,
        job.create_time,
        job.start_time,
        job.end_time,
        cause_text(job.cause),
        job.trace_id,
        job.span_id,
        1 if job.sampled else 0,
        job.rerun_of,
        job.stop_grace,
        _dump(job.labels) if job.labels else "",
        _dump(job.secrets) if job.secrets else "",
        1 if job.embedded_only else 0,
        _manifest_text(job.outputs),
        _checkpoint_text(job.restore),
        _terms_text(job.terms),
        _dump(job.blocked_any) if job.blocked_any else "",
        _dump(job.blocked_end) if job.blocked_end else "",
        job.generation,
    )


def job_update_row(job: Job) -> Row:
    """What may change of a job, after its uid."""
    return (
        job.uid,
        job.queue,
        job.priority,
        int(job.state),
        int(job.desired),
        job.version,
        job.settings_version,
        _unstarted_text(job),
        int(job.unstarted_state),
        _counts_text(job.counts),
        1 if job.hold else 0,
        _dump(job.blocked_on) if job.blocked_on else "",
        job.start_time,
        job.end_time,
        cause_text(job.cause),
        _manifest_text(job.outputs),
        job.backend,
        _dump(job.blocked_any) if job.blocked_any else "",
        _dump(job.blocked_end) if job.blocked_end else "",
        job.generation,
    )


def job_from(row: Row) -> Job:
    """The job of a row. Raises ValueError or KeyError when it cannot be read."""
    unstarted, _, dropped = row[16].partition(";")
    return Job(
        row[0],
        row[1],
        f"{row[2]}-{row[3]}",
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        _FLAGS[row[9]],
        _resources(row[10]),
        _retries(row[11]),
        _JOB_STATES[row[12]],
        _DESIRED[row[13]],
        row[14],
        row[15],
        _ranges(unstarted),
        _JOB_STATES[row[17]],
        _counts(row[18]),
        _FLAGS[row[19]],
        _texts(row[20]),
        row[21],
        row[22],
        row[23],
        row[24],
        cause_from(row[25]),
        row[26],
        row[27],
        _FLAGS[row[28]],
        row[29],
        row[30],
        _text_pairs(row[31]),
        _texts(row[32]),
        _FLAGS[row[33]],
        _manifest(row[34]),
        _checkpoint(row[35]),
        _terms(row[36]),
        _texts(row[37]),
        _texts(row[38]),
        row[39],
        _ranges(dropped),
    )


def parked_from(row: Row) -> Parked:
    """Parked jobs of what they have in common and their uids. Raises as `job_from`."""
    common, uids = row
    return _alike(common)._replace(uids=uids)


@functools.lru_cache(maxsize=4096)
def _alike(text: str) -> Parked:
    """What parked jobs have in common, without their uids."""
    project, queue, backend, priority, state, *rest = _load(text)
    resources, terms, secrets, embedded_only, created_by = rest
    return Parked(
        (),
        project,
        queue,
        backend,
        priority,
        _JOB_STATES[state],
        _resources(resources),
        _terms(terms),
        _texts(secrets),
        _FLAGS[embedded_only],
        created_by,
    )


# -- tasks and attempts --------------------------------------------------------------------------


def task_row(task: Task) -> Row:
    """A task to insert or write over."""
    return (
        task.job_uid,
        task.index,
        int(task.state),
        task.version,
        task.attempt,
        task.not_before,
        task.user_failures,
        task.infrastructure_failures,
        task.preemptions,
        cause_text(task.cause),
        _checkpoint_text(task.checkpoint),
        _manifest_text(task.outputs),
        task.start_time,
        task.end_time,
        _adapted_text(task.adapted),
    )


def task_from(row: Row) -> Task:
    """The task of a row. Raises ValueError or KeyError when it cannot be read."""
    return Task(
        row[0],
        row[1],
        _JOB_STATES[row[2]],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        cause_from(row[9]),
        _checkpoint(row[10]),
        _manifest(row[11]),
        row[12],
        row[13],
        _adapted(row[14]),
    )


def attempt_row(attempt: Attempt) -> Row:
    """An attempt to insert or write over."""
    return (
        attempt.job_uid,
        attempt.index,
        attempt.number,
        attempt.name,
        attempt.fence,
        attempt.backend,
        attempt.host,
        _dump(attempt.gpus) if attempt.gpus else "",
        int(attempt.state),
        attempt.version,
        int(attempt.release),
        1 if attempt.fenced else 0,
        attempt.span_id,
        attempt.create_time,
        attempt.handle,
        attempt.nonce,
        int(attempt.intended) if attempt.intended else 0,
        attempt.unknown_since,
        attempt.claim_time,
        attempt.start_time,
        attempt.end_time,
        cause_text(attempt.cause),
        _usage_text(attempt.usage),
        _checkpoint_text(attempt.checkpoint),
        _manifest_text(attempt.outputs),
        _dump(attempt.log_sizes) if attempt.log_sizes else "",
        _resources_text(attempt.reserved),
        attempt.generation,
        attempt.address,
    )


def attempt_from(row: Row) -> Attempt:
    """The attempt of a row. Raises ValueError or KeyError when it cannot be read."""
    return Attempt(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        _texts(row[7]),
        _ATTEMPT_STATES[row[8]],
        row[9],
        _RELEASES[row[10]],
        _FLAGS[row[11]],
        row[12],
        row[13],
        row[14],
        row[15],
        _ATTEMPT_STATES[row[16]] if row[16] else None,
        row[17],
        row[18],
        row[19],
        row[20],
        cause_from(row[21]),
        _usage(row[22]),
        _checkpoint(row[23]),
        _manifest(row[24]),
        _text_pairs(row[25]),
        _resources(row[26]),
        row[27],
        row[28],
    )


# -- events and metrics --------------------------------------------------------------------------


def event_row(event: Event) -> Row:
    """An event to insert, after its position and its job's name."""
    return (
        event.job_uid,
        event.job_seq,
        event.time,
        -1 if event.index is None else event.index,
        event.attempt,
        int(event.from_state),
        int(event.to_state),
        int(event.job_from),
        int(event.job_to),
        cause_text(event.cause),
        event.actor,
        event.reason,
        event.project,
        event.trace_id,
        event.note,
        event.queue,
    )


def event_from(row: Row) -> Event:
    """The event of a row. Raises ValueError or KeyError when it cannot be read."""
    return Event(
        row[2],
        row[3],
        row[4],
        None if row[5] == -1 else row[5],
        row[6],
        _JOB_STATES[row[7]],
        _JOB_STATES[row[8]],
        _JOB_STATES[row[9]],
        _JOB_STATES[row[10]],
        cause_from(row[11]),
        row[12],
        row[13],
        row[14],
        row[1],
        row[15],
        row[0],
        row[16],
        row[17],
    )


def metric_row(point: MetricPoint) -> Row:
    """A point to insert or write over."""
    value = None if math.isnan(point.value) else point.value
    return (
        point.job_uid,
        point.key,
        point.index,
        point.step,
        point.attempt,
        value,
        point.time,
    )


def metric_from(row: Row) -> MetricPoint:
    """The point of a row."""
    uid, index, key, step, attempt, value, time = row
    return MetricPoint(uid, index, key, step, attempt, math.nan if value is None else value, time)


# -- models --------------------------------------------------------------------------------------


def model_version_row(version: ModelVersion) -> Row:
    """A version to insert, after its number."""
    return (
        version.project,
        version.model,
        int(version.state),
        version.manifest.digest,
        version.manifest.total_bytes,
        version.manifest.files,
        version.content,
        version.create_time,
        version.created_by,
        version.handler,
        version.code,
        1 if version.has_example else 0,
        _dump(version.metrics) if version.metrics else "",
        version.description,
        _dump(version.labels) if version.labels else "",
        version.job,
        version.attempt,
        _dump(version.datasets) if version.datasets else "",
        version.code_version,
        version.git_commit,
        version.parent,
        version.check_job,
        cause_text(version.cause),
        version.trace_id,
    )


def model_version_from(row: Row) -> ModelVersion:
    """The version of a row. Raises ValueError or KeyError when it cannot be read."""
    return ModelVersion(
        row[1],
        row[2],
        row[0],
        _MODEL_STATES[row[3]],
        ManifestRef(row[4], row[5], row[6]),
        row[7],
        row[8],
        row[9],
        row[10],
        row[11],
        _FLAGS[row[12]],
        _text_pairs(row[13]),
        row[14],
        _text_pairs(row[15]),
        row[16],
        row[17],
        _texts(row[18]),
        row[19],
        row[20],
        row[21],
        row[22],
        cause_from(row[23]),
        row[24],
    )


def model_from(row: Row, aliases: list[Row]) -> Model:
    """The model of a row and of its aliases' rows. Raises ValueError when it cannot be read."""
    project, model, latest, protected, revision, created, creator = row
    return Model(
        project,
        model,
        latest,
        _texts(protected),
        revision,
        created,
        creator,
        tuple([Alias(*alias) for alias in aliases]),
    )


def protected_text(aliases: tuple[str, ...]) -> str:
    """Protected aliases as they are stored."""
    return _dump(sorted(aliases)) if aliases else ""


def move_row(move: Move) -> Row:
    """A move to insert; the store numbers it."""
    return (
        move.project,
        move.model,
        move.alias,
        move.source,
        move.target,
        int(move.state),
        move.reason,
        move.requested_by,
        move.request_time,
        move.decided_by,
        move.decide_time,
        move.comment,
    )


def move_from(row: Row) -> Move:
    """The move of a row. Raises KeyError when it cannot be read."""
    return Move(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        _MOVE_STATES[row[6]],
        row[7],
        row[8],
        row[9],
        row[10],
        row[11],
        row[12],
    )


# -- queues, hosts, tokens -----------------------------------------------------------------------


def queue_row(queue: Queue) -> Row:
    """A queue to insert or write over."""
    return (
        queue.project,
        queue.name,
        queue.version,
        queue.created_by,
        queue.create_time,
        queue.weight,
        queue.max_running,
        queue.max_pending,
        _dump(queue.labels) if queue.labels else "",
        queue.parent,
        _resources_text(queue.quota),
        _resources_text(queue.guaranteed),
        int(queue.no_borrowing),
        int(queue.cordoned),
        queue.cordon_reason,
        int(queue.draining),
    )


def queue_from(row: Row) -> Queue:
    """The queue of a row. Raises ValueError when it cannot be read."""
    project, name, version, creator, created, weight, running, pending, labels, *rest = row
    parent, quota, guaranteed, no_borrowing, cordoned, reason, draining = rest
    return Queue(
        project,
        name,
        version,
        creator,
        created,
        weight,
        running,
        pending,
        _text_pairs(labels),
        parent,
        _resources(quota),
        _resources(guaranteed),
        _FLAGS[no_borrowing],
        _FLAGS[cordoned],
        reason,
        _FLAGS[draining],
    )


def host_row(host: Host) -> Row:
    """A host to insert or write over."""
    return (
        host.name,
        host.boot_id,
        host.keeper,
        _resources_text(host.capacity),
        _dump(host.gpus),
        _dump(host.labels),
        _dump(host.secrets),
        host.version,
        int(host.embedded),
        int(host.cordoned),
        int(host.declared_gone),
        host.last_seen,
        host.address,
        int(host.draining),
        host.cordon_reason,
        host.quarantined_until,
    )


def host_from(row: Row) -> Host:
    """The host of a row. Raises ValueError or KeyError when it cannot be read."""
    return Host(
        row[0],
        row[1],
        row[2],
        _resources(row[3]),
        _texts(row[4]),
        _text_pairs(row[5]),
        _texts(row[6]),
        row[7],
        _FLAGS[row[8]],
        _FLAGS[row[9]],
        _FLAGS[row[10]],
        row[11],
        row[12],
        _FLAGS[row[13]],
        row[14],
        row[15],
    )


def token_row(token: TokenRecord) -> Row:
    """A token to insert or write over."""
    return (
        token.id,
        token.sha256,
        token.principal,
        int(token.role),
        token.create_time,
        token.expire_time,
        int(token.revoked),
        token.created_by,
        token.deployment,
        token.host,
        token.used_by,
    )


def token_from(row: Row) -> TokenRecord:
    """The token of a row. Raises KeyError when it cannot be read."""
    identity, sha256, principal, role, created, expires, revoked, *rest = row
    return TokenRecord(
        identity, sha256, principal, role, created, expires, _FLAGS[revoked], *map(str, rest)
    )
