"""Bad input over the wire: a refusal that names field, value and remedy, and no half write."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import Message
from trees import PIECE
from wire import Wire, path_of

from hatoba._status_details import parse_details
from hatoba.v1 import (
    admin_pb2,
    artifact_pb2,
    artifact_pb2_grpc,
    job_pb2,
    worker_pb2,
    worker_pb2_grpc,
)
from tests.integration.bad_input.cases import CASES, MISSING, SPECS, spec
from tests.integration.bad_input.conftest import everything

if TYPE_CHECKING:
    from tests.integration.bad_input.conftest import Ground

OURS_TO_MEND = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
LIMIT = 8 << 20


def test_there_are_sixty_and_more() -> None:
    assert len(CASES) >= 60


@pytest.fixture
async def wire(ground: Ground) -> AsyncIterator[Wire]:
    """Calls as the administrator."""
    async with Wire(ground.server) as one:
        yield one


@pytest.mark.parametrize("name", CASES)
async def test_it_is_refused_clearly_and_changes_nothing(
    name: str, ground: Ground, wire: Wire
) -> None:
    case = CASES[name]
    message = case.make(ground)
    before = await everything(wire)
    token = None if case.token is None else case.token(ground)
    async with Wire(ground.server, token=token) as caller:
        error = await refused(lambda: caller.once(message, empty_pb2.Empty))
    assert_told(error, case.code, case.field, case.words)
    assert await everything(wire) == before


async def refused(call: Callable[[], Awaitable[object]]) -> grpc.aio.AioRpcError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await call()
    return found.value


def assert_told(error: grpc.aio.AioRpcError, code: str, field: str, words: tuple[str, ...]) -> None:
    """The code, the field's path and every word are there, and no trace of our code."""
    said = error.details() or ""
    assert error.code().name == code, said
    assert error.code().name not in OURS_TO_MEND
    assert said
    assert "Traceback" not in said
    assert len(said) <= 1024
    raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    details = parse_details(raw if isinstance(raw, bytes) else raw.encode())
    violations = details.violations
    if field:
        assert any(one.field.startswith(field) for one in violations), (field, violations, said)
    everything_said = said + "".join(one.description for one in violations)
    for word in words:
        assert word in everything_said, (word, everything_said)


@pytest.mark.parametrize("name", SPECS)
async def test_in_a_batch_a_bad_item_fails_alone(name: str, ground: Ground, wire: Wire) -> None:
    """The same rules hold for an item of a batch, and a dry run stores nothing either."""
    case = SPECS[name]
    message = case.make(ground)
    assert isinstance(message, job_pb2.SubmitJobRequest)
    before = await everything(wire)
    batch = job_pb2.SubmitJobsRequest(items=[job_pb2.SubmitJobsItem(spec=message.spec)])
    (result,) = (await wire.once(batch, job_pb2.SubmitJobsResponse)).results
    assert result.name == ""
    assert grpc_name(result.code) == case.code
    assert result.message
    message.validate_only = True
    error = await refused(lambda: wire.once(message, empty_pb2.Empty))
    assert error.code().name == case.code
    assert await everything(wire) == before


def grpc_name(number: int) -> str:
    """The name of a status code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


async def test_a_good_dry_run_stores_nothing(wire: Wire, ground: Ground) -> None:
    before = await everything(wire)
    request = job_pb2.SubmitJobRequest(spec=spec(), validate_only=True)
    assert (await wire.once(request, job_pb2.Job)).spec.name == "job"
    assert await everything(wire) == before


# -- streams -----------------------------------------------------------------------------------

STREAMS: dict[str, tuple[Message, str, str, tuple[str, ...]]] = {
    "log of an unknown stream": (
        job_pb2.TailLogsRequest(job="held-1", stream="stdlog"),
        "INVALID_ARGUMENT",
        "stream",
        ("stdlog",),
    ),
    "log from a negative offset": (
        job_pb2.TailLogsRequest(job="held-1", stream="stdout", offset=-1),
        "INVALID_ARGUMENT",
        "offset",
        ("-1",),
    ),
    "log from an offset in no stream": (
        job_pb2.TailLogsRequest(job="held-1", offset=7),
        "INVALID_ARGUMENT",
        "offset",
        ("name the stream",),
    ),
    "log of a job that is not there": (
        job_pb2.TailLogsRequest(job="gone-7"),
        "NOT_FOUND",
        "",
        ("'gone-7'",),
    ),
    "log of an attempt that is not there": (
        job_pb2.TailLogsRequest(job="held-1", attempt=4),
        "NOT_FOUND",
        "",
        ("attempt 4",),
    ),
    "watch from a cursor that is noise": (
        job_pb2.WatchJobsRequest(cursor="noise"),
        "INVALID_ARGUMENT",
        "",
        ("'noise'",),
    ),
    "watch from the future": (
        job_pb2.WatchJobsRequest(cursor="1.999999"),
        "INVALID_ARGUMENT",
        "",
        ("1.999999",),
    ),
    "watch of a job that is not there": (
        job_pb2.WatchJobsRequest(jobs=["gone-7"]),
        "NOT_FOUND",
        "",
        ("'gone-7'",),
    ),
    "chunk that is not there": (
        artifact_pb2.DownloadChunksRequest(sha256=[b"\2" * 32]),
        "NOT_FOUND",
        "",
        ("02" * 32,),
    ),
    "chunk whose digest is short": (
        artifact_pb2.DownloadChunksRequest(sha256=[b"\2"]),
        "INVALID_ARGUMENT",
        "sha256[0]",
        (),
    ),
    "no chunks": (artifact_pb2.DownloadChunksRequest(), "INVALID_ARGUMENT", "sha256", ()),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_refused_clearly(name: str, wire: Wire) -> None:
    message, code, field, words = STREAMS[name]

    async def read() -> None:
        async for _ in wire.stream(message, empty_pb2.Empty):
            pass

    assert_told(await refused(read), code, field, words)


Piece = artifact_pb2.UploadChunksRequest
DIGEST = hashlib.sha256(b"hello").digest()
UPLOADS: dict[str, tuple[list[artifact_pb2.UploadChunksRequest], str]] = {
    "a wrong digest": ([Piece(sha256=DIGEST, data=b"hallo", last=True)], "SHA-256"),
    "no digest": ([Piece(data=b"hello", last=True)], "sha256"),
    "a short digest": ([Piece(sha256=b"short", data=b"hello", last=True)], "32"),
    "a piece too large": ([Piece(sha256=DIGEST, data=b"x" * (PIECE + 1))], "1048576"),
    "a chunk that has no end": ([Piece(sha256=DIGEST, data=b"hello")], "last"),
    "a chunk within another": (
        [Piece(sha256=DIGEST, data=b"he"), Piece(sha256=b"\3" * 32, data=b"llo", last=True)],
        "",
    ),
    "a chunk too large": (
        [Piece(sha256=DIGEST, data=b"x" * PIECE)] + [Piece(data=b"x" * PIECE)] * 8,
        "8",
    ),
}


@pytest.mark.parametrize("name", UPLOADS)
async def test_nothing_of_a_bad_upload_is_kept(name: str, wire: Wire) -> None:
    pieces, words = UPLOADS[name]

    async def upload() -> None:
        async def each() -> AsyncIterator[artifact_pb2.UploadChunksRequest]:
            for piece in pieces:
                yield piece

        stub = artifact_pb2_grpc.ArtifactServiceStub(await wire.channel())
        await stub.UploadChunks(each(), metadata=wire.metadata)

    assert_told(await refused(upload), "INVALID_ARGUMENT", "", (words,))
    find = artifact_pb2.FindMissingChunksRequest(sha256=[DIGEST])
    reply = await wire.once(find, artifact_pb2.FindMissingChunksResponse)
    assert list(reply.sha256) == [DIGEST]


def hello(**changes: object) -> worker_pb2.WorkerItem:
    """A worker's first words."""
    words = worker_pb2.WorkerHello(host="stranger", incarnation="0123456789", protocol=1)
    words.MergeFrom(worker_pb2.WorkerHello(**changes))  # type: ignore[arg-type]
    return worker_pb2.WorkerItem(hello=words)


Said = worker_pb2.WorkerServiceConnectRequest
WORKERS: dict[str, tuple[worker_pb2.WorkerServiceConnectRequest, str, tuple[str, ...]]] = {
    "no hello": (
        Said(items=[worker_pb2.WorkerItem(inventory_complete=worker_pb2.InventoryComplete())]),
        "INVALID_ARGUMENT",
        ("hello",),
    ),
    "another cluster": (
        Said(items=[hello(cluster_id="another")]),
        "FAILED_PRECONDITION",
        ("another",),
    ),
    "an unknown protocol": (Said(items=[hello(protocol=99)]), "FAILED_PRECONDITION", ("99",)),
    "a bad name": (Said(items=[hello(host="../x")]), "INVALID_ARGUMENT", ("'../x'",)),
    "NaN cores": (Said(items=[hello(cpus=float("nan"))]), "INVALID_ARGUMENT", ("nan",)),
    "101 items": (
        Said(items=[worker_pb2.WorkerItem(alive=worker_pb2.WorkerAlive())] * 101),
        "INVALID_ARGUMENT",
        ("100",),
    ),
}


@pytest.mark.parametrize("name", WORKERS)
async def test_a_stranger_is_no_host(name: str, ground: Ground, wire: Wire) -> None:
    first, code, words = WORKERS[name]

    async def connect() -> None:
        async def say() -> AsyncIterator[worker_pb2.WorkerServiceConnectRequest]:
            yield first

        async with Wire(ground.server, token=ground.worker) as worker:
            stub = worker_pb2_grpc.WorkerServiceStub(await worker.channel())
            async for _ in stub.Connect(say(), metadata=worker.metadata):
                pass

    assert_told(await refused(connect), code, "", words)
    reply = await wire.once(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
    assert list(reply.hosts) == []


# -- what is no message at all -----------------------------------------------------------------


async def raw(
    wire: Wire, method: str, body: bytes, metadata: tuple[tuple[str, str], ...] | None = None
) -> bytes:
    """Send bytes as they are."""
    channel = await wire.channel()
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return await call(body, metadata=wire.metadata if metadata is None else metadata)


async def test_bytes_that_are_no_message(wire: Wire) -> None:
    path = path_of(job_pb2.SubmitJobRequest())
    error = await refused(lambda: raw(wire, path, b"\xff" * 40))
    assert_told(error, "INVALID_ARGUMENT", "", ("contract",))


async def test_text_that_is_not_utf8(wire: Wire) -> None:
    error = await refused(lambda: raw(wire, path_of(job_pb2.GetJobRequest()), b"\x0a\x02\xff\xfe"))
    assert error.code().name == "INVALID_ARGUMENT"


async def test_a_method_that_is_not_there(wire: Wire) -> None:
    error = await refused(lambda: raw(wire, "/hatoba.v1.JobService/StartJob", b""))
    assert_told(error, "UNIMPLEMENTED", "", ("StartJob",))


async def test_too_little_time_to_begin(wire: Wire) -> None:
    request = job_pb2.SubmitJobRequest(spec=spec())
    before = await everything(wire)
    error = await refused(lambda: wire.once(request, empty_pb2.Empty, timeout=0.03))
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert await everything(wire) == before


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer a b", ""])
async def test_a_header_that_is_no_bearer(header: str, wire: Wire) -> None:
    path = path_of(job_pb2.CountJobsRequest())
    metadata = (("authorization", header),)
    error = await refused(lambda: raw(wire, path, b"", metadata=metadata))
    assert_told(error, "UNAUTHENTICATED", "", ())


def within(tag: int, body: bytes) -> bytes:
    """A field of a message, on the wire."""
    length, size = b"", len(body)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([tag << 3 | 2]) + length + bytes([size]) + body


async def test_a_value_that_is_nested_too_deeply(wire: Wire) -> None:
    value = within(3, b"end")
    for _ in range(2_000):
        # Value.struct_value, Struct.fields, and the entry's value.
        value = within(5, within(1, within(2, value)))
    body = within(2, spec().SerializeToString() + within(19, within(1, within(2, value))))
    before = await everything(wire)
    error = await refused(lambda: raw(wire, path_of(job_pb2.SubmitJobRequest()), body))
    assert_told(error, "INVALID_ARGUMENT", "", ("nested too deeply",))
    assert await everything(wire) == before


async def test_the_administrator_is_still_served(wire: Wire) -> None:
    status = await wire.once(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    assert status.phase == "serving"
    error = await refused(
        lambda: wire.once(artifact_pb2.GetManifestRequest(digest=MISSING), empty_pb2.Empty)
    )
    assert error.code().name == "NOT_FOUND"
