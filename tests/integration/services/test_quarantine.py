"""A host that fails many different jobs takes no new work for a while."""

from __future__ import annotations

from waiting import eventually
from wire import Wire

from hatoba.v1 import common_pb2, runner_pb2, worker_pb2
from hatoba_scheduler.domain.blame import BlameRules

from .conftest import Host, connected, fresh, job_on, submit

FAILED = runner_pb2.EXIT_KIND_OUTPUT_FAILED


async def host_of(wire: Wire, name: str) -> worker_pb2.Host:
    return await wire.once(worker_pb2.GetHostRequest(name=name), worker_pb2.Host)


async def fail_jobs(wire: Wire, host: Host, secret: str, count: int) -> None:
    for number in range(count):
        wanted = job_on(secret, f"train{number}")
        wanted.retries.infrastructure = 0
        await submit(wire, wanted)
        launch = await host.launched()
        await host.started(launch)
        await host.commit(launch, kind=FAILED)


async def is_quarantined(wire: Wire, name: str) -> bool:
    return (await host_of(wire, name)).HasField("quarantined_until")


async def test_it_takes_no_work_until_it_is_let_in_again(own_wire: Wire) -> None:
    bad, good, secret = fresh("bad"), fresh("good"), fresh("s")
    async with (
        connected(own_wire, bad, secrets=[secret]) as host,
        connected(own_wire, good, secrets=["other"]),
    ):
        await fail_jobs(own_wire, host, secret, BlameRules().jobs)
        await eventually(lambda: is_quarantined(own_wire, bad))
        told = await host_of(own_wire, bad)
        assert "5 different jobs failed here" in told.cordon_reason
        assert not (await host_of(own_wire, good)).HasField("quarantined_until")
        job = await submit(own_wire, job_on(secret))
        assert (await own_wire.job(job.name)).state == common_pb2.JOB_STATE_QUEUED
        uncordon = worker_pb2.CordonHostRequest(name=bad, cordoned=False)
        await own_wire.once(uncordon, worker_pb2.Host)
        assert (await host.launched()).job == job.name
        assert not await is_quarantined(own_wire, bad)


async def test_the_last_host_that_works_is_kept(own_wire: Wire) -> None:
    name = fresh("only")
    async with connected(own_wire, name, secrets=[name]) as host:
        await fail_jobs(own_wire, host, name, BlameRules().jobs + 2)
        assert not await is_quarantined(own_wire, name)
