"""Runners in pods and images, over the wire: credentials, assignment, exits, doubled runs."""

from __future__ import annotations

import asyncio
import hashlib
import time

import grpc
import pytest
from server_process import HatobaServer
from wire import Wire

from hatoba.v1 import artifact_pb2, common_pb2, job_pb2, runner_pb2
from hatoba_scheduler.auth.runner_credentials import RunnerCredentials
from hatoba_scheduler.auth.runner_keys import RunnerKeys
from tests.integration.services.conftest import refused, state

from .conftest import Runner, assignment_of, given_to, job_on

GRANTED = runner_pb2.CLAIM_VERDICT_GRANTED
DUPLICATE = runner_pb2.CLAIM_VERDICT_DUPLICATE


async def begun(server: HatobaServer, wire: Wire, spec: job_pb2.JobSpec) -> tuple[str, Runner]:
    """A job, and the runner that stands in the first run of its first attempt."""
    job = await wire.submit(spec)
    given = await given_to(server, job)
    return job.name, Runner(server, given, f"{given['HATOBA_ATTEMPT']}/1")


# -- what a runner is given, and what that opens ---------------------------------------------------


async def test_a_runner_is_given_what_it_needs_to_claim_and_no_more(
    server: HatobaServer, wire: Wire
) -> None:
    spec = job_on("pods", run_for=600)
    spec.params["lr"].number_value = 0.1
    spec.command.append("--lr=${params.lr}")
    name, runner = await begun(server, wire, spec)
    async with runner:
        given = runner.given
        assert given["HATOBA_SERVER"] == f"grpc://{server.address}"
        assert "HATOBA_CA" not in given
        assert not any("train" in value for value in given.values())
        reply = await runner.claim()
        assert reply.verdict == GRANTED
        assigned = assignment_of(reply)
        assert list(assigned.command) == ["train", "--fast", "--lr=0.1"]
        assert (assigned.attempt, assigned.fence) == (runner.attempt, runner.fence)
        assert assigned.job == name
        lasts = reply.credential_expire_time.seconds - time.time()
        assert 23.9 * 3600 < lasts <= 24 * 3600
        again = await runner.claim()
        assert again.verdict == GRANTED
        assert again.assignment == reply.assignment
    await wire.cancel(name)


async def test_a_launch_credential_opens_one_claim(server: HatobaServer, wire: Wire) -> None:
    name, runner = await begun(server, wire, job_on("pods", run_for=600))
    other_name, other = await begun(server, wire, job_on("pods", run_for=600))
    async with runner, other:
        heartbeat = runner_pb2.HeartbeatRequest(attempt=runner.attempt, fence=runner.fence)
        claim = runner_pb2.ClaimAttemptRequest(
            attempt=other.attempt, fence=other.fence, nonce=runner.nonce
        )
        stale = runner_pb2.ClaimAttemptRequest(
            attempt=runner.attempt, fence=runner.fence + 1, nonce=runner.nonce
        )
        for request, reply in (
            (heartbeat, runner_pb2.HeartbeatResponse),
            (claim, runner_pb2.ClaimAttemptResponse),
            (stale, runner_pb2.ClaimAttemptResponse),
        ):
            refusal = await refused(runner.launching.once(request, reply))
            assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
            assert refusal.reason == "OUT_OF_SCOPE"
        read = job_pb2.GetJobRequest(name=name)
        assert (await refused(runner.launching.once(read, job_pb2.Job))).reason == (
            "ROLE_INSUFFICIENT"
        )
    for one in (name, other_name):
        await wire.cancel(one)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("name", "TOKEN_UNKNOWN"), ("mac", "TOKEN_UNKNOWN"), ("shape", "TOKEN_MALFORMED")],
)
async def test_a_made_up_credential_opens_nothing(
    server: HatobaServer, wire: Wire, change: str, reason: str
) -> None:
    name, runner = await begun(server, wire, job_on("pods", run_for=600))
    good = runner.given["HATOBA_CREDENTIAL"]
    text = {
        "name": good.replace(runner.attempt, runner.attempt[:-1] + "9"),
        "mac": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "shape": good[:-1],
    }[change]
    async with Wire(server, token=text) as false:
        request = runner_pb2.ClaimAttemptRequest(
            attempt=runner.attempt, fence=runner.fence, nonce=runner.nonce
        )
        refusal = await refused(false.once(request, runner_pb2.ClaimAttemptResponse))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    await wire.cancel(name)


async def test_files_are_a_sessions_while_its_attempt_is_current(
    server: HatobaServer, wire: Wire
) -> None:
    name, runner = await begun(server, wire, job_on("images", run_for=600))
    digest = hashlib.sha256(b"").digest()
    missing = artifact_pb2.FindMissingChunksRequest(sha256=[digest])
    async with runner:
        assert (await runner.claim()).verdict == GRANTED
        await runner.session.once(missing, artifact_pb2.FindMissingChunksResponse)
        collect = artifact_pb2.CollectGarbageRequest()
        denied = await refused(runner.session.once(collect, artifact_pb2.CollectGarbageResponse))
        assert denied.code is grpc.StatusCode.PERMISSION_DENIED
        assert await runner.commit()
        assert state(await wire.ended(name)) == "SUCCEEDED"
        refusal = await refused(
            runner.session.once(missing, artifact_pb2.FindMissingChunksResponse)
        )
        assert refusal.reason == "OUT_OF_SCOPE"
        assert await runner.commit()


# -- how it ends -----------------------------------------------------------------------------------


async def test_a_sidecar_is_told_how_the_container_ended_and_commits_it(
    server: HatobaServer, wire: Wire
) -> None:
    spec = job_on("pods", run_for=0.2, exit_code=3)
    name, runner = await begun(server, wire, spec)
    async with runner:
        assert (await runner.claim()).verdict == GRANTED
        told = await runner.exit()
        assert (told.kind, told.exit_code) == (runner_pb2.EXIT_KIND_EXITED, 3)
        assert told.time.seconds
        (attempt,) = await wire.attempts(name)
        assert attempt.state < common_pb2.ATTEMPT_STATE_SUCCEEDED
        assert await runner.commit(kind=told.kind, exit_code=told.exit_code)
        ended = await wire.ended(name)
        assert (state(ended), ended.cause.exit_code) == ("FAILED", 3)
        again = runner_pb2.AwaitExitRequest(attempt=runner.attempt, fence=runner.fence)
        refusal = await refused(runner.session.once(again, runner_pb2.AwaitExitResponse))
        assert refusal.reason == "NOT_CURRENT"


async def test_what_a_platform_took_away_is_preempted_by_its_runners_word(
    server: HatobaServer, wire: Wire
) -> None:
    name, runner = await begun(server, wire, job_on("pods", run_for=0.2, outcome="preempted"))
    async with runner:
        await runner.claim()
        told = await runner.exit()
        assert told.kind == runner_pb2.EXIT_KIND_PREEMPTED
        assert await runner.commit(kind=told.kind)
    (first, *_) = await wire.attempts(name)
    assert first.state == common_pb2.ATTEMPT_STATE_PREEMPTED
    await wire.cancel(name)


async def test_a_doubled_runs_loser_that_is_seen_first_says_nothing(
    server: HatobaServer, wire: Wire
) -> None:
    spec = job_on("images", run_for=600, starts_in=0.5, doubled_run=True)
    name, winner = await begun(server, wire, spec)
    loser = Runner(server, winner.given, f"{winner.attempt}/2")
    async with winner, loser:
        assert (await winner.claim()).verdict == GRANTED
        refused_claim = await loser.claim()
        assert refused_claim.verdict == DUPLICATE
        assert not refused_claim.credential
        assert not refused_claim.HasField("assignment")
        assert (await winner.heartbeat(started=time.time())).order == runner_pb2.RUNNER_ORDER_RUN
        await wire.in_state(name, common_pb2.JOB_STATE_RUNNING)
        assert await winner.commit()
    assert state(await wire.ended(name)) == "SUCCEEDED"
    (attempt,) = await wire.attempts(name)
    assert attempt.fenced


async def test_a_container_that_runs_has_not_begun_the_users_code(
    server: HatobaServer, wire: Wire
) -> None:
    name, runner = await begun(server, wire, job_on("images", run_for=600))
    async with runner:
        await wire.in_state(name, common_pb2.JOB_STATE_STARTING)
        await runner.claim()
        assert (await wire.job(name)).state == common_pb2.JOB_STATE_STARTING
        began = time.time() - 5
        await runner.heartbeat(started=began)
        await wire.in_state(name, common_pb2.JOB_STATE_RUNNING)
        (attempt,) = await wire.attempts(name)
        assert attempt.start_time.seconds == round(began)
        await wire.cancel(name)
        assert (await runner.heartbeat()).order == runner_pb2.RUNNER_ORDER_STOP
        assert await runner.commit(kind=runner_pb2.EXIT_KIND_STOPPED)
    assert state(await wire.ended(name)) == "CANCELLED"


async def test_a_cancel_before_the_claim_refuses_it(server: HatobaServer, wire: Wire) -> None:
    name, runner = await begun(server, wire, job_on("pods", starts_in=600))
    await wire.cancel(name)
    async with runner:
        reply = await runner.claim()
        assert reply.verdict in (
            runner_pb2.CLAIM_VERDICT_CANCELLED,
            runner_pb2.CLAIM_VERDICT_SUPERSEDED,
        )
        assert not reply.credential
    assert state(await wire.ended(name)) == "CANCELLED"


async def test_a_session_outlives_the_server(own_server: HatobaServer, own_wire: Wire) -> None:
    name, runner = await begun(own_server, own_wire, job_on("pods", run_for=2))
    async with runner:
        assert (await runner.claim()).verdict == GRANTED
        await own_server.kill()
        await own_server.start()
        assert (await runner.heartbeat()).order == runner_pb2.RUNNER_ORDER_RUN
        told = await runner.exit()
        assert told.kind == runner_pb2.EXIT_KIND_EXITED
        assert await runner.commit(kind=told.kind, exit_code=told.exit_code)
    assert state(await own_wire.ended(name)) == "SUCCEEDED"
    assert len(await own_wire.attempts(name)) == 1


async def test_a_session_proves_a_claim_that_a_restored_store_does_not_know_of(
    server: HatobaServer, wire: Wire
) -> None:
    name, runner = await begun(server, wire, job_on("pods", run_for=600))
    keys = await asyncio.to_thread(RunnerKeys.open, server.data, 0)
    text, _ = RunnerCredentials(keys, lambda: round(time.time() * 1e6)).session(
        runner.attempt, runner.fence
    )
    async with runner:
        runner.session = Wire(server, token=text)
        assert await runner.commit()
    assert state(await wire.ended(name)) == "SUCCEEDED"


# -- replicas --------------------------------------------------------------------------------------


async def test_a_replica_reads_files_and_does_nothing_else(server: HatobaServer) -> None:
    keys = await asyncio.to_thread(RunnerKeys.open, server.data, 0)
    text = RunnerCredentials(keys, lambda: 0).replica("d" * 32, 1, 0)
    digest = hashlib.sha256(b"").digest()
    async with Wire(server, token=text) as replica:
        read = artifact_pb2.GetManifestRequest(digest=f"sha256:{'0' * 64}")
        assert (await refused(replica.once(read, artifact_pb2.Manifest))).reason == (
            "RESOURCE_NOT_FOUND"
        )
        find = artifact_pb2.FindMissingChunksRequest(sha256=[digest])
        denied = await refused(replica.once(find, artifact_pb2.FindMissingChunksResponse))
        assert (denied.code, denied.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OUT_OF_SCOPE")
        claim = runner_pb2.ClaimAttemptRequest(attempt="d" * 32, fence=1, nonce="n" * 16)
        denied = await refused(replica.once(claim, runner_pb2.ClaimAttemptResponse))
        assert denied.reason == "OUT_OF_SCOPE"
