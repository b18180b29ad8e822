"""Who is a device: what its connection's certificate proves, and what its key proves later."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from device_desk import Book, DeviceDesk, Machine, device, enrolled
from structlog.testing import capture_logs

from hatoba.v1 import artifact_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.auth.authority import LIFE, HostIdentity, read_request
from hatoba_scheduler.auth.bursts import AUDIT_BURST, AUDIT_SECONDS
from hatoba_scheduler.auth.device_credentials import (
    WRITING,
    Audit,
    DeviceCaller,
    DeviceClaim,
    Refusal,
)
from hatoba_scheduler.auth.device_renewals import RENEW, DeviceRenewal
from hatoba_scheduler.auth.host_credentials import MEANING as HOSTS_MEANING
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.domain.devices import DeviceState
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import PermissionDenied, Reason, Unauthenticated

DAY = 86_400.0
CONNECT = "hatoba.v1.DeviceService/Connect"


class NoTokens:
    """A store without tokens."""

    async def tokens(self) -> list[TokenRecord]:
        """None."""
        return []

    async def put_token(self, token: TokenRecord) -> None:
        """Not kept."""


@pytest.fixture
def book() -> Book:
    """Devices of a test's own."""
    return Book()


@pytest.fixture
def desk(tmp_path: Path, book: Book) -> DeviceDesk:
    """One installation."""
    return DeviceDesk(tmp_path, FakeClock(), NoTokens(), book)


@pytest.fixture
def clock(desk: DeviceDesk) -> FakeClock:
    """Its clock."""
    assert isinstance(desk.clock, FakeClock)
    return desk.clock


@pytest.fixture
def machine(desk: DeviceDesk, book: Book) -> Machine:
    """A device of it."""
    return enrolled(desk, book, "lamp")


def proved(desk: DeviceDesk, machine: Machine, name: str = "") -> DeviceCaller:
    """Whom the server takes the caller for; raises Unauthenticated."""
    claim = desk.authenticator.authenticate(f"Bearer dc_{name or machine.name}")
    assert isinstance(claim, DeviceClaim)
    return claim.prove(machine.shown)


def refusal(desk: DeviceDesk, machine: Machine, name: str = "") -> str:
    """Why a machine is not taken for a device."""
    with pytest.raises(Unauthenticated) as caught:
        proved(desk, machine, name)
    assert caught.value.reason is Reason.DEVICE_UNKNOWN
    return caught.value.message


def test_a_certificate_of_its_own_proves_a_device(desk: DeviceDesk, machine: Machine) -> None:
    caller = proved(desk, machine)
    assert (caller.id, caller.principal, caller.role) == ("one", "devices/lamp", Role.DEVICE)
    ends = desk.now() + LIFE
    assert caller.expire_time == int(ends.timestamp()) * 1_000_000


def test_one_that_leaves_is_still_heard(desk: DeviceDesk, book: Book, machine: Machine) -> None:
    book.devices["lamp"] = device("lamp", "one", DeviceState.LEAVING)
    assert proved(desk, machine).device == "lamp"


@pytest.mark.parametrize("text", ["dc_", "dc_UPPER", "dc_a/b", "dc_-a", "dc_" + "a" * 64])
def test_what_is_no_name_claims_nothing(desk: DeviceDesk, text: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        desk.authenticator.authenticate(f"Bearer {text}")
    assert caught.value.reason is Reason.TOKEN_MALFORMED


def test_a_name_alone_proves_nothing_and_tells_nobody_who_is_there(
    desk: DeviceDesk, machine: Machine
) -> None:
    assert machine.name == "lamp"
    for name in ("lamp", "nobody"):
        claim = desk.authenticator.authenticate(f"Bearer dc_{name}")
        assert isinstance(claim, DeviceClaim)
        with pytest.raises(Unauthenticated, match="the device port asks for") as caught:
            claim.prove({"transport_security_type": [b"insecure"]})
        assert name not in caught.value.message


def test_no_device_speaks_for_another(desk: DeviceDesk, book: Book, machine: Machine) -> None:
    enrolled(desk, book, "door")
    assert "the certificate is that of devices/lamp" in refusal(desk, machine, "door")


def test_a_hosts_certificate_is_no_devices(desk: DeviceDesk, machine: Machine) -> None:
    csr = read_request(machine.csr, "csr")
    machine.certificate = desk.authority.sign_host(csr, HostIdentity("lamp", "one"))
    assert "no device's of this server" in refusal(desk, machine)


def test_a_certificate_of_another_installation_is_none(
    desk: DeviceDesk, machine: Machine, tmp_path: Path
) -> None:
    other = DeviceDesk(tmp_path / "other", desk.clock, NoTokens(), Book())
    machine.certificate = other.sign(machine, "one")
    assert "no device's of this server" in refusal(desk, machine)


def test_a_connection_does_not_outlive_its_certificate(
    desk: DeviceDesk, book: Book, clock: FakeClock
) -> None:
    machine = enrolled(desk, book, "lamp", life=dt.timedelta(days=1))
    clock.set_by(DAY + 1)
    assert "its time is over" in refusal(desk, machine)


def test_another_machine_in_its_place_shuts_the_first_one_out(
    desk: DeviceDesk, book: Book, machine: Machine
) -> None:
    second = enrolled(desk, book, "lamp", "two")
    assert "another machine took its place" in refusal(desk, machine)
    assert proved(desk, second).identity == "two"


@pytest.mark.parametrize("there", [True, False])
def test_who_was_revoked_or_forgotten_is_out(
    desk: DeviceDesk, book: Book, machine: Machine, there: bool
) -> None:
    del book.devices["lamp"]
    if there:
        book.devices["lamp"] = device("lamp", "one", DeviceState.REVOKED)
    assert ("revoked" if there else "forgotten") in refusal(desk, machine)


def test_an_older_certificate_is_good_until_the_newer_one_is_shown(
    desk: DeviceDesk, clock: FakeClock, machine: Machine
) -> None:
    clock.set_by(60 * DAY)
    newer = Machine("lamp")
    # Shorter than what is left of the older one: what counts is which was made later.
    newer.certificate = desk.sign(newer, "one", dt.timedelta(days=1))
    proved(desk, machine)
    proved(desk, newer)
    assert "a newer certificate" in refusal(desk, machine)
    proved(desk, newer)
    with pytest.raises(Unauthenticated, match="a newer certificate"):
        desk.authenticator.authenticate(f"Bearer {machine.renewal(machine.csr)}")


# -- renewals --------------------------------------------------------------------------------------


def renewal(desk: DeviceDesk, text: str) -> DeviceRenewal:
    """Who asks for a renewal."""
    caller = desk.authenticator.authenticate(f"Bearer {text}")
    assert isinstance(caller, DeviceRenewal)
    return caller


def refused(desk: DeviceDesk, text: str) -> Reason:
    """Why somebody may not."""
    with pytest.raises(Unauthenticated) as caught:
        renewal(desk, text)
    return caught.value.reason


@pytest.mark.parametrize("days", [0, 89, 91, 179])
def test_a_certificate_can_be_renewed_for_as_long_again_as_it_was_good(
    desk: DeviceDesk, clock: FakeClock, machine: Machine, days: int
) -> None:
    fresh = Machine("lamp")
    csr = fresh.csr
    clock.set_by(days * DAY)
    caller = renewal(desk, machine.renewal(csr))
    caller.check_method(RENEW)
    caller.check_csr(csr)
    assert (caller.device, caller.identity, caller.role) == ("lamp", "one", Role.DEVICE)


def test_after_that_it_cannot(desk: DeviceDesk, clock: FakeClock, machine: Machine) -> None:
    clock.set_by(181 * DAY)
    assert refused(desk, machine.renewal(machine.csr)) is Reason.DEVICE_UNKNOWN


def test_what_was_read_on_the_way_opens_nothing_for_another_key(
    desk: DeviceDesk, machine: Machine
) -> None:
    seen = renewal(desk, machine.renewal(machine.csr))
    thief = Machine("lamp")
    with pytest.raises(Unauthenticated, match="another signing request"):
        seen.check_csr(thief.csr)
    assert [who for who, _ in desk.denied] == ["lamp"]


def test_it_opens_nothing_but_a_renewal(desk: DeviceDesk, machine: Machine) -> None:
    seen = renewal(desk, machine.renewal(machine.csr))
    with pytest.raises(PermissionDenied) as caught:
        seen.check_method(CONNECT)
    assert caught.value.reason is Reason.OUT_OF_SCOPE
    ((who, message),) = desk.denied
    assert who == "lamp"
    assert CONNECT in message


def test_a_revoked_device_gets_no_other_certificate(
    desk: DeviceDesk, book: Book, machine: Machine
) -> None:
    book.devices["lamp"] = device("lamp", "one", DeviceState.REVOKED)
    assert refused(desk, machine.renewal(machine.csr)) is Reason.DEVICE_UNKNOWN


def test_another_key_cannot_ask_with_a_devices_certificate(
    desk: DeviceDesk, machine: Machine
) -> None:
    thief = Machine("lamp", certificate=machine.certificate)
    assert refused(desk, thief.renewal(thief.csr)) is Reason.TOKEN_MALFORMED


def test_what_the_key_signed_for_something_else_is_no_proof(
    desk: DeviceDesk, machine: Machine
) -> None:
    assert refused(desk, machine.renewal(machine.csr, HOSTS_MEANING)) is Reason.TOKEN_MALFORMED


@pytest.mark.parametrize("text", ["dr_", "dr_a.b", "dr_a.b.c", "dr_AAAA.BBBB.CCCC", "dr_é.b.c"])
def test_rubbish_is_no_proof(desk: DeviceDesk, text: str) -> None:
    assert refused(desk, text) is Reason.TOKEN_MALFORMED


def test_a_host_cannot_be_renewed_as_a_device(desk: DeviceDesk, machine: Machine) -> None:
    csr = read_request(machine.csr, "csr")
    machine.certificate = desk.authority.sign_host(csr, HostIdentity("lamp", "one"))
    assert refused(desk, machine.renewal(machine.csr)) is Reason.DEVICE_UNKNOWN


# -- the audit -------------------------------------------------------------------------------------


async def test_refusals_are_told_of_both_and_never_flood(clock: FakeClock) -> None:
    told: list[tuple[str, str]] = []
    audit = Audit(clock.monotonic, lambda *one: told.append(one))
    one = Refusal("door", "lamp", CONNECT, "ipv4:192.0.2.7:1", "it is not you")
    with capture_logs() as logged:
        for _ in range(AUDIT_BURST + 50):
            audit.refused(one)
        audit.refused(one._replace(by="other"))
    assert [who for who, _ in told[:2]] == ["door", "lamp"]
    assert "devices/lamp at ipv4:192.0.2.7:1 was refused" in told[0][1]
    assert (len(logged), audit.unheard) == (AUDIT_BURST + 1, 50)
    assert logged[0]["event"] == "device.denied"
    assert (logged[0]["device"], logged[0]["by"], logged[0]["method"]) == ("door", "lamp", CONNECT)
    await clock.advance(AUDIT_SECONDS)
    with capture_logs() as logged:
        audit.refused(one)
        audit.refused(one)
    assert [line["unheard"] for line in logged] == [50]


def test_only_a_device_with_jobs_brings_something_out(desk: DeviceDesk, machine: Machine) -> None:
    busy: set[str] = set()
    desk.gate.works = busy.__contains__
    caller = proved(desk, machine)
    urls = "hatoba.v1.ArtifactService/GetTransferUrls"
    up = artifact_pb2.GetTransferUrlsRequest(direction=artifact_pb2.TRANSFER_DIRECTION_UPLOAD)
    down = artifact_pb2.GetTransferUrlsRequest(direction=artifact_pb2.TRANSFER_DIRECTION_DOWNLOAD)
    for method in WRITING:
        with pytest.raises(PermissionDenied, match="it has no jobs"):
            caller.check_method(method)
    with pytest.raises(PermissionDenied, match="it has no jobs"):
        caller.check_request(urls, up)
    caller.check_method("hatoba.v1.ArtifactService/DownloadChunks")
    caller.check_request(urls, down)
    busy.add(machine.name)
    for method in WRITING:
        caller.check_method(method)
    caller.check_request(urls, up)


def test_a_device_speaks_for_attempts_under_a_name_that_no_host_has(
    desk: DeviceDesk, machine: Machine
) -> None:
    assert proved(desk, machine).host == "devices/lamp"
