"""Jobs that give way, to others or to a drain: they save, end, and go on from there."""

from __future__ import annotations

from pathlib import Path

from server_process import HatobaServer
from waiting import until
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, worker_pb2

from .conftest import SIZE, explained, found, gang, seen, spec


async def test_a_drained_host_gives_its_jobs_back(wire: Wire, marks: Path) -> None:
    job = await wire.submit(spec(marks, "saves"))
    await seen(marks, "began-*", 1)
    request = worker_pb2.CordonHostRequest(
        name="host-1", cordoned=True, drain=True, reason="new fans"
    )
    host = await wire.call(request, worker_pb2.Host)
    assert (host.cordoned, host.draining, host.cordon_reason) == (True, True, "new fans")
    await seen(marks, "saved", 1)
    await wire.in_state(job.name, common_pb2.JOB_STATE_QUEUED)
    waits = await explained(wire, job.name)
    assert waits.reason != job_pb2.WAIT_REASON_UNSPECIFIED
    assert await found(marks, "alive-*") == []
    await wire.call(worker_pb2.CordonHostRequest(name="host-1"), worker_pb2.Host)
    ended = await wire.ended(job.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": 1}
    (task,) = (await wire.tasks(job.name))[:1]
    assert task.preemptions == 0
    notes = [event.note for event in await wire.events(job.name) if event.reason == "drain"]
    assert len(notes) == 1
    assert notes[0].startswith("Host 'host-1' was drained by ")
    assert "new fans; it has 5 s to save a checkpoint." in notes[0]
    assert await found(marks, "went-on")


async def test_a_job_of_higher_priority_takes_the_place_of_one_that_saves_first(
    wire: Wire, marks: Path
) -> None:
    victim = spec(marks, "saves", priority=0)
    victim.resources.cpus = SIZE
    low = await wire.submit(victim)
    await seen(marks, "began-*", 1)
    high = await wire.submit(spec(marks, "high", priority=100))
    ended = await wire.ended(high.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": 1}
    assert await found(marks, "saved")
    ended = await wire.ended(low.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": 1}
    assert await found(marks, "went-on")
    (task,) = await wire.tasks(low.name)
    # The checkpoint came before the end, which is charged after it.
    assert task.preemptions == 1
    events = await wire.events(low.name)
    (note,) = [event.note for event in events if event.reason == "preempt"]
    assert note.startswith(f"Its place was taken for default/{high.name.rpartition('/')[2]}: ")
    assert note.endswith("it has 5 s to save a checkpoint.")
    first = (await wire.attempts(low.name))[0]
    assert first.state == common_pb2.ATTEMPT_STATE_PREEMPTED
    assert first.cause.code == common_pb2.CAUSE_CODE_PREEMPTED


async def test_a_job_that_nobody_may_displace_keeps_its_place(wire: Wire, marks: Path) -> None:
    holder = spec(marks, "block", priority=0)
    holder.resources.cpus = SIZE
    holder.preemption.never = True
    low = await wire.submit(holder)
    await seen(marks, "block", 1)
    high = await wire.submit(spec(marks, "high", priority=100))
    why = await explained(wire, high.name)
    assert why.state == common_pb2.JOB_STATE_QUEUED
    assert why.preempts == []
    (marks / "go").touch()
    assert (await wire.ended(low.name)).state == common_pb2.JOB_STATE_SUCCEEDED
    assert (await wire.ended(high.name)).state == common_pb2.JOB_STATE_SUCCEEDED
    assert "preempt" not in {event.reason for event in await wire.events(low.name)}


async def test_a_gang_gives_way_as_a_whole_and_begins_anew(wire: Wire, marks: Path) -> None:
    wanted = gang(marks, "linger")
    wanted.preemption.grace.SetInParent()
    low = await wire.submit(wanted)
    await seen(marks, "began-1-*", SIZE)
    high = await wire.submit(spec(marks, "high", priority=100))
    assert (await wire.ended(high.name)).state == common_pb2.JOB_STATE_SUCCEEDED
    ended = await wire.ended(low.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": SIZE}
    assert ended.generation == 2
    assert await found(marks, "overlap-*") == []
    assert {task.preemptions for task in await wire.tasks(low.name)} == {1}


async def test_a_restart_of_the_server_changes_nothing_about_the_time_to_save(
    server: HatobaServer, wire: Wire, marks: Path
) -> None:
    job = await wire.submit(spec(marks, "saves-late"))
    await seen(marks, "began-*", 1)
    request = worker_pb2.CordonHostRequest(name="host-1", cordoned=True, drain=True)
    await wire.call(request, worker_pb2.Host)
    await seen(marks, "asked", 1)
    await server.restart()
    (marks / "go").touch()
    await seen(marks, "saved", 1)
    await wire.in_state(job.name, common_pb2.JOB_STATE_QUEUED)
    await wire.call(worker_pb2.CordonHostRequest(name="host-1"), worker_pb2.Host)
    assert (await wire.ended(job.name)).state == common_pb2.JOB_STATE_SUCCEEDED
    assert await found(marks, "went-on")


async def test_without_the_server_for_too_long_it_ends_by_itself_and_says_so_later(
    server: HatobaServer, wire: Wire, marks: Path
) -> None:
    wanted = spec(marks, "block")
    wanted.disconnect.stop_after.FromSeconds(1)
    wanted.disconnect.lost_after.FromSeconds(3600)
    wanted.retries.infrastructure = 1
    wanted.retries.backoff.SetInParent()
    job = await wire.submit(wanted)
    await seen(marks, "block", 1)
    await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await server.kill()
    await until(lambda: not server.marked())
    (marks / "go").touch()
    await server.start()
    ended = await wire.ended(job.name)
    assert ended.state == common_pb2.JOB_STATE_SUCCEEDED
    first, second = await wire.attempts(job.name)
    assert first.cause.code == common_pb2.CAUSE_CODE_DISCONNECTED
    assert first.cause.message == (
        "Its runner ended it, which was without the server for too long: 1 s."
    )
    assert second.state == common_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_while_the_server_is_there_it_goes_on(wire: Wire, marks: Path) -> None:
    wanted = spec(marks, "block")
    wanted.disconnect.stop_after.FromSeconds(3)
    wanted.disconnect.lost_after.FromSeconds(3600)
    job = await wire.submit(wanted)
    await seen(marks, "block", 1)
    # Another that takes its time shows that more than the three seconds have passed.
    slow = spec(marks, "small")
    slow.command[:] = ["/bin/sleep", "7"]
    await wire.ended((await wire.submit(slow)).name)
    (marks / "go").touch()
    assert (await wire.ended(job.name)).state == common_pb2.JOB_STATE_SUCCEEDED
    assert len(await wire.attempts(job.name)) == 1
