"""What `null` does beside the contract: its options, its speed, its handles."""

from __future__ import annotations

import asyncio
import time

import pytest
from opened_backend import launch, observe, opened, ref, request, single, spec

from hatoba_plugins.backend import JobBackend
from hatoba_plugins.backends.null import NullOptions, NullType
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import (
    CapacitySnapshot,
    Exit,
    ExitKind,
    Launched,
    Observation,
    Phase,
    Ref,
)

MANY, GROUP = 20_000, 100


async def count_ends(jobs: JobBackend, wanted: int) -> int:
    """Read a watch until it told so many ends."""
    ends = 0
    async for item in jobs.watch():
        ends += isinstance(item, Observation) and item.phase is Phase.ENDED
        if ends == wanted:
            return ends
    return ends


async def test_it_keeps_up_with_5000_launches_a_second() -> None:
    async with opened(NullType(), FakeClock()) as (_, jobs), asyncio.TaskGroup() as tasks:
        told = tasks.create_task(count_ends(jobs, MANY))
        await asyncio.sleep(0)
        began = time.process_time()
        for start in range(0, MANY, GROUP):
            names = [f"n-{number}" for number in range(start, start + GROUP)]
            await jobs.launch(single(*map(request, names)))
            await asyncio.sleep(0)
            await jobs.release([ref(name) for name in names])
        assert await told == MANY
        assert MANY / (time.process_time() - began) > 5_000


async def test_it_ends_with_the_code_and_after_the_delay_of_its_options() -> None:
    clock = FakeClock()
    async with opened(NullType(), clock, exit_code=7, delay=5.0) as (_, jobs):
        await jobs.launch(single(request("a")))
        await clock.advance(4.9)
        assert (await observe(jobs, "a")).phase is Phase.RUNNING
        await clock.advance(0.1)
        assert (await observe(jobs, "a")).exit == Exit(ExitKind.EXITED, 7)


async def test_another_process_answers_for_a_handle() -> None:
    clock = FakeClock()
    async with opened(NullType(), clock, exit_code=7, delay=5.0) as (_, jobs):
        (outcome,) = await jobs.launch(single(request("a")))
    assert isinstance(outcome, Launched)
    await clock.advance(5.0)
    async with opened(NullType(), clock) as (_, jobs):
        (seen,) = await jobs.observe([Ref("a", 1, outcome.handle)])
        assert (seen.phase, seen.exit) == (Phase.ENDED, Exit(ExitKind.EXITED, 7))


async def test_another_process_takes_what_runs_to_its_end() -> None:
    clock = FakeClock()
    async with opened(NullType(), clock, exit_code=7, delay=5.0) as (_, jobs):
        (outcome,) = await jobs.launch(single(request("a")))
    assert isinstance(outcome, Launched)
    known = Ref("a", 1, outcome.handle)
    async with opened(NullType(), clock) as (_, jobs), asyncio.TaskGroup() as tasks:
        (seen,) = await jobs.observe([known])
        assert seen.phase is Phase.RUNNING
        told = tasks.create_task(count_ends(jobs, 1))
        await asyncio.sleep(0)
        await clock.advance(5.0)
        assert await told == 1
        (seen,) = await jobs.observe([known])
        assert (seen.phase, seen.exit) == (Phase.ENDED, Exit(ExitKind.EXITED, 7))


async def test_any_amount_of_cores_and_memory_fits_its_slots() -> None:
    async with opened(NullType(), FakeClock(), slots=3) as (_, jobs):
        snapshot = await anext(jobs.watch())
    assert isinstance(snapshot, CapacitySnapshot)
    assert snapshot.elastic
    assert snapshot.pools[0].total.slots == 3
    assert snapshot.pools[0].total.cpus > 4096 * 10_000


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("slots", 0),
        ("slots", 1.5),
        ("slots", True),
        ("exit_code", 256),
        ("exit_code", -1),
        ("delay", -0.1),
        ("delay", float("nan")),
        ("delay", "1"),
        ("dalay", 1),
    ],
)
def test_wrong_options_are_named(option: str, value: object) -> None:
    assert [problem.field for problem in NullOptions.check({option: value})] == [option]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (3, "backend_options.null"),
        ({"dalay": 3}, "backend_options.null.dalay"),
        ({"delay": "3"}, "backend_options.null.delay"),
        ({"delay": -3}, "backend_options.null.delay"),
        ({"exit_code": 1.5}, "backend_options.null.exit_code"),
        ({"exit_code": 300}, "backend_options.null.exit_code"),
    ],
)
async def test_a_jobs_own_options_are_checked(given: object, field: str) -> None:
    async with opened(NullType(), FakeClock()) as (backend, _):
        assert [one.field for one in await backend.validate(spec(null=given))] == [field]


async def test_a_name_that_was_released_is_not_used_again() -> None:
    async with opened(NullType(), FakeClock()) as (_, jobs):
        await launch(jobs, "a")
        await jobs.release([ref("a")])
        outcome = await launch(jobs, "a")
    assert not isinstance(outcome, Launched)
