"""AdminService, traces, health and reflection: what operators see and set."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from server_process import HatobaServer
from waiting import eventually
from wire import Wire

from hatoba import __version__
from hatoba.v1 import admin_pb2, job_pb2, queue_pb2

from .conftest import held, refused, running, spec, submit, token_of

SERVICES = {
    f"hatoba.v1.{name}Service" for name in ("Job", "Queue", "Artifact", "Runner", "Worker", "Admin")
}


# -- backends and status ---------------------------------------------------------------------------


async def backends(wire: Wire) -> admin_pb2.ListBackendsResponse:
    return await wire.once(admin_pb2.ListBackendsRequest(), admin_pb2.ListBackendsResponse)


async def test_backends_and_those_that_failed_are_listed(wire: Wire) -> None:
    reply = await backends(wire)
    listed = {one.name: one for one in reply.backends}
    assert list(listed) == ["hosts", "mock", "null"]
    assert [name for name, one in listed.items() if one.is_default] == ["mock"]
    assert {one.distribution for one in listed.values()} == {f"hatoba {__version__}"}
    assert listed["hosts"].capabilities["runner"] == "host"
    assert listed["mock"].capacity
    failures = {one.name: one for one in reply.failures}
    assert set(failures) == {"broken", "lost"}
    broken = failures["broken"]
    assert "No module named 'hatoba_no_such_engine'" in broken.reason
    assert broken.remedy == "pip install 'hatoba-broken[engine]'"
    assert broken.distribution == "hatoba-broken"
    assert "nowhere" in failures["lost"].reason
    assert failures["lost"].remedy


async def test_backends_are_healthy(wire: Wire) -> None:
    async def healthy() -> bool:
        return {one.health for one in (await backends(wire)).backends} == {"healthy"}

    await eventually(healthy)


async def status(wire: Wire) -> admin_pb2.ServerStatus:
    return await wire.once(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)


async def test_the_status_says_how_the_server_is(own_server: HatobaServer, own_wire: Wire) -> None:
    before = await status(own_wire)
    assert (before.version, before.phase, before.pid) == (__version__, "serving", own_server.pid)
    assert (before.active_jobs, before.live_attempts, before.last_event) == (0, 0, 0)
    assert before.data_dir == str(own_server.data)
    assert before.store_epoch >= 1
    assert abs(before.start_time.seconds - time.time()) < 60
    await submit(own_wire, held())
    job = await submit(own_wire, running())
    await own_wire.watched(job.name, lambda job: bool(job.start_time.seconds), 20)
    after = await status(own_wire)
    assert (after.active_jobs, after.live_attempts) == (2, 1)
    assert after.last_event == 1 + (await own_wire.job(job.name)).version
    await own_server.restart()
    again = await status(own_wire)
    assert (again.cluster_id, again.last_event) == (before.cluster_id, after.last_event)
    assert again.active_jobs == 2


# -- tokens ----------------------------------------------------------------------------------------


async def tokens(wire: Wire) -> dict[str, admin_pb2.Token]:
    found: dict[str, admin_pb2.Token] = {}
    place = ""
    while True:
        request = admin_pb2.ListTokensRequest(page_size=2, page_token=place)
        reply = await wire.once(request, admin_pb2.ListTokensResponse)
        assert sorted(token.name for token in reply.tokens) == [t.name for t in reply.tokens]
        found |= {token.name: token for token in reply.tokens}
        place = reply.next_page_token
        if not place:
            return found


async def revoke(wire: Wire, name: str) -> admin_pb2.Token:
    return await wire.once(admin_pb2.RevokeTokenRequest(name=name), admin_pb2.Token)


async def test_a_token_is_shown_once_and_listed_without_its_text(
    server: HatobaServer, wire: Wire
) -> None:
    made = await token_of(wire, admin_pb2.ROLE_USER, "ann@example.org")
    assert made.secret.startswith("hb_")
    assert (made.token.principal, made.token.created_by) == ("ann@example.org", "admin")
    assert not made.token.HasField("expire_time")
    listed = await tokens(wire)
    assert listed[made.token.name] == made.token
    assert {"admin", "worker", "router"} <= {token.principal for token in listed.values()}
    async with Wire(server, token=made.secret) as ann:
        job = await submit(ann, held())
        assert job.created_by == "ann@example.org"
        refusal = await refused(token_of(ann, admin_pb2.ROLE_ADMIN))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "ROLE_INSUFFICIENT",
        )
        queue = queue_pb2.CreateQueueRequest(queue_id="anns")
        assert (await refused(ann.once(queue, queue_pb2.Queue))).reason == "ROLE_INSUFFICIENT"


async def test_a_viewer_reads_and_does_not_submit(
    server: HatobaServer, wire: Wire, project: str
) -> None:
    made = await token_of(wire, admin_pb2.ROLE_VIEWER)
    job = await submit(wire, held(), project)
    async with Wire(server, token=made.secret) as viewer:
        assert (await viewer.job(job.name)).uid == job.uid
        for request, reply in (
            (job_pb2.SubmitJobRequest(spec=spec(), validate_only=True), job_pb2.Job),
            (job_pb2.SubmitJobsRequest(), job_pb2.SubmitJobsResponse),
            (job_pb2.CancelJobsRequest(jobs=[job.name]), job_pb2.CancelJobsResponse),
            (job_pb2.UpdateJobRequest(name=job.name), job_pb2.Job),
            (job_pb2.RerunJobRequest(job=job.name), job_pb2.Job),
        ):
            refusal = await refused(viewer.once(request, reply))
            assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert (await wire.job(job.name)).version == 1


async def test_a_token_is_made_once_per_request(wire: Wire) -> None:
    request = admin_pb2.CreateTokenRequest(
        principal="bob", role=admin_pb2.ROLE_USER, request_id="make-bob"
    )
    await wire.once(request, admin_pb2.CreateTokenResponse)
    for role in (admin_pb2.ROLE_USER, admin_pb2.ROLE_VIEWER):
        request.role = role
        refusal = await refused(wire.once(request, admin_pb2.CreateTokenResponse))
        assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert [token.principal for token in (await tokens(wire)).values()].count("bob") == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"principal": "", "role": 2}, "principal"),
        ({"principal": "a b", "role": 2}, "principal"),
        ({"principal": "a", "role": 0}, "role"),
        ({"principal": "a", "role": 9}, "role"),
        ({"principal": "a", "role": 2, "ttl": Duration(seconds=0)}, "ttl"),
        ({"principal": "a", "role": 2, "ttl": Duration(seconds=-1)}, "ttl"),
        ({"principal": "a", "role": 2, "request_id": "a b"}, "request_id"),
        ({"principal": "a", "role": 2, "deployment": "reader"}, "deployment"),
        ({"principal": "a", "role": 6}, "deployment"),
        ({"principal": "a", "role": 6, "deployment": "models/reader"}, "deployment"),
        ({"principal": "a", "role": 6, "deployment": "Reader"}, "deployment"),
    ],
)
async def test_wrong_tokens_are_not_made(wire: Wire, fields: dict[str, Any], field: str) -> None:
    request = admin_pb2.CreateTokenRequest(**fields)
    refusal = await refused(wire.once(request, admin_pb2.CreateTokenResponse))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


@pytest.mark.parametrize("ttl", [Duration(nanos=1), Duration(nanos=1_000)])
async def test_however_short_it_lives_a_token_ends(
    server: HatobaServer, wire: Wire, ttl: Duration
) -> None:
    made = await token_of(wire, admin_pb2.ROLE_ADMIN, ttl=ttl)
    assert made.token.HasField("expire_time")
    async with Wire(server, token=made.secret) as late:
        refusal = await refused(status(late))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_EXPIRED",
        )


async def test_a_token_for_predictions_can_call_nothing(server: HatobaServer, wire: Wire) -> None:
    request = admin_pb2.CreateTokenRequest(
        principal="app", role=admin_pb2.ROLE_PREDICT, deployment="reader"
    )
    made = await wire.once(request, admin_pb2.CreateTokenResponse)
    assert made.token.deployment == "projects/default/deployments/reader"
    assert (await tokens(wire))[made.token.name].deployment == made.token.deployment
    async with Wire(server, token=made.secret) as app:
        refusal = await refused(status(app))
        assert refusal.code is grpc.StatusCode.PERMISSION_DENIED


async def test_revoking_a_token_ends_its_streams_and_calls(
    server: HatobaServer, wire: Wire, project: str
) -> None:
    made = await token_of(wire, admin_pb2.ROLE_USER)
    job = await submit(wire, held(), project)
    async with Wire(server, token=made.secret) as ann:
        watch = ann.stream(
            job_pb2.WatchJobsRequest(jobs=[job.name], cursor="0"), job_pb2.WatchJobsResponse
        )
        await anext(watch)
        tail = ann.stream(
            job_pb2.TailLogsRequest(job=job.name, follow=True), job_pb2.TailLogsResponse
        )
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            ends = [
                group.create_task(refused(anext(stream)), name="stream") for stream in (watch, tail)
            ]
            assert (await revoke(wire, made.token.name)).revoked
        assert {end.result().reason for end in ends} == {"TOKEN_REVOKED"}
        refusal = await refused(ann.once(job_pb2.GetJobRequest(name=job.name), job_pb2.Job))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_REVOKED",
        )
    assert (await revoke(wire, made.token.name.removeprefix("tokens/"))).revoked
    assert (await tokens(wire))[made.token.name].revoked
    assert (await refused(revoke(wire, "tokens/ffffffffffff"))).code is grpc.StatusCode.NOT_FOUND


async def test_tokens_outlive_the_server(own_server: HatobaServer, own_wire: Wire) -> None:
    good = await token_of(own_wire, admin_pb2.ROLE_USER, "good")
    bad = await token_of(own_wire, admin_pb2.ROLE_USER, "bad")
    await revoke(own_wire, bad.token.name)
    await own_server.restart()
    async with (
        Wire(own_server, token=good.secret) as one,
        Wire(own_server, token=bad.secret) as two,
    ):
        await one.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
        refusal = await refused(two.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse))
        assert refusal.reason == "TOKEN_REVOKED"


# -- traces ----------------------------------------------------------------------------------------


async def spans(wire: Wire, job: str) -> list[job_pb2.Span]:
    request = job_pb2.GetJobTraceRequest(job=job)
    return list((await wire.once(request, job_pb2.GetJobTraceResponse)).spans)


async def test_a_jobs_trace_shows_its_attempts(wire: Wire, project: str) -> None:
    wanted = spec("flaky", exit_code=1, run_for=0.01)
    wanted.retries.user = 1
    wanted.retries.backoff.SetInParent()
    job = await submit(wire, wanted, project)
    await wire.ended(job.name)
    found = await spans(wire, job.name)
    assert {span.trace_id for span in found} == {job.trace_id}
    assert [s.start_unix_nanos for s in found] == sorted(s.start_unix_nanos for s in found)
    named = [span.name for span in found]
    assert named[0] == "hatoba.v1.JobService/SubmitJob"
    assert (named.count("attempt"), named.count("queue.wait")) == (2, 1)
    assert all(span.end_unix_nanos >= span.start_unix_nanos for span in found)
    attempts = [span for span in found if span.name == "attempt"]
    assert [span.attributes["hatoba.attempt"] for span in attempts] == ["1", "2"]
    assert all("exit code 1" in span.error for span in attempts)
    assert {span.parent_span_id for span in attempts} == {found[0].span_id}


async def test_spans_of_clients_join_the_trace_once(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    mine = job_pb2.Span(
        trace_id=job.trace_id, span_id="0123456789abcdef", name="my program", kind="client"
    )
    mine.start_unix_nanos, mine.end_unix_nanos = 1, 2
    for _ in range(2):
        await wire.once(admin_pb2.PushSpansRequest(spans=[mine]), admin_pb2.PushSpansResponse)
    found = await spans(wire, job.name)
    assert found[0] == mine
    assert [span.span_id for span in found].count(mine.span_id) == 1
    mine.trace_id = "no trace"
    refusal = await refused(
        wire.once(admin_pb2.PushSpansRequest(spans=[mine]), admin_pb2.PushSpansResponse)
    )
    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["spans[0].trace_id"],
    )


# -- health and reflection -------------------------------------------------------------------------


async def health(channel: grpc.aio.Channel, service: str) -> Any:
    call: Any = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return (await call(health_pb2.HealthCheckRequest(service=service))).status


async def test_every_service_is_serving_without_a_token(wire: Wire) -> None:
    channel = await wire.channel()
    for service in ("", *SERVICES):
        assert await health(channel, service) == health_pb2.HealthCheckResponse.SERVING
    refusal = await refused(health(channel, "hatoba.v1.Nothing"))
    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_a_server_that_stops_is_not_serving(own_server: HatobaServer, own_wire: Wire) -> None:
    channel = await own_wire.channel()
    watch: Any = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    stream = watch(health_pb2.HealthCheckRequest(service="hatoba.v1.JobService"))
    assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(own_server.terminate(), name="stop")
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert stopping.result() < 10


async def test_services_are_listed_by_reflection(wire: Wire) -> None:
    channel = await wire.channel()
    method: Any = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    stream = method(metadata=wire.metadata)
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {service.name for service in (await stream.read()).list_services_response.service}
    assert listed >= SERVICES
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="hatoba.v1.JobService")
    await stream.write(symbol)
    assert (await stream.read()).file_descriptor_response.file_descriptor_proto
    stream.cancel()
