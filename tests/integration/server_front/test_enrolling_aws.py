"""Machines become devices of AWS IoT on a real store: the server keeps whose they are, and somebody
else signs, who is away now and then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from device_desk import Machine, enrolment
from device_office import Office, office

from hatoba.v1 import device_pb2
from hatoba_plugins.errors import BackendError, Conflict, Denied, Retry, Throttled
from hatoba_scheduler.auth import Role
from hatoba_scheduler.control.device_hub import DeviceHub
from hatoba_scheduler.control.devices import put_into
from hatoba_scheduler.domain.devices import DeviceState
from hatoba_scheduler.errors import (
    AlreadyExists,
    FailedPrecondition,
    HatobaError,
    Reason,
    Unauthenticated,
    Unavailable,
)
from hatoba_scheduler.services.devices import DeviceParts, DeviceServicer
from hatoba_scheduler.services.signing import Signing

__all__ = ["office"]

AWS = "aws-iot"
TERMS = {"site": "tokyo"}


@dataclass
class Signer:
    """See SignsDevices; it signs for a name what was asked last."""

    taken: set[str] = field(default_factory=set)
    failures: list[BackendError] = field(default_factory=list)
    signed: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def check_free(self, device: str) -> None:
        self._fail()
        if device in self.taken:
            raise Conflict(f"there is a thing 'hatoba-{device}' at AWS IoT already")

    async def enroll(self, device: str, csr: str) -> device_pb2.DeviceIdentity:
        self.asked.append(device)
        self._fail()
        self.signed[device] = csr
        told = device_pb2.AwsIotIdentity(endpoint="iot:8883", thing=f"hatoba-{device}")
        return device_pb2.DeviceIdentity(device=device, certificate="pem", aws_iot=told)

    async def revoke(self, device: str) -> None:
        self._fail()
        del self.signed[device]

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def signer(office: Office) -> Signer:
    """The office's."""
    made = Signer()
    office.signer = made
    return made


async def token(office: Office, **said: object) -> str:
    """What makes devices of AWS IoT."""
    _, admin = await office.desk.authenticator.create("ann", Role.ADMIN)
    office.calls(admin)
    request = device_pb2.CreateDeviceTokenRequest(transport=AWS, **said)  # type: ignore[arg-type]
    made = await office.enrolling.create_token(request)
    assert made.transport == AWS
    return made.secret.partition(".")[0]


async def enroll(office: Office, machine: Machine, text: str) -> device_pb2.DeviceIdentity:
    """The machine becomes a device."""
    office.calls(text)
    return await office.enrolling.enroll(enrolment(machine))


async def test_a_server_without_aws_makes_no_token_for_it(office: Office) -> None:
    with pytest.raises(FailedPrecondition, match='`transport = "both"`'):
        await token(office)


async def test_it_needs_no_port_for_devices(office: Office, signer: Signer) -> None:
    office.port = ""
    given = await enroll(office, Machine("lamp"), await token(office))
    assert given.device == "lamp"
    with pytest.raises(FailedPrecondition, match=r"no port for devices.*--transport aws-iot"):
        await office.token()


async def test_aws_signs_and_the_tokens_labels_apply(office: Office, signer: Signer) -> None:
    lamp = Machine("lamp")
    given = await enroll(office, lamp, await token(office, labels=TERMS))
    assert (given.device, given.certificate, given.aws_iot.thing) == ("lamp", "pem", "hatoba-lamp")
    assert (given.address, given.authority, given.server_name) == ("", "", "")
    assert given.time.ToMicroseconds() == office.desk.micros()
    (known,) = await office.store.devices.load()
    assert known == office.book.get("lamp")
    assert (known.transport, dict(known.labels)) == (AWS, TERMS)
    assert not office.book.dials("lamp")
    assert await office.kinds("lamp") == [("enrolled", "ann")]


async def test_again_with_the_same_key_is_the_same_device_and_no_use(
    office: Office, signer: Signer
) -> None:
    lamp, text = Machine("lamp"), await token(office)
    for _ in range(2):
        assert (await enroll(office, lamp, text)).device == "lamp"
    with pytest.raises(Unauthenticated) as caught:
        await enroll(office, Machine("fan"), text)
    assert caught.value.reason is Reason.TOKEN_USED
    assert signer.asked == ["lamp", "lamp"]


@pytest.mark.parametrize("failure", [Retry("no answer"), Throttled("too fast")])
async def test_while_aws_is_away_another_try_mends_all(
    office: Office, signer: Signer, failure: BackendError
) -> None:
    lamp, text = Machine("lamp"), await token(office)
    signer.failures.append(failure)
    with pytest.raises(Unavailable, match="AWS IoT does not answer now"):
        await enroll(office, lamp, text)
    assert office.book.get("lamp") is None
    real = signer.enroll

    async def fails_once(device: str, csr: str) -> device_pb2.DeviceIdentity:
        signer.enroll = real  # type: ignore[method-assign]
        raise failure

    signer.enroll = fails_once  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await enroll(office, lamp, text)
    assert (await enroll(office, lamp, text)).device == "lamp"
    assert list(signer.signed) == ["lamp"]


async def test_a_name_that_is_taken_at_aws_costs_no_use(office: Office, signer: Signer) -> None:
    signer.taken.add("lamp")
    text = await token(office)
    with pytest.raises(AlreadyExists, match="there is a thing 'hatoba-lamp'"):
        await enroll(office, Machine("lamp"), text)
    assert (await enroll(office, Machine("fan"), text)).device == "fan"


async def test_a_name_that_is_taken_here_is_told(office: Office, signer: Signer) -> None:
    text = await token(office, uses=2)
    await enroll(office, Machine("lamp"), text)
    with pytest.raises(AlreadyExists):
        await enroll(office, Machine("lamp"), text)
    assert signer.asked == ["lamp"]


async def test_what_aws_refuses_is_told(office: Office, signer: Signer) -> None:
    signer.failures.append(Denied("Allow the server's role iot:DescribeThing."))
    with pytest.raises(FailedPrecondition, match="AWS IoT refuses: Allow the server's role"):
        await enroll(office, Machine("lamp"), await token(office))


async def test_a_lost_machine_is_replaced_and_cannot_come_back(
    office: Office, signer: Signer
) -> None:
    lamp, text = Machine("lamp"), await token(office)
    await enroll(office, lamp, text)
    fresh = Machine("lamp")
    await enroll(office, fresh, await token(office, device="lamp"))
    assert signer.asked == ["lamp", "lamp"]
    with pytest.raises(Unauthenticated) as caught:
        await enroll(office, lamp, text)
    assert caught.value.reason is Reason.TOKEN_USED


async def test_one_that_was_revoked_gets_nothing_signed(office: Office, signer: Signer) -> None:
    lamp, text = Machine("lamp"), await token(office)
    await enroll(office, lamp, text)
    await office.book.change("lamp", lambda one: put_into(one, DeviceState.REVOKED))
    with pytest.raises(Unauthenticated) as caught:
        await enroll(office, lamp, text)
    assert caught.value.reason is Reason.DEVICE_UNKNOWN
    assert signer.asked == ["lamp"]


@pytest.fixture
def service(office: Office) -> DeviceServicer:
    """What operators call, with the office's signer."""
    nobody, clock = cast(Any, None), office.desk.clock
    parts = DeviceParts(
        store=office.store.devices,
        book=office.book,
        hub=DeviceHub(clock, alive_every=10.0),
        deployments=nobody,
        records=nobody,
        loops=lambda: (),
        enrolling=office.enrolling,
        cluster_id="c",
        pager=nobody,
        clock=clock,
        tasks=nobody,
        cut=office.desk.authenticator.cut,
        signing=Signing(lambda: office.signer),
    )
    return DeviceServicer(parts)


async def test_a_revocation_that_aws_did_not_hear_of_is_told_and_said_again(
    office: Office, signer: Signer, service: DeviceServicer
) -> None:
    await enroll(office, Machine("lamp"), await token(office))
    signer.failures.append(Retry("no answer"))
    asked = device_pb2.RevokeDeviceRequest(name="lamp", reason="stolen")
    with pytest.raises(Unavailable, match="AWS IoT does not answer now"):
        await service.RevokeDevice(asked, cast(Any, None))
    known = office.book.get("lamp")
    assert known is not None
    assert known.state is DeviceState.REVOKED
    assert list(signer.signed) == ["lamp"]
    told = await service.RevokeDevice(asked, cast(Any, None))
    assert told.state == device_pb2.DEVICE_STATE_REVOKED
    assert signer.signed == {}
    events = await office.store.devices.events("lamp", 0, 10)
    assert [one.message for one in events if one.kind == "revoked"] == [
        "Its certificates are to end at AWS IoT: stolen."
    ]


async def test_a_device_does_not_change_what_it_dials(office: Office, signer: Signer) -> None:
    await office.enroll(Machine("lamp"), await office.token())
    await enroll(office, Machine("fan"), await token(office))
    refused: list[HatobaError] = []
    for name, text in (
        ("lamp", await token(office, device="lamp")),
        ("fan", await office.token(device="fan")),
    ):
        with pytest.raises(FailedPrecondition, match="decommission") as caught:
            await enroll(office, Machine(name), text)
        refused.append(caught.value)
    assert "by grpc, and the token is for devices by aws-iot" in refused[0].message
    assert "by aws-iot, and the token is for devices by grpc" in refused[1].message
