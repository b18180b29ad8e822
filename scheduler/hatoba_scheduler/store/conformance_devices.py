"""What every store must do with devices, as a pytest suite like `StoreConformance`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from hatoba_scheduler.domain.deployments import Change, Deployment, Settings, Strategy
from hatoba_scheduler.domain.device_rollouts import Row, Stage
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState, Platform, Want
from hatoba_scheduler.store.base import Duplicate, RequestKey, Stale, Store
from hatoba_scheduler.store.conformance import CAUSE, Clock, OpenStore
from hatoba_scheduler.store.deployments import Taken
from hatoba_scheduler.store.devices import (
    AT_ONCE,
    KEPT_EVENTS,
    KEPT_RECORDS,
    DeviceEvent,
    DeviceRecord,
    DeviceToken,
    NotEnrolled,
    RecordKind,
    Write,
)
from hatoba_scheduler.store.errors import WriteRefused

UID = "019a0000-0000-7000-8000-000000000001"
TOKEN = DeviceToken("t1", 2, (("site", "tokyo"), ("größe", "")), transport="aws-iot")
LOG, FIGURE, HAPPENING = RecordKind.LOG, RecordKind.FIGURE, RecordKind.HAPPENING
GAP = RecordKind.GAP


def new_device(name: str = "edge-1", version: int = 1) -> Device:
    """A device as it is when it enrolled."""
    room = Capacity(4.0, 1 << 30, 8 << 30)
    return Device(
        name, DeviceState.ENROLLED, (), Platform("arm64"), room, version, identity=f"i-{name}"
    )


def whole_device(name: str = "edge-1", version: int = 1) -> Device:
    """A device of which no field has its default."""
    return Device(
        name=name,
        state=DeviceState.LEAVING,
        labels=(("site", "tokyo"), ("größe", "ß")),
        platform=Platform("arm", "v7"),
        capacity=Capacity(0.1, 1 << 40, 2**53 + 1, False, False),
        version=version,
        generation=12,
        wants=(Want("projects/default/deployments/a", 3, 1), Want("projects/p/deployments/b", 1)),
        acked=11,
        reported=10,
        boot_id="boot",
        agent="1.2.3",
        transport="aws-iot",
        create_time=4,
        last_seen=5,
        identity="identity",
        certificate_end=2**60,
        certificate_since=2**59,
        installation="installation",
        report=b"\x00\xffreport",
    )


def happened(device: str = "edge-1", message: str = "It came.") -> DeviceEvent:
    """An event to be kept."""
    return DeviceEvent(device, 7, "labels", message, "ann")


def row(device: str, number: int = 1, stage: Stage = Stage.WAITING, uid: str = UID) -> Row:
    """A device's way in a roll-out."""
    return Row(uid, number, device, 2, stage, 3)


def record(position: int, kind: RecordKind = LOG, deployment: str = "") -> DeviceRecord:
    """Something that a device sent."""
    return DeviceRecord(position, 1_000 + position, kind, deployment, b"body %d" % position)


def gap(position: int, lost: int) -> DeviceRecord:
    """So many records that never came, up to a position."""
    return DeviceRecord(position, 1_000 + position, GAP, "", b"", lost)


def places(found: Iterable[DeviceRecord]) -> list[tuple[int, int]]:
    """Where records are, and what was lost before each."""
    return [(one.position, one.lost) for one in found]


def deployment(version: int = 1) -> Deployment:
    """A deployment without revisions."""
    return Deployment(
        uid=UID,
        project="default",
        name="reader",
        backend="edge",
        settings=Settings(b"spec", "projects/default/models/digits@production", 0, Strategy()),
        version=version,
        settings_version=1,
        generation=0,
        wanted=(),
        current=0,
        newest=0,
        following=True,
        followed="",
        rollout=None,
        events=0,
        create_time=1,
        created_by="ann",
    )


async def put(store: Store, *devices: Device) -> None:
    """Keep new devices."""
    assert await store.devices.write([Write(one, 0) for one in devices]) == frozenset()


async def loaded(store: Store) -> dict[str, Device]:
    """All devices by name."""
    return {one.name: one for one in await store.devices.load()}


async def enroll(
    store: Store, device: Device, key: str = "k1", token: str = "t1", expected: int = 0
) -> Device | NotEnrolled | None:
    """Make a machine a device."""
    told = happened(device.name, f"Enrolled with {token}.")
    return await store.devices.enroll(Write(device, expected), key, token, told)


def positions(records: Iterable[DeviceRecord]) -> list[int]:
    """Their positions, in their order."""
    return [one.position for one in records]


class DeviceStoreConformance:
    """Every sentence of `DeviceStore`, as a test."""

    @pytest.fixture
    async def store(self, open_store: OpenStore, tmp_path: Path) -> AsyncIterator[Store]:
        """An empty store."""
        found = await open_store(tmp_path, Clock())
        yield found
        await found.close()

    # -- devices --------------------------------------------------------------------------------

    async def test_a_device_is_stored_whole(self, store: Store) -> None:
        """What is read is what was written."""
        devices = [whole_device("b"), new_device("a")]
        await put(store, *devices)
        assert await loaded(store) == {one.name: one for one in devices}
        changed = replace(
            new_device("b", 2), labels=(("site", "osaka"),), wants=(Want("d", 1),), report=b"x"
        )
        assert await store.devices.write([Write(changed, 1)]) == frozenset()
        assert (await loaded(store))["b"] == changed

    async def test_a_device_is_written_only_over_what_was_looked_at(self, store: Store) -> None:
        """Stale ones are named and left as they are; the others of the call are written."""
        await put(store, new_device("a"), new_device("b"))
        writes = [
            Write(new_device("a", 3), 2),
            Write(new_device("b", 2), 1),
            Write(new_device("c", 2), 1),
            Write(new_device("d"), 0),
        ]
        assert await store.devices.write(writes) == {"a", "c"}
        found = await loaded(store)
        assert {name: one.version for name, one in found.items()} == {"a": 1, "b": 2, "d": 1}
        assert await store.devices.write([Write(new_device("d", 7), 0)]) == {"d"}

    async def test_writes_of_one_device_follow_each_other(self, store: Store) -> None:
        """Within a call and between calls that overlap: each is judged after the one before."""
        assert not await store.devices.write(
            [Write(new_device(), 0), Write(new_device(version=2), 1)]
        )
        answers = await asyncio.gather(
            *(store.devices.write([Write(new_device(version=3), 2)]) for _ in range(3))
        )
        assert answers == [frozenset(), {"edge-1"}, {"edge-1"}]
        assert (await loaded(store))["edge-1"].version == 3

    async def test_as_many_as_callers_may_write_at_once(self, store: Store) -> None:
        """Devices, their events and their rows."""
        names = [f"d{number:04}" for number in range(AT_ONCE)]
        writes = [Write(new_device(name), 0) for name in names]
        events = [happened(name) for name in names]
        assert not await store.devices.write(writes, events)
        assert sorted(await loaded(store)) == names
        await store.devices.put_rows([row(name) for name in names])
        assert [one.device for one in await store.devices.rows(UID, 1)] == names
        assert [one.seq for one in await store.devices.events(names[-1], 0, 9)] == [1]

    async def test_what_cannot_be_written_leaves_nothing(self, store: Store) -> None:
        """Devices and events of a call are one."""
        await put(store, new_device("a"))
        wrong = replace(new_device("b"), report="no bytes")  # type: ignore[arg-type]
        with pytest.raises(WriteRefused):
            await store.devices.write([Write(new_device("a", 2), 1), Write(wrong, 0)])
        event = happened("a")._replace(message=b"no text")  # type: ignore[arg-type]
        with pytest.raises(WriteRefused):
            await store.devices.write([Write(new_device("a", 2), 1)], [happened("a"), event])
        assert await loaded(store) == {"a": new_device("a")}
        assert await store.devices.events("a", 0, 9) == []

    async def test_when_it_was_seen_changes_nothing_else(self, store: Store) -> None:
        """And who is no device is none after it either."""
        await put(store, whole_device("a", 3), new_device("b"))
        await store.devices.touch([("a", 70), ("nobody", 1), ("b", 60), ("a", 80)])
        assert await loaded(store) == {
            "a": replace(whole_device("a", 3), last_seen=80),
            "b": replace(new_device("b"), last_seen=60),
        }
        await store.devices.touch([])
        assert not await store.devices.write([Write(new_device("a", 4), 3)])

    async def test_removed_is_all_that_was_known_of_it(self, store: Store) -> None:
        """Twice is once; of others nothing goes, and one of its name begins from nothing."""
        for name in ("a", "b"):
            await put(store, new_device(name))
            await store.devices.write([], [happened(name)])
            await store.devices.put_rows([row(name), row(name, 2)])
            await store.devices.add_records(name, [record(5)])
        for _ in range(2):
            await store.devices.remove("a")
        assert list(await loaded(store)) == ["b"]
        assert [one.device for one in await store.devices.rows(UID, 1)] == ["b"]
        assert [one.device for one in await store.devices.rows(UID, 2)] == ["b"]
        assert len(await store.devices.events("b", 0, 9)) == 1
        assert await store.devices.newest_record("b") == 5
        await put(store, new_device("a"))
        assert await store.devices.events("a", 0, 9) == []
        assert await store.devices.newest_record("a") == 0
        assert await store.devices.records("a", LOG, "", 0, 9) == []
        assert await store.devices.add_records("a", [record(1)]) == 1

    # -- events ---------------------------------------------------------------------------------

    async def test_events_are_numbered_for_each_device(self, store: Store) -> None:
        """From 1 without gaps, over calls as within one, also where their device was stale."""
        await put(store, new_device("a"), new_device("b"))
        told = [happened("a", "one"), happened("b", "one"), happened("a", "two")]
        await store.devices.write([], told)
        stale = await store.devices.write([Write(new_device("a"), 9)], [happened("a", "three")])
        assert stale == {"a"}
        found = await store.devices.events("a", 0, 9)
        assert found == [
            happened("a", text)._replace(seq=seq)
            for seq, text in ((3, "three"), (2, "two"), (1, "one"))
        ]
        assert [one.seq for one in await store.devices.events("a", 3, 1)] == [2]
        assert [one.seq for one in await store.devices.events("b", 0, 9)] == [1]

    async def test_of_events_the_newest_stay(self, store: Store) -> None:
        """Of each device by itself, and the numbers go on."""
        await put(store, new_device("a"), new_device("b"))
        await store.devices.write([], [happened("a", str(seq)) for seq in range(KEPT_EVENTS)])
        await store.devices.write([], [happened("b"), *(happened("a", "late") for _ in range(3))])
        found = await store.devices.events("a", 0, 2 * KEPT_EVENTS)
        assert [one.seq for one in found] == list(range(KEPT_EVENTS + 3, 3, -1))
        assert len(await store.devices.events("b", 0, 9)) == 1

    async def test_nothing_is_kept_of_who_is_no_device(self, store: Store) -> None:
        """One that is made by the same call is one."""
        events = [happened("a"), happened("nobody")]
        assert not await store.devices.write([Write(new_device("a"), 0)], events)
        assert len(await store.devices.events("a", 0, 9)) == 1
        assert await store.devices.events("nobody", 0, 9) == []
        assert await store.devices.add_records("nobody", [record(4)]) == 0
        assert await store.devices.newest_record("nobody") == 0
        assert await store.devices.records("nobody", LOG, "", 0, 9) == []

    # -- becoming one ---------------------------------------------------------------------------

    async def test_the_terms_of_a_token_are_kept(self, store: Store) -> None:
        """And put once."""
        bound = DeviceToken("t2", 1, (), "edge-1")
        await store.devices.put_token(TOKEN)
        await store.devices.put_token(bound)
        await store.devices.put_token(replace(TOKEN, uses=9))
        assert await store.devices.token("t1") == TOKEN
        assert await store.devices.token("t2") == bound
        assert await store.devices.token("t3") is None
        assert await store.devices.tokens(["t1", "t3", "t2"]) == {"t1": TOKEN, "t2": bound}

    async def test_a_machine_becomes_a_device_by_a_use_of_a_token(self, store: Store) -> None:
        """As often as the token says; who comes later makes nothing."""
        await store.devices.put_token(TOKEN)
        assert await enroll(store, whole_device("a"), "k1") is None
        assert await enroll(store, new_device("b"), "k2") is None
        assert await store.devices.token("t1") == replace(TOKEN, used=2)
        assert await enroll(store, new_device("c"), "k3") is NotEnrolled.USED_UP
        assert await loaded(store) == {"a": whole_device("a"), "b": new_device("b")}
        assert await store.devices.events("a", 0, 9) == [
            happened("a", "Enrolled with t1.")._replace(seq=1)
        ]
        assert await store.devices.events("c", 0, 9) == []

    async def test_a_token_that_is_not_known_makes_nothing(self, store: Store) -> None:
        """It has no use left."""
        assert await enroll(store, new_device()) is NotEnrolled.USED_UP
        assert await loaded(store) == {}

    async def test_the_same_key_again_is_the_same_device(self, store: Store) -> None:
        """As it is now, whatever name is asked for, and without a use."""
        await store.devices.put_token(replace(TOKEN, uses=1))
        assert await enroll(store, new_device("a")) is None
        changed = replace(new_device("a", 2), labels=(("site", "osaka"),))
        await store.devices.write([Write(changed, 1)])
        assert await enroll(store, new_device("a")) == changed
        assert await enroll(store, new_device("other")) == changed
        assert await loaded(store) == {"a": changed}
        assert len(await store.devices.events("a", 0, 9)) == 1

    async def test_of_machines_that_come_at_once_one_gets_the_last_use(self, store: Store) -> None:
        """The others are told."""
        await store.devices.put_token(replace(TOKEN, uses=1))
        answers = await asyncio.gather(
            *(enroll(store, new_device(f"d{n}"), f"k{n}") for n in range(5))
        )
        assert answers == [None, *[NotEnrolled.USED_UP] * 4]
        assert list(await loaded(store)) == ["d0"]

    async def test_a_name_is_taken_once(self, store: Store) -> None:
        """Whatever version is expected; the token keeps its use, and another name helps."""
        await store.devices.put_token(TOKEN)
        await put(store, new_device("a"))
        for expected in (0, 1):
            answer = await enroll(store, new_device("a", 2), expected=expected)
            assert answer is NotEnrolled.NAME_TAKEN
        assert await loaded(store) == {"a": new_device("a")}
        assert await store.devices.token("t1") == TOKEN
        assert await store.devices.events("a", 0, 9) == []
        assert await enroll(store, new_device("b")) is None

    async def test_a_token_for_a_device_makes_it_anew(self, store: Store) -> None:
        """Over the version that was looked at, and no other device; what it sends begins at 1."""
        await put(store, new_device("a"), new_device("b"))
        await store.devices.add_records("a", [record(40)])
        await store.devices.put_token(DeviceToken("t1", 1, (), "a"))
        anew = replace(new_device("a", 3), identity="another")
        assert await enroll(store, anew, expected=2) is NotEnrolled.NAME_TAKEN
        assert await enroll(store, new_device("b", 2), expected=1) is NotEnrolled.NAME_TAKEN
        assert await enroll(store, anew, expected=1) is None
        assert await loaded(store) == {"a": anew, "b": new_device("b")}
        assert await store.devices.newest_record("a") == 0
        assert await store.devices.add_records("a", [record(1)]) == 1
        assert positions(await store.devices.records("a", LOG, "", 0, 9)) == [1]

    async def test_a_key_of_before_does_not_get_a_device_that_was_made_anew(
        self, store: Store
    ) -> None:
        """Whoever has it is not that device any more."""
        await store.devices.put_token(DeviceToken("t1", 1))
        await store.devices.put_token(DeviceToken("t2", 1, (), "a"))
        assert await enroll(store, new_device("a"), "old") is None
        anew = replace(new_device("a", 2), identity="another")
        assert await enroll(store, anew, "new", "t2", expected=1) is None
        assert await enroll(store, new_device("a"), "old") is NotEnrolled.USED_UP
        assert await enroll(store, anew, "new", "t2") == anew

    async def test_a_removed_device_does_not_come_back_with_its_key(self, store: Store) -> None:
        """Not where its token has uses, nor as another device of its name; with another token it
        is a new machine."""
        await store.devices.put_token(TOKEN)
        await store.devices.put_token(replace(TOKEN, id="t2"))
        assert await enroll(store, new_device("a")) is None
        await store.devices.remove("a")
        assert await enroll(store, new_device("a")) is NotEnrolled.USED_UP
        other = replace(new_device("a"), identity="other")
        assert await enroll(store, other, "k2") is None
        assert await enroll(store, new_device("a")) is NotEnrolled.USED_UP
        assert await enroll(store, new_device("b"), "k1", "t2") is None

    async def test_half_a_device_is_not_made(self, store: Store) -> None:
        """Where its event cannot be kept there is neither device nor use, and the key is free."""
        await store.devices.put_token(TOKEN)
        event = happened("a")._replace(message=b"no text")  # type: ignore[arg-type]
        with pytest.raises(WriteRefused):
            await store.devices.enroll(Write(new_device("a"), 0), "k1", "t1", event)
        assert await loaded(store) == {}
        assert await store.devices.token("t1") == TOKEN
        assert await enroll(store, new_device("a")) is None

    # -- roll-outs ------------------------------------------------------------------------------

    async def test_rows_are_stored_whole_and_replaced(self, store: Store) -> None:
        """Each of its deployment, number and device, by device."""
        whole = Row(UID, 1, "b", 2, Stage.FAILED, 3, 4, 5, 6, CAUSE)
        others = [row("b", 2), row("b", uid="another")]
        await store.devices.put_rows([whole, row("a"), *others])
        assert await store.devices.rows(UID, 1) == [row("a"), whole]
        fresh = Row(UID, 1, "b", 0, Stage.OFFERED, 9)
        await store.devices.put_rows([row("b"), fresh])
        assert await store.devices.rows(UID, 1) == [row("a"), fresh]
        assert await store.devices.rows(UID, 2) == others[:1]
        assert await store.devices.rows("another", 1) == others[1:]
        assert await store.devices.rows(UID, 3) == []

    async def test_rows_come_in_pages_by_stage(self, store: Store) -> None:
        """By device after a name; no stages are all."""
        stages = [Stage.SUCCEEDED, Stage.FAILED, Stage.WAITING]
        rows = [row(f"d{n}", stage=stages[n % 3]) for n in range(9)]
        await store.devices.put_rows([*rows[::-1], row("d0", 2), row("d0", uid="another")])
        page = store.devices.page_of_rows
        assert await page(UID, 1, "", 4, ()) == rows[:4]
        assert await page(UID, 1, "d3", 100, ()) == rows[4:]
        wanted = {Stage.FAILED, Stage.WAITING}
        some = [one for one in rows if one.stage in wanted]
        assert await page(UID, 1, "", 3, wanted) == some[:3]
        assert await page(UID, 1, some[2].device, 3, wanted) == some[3:]
        assert await page(UID, 1, "", 9, [Stage.LEFT]) == []

    async def test_rows_of_earlier_roll_outs_are_dropped(self, store: Store) -> None:
        """Below the number, and of that deployment alone."""
        rows = [row("a", number) for number in (1, 2, 3)]
        await store.devices.put_rows([*rows, row("a", uid="another")])
        await store.devices.drop_rows(UID, 3)
        assert [await store.devices.rows(UID, number) for number in (1, 2, 3)] == [[], [], rows[2:]]
        assert len(await store.devices.rows("another", 1)) == 1

    async def test_rows_are_written_with_their_deployments_change(self, store: Store) -> None:
        """Both or none: not where the change is refused or its request is known."""
        key = RequestKey("default", "UpdateDeployment", "r-1", b"\x01" * 32)
        apply = store.deployments.apply
        assert await apply(Change(deployment(), 0), None, [row("a"), row("b")]) is None
        assert await store.devices.rows(UID, 1) == [row("a"), row("b")]
        fresh = row("a", stage=Stage.OFFERED)
        assert await apply(Change(deployment(9), 8), None, [fresh]) is Stale.STALE
        other = replace(deployment(), uid="another")
        assert await apply(Change(other, 0), None, [fresh]) is Taken.TAKEN
        assert await store.devices.rows(UID, 1) == [row("a"), row("b")]
        assert await apply(Change(deployment(2), 1), key, [fresh]) is None
        assert await apply(Change(deployment(3), 2), key, [row("b", 2)]) == Duplicate(UID)
        assert await store.devices.rows(UID, 1) == [fresh, row("b")]
        assert await store.devices.rows(UID, 2) == []

    async def test_a_change_is_not_written_without_its_rows(self, store: Store) -> None:
        """Where one of them is refused."""
        wrong = replace(row("b"), since="no time")  # type: ignore[arg-type]
        with pytest.raises(WriteRefused):
            await store.deployments.apply(Change(deployment(), 0), None, [row("a"), wrong])
        assert await store.deployments.load() == []
        assert await store.devices.rows(UID, 1) == []

    async def test_the_rows_of_a_deployment_go_with_it(self, store: Store) -> None:
        """Of all its roll-outs; those of others stay."""
        rows = [row("a"), row("a", 7), row("a", uid="another")]
        assert await store.deployments.apply(Change(deployment(), 0), None, rows) is None
        await store.deployments.remove(UID)
        assert await store.devices.rows(UID, 1) == await store.devices.rows(UID, 7) == []
        assert await store.devices.rows("another", 1) == rows[2:]

    # -- what they sent -------------------------------------------------------------------------

    async def test_records_are_stored_whole(self, store: Store) -> None:
        """Whatever their positions are."""
        await put(store, new_device())
        sent = [
            DeviceRecord(3, 1, LOG, "projects/p/deployments/a", b"\x00\xff"),
            DeviceRecord(4, 2, FIGURE, "", b""),
            DeviceRecord(2**53, 3, HAPPENING, "", b"x"),
        ]
        assert await store.devices.add_records("edge-1", sent) == 2**53
        for place, kind in enumerate((LOG, FIGURE, HAPPENING)):
            assert await store.devices.records("edge-1", kind, "", 0, 9) == [sent[place]]

    async def test_what_was_lost_is_told_of_any_kind(self, store: Store) -> None:
        """Once to whoever asks for one of them, also where nothing of that kind came since."""
        await put(store, new_device())
        sent = [record(1), gap(8, 7), record(9, FIGURE, "a"), gap(11, 2), record(12), gap(20, 8)]
        assert await store.devices.add_records("edge-1", sent) == 20
        records = store.devices.records
        assert places(await records("edge-1", LOG, "", 0, 9)) == [(1, 0), (12, 9), (20, 8)]
        assert places(await records("edge-1", LOG, "", 0, 1)) == [(12, 9), (20, 8)]
        assert places(await records("edge-1", FIGURE, "a", 0, 9)) == [(9, 7), (20, 10)]
        assert places(await records("edge-1", FIGURE, "b", 0, 9)) == [(20, 17)]
        (last,) = await records("edge-1", HAPPENING, "", 0, 9)
        assert last == gap(20, 17)

    async def test_what_was_lost_is_told_once_over_pages(self, store: Store) -> None:
        """To who goes on after the last of a page, also when more comes meanwhile."""
        await put(store, new_device())
        await store.devices.add_records("edge-1", [record(1), gap(4, 3), record(5), gap(7, 2)])

        async def after(position: int, limit: int = 1) -> list[tuple[int, int]]:
            return places(await store.devices.records("edge-1", LOG, "", position, limit))

        assert await after(1) == [(5, 3)]
        assert await after(5) == [(7, 2)]
        assert await after(7) == []
        await store.devices.add_records("edge-1", [record(8, FIGURE), gap(9, 1), record(10)])
        assert await after(7) == [(10, 1)]
        assert await after(1, 2) == [(5, 3), (10, 3)]

    async def test_what_comes_again_is_kept_once(self, store: Store) -> None:
        """As it came first; what is newer in the same call is kept."""
        await put(store, new_device(), new_device("edge-2"))
        assert await store.devices.add_records("edge-1", [record(1), record(2)]) == 2
        again = [record(2)._replace(body=b"other"), record(3)]
        assert await store.devices.add_records("edge-1", again) == 3
        assert await store.devices.add_records("edge-1", [record(1)]) == 3
        assert await store.devices.add_records("edge-1", []) == 3
        assert await store.devices.newest_record("edge-1") == 3
        kept = [record(1), record(2), record(3)]
        assert await store.devices.records("edge-1", LOG, "", 0, 9) == kept
        assert await store.devices.add_records("edge-2", [record(1)]) == 1

    async def test_records_are_found_by_kind_and_deployment(self, store: Store) -> None:
        """In order: after a position, or the last ones."""
        await put(store, new_device())
        kinds, owners = (LOG, LOG, FIGURE), ("", "a")
        sent = [record(n, kinds[n % 3], owners[n % 2]) for n in range(1, 31)]
        await store.devices.add_records("edge-1", sent)
        logs = [one for one in sent if one.kind is LOG]
        own = [one for one in logs if one.deployment == "a"]
        records = store.devices.records
        assert await records("edge-1", LOG, "", 0, 4) == logs[-4:]
        assert await records("edge-1", LOG, "", logs[2].position, 4) == logs[3:7]
        assert await records("edge-1", LOG, "a", 0, 4) == own[-4:]
        assert await records("edge-1", LOG, "a", own[0].position, 100) == own[1:]
        assert await records("edge-1", LOG, "b", 0, 4) == []
        assert await records("edge-1", LOG, "", 30, 4) == []

    async def test_of_records_the_newest_of_each_kind_stay(self, store: Store) -> None:
        """So many, whatever gaps there are, and the newest position goes on."""
        await put(store, new_device(), new_device("edge-2"))
        await store.devices.add_records("edge-2", [record(1)])
        await store.devices.add_records("edge-1", [record(1, FIGURE), record(2, LOG, "quiet")])
        count = KEPT_RECORDS + 700
        sent = [record(3 * n) for n in range(1, count + 1)]
        for start in range(0, count, AT_ONCE):
            await store.devices.add_records("edge-1", sent[start : start + AT_ONCE])
        found = await store.devices.records("edge-1", LOG, "", 1, 2 * count)
        assert positions(found) == positions(sent[700:])
        assert await store.devices.newest_record("edge-1") == 3 * count
        assert await store.devices.add_records("edge-1", sent[:3]) == 3 * count
        late = record(3 * count + 1)
        assert await store.devices.add_records("edge-1", [late]) == late.position
        found = await store.devices.records("edge-1", LOG, "", 1, 2 * count)
        assert positions(found) == positions([*sent[701:], late])
        assert [one.trimmed for one in found[:2]] == [True, False]
        assert await store.devices.newest_record("edge-2") == 1
        assert await store.devices.records("edge-1", FIGURE, "", 0, 9) == [record(1, FIGURE)]
        (quiet,) = await store.devices.records("edge-1", LOG, "quiet", 0, 9)
        assert (quiet.position, quiet.kind, quiet.lost) == (sent[700].position, GAP, 0)
        assert quiet.trimmed
        (newest,) = await store.devices.records("edge-1", LOG, "", 0, 1)
        assert newest == late

    # -- a restart ------------------------------------------------------------------------------

    async def test_all_of_it_is_there_after_a_restart(
        self, open_store: OpenStore, tmp_path: Path
    ) -> None:
        """And goes on from there."""
        store = await open_store(tmp_path, Clock())
        await store.devices.put_token(TOKEN)
        assert await enroll(store, whole_device("a")) is None
        await store.devices.touch([("a", 99)])
        await store.devices.put_rows([row("a")])
        await store.devices.add_records("a", [record(8)])
        await store.close()
        store = await open_store(tmp_path, Clock())
        kept = replace(whole_device("a"), last_seen=99)
        assert await store.devices.load() == [kept]
        assert await store.devices.token("t1") == replace(TOKEN, used=1)
        assert await enroll(store, new_device("a")) == kept
        assert await store.devices.rows(UID, 1) == [row("a")]
        assert await store.devices.newest_record("a") == 8
        assert await store.devices.records("a", LOG, "", 0, 9) == [record(8)]
        await store.devices.write([], [happened("a")])
        assert [one.seq for one in await store.devices.events("a", 0, 9)] == [2, 1]
        await store.close()
