"""Machines become devices on a real store: by a token, once each, and anew once they were lost."""

from __future__ import annotations

import asyncio

import pytest
from device_desk import LIFE, Machine, enrolment
from device_office import PORT, Office, office

from hatoba.v1 import device_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.auth import Role
from hatoba_scheduler.auth.authority import DeviceIdentity
from hatoba_scheduler.control.devices import put_into, relabelled
from hatoba_scheduler.domain.devices import DeviceState
from hatoba_scheduler.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    Reason,
    Unauthenticated,
)

__all__ = ["office"]

DAY = 86_400.0
TERMS = {"site": "tokyo", "ring": "canary"}


async def test_a_token_makes_a_machine_a_device(office: Office) -> None:
    lamp = await office.enroll(
        Machine("lamp"), await office.token(labels=TERMS), labels={"site": "osaka", "floor": "2"}
    )
    assert office.who(lamp) == DeviceIdentity("lamp", "id1")
    (known,) = await office.store.devices.load()
    assert known == office.book.get("lamp")
    assert dict(known.labels) == {"site": "tokyo", "ring": "canary", "floor": "2"}
    assert (known.platform.architecture, known.capacity.memory) == ("arm64", 1 << 30)
    assert known.certificate_end == office.desk.micros() + LIFE.days * 86_400_000_000
    assert await office.kinds("lamp") == [("enrolled", "ann")]


async def test_it_is_told_whom_to_dial_and_to_believe(office: Office) -> None:
    office.calls(await office.token())
    given = await office.enrolling.enroll(enrolment(Machine("lamp")))
    assert (given.address, given.server_name) == (PORT, "devices.hatoba")
    assert given.authority == office.desk.authority.pem
    assert given.time.ToMicroseconds() == office.desk.micros()


async def test_one_that_says_no_name_gets_one_by_its_key(office: Office) -> None:
    first = await office.enroll(Machine(""), text := await office.token(uses=2))
    second = await office.enroll(Machine(""), text)
    assert first.name.startswith("device-")
    assert len({first.name, second.name}) == 2


async def test_a_reply_that_was_lost_costs_no_use(office: Office) -> None:
    lamp, text = Machine("lamp"), await office.token()
    await office.enroll(lamp, text)
    again = await office.enroll(Machine("lamp", lamp.key), text)
    assert office.who(again) == office.who(lamp)
    assert await office.kinds("lamp") == [("enrolled", "ann")]


async def test_a_token_makes_as_many_as_it_may(office: Office) -> None:
    text = await office.token(uses=2)
    for name in ("lamp", "door"):
        await office.enroll(Machine(name), text)
    with pytest.raises(Unauthenticated) as caught:
        await office.enroll(Machine("fan"), text)
    assert caught.value.reason is Reason.TOKEN_USED
    assert office.book.get("fan") is None


async def test_of_a_crowd_with_one_token_so_many_get_in(office: Office) -> None:
    text = await office.token(uses=3)
    office.calls(text)
    asked = (office.enrolling.enroll(enrolment(Machine(f"d{n}"))) for n in range(8))
    done = await asyncio.gather(*asked, return_exceptions=True)
    given = [one.device for one in done if isinstance(one, device_pb2.DeviceIdentity)]
    assert len(given) == 3
    assert {one.name for one in office.book.all()} == set(given)


async def test_a_late_token_makes_none(office: Office) -> None:
    text = await office.token()
    assert isinstance(office.desk.clock, FakeClock)
    await office.desk.clock.advance(DAY)
    with pytest.raises(Unauthenticated) as caught:
        office.calls(text)
    assert caught.value.reason is Reason.TOKEN_EXPIRED


async def test_the_name_of_another_device_is_refused(office: Office) -> None:
    text = await office.token(uses=2)
    await office.enroll(Machine("lamp"), text)
    with pytest.raises(AlreadyExists):
        await office.enroll(Machine("lamp"), text)


async def test_a_device_whose_disk_was_lost_is_made_anew(office: Office) -> None:
    lamp = await office.enroll(Machine("lamp"), await office.token(labels=TERMS))
    text = await office.token(device="lamp", labels={"site": "kyoto"})
    await office.book.change("lamp", lambda one: relabelled(one, [*one.labels, ("by", "ann")]))
    ended: list[str] = []
    office.desk.authenticator.on_revoked("id1", lambda: ended.append("id1"))
    fresh = await office.enroll(Machine("other"), text, labels={"by": "itself"})
    assert office.who(fresh) == DeviceIdentity("lamp", "id2")
    known = office.book.get("lamp")
    assert known is not None
    assert dict(known.labels) == {"site": "kyoto", "ring": "canary", "by": "ann"}
    assert known in await office.store.devices.load()
    assert ended == ["id1"]
    with pytest.raises(Unauthenticated, match="another machine took its place"):
        office.calls_as(lamp)


async def test_the_machine_before_cannot_come_back_with_its_old_token(office: Office) -> None:
    lamp, text = Machine("lamp"), await office.token()
    await office.enroll(lamp, text)
    await office.enroll(Machine("lamp"), await office.token(device="lamp"))
    with pytest.raises(Unauthenticated) as caught:
        await office.enroll(lamp, text)
    assert caught.value.reason is Reason.TOKEN_USED


async def test_one_that_was_revoked_cannot_enroll_again_by_itself(office: Office) -> None:
    lamp, text = Machine("lamp"), await office.token()
    await office.enroll(lamp, text)
    await office.book.change("lamp", lambda one: put_into(one, DeviceState.REVOKED))
    with pytest.raises(Unauthenticated) as caught:
        await office.enroll(lamp, text)
    assert caught.value.reason is Reason.DEVICE_UNKNOWN


async def test_a_device_gets_another_certificate_for_another_key(office: Office) -> None:
    lamp = await office.enroll(Machine("lamp"), await office.token())
    assert isinstance(office.desk.clock, FakeClock)
    await office.desk.clock.advance(60 * DAY)
    office.calls_as(lamp)
    fresh = Machine("lamp")
    given = await office.enrolling.renew(device_pb2.RenewDeviceRequest(csr=fresh.csr))
    fresh.certificate = given.certificate
    assert office.who(fresh) == office.who(lamp)
    known = office.book.get("lamp")
    assert known is not None
    assert known.certificate_end == office.desk.micros() + LIFE.days * 86_400_000_000
    assert await office.kinds("lamp") == [("enrolled", "ann"), ("renewed", "system")]
    office.calls_as(fresh)


async def test_a_proof_renews_with_the_request_that_it_was_made_for(office: Office) -> None:
    lamp = await office.enroll(Machine("lamp"), await office.token())
    fresh, thief = Machine("lamp"), Machine("lamp")
    csr = fresh.csr
    assert isinstance(office.desk.clock, FakeClock)
    await office.desk.clock.advance(100 * DAY)
    office.calls(lamp.renewal(csr))
    with pytest.raises(Unauthenticated):
        await office.enrolling.renew(device_pb2.RenewDeviceRequest(csr=thief.csr))
    given = await office.enrolling.renew(device_pb2.RenewDeviceRequest(csr=csr))
    fresh.certificate = given.certificate
    office.calls_as(fresh)


async def test_one_that_was_revoked_while_it_asked_gets_none(office: Office) -> None:
    lamp = await office.enroll(Machine("lamp"), await office.token())
    office.calls_as(lamp)
    await office.book.change("lamp", lambda one: put_into(one, DeviceState.REVOKED))
    with pytest.raises(Unauthenticated) as caught:
        await office.enrolling.renew(device_pb2.RenewDeviceRequest(csr=Machine("lamp").csr))
    assert caught.value.reason is Reason.DEVICE_UNKNOWN


@pytest.mark.parametrize("csr", ["", "rubbish", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
async def test_what_is_no_signing_request_is_told(office: Office, csr: str) -> None:
    office.calls(await office.token())
    request = enrolment(Machine("lamp"))
    request.csr = csr
    with pytest.raises(InvalidArgument) as caught:
        await office.enrolling.enroll(request)
    assert [one.field for one in caught.value.field_violations] == ["csr"]


async def test_labels_of_ours_are_not_given_away(office: Office) -> None:
    with pytest.raises(InvalidArgument):
        await office.token(labels={"hatoba/site": "x"})
    with pytest.raises(InvalidArgument):
        await office.enroll(Machine("lamp"), await office.token(), labels={"hatoba/site": "x"})


async def test_a_token_that_names_its_device_makes_one(office: Office) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await office.token(uses=2, device="lamp")
    assert [one.field for one in caught.value.field_violations] == ["uses"]


async def test_without_a_port_for_devices_there_are_none(office: Office) -> None:
    office.port = ""
    with pytest.raises(FailedPrecondition, match=r"\[devices\]"):
        await office.token()


async def test_other_tokens_make_no_devices(office: Office) -> None:
    _, text = await office.desk.authenticator.create("x", Role.ENROLL)
    office.calls(text)
    with pytest.raises(Unauthenticated) as caught:
        await office.enrolling.enroll(enrolment(Machine("lamp")))
    assert caught.value.reason is Reason.TOKEN_UNKNOWN
