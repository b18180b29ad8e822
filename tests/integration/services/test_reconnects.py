"""What a host says again, and what it says no more, when its stream was broken."""

from __future__ import annotations

from typing import Any

from waiting import eventually
from wire import Wire

from hatoba.v1 import common_pb2, runner_pb2, worker_pb2

from .conftest import Host, commit_of, connected, fresh, job_on, state, submit

Item = worker_pb2.WorkerItem


async def committed(host: Host, launch: worker_pb2.LaunchAttempt, **fields: Any) -> None:
    """Commit on the stream, as workers do."""
    await host.say(Item(commit=commit_of(launch, **fields)))
    assert (await host.hears("committed")).accepted


async def test_what_a_host_holds_no_more_is_released_though_it_could_not_say_so(
    wire: Wire,
) -> None:
    name = fresh("h")
    async with connected(wire, name, secrets=[name]) as host:
        job = await submit(wire, job_on(name))
        launch = await host.launched()
        await host.started(launch)
        await committed(host, launch, gone=False)
        (attempt,) = await wire.attempts(job.name)
        assert attempt.release == common_pb2.RELEASE_RELEASING

    async with connected(wire, name, secrets=[name]):

        async def released() -> bool:
            (attempt,) = await wire.attempts(job.name)
            return attempt.release == common_pb2.RELEASE_RELEASED

        await eventually(released)


async def test_a_host_speaks_for_what_it_was_sent_only(wire: Wire) -> None:
    name, other = fresh("h"), fresh("h")
    async with connected(wire, name, secrets=[name]) as host, connected(wire, other) as stranger:
        job = await submit(wire, job_on(name))
        launch = await host.launched()
        await host.started(launch)
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
        gone = worker_pb2.AttemptGone(attempt=launch.attempt, fence=launch.fence)
        await stranger.say(Item(gone=gone))
        # What is answered was said after it.
        claim = runner_pb2.ClaimAttemptRequest(attempt=launch.attempt, fence=1, nonce="m" * 16)
        await stranger.say(Item(claim=claim))
        verdict = (await stranger.hears("claimed")).verdict
        assert verdict == runner_pb2.CLAIM_VERDICT_SUPERSEDED
        assert state(await wire.job(job.name)) == "RUNNING"
        await committed(host, launch)
        assert state(await wire.ended(job.name)) == "SUCCEEDED"
        assert len(await wire.attempts(job.name)) == 1
