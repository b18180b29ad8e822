"""The SDK's calls that no other suite makes, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from server_process import HatobaServer, running_server
from wire import Wire

from hatoba.aio import AsyncClient
from hatoba.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidSpec, NotFound
from hatoba.v1 import admin_pb2, common_pb2, job_pb2

from .conftest import configure


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server for one test alone: operators' calls are about all of it."""
    async with running_server(configure(tmp_path / "data"), worker=False) as one:
        yield one


@pytest.fixture
async def client(house: HatobaServer) -> AsyncIterator[AsyncClient]:
    """An open client of it, in a project of its own."""
    token = str(house.data / "admin.token")
    # grpc joins a thread when the last channel is let go of; the client's is not the last.
    async with Wire(house) as wire:
        await wire.once(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
        async with AsyncClient(house.address, token_file=token, project="lab") as one:
            yield one


async def test_jobs_are_planned_explained_moved_and_ended_in_part(client: AsyncClient) -> None:
    await client.queues.create("night")
    planned = await client.plan("true", code=None, backend="mock")
    assert (planned.queue, planned.job) == ("default", "")
    assert await client.jobs() == []
    job = await client.submit("true", array=10, hold=True, code=None, backend="mock")
    assert (await job.explain()).reason == job_pb2.WAIT_REASON_HELD
    read = job.record.etag
    moved = await job.update(priority=7, queue="night", etag=read)
    assert (moved.spec.priority, moved.spec.queue) == (7, "night")
    with pytest.raises(Aborted):
        await job.update(priority=8, etag=read)
    ended = await job.cancel(indices="0-3")
    assert ended.outcome == job_pb2.CANCEL_OUTCOME_CANCELLED
    assert (await job.refresh()).counts.by_state["CANCELLED"] == 4
    await job.release()
    await job.wait(60)
    again = await job.rerun(failed_only=True)
    assert again.record.inherited == "4-9"
    with pytest.raises(NotFound):
        await client.cancel(queue="nigth")


async def test_a_queue_from_its_making_to_its_end(client: AsyncClient) -> None:
    queues = client.queues
    quota = common_pb2.Resources(cpus=4)
    made = await queues.create("gpu", weight=2, quota=quota)
    assert (await queues.create("gpu", weight=2, quota=quota)).etag == made.etag
    with pytest.raises(AlreadyExists):
        await queues.create("gpu")
    await queues.create("low", parent="gpu")
    changed = await queues.update("gpu", max_running=3, quota=common_pb2.Resources())
    assert (changed.max_running, changed.weight) == (3, 2)
    assert not changed.quota.cpus
    assert (await queues.cordon("gpu", reason="moving")).cordon_reason == "moving"
    job = await client.submit("true", queue="low", hold=True, code=None, backend="mock")
    await job.release()
    assert (await job.explain()).reason == job_pb2.WAIT_REASON_QUEUE_CORDONED
    usage = await queues.usage("low")
    assert (usage.cordoned, usage.jobs, usage.parent) == (True, 1, "gpu")
    names = [one.queue.rpartition("/")[2] for one in await queues.usages()]
    assert names == ["default", "gpu", "low"]
    with pytest.raises(FailedPrecondition):
        await queues.delete("low")
    assert not (await queues.uncordon("gpu")).cordoned
    await job.wait(60)
    await queues.delete("low")
    await queues.delete("gpu")
    assert [one.name.rpartition("/")[2] for one in await queues.list()] == ["default"]


async def test_a_webhook_from_its_making_to_its_end(client: AsyncClient) -> None:
    hooks = client.webhooks
    # Nobody listens on port 9.
    made = await hooks.create("ops", "http://127.0.0.1:9/x", reasons=["retry", "end"])
    assert len(made.signing_key) == 64
    changed = await hooks.update("ops", paused=True, jobs_only=True, reasons=[])
    assert (changed.paused, changed.jobs_only, list(changed.reasons)) == (True, True, [])
    assert (await hooks.get("ops")).url == "http://127.0.0.1:9/x"
    assert [one.name for one in await hooks.list()] == [made.webhook.name]
    answer = await hooks.test("ops")
    assert (answer.status, bool(answer.error)) == (0, True)
    with pytest.raises(InvalidSpec, match="nothing to change"):
        await hooks.update("ops")
    await hooks.delete("ops")
    assert await hooks.list() == []


async def test_what_operators_do(client: AsyncClient, tmp_path: Path) -> None:
    operations = client.operations
    assert (await operations.overview()).server.phase == "serving"
    assert "mock" in {one.name for one in (await operations.backends()).backends}
    cordoned = await operations.cordon_backend("mock", reason="new disks")
    assert (cordoned.cordoned, cordoned.cordon_reason) == (True, "new disks")
    assert not (await operations.uncordon_backend("mock")).cordoned
    assert await operations.hosts() == []
    with pytest.raises(NotFound):
        await operations.cordon_host("nowhere", drain=True)
    backup = await operations.back_up(str(tmp_path / "copy"))
    assert [one.name for one in await operations.backups()] == [backup.name]
    await operations.delete_backup(backup.name)
    assert await operations.backups() == []
    assert await operations.check_store() == []
    with pytest.raises(FailedPrecondition, match="nothing to adopt"):
        await operations.adopt_store(dry_run=True)
