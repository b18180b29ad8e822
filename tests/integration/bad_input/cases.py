"""The table of bad input over the wire: what is sent, and what has to be said about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2
from google.protobuf.message import Message

from hatoba.v1 import (
    admin_pb2,
    artifact_pb2,
    common_pb2,
    job_pb2,
    queue_pb2,
    runner_pb2,
    worker_pb2,
)

if TYPE_CHECKING:
    from tests.integration.bad_input.conftest import Ground

MISSING = "sha256:" + "0" * 64
NOWHERE = "01890000-0000-7000-8000-000000000000"


@dataclass(frozen=True)
class Case:
    """A request, the code it has to get, the field that has to be named, words that have to be
    there.
    """

    make: Callable[[Ground], Message]
    code: str = "INVALID_ARGUMENT"
    field: str = ""
    words: tuple[str, ...] = ()
    token: Callable[[Ground], str] | None = None


def spec(**changes: Any) -> job_pb2.JobSpec:
    """A good specification with changes."""
    made = job_pb2.JobSpec(name="job", command=["true"])
    made.MergeFrom(job_pb2.JobSpec(**{k: v for k, v in changes.items() if k != "command"}))
    if "command" in changes:
        made.ClearField("command")
        made.command.extend(changes["command"])
    if changes.get("name") == "":
        made.ClearField("name")
    return made


def submit(field: str, *words: str, **changes: Any) -> Case:
    """A submit with a bad field of its specification."""
    made = spec(**changes)
    path = f"spec.{field}" if field else "spec"
    return Case(lambda _: job_pb2.SubmitJobRequest(spec=made), field=path, words=words)


def request(message: Message, field: str = "", *words: str, code: str = "INVALID_ARGUMENT") -> Case:
    """A bad request that needs nothing of the server."""
    return Case(lambda _: message, code, field, words)


def seconds(number: int) -> duration_pb2.Duration:
    """A duration."""
    return duration_pb2.Duration(seconds=number)


def resources(**values: float) -> common_pb2.Resources:
    """Resources by field."""
    made = common_pb2.Resources()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def with_params(**kinds: Any) -> job_pb2.JobSpec:
    """A specification whose parameters are no plain values."""
    made = spec()
    for name, value in kinds.items():
        if value is None:
            made.params[name].null_value = struct_pb2.NULL_VALUE
        else:
            made.params[name].list_value.extend(value)
    return made


def mask(*paths: str) -> field_mask_pb2.FieldMask:
    """A field mask."""
    return field_mask_pb2.FieldMask(paths=paths)


RESTARTS = job_pb2.Gang(policy=job_pb2.GANG_POLICY_RESTART)
RULE = common_pb2.RetryRule(limit=1)


def placed(**requirement: Any) -> job_pb2.Placement:
    """A placement with one requirement."""
    return job_pb2.Placement(require=[job_pb2.LabelRequirement(**requirement)])


def moment(second: int) -> timestamp_pb2.Timestamp:
    """A point in time."""
    return timestamp_pb2.Timestamp(seconds=second)


def away(stop: int, lost: int) -> job_pb2.Disconnect:
    """What becomes of a job that is cut off; 0 leaves the stop out."""
    made = job_pb2.Disconnect(lost_after=seconds(lost))
    if stop:
        made.stop_after.seconds = stop
    return made


def ruled(**rule: Any) -> common_pb2.RetryPolicy:
    """A policy of one rule."""
    return common_pb2.RetryPolicy(rules=[common_pb2.RetryRule(**rule)])


SPECS: Mapping[str, Case] = {
    "empty name": submit("name", "1 to 48", name=""),
    "name of a megabyte": submit("name", "1 to 48", "(1000000 long)", name="n" * 1_000_000),
    "name that climbs": submit("name", "'../../etc'", "choose a name", name="../../etc"),
    "name in capitals": submit("name", "'Train'", name="Train"),
    "unknown backend": submit("backend", "'hots'", "did you mean 'hosts'", backend="hots"),
    "backend that is no name": submit("backend", "'a b'", backend="a b"),
    "unknown queue": submit("queue", "'defualt'", "did you mean 'default'", queue="defualt"),
    "no command": submit("command", command=[]),
    "empty program": submit("command[0]", "give a command", command=[""]),
    "NUL in an argument": submit("command[1]", "NUL", command=["echo", "a\0b"]),
    "1,025 arguments": submit("command", "1024", command=["x"] * 1025),
    "argument of 200 KB": submit("command[1]", "131072", command=["echo", "y" * 200_000]),
    "negative cpus": submit("resources.cpus", "-1", resources=resources(cpus=-1)),
    "NaN cpus": submit("resources.cpus", "nan", resources=resources(cpus=math.nan)),
    "infinite cpus": submit("resources.cpus", "inf", resources=resources(cpus=math.inf)),
    "negative memory": submit("resources.memory_bytes", "-5", resources=resources(memory_bytes=-5)),
    "negative gpus": submit("resources.gpus", "-2", resources=resources(gpus=-2)),
    "priority out of range": submit("priority", "1001", "range", priority=1001),
    "array of none": submit("array.size", array=job_pb2.ArraySpec(size=0, fail_fast=True)),
    "array too large": submit("array.size", "1000001", array=job_pb2.ArraySpec(size=1_000_001)),
    "negative max_parallel": submit(
        "array.max_parallel", "-1", array=job_pb2.ArraySpec(size=2, max_parallel=-1)
    ),
    "time limit of nothing": submit("timeout", "0s", timeout=seconds(0)),
    "negative grace": submit("stop_grace", stop_grace=seconds(-3)),
    "negative retries": submit("retries.user", "-1", retries=common_pb2.RetryPolicy(user=-1)),
    "too many retries": submit(
        "retries.infrastructure", "1001", retries=common_pb2.RetryPolicy(infrastructure=1001)
    ),
    "negative back-off": submit(
        "retries.backoff", retries=common_pb2.RetryPolicy(backoff=seconds(-1))
    ),
    "variable that is no name": submit("env", "environment variable", env={"A B": "x"}),
    "variable of the platform": submit("env", "set by the platform", env={"HATOBA_JOB": "x"}),
    "NUL in a variable": submit("env", "NUL", env={"A": "x\0y"}),
    "label that is no key": submit("labels", "'-team'", labels={"-team": "x"}),
    "label too long": submit("labels", "256", labels={"team": "x" * 257}),
    "parameter that is a list": Case(
        lambda _: job_pb2.SubmitJobRequest(spec=with_params(lr=[1, 2])),
        field="spec.params",
        words=("list_value", "plain value"),
    ),
    "parameter that is null": Case(
        lambda _: job_pb2.SubmitJobRequest(spec=with_params(lr=None)), field="spec.params"
    ),
    "parameter that is not there": submit(
        "command[1]", "${params.rate}", "-p rate=VALUE", command=["train", "${params.rate}"]
    ),
    "dependency on a missing job": submit("after_ok[0]", "'gone-7'", after_ok=["gone-7"]),
    "dependency on itself": submit("after_ok[0]", "'job-1'", "before it", after_ok=["job-1"]),
    "dependency twice": submit("after_ok", "once", after_ok=["held-1", "held-1"]),
    "dependency that is no name": submit("after_ok[0]", "'a/b/c'", after_ok=["a/b/c"]),
    "dependency that ended badly": Case(
        lambda g: job_pb2.SubmitJobRequest(spec=spec(after_ok=[g.cancelled.name])),
        "FAILED_PRECONDITION",
        words=("CANCELLED", "rerun"),
    ),
    "code that is not stored": submit(
        "code", MISSING[:20], "upload", code=common_pb2.ManifestRef(digest=MISSING)
    ),
    "code that is no digest": submit(
        "code.digest", "'sha1:ab'", code=common_pb2.ManifestRef(digest="sha1:ab")
    ),
    "published folder outside": submit(
        "publish.folder", publish=job_pb2.Publish(dataset="d", folder="../up")
    ),
    "published to no name": submit("publish.dataset", publish=job_pb2.Publish(dataset="No Name")),
    "published with less than no errors": submit(
        "publish.max_errors", publish=job_pb2.Publish(dataset="d", max_errors=-1)
    ),
    "input without content": submit("inputs[0].manifest", inputs=[job_pb2.Input(name="a")]),
    "input that climbs": submit(
        "inputs[0].name",
        "'../a'",
        inputs=[job_pb2.Input(name="../a", manifest=common_pb2.ManifestRef(digest=MISSING))],
    ),
    "unknown secret": submit(
        "secrets[0].name", "'key'", "0600", secrets=[job_pb2.SecretRef(name="key")]
    ),
    "secret into no variable": submit(
        "secrets[0].env", "DATA_DIR", secrets=[job_pb2.SecretRef(name="key", env="9X")]
    ),
    "image on hosts": submit(
        "environment.image", "images", environment=job_pb2.Environment(image="python:3")
    ),
    "image and python": submit(
        "environment", "not both", environment=job_pb2.Environment(image="a", python="3.11")
    ),
    "replicas of an array": submit(
        "replicas", "array of 3", replicas=2, array=job_pb2.ArraySpec(size=3)
    ),
    "too many replicas": submit("replicas", "4097", replicas=4097),
    "gang of one": submit("gang", "replicas 0", "set replicas", gang=RESTARTS),
    "gang that never starts": submit(
        "gang.start_timeout", replicas=2, gang=job_pb2.Gang(start_timeout=seconds(0))
    ),
    "label that is asked for nothing": submit(
        "placement.require[0].values", "EXISTS", placement=placed(key="zone")
    ),
    "label that is there with values": submit(
        "placement.require[0].values", "'a'", placement=placed(key="z", operator=3, values=["a"])
    ),
    "label of no name": submit("placement.require[0].key", placement=placed(key="-a", operator=3)),
    "neighbour that is no label": submit(
        "placement.near[0]",
        "KEY=VALUE",
        "team=vision",
        placement=job_pb2.Placement(near=["vision"]),
    ),
    "near what it keeps apart from": submit(
        "placement.near",
        "apart_from",
        placement=job_pb2.Placement(near=["a=b"], apart_from=["c=d", "a=b"]),
    ),
    "deadline that is past": submit("deadline", "is past", "1970-01-12", deadline=moment(10**6)),
    "deadline before its start": submit(
        "deadline", "start_after", start_after=moment(4 * 10**9), deadline=moment(3 * 10**9)
    ),
    "deadline before time": submit("deadline", "1970 and 9999", deadline=moment(-5)),
    "start after time": submit("start_after", "1970 and 9999", start_after=moment(10**12)),
    "queue time of nothing": submit("max_queue_time", "0s", max_queue_time=seconds(0)),
    "lost before it stops": submit(
        "disconnect.lost_after", "30 s more than stop_after, 60 s", "90 s", disconnect=away(60, 89)
    ),
    "lost without a stop": submit("disconnect.lost_after", "stop_after", disconnect=away(0, 90)),
    "never and sometimes preempted": submit(
        "preemption.max", "never", preemption=job_pb2.Preemption(never=True, max=2)
    ),
    "negative preemptions": submit("preemption.max", "-1", preemption=job_pb2.Preemption(max=-1)),
    "spot of no kind": submit("spot", spot=9),
    "rule on no cause": submit("retries.rules[0].causes", retries=ruled(causes=[0])),
    "rule on an exit code of 256": submit(
        "retries.rules[0].exit_codes", "256", retries=ruled(exit_codes=[256])
    ),
    "rule whose conditions exclude each other": submit(
        "retries.rules[0].exit_codes",
        "LOST",
        "EXIT_CODE",
        retries=ruled(exit_codes=[3], causes=[13]),
    ),
    "rule that fails with a limit": submit(
        "retries.rules[0].limit", "fails", retries=ruled(action=2, limit=3)
    ),
    "rule that fails and changes": submit(
        "retries.rules[0].mutate",
        "fails",
        retries=ruled(action=2, mutate=common_pb2.RetryMutation(other_host=True)),
    ),
    "rule with less memory": submit(
        "retries.rules[0].mutate.memory_factor",
        "0.5",
        retries=ruled(mutate=common_pb2.RetryMutation(memory_factor=0.5)),
    ),
    "rule with NaN memory": submit(
        "retries.rules[0].mutate.memory_factor",
        "nan",
        retries=ruled(mutate=common_pb2.RetryMutation(memory_factor=math.nan)),
    ),
    "rule with a negative limit": submit("retries.rules[0].limit", "-1", retries=ruled(limit=-1)),
    "33 rules": submit("retries.rules", "32", retries=common_pb2.RetryPolicy(rules=[RULE] * 33)),
    "specification too large": submit("", "262144", env={f"V{n}": "x" * 30_000 for n in range(10)}),
}

REQUESTS: Mapping[str, Case] = {
    "no specification": request(job_pb2.SubmitJobRequest(), "spec", "set it"),
    "project that is no name": request(
        job_pb2.SubmitJobRequest(project="Q&A", spec=spec()), "project", "'Q&A'"
    ),
    "request id with a space": request(
        job_pb2.SubmitJobRequest(spec=spec(), request_id="a b"), "request_id", "UUID"
    ),
    "request id too long": request(
        job_pb2.SubmitJobRequest(spec=spec(), request_id="r" * 129), "request_id", "128"
    ),
    "same request id, another body": request(
        job_pb2.SubmitJobRequest(spec=spec(), request_id="taken-1"),
        "",
        "'taken-1'",
        "use a new one",
        code="ALREADY_EXISTS",
    ),
    "message over the limit": request(
        job_pb2.SubmitJobRequest(spec=spec(env={f"V{n}": "x" * 30_000 for n in range(200)})),
        "",
        "4,194,304",
        code="RESOURCE_EXHAUSTED",
    ),
    "message far over the limit": request(
        job_pb2.SubmitJobRequest(spec=spec(name="n" * 20_000_000)), code="RESOURCE_EXHAUSTED"
    ),
    "batch of none": request(job_pb2.SubmitJobsRequest(), "items"),
    "batch of 1,001": request(
        job_pb2.SubmitJobsRequest(items=[job_pb2.SubmitJobsItem()] * 1001), "items", "1000"
    ),
    "job that is not there": request(
        job_pb2.GetJobRequest(name="gone-7"), "", "'gone-7'", "jobs list", code="NOT_FOUND"
    ),
    "uid that is not there": request(
        job_pb2.GetJobRequest(name=NOWHERE), "", NOWHERE, code="NOT_FOUND"
    ),
    "job without a name": request(job_pb2.GetJobRequest(), "name", "give a value"),
    "name of something else": request(
        job_pb2.GetJobRequest(name="projects/default/queues/q"), "name", "NAME-N"
    ),
    "negative page": request(job_pb2.ListJobsRequest(page_size=-1), "page_size", "-1"),
    "page of 1,001": request(job_pb2.ListJobsRequest(page_size=1001), "page_size", "1001"),
    "page token that is noise": request(
        job_pb2.ListJobsRequest(page_token="bm9pc2U="), "", "page_token", "damaged"
    ),
    "page token of another query": Case(
        lambda g: job_pb2.ListJobsRequest(page_token=g.page_token, filter="state = QUEUED"),
        words=("page_token", "another query"),
    ),
    "page token of another list": Case(
        lambda g: queue_pb2.ListQueuesRequest(page_token=g.page_token),
        words=("page_token", "another query"),
    ),
    "filter on an unknown field": request(
        job_pb2.ListJobsRequest(filter="sate = RUNNING"), "", "'sate'", "did you mean 'state'"
    ),
    "filter on an unknown state": request(
        job_pb2.ListJobsRequest(filter="state = RUNING"), "", "'RUNING'", "did you mean RUNNING"
    ),
    "filter that breaks off": request(
        job_pb2.CountJobsRequest(filter='name = "dig'), "", "filter", "expected"
    ),
    "cancel of nothing": request(job_pb2.CancelJobsRequest(), "jobs", "at least one"),
    "cancel of tasks of nothing": request(
        job_pb2.CancelJobsRequest(filter="state = HELD", indices="0"), "indices", "exactly one job"
    ),
    "cancel of some jobs and a queue": request(
        job_pb2.CancelJobsRequest(jobs=["held-1"], queue="q"), "queue", "'q'", "together"
    ),
    "cancel of a task of no array": request(
        job_pb2.CancelJobsRequest(jobs=["held-1"], indices="0"),
        "",
        "no array",
        code="FAILED_PRECONDITION",
    ),
    "plan of nothing": request(job_pb2.PlanJobRequest(), "spec", "set it"),
    "plan of what would be refused": request(
        job_pb2.PlanJobRequest(spec=spec(queue="defualt")), "spec.queue", "did you mean 'default'"
    ),
    "explanation of what is not there": request(
        job_pb2.ExplainJobRequest(name="gone-7"), "", "'gone-7'", code="NOT_FOUND"
    ),
    "explanation of no name": request(job_pb2.ExplainJobRequest(name="a/b"), "name", "NAME-N"),
    "rerun of what failed of one task": Case(
        lambda g: job_pb2.RerunJobRequest(job=g.cancelled.name, failed_only=True),
        field="failed_only",
        words=("arrays",),
    ),
    "rerun under another name": Case(
        lambda g: job_pb2.RerunJobRequest(job=g.cancelled.name, override_mask=mask("name")),
        field="override_mask",
        words=("'name'", "submit a new job"),
    ),
    "rerun with half a field": Case(
        lambda g: job_pb2.RerunJobRequest(
            job=g.cancelled.name, override_mask=mask("resources.cpus")
        ),
        field="override_mask",
        words=("'resources'", "whole"),
    ),
    "cancel of one that is not there": Case(
        lambda g: job_pb2.CancelJobsRequest(jobs=[g.held.name, "gone-7"]),
        "NOT_FOUND",
        words=("'gone-7'",),
    ),
    "update with a stale etag": Case(
        lambda g: job_pb2.UpdateJobRequest(
            name=g.held.name, priority=3, update_mask=mask("priority"), etag="stale"
        ),
        "ABORTED",
        words=("stale", "read it again"),
    ),
    "update of nothing": Case(
        lambda g: job_pb2.UpdateJobRequest(name=g.held.name, update_mask=mask()),
        field="update_mask",
        words=("priority",),
    ),
    "update of what is fixed": Case(
        lambda g: job_pb2.UpdateJobRequest(name=g.held.name, update_mask=mask("spec.command")),
        field="update_mask",
        words=("spec.command",),
    ),
    "update into an unknown queue": Case(
        lambda g: job_pb2.UpdateJobRequest(
            name=g.held.name, queue="wide", update_mask=mask("queue")
        ),
        "NOT_FOUND",
        words=("'wide'",),
    ),
    "update of an ended job": Case(
        lambda g: job_pb2.UpdateJobRequest(
            name=g.cancelled.name, priority=3, update_mask=mask("priority")
        ),
        "FAILED_PRECONDITION",
        words=("CANCELLED", "rerun"),
    ),
    "rerun from no checkpoint": Case(
        lambda g: job_pb2.RerunJobRequest(job=g.cancelled.name, from_checkpoint=True),
        "FAILED_PRECONDITION",
        words=("no checkpoint",),
    ),
    "rerun of nothing": request(job_pb2.RerunJobRequest(job="gone-7"), code="NOT_FOUND"),
    "metrics of too many points": request(
        job_pb2.QueryMetricsRequest(job="held-1", max_points=100_001), "max_points", "100001"
    ),
    "tasks of a negative page": request(
        job_pb2.ListTasksRequest(job="held-1", page_size=-1), "page_size"
    ),
    "attempts of a negative index": request(
        job_pb2.ListAttemptsRequest(job="held-1", index=-1), "index"
    ),
    "queue that is no name": request(
        queue_pb2.CreateQueueRequest(queue_id="a/b"), "queue_id", "'a/b'"
    ),
    "queue of NaN weight": request(
        queue_pb2.CreateQueueRequest(queue_id="q", queue=queue_pb2.Queue(weight=math.nan)),
        "queue.weight",
        "nan",
    ),
    "queue of negative room": request(
        queue_pb2.CreateQueueRequest(queue_id="q", queue=queue_pb2.Queue(max_running=-1)),
        "queue.max_running",
        "-1",
    ),
    "queue that differs": request(
        queue_pb2.CreateQueueRequest(queue_id="narrow", queue=queue_pb2.Queue(weight=3)),
        "",
        "'narrow'",
        "queues update",
        code="ALREADY_EXISTS",
    ),
    "queue that is not there": request(
        queue_pb2.GetQueueRequest(name="wide"), "", "'wide'", code="NOT_FOUND"
    ),
    "queue with a stale etag": Case(
        lambda g: queue_pb2.UpdateQueueRequest(
            queue=queue_pb2.Queue(name=g.queue.name, weight=5, etag="stale"),
            update_mask=mask("weight"),
        ),
        "ABORTED",
        words=("stale", "read it again"),
    ),
    "queue update of what is fixed": Case(
        lambda g: queue_pb2.UpdateQueueRequest(
            queue=queue_pb2.Queue(name=g.queue.name), update_mask=mask("created_by")
        ),
        field="update_mask",
        words=("created_by",),
    ),
    "delete of the default queue": request(
        queue_pb2.DeleteQueueRequest(name="default"), code="FAILED_PRECONDITION"
    ),
    "token without a role": request(
        admin_pb2.CreateTokenRequest(principal="ann"), "role", "another value"
    ),
    "token of an unknown role": request(
        admin_pb2.CreateTokenRequest(principal="ann", role=99),  # type: ignore[arg-type]
        "role",
        "99",
    ),
    "token for nobody": request(
        admin_pb2.CreateTokenRequest(principal="a b", role=admin_pb2.ROLE_USER),
        "principal",
        "'a b'",
    ),
    "token that ended before": request(
        admin_pb2.CreateTokenRequest(
            principal="ann", role=admin_pb2.ROLE_USER, ttl=duration_pb2.Duration(seconds=-5)
        ),
        "ttl",
    ),
    "revoke of nothing": request(
        admin_pb2.RevokeTokenRequest(name="tokens/none"), code="NOT_FOUND"
    ),
    "host that is not there": request(
        worker_pb2.DeclareHostGoneRequest(name="hosts/none", reason="fire"), code="NOT_FOUND"
    ),
    "host gone without a reason": request(
        worker_pb2.DeclareHostGoneRequest(name="hosts/none"), "reason"
    ),
    "claim with a short nonce": request(
        runner_pb2.ClaimAttemptRequest(attempt="a", nonce="short"), "nonce", "16"
    ),
    "commit of no kind": request(
        runner_pb2.CommitAttemptRequest(attempt="a", nonce="n" * 16), "kind"
    ),
    "commit of exit code 256": request(
        runner_pb2.CommitAttemptRequest(
            attempt="a", kind=runner_pb2.EXIT_KIND_EXITED, exit_code=256
        ),
        "exit_code",
        "256",
    ),
    "span without an id": request(
        admin_pb2.PushSpansRequest(spans=[job_pb2.Span(trace_id="xyz", name="a")]),
        "spans[0].trace_id",
        "32",
    ),
}


def manifest(*entries: artifact_pb2.ManifestEntry) -> artifact_pb2.CreateManifestRequest:
    """A manifest to be stored."""
    return artifact_pb2.CreateManifestRequest(manifest=artifact_pb2.Manifest(entries=entries))


def file(path: str, **fields: Any) -> artifact_pb2.ManifestEntry:
    """An empty file."""
    return artifact_pb2.ManifestEntry(path=path, type=artifact_pb2.ENTRY_TYPE_FILE, **fields)


def link(path: str, target: str) -> artifact_pb2.ManifestEntry:
    """A symbolic link."""
    kind = artifact_pb2.ENTRY_TYPE_SYMLINK
    return artifact_pb2.ManifestEntry(path=path, type=kind, target=target)


def bomb(files: int) -> artifact_pb2.CreateManifestRequest:
    """Files of a thousand chunks each, all of them one and the same: 8 GiB a file."""
    chunk = artifact_pb2.Chunk(sha256=b"\0" * 32, size=8 << 20)
    big = [file(f"f{n}", size=(8 << 20) * 1000, chunks=[chunk] * 1000) for n in range(files)]
    return manifest(*big)


FIRST = "manifest.entries[0]"
TREES: Mapping[str, Case] = {
    "path that climbs": request(manifest(file("../evil")), f"{FIRST}.path", "'../evil'"),
    "path that climbs later": request(manifest(file("a/../../b")), f"{FIRST}.path", "a/../../b"),
    "absolute path": request(manifest(file("/etc/passwd")), f"{FIRST}.path", "/etc/passwd"),
    "path with a NUL": request(manifest(file("a\0b")), f"{FIRST}.path", "U+0000"),
    "path twice": request(manifest(file("a"), file("a")), "manifest.entries[1].path", "once"),
    "paths out of order": request(
        manifest(file("b"), file("a")), "manifest.entries[1].path", "sorted"
    ),
    "link out of the tree": request(
        manifest(link("a", "../../etc")), f"{FIRST}.target", "inside the tree"
    ),
    "link to an absolute path": request(manifest(link("a", "/etc")), f"{FIRST}.target", "'/etc'"),
    "file below a link": request(
        manifest(link("a", "b"), file("a/evil")), "manifest.entries[1].path", "not a directory"
    ),
    "set-uid file": request(manifest(file("a", mode=0o4755)), f"{FIRST}.mode"),
    "entry of no type": request(manifest(artifact_pb2.ManifestEntry(path="a")), f"{FIRST}.type"),
    "size that is not its chunks'": request(manifest(file("a", size=9)), f"{FIRST}.size", "9"),
    "chunk that is not stored": request(
        manifest(file("a", size=1, chunks=[artifact_pb2.Chunk(sha256=b"\1" * 32, size=1)])),
        "",
        "01" * 32,
        code="FAILED_PRECONDITION",
    ),
    "chunk without a digest": request(
        manifest(file("a", size=1, chunks=[artifact_pb2.Chunk(sha256=b"short", size=1)])),
        f"{FIRST}.chunks[0].sha256",
        "32",
    ),
    "archive bomb": request(bomb(80), "manifest"),
    "manifest that is not stored": request(
        artifact_pb2.GetManifestRequest(digest=MISSING), "", MISSING, code="NOT_FOUND"
    ),
    "manifest that is no digest": request(
        artifact_pb2.GetManifestRequest(digest="../../hatoba.db"), "digest", "64"
    ),
    "digests of the wrong length": request(
        artifact_pb2.FindMissingChunksRequest(sha256=[b"abc"]), "sha256[0]"
    ),
}

CALLERS: Mapping[str, Case] = {
    "no token": Case(
        lambda _: job_pb2.CountJobsRequest(),
        "UNAUTHENTICATED",
        words=("token",),
        token=lambda _: "",
    ),
    "token that is noise": Case(
        lambda _: job_pb2.CountJobsRequest(),
        "UNAUTHENTICATED",
        words=("hb_",),
        token=lambda _: "noise",
    ),
    "token of another server": Case(
        lambda _: job_pb2.CountJobsRequest(),
        "UNAUTHENTICATED",
        words=("does not know the token",),
        token=lambda _: "hb_0123456789ab_" + "x" * 32,
    ),
    "token with a wrong end": Case(
        lambda _: job_pb2.CountJobsRequest(),
        "UNAUTHENTICATED",
        words=("does not know the token",),
        token=lambda g: g.user[:-1] + ("a" if g.user[-1] != "a" else "b"),
    ),
    "expired token": Case(
        lambda _: job_pb2.CountJobsRequest(),
        "UNAUTHENTICATED",
        words=("expired", "new one"),
        token=lambda g: g.expired,
    ),
    "revoked token": Case(
        lambda _: job_pb2.CountJobsRequest(),
        "UNAUTHENTICATED",
        words=("revoked", "new one"),
        token=lambda g: g.revoked,
    ),
    "viewer who submits": Case(
        lambda _: job_pb2.SubmitJobRequest(spec=spec()),
        "PERMISSION_DENIED",
        words=("vera", "viewer", "user"),
        token=lambda g: g.viewer,
    ),
    "viewer who cancels": Case(
        lambda g: job_pb2.CancelJobsRequest(jobs=[g.held.name]),
        "PERMISSION_DENIED",
        words=("vera",),
        token=lambda g: g.viewer,
    ),
    "user who makes tokens": Case(
        lambda _: admin_pb2.CreateTokenRequest(principal="eve", role=admin_pb2.ROLE_ADMIN),
        "PERMISSION_DENIED",
        words=("uma", "admin"),
        token=lambda g: g.user,
    ),
    "worker who submits": Case(
        lambda _: job_pb2.SubmitJobRequest(spec=spec()),
        "PERMISSION_DENIED",
        words=("worker",),
        token=lambda g: g.worker,
    ),
    "user who plays a runner": Case(
        lambda _: runner_pb2.ClaimAttemptRequest(attempt="a", nonce="n" * 16),
        "PERMISSION_DENIED",
        token=lambda g: g.user,
    ),
}

CASES: Mapping[str, Case] = {**SPECS, **REQUESTS, **TREES, **CALLERS}
