"""A device that reaches AWS alone runs a model: it is told by MQTT, and what it runs comes from the
bucket, by credentials for its certificate. Real are mosquitto, an S3 of moto's, and the agent.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from agent_house import DEPLOYMENT, PATIENCE, AgentHouse
from counting_link import counting_link
from credential_provider import CredentialProvider, provider
from device_site import DeviceSite
from expiring_bucket import expiring_bucket
from mosquitto_yard import HOST, Mosquitto, SmallIot, mosquitto, small_iot
from s3_server import PYTHON, S3Server, running_s3

from hatoba.v1 import device_pb2
from hatoba_worker.agent.blobs import BlobStore, Cut, Gone
from hatoba_worker.agent.bucket import BucketLibrary
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.provisioning import AwsWish, Endpoint, adopt, request
from hatoba_worker.agent.settings import AwsIot

__all__ = ["mosquitto"]

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="the emulators' environment is missing"),
]

THING = "hatoba-cam-1"
BUCKET = "models"
SIZE = 20 << 20


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture
async def credentials(mosquitto: Mosquitto) -> AsyncIterator[CredentialProvider]:
    """Gives them to devices of the broker's authority."""
    clients = await asyncio.to_thread(mosquitto.authority.pem.read_text)
    made = CredentialProvider(mosquitto.authority, clients)
    async with provider(made, await asyncio.to_thread(made.tls)):
        yield made


@pytest.fixture
async def house(
    mosquitto: Mosquitto, s3: S3Server, credentials: CredentialProvider, tmp_path: Path
) -> AsyncIterator[AgentHouse]:
    """A device of AWS IoT, off."""
    made = await asyncio.to_thread(AgentHouse, tmp_path)
    await asyncio.to_thread(enrolled, made, mosquitto, s3, credentials)
    yield made
    await made.close()


def enrolled(
    house: AgentHouse, broker: Mosquitto, s3: S3Server, credentials: CredentialProvider
) -> None:
    content = (
        f"s3://{BUCKET}/hatoba?region=us-east-1&role-alias=hatoba-device"
        f"&credentials={HOST}:{credentials.port}&endpoint={s3.endpoint}"
    )
    endpoint = Endpoint(f"{HOST}:{broker.port}", broker.authority.pem.read_text())
    wish = AwsWish(endpoint, thing=THING, content=content)
    house.data.mkdir()
    adopt(house.data, wish, broker.signed(request(house.data)))


def library(house: AgentHouse, endpoint: str = "") -> BucketLibrary:
    """What the device reads from, at an endpoint instead of its own."""
    settings = house.settings()
    assert settings.aws_iot is not None
    thing = settings.aws_iot
    if endpoint:
        thing = replace(
            thing, content=f"{thing.content.partition('&endpoint=')[0]}&endpoint={endpoint}"
        )
    clock = FloorClock(house.data / "clock", 0.0, time.time, time.monotonic)
    clock.learn(time.time())
    return BucketLibrary(house.data, thing, clock)


def published(site: DeviceSite, s3: S3Server) -> None:
    """All that a server has stored is in the bucket, where a server puts it."""
    chunks = {f"chunks/{one.hex()[:2]}/{one.hex()}": data for one, data in site.chunks.items()}
    manifests = {
        f"manifests/{digest.removeprefix('sha256:')}": data
        for digest, data in site.manifests.items()
    }
    s3.put(BUCKET, {f"hatoba/{key}": data for key, data in (chunks | manifests).items()})


async def test_a_model_runs_that_came_from_the_bucket(
    house: AgentHouse, mosquitto: Mosquitto, s3: S3Server, credentials: CredentialProvider
) -> None:
    desired = await asyncio.to_thread(wanted, house)
    await asyncio.to_thread(published, house.site, s3)
    async with small_iot(mosquitto) as iot:
        await house.start()
        await iot.want(THING, desired)
        await iot.news.until(lambda: settled(iot) == 1, PATIENCE)
        report = iot.report(THING)
        assert report is not None
        assert report.slots[0].phase == device_pb2.SLOT_PHASE_GOOD
        assert (await house.answers(2))["y"] == 7
        assert set(credentials.asked) == {f"hatoba-device {THING}"}


def wanted(house: AgentHouse) -> device_pb2.DeviceDesired:
    """One model; blocks."""
    desired = device_pb2.DeviceDesired(generation=1)
    want = desired.wants.add(deployment=DEPLOYMENT, revision=1, spec=house.spec(1, 5))
    want.bake.FromSeconds(1)
    return desired


async def test_without_a_bucket_a_model_is_refused_with_that_reason(
    house: AgentHouse, mosquitto: Mosquitto
) -> None:
    settings = await asyncio.to_thread(house.settings)
    alone = replace(settings, aws_iot=AwsIot(THING))
    await asyncio.to_thread(alone.save, house.data)
    desired = await asyncio.to_thread(wanted, house)
    async with small_iot(mosquitto) as iot:
        await house.start()
        await iot.want(THING, desired)
        await iot.news.until(lambda: settled(iot) == 1, PATIENCE)
        report = iot.report(THING)
        assert report is not None
        (slot,) = report.slots
        assert slot.phase == device_pb2.SLOT_PHASE_BAD
        assert "knows no bucket" in slot.cause.message


def settled(iot: SmallIot) -> int:
    """The generation that it has done all of; 0: none."""
    report = iot.report(THING)
    return report.generation if report is not None and report.settled else 0


async def test_objects_from_an_offset_on_and_credentials_while_they_last(
    house: AgentHouse, s3: S3Server, credentials: CredentialProvider
) -> None:
    data = bytes(range(256)) * 5_000
    digest = await asyncio.to_thread(house.site.chunk, data)
    await asyncio.to_thread(published, house.site, s3)
    found = await asyncio.to_thread(library, house)
    for offset in (0, 1, len(data) - 1):
        got = b"".join([piece async for piece in found.read(digest, offset)])
        assert got == data[offset:]
    assert len(credentials.asked) == 1
    # These are good for less than is left ahead of their end.
    credentials.lasts = dt.timedelta(minutes=2)
    found = await asyncio.to_thread(library, house)
    for _ in range(2):
        assert [piece async for piece in found.read(digest, 0)]
    assert len(credentials.asked) == 3


async def test_credentials_that_end_and_links_that_break_bring_hardly_more(
    house: AgentHouse, s3: S3Server, credentials: CredentialProvider
) -> None:
    """The link at every tenth, the credentials at three of them."""
    data = os.urandom(SIZE)
    digest = await asyncio.to_thread(house.site.chunk, data)
    await asyncio.to_thread(published, house.site, s3)
    blobs = BlobStore(house.data / "blobs")
    await asyncio.to_thread(blobs.prepare)
    async with (
        expiring_bucket(s3.endpoint) as bucket,
        counting_link(HOST, bucket.port) as link,
    ):
        link.cut_at = [SIZE * tenth // 10 for tenth in range(1, 10)]
        bucket.expires_at = [SIZE * tenth // 10 for tenth in (2, 5, 8)]
        source = await asyncio.to_thread(library, house, f"http://{HOST}:{link.port}")
        path = await brought(blobs, digest, len(data), source)
        assert (link.cut_at, bucket.expires_at, bucket.refusals) == ([], [], 3)
        share = link.carried / len(data)
    print(f"{share:.3f} times its size came")
    assert 1.0 <= share <= 1.05
    assert len(credentials.asked) == 4
    assert await asyncio.to_thread(path.read_bytes) == data


async def brought(blobs: BlobStore, digest: str, size: int, source: BucketLibrary) -> Path:
    """A blob, asked for again after each cut."""
    while True:
        with suppress(Cut):
            return await blobs.fetch(digest, size, source)


async def test_what_is_not_there(house: AgentHouse, credentials: CredentialProvider) -> None:
    found = await asyncio.to_thread(library, house)
    with pytest.raises(Gone, match="the bucket does not have"):
        await found.manifest(f"sha256:{'0' * 64}")
    credentials.lasts = dt.timedelta(days=-1)
    await asyncio.to_thread((house.data / "tls" / "device-a.pem").unlink)
    found = await asyncio.to_thread(library, house)
    with pytest.raises(Cut, match="not enrolled"):
        await found.manifest(f"sha256:{'0' * 64}")
