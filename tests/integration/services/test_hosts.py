"""WorkerService: who is heard on a stream, and what operators do with hosts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from server_process import HatobaServer, clean_environment, kill9
from waiting import eventually, until
from wire import Wire, shell

from hatoba.v1 import common_pb2, job_pb2, runner_pb2, worker_pb2
from hatoba_worker.keeper.ask import ask

from .conftest import (
    cancel,
    commit_of,
    connected,
    fresh,
    job_on,
    refusal_of,
    refused,
    state,
    submit,
)


async def hosts(wire: Wire, **fields: Any) -> worker_pb2.ListHostsResponse:
    request = worker_pb2.ListHostsRequest(**fields)
    return await wire.once(request, worker_pb2.ListHostsResponse)


async def get(wire: Wire, name: str) -> worker_pb2.Host:
    return await wire.once(worker_pb2.GetHostRequest(name=name), worker_pb2.Host)


async def cordon(wire: Wire, name: str, cordoned: bool = True) -> worker_pb2.Host:
    request = worker_pb2.CordonHostRequest(name=name, cordoned=cordoned)
    return await wire.once(request, worker_pb2.Host)


async def declare_gone(wire: Wire, name: str, reason: str = "it burnt") -> worker_pb2.Host:
    request = worker_pb2.DeclareHostGoneRequest(name=name, reason=reason)
    return await wire.once(request, worker_pb2.Host)


async def until_left(wire: Wire, name: str) -> None:
    async def left() -> bool:
        return not (await get(wire, name)).connected

    await eventually(left)


@pytest.fixture
def alpha() -> str:
    """Name of a test's first host, and of the secret by which its jobs come to its hosts."""
    return fresh("alpha")


# -- streams ---------------------------------------------------------------------------------------


async def test_a_host_is_shown_as_it_said_hello(own_wire: Wire) -> None:
    hello: dict[str, Any] = {
        "cpus": 4.0,
        "memory_bytes": 2**30,
        "gpus": ["g0", "g1"],
        "labels": {"zone": "a"},
    }
    async with connected(own_wire, "beta", **hello), connected(own_wire, "alpha"):
        first = await hosts(own_wire, page_size=1)
        last = await hosts(own_wire, page_size=1, page_token=first.next_page_token)
        assert [host.name for host in (*first.hosts, *last.hosts)] == ["hosts/alpha", "hosts/beta"]
        assert last.next_page_token == ""
        beta = await get(own_wire, "beta")
        assert beta == await get(own_wire, "hosts/beta")
        assert (beta.connected, beta.cpus, beta.memory_bytes) == (True, 4.0, 2**30)
        assert (list(beta.gpus), dict(beta.labels), beta.slots) == (["g0", "g1"], {"zone": "a"}, 4)
    await until_left(own_wire, "beta")
    assert (await get(own_wire, "beta")).last_seen.seconds
    assert (await refused(get(own_wire, "gamma"))).code is grpc.StatusCode.NOT_FOUND


async def test_what_runs_on_a_host_is_reserved_there(wire: Wire, alpha: str) -> None:
    hello: dict[str, Any] = {"cpus": 4.0, "memory_bytes": 2**30, "gpus": ["g0", "g1"]}

    async with connected(wire, alpha, secrets=[alpha], **hello) as host:
        wanted = job_on(alpha)
        wanted.resources.cpus, wanted.resources.gpus = 1.5, 1
        job = await submit(wire, wanted)
        launch = await host.launched()
        assert launch.gpus == ["g0"]
        await submit(wire, job_on(alpha, "small"))
        small = await host.launched()
        shown = await get(wire, alpha)
        assert (shown.reserved.cpus, shown.reserved.gpus, shown.slots_used) == (1.5, 1, 1)
        assert shown.attempts == 2
        wanted.resources.gpus = 2
        waiting = await submit(wire, wanted)
        assert "gpu" in (await wire.job(waiting.name)).waiting_reason.lower()
        await host.started(launch)
        await host.commit(launch)
        await host.started(small)
        await host.commit(small)
        assert list((await host.launched()).gpus) == ["g0", "g1"]
        (attempt,) = await wire.attempts(job.name)
        assert (attempt.host, list(attempt.gpus)) == (alpha, ["g0"])


@pytest.mark.parametrize(
    ("hello", "code", "reason"),
    [
        ({"protocol": 2}, grpc.StatusCode.FAILED_PRECONDITION, "VERSION_UNSUPPORTED"),
        ({"cluster_id": "other"}, grpc.StatusCode.FAILED_PRECONDITION, "CLUSTER_MISMATCH"),
        ({"incarnation": "short"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"cpus": float("nan")}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ],
)
async def test_a_foreign_worker_is_refused(
    wire: Wire, hello: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with connected(wire, "foreign", **hello):
            pass
    refusal = refusal_of(caught.value)
    assert (refusal.code, refusal.reason) == (code, reason)
    assert not [host for host in (await hosts(wire)).hosts if host.name == "hosts/foreign"]


async def test_a_newer_stream_ends_the_older(wire: Wire, alpha: str) -> None:
    async with (
        connected(wire, alpha, secrets=[alpha]) as older,
        connected(wire, alpha, secrets=[alpha]) as newer,
    ):
        await older.ends()
        job = await submit(wire, job_on(alpha))
        launch = await newer.launched()
        assert launch.job == job.name


async def test_nothing_is_sent_before_the_inventory_is_complete(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha], complete=False) as host:
        job = await submit(wire, job_on(alpha))
        assert not (await get(wire, alpha)).connected
        assert state(await wire.job(job.name)) == "QUEUED"
        complete = worker_pb2.InventoryComplete()
        await host.say(worker_pb2.WorkerItem(inventory_complete=complete))
        assert (await host.launched()).job == job.name


async def test_what_the_server_does_not_know_is_dropped(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha], complete=False) as host:
        held = worker_pb2.HeldAttempt(attempt="h1-unknown-0-1", fence=1, claimed=True)
        await host.say(worker_pb2.WorkerItem(held=held))
        assert (await host.hears("drop")).attempt == "h1-unknown-0-1"


def of_another_epoch(uid: str, number: int = 1) -> worker_pb2.LaunchAttempt:
    """What this store never launched: it came out of a backup."""
    name = f"h0-{uid.replace('-', '')}-0-{number}"
    return worker_pb2.LaunchAttempt(attempt=name, fence=number, job_uid=uid, number=number)


def inventory(*launches: worker_pb2.LaunchAttempt) -> list[worker_pb2.WorkerItem]:
    """A host that runs these, and nothing else."""
    held = [
        worker_pb2.HeldAttempt(
            attempt=one.attempt,
            fence=one.fence,
            claimed=True,
            started=True,
            job_uid=one.job_uid,
            number=one.number,
            nonce="n" * 16,
        )
        for one in launches
    ]
    items = [worker_pb2.WorkerItem(held=one) for one in held]
    complete = worker_pb2.InventoryComplete()
    return [*items, worker_pb2.WorkerItem(inventory_complete=complete)]


async def test_what_came_too_late_for_an_adoption_is_taken_up_where_it_is_missed(
    wire: Wire, alpha: str
) -> None:
    async with connected(wire, alpha, secrets=[alpha]):
        await cordon(wire, alpha)
        job = await submit(wire, job_on(alpha))
    late = of_another_epoch(job.uid)
    async with connected(wire, alpha, secrets=[alpha], complete=False) as host:
        await host.say(*inventory(late))
        told = worker_pb2.AttemptStarted(attempt=late.attempt, fence=1)
        await host.say(worker_pb2.WorkerItem(started=told))
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
        assert (await host.commit(late)).accepted
        assert state(await wire.ended(job.name)) == "SUCCEEDED"
    (attempt,) = await wire.attempts(job.name)
    assert (attempt.number, attempt.host) == (1, alpha)


async def test_what_came_too_late_never_runs_beside_another(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as first:
        job = await submit(wire, job_on(alpha))
        launch = await first.launched()
        await first.started(launch)
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
        late, foreign = of_another_epoch(job.uid), of_another_epoch(str(uuid.uuid4()))
        async with connected(wire, fresh("beta"), complete=False) as second:
            await second.say(*inventory(foreign, late))
            assert (await second.hears("drop")).attempt == late.attempt
        await first.commit(launch)
        assert state(await wire.ended(job.name)) == "SUCCEEDED"
    assert len(await wire.attempts(job.name)) == 1


async def test_an_attempt_outlives_its_workers_stream(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as host:
        job = await submit(wire, job_on(alpha))
        launch = await host.launched()
        await host.started(launch)
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await until_left(wire, alpha)

    async def unknown() -> bool:
        return (await wire.attempts(job.name))[0].HasField("unknown_since")

    await eventually(unknown)
    assert state(await wire.job(job.name)) == "RUNNING"
    async with connected(wire, alpha, secrets=[alpha], complete=False) as host:
        held = worker_pb2.HeldAttempt(
            attempt=launch.attempt, fence=1, claimed=True, started=True, job_uid=job.uid, number=1
        )
        complete = worker_pb2.InventoryComplete()
        await host.say(
            worker_pb2.WorkerItem(held=held), worker_pb2.WorkerItem(inventory_complete=complete)
        )
        await host.commit(launch)
        assert state(await wire.ended(job.name)) == "SUCCEEDED"
    assert len(await wire.attempts(job.name)) == 1


async def test_a_worker_killed_between_commit_and_gone_holds_nothing_for_ever(
    wire: Wire, alpha: str
) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as host:
        job = await submit(wire, job_on(alpha))
        launch = await host.launched()
        await host.started(launch)
        await host.say(worker_pb2.WorkerItem(commit=commit_of(launch, gone=False)))
        assert state(await wire.ended(job.name)) == "SUCCEEDED"
    async with connected(wire, alpha, secrets=[alpha], complete=False) as host:
        # Its successor finds the attempt in its journal, and tells of it once more.
        held = worker_pb2.HeldAttempt(
            attempt=launch.attempt, fence=1, claimed=True, started=True, job_uid=job.uid, number=1
        )
        await host.say(
            worker_pb2.WorkerItem(held=held),
            worker_pb2.WorkerItem(inventory_complete=worker_pb2.InventoryComplete()),
            worker_pb2.WorkerItem(commit=commit_of(launch, gone=True)),
        )

        async def released() -> bool:
            return (await wire.attempts(job.name))[0].release == common_pb2.RELEASE_RELEASED

        await eventually(released)


async def test_what_a_host_has_lost_is_tried_again(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as host:
        job = await submit(wire, job_on(alpha))
        launch = await host.launched()
        await host.started(launch)
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await until_left(wire, alpha)
    async with connected(wire, alpha, secrets=[alpha]) as host:
        again = await host.launched()
        assert (again.job, again.number) == (job.name, 2)
    (first, _) = await wire.attempts(job.name)
    assert first.state == common_pb2.ATTEMPT_STATE_LOST


async def test_a_cancel_is_told_to_the_host_that_comes_back(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as host:
        job = await submit(wire, job_on(alpha))
        launch = await host.launched()
        await host.started(launch)
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await until_left(wire, alpha)
    (result,) = await cancel(wire, job.name)
    assert result.outcome == job_pb2.CANCEL_OUTCOME_CANCELLING
    held = worker_pb2.HeldAttempt(attempt=launch.attempt, fence=1, claimed=True, started=True)
    async with connected(wire, alpha, secrets=[alpha], complete=False) as host:
        await host.say(
            worker_pb2.WorkerItem(held=held),
            worker_pb2.WorkerItem(inventory_complete=worker_pb2.InventoryComplete()),
        )
        assert (await host.hears("stop")).attempt == launch.attempt
        await host.commit(launch, kind=runner_pb2.EXIT_KIND_STOPPED)
        assert state(await wire.ended(job.name)) == "CANCELLED"


# -- operators -------------------------------------------------------------------------------------


async def test_a_cordoned_host_gets_nothing_new(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as first:
        running = await submit(wire, job_on(alpha, "before"))
        launch = await first.launched()
        assert (await cordon(wire, alpha)).cordoned
        job = await submit(wire, job_on(alpha, "after"))
        async with connected(wire, fresh("beta"), secrets=[alpha]) as second:
            assert (await second.launched()).job == job.name
        await first.started(launch)
        await first.commit(launch)
        assert state(await wire.ended(running.name)) == "SUCCEEDED"
        third = await submit(wire, job_on(alpha, "third"))
        assert state(await wire.job(third.name)) == "QUEUED"
        assert not (await cordon(wire, f"hosts/{alpha}", False)).cordoned
        assert (await first.launched()).job == third.name


async def test_a_cordon_outlives_streams_and_servers(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    async with connected(own_wire, "alpha"):
        await cordon(own_wire, "alpha")
    async with connected(own_wire, "alpha"):
        assert (await get(own_wire, "alpha")).cordoned
    await own_server.restart()
    shown = await get(own_wire, "alpha")
    assert (shown.cordoned, shown.connected, shown.slots) == (True, False, 4)


async def test_a_host_declared_gone_loses_its_attempts_and_says_why(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as host:
        job = await submit(wire, job_on(alpha))
        launch = await host.launched()
        await host.started(launch)
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
        refusal = await refused(declare_gone(wire, alpha))
        assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    await until_left(wire, alpha)
    assert (await declare_gone(wire, alpha)).declared_gone
    (lost,) = await wire.attempts(job.name)
    assert lost.state == common_pb2.ATTEMPT_STATE_LOST
    assert lost.release == common_pb2.RELEASE_RELEASED
    assert lost.cause.code == common_pb2.CAUSE_CODE_DECLARED_GONE
    assert lost.cause.message == f"Host '{alpha}' was declared gone by admin: it burnt."
    async with connected(wire, fresh("beta"), secrets=[alpha]) as beta:
        again = await beta.launched()
        assert (again.job, again.number) == (job.name, 2)
        late = await host.commit(launch, exit_code=9)
        assert not late.accepted
        await beta.started(again)
        await beta.commit(again)
        ended = await wire.ended(job.name)
    assert state(ended) == "SUCCEEDED"
    (retry,) = [event for event in await wire.events(job.name) if event.reason == "retry"]
    assert (retry.actor, retry.cause.code) == ("admin", common_pb2.CAUSE_CODE_DECLARED_GONE)
    assert (await declare_gone(wire, alpha)).declared_gone


async def test_a_cancelled_job_on_a_host_declared_gone_is_cancelled(wire: Wire, alpha: str) -> None:
    async with connected(wire, alpha, secrets=[alpha]) as host:
        job = await submit(wire, job_on(alpha))
        await host.started(await host.launched())
    await until_left(wire, alpha)
    await cancel(wire, job.name)
    await declare_gone(wire, alpha)
    assert state(await wire.ended(job.name)) == "CANCELLED"


async def test_operators_name_a_host_and_a_reason(wire: Wire) -> None:
    for call in (cordon(wire, "ghost"), declare_gone(wire, "ghost")):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND
    for name, reason, field in (("", "x", "name"), ("x", "", "reason"), ("x", "y" * 513, "reason")):
        refusal = await refused(declare_gone(wire, name, reason))
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


# -- a real host -----------------------------------------------------------------------------------


class Machine:
    """A second machine: a worker started by hand, with a keeper of its own."""

    def __init__(self, server: HatobaServer, name: str, data: Path) -> None:
        self.data = data
        token = server.data / "worker.token"
        flags = ("--server", server.address, "--data", str(data), "--token-file", str(token))
        with (data.parent / f"{name}.log").open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "hatoba", "worker", "start", *flags, "--name", name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,
            )

    @property
    def keeper(self) -> int:
        return int((self.data / "keeper.lock").read_text() or 0)

    def burn(self) -> None:
        """Keeper first, so that nothing is told; a real fire takes the jobs with it."""
        os.kill(self.worker.pid, 19)
        kill9(self.keeper)
        self.worker.kill()
        self.worker.wait()

    def close(self) -> None:
        if self.worker.poll() is None:
            self.worker.terminate()
            self.worker.wait()
        try:
            ask(self.data, [{"op": "shutdown", "stop_attempts": True, "grace": 0.0}])
        except OSError:
            return


async def test_a_real_host_that_burns_is_declared_gone(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    machines = []
    try:
        machines.append(await asyncio.to_thread(Machine, own_server, "one", tmp_path / "one"))
        await connects(own_wire, "one")
        wanted = shell("echo here; exec sleep 600", "long")
        wanted.backend = "hosts"
        wanted.retries.backoff.SetInParent()
        job = await submit(own_wire, wanted)
        await own_wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
        await asyncio.to_thread(machines[0].burn)
        await until_left(own_wire, "one")
        assert state(await own_wire.job(job.name)) == "RUNNING"
        machines.append(await asyncio.to_thread(Machine, own_server, "two", tmp_path / "two"))
        await connects(own_wire, "two")
        await declare_gone(own_wire, "one")
        await own_wire.watched(
            job.name, lambda job: state(job) == "RUNNING" and job.version > 6, 20
        )
        lost, again = await own_wire.attempts(job.name)
        assert (lost.host, lost.cause.code) == ("one", common_pb2.CAUSE_CODE_DECLARED_GONE)
        assert (again.host, again.number) == ("two", 2)
        await cancel(own_wire, job.name)
        assert state(await own_wire.ended(job.name)) == "CANCELLED"
    finally:
        for machine in machines:
            await asyncio.to_thread(machine.close)
        await until(lambda: not own_server.marked())


async def connects(wire: Wire, name: str) -> None:
    async def there() -> bool:
        return any(h.connected and h.name == f"hosts/{name}" for h in (await hosts(wire)).hosts)

    await eventually(there)
