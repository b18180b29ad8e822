"""The rules of the device contract, one per test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from hatoba.v1 import device_pb2
from hatoba_plugins.conformance.far import Ability, DeviceFaults, DeviceHarness
from hatoba_plugins.conformance.interrupt import interrupted
from hatoba_plugins.conformance.sites import (
    Site,
    document,
    hello,
    on_site,
    report,
    reporting,
    until_synced,
    until_told,
)
from hatoba_plugins.errors import Throttled
from hatoba_plugins.values import (
    Accepted,
    Away,
    DeviceCame,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    DeviceWish,
    Gap,
    RefusedWish,
    Released,
    Superseded,
    Synced,
    WishOutcome,
)

MOST_AWAITS = 40
"""A call is cancelled at each of its awaits, up to so many."""

A_WHILE = 0.2
"""How long nothing may happen where nothing should, and how long a fault lasts."""

MANY = 1_000
"""Wishes of one call."""

TALKATIVE = 200
"""Reports that a device tells one after the other."""


@pytest.mark.asyncio
class DeviceConformance:
    """Subclass it and give it a fixture `harness`; see the package's documentation."""

    # -- desire ---------------------------------------------------------------------------------

    async def test_a_device_gets_what_is_wanted(self, harness: DeviceHarness) -> None:
        """A wish is answered at once, Accepted where the device is there, and reaches it whole."""
        async with on_site(harness) as site:
            device = await site.add()
            assert await site.wish(device, 1) == Accepted(device.name)
            await site.reaches(device, 1)
            assert device.heard[-1] == document(1)

    async def test_a_wish_is_idempotent(self, harness: DeviceHarness) -> None:
        """The same again, also at the same time, is Accepted and wants nothing else."""
        async with on_site(harness) as site:
            device = await site.add()
            outcomes = [await site.wish(device, 1) for _ in range(3)]
            outcomes += await asyncio.gather(*(site.wish(device, 1) for _ in range(3)))
            assert outcomes == [Accepted(device.name)] * 6
            await site.reaches(device, 1)
            await _a_while(site)
            assert all(one == document(1) for one in device.heard)

    async def test_the_newest_reaches_who_is_there(self, harness: DeviceHarness) -> None:
        """Of generations that follow each other the newest is heard last; others may be left
        out."""
        async with on_site(harness) as site:
            device = await site.add()
            for generation in range(1, 11):
                assert await site.wish(device, generation) == Accepted(device.name)
            await site.reaches(device, 10)
            await _a_while(site)
            assert device.heard[-1] == document(10)

    async def test_a_lower_generation_is_superseded(self, harness: DeviceHarness) -> None:
        """Generations only grow: an older one is answered with the newest, and never heard."""
        async with on_site(harness) as site:
            device = await site.add()
            await site.wish(device, 3)
            await site.reaches(device, 3)
            assert await site.wish(device, 2) == Superseded(device.name, 3)
            await _a_while(site)
            assert _generations(device.heard) == {3}

    async def test_answers_come_in_order(self, harness: DeviceHarness) -> None:
        """Within a call, too, what comes after a newer one is Superseded."""
        async with on_site(harness) as site:
            device = await site.add()
            wishes = [DeviceWish(device.name, document(one)) for one in (4, 5, 3)]
            *newer, last = await site.wish_all(wishes)
            assert newer == [Accepted(device.name)] * 2
            assert last == Superseded(device.name, 5)
            await site.reaches(device, 5)

    async def test_who_is_away_is_told_so(self, harness: DeviceHarness) -> None:
        """Away where nothing keeps it for the device, Accepted where something does."""
        async with on_site(harness) as site:
            new, gone = await site.add(comes=False), await site.add()
            await site.go(gone)
            kept = Ability.KEEPS in harness.abilities
            for device in (new, gone):
                expected = Accepted(device.name) if kept else Away(device.name)
                assert await site.wish(device, 1) == expected

    async def test_who_comes_late_gets_only_the_newest(self, harness: DeviceHarness) -> None:
        """What a device missed while it was away it never hears."""
        async with on_site(harness) as site:
            device = await site.add(comes=False)
            for generation in range(1, 6):
                await site.wish(device, generation)
            await site.come(device)
            await site.reaches(device, 5)
            await _a_while(site)
            assert _generations(device.heard) == {5}

    async def test_who_comes_again_hears_it_again(self, harness: DeviceHarness) -> None:
        """A device that may have lost all that it knew is told what is wanted, though it is not
        new."""
        async with on_site(harness) as site:
            device = await site.add()
            await site.wish(device, 1)
            await site.reaches(device, 1)
            await site.go(device)
            before = len(device.heard)
            await site.come(device)
            await site.until(lambda: len(device.heard) > before, "it hears it again")
            assert device.heard[-1] == document(1)

    async def test_what_is_kept_needs_no_second_wish(self, harness: DeviceHarness) -> None:
        """KEEPS: Accepted means that it arrives, over a restart of the core too."""
        _needs(harness, Ability.KEEPS)
        async with on_site(harness) as site:
            site.wishes_again = False
            device, other = await site.add(comes=False), await site.add(comes=False)
            for one in (device, other):
                await site.wish(one, 1)
            await site.come(device)
            await site.reaches(device, 1)
            await site.reopen()
            await site.come(other)
            await site.reaches(other, 1)

    async def test_a_thousand_wishes(self, harness: DeviceHarness) -> None:
        """Of so many in one call each is answered once, in order, whatever becomes of others."""
        async with on_site(harness) as site:
            names = [f"kit-nobody-{number}" for number in range(MANY)]
            for at in (0, MANY // 2, MANY - 1):
                names[at] = (await site.add()).name
            outcomes = await site.wish_all([DeviceWish(name, document(1)) for name in names])
            assert not any(isinstance(one, Superseded) for one in outcomes)
            for device in site.devices.values():
                assert outcomes[names.index(device.name)] == Accepted(device.name)
                await site.reaches(device, 1)

    async def test_a_call_for_nobody(self, harness: DeviceHarness) -> None:
        """Nothing is wished, nothing is answered."""
        async with on_site(harness) as site:
            assert await site.role.desire([]) == []
            assert await site.role.forget([]) == []

    @pytest.mark.parametrize("wants", [0, 1, 64])
    async def test_documents_of_any_size(self, harness: DeviceHarness, wants: int) -> None:
        """All that may be wanted of a device arrives whole; that nothing is wanted arrives, too."""
        async with on_site(harness) as site:
            device = await site.add()
            await site.wish(device, 1)
            assert await site.wish(device, 2, wants) == Accepted(device.name)
            await site.reaches(device, 2)
            assert device.heard[-1] == document(2, wants)

    async def test_a_name_that_no_device_has(self, harness: DeviceHarness) -> None:
        """It is Away or refused, or kept where wishes are; others are served all the same."""
        async with on_site(harness) as site:
            device = await site.add()
            names = ("kit-nobody", device.name)
            nobody, somebody = await site.wish_all([DeviceWish(n, document(1)) for n in names])
            kept = Ability.KEEPS in harness.abilities
            assert isinstance(nobody, RefusedWish | Accepted if kept else RefusedWish | Away)
            assert somebody == Accepted(device.name)
            await site.reaches(device, 1)

    async def test_devices_hear_their_own(self, harness: DeviceHarness) -> None:
        """What is wished of one changes nothing for another."""
        async with on_site(harness) as site:
            one, other = await site.add(), await site.add()
            await site.wish(one, 7)
            await site.wish(other, 2)
            await site.reaches(one, 7)
            await site.reaches(other, 2)
            await _a_while(site)
            assert (_generations(one.heard), _generations(other.heard)) == ({7}, {2})

    async def test_calls_at_the_same_time(self, harness: DeviceHarness) -> None:
        """In whatever order they are carried out, the newest is what devices hear last."""
        async with on_site(harness) as site:
            devices = [await site.add() for _ in range(3)]
            generations = list(range(1, 21))
            random.Random(0).shuffle(generations)
            calls = [[DeviceWish(d.name, document(one)) for d in devices] for one in generations]
            answers = await asyncio.gather(*(site.wish_all(wishes) for wishes in calls))
            for generation, outcomes in zip(generations, answers, strict=True):
                assert all(_fits(one, generation) for one in outcomes)
            for device in devices:
                await site.reaches(device, 20)
            await _a_while(site)
            assert {device.heard[-1].generation for device in devices} == {20}

    async def test_a_desire_may_be_cancelled_anywhere(self, harness: DeviceHarness) -> None:
        """Cancelled at any await, it can be repeated, and reaches the device."""
        async with on_site(harness) as site:
            device = await site.add()
            for at in range(1, MOST_AWAITS):
                wish = DeviceWish(device.name, document(at))
                cancelled, _ = await interrupted(site.role.desire([wish]), at)
                assert await site.wish(device, at) == Accepted(device.name)
                await site.reaches(device, at)
                if not cancelled:
                    return

    async def test_the_budget_is_asked_before_each_call(self, harness: DeviceHarness) -> None:
        """A wish that waits for its budget has not happened; only declared budgets are asked."""
        async with on_site(harness) as site:
            limits = dict(harness.backend.capabilities().limits)
            if not limits:
                pytest.skip("the backend declares no limits")
            device = await site.add()
            wish = DeviceWish(device.name, document(1))
            harness.budget.close()
            async with asyncio.TaskGroup() as tasks:
                desire = tasks.create_task(site.role.desire([wish]), name="desire")
                await harness.budget.asked.wait()
                await _a_while(site)
                desire.cancel()
            harness.budget.open()
            assert list(device.heard) == []
            harness.budget.taken.clear()
            await site.wish(device, 1)
            assert harness.budget.taken
            assert harness.budget.taken.keys() <= limits.keys()

    # -- reports --------------------------------------------------------------------------------

    async def test_who_comes_is_told_of(self, harness: DeviceHarness) -> None:
        """With all that it says of itself, and how it reaches us."""
        async with on_site(harness) as site:
            device = await site.add(comes=False)
            said = await site.come(device, generation=4)
            came = site.there[device.name]
            assert (came.hello, came.hello.generation) == (said, 4)
            assert came.transport

    async def test_who_goes_is_told_of(self, harness: DeviceHarness) -> None:
        """And when it comes again, with what it says of itself then."""
        async with on_site(harness) as site:
            device, other = await site.add(), await site.add()
            await site.go(device)
            assert any(isinstance(one, DeviceWent) for one in _of(site.news, device.name))
            assert set(site.there) == {other.name}
            said = await site.come(device)
            assert site.there[device.name].hello == said

    async def test_reports_begin_with_all_that_is_known(self, harness: DeviceHarness) -> None:
        """Every device that is there comes, with what it told last, before Synced; who is away is
        not told as there."""
        async with on_site(harness) as site:
            loud, quiet, gone = [await site.add() for _ in range(3)]
            await loud.tell(report(1, "before"))
            await loud.tell(report(1, "last"))
            await site.hears(loud, report(1, "last"))
            await site.go(gone)
            begun = await until_synced(site.role)
            assert _there(begun) == {loud.name, quiet.name}
            assert _told(begun, loud.name)[-1] == report(1, "last")
            assert _told(begun, quiet.name) == []
            of_loud = [type(one) for one in begun if _device(one) == loud.name]
            assert of_loud.index(DeviceCame) < of_loud.index(DeviceTold), "who speaks came before"

    async def test_nobody_is_there(self, harness: DeviceHarness) -> None:
        """Synced comes all the same."""
        async with on_site(harness) as site:
            device = await site.add(comes=False)
            assert [
                one for one in await until_synced(site.role) if _device(one) == device.name
            ] == []

    @pytest.mark.parametrize("slots", [0, 1, 64])
    async def test_a_report_is_told_whole(self, harness: DeviceHarness, slots: int) -> None:
        """As the device said it, with every slot and its cause."""
        async with on_site(harness) as site:
            device = await site.add()
            told = report(1, "its disk is full", slots)
            await device.tell(told)
            await site.hears(device, told)

    async def test_the_newest_report_is_told_last(self, harness: DeviceHarness) -> None:
        """Of reports that follow each other, also of one generation; others may be left out."""
        async with on_site(harness) as site:
            device = await site.add()
            for number in range(TALKATIVE):
                await device.tell(report(1 + number // 50, str(number)))
            newest = report(1 + (TALKATIVE - 1) // 50, str(TALKATIVE - 1))
            await site.hears(device, newest)
            await _a_while(site)
            assert site.told[device.name] == newest

    async def test_a_report_that_is_told_twice(self, harness: DeviceHarness) -> None:
        """It is the same as once, and stands in no later one's way."""
        async with on_site(harness) as site:
            device = await site.add()
            for note in ("same", "same", "later"):
                await device.tell(report(1, note))
            await site.hears(device, report(1, "later"))
            await _a_while(site)
            assert _told(site.news, device.name)[-1] == report(1, "later")

    async def test_who_reads_slowly_gets_the_newest(self, harness: DeviceHarness) -> None:
        """Nobody waits for a slow reader: it may miss what is old, or is told of a Gap."""
        async with on_site(harness) as site:
            device = await site.add()
            newest = DeviceTold(device.name, report(1, str(TALKATIVE - 1)))
            async with reporting(site.role) as slow:
                await until_told(slow, lambda one: True)
                for number in range(TALKATIVE):
                    await device.tell(report(1, str(number)))
                    if number % 5 == 4:
                        await site.hears(device, report(1, str(number)))
                await until_told(slow, lambda one: one == newest or isinstance(one, Gap))

    async def test_readers_do_not_take_from_each_other(self, harness: DeviceHarness) -> None:
        """Any number may ask for reports; each is told everything."""
        async with on_site(harness) as site:
            second = Site(harness)
            async with second.following():
                device = await site.add()
                await device.tell(report(1))
                for one in (site, second):
                    await one.hears(device, report(1))
                    assert device.name in one.there

    async def test_who_stopped_reading_asks_anew(self, harness: DeviceHarness) -> None:
        """New reports tell how it is now, whatever happened while nobody read."""
        async with on_site(harness) as site:
            leaves, stays, comes = await site.add(), await site.add(), await site.add(comes=False)
            await site.deaf()
            await leaves.go()
            await stays.tell(report(2))
            assert await comes.come(hello(comes.name))
            site.listen()
            await site.until(lambda: set(site.there) == {stays.name, comes.name})
            await site.hears(stays, report(2))

    # -- restarts -------------------------------------------------------------------------------

    async def test_a_restart_while_devices_are_there(self, harness: DeviceHarness) -> None:
        """Who is there and what it told is told again, and what is wanted is wanted as before."""
        async with on_site(harness) as site:
            device = await site.add()
            await site.wish(device, 2)
            await site.reaches(device, 2)
            await device.tell(report(2))
            await site.hears(device, report(2))
            before = len(site.news)
            await site.reopen()
            await site.until(lambda: _there(site.news[before:]) == {device.name})
            await site.until(lambda: report(2) in _told(site.news[before:], device.name))
            assert await site.wish(device, 2) == Accepted(device.name)
            assert await site.wish(device, 3) == Accepted(device.name)
            await site.reaches(device, 3)

    async def test_a_restart_while_devices_are_away(self, harness: DeviceHarness) -> None:
        """Who was wished something before and comes after hears the newest, once it is wished as
        the core does."""
        async with on_site(harness) as site:
            device, gone = await site.add(comes=False), await site.add()
            await site.go(gone)
            for one in (device, gone):
                await site.wish(one, 2)
            await site.reopen()
            await site.wish(gone, 3)
            for one in (device, gone):
                await site.come(one)
            await site.reaches(device, 2)
            await site.reaches(gone, 3)

    async def test_generations_outlive_a_restart(self, harness: DeviceHarness) -> None:
        """REMEMBERS: an older one is Superseded by a backend that was opened anew, too."""
        _needs(harness, Ability.REMEMBERS)
        async with on_site(harness) as site:
            device, away = await site.add(), await site.add(comes=False)
            for one in (device, away):
                await site.wish(one, 3)
            await site.reopen()
            for one in (device, away):
                assert await site.wish(one, 2) == Superseded(one.name, 3)

    # -- forget ---------------------------------------------------------------------------------

    async def test_forget_is_idempotent(self, harness: DeviceHarness) -> None:
        """It comes to be Released, again and again, whether there is such a device or not."""
        async with on_site(harness) as site:
            device, away = await site.add(), await site.add(comes=False)
            await site.wish(device, 1)
            names = (device.name, away.name, "kit-nobody")
            await site.forget(*names)
            assert await site.role.forget(names) == [Released(name) for name in names]

    async def test_nothing_reaches_who_was_forgotten(self, harness: DeviceHarness) -> None:
        """What was wanted of it is wanted no more, also where it comes again, or comes late."""
        async with on_site(harness) as site:
            device, away = await site.add(), await site.add(comes=False)
            for one in (device, away):
                await site.wish(one, 1)
            await site.reaches(device, 1)
            await site.forget(device.name, away.name)
            before = len(device.heard)
            for one in (device, away):
                await one.come(hello(one.name))
            await _a_while(site)
            assert (len(device.heard), list(away.heard)) == (before, [])

    async def test_nothing_is_heard_of_who_was_forgotten(self, harness: DeviceHarness) -> None:
        """It is not there, what it says is not told, and it does not come again."""
        async with on_site(harness) as site:
            device, other = await site.add(), await site.add()
            await device.tell(report(1))
            await site.hears(device, report(1))
            await site.forget(device.name)
            before = len(site.news)
            await device.tell(report(2))
            await device.come(hello(device.name))
            await device.tell(report(3))
            await other.tell(report(1))
            await site.hears(other, report(1))
            await _a_while(site)
            after = _of(site.news[before:], device.name)
            assert all(isinstance(one, DeviceWent) for one in after), after
            assert _of(await until_synced(site.role), device.name) == []

    async def test_others_are_not_forgotten(self, harness: DeviceHarness) -> None:
        """A forget touches only those that it names."""
        async with on_site(harness) as site:
            device, other = await site.add(), await site.add()
            await site.wish(other, 1)
            await site.forget(device.name)
            assert await site.wish(other, 2) == Accepted(other.name)
            await site.reaches(other, 2)
            await other.tell(report(2))
            await site.hears(other, report(2))

    async def test_a_name_begins_anew(self, harness: DeviceHarness) -> None:
        """A new device with the name of one that was forgotten has generations of its own."""
        async with on_site(harness) as site:
            device = await site.add()
            await site.wish(device, 9)
            await site.reaches(device, 9)
            await site.forget(device.name)
            await site.until(lambda: device.name not in site.there)
            site.devices[device.name] = again = await harness.device(device.name)
            await site.come(again)
            assert await site.wish(again, 1) == Accepted(again.name)
            await site.reaches(again, 1)
            assert _generations(again.heard) == {1}

    async def test_a_forget_may_be_cancelled_anywhere(self, harness: DeviceHarness) -> None:
        """Cancelled at any await, it can be asked for again."""
        async with on_site(harness) as site:
            device = await site.add()
            await site.wish(device, 1)
            await _interrupt_everywhere(lambda: site.role.forget([device.name]))
            await site.forget(device.name)
            assert _of(await until_synced(site.role), device.name) == []

    # -- faults ---------------------------------------------------------------------------------

    async def test_a_link_is_cut(self, harness: DeviceHarness) -> None:
        """The device went, and came again; it hears the newest, and so do we."""
        async with on_site(harness) as site:
            device = await site.add()
            await site.wish(device, 1)
            await site.reaches(device, 1)
            await _faults(harness).cut(device.name)
            await site.until(lambda: device.name not in site.there, "it is told that it went")
            await site.wish(device, 2)
            await site.come(device, generation=1)
            await site.reaches(device, 2)
            await device.tell(report(2))
            await site.hears(device, report(2))

    async def test_a_link_is_cut_under_a_wish(self, harness: DeviceHarness) -> None:
        """What was Accepted and did not arrive is heard once the device comes again."""
        async with on_site(harness) as site:
            device, faults = await site.add(), _faults(harness)
            await faults.hold(device.name)
            await site.wish(device, 1)
            await faults.cut(device.name)
            await site.until(lambda: device.name not in site.there, "it is told that it went")
            assert list(device.heard) == []
            await site.come(device)
            await site.reaches(device, 1)

    async def test_a_link_that_died_is_noticed(self, harness: DeviceHarness) -> None:
        """A device of which nothing comes any more went, though nobody said so."""
        async with on_site(harness) as site:
            device = await site.add()
            await _faults(harness).silence(device.name)
            await site.until(lambda: device.name not in site.there, "its silence is noticed")
            await site.wish(device, 1)
            await site.come(device)
            await site.reaches(device, 1)

    async def test_a_new_link_takes_the_place_of_a_dead_one(self, harness: DeviceHarness) -> None:
        """A device may come again before anybody noticed that it went."""
        async with on_site(harness) as site:
            device, faults = await site.add(), _faults(harness)
            await faults.hold(device.name)
            await site.wish(device, 1)
            await site.come(device)
            await site.reaches(device, 1)
            await faults.let_go(device.name)
            assert await site.wish(device, 2) == Accepted(device.name)
            await site.reaches(device, 2)
            await _a_while(site)
            assert device.name in site.there

    async def test_what_a_former_link_brings_late_is_history(self, harness: DeviceHarness) -> None:
        """What a device said on the link that it has now is not replaced by it."""
        async with on_site(harness) as site:
            device, faults = await site.add(), _faults(harness)
            await faults.hold(device.name)
            await device.tell(report(1, "former"))
            await site.come(device)
            await device.tell(report(1, "now"))
            await site.hears(device, report(1, "now"))
            await faults.let_go(device.name)
            await _a_while(site)
            assert site.told[device.name] == report(1, "now")
            assert _told(await until_synced(site.role), device.name)[-1] == report(1, "now")

    async def test_reports_that_overtake_each_other(self, harness: DeviceHarness) -> None:
        """The newer of two is told last, or its generation says which it is."""
        async with on_site(harness) as site:
            device = await site.add()
            for first, second in ((report(1, "a"), report(1, "b")), (report(1, "c"), report(2))):
                await _faults(harness).swap_reports(device.name)
                await device.tell(first)
                await device.tell(second)
                await site.hears(device, second)
                await _a_while(site)
                assert site.told[device.name] == second

    async def test_a_report_that_comes_again_late(self, harness: DeviceHarness) -> None:
        """It hides nothing newer, also from who asks for reports then."""
        async with on_site(harness) as site:
            device = await site.add()
            for told in (report(1), report(2)):
                await device.tell(told)
                await site.hears(device, told)
            await _faults(harness).repeat_report(device.name)
            await _a_while(site)
            assert site.told[device.name] == report(2)
            again = _told(await until_synced(site.role), device.name)
            assert max(again, key=lambda one: one.generation) == report(2)

    async def test_a_lost_reply_is_asked_for_again(self, harness: DeviceHarness) -> None:
        """A wish that took effect is never called refused; repeated, it is Accepted."""
        async with on_site(harness) as site:
            device = await site.add()
            await _faults(harness).reply_lost_after_effect()
            assert not isinstance(await site.try_wish(device, 1), RefusedWish | Superseded)
            assert await site.wish(device, 1) == Accepted(device.name)
            await site.reaches(device, 1)

    async def test_a_doubled_call_wants_the_same(self, harness: DeviceHarness) -> None:
        """A transport that repeats a wish changes nothing."""
        async with on_site(harness) as site:
            device = await site.add()
            await _faults(harness).double_reply()
            assert await site.wish(device, 1) == Accepted(device.name)
            await site.reaches(device, 1)
            await _a_while(site)
            assert all(one == document(1) for one in device.heard)

    async def test_a_wish_that_lands_late_is_not_heard(self, harness: DeviceHarness) -> None:
        """One that takes effect after a newer one changes nothing."""
        async with on_site(harness) as site:
            device = await site.add()
            await _faults(harness).land_late(A_WHILE)
            async with asyncio.TaskGroup() as tasks:
                late = tasks.create_task(site.wish(device, 1), name="late")
                await harness.sleep(A_WHILE / 10)
                await _faults(harness).until_called()
                late.cancel()
            assert await site.wish(device, 2) == Accepted(device.name)
            await site.reaches(device, 2)
            await harness.sleep(2 * A_WHILE)
            await _a_while(site)
            assert device.heard[-1] == document(2)

    async def test_throttling_promises_that_nothing_happened(self, harness: DeviceHarness) -> None:
        """What was turned away is refused as Throttled, or done later; then it succeeds."""
        async with on_site(harness) as site:
            device = await site.add()
            await _faults(harness).throttle()
            outcome = await site.try_wish(device, 1)
            if isinstance(outcome, RefusedWish):
                assert isinstance(outcome.error, Throttled)
                await _a_while(site)
                assert list(device.heard) == []
                await harness.sleep(outcome.error.after or A_WHILE)
            assert await site.wish(device, 1) == Accepted(device.name)
            await site.reaches(device, 1)

    async def test_out_of_reach_is_not_gone(self, harness: DeviceHarness) -> None:
        """What is wished meanwhile is refused, or perhaps happened; then all is as it was."""
        async with on_site(harness) as site:
            device = await site.add()
            await _faults(harness).unreachable_for(A_WHILE)
            assert not isinstance(await site.try_wish(device, 1), Superseded)
            await harness.sleep(2 * A_WHILE)
            assert await site.wish(device, 2) == Accepted(device.name)
            await site.reaches(device, 2)
            await site.until(lambda: device.name in site.there)

    async def test_a_gap_is_told(self, harness: DeviceHarness) -> None:
        """Who missed something is told so, and then everything again: by these reports, or by
        those that are asked for once they end."""
        async with on_site(harness) as site:
            device = await site.add()
            await device.tell(report(1))
            await site.hears(device, report(1))
            await _faults(harness).gap()
            await site.until(lambda: any(isinstance(one, Gap) for one in site.news))
            at = next(n for n, one in enumerate(site.news) if isinstance(one, Gap))
            await site.until(lambda: Synced() in site.news[at:], "all is told again")
            assert _there(site.news[at:]) == {device.name}
            assert _told(site.news[at:], device.name)[-1] == report(1)

    async def test_reports_that_ended_are_asked_for_anew(self, harness: DeviceHarness) -> None:
        """Reports that end without a word lose nothing: the next tell what happened."""
        async with on_site(harness) as site:
            device = await site.add()
            await _faults(harness).end_watches()
            await device.tell(report(1))
            await site.hears(device, report(1))
            await site.wish(device, 1)
            await site.reaches(device, 1)


def _needs(harness: DeviceHarness, ability: Ability) -> None:
    if ability not in harness.abilities:
        pytest.skip(f"the transport lacks the ability {ability.name}")


def _faults(harness: DeviceHarness) -> DeviceFaults:
    return harness.faults or DeviceFaults()


def _fits(outcome: WishOutcome, generation: int) -> bool:
    """Whether a wish of this generation may be answered so, among others at the same time."""
    if isinstance(outcome, Superseded):
        return outcome.generation > generation
    return isinstance(outcome, Accepted)


def _generations(heard: Iterable[device_pb2.DeviceDesired]) -> set[int]:
    return {one.generation for one in heard}


def _device(one: DeviceNews) -> str:
    return "" if isinstance(one, Synced | Gap) else one.device


def _of(news: Iterable[DeviceNews], device: str) -> list[DeviceNews]:
    return [one for one in news if _device(one) == device]


def _told(news: Iterable[DeviceNews], device: str) -> list[device_pb2.DeviceReport]:
    """What a device is told to have said."""
    return [one.report for one in _of(news, device) if isinstance(one, DeviceTold)]


def _there(news: Iterable[DeviceNews]) -> set[str]:
    """Who is there by what was told."""
    there: set[str] = set()
    for one in news:
        if isinstance(one, DeviceCame):
            there.add(one.device)
        elif isinstance(one, DeviceWent):
            there.discard(one.device)
    return there


async def _a_while(site: Site) -> None:
    """Give what should not happen the time to."""
    await site.harness.sleep(A_WHILE)


async def _interrupt_everywhere(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Cancel a call at its first await, then at its second, until one ends before it is."""
    for at in range(1, MOST_AWAITS):
        cancelled, _ = await interrupted(call(), at)
        if not cancelled:
            return
