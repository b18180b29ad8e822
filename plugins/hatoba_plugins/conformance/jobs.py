"""The rules of the job contract, one per test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.backend import API_VERSION
from hatoba_plugins.conformance.attempts import (
    ENDED_BY_STOP,
    LOSER,
    Kit,
    by_name,
    opened,
    serialised,
)
from hatoba_plugins.conformance.harness import (
    PATIENCE,
    Command,
    FaultInjector,
    JobHarness,
    watching,
)
from hatoba_plugins.conformance.interrupt import interrupted
from hatoba_plugins.errors import BackendError, Conflict, Throttled, Unsupported
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    CapacitySnapshot,
    Exit,
    ExitKind,
    Found,
    Gap,
    GroupKind,
    HealthStatus,
    Launched,
    LaunchGroup,
    NotYet,
    Observation,
    Phase,
    Ref,
    Refused,
    Synced,
    Unsure,
    WatchItem,
)

MOST_AWAITS = 40
"""A call is cancelled at each of its awaits, up to so many."""

GRACE = 20.0
"""Seconds that what is stopped may take, and needs not."""

FAULT_SECONDS = 0.2
"""How long a fault lasts, on the backend's clock."""

SUCCESS = Exit(ExitKind.EXITED, 0)

_TREE = common_pb2.ManifestRef(digest=f"sha256:{'0' * 64}")

_ASKING: dict[str, tuple[str, Callable[[job_pb2.JobSpec], None]]] = {
    "gpus": ("resources.gpus", lambda s: _set(s.resources, gpus=1)),
    "memory_limit": ("resources.memory_bytes", lambda s: _set(s.resources, memory_bytes=2**20)),
    "images": ("environment.image", lambda s: _set(s.environment, image="python:3.11")),
    "requirements": (
        "environment.requirements",
        lambda s: _set(s.environment, requirements="six\n"),
    ),
    "caller_interpreter": (
        "environment.caller_interpreter",
        lambda s: _set(s.environment, caller_interpreter="/usr/bin/python3"),
    ),
    "secrets": ("secrets", lambda s: s.secrets.extend([job_pb2.SecretRef(name="token")])),
    "inputs": (
        "inputs",
        lambda s: s.inputs.extend([job_pb2.Input(name="images", manifest=_TREE)]),
    ),
}
"""For each capability that a specification can ask for: the field, and how to ask."""


@pytest.mark.asyncio
class JobConformance:
    """Subclass it and give it a fixture `harness`; see the package's documentation."""

    # -- launch ---------------------------------------------------------------------------------

    async def test_a_launch_answers_at_once_and_the_command_runs(self, harness: JobHarness) -> None:
        """Launched means it exists; it runs once and ends as its command did."""
        async with opened(harness) as kit:
            ref = await kit.launched(Command.SUCCEEDS)
            assert _same(await kit.end_of(ref), SUCCESS)
            assert await kit.starts_are(1, ref.name)

    async def test_exit_codes_are_true(self, harness: JobHarness) -> None:
        """The exit code is the command's own."""
        async with opened(harness) as kit:
            ref = await kit.launched(Command.FAILS)
            assert _same(await kit.end_of(ref), Exit(ExitKind.EXITED, 3))

    async def test_a_second_launch_of_a_name_creates_nothing(self, harness: JobHarness) -> None:
        """Launch is idempotent by name: the same handle, no second start."""
        async with opened(harness) as kit:
            request = kit.request()
            first, second = await kit.launch(request), await kit.launch(request)
            assert isinstance(first, Launched), first
            assert isinstance(second, Launched), second
            assert second.handle == first.handle
            await kit.harness.until_started(by_name(request.name))
            assert await kit.starts_are(1, request.name)
            assert list(await kit.owned()) == [request.name]

    async def test_launches_at_the_same_time_make_one(self, harness: JobHarness) -> None:
        """Idempotence holds for calls that overlap."""
        async with opened(harness) as kit:
            request = kit.request(Command.SUCCEEDS)
            outcomes = await asyncio.gather(*(kit.launch(request) for _ in range(3)))
            assert all(isinstance(o, Launched | Ambiguous) for o in outcomes), outcomes
            assert isinstance(await kit.find(request.name), Found)
            assert _same(await kit.end_of(by_name(request.name)), SUCCESS)
            assert await kit.starts_are(1, request.name)

    async def test_a_launch_after_the_end_creates_nothing(self, harness: JobHarness) -> None:
        """A name is used once: launching it after its end starts nothing and changes no end."""
        async with opened(harness) as kit:
            request = kit.request(Command.FAILS)
            await kit.launch(request)
            before = await kit.end_of(by_name(request.name))
            assert isinstance(await kit.launch(request), Launched)
            assert await kit.end_of(by_name(request.name)) == before
            assert await kit.starts_are(1, request.name)

    async def test_every_member_is_answered(self, harness: JobHarness) -> None:
        """A launch of many has one answer for each, whatever becomes of the others."""
        async with opened(harness) as kit:
            requests = tuple(kit.request(Command.SUCCEEDS) for _ in range(5))
            outcomes = await kit.jobs.launch(LaunchGroup(GroupKind.SINGLE, requests))
            assert sorted(o.name for o in outcomes) == sorted(r.name for r in requests)
            assert all(isinstance(outcome, Launched) for outcome in outcomes), outcomes
            for request in requests:
                assert _same(await kit.end_of(by_name(request.name)), SUCCESS)

    async def test_an_empty_group_is_no_error(self, harness: JobHarness) -> None:
        """Nothing asked, nothing answered: by every call that takes many."""
        async with opened(harness) as kit:
            assert await kit.jobs.launch(LaunchGroup(GroupKind.SINGLE, ())) == []
            assert await kit.jobs.observe([]) == []
            assert await kit.jobs.stop([], 1.0) == []
            assert await kit.jobs.release([]) == []
            assert await kit.backend.find([]) == []

    async def test_names_may_have_63_characters(self, harness: JobHarness) -> None:
        """A name has at most 63 characters of `[a-z0-9-]`, and all of them count."""
        async with opened(harness) as kit:
            first = await kit.launched(Command.SUCCEEDS, name="n-" + "0" * 60 + "1")
            second = await kit.launched(Command.FAILS, name="n-" + "0" * 60 + "2")
            assert (await kit.end_of(first)).code == 0
            assert (await kit.end_of(second)).code == 3

    async def test_what_it_cannot_launch_together_is_unsupported(self, harness: JobHarness) -> None:
        """A gang or array where the capability is missing is Unsupported, and nothing happens."""
        async with opened(harness) as kit:
            can = kit.backend.capabilities()
            lacks = {
                GroupKind.GANG: ("gangs", can.gangs),
                GroupKind.ARRAY: ("native_arrays", can.native_arrays),
            }
            for kind, (capability, has) in lacks.items():
                request = kit.request(Command.SUCCEEDS)
                if not has:
                    error = await _refusal(kit, LaunchGroup(kind, (request,)))
                    assert isinstance(error, Unsupported), error
                    assert error.capability == capability
                    assert isinstance(await kit.find(request.name), Absent)

    # -- find, observe, handles -----------------------------------------------------------------

    async def test_what_never_was_is_absent(self, harness: JobHarness) -> None:
        """A name that was never launched is Absent, and proven GONE when observed."""
        async with opened(harness) as kit:
            name = kit.request().name
            assert isinstance(await kit.find(name), Absent)
            seen = await kit.observe(by_name(name))
            assert (seen.phase, seen.exists, seen.reachable) == (Phase.GONE, False, True)

    async def test_find_needs_the_name_only(self, harness: JobHarness) -> None:
        """What exists or ended is Found by its name, with the handle that its launch gave."""
        async with opened(harness) as kit:
            running, ended = await kit.running(), await kit.ended()
            for ref in (running, ended):
                found = await kit.find(ref.name)
                assert isinstance(found, Found), found
                assert found.handle == ref.handle

    async def test_observe_answers_for_each(self, harness: JobHarness) -> None:
        """One observation for each reference, known or not, with a handle or by name."""
        async with opened(harness) as kit:
            running, ended = await kit.running(), await kit.ended()
            refs = [running, by_name("never-was"), by_name(ended.name)]
            seen = {one.name: one for one in await kit.jobs.observe(refs)}
            assert sorted(seen) == sorted(ref.name for ref in refs)
            assert seen[running.name].phase is Phase.RUNNING
            assert seen[running.name].exists
            assert seen[ended.name].phase is Phase.ENDED

    async def test_handles_survive_a_restart(self, harness: JobHarness) -> None:
        """A handle, stored and read back, means the same to the next opening; the run goes on."""
        async with opened(harness) as kit:
            ref = serialised(await kit.running())
            await harness.reopen()
            assert (await kit.observe(ref)).phase is Phase.RUNNING
            assert isinstance(await kit.find(ref.name), Found)
            assert await kit.stop(ref)
            assert (await kit.end_of(ref)).kind in ENDED_BY_STOP
            assert await kit.starts_are(1, ref.name)

    async def test_ends_survive_a_restart(self, harness: JobHarness) -> None:
        """An end that was seen, or came while nobody looked, is told by the next opening too."""
        async with opened(harness) as kit:
            seen = serialised(await kit.ended(Command.FAILS))
            unseen = serialised(await kit.launched(Command.FAILS))
            await harness.reopen()
            for ref in (seen, unseen):
                assert _same(await kit.end_of(ref), Exit(ExitKind.EXITED, 3))
                assert await kit.starts_are(1, ref.name)

    async def test_a_launch_after_a_restart_adopts(self, harness: JobHarness) -> None:
        """Launching again what an earlier opening launched finds it."""
        async with opened(harness) as kit:
            request = kit.request()
            first = await kit.launch(request)
            assert isinstance(first, Launched), first
            await harness.reopen()
            assert await kit.launch(request) in [
                Launched(request.name, first.handle, phase) for phase in (None, *Phase)
            ]
            await harness.until_started(by_name(request.name))
            assert await kit.starts_are(1, request.name)

    # -- stop and release -----------------------------------------------------------------------

    async def test_a_stop_ends_it(self, harness: JobHarness) -> None:
        """A stopped command ends as STOPPED or by the signal, never as a success."""
        async with opened(harness) as kit:
            ref = await kit.running()
            assert await kit.stop(ref, grace=GRACE)
            assert (await kit.end_of(ref)).kind in ENDED_BY_STOP

    async def test_a_stop_by_name_ends_it(self, harness: JobHarness) -> None:
        """The core may have no handle yet."""
        async with opened(harness) as kit:
            ref = by_name((await kit.running()).name)
            assert await kit.stop(ref, grace=GRACE)
            assert (await kit.end_of(ref)).kind in ENDED_BY_STOP

    async def test_a_stop_may_be_repeated(self, harness: JobHarness) -> None:
        """Stopping what is being stopped, or has ended, changes nothing."""
        async with opened(harness) as kit:
            ref = await kit.running()
            assert await kit.stop(ref, grace=GRACE)
            assert await kit.stop(ref, grace=GRACE)
            before = await kit.end_of(ref)
            assert await kit.stop(ref)
            assert await kit.end_of(ref) == before

    async def test_a_stop_after_the_end_changes_no_exit(self, harness: JobHarness) -> None:
        """What ended by itself stays so."""
        async with opened(harness) as kit:
            ref = await kit.ended(Command.FAILS)
            assert await kit.stop(ref)
            assert _same(await kit.end_of(ref), Exit(ExitKind.EXITED, 3))

    async def test_a_stop_ends_by_force_after_the_grace(self, harness: JobHarness) -> None:
        """What ignores the polite signal is killed; the stop itself does not wait for that."""
        async with opened(harness) as kit:
            ref = await kit.running(Command.IGNORES_STOP)
            async with asyncio.timeout(PATIENCE):
                assert await kit.stop(ref, grace=FAULT_SECONDS)
            assert (await kit.end_of(ref)).kind in ENDED_BY_STOP

    async def test_a_stop_of_one_leaves_the_others(self, harness: JobHarness) -> None:
        """Stops are per attempt, also in one call with an unknown one."""
        async with opened(harness) as kit:
            kept, stopped = await kit.running(), await kit.running()
            results = await kit.jobs.stop([stopped, by_name("never-was")], 0.0)
            assert {one.name: one.known for one in results} == {
                stopped.name: True,
                "never-was": False,
            }
            await kit.end_of(stopped)
            assert (await kit.observe(kept)).phase is Phase.RUNNING

    async def test_a_stop_before_the_launch_refuses_it(self, harness: JobHarness) -> None:
        """A stop of what never was leaves a mark that refuses its late launch."""
        async with opened(harness) as kit:
            request = kit.request(Command.SUCCEEDS)
            assert not await kit.stop(by_name(request.name))
            outcome = await kit.launch(request)
            assert isinstance(outcome, Refused), outcome
            assert isinstance(await kit.find(request.name), Absent)
            assert await kit.starts_are(0, request.name)

    async def test_release_waits_until_it_is_gone(self, harness: JobHarness) -> None:
        """What runs is NotYet; what was Released holds nothing and is listed no more."""
        async with opened(harness) as kit:
            ref = await kit.running()
            (outcome,) = await kit.jobs.release([ref])
            assert isinstance(outcome, NotYet), outcome
            assert (await kit.observe(ref)).phase is Phase.RUNNING
            await kit.stop(ref)
            await kit.end_of(ref)
            await kit.release(ref)
            assert not (await kit.observe(ref)).exists
            assert ref.name not in await kit.owned()

    async def test_release_may_be_repeated(self, harness: JobHarness) -> None:
        """Releasing again, or what never was, is Released."""
        async with opened(harness) as kit:
            ref = await kit.ended()
            await kit.release(ref)
            await kit.release(ref)
            await kit.release(by_name("never-was"))

    # -- what is there --------------------------------------------------------------------------

    async def test_list_owned_is_complete(self, harness: JobHarness) -> None:
        """All objects of this cluster with their labels, ended ones too, until released."""
        async with opened(harness) as kit:
            request = kit.request()
            launched = await kit.launch(request)
            assert isinstance(launched, Launched), launched
            ended = await kit.ended()
            owned = await kit.owned()
            assert set(owned) == {request.name, ended.name}
            one = owned[request.name]
            assert (one.cluster_id, one.job_uid) == (harness.cluster_id, request.job_uid)
            assert (one.index, one.number) == (request.index, request.number)
            assert one.handle == launched.handle
            assert (one.ended, owned[ended.name].ended) == (False, True)

    async def test_what_is_owned_can_be_adopted_after_a_restart(self, harness: JobHarness) -> None:
        """A core that remembers nothing goes on with it by the handle that is listed."""
        async with opened(harness) as kit:
            running = await kit.running()
            ended = await kit.ended(Command.FAILS)
            await harness.reopen()
            owned = await kit.owned()
            assert set(owned) == {running.name, ended.name}
            adopted = {name: Ref(name, one.number, one.handle) for name, one in owned.items()}
            assert (await kit.observe(adopted[running.name])).phase is Phase.RUNNING
            told = await kit.end_of(adopted[ended.name])
            assert _same(told, Exit(ExitKind.EXITED, 3))
            assert await kit.stop(adopted[running.name])
            assert (await kit.end_of(adopted[running.name])).kind in ENDED_BY_STOP
            assert await kit.starts_are(1, running.name)

    async def test_list_owned_leaves_out_other_clusters(self, harness: JobHarness) -> None:
        """Another cluster's objects are not ours."""
        async with opened(harness) as kit:
            await kit.launched()
            others = [one async for one in kit.backend.list_owned("another-cluster")]
            assert others == []

    # -- watch ----------------------------------------------------------------------------------

    async def test_a_watch_begins_with_what_is(self, harness: JobHarness) -> None:
        """Capacity and everything unreleased, ended ones too, come before Synced."""
        async with opened(harness) as kit:
            running, ended = await kit.running(), await kit.ended()
            items = await _until_synced(kit)
            assert any(isinstance(item, CapacitySnapshot) for item in items)
            phases = {i.name: i.phase for i in items if isinstance(i, Observation)}
            assert phases == {running.name: Phase.RUNNING, ended.name: Phase.ENDED}

    async def test_a_watch_tells_every_end_once(self, harness: JobHarness) -> None:
        """What ends after Synced is told once, and phases only grow."""
        async with opened(harness) as kit:
            first = await kit.running()
            async with _Follower(kit) as follower:
                second = await kit.launched(Command.SUCCEEDS)
                await kit.end_of(second)
                await kit.stop(first)
                await kit.end_of(first)
                last = await kit.ended()
                await follower.until_end_of(last.name)
            ends = Counter(one.name for one in follower.told if one.phase is Phase.ENDED)
            assert ends == {first.name: 1, second.name: 1, last.name: 1}
            assert all(one.exit for one in follower.told if one.phase is Phase.ENDED)
            for name in ends:
                phases = [one.phase for one in follower.told if one.name == name]
                assert phases == sorted(phases)

    async def test_watches_do_not_disturb_each_other(self, harness: JobHarness) -> None:
        """Two watches both tell everything, and the end of one is nothing to the other."""
        async with opened(harness) as kit, _Follower(kit) as follower:
            await _until_synced(kit)
            ref = await kit.ended()
            await follower.until_end_of(ref.name)

    async def test_capacity_is_told_in_pools(self, harness: JobHarness) -> None:
        """Pools have names of their own and amounts that are no less than nothing."""
        async with opened(harness) as kit:
            items = await _until_synced(kit)
            for snapshot in (item for item in items if isinstance(item, CapacitySnapshot)):
                names = [pool.name for pool in snapshot.pools]
                assert names
                assert len(set(names)) == len(names)
                for pool in snapshot.pools:
                    assert min(pool.total[:4]) >= 0
                    assert all(count > 0 for _, count in pool.total.named)
                    assert len(pool.gpu_ids) == pool.total.gpus

    # -- capabilities, options, health ----------------------------------------------------------

    async def test_the_type_is_complete(self, harness: JobHarness) -> None:
        """A type has a name, this contract's version, and options that check themselves."""
        kind = harness.backend_type
        assert kind.name
        assert kind.api == API_VERSION
        assert kind.options.check(harness.options) == []

    async def test_wrong_options_are_refused(self, harness: JobHarness) -> None:
        """Unknown names and values of the wrong type are problems that name the option."""
        check = harness.backend_type.options.check
        assert [one.field for one in check({"no_such_option": 1})] == ["no_such_option"]
        for option in fields(harness.backend_type.options):
            problems = check(harness.options | {option.name: object()})
            assert option.name in [one.field for one in problems]

    @pytest.mark.parametrize("capability", sorted(_ASKING))
    async def test_capabilities_are_honest(self, harness: JobHarness, capability: str) -> None:
        """Asking for what it lacks is a Problem that names the field; for what it has, none."""
        async with opened(harness) as kit:
            field, ask = _ASKING[capability]
            spec = job_pb2.JobSpec()
            spec.CopyFrom(harness.command(Command.SUCCEEDS, "honest"))
            assert await kit.backend.validate(spec) == []
            ask(spec)
            problems = await kit.backend.validate(spec)
            has = getattr(kit.backend.capabilities().for_jobs, capability)
            assert [one.field for one in problems] == ([] if has else [field])

    async def test_capabilities_do_not_change(self, harness: JobHarness) -> None:
        """They are values of the instance; a runner stands where the contract knows a place."""
        async with opened(harness) as kit:
            before = kit.backend.capabilities()
            await kit.ended()
            assert kit.backend.capabilities() == before
            assert before.runner in ("host", "pod", "image", "none")
            assert before.find_settles_after >= 0
            assert all(rate.per_second > 0 and rate.burst >= 1 for _, rate in before.limits)

    async def test_it_says_how_it_is(self, harness: JobHarness) -> None:
        """Health answers, and a harness's backend is well."""
        async with opened(harness) as kit:
            assert (await kit.backend.health()).status is HealthStatus.HEALTHY

    async def test_logs_or_a_refusal(self, harness: JobHarness) -> None:
        """With the capability the log is the command's output; without, Unsupported is raised."""
        async with opened(harness) as kit:
            ref = await kit.ended(Command.PRINTS)
            if not kit.backend.capabilities().logs:
                with pytest.raises(Unsupported, match="logs"):
                    await _log(kit, ref.name, 0)
                return
            assert await _log(kit, ref.name, 0) == b"hello from the kit\n"
            assert await _log(kit, ref.name, 6) == b"from the kit\n"

    async def test_the_budget_is_asked_before_each_call(self, harness: JobHarness) -> None:
        """What has limits awaits its budget first: while that is held back, nothing happens."""
        async with opened(harness) as kit:
            if not kit.backend.capabilities().limits:
                pytest.skip("the backend declares no limits")
            request = kit.request(Command.SUCCEEDS)
            harness.budget.close()
            async with asyncio.TaskGroup() as tasks:
                launch = tasks.create_task(kit.launch(request), name="launch")
                await harness.budget.asked.wait()
                launch.cancel()
            harness.budget.open()
            assert isinstance(await kit.find(request.name), Absent)
            assert await kit.starts_are(0, request.name)
            harness.budget.taken.clear()
            await kit.launch(request)
            assert harness.budget.taken.keys() <= dict(kit.backend.capabilities().limits).keys()
            assert harness.budget.taken

    # -- cancellation ---------------------------------------------------------------------------

    async def test_a_launch_may_be_cancelled_anywhere(self, harness: JobHarness) -> None:
        """Cancelled at any await, it happened or not: find says which, and it runs once."""
        async with opened(harness) as kit:
            for at in range(1, MOST_AWAITS):
                request = kit.request(Command.SUCCEEDS)
                group = LaunchGroup(GroupKind.SINGLE, (request,))
                cancelled, _ = await interrupted(kit.jobs.launch(group), at)
                if isinstance(await kit.find(request.name), Absent):
                    assert isinstance(await kit.launch(request), Launched)
                assert _same(await kit.end_of(by_name(request.name)), SUCCESS)
                assert await kit.starts_are(1, request.name)
                if not cancelled:
                    return

    async def test_a_stop_may_be_cancelled_anywhere(self, harness: JobHarness) -> None:
        """Cancelled at any await, it can be asked for again."""
        async with opened(harness) as kit:
            ref = await kit.running()
            await _interrupt_everywhere(lambda: kit.jobs.stop([ref], FAULT_SECONDS))
            assert await kit.stop(ref, FAULT_SECONDS)
            assert (await kit.end_of(ref)).kind in ENDED_BY_STOP

    async def test_a_release_may_be_cancelled_anywhere(self, harness: JobHarness) -> None:
        """Cancelled at any await, it can be asked for again."""
        async with opened(harness) as kit:
            ref = await kit.ended()
            await _interrupt_everywhere(lambda: kit.jobs.release([ref]))
            await kit.release(ref)
            assert ref.name not in await kit.owned()

    async def test_questions_may_be_cancelled_anywhere(self, harness: JobHarness) -> None:
        """A cancelled question leaves everything as it was."""
        async with opened(harness) as kit:
            ref = await kit.running()
            await _interrupt_everywhere(lambda: kit.jobs.observe([ref]))
            await _interrupt_everywhere(lambda: kit.backend.find([ref]))
            await _interrupt_everywhere(kit.owned)
            assert (await kit.observe(ref)).phase is Phase.RUNNING
            assert set(await kit.owned()) == {ref.name}

    # -- faults ---------------------------------------------------------------------------------

    async def test_a_lost_reply_is_ambiguous(self, harness: JobHarness) -> None:
        """A launch that took effect is never called refused, and find settles it."""
        async with opened(harness) as kit:
            await _faults(harness).reply_lost_after_effect()
            request = kit.request(Command.SUCCEEDS)
            outcome = await kit.launch(request)
            assert not isinstance(outcome, Refused), outcome
            await _found_and_ended_once(kit, request.name)

    async def test_a_delayed_reply_changes_nothing(self, harness: JobHarness) -> None:
        """Whoever gave up waiting for a reply finds what it would have said."""
        async with opened(harness) as kit:
            await _faults(harness).delay_reply(1_000.0)
            request = kit.request(Command.SUCCEEDS)
            async with asyncio.TaskGroup() as tasks:
                launch = tasks.create_task(kit.launch(request), name="launch")
                await _until_found(kit, request.name)
                launch.cancel()
            await _found_and_ended_once(kit, request.name)

    async def test_a_doubled_call_makes_one(self, harness: JobHarness) -> None:
        """A transport that repeats a call makes no second object."""
        async with opened(harness) as kit:
            await _faults(harness).double_reply()
            request = kit.request(Command.SUCCEEDS)
            assert isinstance(await kit.launch(request), Launched | Ambiguous)
            assert set(await kit.owned()) == {request.name}
            await _found_and_ended_once(kit, request.name)

    async def test_absence_is_told_only_when_it_is_certain(self, harness: JobHarness) -> None:
        """Absent means for ever: no call of ours that is under way makes it exist later."""
        async with opened(harness) as kit:
            await _faults(harness).land_late(FAULT_SECONDS)
            request = kit.request(Command.SUCCEEDS)
            async with asyncio.TaskGroup() as tasks:
                launch = tasks.create_task(kit.launch(request), name="launch")
                await harness.sleep(FAULT_SECONDS / 10)
                await _faults(harness).until_called()
                launch.cancel()
            if isinstance(await kit.find(request.name), Absent):
                await harness.sleep(FAULT_SECONDS)
                assert isinstance(await kit.find(request.name), Absent)
                assert isinstance(await kit.launch(request), Launched)
            await _found_and_ended_once(kit, request.name)

    async def test_what_is_not_ours_is_a_conflict(self, harness: JobHarness) -> None:
        """A foreign object of the same name refuses the launch with Conflict, and is left alone."""
        async with opened(harness) as kit:
            request = kit.request(Command.SUCCEEDS)
            await _faults(harness).conflict(request.name)
            for _ in range(2):
                outcome = await kit.launch(request)
                assert isinstance(outcome, Refused), outcome
                assert isinstance(outcome.error, Conflict), outcome.error
                assert outcome.error.evidence
            assert request.name not in await kit.owned()
            assert await kit.starts_are(0, request.name)

    async def test_what_cannot_be_seen_yet_is_not_gone(self, harness: JobHarness) -> None:
        """Before look-ups show it, find is never Absent and observe never GONE."""
        async with opened(harness) as kit:
            await _faults(harness).hide_for(FAULT_SECONDS)
            ref = await kit.launched(Command.SUCCEEDS)
            (outcome,) = await kit.backend.find([ref])
            assert isinstance(outcome, Found | Unsure), outcome
            assert (await kit.observe(ref)).phase is not Phase.GONE
            await _found_and_ended_once(kit, ref.name)

    async def test_throttling_promises_that_nothing_happened(self, harness: JobHarness) -> None:
        """A call that was turned away is Throttled, and the next one succeeds."""
        async with opened(harness) as kit:
            await _faults(harness).throttle()
            request = kit.request(Command.SUCCEEDS)
            outcome = await kit.launch(request)
            assert isinstance(outcome, Refused), outcome
            assert isinstance(outcome.error, Throttled), outcome.error
            assert await kit.starts_are(0, request.name)
            await _until_answered(kit, lambda: kit.find(request.name))
            assert isinstance(await kit.launch(request), Launched)
            await _found_and_ended_once(kit, request.name)

    async def test_an_overloaded_provider_makes_one(self, harness: JobHarness) -> None:
        """Turned away for the provider's sake it may have happened: find says, and it runs once."""
        async with opened(harness) as kit:
            await _faults(harness).overload()
            request = kit.request(Command.SUCCEEDS)
            await kit.launch(request)
            if isinstance(await kit.find(request.name), Absent):
                assert isinstance(await kit.launch(request), Launched)
            await _found_and_ended_once(kit, request.name)

    async def test_a_denial_in_disguise_is_no_absence(self, harness: JobHarness) -> None:
        """What a 404 of somebody else says of an attempt is nothing."""
        async with opened(harness) as kit:
            ref = await kit.running()
            await _faults(harness).disguise_denial()
            with suppress(BackendError):
                (outcome,) = await kit.backend.find([ref])
                assert isinstance(outcome, Found | Unsure), outcome
            with suppress(BackendError):
                seen = await kit.observe(ref)
                assert seen.phase is not Phase.GONE
                assert seen.exit is None
            assert (await harness.wait(ref, Phase.RUNNING)).phase is Phase.RUNNING

    async def test_an_expired_page_does_not_end_a_listing(self, harness: JobHarness) -> None:
        """A listing is complete or fails; one that failed is complete when it is made again."""
        async with opened(harness) as kit:
            names = {(await kit.launched()).name for _ in range(3)}
            await _faults(harness).expire_pages()
            with suppress(BackendError):
                assert set(await kit.owned()) == names
            async with asyncio.timeout(PATIENCE):
                await _faults(harness).until_called()
            assert set(await kit.owned()) == names

    async def test_out_of_reach_says_nothing(self, harness: JobHarness) -> None:
        """What cannot be reached is neither ended nor gone; afterwards it is as it was."""
        async with opened(harness) as kit:
            ref = await kit.running()
            await _faults(harness).unreachable_for(FAULT_SECONDS)
            try:
                seen = await kit.observe(ref)
            except BackendError:
                pass
            else:
                assert not seen.reachable
                assert seen.phase < Phase.ENDED
            await harness.sleep(FAULT_SECONDS)
            seen = await harness.wait(ref, Phase.RUNNING)
            assert (seen.phase, seen.exists) == (Phase.RUNNING, True)

    async def test_deleted_behind_us_is_gone(self, harness: JobHarness) -> None:
        """What somebody removed is GONE, not ended, and can be released."""
        async with opened(harness) as kit:
            ref = await kit.running()
            await _faults(harness).delete_behind(ref.name)
            seen = await harness.wait(ref, Phase.ENDED)
            assert (seen.phase, seen.exists, seen.exit) == (Phase.GONE, False, None)
            assert isinstance(await kit.find(ref.name), Absent)
            await kit.release(ref)

    async def test_a_doubled_run_starts_once(self, harness: JobHarness) -> None:
        """Of two runs one claims; the loser may be seen first, the winner's end stays."""
        async with opened(harness) as kit:
            await _faults(harness).double_run()
            ref = await kit.launched(Command.SUCCEEDS)
            assert _same(await _winners_end(kit, ref), SUCCESS)
            assert await kit.starts_are(1, ref.name)

    async def test_a_gap_is_told(self, harness: JobHarness) -> None:
        """A watch that missed something says so, and goes on or ends."""
        async with opened(harness) as kit:
            async with _Follower(kit) as follower:
                await _faults(harness).gap()
                await follower.until_gap()
            ref = await kit.ended()
            assert any(_is_end(item, ref.name) for item in await _until_synced(kit))

    async def test_a_watch_that_ended_is_begun_anew(self, harness: JobHarness) -> None:
        """A watch that ends without a word goes on by itself, or the next tells what happened."""
        async with opened(harness) as kit:
            async with _Follower(kit) as follower:
                await _faults(harness).end_watches()
                ref = await kit.ended()
                await follower.until_over_or_end_of(ref.name)
            assert any(_is_end(item, ref.name) for item in await _until_synced(kit))


class _Follower:
    """A watch that is read beside the test; entered, it is past Synced."""

    def __init__(self, kit: Kit) -> None:
        self.told: list[Observation] = []
        self._kit = kit
        self._tasks = asyncio.TaskGroup()
        self._synced = asyncio.Event()
        self._gap = asyncio.Event()
        self._over = False
        self._news = asyncio.Event()

    async def __aenter__(self) -> _Follower:
        await self._tasks.__aenter__()
        self._task = self._tasks.create_task(self._follow(), name="follower")
        async with asyncio.timeout(PATIENCE):
            await self._synced.wait()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _follow(self) -> None:
        async with watching(self._kit.jobs) as news:
            async for item in news:
                self._take(item)
        self._over = True
        self._news.set()

    def _take(self, item: WatchItem) -> None:
        if isinstance(item, Synced):
            self._synced.set()
        elif isinstance(item, Gap):
            self._gap.set()
        elif isinstance(item, Observation) and self._synced.is_set():
            self.told.append(item)
            self._news.set()

    async def until_end_of(self, name: str) -> None:
        """Return when it told this end."""
        async with asyncio.timeout(PATIENCE):
            while not any(_is_end(item, name) for item in self.told):
                self._news.clear()
                await self._news.wait()

    async def until_gap(self) -> None:
        """Return when it told of a gap."""
        async with asyncio.timeout(PATIENCE):
            await self._gap.wait()

    async def until_over_or_end_of(self, name: str) -> None:
        """Return when it ended, or told this end."""
        async with asyncio.timeout(PATIENCE):
            while not (self._over or any(_is_end(item, name) for item in self.told)):
                self._news.clear()
                await self._news.wait()


async def _until_synced(kit: Kit) -> list[WatchItem]:
    """What a new watch tells before Synced."""
    items: list[WatchItem] = []
    async with asyncio.timeout(PATIENCE), watching(kit.jobs) as news:
        async for item in news:
            if isinstance(item, Synced):
                return items
            items.append(item)
    raise AssertionError("the watch ended before Synced")


async def _until_found(kit: Kit, name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if isinstance(await kit.find(name), Found):
                return
            await kit.harness.sleep(FAULT_SECONDS / 10)


async def _winners_end(kit: Kit, ref: Ref) -> Exit:
    """The end that is told when the loser's has been."""
    async with asyncio.timeout(PATIENCE):
        while True:
            end = await kit.end_of(ref)
            if end.code != LOSER:
                return end
            await kit.harness.sleep(FAULT_SECONDS / 10)


async def _found_and_ended_once(kit: Kit, name: str) -> None:
    assert isinstance(await kit.find(name), Found)
    assert _same(await kit.end_of(by_name(name)), SUCCESS)
    assert await kit.starts_are(1, name)


async def _interrupt_everywhere(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Cancel a call at its first await, then at its second, until one ends before it is."""
    for at in range(1, MOST_AWAITS):
        cancelled, _ = await interrupted(call(), at)
        if not cancelled:
            return


async def _until_answered(kit: Kit, call: Callable[[], Awaitable[object]]) -> object:
    """Repeat a call that is turned away."""
    while True:
        try:
            return await call()
        except BackendError as error:
            await kit.harness.sleep(error.after or FAULT_SECONDS)


async def _refusal(kit: Kit, group: LaunchGroup) -> BackendError:
    """The error that refuses a whole group, raised or answered."""
    try:
        (outcome,) = await kit.jobs.launch(group)
    except BackendError as error:
        return error
    assert isinstance(outcome, Refused), outcome
    return outcome.error


async def _log(kit: Kit, name: str, offset: int) -> bytes:
    chunks = kit.backend.logs(by_name(name), "stdout", offset, False)
    return b"".join([chunk.data async for chunk in chunks])


def _faults(harness: JobHarness) -> FaultInjector:
    return harness.faults or FaultInjector()


def _same(one: Exit, other: Exit) -> bool:
    """Whether two exits are the same but for their words."""
    return one._replace(message="") == other._replace(message="")


def _is_end(item: WatchItem, name: str) -> bool:
    return isinstance(item, Observation) and item.name == name and item.phase is Phase.ENDED


def _set(message: Any, **values: object) -> None:
    for name, value in values.items():
        setattr(message, name, value)
