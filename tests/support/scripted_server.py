"""A server for workers, in this process: it remembers what they say and answers as it is told."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from attach_session import AttachSession
from waiting import News

from hatoba.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    common_pb2,
    job_pb2,
    runner_pb2,
    runner_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

TOKEN = "hw_scripted"
GRANTED = runner_pb2.CLAIM_VERDICT_GRANTED


@dataclass
class Log:
    """What was pushed of one stream; `gaps` are (offset, length)."""

    data: bytearray = field(default_factory=bytearray)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    pieces: int = 0


class Heard:
    """Everything that workers said, in order, over all streams."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str | None], list[Any]] = defaultdict(list)
        self._news = News()

    def add(self, item: worker_pb2.WorkerItem) -> None:
        """Remember an item by its kind and attempt."""
        kind = item.WhichOneof("item") or ""
        body = getattr(item, kind)
        self._items[kind, None].append(body)
        if hasattr(body, "attempt"):
            self._items[kind, body.attempt].append(body)
        self.changed()

    def changed(self) -> None:
        """Something else happened that tests wait for."""
        self._news.tell()

    def all(self, kind: str, attempt: str | None = None) -> list[Any]:
        """Items of one kind, for one attempt."""
        return self._items[kind, attempt]

    async def wait(self, kind: str, attempt: str | None = None, count: int = 1) -> Any:
        """The `count`-th item of a kind, waited for."""
        await self.until(lambda: len(self.all(kind, attempt)) >= count)
        return self.all(kind, attempt)[count - 1]

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait until `what()` holds; it is asked whenever something was said."""
        await self._news.until(what)


async def _absent(_self: object, _request: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no host worker asks for this")


class ScriptedServer(
    worker_pb2_grpc.WorkerServiceServicer,
    runner_pb2_grpc.RunnerServiceServicer,
    artifact_pb2_grpc.ArtifactServiceServicer,
):
    """Grants each claim once to a nonce, stores everything, and commits; tests change that."""

    ClaimAttempt: Any = _absent
    Heartbeat: Any = _absent
    ReportMetrics: Any = _absent
    CommitCheckpoint: Any = _absent
    CommitAttempt: Any = _absent
    AwaitExit: Any = _absent
    ListHosts: Any = _absent
    GetHost: Any = _absent
    CordonHost: Any = _absent
    DeclareHostGone: Any = _absent
    RemoveHost: Any = _absent
    CreateJoinToken: Any = _absent
    JoinHost: Any = _absent
    RenewHost: Any = _absent
    CollectGarbage: Any = _absent
    ConfirmChunks: Any = _absent
    DownloadManifest: Any = _absent
    GetTransferUrls: Any = _absent
    UploadManifest: Any = _absent

    def __init__(self) -> None:
        self.heard = Heard()
        self.logs: dict[tuple[str, str], Log] = defaultdict(Log)
        self.verdicts: dict[str, runner_pb2.ClaimVerdict.ValueType] = {}
        self.checkpoints: dict[str, job_pb2.Checkpoint] = {}
        self.silent: set[str] = set()
        self.refuse_logs: set[str] = set()
        self.hold_logs = asyncio.Event()
        self.hold_logs.set()
        self.streams = 0
        self.chunks: dict[bytes, bytes] = {}
        self.manifests: dict[str, artifact_pb2.Manifest] = {}
        self._nonces: dict[str, str] = {}
        self._out: asyncio.Queue[list[worker_pb2.ServerItem]] = asyncio.Queue(100_000)
        self._server: grpc.aio.Server | None = None
        self.port = 0
        self.attached: dict[str, AttachSession] = {}

    async def start(self) -> None:
        """Serve; on the same port as before when there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        runner_pb2_grpc.add_RunnerServiceServicer_to_server(self, self._server)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(self, self._server)
        self.register(self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    def register(self, server: grpc.aio.Server) -> None:
        """Answer other services too; a subclass does."""

    async def stop(self) -> None:
        """End all calls at once, as a server does that is killed."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def send(self, *items: worker_pb2.ServerItem) -> None:
        """Say something on the open stream."""
        self._out.put_nowait(list(items))

    def launch(self, *launches: worker_pb2.LaunchAttempt) -> None:
        """Send launches in one message."""
        self.send(*[worker_pb2.ServerItem(launch=each) for each in launches])

    def tell_stop(self, attempt: str, grace: float = 5.0) -> None:
        """Ask for an end."""
        stop = worker_pb2.StopAttempt(attempt=attempt, fence=1)
        stop.grace.FromMilliseconds(round(grace * 1000))
        self.send(worker_pb2.ServerItem(stop=stop))

    def grant(self, attempt: str) -> None:
        """Answer a claim that was left unanswered."""
        answer = runner_pb2.ClaimAttemptResponse(attempt=attempt, verdict=GRANTED)
        self.send(worker_pb2.ServerItem(claimed=answer))

    def order_stop(self, attempt: str) -> None:
        """Ask for an end in the answer to a heartbeat."""
        order = runner_pb2.HeartbeatResponse(attempt=attempt, order=runner_pb2.RUNNER_ORDER_STOP)
        order.grace.FromSeconds(5)
        self.send(worker_pb2.ServerItem(order=order))

    def drop(self, attempt: str) -> None:
        """Say that nothing more of an attempt is wanted."""
        self.send(worker_pb2.ServerItem(drop=worker_pb2.DropAttempt(attempt=attempt)))

    def attach(self, attempt: str, **to: Any) -> AttachSession:
        """Have somebody attached, by `exec` or `port`."""
        session = AttachSession(f"session-{len(self.attached)}")
        self.attached[session.name] = session
        order = worker_pb2.AttachAttempt(session=session.name, attempt=attempt, fence=1, **to)
        self.send(worker_pb2.ServerItem(attach=order))
        return session

    def log(self, attempt: str, stream: str = "stdout") -> bytes:
        """What was pushed of a stream."""
        return bytes(self.logs[attempt, stream].data)

    # -- WorkerService --------------------------------------------------------------------------

    async def Connect(  # type: ignore[override]  # it writes instead of yielding
        self, request_iterator: AsyncIterator[worker_pb2.WorkerServiceConnectRequest], context: Any
    ) -> None:
        assert ("authorization", f"Bearer {TOKEN}") in context.invocation_metadata()
        self.streams += 1
        out: asyncio.Queue[list[worker_pb2.ServerItem]] = asyncio.Queue(100_000)
        self._out = out
        welcome = worker_pb2.WorkerWelcome(cluster_id="cluster", version="0")
        self.send(worker_pb2.ServerItem(welcome=welcome))
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(out, context))
            await self._listen(request_iterator)
            writer.cancel()

    async def Attach(  # type: ignore[override]  # it writes instead of yielding
        self, request_iterator: AsyncIterator[worker_pb2.WorkerServiceAttachRequest], context: Any
    ) -> None:
        first = await context.read()
        await self.attached[first.session].serve(first, context)

    async def _write(self, out: asyncio.Queue[list[worker_pb2.ServerItem]], context: Any) -> None:
        while True:
            items = await out.get()
            while not out.empty() and len(items) < 100:
                items += out.get_nowait()
            await context.write(worker_pb2.WorkerServiceConnectResponse(items=items))

    async def _listen(
        self, requests: AsyncIterator[worker_pb2.WorkerServiceConnectRequest]
    ) -> None:
        async for request in requests:
            answers = [answer for item in request.items if (answer := self._answer(item))]
            if answers:
                self.send(*answers)
            for item in request.items:
                self.heard.add(item)

    def _answer(self, item: worker_pb2.WorkerItem) -> worker_pb2.ServerItem | None:
        kind = item.WhichOneof("item")
        if kind in self.silent:
            return None
        match kind:
            case "claim":
                return worker_pb2.ServerItem(claimed=self._claim(item.claim))
            case "metrics":
                stored = runner_pb2.ReportMetricsResponse(
                    attempt=item.metrics.attempt, acked_report=item.metrics.report
                )
                return worker_pb2.ServerItem(metrics_stored=stored)
            case "checkpoint":
                kept = runner_pb2.CommitCheckpointResponse(
                    attempt=item.checkpoint.attempt, step=item.checkpoint.step, accepted=True
                )
                return worker_pb2.ServerItem(checkpoint_stored=kept)
            case "commit":
                done = runner_pb2.CommitAttemptResponse(attempt=item.commit.attempt, accepted=True)
                return worker_pb2.ServerItem(committed=done)
        return None

    def _claim(self, claim: runner_pb2.ClaimAttemptRequest) -> runner_pb2.ClaimAttemptResponse:
        nonce = self._nonces.setdefault(claim.attempt, claim.nonce)
        verdict = self.verdicts.get(claim.attempt, GRANTED)
        if nonce != claim.nonce:
            verdict = runner_pb2.CLAIM_VERDICT_DUPLICATE
        return runner_pb2.ClaimAttemptResponse(
            attempt=claim.attempt,
            verdict=verdict,
            checkpoint=self.checkpoints.get(claim.attempt),
        )

    # -- RunnerService --------------------------------------------------------------------------

    async def PushLogs(
        self, request_iterator: AsyncIterator[runner_pb2.PushLogsRequest], context: Any
    ) -> AsyncIterator[runner_pb2.PushLogsResponse]:
        async for piece in request_iterator:
            await self.hold_logs.wait()
            log = self.logs[piece.attempt, piece.stream]
            log.pieces += 1
            size = len(log.data)
            if piece.gap_bytes and piece.offset <= size < piece.offset + piece.gap_bytes:
                length = piece.offset + piece.gap_bytes - size
                log.gaps.append((size, length))
                log.data += bytes(length)
            elif piece.offset <= size:
                log.data += piece.data[size - piece.offset :]
            self.heard.changed()
            yield runner_pb2.PushLogsResponse(
                attempt=piece.attempt,
                stream=piece.stream,
                acked=len(log.data),
                refused=piece.attempt in self.refuse_logs,
            )

    # -- ArtifactService ------------------------------------------------------------------------

    async def FindMissingChunks(
        self, request: artifact_pb2.FindMissingChunksRequest, context: Any
    ) -> artifact_pb2.FindMissingChunksResponse:
        missing = [sha for sha in request.sha256 if sha not in self.chunks]
        return artifact_pb2.FindMissingChunksResponse(sha256=missing)

    async def UploadChunks(
        self, request_iterator: AsyncIterator[artifact_pb2.UploadChunksRequest], context: Any
    ) -> artifact_pb2.UploadChunksResponse:
        data = b""
        async for piece in request_iterator:
            for small in piece.whole:
                self.chunks[small.sha256] = small.data
            data += piece.data
            if piece.last:
                self.chunks[hashlib.sha256(data).digest()] = data
                data = b""
        return artifact_pb2.UploadChunksResponse(chunks=len(self.chunks))

    async def DownloadChunks(
        self, request: artifact_pb2.DownloadChunksRequest, context: Any
    ) -> AsyncIterator[artifact_pb2.DownloadChunksResponse]:
        for position, sha in enumerate(request.sha256):
            data = self.chunks[sha]
            for start in range(0, len(data), 1 << 20):
                part = data[start : start + (1 << 20)]
                last = start + len(part) == len(data)
                yield artifact_pb2.DownloadChunksResponse(position=position, data=part, last=last)

    async def CreateManifest(
        self, request: artifact_pb2.CreateManifestRequest, context: Any
    ) -> artifact_pb2.CreateManifestResponse:
        body = request.manifest.SerializeToString(deterministic=True)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.manifests[digest] = request.manifest
        ref = common_pb2.ManifestRef(digest=digest, files=len(request.manifest.entries))
        return artifact_pb2.CreateManifestResponse(ref=ref)

    async def GetManifest(
        self, request: artifact_pb2.GetManifestRequest, context: Any
    ) -> artifact_pb2.Manifest:
        if request.digest not in self.manifests:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no manifest {request.digest}")
        return self.manifests[request.digest]

    # -- trees, made by hand --------------------------------------------------------------------

    def store(self, files: dict[str, bytes]) -> common_pb2.ManifestRef:
        """Store a tree of small files; returns what it is called."""
        manifest = artifact_pb2.Manifest()
        for path, data in sorted(files.items()):
            sha = hashlib.sha256(data).digest()
            self.chunks[sha] = data
            entry = manifest.entries.add(
                path=path, type=artifact_pb2.ENTRY_TYPE_FILE, mode=0o644, size=len(data)
            )
            entry.chunks.add(sha256=sha, size=len(data))
        body = manifest.SerializeToString(deterministic=True)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.manifests[digest] = manifest
        return common_pb2.ManifestRef(digest=digest, files=len(files))

    def files(self, ref: common_pb2.ManifestRef) -> dict[str, bytes]:
        """The files of a stored tree."""
        return {
            entry.path: b"".join(self.chunks[chunk.sha256] for chunk in entry.chunks)
            for entry in self.manifests[ref.digest].entries
            if entry.type == artifact_pb2.ENTRY_TYPE_FILE
        }
