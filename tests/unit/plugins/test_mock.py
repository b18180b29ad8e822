"""What `mock` can play, beside what the conformance kit asks of every backend."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2
from opened_backend import launch, observe, opened, ref, request, single, spec

from hatoba_plugins import errors
from hatoba_plugins.backends.mock import (
    FirstClaimWins,
    MockOptions,
    MockType,
    MockWorld,
    read_ledger,
)
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    Exit,
    ExitKind,
    Found,
    HealthStatus,
    Launched,
    NotYet,
    Observation,
    Phase,
    Refused,
    Released,
    Synced,
    Unsure,
)


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ({"exit_code": 4}, Exit(ExitKind.EXITED, 4)),
        ({"outcome": "signaled"}, Exit(ExitKind.SIGNALED, signal=9)),
        ({"outcome": "out_of_memory"}, Exit(ExitKind.OUT_OF_MEMORY)),
        ({"outcome": "preempted", "message": "spot"}, Exit(ExitKind.PREEMPTED, message="spot")),
        ({"outcome": "failed"}, Exit(ExitKind.FAILED)),
        ({"outcome": "lost"}, Exit(ExitKind.LOST)),
        ({"outcome": "gone"}, None),
    ],
)
async def test_it_ends_as_its_script_says(script: dict[str, Any], end: Exit | None) -> None:
    clock = FakeClock()
    async with opened(MockType(), clock) as (_, jobs):
        await launch(jobs, "a", run_for=3.0, **script)
        await clock.advance(2.9)
        assert (await observe(jobs, "a")).phase is Phase.RUNNING
        await clock.advance(0.1)
        seen = await observe(jobs, "a")
    assert seen.phase is (Phase.GONE if end is None else Phase.ENDED)
    assert (seen.exit, seen.exists) == (end, end is not None)


async def test_it_goes_through_the_phases_in_their_time() -> None:
    clock = FakeClock()
    async with opened(MockType(), clock) as (_, jobs):
        await launch(jobs, "a", waits_for=1.0, starts_in=2.0, run_for=3.0)
        phases = []
        for _ in range(7):
            phases.append((await observe(jobs, "a")).phase.name)
            await clock.advance(1.0)
    assert phases == ["WAITING", *["STARTING"] * 2, *["RUNNING"] * 3, "ENDED"]


async def test_a_run_longer_than_its_timeout_ends_by_it() -> None:
    clock = FakeClock()
    wanted = spec(mock={"run_for": 100.0})
    wanted.timeout.CopyFrom(duration_pb2.Duration(seconds=5))
    async with opened(MockType(), clock) as (_, jobs):
        await jobs.launch(single(request("a", wanted)))
        await clock.advance(5.0)
        assert (await observe(jobs, "a")).exit == Exit(ExitKind.RUN_TIMEOUT)


@pytest.mark.parametrize("error", errors.BackendError.__subclasses__())
async def test_a_launch_is_refused_as_often_as_its_script_says(
    error: type[errors.BackendError],
) -> None:
    async with opened(MockType(), FakeClock()) as (_, jobs):
        script = {"launch_fault": "refused", "error": error.__name__, "fault_times": 2}
        for _ in range(2):
            outcome = await launch(jobs, "a", **script)
            assert isinstance(outcome, Refused)
            assert type(outcome.error) is error
        assert isinstance(await launch(jobs, "a", **script), Launched)


async def test_a_reply_that_is_lost_is_ambiguous_and_the_object_is_there() -> None:
    async with opened(MockType(), FakeClock()) as (backend, jobs):
        assert isinstance(await launch(jobs, "a", launch_fault="reply_lost"), Ambiguous)
        assert isinstance((await backend.find([ref("a")]))[0], Found)


async def test_a_launch_that_hangs_never_happens() -> None:
    clock, world = FakeClock(), MockWorld()
    async with opened(MockType(world), clock) as (backend, jobs):
        async with asyncio.TaskGroup() as tasks:
            hanging = tasks.create_task(launch(jobs, "a", launch_fault="hangs"))
            await clock.advance(100.0)
            assert not hanging.done()
            hanging.cancel()
        assert await backend.find([ref("a")]) == [Absent("a")]
        assert world.count("create", "a") == 0


async def test_a_launch_that_lands_late_is_found_in_the_end() -> None:
    clock = FakeClock()
    async with opened(MockType(), clock, settles_after=30.0) as (backend, jobs):
        async with asyncio.TaskGroup() as tasks:
            script = {"launch_fault": "lands_late", "fault_seconds": 10.0, "run_for": 99.0}
            late = tasks.create_task(launch(jobs, "a", **script))
            await clock.advance(1.0)
            late.cancel()
        assert await backend.find([ref("a")]) == [Unsure("a", 29.0)]
        await clock.advance(9.0)
        assert isinstance((await backend.find([ref("a")]))[0], Found)


async def test_a_full_world_refuses_or_lets_wait() -> None:
    clock = FakeClock()
    async with opened(MockType(), clock, capacity=1) as (_, jobs):
        await launch(jobs, "a", run_for=5.0)
        outcome = await launch(jobs, "b")
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, errors.NoCapacity)
    async with opened(MockType(), clock, capacity=1, elastic=True) as (_, jobs):
        await launch(jobs, "a", run_for=5.0)
        await launch(jobs, "b", run_for=5.0)
        await clock.advance(4.0)
        assert (await observe(jobs, "b")).phase is Phase.WAITING
        await clock.advance(1.0)
        assert (await observe(jobs, "b")).phase is Phase.RUNNING


async def test_release_is_answered_not_yet_so_often() -> None:
    clock = FakeClock()
    async with opened(MockType(), clock) as (_, jobs):
        await launch(jobs, "a", release_not_yet=2)
        await clock.advance(1.0)
        answers = [(await jobs.release([ref("a")]))[0] for _ in range(3)]
    assert [type(answer) for answer in answers] == [NotYet, NotYet, Released]


async def test_out_of_reach_it_tells_nothing_and_then_a_gap() -> None:
    clock, world = FakeClock(), MockWorld()
    async with opened(MockType(world), clock) as (backend, jobs):
        await launch(jobs, "a", run_for=5.0)
        await clock.advance(1.0)
        watch = jobs.watch()
        while not isinstance(await anext(watch), Synced):
            pass
        world.cut(10.0)
        outcome = await launch(jobs, "b")
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, errors.Retry)
        assert (await backend.health()).status is HealthStatus.UNHEALTHY
        await clock.advance(10.0)
        assert type(await anext(watch)).__name__ == "Gap"
        assert (await observe(jobs, "a")).phase is Phase.ENDED


async def test_one_may_be_out_of_reach_by_its_script() -> None:
    clock = FakeClock()
    async with opened(MockType(), clock) as (_, jobs):
        await launch(jobs, "a", run_for=5.0, unreachable_for=10.0)
        await launch(jobs, "b", run_for=5.0)
        await clock.advance(6.0)
        seen = await observe(jobs, "a")
        assert (seen.reachable, seen.phase, seen.exit) == (False, Phase.RUNNING, None)
        assert (await observe(jobs, "b")).phase is Phase.ENDED
        await clock.advance(4.0)
        assert (await observe(jobs, "a")).phase is Phase.ENDED


async def test_it_may_be_deleted_by_its_script() -> None:
    clock = FakeClock()
    async with opened(MockType(), clock) as (_, jobs):
        await launch(jobs, "a", run_for=50.0, deleted_after=2.0)
        await clock.advance(2.0)
        assert await observe(jobs, "a") == Observation("a", Phase.GONE, exists=False)


async def test_without_a_runner_a_doubled_run_starts_twice_and_the_ledger_tells() -> None:
    clock, world = FakeClock(), MockWorld()
    async with opened(MockType(world), clock) as (_, jobs):
        await launch(jobs, "a", doubled_run=True)
        await clock.advance(1.0)
    assert world.count("start", "a") == 2


async def test_with_a_runner_the_loser_is_seen_first_and_once() -> None:
    clock, world = FakeClock(), MockWorld(runner=FirstClaimWins())
    async with opened(MockType(world), clock) as (backend, jobs):
        assert backend.capabilities().runner == "image"
        await launch(jobs, "a", doubled_run=True, run_for=5.0)
        await clock.advance(1.0)
        first, second = await observe(jobs, "a"), await observe(jobs, "a")
    assert first.exit is not None
    assert (first.exit.code, second.phase) == (83, Phase.RUNNING)
    assert (world.count("claim", "a"), world.count("start", "a")) == (2, 1)


class DeadRunner(FirstClaimWins):
    """Breaks where it is asked."""

    async def claim(self, name: str, fence: int, nonce: str) -> bool:
        raise OSError("no route to the scheduler")


async def test_a_runner_that_breaks_is_the_end_of_its_attempt_only() -> None:
    clock, world = FakeClock(), MockWorld(runner=DeadRunner())
    async with opened(MockType(world), clock) as (_, jobs):
        await launch(jobs, "a")
        await clock.advance(1.0)
        seen = await observe(jobs, "a")
        assert seen.exit is not None
        assert (seen.exit.kind, "no route" in seen.exit.message) == (ExitKind.FAILED, True)
        assert isinstance(await launch(jobs, "b"), Launched)


async def test_a_muted_watch_stays_open_and_says_nothing() -> None:
    clock, world = FakeClock(), MockWorld()
    async with opened(MockType(world), clock) as (_, jobs):
        watch = jobs.watch()
        while not isinstance(await anext(watch), Synced):
            pass
        world.mute_watches()
        await launch(jobs, "a")
        await clock.advance(1.0)
        world.mute_watches(False)
        await launch(jobs, "b")
        told = await anext(watch)
    assert isinstance(told, Observation)
    assert told.name == "b"


# -- the ledger ----------------------------------------------------------------------------------


async def until_phase(jobs: Any, clock: FakeClock, name: str, phase: Phase) -> None:
    """Let the fake clock and the ledger's thread go on until it is so far."""
    async with asyncio.timeout(10.0):
        while True:
            if (await observe(jobs, name)).phase is phase:
                return
            await clock.advance(0.01)


async def test_the_ledger_tells_all_that_happened(tmp_path: Path) -> None:
    path, clock = tmp_path / "deep" / "ledger.jsonl", FakeClock()
    async with opened(MockType(), clock, ledger=str(path)) as (_, jobs):
        await launch(jobs, "a", run_for=1.0)
        await until_phase(jobs, clock, "a", Phase.ENDED)
        await jobs.release([ref("a")])
        await jobs.stop([ref("b")], 1.0)
    entries = await asyncio.to_thread(read_ledger, path)
    told = [(entry.event, entry.name) for entry in entries]
    assert told == [
        ("create", "a"),
        ("start", "a"),
        ("end", "a"),
        ("release", "a"),
        ("stop", "b"),
    ]


async def test_an_answered_launch_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    async with opened(MockType(), FakeClock(), ledger=str(path)) as (_, jobs):
        for number in range(20):
            await launch(jobs, f"a-{number}", run_for=100.0)
            entries = await asyncio.to_thread(read_ledger, path)
            assert sum(entry.event == "create" for entry in entries) == number + 1


async def test_another_mock_goes_on_from_the_ledger(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    async with opened(MockType(), clock, ledger=str(path)) as (_, jobs):
        await launch(jobs, "running", run_for=10.0, exit_code=5)
        await launch(jobs, "ended")
        await launch(jobs, "stopping", run_for=99.0, on_stop="ignore")
        await jobs.stop([ref("never")], 0.0)
        for name in ("running", "stopping"):
            await until_phase(jobs, clock, name, Phase.RUNNING)
        await jobs.stop([ref("stopping")], 4.0)
        await until_phase(jobs, clock, "ended", Phase.ENDED)
    # A crash in the middle of a write leaves half a line.
    with path.open("ab") as file:
        file.write(b'{"event": "rel')
    await clock.advance(2.0)
    async with opened(MockType(), clock, ledger=str(path)) as (backend, jobs):
        assert (await observe(jobs, "running")).phase is Phase.RUNNING
        assert (await observe(jobs, "ended")).phase is Phase.ENDED
        assert (await observe(jobs, "stopping")).phase is Phase.RUNNING
        assert isinstance(await launch(jobs, "never"), Refused)
        assert isinstance(await launch(jobs, "running", run_for=10.0), Launched)
        await until_phase(jobs, clock, "stopping", Phase.ENDED)
        await until_phase(jobs, clock, "running", Phase.ENDED)
        assert (await observe(jobs, "running")).exit == Exit(ExitKind.EXITED, 5)
        assert len([one async for one in backend.list_owned("c")]) == 3
    entries = await asyncio.to_thread(read_ledger, path)
    starts = [entry.name for entry in entries if entry.event == "start"]
    assert sorted(starts) == ["ended", "running", "stopping"]


# -- options and scripts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("capacity", 0),
        ("cpus", -1.0),
        ("memory", -1),
        ("gpus", 2_000),
        ("settles_after", -1.0),
        ("elastic", 1),
        ("ledger", 5),
        ("lacks", "gpus"),
        ("lacks", ["wings"]),
        ("lacks", [["gpus"]]),
    ],
)
def test_wrong_options_are_named(option: str, value: object) -> None:
    assert [problem.field for problem in MockOptions.check({option: value})] == [option]


@pytest.mark.parametrize(
    ("script", "field"),
    [
        ("run", "backend_options.mock"),
        ({"run_four": 1}, "backend_options.mock.run_four"),
        ({"run_for": "1"}, "backend_options.mock.run_for"),
        ({"run_for": -1}, "backend_options.mock.run_for"),
        ({"exit_code": 1.5}, "backend_options.mock.exit_code"),
        ({"exit_code": None}, "backend_options.mock.exit_code"),
        ({"outcome": "fine"}, "backend_options.mock.outcome"),
        ({"on_stop": "shrug"}, "backend_options.mock.on_stop"),
        ({"launch_fault": "sulks"}, "backend_options.mock.launch_fault"),
        ({"error": "KeyError"}, "backend_options.mock.error"),
        ({"doubled_run": 1}, "backend_options.mock.doubled_run"),
    ],
)
async def test_a_wrong_script_is_a_problem_and_refused(script: object, field: str) -> None:
    async with opened(MockType(), FakeClock()) as (backend, jobs):
        wanted = spec(mock=script)
        assert [one.field for one in await backend.validate(wanted)] == [field]
        (outcome,) = await jobs.launch(single(request("a", wanted)))
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, errors.Invalid)


async def test_it_lacks_what_it_is_told_to() -> None:
    async with opened(MockType(), FakeClock(), lacks=["inputs"], gpus=2) as (backend, _):
        can = backend.capabilities()
    assert (can.inputs, can.gpus, can.requirements) == (False, True, True)
