"""A server of small fakes, real gRPC in between, and a home of its own for every test."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner, Result
from google.protobuf.message import Message

from hatoba.cli.main import main
from hatoba.settings import Server
from hatoba.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifact_pb2,
    artifact_pb2_grpc,
    common_pb2,
    dataset_pb2,
    dataset_pb2_grpc,
    device_pb2,
    job_pb2,
    job_pb2_grpc,
    model_pb2,
    queue_pb2,
    queue_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

TOKEN = "hatoba-token-for-tests"
Context = grpc.ServicerContext
STATES = common_pb2.JobState
M = TypeVar("M", bound=Message)


@dataclass
class Refusal:
    """An error that a fake gives once."""

    code: grpc.StatusCode
    message: str = "refused"
    details: bytes = b""

    def give(self, context: Context) -> None:
        """End the call with it."""
        if self.details:
            context.set_trailing_metadata((("grpc-status-details-bin", self.details),))
        context.abort(self.code, self.message)


@dataclass
class FakeServer:
    """What the fakes know, what they were asked, and how they are to misbehave."""

    address: str = ""
    jobs: dict[str, job_pb2.Job] = field(default_factory=dict)
    tasks: dict[str, list[job_pb2.Task]] = field(default_factory=dict)
    attempts: dict[str, list[job_pb2.Attempt]] = field(default_factory=dict)
    events: list[common_pb2.Event] = field(default_factory=list)
    logs: dict[tuple[int, str], bytes] = field(default_factory=dict)
    series: list[job_pb2.MetricSeries] = field(default_factory=list)
    spans: list[job_pb2.Span] = field(default_factory=list)
    replies: dict[str, Message] = field(default_factory=dict)
    asked: list[Message] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    pushed: list[job_pb2.Span] = field(default_factory=list)
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)
    # Streams end after so many messages, one entry for each connection; "eof" ends them politely.
    breaks: list[int] = field(default_factory=list)
    politely: bool = False
    # The oldest event that is kept; a watch from before it is told to resync.
    oldest: int = 1
    hold_logs: threading.Event = field(default_factory=threading.Event)
    log_reached_hold: threading.Event = field(default_factory=threading.Event)
    hold: bool = False
    # The first watch waits until the job was asked for.
    hold_watch: bool = False
    job_asked: threading.Event = field(default_factory=threading.Event)
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    manifests: dict[str, artifact_pb2.Manifest] = field(default_factory=dict)
    # What a test adds beside the services below.
    services: list[Callable[[grpc.Server], None]] = field(default_factory=list)

    def requests(self, name: str) -> list[Any]:
        """What was asked of one kind, in order."""
        return [request for request in self.asked if request.DESCRIPTOR.name == name]

    def refuse(
        self,
        name: str,
        code: grpc.StatusCode,
        message: str = "refused",
        *,
        details: bytes = b"",
        times: int = 1,
    ) -> None:
        """Answer the next calls with this kind of request by an error."""
        self.refusals.setdefault(name, []).extend([Refusal(code, message, details)] * times)

    def heard(self, request: Message, context: Context) -> None:
        """Note a call; give a refusal that waits for it."""
        self.asked.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        waiting = self.refusals.get(request.DESCRIPTOR.name)
        if waiting:
            waiting.pop(0).give(context)

    def reply(self, request: Message, context: Context, default: M) -> M:
        """The reply prepared for a call, or the default one."""
        self.heard(request, context)
        return cast(M, self.replies.get(request.DESCRIPTOR.name, default))

    def add_job(
        self, name: str = "train-1", state: str = "SUCCEEDED", **fields: Any
    ) -> job_pb2.Job:
        """A job that GetJob finds, by its full name and its short one."""
        full = f"projects/default/jobs/{name}"
        number = STATES.Value(f"JOB_STATE_{state}")
        job = job_pb2.Job(name=full, uid="0" * 36, state=number, created_by="ann", **fields)
        job.spec.name = job.spec.name or name.rpartition("-")[0]
        job.counts.total = job.counts.total or 1
        job.create_time.GetCurrentTime()
        self.jobs[full] = self.jobs[name] = job
        return job

    def add_event(
        self, old: str, new: str, *, attempt: int = 0, job: str = "train-1", **fields: Any
    ) -> None:
        """The next event of a job with one task; its own state follows the task's."""
        before, after = (STATES.Value(f"JOB_STATE_{state}") for state in (old, new))
        terminal = new in {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "UPSTREAM_FAILED"}
        values: dict[str, Any] = {
            "from": before,
            "to": after,
            "job_from": before,
            "job_to": after,
            **fields,
        }
        event = common_pb2.Event(
            seq=len(self.events) + 1,
            job=f"projects/default/jobs/{job}",
            index=0,
            attempt=attempt,
            terminal=terminal,
            job_terminal=terminal,
            actor="system",
            **values,
        )
        self.events.append(event)

    def run_through(
        self, *, state: str = "SUCCEEDED", out: bytes = b"hello\n", err: bytes = b""
    ) -> job_pb2.Job:
        """A job that ran once and ended."""
        job = self.add_job(state=state)
        self.logs[1, "stdout"], self.logs[1, "stderr"] = out, err
        self.add_event("QUEUED", "LAUNCHING", attempt=1)
        self.add_event("LAUNCHING", "STARTING", attempt=1)
        self.add_event("STARTING", "RUNNING", attempt=1)
        self.add_event("RUNNING", state, attempt=1)
        return job


class FakeJobs(job_pb2_grpc.JobServiceServicer):
    """JobService."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def SubmitJob(self, request: job_pb2.SubmitJobRequest, context: Context) -> job_pb2.Job:
        self.fake.heard(request, context)
        if request.validate_only:
            return job_pb2.Job(spec=request.spec)
        job = next(iter(self.fake.jobs.values()), None) or self.fake.add_job(
            f"{request.spec.name}-1", "QUEUED"
        )
        job.spec.CopyFrom(request.spec)
        return job

    def SubmitJobs(
        self, request: job_pb2.SubmitJobsRequest, context: Context
    ) -> job_pb2.SubmitJobsResponse:
        names = [
            f"projects/default/jobs/{item.spec.name}-{n}" for n, item in enumerate(request.items, 1)
        ]
        results = [job_pb2.SubmitJobsResult(name=name) for name in names]
        return self.fake.reply(request, context, job_pb2.SubmitJobsResponse(results=results))

    def ExecJob(self, requests: Any, context: Context) -> Iterator[Any]:
        raise AssertionError("nobody is attached to the fakes")

    def ForwardJob(self, requests: Any, context: Context) -> Iterator[Any]:
        raise AssertionError("nobody is attached to the fakes")

    def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        self.fake.heard(request, context)
        if request.name not in self.fake.jobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no job {request.name!r}")
        self.fake.job_asked.set()
        return self.fake.jobs[request.name]

    def ListJobs(
        self, request: job_pb2.ListJobsRequest, context: Context
    ) -> job_pb2.ListJobsResponse:
        unique = {job.name: job for job in self.fake.jobs.values()}
        found = list(unique.values())[: request.page_size]
        return self.fake.reply(request, context, job_pb2.ListJobsResponse(jobs=found))

    def CountJobs(
        self, request: job_pb2.CountJobsRequest, context: Context
    ) -> job_pb2.CountJobsResponse:
        return self.fake.reply(request, context, job_pb2.CountJobsResponse())

    def ListTasks(
        self, request: job_pb2.ListTasksRequest, context: Context
    ) -> job_pb2.ListTasksResponse:
        tasks = self.fake.tasks.get(request.job, [job_pb2.Task(job=request.job, attempt=1)])
        return self.fake.reply(request, context, job_pb2.ListTasksResponse(tasks=tasks))

    def ListAttempts(
        self, request: job_pb2.ListAttemptsRequest, context: Context
    ) -> job_pb2.ListAttemptsResponse:
        found = self.fake.attempts.get(request.job, [])
        return self.fake.reply(request, context, job_pb2.ListAttemptsResponse(attempts=found))

    def CancelJobs(
        self, request: job_pb2.CancelJobsRequest, context: Context
    ) -> job_pb2.CancelJobsResponse:
        outcome = job_pb2.CANCEL_OUTCOME_CANCELLED
        results = [job_pb2.CancelResult(job=name, outcome=outcome) for name in request.jobs]
        return self.fake.reply(request, context, job_pb2.CancelJobsResponse(results=results))

    def UpdateJob(self, request: job_pb2.UpdateJobRequest, context: Context) -> job_pb2.Job:
        return self.fake.reply(request, context, self.fake.jobs.get(request.name, job_pb2.Job()))

    def RerunJob(self, request: job_pb2.RerunJobRequest, context: Context) -> job_pb2.Job:
        return self.fake.reply(request, context, job_pb2.Job(name="projects/default/jobs/train-2"))

    def PlanJob(self, request: job_pb2.PlanJobRequest, context: Context) -> job_pb2.Explanation:
        return self.fake.reply(request, context, job_pb2.Explanation())

    def ExplainJob(
        self, request: job_pb2.ExplainJobRequest, context: Context
    ) -> job_pb2.Explanation:
        return self.fake.reply(request, context, job_pb2.Explanation())

    def QueryMetrics(
        self, request: job_pb2.QueryMetricsRequest, context: Context
    ) -> job_pb2.QueryMetricsResponse:
        return self.fake.reply(
            request, context, job_pb2.QueryMetricsResponse(series=self.fake.series)
        )

    def GetJobTrace(
        self, request: job_pb2.GetJobTraceRequest, context: Context
    ) -> job_pb2.GetJobTraceResponse:
        return self.fake.reply(request, context, job_pb2.GetJobTraceResponse(spans=self.fake.spans))

    def WatchJobs(
        self, request: job_pb2.WatchJobsRequest, context: Context
    ) -> Iterator[job_pb2.WatchJobsResponse]:
        self.fake.heard(request, context)
        if self.fake.hold_watch:
            self.fake.job_asked.wait(30)
        messages = self._events(request)
        yield from self._until_broken(messages, context)

    def _events(self, request: job_pb2.WatchJobsRequest) -> Iterator[job_pb2.WatchJobsResponse]:
        after = int(request.cursor or len(self.fake.events))
        if after + 1 < self.fake.oldest:
            cursor = str(self.fake.oldest - 1)
            resync = job_pb2.WatchJobsResponse.Resync(oldest_cursor=cursor)
            yield job_pb2.WatchJobsResponse(cursor=cursor, resync=resync)
            return
        for event in self.fake.events:
            if event.seq > after:
                yield job_pb2.WatchJobsResponse(cursor=str(event.seq), event=event)
        end = job_pb2.WatchJobsResponse.End(reason="terminal")
        yield job_pb2.WatchJobsResponse(cursor=str(len(self.fake.events)), end=end)

    def _until_broken(self, messages: Iterator[Any], context: Context) -> Iterator[Any]:
        left = self.fake.breaks.pop(0) if self.fake.breaks else -1
        for message in messages:
            if left == 0:
                if not self.fake.politely:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
                return
            left -= 1
            yield message

    def TailLogs(
        self, request: job_pb2.TailLogsRequest, context: Context
    ) -> Iterator[job_pb2.TailLogsResponse]:
        self.fake.heard(request, context)
        yield from self._until_broken(self._log(request), context)

    def _log(self, request: job_pb2.TailLogsRequest) -> Iterator[job_pb2.TailLogsResponse]:
        attempt = request.attempt or max((number for number, _ in self.fake.logs), default=1)
        for (number, stream), data in sorted(self.fake.logs.items()):
            if number == attempt and request.stream in {"", stream}:
                for start in range(request.offset, len(data), 8):
                    piece = data[start : start + 8]
                    yield job_pb2.TailLogsResponse(
                        attempt=number, stream=stream, offset=start, data=piece
                    )
        if self.fake.hold:
            self.fake.log_reached_hold.set()
            self.fake.hold_logs.wait(30)
        yield job_pb2.TailLogsResponse(attempt=attempt, end=True)


class FakeQueues(queue_pb2_grpc.QueueServiceServicer):
    """QueueService: answers with what was sent."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def CreateQueue(
        self, request: queue_pb2.CreateQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        made = queue_pb2.Queue(
            name=f"projects/default/queues/{request.queue_id}", weight=request.queue.weight
        )
        return self.fake.reply(request, context, made)

    def ListQueues(
        self, request: queue_pb2.ListQueuesRequest, context: Context
    ) -> queue_pb2.ListQueuesResponse:
        queues = [queue_pb2.Queue(name="projects/default/queues/default", weight=1)]
        return self.fake.reply(request, context, queue_pb2.ListQueuesResponse(queues=queues))

    def GetQueue(self, request: queue_pb2.GetQueueRequest, context: Context) -> queue_pb2.Queue:
        return self.fake.reply(request, context, queue_pb2.Queue(name=request.name))

    def UpdateQueue(
        self, request: queue_pb2.UpdateQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        return self.fake.reply(request, context, request.queue)

    def DeleteQueue(
        self, request: queue_pb2.DeleteQueueRequest, context: Context
    ) -> queue_pb2.DeleteQueueResponse:
        return self.fake.reply(request, context, queue_pb2.DeleteQueueResponse())

    def CordonQueue(
        self, request: queue_pb2.CordonQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        queue = queue_pb2.Queue(
            name=request.name, cordoned=request.cordoned, cordon_reason=request.reason
        )
        return self.fake.reply(request, context, queue)

    def ListQueueUsage(
        self, request: queue_pb2.ListQueueUsageRequest, context: Context
    ) -> queue_pb2.ListQueueUsageResponse:
        one = queue_pb2.QueueUsage(
            queue="projects/default/queues/gpu", used_share=0.5, fair_share=0.75, waiting=4
        )
        one.oldest_wait.FromSeconds(90)
        reply = queue_pb2.ListQueueUsageResponse(usages=[one])
        return self.fake.reply(request, context, reply)

    def GetQueueUsage(
        self, request: queue_pb2.GetQueueUsageRequest, context: Context
    ) -> queue_pb2.QueueUsage:
        usage = queue_pb2.QueueUsage(queue=request.name, jobs=2)
        usage.tasks.by_state["RUNNING"] = 3
        return self.fake.reply(request, context, usage)


class FakeAdmin(admin_pb2_grpc.AdminServiceServicer):
    """AdminService."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def GetServerStatus(
        self, request: admin_pb2.GetServerStatusRequest, context: Context
    ) -> admin_pb2.ServerStatus:
        last = len(self.fake.events)
        status = admin_pb2.ServerStatus(
            version="0.1.0", phase="serving", last_event=last, active_jobs=1
        )
        return self.fake.reply(request, context, status)

    def GetOverview(
        self, request: admin_pb2.GetOverviewRequest, context: Context
    ) -> admin_pb2.Overview:
        backends = self._backends()
        late = admin_pb2.NotableJob(job="projects/default/jobs/late-1", message="past its deadline")
        overview = admin_pb2.Overview(
            server=admin_pb2.ServerStatus(version="0.1.0", phase="serving", active_jobs=1),
            backends=backends.backends,
            failures=backends.failures,
            owners=[admin_pb2.OwnedInQueue(queue="gpu", created_by="ann", waiting=7, running=2)],
            overdue=[late] * 7,
            hosts=["here: not connected"],
            queues=["gpu: cordoned (new cards)"],
            planner_max=0.012,
        )
        return self.fake.reply(request, context, overview)

    def ListBackends(
        self, request: admin_pb2.ListBackendsRequest, context: Context
    ) -> admin_pb2.ListBackendsResponse:
        return self.fake.reply(request, context, self._backends())

    def _backends(self) -> admin_pb2.ListBackendsResponse:
        hosts = admin_pb2.BackendInfo(
            name="hosts",
            type="hosts",
            health="healthy",
            is_default=True,
            breaker="half-open",
            calls=2,
            calls_limit=14,
            cost_per_hour=0.5,
            operations={"launch": "3 ms, 12 ms; 0 of 100 failed"},
        )
        hosts.capacity["cpus"] = "3 of 4 free"
        broken = admin_pb2.BackendFailure(
            name="k8s", reason="No module named 'kubernetes'", remedy="pip install 'hatoba[k8s]'"
        )
        return admin_pb2.ListBackendsResponse(backends=[hosts], failures=[broken])

    def CheckBackend(
        self, request: admin_pb2.CheckBackendRequest, context: Context
    ) -> Iterator[admin_pb2.CheckBackendResponse]:
        self.fake.heard(request, context)
        yield admin_pb2.CheckBackendResponse(step="open", good=True, message="it is opened")
        refused = "jobs.batch is forbidden"
        yield admin_pb2.CheckBackendResponse(step="health", message=refused, remedy="give it")

    def CordonBackend(
        self, request: admin_pb2.CordonBackendRequest, context: Context
    ) -> admin_pb2.BackendInfo:
        shown = admin_pb2.BackendInfo(
            name=request.name,
            health="healthy",
            cordoned=request.cordoned,
            cordon_reason=request.reason,
        )
        return self.fake.reply(request, context, shown)

    def CreateBackup(
        self, request: admin_pb2.CreateBackupRequest, context: Context
    ) -> admin_pb2.Backup:
        return self.fake.reply(request, context, admin_pb2.Backup(name="backups/b1"))

    def ListBackups(
        self, request: admin_pb2.ListBackupsRequest, context: Context
    ) -> admin_pb2.ListBackupsResponse:
        return self.fake.reply(request, context, admin_pb2.ListBackupsResponse())

    def DeleteBackup(
        self, request: admin_pb2.DeleteBackupRequest, context: Context
    ) -> admin_pb2.DeleteBackupResponse:
        return self.fake.reply(request, context, admin_pb2.DeleteBackupResponse())

    def AdoptStore(
        self, request: admin_pb2.AdoptStoreRequest, context: Context
    ) -> admin_pb2.AdoptStoreResponse:
        return self.fake.reply(request, context, admin_pb2.AdoptStoreResponse())

    def CheckStore(
        self, request: admin_pb2.CheckStoreRequest, context: Context
    ) -> admin_pb2.CheckStoreResponse:
        return self.fake.reply(request, context, admin_pb2.CheckStoreResponse())

    def CreateToken(
        self, request: admin_pb2.CreateTokenRequest, context: Context
    ) -> admin_pb2.CreateTokenResponse:
        token = admin_pb2.Token(name="tokens/t1", principal=request.principal, role=request.role)
        reply = admin_pb2.CreateTokenResponse(token=token, secret="the-secret")
        return self.fake.reply(request, context, reply)

    def ListTokens(
        self, request: admin_pb2.ListTokensRequest, context: Context
    ) -> admin_pb2.ListTokensResponse:
        tokens = [admin_pb2.Token(name="tokens/t1", principal="ann", role=admin_pb2.ROLE_USER)]
        return self.fake.reply(request, context, admin_pb2.ListTokensResponse(tokens=tokens))

    def RevokeToken(
        self, request: admin_pb2.RevokeTokenRequest, context: Context
    ) -> admin_pb2.Token:
        token = admin_pb2.Token(name=f"tokens/{request.name}", principal="ann", revoked=True)
        return self.fake.reply(request, context, token)

    def PushSpans(
        self, request: admin_pb2.PushSpansRequest, context: Context
    ) -> admin_pb2.PushSpansResponse:
        self.fake.heard(request, context)
        self.fake.pushed.extend(request.spans)
        return admin_pb2.PushSpansResponse()


class FakeWorkers(worker_pb2_grpc.WorkerServiceServicer):
    """What operators ask of WorkerService."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def _host(self, name: str) -> worker_pb2.Host:
        reserved = common_pb2.Resources(cpus=1, memory_bytes=2**30, gpus=1)
        return worker_pb2.Host(
            name=f"hosts/{name}",
            connected=True,
            cpus=4,
            memory_bytes=8 * 2**30,
            gpus=["0", "1"],
            slots=128,
            slots_used=3,
            reserved=reserved,
        )

    def Connect(self, requests: Any, context: Context) -> Iterator[Any]:
        raise AssertionError("no worker connects to the fakes")

    def Attach(self, requests: Any, context: Context) -> Iterator[Any]:
        raise AssertionError("no worker connects to the fakes")

    def ListHosts(
        self, request: worker_pb2.ListHostsRequest, context: Context
    ) -> worker_pb2.ListHostsResponse:
        hosts = [self._host("here")]
        return self.fake.reply(request, context, worker_pb2.ListHostsResponse(hosts=hosts))

    def GetHost(self, request: worker_pb2.GetHostRequest, context: Context) -> worker_pb2.Host:
        return self.fake.reply(request, context, self._host(request.name))

    def CordonHost(
        self, request: worker_pb2.CordonHostRequest, context: Context
    ) -> worker_pb2.Host:
        host = self._host(request.name)
        host.cordoned = request.cordoned
        return self.fake.reply(request, context, host)

    def DeclareHostGone(
        self, request: worker_pb2.DeclareHostGoneRequest, context: Context
    ) -> worker_pb2.Host:
        return self.fake.reply(
            request, context, worker_pb2.Host(name=request.name, declared_gone=True)
        )

    def RemoveHost(
        self, request: worker_pb2.RemoveHostRequest, context: Context
    ) -> worker_pb2.Host:
        return self.fake.reply(request, context, worker_pb2.Host(name=request.name))

    def CreateJoinToken(
        self, request: worker_pb2.CreateJoinTokenRequest, context: Context
    ) -> worker_pb2.JoinToken:
        made = worker_pb2.JoinToken(
            name="tokens/0123456789ab",
            secret="hb_0123456789ab_text.QUFB",
            host=request.host,
            address="hatoba.example.org:7420",
        )
        return self.fake.reply(request, context, made)

    JoinHost: Any = None
    RenewHost: Any = None


class FakeArtifacts(artifact_pb2_grpc.ArtifactServiceServicer):
    """ArtifactService that keeps everything in memory."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def FindMissingChunks(
        self, request: artifact_pb2.FindMissingChunksRequest, context: Context
    ) -> artifact_pb2.FindMissingChunksResponse:
        self.fake.heard(request, context)
        missing = [sha for sha in request.sha256 if sha not in self.fake.chunks]
        return artifact_pb2.FindMissingChunksResponse(sha256=missing)

    def UploadChunks(
        self, requests: Iterator[artifact_pb2.UploadChunksRequest], context: Context
    ) -> artifact_pb2.UploadChunksResponse:
        sha, data = b"", b""
        for piece in requests:
            self.fake.chunks.update({small.sha256: small.data for small in piece.whole})
            sha, data = piece.sha256 or sha, data + piece.data
            if piece.last:
                self.fake.chunks[sha] = data
                data = b""
        return artifact_pb2.UploadChunksResponse(chunks=len(self.fake.chunks))

    def CreateManifest(
        self, request: artifact_pb2.CreateManifestRequest, context: Context
    ) -> artifact_pb2.CreateManifestResponse:
        from hatoba.artifacts.manifest import ref_of

        self.fake.heard(request, context)
        ref = ref_of(request.manifest)
        self.fake.manifests[ref.digest] = request.manifest
        return artifact_pb2.CreateManifestResponse(ref=ref)

    def GetManifest(
        self, request: artifact_pb2.GetManifestRequest, context: Context
    ) -> artifact_pb2.Manifest:
        self.fake.heard(request, context)
        return self.fake.manifests[request.digest]

    def DownloadChunks(
        self, request: artifact_pb2.DownloadChunksRequest, context: Context
    ) -> Iterator[artifact_pb2.DownloadChunksResponse]:
        self.fake.heard(request, context)
        for position, sha in enumerate(request.sha256):
            data = self.fake.chunks[sha]
            yield artifact_pb2.DownloadChunksResponse(position=position, data=data, last=True)

    def UploadManifest(
        self, requests: Iterator[artifact_pb2.UploadManifestRequest], context: Context
    ) -> artifact_pb2.CreateManifestResponse:
        whole = b"".join(request.data for request in requests)
        manifest = artifact_pb2.Manifest.FromString(whole)
        return self.CreateManifest(artifact_pb2.CreateManifestRequest(manifest=manifest), context)

    def DownloadManifest(
        self, request: artifact_pb2.DownloadManifestRequest, context: Context
    ) -> Iterator[artifact_pb2.DownloadManifestResponse]:
        self.fake.heard(request, context)
        whole = self.fake.manifests[request.digest].SerializeToString(deterministic=True)
        yield artifact_pb2.DownloadManifestResponse(data=whole)

    def GetTransferUrls(
        self, request: artifact_pb2.GetTransferUrlsRequest, context: Context
    ) -> artifact_pb2.GetTransferUrlsResponse:
        """Chunks are kept here: there is nowhere else to send them."""
        return artifact_pb2.GetTransferUrlsResponse()

    def ConfirmChunks(
        self, request: artifact_pb2.ConfirmChunksRequest, context: Context
    ) -> artifact_pb2.ConfirmChunksResponse:
        missing = [one.sha256 for one in request.chunks if one.sha256 not in self.fake.chunks]
        return artifact_pb2.ConfirmChunksResponse(missing=missing)

    def CollectGarbage(
        self, request: artifact_pb2.CollectGarbageRequest, context: Context
    ) -> artifact_pb2.CollectGarbageResponse:
        """Everything is named by something here."""
        stored = len(self.fake.chunks) + len(self.fake.manifests)
        return artifact_pb2.CollectGarbageResponse(stored=stored, live=stored)


class FakeDatasets(dataset_pb2_grpc.DatasetServiceServicer):
    """DatasetService: one dataset `faces` with one version, unless a test says something else."""

    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def _version(self, request: Any, context: Context) -> dataset_pb2.DatasetVersion:
        name = "projects/default/datasets/faces/versions/1"
        made = dataset_pb2.DatasetVersion(name=name, version=1, item_count=2, source="push")
        return self._fake.reply(request, context, made)

    CreateDatasetVersion = _version
    GetDatasetVersion = _version
    CommitDataset = _version
    ImportDataset = _version
    DeleteDatasetVersion = _version

    def ListDatasets(
        self, request: dataset_pb2.ListDatasetsRequest, context: Context
    ) -> dataset_pb2.ListDatasetsResponse:
        return self._fake.reply(request, context, dataset_pb2.ListDatasetsResponse())

    def ListDatasetVersions(
        self, request: dataset_pb2.ListDatasetVersionsRequest, context: Context
    ) -> dataset_pb2.ListDatasetVersionsResponse:
        return self._fake.reply(request, context, dataset_pb2.ListDatasetVersionsResponse())

    def ListDatasetItems(
        self, request: dataset_pb2.ListDatasetItemsRequest, context: Context
    ) -> dataset_pb2.ListDatasetItemsResponse:
        return self._fake.reply(request, context, dataset_pb2.ListDatasetItemsResponse())

    def DiffDatasetVersions(
        self, request: dataset_pb2.DiffDatasetVersionsRequest, context: Context
    ) -> dataset_pb2.DiffDatasetVersionsResponse:
        return self._fake.reply(request, context, dataset_pb2.DiffDatasetVersionsResponse())

    def AppendDatasetItems(
        self, request: dataset_pb2.AppendDatasetItemsRequest, context: Context
    ) -> dataset_pb2.AppendDatasetItemsResponse:
        made = dataset_pb2.AppendDatasetItemsResponse(head_items=len(request.items))
        return self._fake.reply(request, context, made)

    def CreateCodeVersion(
        self, request: dataset_pb2.CreateCodeVersionRequest, context: Context
    ) -> dataset_pb2.CodeVersion:
        name = f"projects/{request.project}/code/{request.code}/versions/1"
        made = dataset_pb2.CodeVersion(name=name, version=1, manifest=request.manifest)
        return self._fake.reply(request, context, made)

    def GetCodeVersion(
        self, request: dataset_pb2.GetCodeVersionRequest, context: Context
    ) -> dataset_pb2.CodeVersion:
        name = "projects/default/code/train/versions/1"
        made = dataset_pb2.CodeVersion(name=name, version=1)
        return self._fake.reply(request, context, made)

    def ListCodeVersions(
        self, request: dataset_pb2.ListCodeVersionsRequest, context: Context
    ) -> dataset_pb2.ListCodeVersionsResponse:
        return self._fake.reply(request, context, dataset_pb2.ListCodeVersionsResponse())


def canned(fake: FakeServer, module: Any, service: str) -> grpc.GenericRpcHandler:
    """A service whose every unary call gets the reply prepared for it, or an empty one."""
    described = module.DESCRIPTOR.services_by_name[service]

    def method(name: str) -> grpc.RpcMethodHandler[Any, Any]:
        call = described.methods_by_name[name]
        asked = getattr(module, call.input_type.name)
        reply = getattr(module, call.output_type.name)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: fake.reply(request, context, reply()),
            request_deserializer=asked.FromString,
            response_serializer=reply.SerializeToString,
        )

    methods = {name: method(name) for name in described.methods_by_name}
    return grpc.method_handlers_generic_handler(described.full_name, methods)


def start(fake: FakeServer, address: str = "127.0.0.1:0") -> grpc.Server:
    """Serve the fakes; their address is written into `fake`."""
    server = grpc.server(ThreadPoolExecutor(8))
    job_pb2_grpc.add_JobServiceServicer_to_server(FakeJobs(fake), server)
    queue_pb2_grpc.add_QueueServiceServicer_to_server(FakeQueues(fake), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(FakeAdmin(fake), server)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(FakeWorkers(fake), server)
    # What it does not have answers UNIMPLEMENTED, as a server of before would.
    artifacts = FakeArtifacts(fake)
    artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(FakeDatasets(fake), server)
    server.add_generic_rpc_handlers((canned(fake, model_pb2, "ModelService"),))
    server.add_generic_rpc_handlers((canned(fake, device_pb2, "DeviceService"),))
    for add in fake.services:
        add(server)
    port = server.add_insecure_port(address)
    server.start()
    fake.address = f"127.0.0.1:{port}"
    return server


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A running server of fakes."""
    fake = FakeServer()
    server = start(fake)
    yield fake
    fake.hold_logs.set()
    server.stop(None).wait()


@pytest.fixture
def locate(fake: FakeServer) -> Callable[[], Server]:
    """Finds the fakes."""
    return lambda: Server(fake.address, TOKEN, key="fake")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own, and an empty directory to work in."""
    for name in [
        name for name in os.environ if name.startswith(("HATOBA_", "XDG_")) or name == "TRACEPARENT"
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path / "home"


@pytest.fixture
def cli(fake: FakeServer, tmp_path: Path) -> Callable[..., Result]:
    """Runs `hatoba` against the fakes; the result's exit code is the process's."""
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    environment = {"HATOBA_ADDRESS": fake.address, "HATOBA_TOKEN_FILE": str(token_file)}

    def invoke(
        *arguments: str, input: str | None = None, env: dict[str, str] | None = None
    ) -> Result:
        return invoke_main(arguments, {**environment, **(env or {})}, input)

    return invoke


def invoke_main(
    arguments: Sequence[str], environment: dict[str, str], input: str | None = None
) -> Result:
    """Run the entry point as the console script does, its output captured."""
    import click

    @click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def process(arguments: tuple[str, ...]) -> None:
        raise SystemExit(main(arguments))

    return CliRunner().invoke(process, ["--", *arguments], env=environment, input=input)
