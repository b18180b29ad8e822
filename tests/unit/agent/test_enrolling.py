"""Becoming a device: once for a token, also when a reply is lost, and with words that help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from device_site import DEVICE, HOST, TOKEN, DeviceSite

from hatoba.v1 import device_pb2
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.enrolling import NotMade, TokenText, Wish, enroll
from hatoba_worker.agent.identity import Identity
from hatoba_worker.agent.settings import AwsIot, Settings

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DeviceSite]:
    made = await asyncio.to_thread(DeviceSite, tmp_path)
    await made.start()
    yield made
    await made.stop()


class Machine:
    """One that is to become a device. Its clock may say anything."""

    def __init__(self, site: DeviceSite, data: Path) -> None:
        data.mkdir()
        self.site, self.data = site, data
        self.identity = Identity(data / "tls")
        self.clock = FloorClock(
            data / "clock", site.today.timestamp() - 86_400.0, lambda: 0.0, time.monotonic
        )

    def serial(self) -> int:
        """Of the certificate in use; blocks."""
        found = self.identity.current().path.read_bytes()
        return x509.load_pem_x509_certificate(found).serial_number

    async def enroll(
        self, token: str = "", labels: Mapping[str, str] | None = None, **said: str
    ) -> Settings:
        text = TokenText.parse(token or self.site.token)
        wish = Wish(self.site.api, text, labels=labels or {})
        return await enroll(self.data, replace(wish, **said), self.clock)  # type: ignore[arg-type]


@pytest.fixture
def machine(site: DeviceSite, tmp_path: Path) -> Machine:
    return Machine(site, tmp_path / "device")


async def test_it_becomes_a_device_with_a_key_of_its_own(
    site: DeviceSite, machine: Machine
) -> None:
    found = await machine.enroll(name="cam-7", labels={"site": "tokyo"})
    assert found == Settings(DEVICE, f"127.0.0.1:{site.port}", HOST, "0123456789ab", site.api)
    assert await asyncio.to_thread(Settings.load, machine.data) == found
    assert await asyncio.to_thread(machine.serial) == site.serials[0]
    (asked,) = site.enrolments
    assert (asked.device, dict(asked.labels)) == ("cam-7", {"site": "tokyo"})
    assert asked.platform.architecture
    assert asked.capacity.memory_bytes > 0
    assert x509.load_pem_x509_csr(asked.csr.encode()).subject == x509.Name([])
    assert machine.clock.certain


async def test_the_same_token_again_does_nothing(site: DeviceSite, machine: Machine) -> None:
    first = await machine.enroll()
    await site.stop()
    assert await machine.enroll() == first
    assert len(site.enrolments) == 1


async def test_after_a_lost_reply_the_same_key_asks_again(
    site: DeviceSite, machine: Machine
) -> None:
    site.lost_replies = 1
    with pytest.raises(NotMade, match="the token stays good"):
        await machine.enroll()
    await machine.enroll()
    first, second = (x509.load_pem_x509_csr(one.csr.encode()) for one in site.enrolments)
    assert first.public_key() == second.public_key()


async def test_another_token_makes_it_anew(site: DeviceSite, machine: Machine) -> None:
    await machine.enroll()
    known = await asyncio.to_thread(Settings.load, machine.data)
    assert known is not None
    await asyncio.to_thread(replace(known, token="another token").save, machine.data)
    assert (await machine.enroll()).token == "0123456789ab"
    assert await asyncio.to_thread(machine.serial) == site.serials[1]


async def test_a_token_that_is_used_up_is_told_with_what_helps(machine: Machine) -> None:
    with pytest.raises(NotMade, match="this token is used up; `hatoba devices add`"):
        await machine.enroll(f"hb_0123456789ab_other.{machine.site.authority.pinned}")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.ALREADY_EXISTS, "--name"),
        (grpc.StatusCode.PERMISSION_DENIED, "it takes a token of"),
        (grpc.StatusCode.UNIMPLEMENTED, "without devices"),
        (grpc.StatusCode.INVALID_ARGUMENT, "there is trouble"),
    ],
)
async def test_what_the_server_refuses_is_told(
    site: DeviceSite, machine: Machine, code: grpc.StatusCode, words: str
) -> None:
    site.trouble = code
    with pytest.raises(NotMade, match=words):
        await machine.enroll()


async def test_a_server_that_is_away_is_told(site: DeviceSite, machine: Machine) -> None:
    await site.stop()
    with pytest.raises(NotMade, match=r"cannot be reached.*Connect call failed.*stays good"):
        await machine.enroll()


async def test_another_servers_token_is_told(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = await asyncio.to_thread(DeviceSite, tmp_path / "other")
    with pytest.raises(NotMade, match="is not the server that made this token"):
        await machine.enroll(other.token)


async def test_a_given_authority_goes_before_the_tokens(
    site: DeviceSite, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = await asyncio.to_thread(DeviceSite, tmp_path / "other")
    authority = await asyncio.to_thread(site.authority.pem.read_text)
    found = await machine.enroll(f"{TOKEN}.{other.authority.pinned}", authority=authority)
    assert found.device == DEVICE


async def test_a_reply_that_makes_no_device_leaves_nothing(
    site: DeviceSite, machine: Machine
) -> None:
    site.answers_others = True
    with pytest.raises(NotMade, match="makes no device"):
        await machine.enroll()
    assert await asyncio.to_thread(Settings.load, machine.data) is None
    site.answers_others = False
    assert (await machine.enroll()).device == DEVICE


CONTENT = (
    "s3://models/hatoba?region=eu-central-1&role-alias=hatoba-device&credentials=c1.amazonaws.com"
)
AT_AWS = device_pb2.AwsIotIdentity(
    endpoint="iot.example:8883", thing="hatoba-cam-1", shadow="hatoba", content=CONTENT
)


@pytest.mark.parametrize("authority", ["", "AWS's own\n"])
async def test_a_device_of_aws_iot_dials_that_and_believes_who_is_believed_there(
    site: DeviceSite, machine: Machine, authority: str
) -> None:
    site.aws_iot = AT_AWS
    found = await machine.enroll(aws_authority=authority)
    assert found == await asyncio.to_thread(Settings.load, machine.data)
    assert (found.device, found.address, found.host) == (DEVICE, "iot.example:8883", "iot.example")
    assert found.aws_iot == AwsIot("hatoba-cam-1", "hatoba", CONTENT)
    kept = machine.identity.authority
    if authority:
        assert await asyncio.to_thread(kept.read_text) == authority
    else:
        assert not await asyncio.to_thread(kept.exists)
    assert await machine.enroll() == found
    assert len(site.enrolments) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "iot.example"),
        ("endpoint", ""),
        ("thing", ""),
        ("shadow", ""),
        ("content", "https://models"),
        ("content", "s3://models/hatoba"),
    ],
)
async def test_what_is_no_place_at_aws_iot_leaves_nothing(
    site: DeviceSite, machine: Machine, field: str, value: str
) -> None:
    site.aws_iot = device_pb2.AwsIotIdentity()
    site.aws_iot.CopyFrom(AT_AWS)
    setattr(site.aws_iot, field, value)
    with pytest.raises(NotMade, match="makes no device"):
        await machine.enroll()
    assert await asyncio.to_thread(Settings.load, machine.data) is None


async def test_plain_text_goes_to_this_machine_alone(site: DeviceSite, machine: Machine) -> None:
    await site.plain()
    found = await machine.enroll(TOKEN, server=f"127.0.0.1:{site.port}")
    assert found.device == DEVICE
    with pytest.raises(NotMade, match="plain text"):
        await machine.enroll("hb_0123456789xx_secret", server="http://far.example:7070")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no device token"),
        ("secret", "no device token"),
        ("hb_short_secret", "no device token"),
        (f"{TOKEN}.MIIB", "not whole"),
        (f"{TOKEN}.§", "not whole"),
    ],
)
def test_what_is_no_token_is_told(text: str, words: str) -> None:
    with pytest.raises(NotMade, match=words):
        TokenText.parse(text)
