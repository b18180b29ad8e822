"""The rules of the deployment contract, one per test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from hatoba_plugins.conformance.fleets import Fleet, Wish, bounded, deployed, until_synced
from hatoba_plugins.conformance.harness import DeploymentHarness, FaultInjector, Life
from hatoba_plugins.conformance.interrupt import interrupted
from hatoba_plugins.errors import BackendError, Stale, Throttled, Unsupported
from hatoba_plugins.rolling import parse_name
from hatoba_plugins.values import Handle, Released, ReplicaPhase, ReplicaSet, Target

MOST_AWAITS = 40
"""A call is cancelled at each of its awaits, up to so many."""

A_WHILE = 0.2
"""How long nothing may happen where nothing should, and how long a fault lasts."""

BOUNDS = [(0, 1), (1, 0), (1, 1), (0, 3), (3, 0)]
"""`max_unavailable` and `max_surge` of the exchanges that are tried."""


@pytest.mark.asyncio
class DeploymentConformance:
    """Subclass it and give it a fixture `harness`; see the package's documentation."""

    # -- apply ----------------------------------------------------------------------------------

    async def test_replicas_become_ready(self, harness: DeploymentHarness) -> None:
        """Apply returns a handle at once; so many replicas become ready, each with an address."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 2))
            handle = await fleet.role.apply(target)
            assert isinstance(handle.version, int)
            await fleet.until(lambda: fleet.settled(target))
            assert len(fleet.ready(target.uid, revision=1)) == 2

    async def test_names_say_whose_a_replica_is(self, harness: DeploymentHarness) -> None:
        """An external name is `r-{uid}-{revision}-{8 hex digits}`, and never another's."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(7, 2))
            for name in await fleet.settle(target):
                assert parse_name(name) == (target.uid, 7)

    async def test_apply_is_idempotent(self, harness: DeploymentHarness) -> None:
        """The same target again, also at the same time, makes nothing more; one handle."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 2))
            handles = await asyncio.gather(*(fleet.role.apply(target) for _ in range(3)))
            await fleet.until(lambda: fleet.settled(target))
            handles.append(await fleet.role.apply(target))
            await _a_while(fleet)
            assert len(set(handles)) == 1
            assert len(fleet.ever(target.uid)) == 2
            assert fleet.settled(target)

    async def test_a_lower_generation_is_stale(self, harness: DeploymentHarness) -> None:
        """Generations only grow: an older target is refused as Stale and changes nothing."""
        async with deployed(harness) as fleet:
            wish = Wish()
            newest = wish.target(2, fleet.revision(1, 2))
            before = await fleet.settle(newest)
            with pytest.raises(Stale):
                await fleet.role.apply(wish.target(1, fleet.revision(1, 0)))
            await _a_while(fleet)
            assert fleet.settled(newest)
            assert set(fleet.replicas(wish.uid)) == before

    async def test_deployments_do_not_touch_each_other(self, harness: DeploymentHarness) -> None:
        """What is applied to one changes nothing of another."""
        async with deployed(harness) as fleet:
            one, other = Wish(), Wish()
            kept = await fleet.settle(one.target(1, fleet.revision(1, 1)))
            await fleet.settle(other.target(1, fleet.revision(1, 1)))
            await fleet.settle(other.target(2, fleet.revision(2, 1)))
            await fleet.remove(other.uid)
            assert set(fleet.replicas(one.uid)) == kept

    async def test_nothing_is_a_target_too(self, harness: DeploymentHarness) -> None:
        """A target without replicas is taken in, and told of."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 0))
            await fleet.role.apply(target)
            await fleet.until(lambda: fleet.seen(target.uid).generation == 1)
            assert fleet.seen(target.uid).replicas == ()

    # -- watch ----------------------------------------------------------------------------------

    async def test_a_watch_begins_with_all_there_is(self, harness: DeploymentHarness) -> None:
        """Every deployment comes, whole, before Synced; also those of which nothing is left."""
        async with deployed(harness) as fleet:
            full, empty = Wish(), Wish()
            names = await fleet.settle(full.target(1, fleet.revision(1, 2)))
            await fleet.settle(empty.target(3, fleet.revision(1, 0)))
            told = await until_synced(fleet.role)
            assert told.keys() == {full.uid, empty.uid}
            assert {one.name for one in told[full.uid].replicas} == names
            assert (told[empty.uid].generation, told[empty.uid].replicas) == (3, ())

    async def test_watches_do_not_take_from_each_other(self, harness: DeploymentHarness) -> None:
        """Any number of watches may be open; each tells everything."""
        async with deployed(harness) as fleet:
            second = Fleet(harness)
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(second.follow(), name="second")
                target = Wish().target(1, fleet.revision(1, 1))
                names = await fleet.settle(target)
                await second.until(lambda: second.settled(target))
                following.cancel()
            assert set(second.replicas(target.uid)) == names

    # -- replicas that do not do well -----------------------------------------------------------

    async def test_what_is_never_ready_is_never_told_ready(
        self, harness: DeploymentHarness
    ) -> None:
        """A replica that does not answer is there, and not READY."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 1, life=Life.NEVER_READY))
            await fleet.role.apply(target)
            await fleet.until(lambda: bool(fleet.replicas(target.uid)))
            await _a_while(fleet)
            assert fleet.replicas(target.uid)
            assert not _ever_ready(fleet, target)

    async def test_a_crashed_replica_comes_back(self, harness: DeploymentHarness) -> None:
        """One that ends by itself is started again under its name; restarts and cause are told."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 1, life=Life.CRASHES))
            await fleet.role.apply(target)
            await fleet.until(lambda: _came_back(fleet, target), "a crash and a return")
            assert len(fleet.ever(target.uid)) == 1
            crashed = [one for one in _told(fleet, target) if one.restarts]
            assert all(one.cause and one.cause.code and one.cause.message for one in crashed)
            counted = [one.restarts for one in _told(fleet, target)]
            assert counted == sorted(counted), "restarts never shrink"

    # -- exchange -------------------------------------------------------------------------------

    @pytest.mark.parametrize(("max_unavailable", "max_surge"), BOUNDS)
    async def test_an_exchange_keeps_its_bounds(
        self, harness: DeploymentHarness, max_unavailable: int, max_surge: int
    ) -> None:
        """Never fewer ready than wanted - max_unavailable, never more than wanted + max_surge."""
        async with deployed(harness) as fleet:
            wish = Wish()
            old = await fleet.settle(wish.target(1, fleet.revision(1, 3)))
            begun = len(fleet.history)
            target = wish.target(
                2, fleet.revision(2, 3), max_unavailable=max_unavailable, max_surge=max_surge
            )
            new = await fleet.settle(target)
            assert not new & old
            assert len(fleet.ever(wish.uid)) == 6
            over = [t for t in fleet.history[begun:] if t.uid == wish.uid and t.generation == 2]
            beyond = [_phases(told) for told in over if not bounded(told, target)]
            assert beyond == [], beyond

    async def test_what_leaves_answers_until_it_is_retired(
        self, harness: DeploymentHarness
    ) -> None:
        """What is in `leaving` stays ready until `retire`, however late it comes; then it goes."""
        async with deployed(harness) as fleet:
            wish = Wish()
            (old,) = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
            await fleet.role.apply(target := wish.target(2, fleet.revision(2, 1)))
            await fleet.until(lambda: old in fleet.seen(wish.uid).leaving)
            await _a_while(fleet)
            assert {old} == fleet.ready(wish.uid, revision=1)
            await fleet.role.retire(wish.uid, [old])
            await fleet.role.retire(wish.uid, [old])
            await fleet.until(lambda: fleet.settled(target))

    async def test_only_what_leaves_is_retired(self, harness: DeploymentHarness) -> None:
        """A retire of what is to stay, of what is not there and of nothing does nothing."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 2))
            names = await fleet.settle(target)
            await fleet.role.retire(target.uid, [*names, f"r-{target.uid}-9-00000000", "other"])
            await fleet.role.retire(target.uid, [])
            await fleet.role.retire("0" * 32, sorted(names))
            await _a_while(fleet)
            assert fleet.ready(target.uid) == names
            assert fleet.ever(target.uid) == names

    async def test_a_broken_revision_displaces_nothing(self, harness: DeploymentHarness) -> None:
        """While the new ones are not ready, the old ones are ready and none of them leaves."""
        async with deployed(harness) as fleet:
            wish = Wish()
            old = await fleet.settle(wish.target(1, fleet.revision(1, 2)))
            broken = fleet.revision(2, 2, life=Life.NEVER_READY)
            await fleet.role.apply(wish.target(2, broken))
            await fleet.until(lambda: len(fleet.replicas(wish.uid)) == 3)
            await _a_while(fleet)
            assert fleet.ready(wish.uid) == old
            assert not fleet.seen(wish.uid).leaving

    async def test_going_back_in_the_middle_keeps_the_old(self, harness: DeploymentHarness) -> None:
        """A new generation that wants the old revision ends the new ones and no old one."""
        async with deployed(harness) as fleet:
            wish = Wish()
            old = await fleet.settle(wish.target(1, fleet.revision(1, 2)))
            broken = fleet.revision(2, 2, life=Life.NEVER_READY)
            await fleet.role.apply(wish.target(2, broken))
            await fleet.until(lambda: len(fleet.replicas(wish.uid)) == 3)
            assert await fleet.settle(wish.target(3, fleet.revision(1, 2))) == old

    async def test_a_retire_that_comes_too_late_does_nothing(
        self, harness: DeploymentHarness
    ) -> None:
        """What a newer generation wants again is not retired any more."""
        async with deployed(harness) as fleet:
            wish = Wish()
            (old,) = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
            await fleet.role.apply(wish.target(2, fleet.revision(2, 1)))
            await fleet.until(lambda: old in fleet.seen(wish.uid).leaving)
            back = wish.target(3, fleet.revision(1, 1))
            await fleet.role.apply(back)
            await fleet.role.retire(wish.uid, [old])
            assert await fleet.exchange(back) == {old}

    async def test_a_third_revision_in_the_middle(self, harness: DeploymentHarness) -> None:
        """A generation that comes while another's exchange is under way takes its place."""
        async with deployed(harness) as fleet:
            wish = Wish()
            await fleet.settle(wish.target(1, fleet.revision(1, 3)))
            await fleet.role.apply(wish.target(2, fleet.revision(2, 3)))
            await fleet.until(lambda: bool(fleet.ready(wish.uid, revision=2)))
            target = wish.target(3, fleet.revision(3, 3))
            await fleet.settle(target)
            third = [told for told in fleet.history if told.generation == 3]
            assert [told for told in third if not bounded(told, target)] == []

    # -- scale, several revisions ---------------------------------------------------------------

    async def test_more_replicas(self, harness: DeploymentHarness) -> None:
        """Scaling up adds to what there is."""
        async with deployed(harness) as fleet:
            wish = Wish()
            few = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
            assert few < await fleet.settle(wish.target(2, fleet.revision(1, 3)))
            assert len(fleet.ever(wish.uid)) == 3

    async def test_fewer_replicas(self, harness: DeploymentHarness) -> None:
        """Scaling down lets some leave; the rest is not touched, nothing new is made."""
        async with deployed(harness) as fleet:
            wish = Wish()
            many = await fleet.settle(wish.target(1, fleet.revision(1, 3)))
            await fleet.role.apply(target := wish.target(2, fleet.revision(1, 1)))
            await fleet.until(lambda: len(fleet.seen(wish.uid).leaving) == 2)
            await _a_while(fleet)
            assert fleet.ready(wish.uid) == many, "they answer until they are retired"
            assert await fleet.exchange(target) < many
            assert fleet.ever(wish.uid) == many

    async def test_to_zero_and_back(self, harness: DeploymentHarness) -> None:
        """A deployment without replicas exists, and gets new ones."""
        async with deployed(harness) as fleet:
            wish = Wish()
            before = await fleet.settle(wish.target(1, fleet.revision(1, 2)))
            assert await fleet.settle(wish.target(2, fleet.revision(1, 0))) == set()
            assert wish.uid in await fleet.owned()
            after = await fleet.settle(wish.target(3, fleet.revision(1, 2)))
            assert not after & before

    async def test_two_revisions_share_the_traffic(self, harness: DeploymentHarness) -> None:
        """With `canary`, a target has several revisions; a change of weight touches no replica."""
        async with deployed(harness) as fleet:
            wish, role = Wish(), fleet.role
            if not fleet.backend.capabilities().canary:
                two = wish.target(1, fleet.revision(1, 1, 50), fleet.revision(2, 1, 50))
                with pytest.raises(Unsupported):
                    await role.apply(two)
                return
            old = await fleet.settle(wish.target(1, fleet.revision(1, 2)))
            canary = wish.target(2, fleet.revision(1, 2, 90), fleet.revision(2, 1, 10))
            names = await fleet.settle(canary)
            assert names > old
            more = wish.target(3, fleet.revision(1, 2, 50), fleet.revision(2, 1, 50))
            assert await fleet.settle(more) == names
            assert fleet.ever(wish.uid) == names

    # -- remove, restart ------------------------------------------------------------------------

    async def test_remove_ends_all(self, harness: DeploymentHarness) -> None:
        """Released only when nothing is left; told once more, empty; not listed; repeatable."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 2))
            await fleet.settle(target)
            await fleet.remove(target.uid)
            assert target.uid not in await fleet.owned()
            await fleet.until(lambda: not fleet.seen(target.uid).replicas)
            assert target.uid not in await until_synced(fleet.role)
            assert isinstance(await fleet.role.remove(target.uid, None), Released)

    async def test_removed_is_removed(self, harness: DeploymentHarness) -> None:
        """An apply after the remove, however late, is Stale, and makes nothing."""
        async with deployed(harness) as fleet:
            wish = Wish()
            await fleet.settle(wish.target(1, fleet.revision(1, 1)))
            await fleet.remove(wish.uid)
            with pytest.raises(Stale):
                await fleet.role.apply(wish.target(2, fleet.revision(1, 1)))
            await _a_while(fleet)
            assert not fleet.seen(wish.uid).replicas
            assert wish.uid not in await fleet.owned()

    async def test_remove_in_the_middle(self, harness: DeploymentHarness) -> None:
        """What was begun is ended too: starting replicas, leaving ones."""
        async with deployed(harness) as fleet:
            wish = Wish()
            await fleet.settle(wish.target(1, fleet.revision(1, 2)))
            await fleet.role.apply(wish.target(2, fleet.revision(2, 2)))
            await fleet.until(lambda: len(fleet.replicas(wish.uid)) > 2)
            await fleet.remove(wish.uid)
            await fleet.until(lambda: not fleet.seen(wish.uid).replicas)

    async def test_remove_of_what_never_was(self, harness: DeploymentHarness) -> None:
        """It comes to be Released, and an apply that comes later is Stale."""
        async with deployed(harness) as fleet:
            wish = Wish()
            await fleet.remove(wish.uid)
            with pytest.raises(Stale):
                await fleet.role.apply(wish.target(1, fleet.revision(1, 1)))

    async def test_a_restart_of_the_core_doubles_nothing(self, harness: DeploymentHarness) -> None:
        """After the backend was opened anew, apply adopts what is there; the handle is the same."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 2))
            handle = await fleet.role.apply(target)
            names = await fleet.exchange(target)
            await fleet.reopen()
            assert await fleet.role.apply(target) == handle
            await fleet.until(lambda: fleet.settled(target))
            await _a_while(fleet)
            assert fleet.ever(target.uid) == names

    async def test_a_restart_in_the_middle_of_an_exchange(self, harness: DeploymentHarness) -> None:
        """It goes on where it was, within its bounds, and what leaves is still there."""
        async with deployed(harness) as fleet:
            wish = Wish()
            old = await fleet.settle(wish.target(1, fleet.revision(1, 2)))
            await fleet.role.apply(target := wish.target(2, fleet.revision(2, 2)))
            await fleet.until(lambda: bool(fleet.seen(wish.uid).leaving))
            await fleet.reopen()
            await fleet.role.apply(target)
            await fleet.until(lambda: fleet.ready(wish.uid, revision=1) == old)
            await fleet.exchange(target)
            assert len(fleet.ever(wish.uid)) == 4

    async def test_a_handle_is_text_that_lasts(self, harness: DeploymentHarness) -> None:
        """Stored and given back after a restart, it removes what it was given for."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 1))
            handle = await fleet.role.apply(target)
            await fleet.until(lambda: fleet.settled(target))
            stored = Handle(int(handle.version), handle.data.encode().decode())
            await fleet.reopen()
            await fleet.role.apply(target)
            await fleet.role.remove(target.uid, stored)
            await fleet.remove(target.uid)
            await fleet.until(lambda: not fleet.seen(target.uid).replicas)

    # -- lists, capabilities, budgets -----------------------------------------------------------

    async def test_owned_tells_what_carries_our_label(self, harness: DeploymentHarness) -> None:
        """Every deployment of this cluster, with its handle, and none of another cluster's."""
        async with deployed(harness) as fleet:
            target = Wish().target(4, fleet.revision(1, 1))
            handle = await fleet.role.apply(target)
            await fleet.exchange(target)
            listed = (await fleet.owned())[target.uid]
            assert (listed.cluster_id, listed.handle) == (harness.cluster_id, handle)
            assert [one async for one in fleet.role.owned("another-cluster")] == []

    async def test_capabilities_name_the_role(self, harness: DeploymentHarness) -> None:
        """`deployments` is true, and `replica_logs` is Unsupported without the ability."""
        async with deployed(harness) as fleet:
            can = fleet.backend.capabilities()
            assert can.deployments
            target = Wish().target(1, fleet.revision(1, 1))
            (name,) = await fleet.settle(target)
            if can.replica_logs:
                assert all([type(c.data) is bytes async for c in _logs(fleet, name)])
                return
            with pytest.raises(Unsupported):
                await anext(aiter(_logs(fleet, name)), None)

    async def test_the_budget_is_asked_before_each_call(self, harness: DeploymentHarness) -> None:
        """An apply that waits for its budget has not happened; only declared budgets are asked."""
        async with deployed(harness) as fleet:
            limits = dict(fleet.backend.capabilities().limits)
            if not limits:
                pytest.skip("the backend declares no limits")
            target = Wish().target(1, fleet.revision(1, 1))
            harness.budget.close()
            async with asyncio.TaskGroup() as tasks:
                apply = tasks.create_task(fleet.role.apply(target), name="apply")
                await harness.budget.asked.wait()
                apply.cancel()
            harness.budget.open()
            assert target.uid not in await fleet.owned()
            harness.budget.taken.clear()
            await fleet.role.apply(target)
            assert harness.budget.taken
            assert harness.budget.taken.keys() <= limits.keys()

    # -- cancellation ---------------------------------------------------------------------------

    async def test_an_apply_may_be_cancelled_anywhere(self, harness: DeploymentHarness) -> None:
        """Cancelled at any await, it can be repeated, and makes what it would have made."""
        async with deployed(harness) as fleet:
            for at in range(1, MOST_AWAITS):
                target = Wish().target(1, fleet.revision(1, 1))
                cancelled, _ = await interrupted(fleet.role.apply(target), at)
                names = await fleet.settle(target)
                await _a_while(fleet)
                assert fleet.ever(target.uid) == names
                await fleet.remove(target.uid)
                if not cancelled:
                    return

    async def test_a_retire_may_be_cancelled_anywhere(self, harness: DeploymentHarness) -> None:
        """Cancelled at any await, it can be asked for again."""
        async with deployed(harness) as fleet:
            wish = Wish()
            (old,) = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
            await fleet.role.apply(target := wish.target(2, fleet.revision(2, 1)))
            await fleet.until(lambda: old in fleet.seen(wish.uid).leaving)
            await _interrupt_everywhere(lambda: fleet.role.retire(wish.uid, [old]))
            await fleet.exchange(target)

    async def test_a_remove_may_be_cancelled_anywhere(self, harness: DeploymentHarness) -> None:
        """Cancelled at any await, it can be asked for again."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 1))
            await fleet.settle(target)
            await _interrupt_everywhere(lambda: fleet.role.remove(target.uid, None))
            await fleet.remove(target.uid)
            assert target.uid not in await fleet.owned()

    # -- faults ---------------------------------------------------------------------------------

    async def test_a_lost_reply_is_asked_for_again(self, harness: DeploymentHarness) -> None:
        """An apply that took effect is never called refused; repeated, it makes nothing more."""
        async with deployed(harness) as fleet:
            await _faults(harness).reply_lost_after_effect()
            target = Wish().target(1, fleet.revision(1, 2))
            await _not_refused(fleet, target)
            names = await fleet.settle(target)
            assert fleet.ever(target.uid) == names

    async def test_a_delayed_reply_changes_nothing(self, harness: DeploymentHarness) -> None:
        """Whoever gave up waiting for a reply sees what it would have said."""
        async with deployed(harness) as fleet:
            await _faults(harness).delay_reply(1_000.0)
            target = Wish().target(1, fleet.revision(1, 1))
            async with asyncio.TaskGroup() as tasks:
                apply = tasks.create_task(fleet.role.apply(target), name="apply")
                await fleet.until(lambda: fleet.seen(target.uid).generation == 1)
                apply.cancel()
            names = await fleet.settle(target)
            assert fleet.ever(target.uid) == names

    async def test_a_doubled_call_makes_one(self, harness: DeploymentHarness) -> None:
        """A transport that repeats an apply doubles nothing."""
        async with deployed(harness) as fleet:
            await _faults(harness).double_reply()
            target = Wish().target(1, fleet.revision(1, 2))
            names = await fleet.settle(target)
            await _a_while(fleet)
            assert fleet.ever(target.uid) == names

    async def test_a_call_that_lands_late_is_stale(self, harness: DeploymentHarness) -> None:
        """An apply that takes effect after a newer one changes nothing."""
        async with deployed(harness) as fleet:
            wish = Wish()
            await _faults(harness).land_late(A_WHILE)
            async with asyncio.TaskGroup() as tasks:
                older = wish.target(1, fleet.revision(1, 3))
                late = tasks.create_task(fleet.role.apply(older), name="late")
                await harness.sleep(A_WHILE / 10)
                await _faults(harness).until_called()
                late.cancel()
            newer = wish.target(2, fleet.revision(2, 1))
            names = await fleet.settle(newer)
            await harness.sleep(2 * A_WHILE)
            await _a_while(fleet)
            assert fleet.settled(newer)
            assert fleet.ready(wish.uid) == names

    async def test_deleted_behind_us_is_replaced(self, harness: DeploymentHarness) -> None:
        """A replica that somebody removed is missed, and another becomes ready."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 2))
            lost, kept = await fleet.settle(target)
            begun = len(fleet.history)
            await _faults(harness).delete_behind(lost)
            await fleet.until(
                lambda: any(
                    len([r for r in told.replicas if r.phase is ReplicaPhase.READY]) < 2
                    for told in fleet.history[begun:]
                ),
                "it is missed",
            )
            await fleet.until(lambda: fleet.settled(target))
            assert kept in fleet.ready(target.uid)

    async def test_throttling_promises_that_nothing_happened(
        self, harness: DeploymentHarness
    ) -> None:
        """What was turned away is Throttled, or done later; and the next call succeeds."""
        async with deployed(harness) as fleet:
            await _faults(harness).throttle()
            target = Wish().target(1, fleet.revision(1, 1))
            try:
                await fleet.role.apply(target)
            except Throttled:
                await _a_while(fleet)
                assert not fleet.seen(target.uid).replicas
            else:  # it is carried out later, and whoever does so comes again
                await _faults(harness).until_called()
            await _until_answered(fleet, fleet.owned)
            await fleet.settle(target)

    async def test_out_of_reach_is_not_gone(self, harness: DeploymentHarness) -> None:
        """While nothing can be reached no replica is ended or doubled; then all is as it was."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 2))
            names = await fleet.settle(target)
            await _faults(harness).unreachable_for(A_WHILE)
            await harness.sleep(2 * A_WHILE)
            await fleet.until(lambda: fleet.settled(target))
            await _a_while(fleet)
            assert fleet.ever(target.uid) == names

    async def test_a_gap_is_told(self, harness: DeploymentHarness) -> None:
        """A watch that missed something says so; the next one tells how it is."""
        async with deployed(harness) as fleet:
            target = Wish().target(1, fleet.revision(1, 1))
            await fleet.settle(target)
            await _faults(harness).gap()
            await fleet.until(lambda: fleet.gaps > 0)
            assert target.uid in await until_synced(fleet.role)

    async def test_a_watch_that_ended_is_begun_anew(self, harness: DeploymentHarness) -> None:
        """A watch that ends without a word goes on by itself, or the next tells what happened."""
        async with deployed(harness) as fleet:
            wish = Wish()
            await fleet.settle(wish.target(1, fleet.revision(1, 1)))
            await _faults(harness).end_watches()
            await fleet.settle(wish.target(2, fleet.revision(1, 2)))


def _told(fleet: Fleet, target: Target) -> list[Any]:
    return [one for told in fleet.history if told.uid == target.uid for one in told.replicas]


def _ever_ready(fleet: Fleet, target: Target) -> bool:
    return any(one.phase is ReplicaPhase.READY for one in _told(fleet, target))


def _came_back(fleet: Fleet, target: Target) -> bool:
    return any(one.restarts and one.phase is ReplicaPhase.READY for one in _told(fleet, target))


def _logs(fleet: Fleet, name: str) -> Any:
    return fleet.role.replica_logs(name, "stderr", 10)


async def _a_while(fleet: Fleet) -> None:
    """Give what should not happen the time to."""
    await fleet.harness.sleep(A_WHILE)


async def _not_refused(fleet: Fleet, target: Target) -> None:
    """An apply whose effect is known to have happened."""
    try:
        await fleet.role.apply(target)
    except BackendError as error:
        raise AssertionError(f"it took effect, and was refused: {error!r}") from error
    except Exception:  # noqa: BLE001 - whatever it was, it perhaps happened
        return


async def _interrupt_everywhere(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Cancel a call at its first await, then at its second, until one ends before it is."""
    for at in range(1, MOST_AWAITS):
        cancelled, _ = await interrupted(call(), at)
        if not cancelled:
            return


async def _until_answered(fleet: Fleet, call: Callable[[], Awaitable[object]]) -> object:
    """Repeat a call that is turned away."""
    while True:
        try:
            return await call()
        except BackendError as error:
            await fleet.harness.sleep(error.after or A_WHILE)


def _faults(harness: DeploymentHarness) -> FaultInjector:
    return harness.faults or FaultInjector()


def _phases(told: ReplicaSet) -> list[str]:
    """Its replicas in short: number of the revision, phase, and whether it leaves."""
    return [
        f"{one.revision} {one.phase.name}{' leaving' if one.name in told.leaving else ''}"
        for one in told.replicas
    ]
