"""Debian's mosquitto as a broker that asks for certificates, and behind it a small AWS IoT: named
shadows and fleet provisioning, as far as devices speak to them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
import signal
import socket
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from authority import DAY, Authority
from bed_debian import install
from bed_place import Unavailable
from mqtt_client import MqttClient
from waiting import News, eventually

from hatoba import shadows
from hatoba.shadows import Json, Said
from hatoba.v1 import device_pb2
from hatoba_worker import keys

HOST = "localhost"
CONFIG = """\
user root
persistence true
persistence_location {root}/
per_listener_settings true
listener {port} 127.0.0.1
{rights}
cafile {root}/tls/ca.pem
certfile {root}/tls/broker.pem
keyfile {root}/tls/broker.pem
require_certificate true
listener {plain} 127.0.0.1
allow_anonymous true
protocol websockets
"""
ANY = "allow_anonymous true"
LISTED = "use_identity_as_username true\nacl_file {root}/rights"


class Mosquitto:
    """One broker. What it keeps outlives it as long as it is ended in good order. `rights` are
    what clients with certificates have (`acl_file`); empty: all.
    """

    def __init__(self, root: Path, rights: str = "") -> None:
        root.mkdir()
        self.root = root
        self.today = dt.datetime.now(dt.UTC).replace(microsecond=0)
        self.authority = Authority(root / "tls", self.today)
        self.authority.pair("broker.pem", HOST, self.today - DAY, self.today + 90 * DAY)
        self.port, self.plain = _free(), _free()
        (root / "rights").write_text(rights)
        given = LISTED.format(root=root) if rights else ANY
        text = CONFIG.format(root=root, port=self.port, plain=self.plain, rights=given)
        (root / "conf").write_text(text)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Serve, on the same ports as before."""
        log = await asyncio.to_thread((self.root / "log").open, "ab")
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
        assert program is not None
        self._process = await asyncio.create_subprocess_exec(
            *(program, "-c", str(self.root / "conf")), stdout=log, stderr=log
        )
        log.close()
        await eventually(self._answers)

    async def _answers(self) -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.plain)
            writer.close()
            return True
        return False

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; killed, it forgets all sessions."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(number)
            await process.wait()

    def signed(self, csr: str, name: str = "") -> str:
        """A certificate for a request; blocks."""
        begins, ends = self.today - DAY, self.today + 90 * DAY
        return self.authority.signed(csr, "urn:thing", begins, ends, name)

    def claim(self, path: Path) -> None:
        """A file with a key and a certificate; blocks."""
        key = keys.new_key()
        keys.write_own(path, key, self.signed(keys.request_for(key)))


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker of a test's own."""
    async with running(tmp_path / "broker") as broker:
        yield broker


@asynccontextmanager
async def running(root: Path, rights: str = "") -> AsyncIterator[Mosquitto]:
    """A broker; skips where there is none."""
    try:
        await asyncio.to_thread(install, "mosquitto")
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"there is no mosquitto: {error}")
    broker = await asyncio.to_thread(Mosquitto, root, rights)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@dataclass
class _Kept:
    """A named shadow."""

    version: int = 0
    desired: Json = field(default_factory=dict)
    reported: Json = field(default_factory=dict)


class SmallIot:
    """AWS IoT as far as it is here. `mute` has topics that it does not answer."""

    def __init__(self, broker: Mosquitto, client: MqttClient) -> None:
        self.broker = broker
        self.mute: set[str] = set()
        self.refuses: dict[str, Json] = {}
        """What is said to requests on topics that end so."""
        self.asked: list[str] = []
        self.provisioned: list[Json] = []
        self.news = News()
        self.records: dict[int, device_pb2.DeviceRecord] = {}
        self.pieces: list[device_pb2.DeviceRecords] = []
        self.stores = True
        """Pieces of records are answered."""
        self._client = client
        self._shadows: dict[tuple[str, str], _Kept] = defaultdict(_Kept)

    # -- what a server does ---------------------------------------------------------------------

    async def want(
        self,
        thing: str,
        desired: device_pb2.DeviceDesired,
        every: float = 60,
        *,
        records: bool = False,
    ) -> None:
        """The server wants this of a device, and who listens is told."""
        text = shadows.pack(desired)
        state = shadows.wanted(desired.generation, text, every, records=records)
        await self._update(thing, "hatoba", state)

    async def take_for_gone(self, thing: str) -> None:
        """The server takes the link that a device has for broken."""
        await self._update(thing, "hatoba-said", {"desired": {"gone": self.said(thing).link}})

    async def ring(self, thing: str) -> None:
        """AWS IoT Jobs says that there is a job."""
        told = {"execution": {"jobId": "hatoba-1", "status": "QUEUED"}}
        await self._say(f"$aws/things/{thing}/jobs/notify-next", told)

    async def tell(self, topic: str, told: object) -> None:
        """Say anything, as nobody but AWS may."""
        await self._say(topic, told)

    def told(self, thing: str, shadow: str) -> Json:
        """What a shadow of a device reports."""
        return self._shadows[thing, shadow].reported

    def said(self, thing: str) -> Said:
        """What a device says, texts still packed."""
        kept = self._shadows[thing, "hatoba-said"]
        told = {"desired": kept.desired, "reported": kept.reported}
        return shadows.said_of(shadows.shadow_of({"version": kept.version, "state": told}))

    def report(self, thing: str) -> device_pb2.DeviceReport | None:
        """How a device says that it is, if it has told that on the link that it has."""
        said = self.said(thing)
        if not said.report or not said.told_now or said.parts > 1:
            return None
        return shadows.unpack(said.report, device_pb2.DeviceReport)

    # -- what devices ask for -------------------------------------------------------------------

    async def serve(self) -> None:
        """Answer, until cancelled."""
        async for message in self._client.messages():
            await self._hear(message.topic, message.payload)
            self.news.tell()

    async def _hear(self, topic: str, payload: bytes) -> None:
        self.asked.append(topic)
        if any(topic.endswith(one) for one in self.mute):
            return
        for end, refusal in self.refuses.items():
            if topic.endswith(end):
                await self._say(f"{topic}/rejected", refusal)
                return
        match topic.split("/"):
            case ["$aws", "things", thing, "shadow", "name", shadow, "get"]:
                await self._get(thing, shadow)
            case ["$aws", "things", thing, "shadow", "name", shadow, "update"]:
                await self._update(thing, shadow, json.loads(payload)["state"])
            case ["hatoba", thing, "records"]:
                await self._store(thing, json.loads(payload)["records"])
            case ["$aws", "certificates", "create-from-csr", "json"]:
                await self._sign(topic, json.loads(payload))
            case ["$aws", "provisioning-templates", name, "provision", "json"]:
                await self._provision(topic, name, json.loads(payload))

    async def _get(self, thing: str, shadow: str) -> None:
        kept, topic = self._shadows[thing, shadow], shadows.topic(thing, shadow, "get")
        if not kept.version:
            told = {"code": 404, "message": "No shadow exists", **self._stamp(kept)}
            await self._say(f"{topic}/rejected", told)
            return
        state = {"desired": kept.desired, "reported": kept.reported}
        await self._say(f"{topic}/accepted", {"state": state, **self._stamp(kept)})

    async def _update(self, thing: str, shadow: str, state: Json) -> None:
        kept, topic = self._shadows[thing, shadow], shadows.topic(thing, shadow, "update")
        kept.version += 1
        for section, values in state.items():
            there = getattr(kept, section)
            there.update(values)
            for gone in [key for key, value in there.items() if value is None]:
                del there[gone]
        await self._say(f"{topic}/accepted", {"state": state, **self._stamp(kept)})
        delta = {
            key: value for key, value in kept.desired.items() if kept.reported.get(key) != value
        }
        if delta:
            await self._say(f"{topic}/delta", {"state": delta, **self._stamp(kept)})
        self.news.tell()

    async def _store(self, thing: str, text: str) -> None:
        piece = shadows.unpack(text, device_pb2.DeviceRecords)
        self.pieces.append(piece)
        if self.stores:
            self.records |= dict(enumerate(piece.records, piece.first))
            last = piece.first + len(piece.records) - 1
            await self._update(thing, "hatoba-said", shadows.stored_state(last))

    def _stamp(self, kept: _Kept) -> Json:
        return {"version": kept.version, "timestamp": round(dt.datetime.now(dt.UTC).timestamp())}

    async def _sign(self, topic: str, asked: Json) -> None:
        pem = await asyncio.to_thread(self.broker.signed, asked["certificateSigningRequest"])
        told = {"certificateOwnershipToken": "owner-1", "certificateId": "1", "certificatePem": pem}
        await self._say(f"{topic}/accepted", told)

    async def _provision(self, topic: str, template: str, asked: Json) -> None:
        assert asked["certificateOwnershipToken"] == "owner-1"
        self.provisioned.append({"template": template, **asked["parameters"]})
        thing = f"hatoba-{asked['parameters']['Device']}"
        told = {"thingName": thing, "deviceConfiguration": {"shadow": "hatoba"}}
        await self._say(f"{topic}/accepted", told)

    async def _say(self, topic: str, told: Any) -> None:
        await self._client.publish(topic, json.dumps(told).encode())


@asynccontextmanager
async def small_iot(broker: Mosquitto) -> AsyncIterator[SmallIot]:
    """Behind a broker, from when on it runs to when it ends."""
    client = await MqttClient.connect(broker.plain, "small-iot")
    try:
        await client.subscribe(
            [
                "$aws/things/+/shadow/name/+/get",
                "$aws/things/+/shadow/name/+/update",
                "hatoba/+/records",
                "$aws/certificates/create-from-csr/json",
                "$aws/provisioning-templates/+/provision/json",
            ]
        )
        iot = SmallIot(broker, client)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(iot.serve(), name="small iot")
            try:
                yield iot
            finally:
                serving.cancel()
    finally:
        await client.leave()


def _free() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port
