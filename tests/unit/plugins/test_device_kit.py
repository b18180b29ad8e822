"""The kit of devices: what keeps the rules passes it, and each rule that is broken is caught."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from far_service import FarService, ServiceDevices, ServiceFaults, ServiceHarness, Thing

from hatoba.v1 import device_pb2
from hatoba_plugins.conformance import DeviceConformance, DeviceHarness
from hatoba_plugins.conformance import sites as kit
from hatoba_plugins.errors import BackendError, Retry
from hatoba_plugins.values import (
    Accepted,
    DeviceCame,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    DeviceWish,
    Gap,
    RefusedWish,
    ReleaseOutcome,
    Superseded,
    Synced,
    WishOutcome,
)

Break = Callable[[pytest.MonkeyPatch], None]
CAUGHT = (AssertionError, BackendError, pytest.fail.Exception)


class TestServiceThatKeeps(DeviceConformance):
    """A provider's, with a document for each device."""

    @pytest.fixture
    def harness(self) -> DeviceHarness:
        return ServiceHarness()


class TestServiceThatPassesOn(DeviceConformance):
    """One that knows a device for as long as that has a link."""

    @pytest.fixture
    def harness(self) -> DeviceHarness:
        return ServiceHarness(keeps=False)


# -- wishes ----------------------------------------------------------------------------------------


def wants_whatever_comes_last(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.wanted

    def wanted(self: FarService, name: str, desired: device_pb2.DeviceDesired) -> int:
        if (thing := self.things.get(name)) is not None:
            thing.desired = None
        return honest(self, name, desired)

    patch.setattr(FarService, "wanted", wanted)


def says_only_that_it_is_old(patch: pytest.MonkeyPatch) -> None:
    changes_outcomes(
        patch, lambda one: Superseded(one.device, 0) if isinstance(one, Superseded) else one
    )


def believes_that_all_are_there(patch: pytest.MonkeyPatch) -> None:
    changes_outcomes(patch, lambda one: Accepted(one.device))


def changes_outcomes(
    patch: pytest.MonkeyPatch, change: Callable[[WishOutcome], WishOutcome]
) -> None:
    honest = ServiceDevices.desire_one

    async def desire_one(self: ServiceDevices, wish: DeviceWish) -> WishOutcome:
        return change(await honest(self, wish))

    patch.setattr(ServiceDevices, "desire_one", desire_one)


def refuses_what_it_has(patch: pytest.MonkeyPatch) -> None:
    honest = ServiceDevices.desire_one

    async def desire_one(self: ServiceDevices, wish: DeviceWish) -> WishOutcome:
        thing = self.service.things.get(wish.device)
        if thing is not None and thing.desired == wish.desired:
            return RefusedWish(wish.device, Retry("it has it"))
        return await honest(self, wish)

    patch.setattr(ServiceDevices, "desire_one", desire_one)


def keeps_all_that_was_missed(patch: pytest.MonkeyPatch) -> None:
    missed: dict[str, list[device_pb2.DeviceDesired]] = {}
    honest_hear, honest_in = Thing.hear, FarService.let_in

    def hear(self: Thing, desired: device_pb2.DeviceDesired) -> None:
        missed.setdefault(self.name, []).append(desired)
        honest_hear(self, desired)

    def let_in(self: FarService, thing: Thing, hello: device_pb2.DeviceHello) -> bool:
        came = honest_in(self, thing, hello)
        thing.heard += missed.pop(thing.name, [])
        return came

    patch.setattr(Thing, "hear", hear)
    patch.setattr(FarService, "let_in", let_in)


def keeps_nothing(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.let_in

    def let_in(self: FarService, thing: Thing, hello: device_pb2.DeviceHello) -> bool:
        thing.desired = None
        return honest(self, thing, hello)

    patch.setattr(FarService, "let_in", let_in)


def tells_each_once(patch: pytest.MonkeyPatch) -> None:
    def hear(self: Thing, desired: device_pb2.DeviceDesired) -> None:
        if self.link is not None and desired not in self.heard:
            self.heard.append(desired)

    patch.setattr(Thing, "hear", hear)


def answers_in_its_own_order(patch: pytest.MonkeyPatch) -> None:
    async def desire(self: ServiceDevices, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        ordered = sorted(wishes, key=lambda one: one.device)
        return [await self.desire_one(wish) for wish in ordered]

    patch.setattr(ServiceDevices, "desire", desire)


def ends_at_who_is_unknown(patch: pytest.MonkeyPatch) -> None:
    honest = ServiceDevices.desire

    async def desire(self: ServiceDevices, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        if not all(one.device in self.service.things for one in wishes):
            raise Retry("no such device")
        return await honest(self, wishes)

    patch.setattr(ServiceDevices, "desire", desire)


def cuts_long_documents(patch: pytest.MonkeyPatch) -> None:
    honest = Thing.hear

    def hear(self: Thing, desired: device_pb2.DeviceDesired) -> None:
        some = device_pb2.DeviceDesired(generation=desired.generation, wants=desired.wants[:32])
        honest(self, some)

    patch.setattr(Thing, "hear", hear)


def takes_nothing_for_no_news(patch: pytest.MonkeyPatch) -> None:
    honest = Thing.hear

    def hear(self: Thing, desired: device_pb2.DeviceDesired) -> None:
        if desired.wants:
            honest(self, desired)

    patch.setattr(Thing, "hear", hear)


def tells_everybody(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.wanted

    def wanted(self: FarService, name: str, desired: device_pb2.DeviceDesired) -> int:
        newest = [honest(self, one, desired) for one in self.things]
        return max(newest, default=desired.generation)

    patch.setattr(FarService, "wanted", wanted)


def looks_before_it_writes(patch: pytest.MonkeyPatch) -> None:
    """Others write meanwhile."""

    async def update(self: FarService, name: str, desired: device_pb2.DeviceDesired) -> int:
        thing = self.things[name]
        newest = thing.desired.generation if thing.desired is not None else 0
        await asyncio.sleep(0)
        if newest > desired.generation:
            return newest
        thing.desired = desired
        thing.hear(desired)
        return desired.generation

    patch.setattr(FarService, "update", update)


def calls_a_lost_reply_refused(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.update

    async def update(self: FarService, name: str, desired: device_pb2.DeviceDesired) -> int:
        try:
            return await honest(self, name, desired)
        except OSError as error:
            raise Retry("try again") from error

    patch.setattr(FarService, "update", update)


def acts_before_it_is_throttled(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.update

    async def update(self: FarService, name: str, desired: device_pb2.DeviceDesired) -> int:
        self.wanted(name, desired)
        return await honest(self, name, desired)

    patch.setattr(FarService, "update", update)


def spends_no_budget(patch: pytest.MonkeyPatch) -> None:
    honest = ServiceDevices.desire

    async def desire(self: ServiceDevices, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        self.ctx.budget.asked.set()  # type: ignore[attr-defined]
        for wish in wishes:
            await self.service.update(wish.device, wish.desired)
        return await honest(self, wishes)

    patch.setattr(ServiceDevices, "desire", desire)


# -- reports ---------------------------------------------------------------------------------------


def changes_news(
    patch: pytest.MonkeyPatch, change: Callable[[DeviceNews], DeviceNews | None]
) -> None:
    """None: it is not told."""
    honest = ServiceDevices.reports

    async def reports(self: ServiceDevices) -> AsyncIterator[DeviceNews]:
        async for one in honest(self):
            if (changed := change(one)) is not None:
                yield changed

    patch.setattr(ServiceDevices, "reports", reports)


def tells_only_news(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FarService, "everything", lambda self: [Synced()])


def never_has_told_all(patch: pytest.MonkeyPatch) -> None:
    changes_news(patch, lambda one: None if isinstance(one, Synced) else one)


def tells_nobody_left(patch: pytest.MonkeyPatch) -> None:
    changes_news(patch, lambda one: None if isinstance(one, DeviceWent) else one)


def introduces_nobody(patch: pytest.MonkeyPatch) -> None:
    def bare(one: DeviceNews) -> DeviceNews:
        if isinstance(one, DeviceCame):
            return DeviceCame(one.device, device_pb2.DeviceHello(device=one.device), "shadow")
        return one

    changes_news(patch, bare)


def does_not_say_how_they_come(patch: pytest.MonkeyPatch) -> None:
    def bare(one: DeviceNews) -> DeviceNews:
        return DeviceCame(one.device, one.hello, "") if isinstance(one, DeviceCame) else one

    changes_news(patch, bare)


def tells_half_a_report(patch: pytest.MonkeyPatch) -> None:
    def half(one: DeviceNews) -> DeviceNews:
        if not isinstance(one, DeviceTold):
            return one
        some = device_pb2.DeviceReport()
        some.CopyFrom(one.report)
        del some.slots[32:]
        return DeviceTold(one.device, some)

    changes_news(patch, half)


def tells_the_first_of_a_generation(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.told

    def told(self: FarService, thing: Thing, piece: tuple[int, device_pb2.DeviceReport]) -> None:
        known = thing.reported
        if known is None or known.generation < piece[1].generation:
            honest(self, thing, piece)

    patch.setattr(FarService, "told", told)


def remembers_who_was_there(patch: pytest.MonkeyPatch) -> None:
    hellos: dict[str, device_pb2.DeviceHello] = {}
    honest_in, honest_all = FarService.let_in, FarService.everything

    def let_in(self: FarService, thing: Thing, hello: device_pb2.DeviceHello) -> bool:
        hellos[thing.name] = hello
        return honest_in(self, thing, hello)

    def everything(self: FarService) -> list[DeviceNews]:
        came = [DeviceCame(name, hello, "shadow") for name, hello in hellos.items()]
        return [*came, *honest_all(self)]

    patch.setattr(FarService, "let_in", let_in)
    patch.setattr(FarService, "everything", everything)


def has_one_reader(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.listen

    def listen(self: FarService) -> asyncio.Queue[DeviceNews | None]:
        self.readers.clear()
        return honest(self)

    patch.setattr(FarService, "listen", listen)


def drops_what_is_not_read(patch: pytest.MonkeyPatch) -> None:
    def tell(self: FarService, *news: DeviceNews | None) -> None:
        for queue in self.readers:
            if queue.qsize() < 10:
                for one in news:
                    queue.put_nowait(one)

    patch.setattr(FarService, "tell", tell)


def believes_whatever_arrives(patch: pytest.MonkeyPatch) -> None:
    def told(self: FarService, thing: Thing, piece: tuple[int, device_pb2.DeviceReport]) -> None:
        thing.reported = piece[1]
        self.tell(DeviceTold(thing.name, piece[1]))

    patch.setattr(FarService, "told", told)


def tells_nothing_after_a_gap(patch: pytest.MonkeyPatch) -> None:
    async def gap(self: ServiceFaults) -> None:
        self._service.tell(Gap())

    patch.setattr(ServiceFaults, "gap", gap)


def hides_gaps(patch: pytest.MonkeyPatch) -> None:
    changes_news(patch, lambda one: None if isinstance(one, Gap) else one)


def forgets_all_when_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FarService, "restart", lambda self: self.things.clear())


def loses_all_wishes_when_closed(patch: pytest.MonkeyPatch) -> None:
    def restart(self: FarService) -> None:
        for thing in self.things.values():
            thing.desired = None

    patch.setattr(FarService, "restart", restart)


def takes_a_former_links_end_for_the_new_ones(patch: pytest.MonkeyPatch) -> None:
    honest = ServiceFaults.let_go

    async def let_go(self: ServiceFaults, device: str) -> None:
        await honest(self, device)
        self._service.left(self._service.things[device])

    patch.setattr(ServiceFaults, "let_go", let_go)


def misses_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ServiceFaults, "silence", ServiceFaults.hold)


# -- forget ----------------------------------------------------------------------------------------


def forgets_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FarService, "forget", lambda self, name: None)


def forgets_only_links(patch: pytest.MonkeyPatch) -> None:
    def forget(self: FarService, name: str) -> None:
        if (thing := self.things.get(name)) is not None:
            self.left(thing)

    patch.setattr(FarService, "forget", forget)


def forgets_everybody(patch: pytest.MonkeyPatch) -> None:
    honest = FarService.forget

    def forget(self: FarService, name: str) -> None:
        for one in list(self.things):
            honest(self, one)

    patch.setattr(FarService, "forget", forget)


def keeps_the_generation(patch: pytest.MonkeyPatch) -> None:
    newest: dict[str, int] = {}
    honest = FarService.wanted

    def wanted(self: FarService, name: str, desired: device_pb2.DeviceDesired) -> int:
        newest[name] = max(newest.get(name, 0), desired.generation)
        return max(newest[name], honest(self, name, desired))

    patch.setattr(FarService, "wanted", wanted)


def forgets_only_what_it_has(patch: pytest.MonkeyPatch) -> None:
    honest = ServiceDevices.forget

    async def forget(self: ServiceDevices, devices: Sequence[str]) -> list[ReleaseOutcome]:
        known = [name for name in devices if name in self.service.things]
        return await honest(self, known)

    patch.setattr(ServiceDevices, "forget", forget)


BROKEN: list[tuple[Break, str]] = [
    (wants_whatever_comes_last, "test_a_lower_generation_is_superseded"),
    (wants_whatever_comes_last, "test_answers_come_in_order"),
    (wants_whatever_comes_last, "test_a_wish_that_lands_late_is_not_heard"),
    (wants_whatever_comes_last, "test_generations_outlive_a_restart"),
    (says_only_that_it_is_old, "test_a_lower_generation_is_superseded"),
    (refuses_what_it_has, "test_a_wish_is_idempotent"),
    (refuses_what_it_has, "test_a_lost_reply_is_asked_for_again"),
    (keeps_all_that_was_missed, "test_who_comes_late_gets_only_the_newest"),
    (keeps_nothing, "test_what_is_kept_needs_no_second_wish"),
    (loses_all_wishes_when_closed, "test_what_is_kept_needs_no_second_wish"),
    (loses_all_wishes_when_closed, "test_generations_outlive_a_restart"),
    (tells_each_once, "test_who_comes_again_hears_it_again"),
    (answers_in_its_own_order, "test_a_thousand_wishes"),
    (ends_at_who_is_unknown, "test_a_name_that_no_device_has"),
    (ends_at_who_is_unknown, "test_a_thousand_wishes"),
    (tells_everybody, "test_devices_hear_their_own"),
    (looks_before_it_writes, "test_calls_at_the_same_time"),
    (calls_a_lost_reply_refused, "test_a_lost_reply_is_asked_for_again"),
    (acts_before_it_is_throttled, "test_throttling_promises_that_nothing_happened"),
    (spends_no_budget, "test_the_budget_is_asked_before_each_call"),
    (tells_only_news, "test_reports_begin_with_all_that_is_known"),
    (tells_only_news, "test_who_stopped_reading_asks_anew"),
    (never_has_told_all, "test_reports_begin_with_all_that_is_known"),
    (never_has_told_all, "test_nobody_is_there"),
    (tells_nobody_left, "test_who_goes_is_told_of"),
    (tells_nobody_left, "test_a_link_is_cut"),
    (introduces_nobody, "test_who_comes_is_told_of"),
    (does_not_say_how_they_come, "test_who_comes_is_told_of"),
    (tells_the_first_of_a_generation, "test_the_newest_report_is_told_last"),
    (tells_the_first_of_a_generation, "test_a_report_that_is_told_twice"),
    (remembers_who_was_there, "test_reports_begin_with_all_that_is_known"),
    (remembers_who_was_there, "test_who_stopped_reading_asks_anew"),
    (has_one_reader, "test_readers_do_not_take_from_each_other"),
    (drops_what_is_not_read, "test_who_reads_slowly_gets_the_newest"),
    (believes_whatever_arrives, "test_reports_that_overtake_each_other"),
    (believes_whatever_arrives, "test_a_report_that_comes_again_late"),
    (believes_whatever_arrives, "test_what_a_former_link_brings_late_is_history"),
    (tells_nothing_after_a_gap, "test_a_gap_is_told"),
    (hides_gaps, "test_a_gap_is_told"),
    (forgets_all_when_closed, "test_a_restart_while_devices_are_there"),
    (takes_a_former_links_end_for_the_new_ones, "test_a_new_link_takes_the_place_of_a_dead_one"),
    (misses_nobody, "test_a_link_that_died_is_noticed"),
    (forgets_nothing, "test_nothing_is_heard_of_who_was_forgotten"),
    (forgets_nothing, "test_nothing_reaches_who_was_forgotten"),
    (forgets_only_links, "test_nothing_is_heard_of_who_was_forgotten"),
    (forgets_only_links, "test_nothing_reaches_who_was_forgotten"),
    (forgets_everybody, "test_others_are_not_forgotten"),
    (keeps_the_generation, "test_a_name_begins_anew"),
    (forgets_only_what_it_has, "test_forget_is_idempotent"),
]


@pytest.mark.parametrize(
    ("sabotage", "rule"), BROKEN, ids=lambda one: getattr(one, "__name__", one)
)
async def test_a_broken_backend_fails_its_rule(
    monkeypatch: pytest.MonkeyPatch, sabotage: Break, rule: str
) -> None:
    await fails(monkeypatch, sabotage, getattr(DeviceConformance(), rule), ServiceHarness())


async def test_a_backend_that_keeps_nothing_may_not_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = DeviceConformance().test_who_is_away_is_told_so
    harness = ServiceHarness(keeps=False)
    await fails(monkeypatch, believes_that_all_are_there, rule, harness)


@pytest.mark.parametrize(
    ("sabotage", "wants"), [(cuts_long_documents, 64), (takes_nothing_for_no_news, 0)]
)
async def test_documents_that_do_not_arrive_are_missed(
    monkeypatch: pytest.MonkeyPatch, sabotage: Break, wants: int
) -> None:
    async def rule(harness: DeviceHarness) -> None:
        await DeviceConformance().test_documents_of_any_size(harness, wants)

    await fails(monkeypatch, sabotage, rule, ServiceHarness())


async def test_reports_that_arrive_in_part_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def rule(harness: DeviceHarness) -> None:
        await DeviceConformance().test_a_report_is_told_whole(harness, 64)

    await fails(monkeypatch, tells_half_a_report, rule, ServiceHarness())


async def fails(
    patch: pytest.MonkeyPatch, sabotage: Break, rule: Any, harness: ServiceHarness
) -> None:
    """The suites above show that it passes without the sabotage."""
    sabotage(patch)
    patch.setattr(kit, "PATIENCE", 0.2)
    with pytest.raises(CAUGHT):
        await rule(harness)


def test_every_rule_has_its_sentence() -> None:
    rules = [rule for name, rule in vars(DeviceConformance).items() if name.startswith("test_")]
    assert len(rules) >= 40
    assert [rule.__name__ for rule in rules if not rule.__doc__] == []
