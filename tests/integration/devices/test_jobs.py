"""Jobs on devices: a real server, the agent as it is shipped, its worker and keeper."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from command_line import CommandLine
from hand_device import NAME_SHOWN, HandDevice
from job_device import JobDevice
from waiting import eventually, until

from hatoba.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    common_pb2,
    device_pb2,
    job_pb2,
    runner_pb2,
    runner_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

pytestmark = pytest.mark.timeout(300)
Make = Callable[..., Awaitable[JobDevice]]
SUCCEEDED, FAILED = common_pb2.JOB_STATE_SUCCEEDED, common_pb2.JOB_STATE_FAILED
QUEUED, RUNNING = common_pb2.JOB_STATE_QUEUED, common_pb2.JOB_STATE_RUNNING
LOST, WELL = common_pb2.ATTEMPT_STATE_LOST, common_pb2.ATTEMPT_STATE_SUCCEEDED
DENIED = grpc.StatusCode.PERMISSION_DENIED
PATIENCE = 120.0
SHORT, FULL = 4, 10
"""Devices that come back at once."""
MENDED_WITHIN = 60.0
"""Seconds within which a device that comes back has the one run that it is to have."""


@pytest.fixture
async def make(yard: DeviceYard, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes devices, which are switched on."""
    made: list[JobDevice] = []

    async def one(name: str, *, on: bool = True, **labels: str) -> JobDevice:
        device = JobDevice(tmp_path / "devices", name)
        made.append(device)
        await device.enroll(yard.server.address, await yard.token(labels=labels))
        if on:
            await device.start()
        return device

    yield one
    for device in made:
        await device.close()


@pytest.fixture
def cli(yard: DeviceYard, tmp_path: Path) -> CommandLine:
    """As a person types it."""
    return CommandLine(yard.server, tmp_path)


# -- what is asked of the server ------------------------------------------------------------------


async def submit(yard: DeviceYard, script: str, *devices: str, **fields: object) -> job_pb2.Job:
    """A new job of a shell script, for these devices."""
    spec = job_pb2.JobSpec(name="collect", command=["sh", "-c", script], **fields)  # type: ignore[arg-type]
    spec.devices.names.extend(devices)
    return await submitted(yard, spec)


async def submitted(yard: DeviceYard, spec: job_pb2.JobSpec) -> job_pb2.Job:
    """A new job."""
    return await yard.wire.once(job_pb2.SubmitJobRequest(spec=spec), job_pb2.Job)


async def refusal(yard: DeviceYard, spec: job_pb2.JobSpec) -> str:
    """What a submit is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await submitted(yard, spec)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(refused.value.details())


async def shown(yard: DeviceYard, job: job_pb2.Job) -> job_pb2.Job:
    """A job as it is now."""
    return await yard.wire.once(job_pb2.GetJobRequest(name=job.name), job_pb2.Job)


async def tasks(yard: DeviceYard, job: job_pb2.Job) -> list[job_pb2.Task]:
    """Its tasks."""
    request = job_pb2.ListTasksRequest(job=job.name)
    return list((await yard.wire.once(request, job_pb2.ListTasksResponse)).tasks)


async def attempts(yard: DeviceYard, job: job_pb2.Job) -> list[job_pb2.Attempt]:
    """Its attempts."""
    request = job_pb2.ListAttemptsRequest(job=job.name)
    return list((await yard.wire.once(request, job_pb2.ListAttemptsResponse)).attempts)


async def until_state(
    yard: DeviceYard, job: job_pb2.Job, state: common_pb2.JobState.ValueType
) -> job_pb2.Job:
    """Wait until a job is like this."""

    async def holds() -> bool:
        return (await shown(yard, job)).state == state

    await eventually(holds, PATIENCE)
    return await shown(yard, job)


async def until_task(
    yard: DeviceYard, job: job_pb2.Job, index: int, state: common_pb2.JobState.ValueType
) -> job_pb2.Task:
    """Wait until a task of it is like this."""

    async def holds() -> bool:
        return (await tasks(yard, job))[index].state == state

    await eventually(holds, PATIENCE)
    return (await tasks(yard, job))[index]


async def until_explained(yard: DeviceYard, job: job_pb2.Job, words: str) -> job_pb2.Explanation:
    """Wait until it is said to wait for this reason."""

    async def found() -> job_pb2.Explanation | None:
        request = job_pb2.ExplainJobRequest(name=job.name)
        told = await yard.wire.once(request, job_pb2.Explanation)
        return told if words in told.message else None

    return await eventually(found, PATIENCE)


async def until_gone(yard: DeviceYard, device: str) -> None:
    """Wait until a device is taken for away."""

    async def holds() -> bool:
        return not (await yard.get(device)).connected

    await eventually(holds, PATIENCE)


async def until_connected(yard: DeviceYard, device: str) -> None:
    """Wait until a device has come."""

    async def holds() -> bool:
        return (await yard.get(device)).connected

    await eventually(holds, PATIENCE)


def waiting_for(path: Path) -> str:
    """A script that says where it runs, and then waits for a file."""
    return f"echo from $HATOBA_DEVICE; while [ ! -e {path} ]; do sleep 0.1; done; echo through"


# -- where it runs --------------------------------------------------------------------------------


async def test_a_job_runs_on_the_device_that_is_named(
    yard: DeviceYard, make: Make, cli: CommandLine
) -> None:
    device, other = await make("cam-1"), await make("cam-2")
    script = ("--no-code", "--name", "look", "--", "sh", "-c", "echo on $HATOBA_DEVICE")
    done = await cli("run", "--device", "cam-1", *script)
    assert (done.code, done.out) == (0, "on cam-1\n"), done.err
    told = await cli("jobs", "get", "look-1")
    assert "cam-1" in told.out
    await until(lambda: not device.workers() and not (device.jobs / "keeper.sock").exists())
    # Who never had a job has nothing of what runs them.
    assert not other.jobs.exists()
    hosts = await yard.wire.once(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
    assert list(hosts.hosts) == []


async def test_one_task_goes_to_each_that_matches_and_waits_for_who_is_away(
    yard: DeviceYard, make: Make, cli: CommandLine
) -> None:
    for name in ("b-cam", "a-cam"):
        await make(name, site="tokyo")
    away = await make("c-cam", on=False, site="tokyo")
    await make("d-cam", on=False, site="osaka")
    spec = job_pb2.JobSpec(name="collect", command=["sh", "-c", "echo $HATOBA_DEVICE"])
    spec.devices.selector.add(key="site", values=["tokyo"])
    job = await submitted(yard, spec)
    assert list(job.spec.devices.names) == ["a-cam", "b-cam", "c-cam"]
    assert job.spec.backend == "edge"
    for index in (0, 1):
        await until_task(yard, job, index, SUCCEEDED)
    told = await until_explained(yard, job, "Device c-cam is offline")
    assert told.reason == job_pb2.WAIT_REASON_DEVICE_AWAY
    assert "it starts when it connects" in told.message
    assert "Device c-cam is offline" in (await cli("explain", job.name)).out
    await away.start()
    await until_state(yard, job, SUCCEEDED)
    assert [one.device for one in await tasks(yard, job)] == ["a-cam", "b-cam", "c-cam"]
    assert {one.host: one.index for one in await attempts(yard, job)} == {
        "a-cam": 0,
        "b-cam": 1,
        "c-cam": 2,
    }
    logs = await cli("logs", "-f", job.name, "--device", "c-cam")
    assert logs.out == "c-cam\n"


# -- while the link is cut ------------------------------------------------------------------------


async def test_what_ends_without_a_link_is_told_with_the_next(
    yard: DeviceYard, make: Make, cli: CommandLine, tmp_path: Path
) -> None:
    device, go = await make("cam-1"), tmp_path / "go"
    job = await submit(yard, f"{waiting_for(go)}; echo kept > $HATOBA_OUTPUTS/found", "cam-1")
    await until_state(yard, job, RUNNING)
    device.cut()
    await until_gone(yard, "cam-1")
    go.touch()
    await until(lambda: not device.running("HATOBA_DEVICE=cam-1"))
    assert (await shown(yard, job)).state == RUNNING
    device.mend()
    await until_state(yard, job, SUCCEEDED)
    logs = await cli("logs", "-f", job.name)
    assert logs.out == "from cam-1\nthrough\n"
    await cli("jobs", "outputs", job.name, "out")
    assert (cli.work / "out" / "found").read_text() == "kept\n"
    assert len(await attempts(yard, job)) == 1


async def test_an_agent_that_dies_ends_no_job(yard: DeviceYard, make: Make, tmp_path: Path) -> None:
    device, go = await make("cam-1"), tmp_path / "go"
    job = await submit(yard, waiting_for(go), "cam-1")
    await until_state(yard, job, RUNNING)
    await device.kill()
    await until(lambda: not device.workers())
    await device.start()
    await until(device.workers)
    go.touch()
    await until_state(yard, job, SUCCEEDED)
    assert len(await attempts(yard, job)) == 1


async def test_a_worker_that_is_killed_is_begun_anew(
    yard: DeviceYard, make: Make, tmp_path: Path
) -> None:
    device, go = await make("cam-1"), tmp_path / "go"
    job = await submit(yard, waiting_for(go), "cam-1")
    await until_state(yard, job, RUNNING)
    before = device.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: set(device.workers()) - set(before))
    go.touch()
    await until_state(yard, job, SUCCEEDED)
    assert len(await attempts(yard, job)) == 1


async def test_what_runs_is_found_again_after_a_server_that_was_killed(
    yard: DeviceYard, make: Make, tmp_path: Path
) -> None:
    await make("cam-1")
    go = tmp_path / "go"
    job = await submit(yard, waiting_for(go), "cam-1")
    await until_state(yard, job, RUNNING)
    waits = await submit(yard, "true", "cam-1", hold=True)
    await yard.server.restart()
    go.touch()
    await until_state(yard, job, SUCCEEDED)
    assert len(await attempts(yard, job)) == 1
    release = job_pb2.UpdateJobRequest(name=waits.name)
    release.update_mask.paths.append("hold")
    await yard.wire.once(release, job_pb2.Job)
    await until_state(yard, waits, SUCCEEDED)


async def test_it_stops_itself_and_is_taken_for_lost(yard: DeviceYard, make: Make) -> None:
    device = await make("cam-1")
    spec = job_pb2.JobSpec(name="collect", command=["sh", "-c", "exec sleep 1000"])
    spec.devices.names.append("cam-1")
    spec.disconnect.stop_after.seconds = 2
    spec.disconnect.lost_after.seconds = 32
    spec.retries.infrastructure = 0
    job = await submitted(yard, spec)
    await until_state(yard, job, RUNNING)
    device.cut()
    await until(lambda: not device.running("HATOBA_DEVICE=cam-1"))
    ended = await until_state(yard, job, FAILED)
    assert ended.cause.code == common_pb2.CAUSE_CODE_DISCONNECTED
    assert [one.state for one in await attempts(yard, job)] == [LOST]


def alone(place: Path) -> str:
    """A script that tells whether another run of it is there, and then waits for a file."""
    place.mkdir(exist_ok=True)
    own = f"{place}/$HATOBA_DEVICE"
    return (
        f"exec 9> {own}.lock; flock -n 9 || touch {place}/two; echo $$ >> {own}.runs; "
        f"while [ ! -e {place}/go ]; do sleep 0.1 9>&-; done"
    )


def runs(place: Path, device: str) -> int:
    """How often it began on a device."""
    path = place / f"{device}.runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def until_lost(yard: DeviceYard, job: job_pb2.Job, count: int) -> None:
    """Wait until so many attempts are taken for lost."""

    async def holds() -> bool:
        return [one.state for one in await attempts(yard, job)].count(LOST) == count

    await eventually(holds, PATIENCE)


def once_more(script: str, *devices: str, stop_after: int = 2) -> job_pb2.JobSpec:
    """A job that is begun anew once it is taken for lost."""
    spec = job_pb2.JobSpec(name="collect", command=["sh", "-c", script])
    spec.devices.names.extend(devices)
    spec.disconnect.stop_after.seconds = stop_after
    spec.disconnect.lost_after.seconds = stop_after + 30
    spec.retries.infrastructure = 1
    return spec


@pytest.mark.parametrize("frozen", [False, True])
async def test_one_that_comes_back_has_one_run_and_not_two(
    yard: DeviceYard, make: Make, tmp_path: Path, *, frozen: bool
) -> None:
    """Also where nothing of the device could stop the run: then that is ended before the other
    begins.
    """
    device, place = await make("cam-1"), tmp_path / "place"
    job = await submitted(yard, once_more(alone(place), "cam-1"))
    await until(lambda: runs(place, "cam-1") == 1)
    device.cut()
    stopped = await asyncio.to_thread(device.workers) if frozen else []
    signalled(stopped, signal.SIGSTOP)
    await until_lost(yard, job, 1)
    assert bool(await asyncio.to_thread(device.running, "HATOBA_DEVICE=cam-1")) == frozen
    device.mend()
    signalled(stopped, signal.SIGCONT)
    await until(lambda: runs(place, "cam-1") == 2, MENDED_WITHIN)
    (place / "go").touch()
    await until_state(yard, job, SUCCEEDED)
    assert [one.state for one in await attempts(yard, job)] == [LOST, WELL]
    assert runs(place, "cam-1") == 2
    assert not (place / "two").exists()


def signalled(pids: Iterable[int], number: signal.Signals) -> None:
    """Send this to all of them."""
    for pid in pids:
        os.kill(pid, number)


@pytest.mark.slow
async def test_of_many_that_come_back_each_has_one_run(
    yard: DeviceYard, make: Make, tmp_path: Path, *, full_round: bool
) -> None:
    size, place = FULL if full_round else SHORT, tmp_path / "place"
    names = [f"cam-{number}" for number in range(size)]
    devices = [await make(name) for name in names]
    # Long enough for all that begin at once.
    job = await submitted(yard, once_more(alone(place), *names, stop_after=20))
    await until(lambda: all(runs(place, name) for name in names))
    for device in devices:
        device.cut()
    await until_lost(yard, job, len(devices))
    for device in random.Random(37).sample(devices, len(devices)):
        device.mend()
    await until(lambda: all(runs(place, name) == 2 for name in names), MENDED_WITHIN)
    (place / "go").touch()
    await until_state(yard, job, SUCCEEDED)
    assert not (place / "two").exists()
    found = [(one.host, one.state) for one in await attempts(yard, job)]
    assert sorted(found) == sorted((name, state) for name in names for state in (LOST, WELL))
    await until(
        lambda: not any(device.running(f"HATOBA_DEVICE={device.name}") for device in devices)
    )


# -- devices that are gone for good ---------------------------------------------------------------


async def test_what_was_for_a_device_that_was_revoked_fails(yard: DeviceYard, make: Make) -> None:
    await make("cam-1")
    await make("cam-2", on=False)
    job = await submit(yard, "exec sleep 1000", "cam-1", "cam-2")
    await until_task(yard, job, 0, RUNNING)
    for name in ("cam-1", "cam-2"):
        await yard.wire.once(device_pb2.RevokeDeviceRequest(name=name), device_pb2.Device)
    ended = await until_state(yard, job, FAILED)
    assert ended.cause.message == "Device 'cam-1' was revoked, and it runs nowhere else."
    causes = [one.cause.message for one in await tasks(yard, job)]
    assert causes[1] == "Device 'cam-2' was revoked, and it runs nowhere else."
    assert [one.state for one in await attempts(yard, job)] == [LOST]


async def test_a_device_that_is_decommissioned_ends_its_jobs(yard: DeviceYard, make: Make) -> None:
    device = await make("cam-1")
    job = await submit(yard, "exec sleep 1000", "cam-1")
    await until_state(yard, job, RUNNING)
    assert "has the job collect-1" in (await yard.get("cam-1")).explanation
    await yard.wire.once(device_pb2.DecommissionDeviceRequest(name="cam-1"), device_pb2.Device)
    ended = await until_state(yard, job, FAILED)
    assert "is being decommissioned" in ended.cause.message
    await until(lambda: not device.running("HATOBA_DEVICE=cam-1"))
    await until(lambda: not device.jobs.exists())

    async def forgotten() -> bool:
        told = await yard.wire.once(device_pb2.ListDevicesRequest(), device_pb2.ListDevicesResponse)
        return not told.devices

    await eventually(forgotten)


# -- what is refused ------------------------------------------------------------------------------


async def test_what_cannot_be_is_refused_with_what_to_do(yard: DeviceYard) -> None:
    await yard.device("cam-1")
    await yard.device("door")
    await yard.wire.once(device_pb2.RevokeDeviceRequest(name="door"), device_pb2.Device)
    spec = job_pb2.JobSpec(name="collect", command=["true"])
    spec.devices.names.append("cam-7")
    assert "did you mean 'cam-1'" in await refusal(yard, spec)
    spec.devices.names[:] = ["door"]
    assert "was revoked" in await refusal(yard, spec)
    spec.devices.names[:] = ["cam-1"]
    spec.devices.selector.add(key="site", values=["tokyo"])
    assert "one of both" in await refusal(yard, spec)
    spec.devices.ClearField("names")
    spec.devices.selector[0].values[:] = ["mars"]
    assert "matches no device" in await refusal(yard, spec)
    spec.devices.ClearField("selector")
    spec.devices.names[:] = ["cam-1"]
    spec.array.size = 2
    assert "one task on each" in await refusal(yard, spec)
    spec.ClearField("array")
    spec.environment.image = "busybox"
    assert "use no image" in await refusal(yard, spec)
    spec.ClearField("environment")
    spec.resources.memory_bytes = 1 << 40
    assert "more than device 'cam-1' has" in await refusal(yard, spec)
    spec.ClearField("resources")
    spec.backend = "mock"
    assert "must be 'edge'" in await refusal(yard, spec)
    spec.ClearField("devices")
    spec.backend = "edge"
    assert "name their devices" in await refusal(yard, spec)


async def test_a_device_speaks_for_no_other(yard: DeviceYard, make: Make, tmp_path: Path) -> None:
    device, go = await make("cam-1"), tmp_path / "go"
    job = await submit(yard, waiting_for(go), "cam-1")
    await until_state(yard, job, RUNNING)
    (attempt,) = await attempts(yard, job)
    hostile = await yard.device("mallory")
    options = [(NAME_SHOWN, hostile.identity.server_name)]
    address, shows = hostile.identity.address, hostile.credentials()
    async with grpc.aio.secure_channel(address, shows, options) as channel:
        assert await _connected_as(channel, hostile, "cam-1") is DENIED
        assert await _pushed(channel, hostile, attempt) is DENIED
        assert await _uploaded(channel, hostile) is DENIED
        await _committed(channel, hostile, attempt)

    async def kept() -> bool:
        counts = [(await yard.events(name)).count("denied") for name in ("mallory", "cam-1")]
        # It showed another's name, said what another wrote, how it ended; and had no job.
        return counts == [4, 3]

    await eventually(kept)
    assert (await shown(yard, job)).state == RUNNING
    assert device.workers()
    go.touch()
    await until_state(yard, job, SUCCEEDED)


async def _code(call: Any) -> grpc.StatusCode:
    with suppress(grpc.aio.AioRpcError):
        await call.read()
    code = await call.code()
    assert isinstance(code, grpc.StatusCode)
    return code


async def _connected_as(
    channel: grpc.aio.Channel, hostile: HandDevice, name: str
) -> grpc.StatusCode:
    """It opens another's stream for jobs."""
    call = worker_pb2_grpc.WorkerServiceStub(channel).Connect(metadata=hostile.metadata())
    await call.write(worker_pb2.WorkerServiceConnectRequest(items=[_hello(name)]))
    return await _code(call)


def _hello(name: str) -> worker_pb2.WorkerItem:
    hello = worker_pb2.WorkerHello(
        host=name, incarnation="incarnation", boot_id="boot", protocol=1, version="1", slots=8
    )
    return worker_pb2.WorkerItem(hello=hello)


async def _pushed(
    channel: grpc.aio.Channel, hostile: HandDevice, attempt: job_pb2.Attempt
) -> grpc.StatusCode:
    """It says what another's job wrote."""
    call = runner_pb2_grpc.RunnerServiceStub(channel).PushLogs(metadata=hostile.metadata())
    piece = runner_pb2.PushLogsRequest(
        attempt=attempt.external_name, fence=attempt.fence, stream="stdout", data=b"lies\n"
    )
    await call.write(piece)
    return await _code(call)


async def _uploaded(channel: grpc.aio.Channel, hostile: HandDevice) -> grpc.StatusCode:
    """It has no job, and brings something out."""
    stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
    request = artifact_pb2.FindMissingChunksRequest(sha256=[bytes(32)])
    call = stub.FindMissingChunks(request, metadata=hostile.metadata())
    with suppress(grpc.aio.AioRpcError):
        await call
    code = await call.code()
    assert isinstance(code, grpc.StatusCode)
    return code


async def _committed(
    channel: grpc.aio.Channel, hostile: HandDevice, attempt: job_pb2.Attempt
) -> None:
    """On its own stream it says how another's job ended."""
    call = worker_pb2_grpc.WorkerServiceStub(channel).Connect(metadata=hostile.metadata())
    commit = runner_pb2.CommitAttemptRequest(
        attempt=attempt.external_name, fence=attempt.fence, kind=runner_pb2.EXIT_KIND_EXITED
    )
    complete = worker_pb2.InventoryComplete()
    items = [
        _hello(hostile.name),
        worker_pb2.WorkerItem(inventory_complete=complete),
        worker_pb2.WorkerItem(commit=commit),
        worker_pb2.WorkerItem(gone=worker_pb2.AttemptGone(attempt=attempt.external_name)),
    ]
    await call.write(worker_pb2.WorkerServiceConnectRequest(items=items))
    assert isinstance(await call.read(), worker_pb2.WorkerServiceConnectResponse)
    call.cancel()
