"""A server for devices, in this process: it remembers what they say and answers as it is told."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from authority import DAY, Authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from waiting import News

from hatoba.artifacts.manifest import CHUNK_BYTES
from hatoba.artifacts.pack import pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    common_pb2,
    device_pb2,
    device_pb2_grpc,
    worker_pb2,
)
from hatoba_worker import keys

HOST = "control.example"
DEVICE = "cam-1"
TOKEN = "hb_0123456789ab_secret"
PIECE = 4_096
Reply = device_pb2.DeviceServiceConnectResponse
Request = device_pb2.DeviceServiceConnectRequest


async def _absent(_self: object, _request: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no device asks for this")


class DeviceSite(
    device_pb2_grpc.DeviceServiceServicer,
    artifact_pb2_grpc.ArtifactServiceServicer,
):
    """Makes whoever has the token the device `cam-1`. Tests change what it does by its fields."""

    CreateDeviceToken: Any = _absent
    ListDevices: Any = _absent
    GetDevice: Any = _absent
    UpdateDevice: Any = _absent
    RevokeDevice: Any = _absent
    DecommissionDevice: Any = _absent
    ListRolloutDevices: Any = _absent
    RetryRolloutDevices: Any = _absent
    PlanDevices: Any = _absent
    ListDeviceLogs: Any = _absent
    ListDeviceRecords: Any = _absent
    ListDeviceEvents: Any = _absent
    FindMissingChunks: Any = _absent
    UploadChunks: Any = _absent
    CreateManifest: Any = _absent
    UploadManifest: Any = _absent
    GetManifest: Any = _absent
    GetTransferUrls: Any = _absent
    ConfirmChunks: Any = _absent
    CollectGarbage: Any = _absent

    def __init__(self, root: Path) -> None:
        self._root = root
        self.today = dt.datetime.now(dt.UTC).replace(microsecond=0)
        self.authority = Authority(root / "authority", self.today)
        begins, ends = self.today - DAY, self.today + 90 * DAY
        self._pair = self.authority.pair("server.pem", HOST, begins, ends).read_bytes()
        self._api_pair = self.authority.pair("api.pem", "localhost", begins, ends).read_bytes()
        self._trees = root / "trees"
        self._trees.mkdir()
        self._servers: list[grpc.aio.Server] = []
        self._out: asyncio.Queue[list[device_pb2.DeviceOrder]] = asyncio.Queue(1_000)
        self.port = self.api_port = 0
        self.news = News()
        self.begins, self.life = self.today - DAY, 30 * DAY
        """From when on, and for how long, certificates are good that it gives."""
        self.answers_others = False
        """Certificates that it gives are for keys that nobody has."""
        self.serials: list[int] = []
        """Of the certificates that it gave."""
        self.shown: list[int] = []
        """Of the certificates that streams were opened with."""
        self.unknown: set[int] = set()
        """Of certificates that it does not know."""
        self.forgotten: set[int] = set()
        """Of certificates that it does not renew either."""
        self.proofs = 0
        """Renewals that were asked for at the ordinary port."""
        self.trouble: grpc.StatusCode | None = None
        """What every call is answered with."""
        self.lost_replies = 0
        """So many enrolments are done, and their replies lost."""
        self.enrolments: list[device_pb2.EnrollDeviceRequest] = []
        self.hellos: list[device_pb2.DeviceHello] = []
        self.reports: list[device_pb2.DeviceReport] = []
        self.records: dict[int, device_pb2.DeviceRecord] = {}
        self.batches: list[device_pb2.DeviceRecords] = []
        self.aws_iot: device_pb2.AwsIotIdentity | None = None
        """What it is at AWS IoT whoever enrolls; None: they are to dial here."""
        self.alive = 0
        self.streams = 0
        self.alive_every = 30.0
        self.stored = 0
        self.stores = True
        self.time = 0.0
        self.desired = device_pb2.DeviceDesired()
        self.chunks: dict[bytes, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.flows = asyncio.Event()
        """Cleared, no chunk comes beyond its first piece."""
        self.flows.set()
        self.downloads = 0
        """Calls for chunks that are open."""
        self.sent = 0
        """Bytes of chunks that were sent."""
        self.breaks_after = 0
        """Bytes of a chunk after which each call breaks; 0: none does."""

    # -- its life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve; on the same ports as before when there were some."""
        root = await asyncio.to_thread(self.authority.pem.read_bytes)
        api = grpc.ssl_server_credentials([(self._api_pair, self._api_pair)])
        own = grpc.ssl_server_credentials(
            [(self._pair, self._pair)], root, require_client_auth=True
        )
        self.api_port = await self._serve(self.api_port, api)
        self.port = await self._serve(self.port, own)

    async def plain(self) -> None:
        """Serve in plain text, on a port that is the device port too."""
        server = self._server()
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()

    async def _serve(self, port: int, credentials: grpc.ServerCredentials) -> int:
        server = self._server()
        found = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await server.start()
        return found

    def _server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        device_pb2_grpc.add_DeviceServiceServicer_to_server(self, server)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(self, server)
        self._servers.append(server)
        return server

    async def stop(self) -> None:
        """End all calls at once, as a server does that is killed."""
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(0)

    @property
    def token(self) -> str:
        """What people paste."""
        return f"{TOKEN}.{self.authority.pinned}"

    @property
    def api(self) -> str:
        """Where devices enroll."""
        return f"https://localhost:{self.api_port}"

    # -- what it wants --------------------------------------------------------------------------

    def say(self, **order: Any) -> None:
        """Say something on the open stream."""
        self._out.put_nowait([device_pb2.DeviceOrder(**order)])

    def want(self, *specs: worker_pb2.ReplicaSpec, bake: float = 1.0, tries: int = 0) -> int:
        """What the device is to run from now on; the generation of it."""
        wanted = device_pb2.DeviceDesired(generation=self.desired.generation + 1)
        for spec in specs:
            want = wanted.wants.add(
                deployment=spec.deployment, revision=spec.revision, tries=tries, spec=spec
            )
            want.bake.FromMilliseconds(round(bake * 1000))
        self.desired = wanted
        self.say(desired=wanted)
        return wanted.generation

    def store(self, name: str, files: dict[str, bytes]) -> common_pb2.ManifestRef:
        """Have a tree that devices may fetch; blocks."""
        root = self._trees / name
        root.mkdir()
        for path, data in files.items():
            (root / path).write_bytes(data)
        packed = pack_tree(root, Selection.EVERYTHING)
        packed.load()
        for entry in packed.manifest.entries:
            data = (root / entry.path).read_bytes()
            for number, chunk in enumerate(entry.chunks):
                start = number * CHUNK_BYTES
                self.chunks[chunk.sha256] = data[start : start + chunk.size]
        self.manifests[packed.ref.digest] = packed.manifest.SerializeToString(deterministic=True)
        return packed.ref

    def chunk(self, data: bytes) -> str:
        """Have a chunk that devices may fetch; its digest."""
        sha256 = hashlib.sha256(data).digest()
        self.chunks[sha256] = data
        return f"sha256:{sha256.hex()}"

    # -- what it heard --------------------------------------------------------------------------

    @property
    def report(self) -> device_pb2.DeviceReport:
        """The newest; empty before there was one."""
        return self.reports[-1] if self.reports else device_pb2.DeviceReport()

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Log lines in order, each with its deployment."""
        told = [self.records[at] for at in sorted(self.records)]
        return [(one.log.deployment, one.log.text) for one in told if one.HasField("log")]

    @property
    def figures(self) -> dict[str, float]:
        """Figures of the device by name, each as it was told last."""
        return self.figures_of("")

    def figures_of(self, deployment: str) -> dict[str, float]:
        """Figures of a deployment by name, each as it was told last."""
        told = [self.records[at].figure for at in sorted(self.records)]
        return {one.name: one.value for one in told if one.name and one.deployment == deployment}

    @property
    def happenings(self) -> list[str]:
        """What happened, by its word, in order."""
        told = [self.records[at] for at in sorted(self.records)]
        return [one.happening.kind for one in told if one.HasField("happening")]

    # -- DeviceService --------------------------------------------------------------------------

    async def EnrollDevice(
        self, request: device_pb2.EnrollDeviceRequest, context: Any
    ) -> device_pb2.DeviceIdentity:
        await self._check_trouble(context)
        if ("authorization", f"Bearer {TOKEN}") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this token is used up")
        self.enrolments.append(request)
        if self.lost_replies:
            self.lost_replies -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the reply is lost")
        return await asyncio.to_thread(self.identity, request.csr)

    async def RenewDevice(
        self, request: device_pb2.RenewDeviceRequest, context: Any
    ) -> device_pb2.DeviceIdentity:
        await self._check_trouble(context)
        shown = dict(context.invocation_metadata())["authorization"].removeprefix("Bearer ")
        if shown.startswith("dr_"):
            self.proofs += 1
            if await asyncio.to_thread(proof_serial, shown, request.csr) in self.forgotten:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no device had this")
        else:
            self._require_claim(context)
        return await asyncio.to_thread(self.identity, request.csr)

    def identity(self, csr: str) -> device_pb2.DeviceIdentity:
        """What a signing request is answered with; blocks."""
        made = self._identity(csr)
        if self.aws_iot is None:
            return made
        return device_pb2.DeviceIdentity(
            device=made.device, certificate=made.certificate, aws_iot=self.aws_iot
        )

    def _identity(self, csr: str) -> device_pb2.DeviceIdentity:
        uri = f"hatoba://cluster/devices/{DEVICE}/id"
        pem = self.authority.signed(csr, uri, self.begins, self.begins + self.life)
        if self.answers_others:
            csr = keys.request_for(keys.new_key())
            pem = self.authority.signed(csr, uri, self.begins, self.begins + self.life)
        self.serials.append(x509.load_pem_x509_certificate(pem.encode()).serial_number)
        given = device_pb2.DeviceIdentity(
            device=DEVICE,
            certificate=pem,
            authority=self.authority.pem.read_text(),
            address=f"127.0.0.1:{self.port}",
            server_name=HOST,
        )
        given.time.FromDatetime(self.today)
        return given

    def _require_claim(self, context: Any) -> None:
        assert ("authorization", f"Bearer dc_{DEVICE}") in context.invocation_metadata()

    async def _check_trouble(self, context: Any) -> None:
        if self.trouble is not None:
            await context.abort(self.trouble, "there is trouble")

    async def Connect(  # type: ignore[override]  # it writes instead of yielding
        self, request_iterator: AsyncIterator[Request], context: Any
    ) -> None:
        await self._check_trouble(context)
        self._require_claim(context)
        (pem,) = context.auth_context()["x509_pem_cert"]
        serial = x509.load_pem_x509_certificate(pem).serial_number
        self.shown.append(serial)
        self.news.tell()
        if serial in self.unknown:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no device has this certificate")
        self.streams += 1
        out: asyncio.Queue[list[device_pb2.DeviceOrder]] = asyncio.Queue(1_000)
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(out, context))
            async for request in request_iterator:
                for item in request.items:
                    self._hear(item, out)
                self.news.tell()
            writer.cancel()

    async def _write(self, out: asyncio.Queue[list[device_pb2.DeviceOrder]], context: Any) -> None:
        while True:
            await context.write(Reply(items=await out.get()))

    def _hear(
        self, item: device_pb2.DeviceItem, out: asyncio.Queue[list[device_pb2.DeviceOrder]]
    ) -> None:
        match item.WhichOneof("item"):
            case "hello":
                self.hellos.append(item.hello)
                self._out = out
                self._greet()
            case "report":
                self.reports.append(item.report)
            case "records":
                self._store(item.records)
            case "alive":
                self.alive += 1

    def _greet(self) -> None:
        welcome = device_pb2.DeviceWelcome(cluster_id="cluster", version="0", stored=self.stored)
        welcome.time.FromMicroseconds(round((self.time or self.today.timestamp()) * 1e6))
        welcome.alive_every.FromMilliseconds(round(self.alive_every * 1000))
        self.say(welcome=welcome)
        if self.desired.generation:
            self.say(desired=self.desired)

    def _store(self, records: device_pb2.DeviceRecords) -> None:
        self.batches.append(records)
        for at, record in enumerate(records.records):
            self.records[records.first + at] = record
        if self.stores:
            self.stored = max(self.stored, records.first + len(records.records) - 1)
            self.say(stored=device_pb2.DeviceRecordsStored(position=self.stored))

    # -- ArtifactService ------------------------------------------------------------------------

    async def DownloadManifest(  # type: ignore[override]  # it writes instead of yielding
        self, request: artifact_pb2.DownloadManifestRequest, context: Any
    ) -> None:
        await self._check_trouble(context)
        self._require_claim(context)
        data = self.manifests.get(request.digest)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.digest} is not stored")
        assert data is not None
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            await context.write(artifact_pb2.DownloadManifestResponse(data=piece))

    async def DownloadChunks(  # type: ignore[override]  # it writes instead of yielding
        self, request: artifact_pb2.DownloadChunksRequest, context: Any
    ) -> None:
        await self._check_trouble(context)
        self._require_claim(context)
        self.downloads += 1
        try:
            await self._send_chunks(request, context)
        finally:
            self.downloads -= 1

    async def _send_chunks(self, request: artifact_pb2.DownloadChunksRequest, context: Any) -> None:
        for position, sha256 in enumerate(request.sha256):
            data = self.chunks.get(sha256)
            if data is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"{sha256.hex()} is not stored")
            assert data is not None
            # The last piece comes in any case: it says that there is no more.
            for start in range(request.offset, max(len(data), request.offset + 1), PIECE):
                piece = data[start : start + PIECE]
                last = start + PIECE >= len(data)
                await context.write(
                    artifact_pb2.DownloadChunksResponse(position=position, data=piece, last=last)
                )
                self.sent += len(piece)
                self.news.tell()
                await self.flows.wait()
                if 0 < self.breaks_after <= start + len(piece):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the link broke")


def proof_serial(text: str, csr: str) -> int:
    """The serial of the certificate by whose key a signing request is shown. Raises what is
    raised for a proof that is none.
    """
    shown, digest, signed = text.removeprefix("dr_").split(".")
    der = _decoded(shown)
    certificate = x509.load_der_x509_certificate(der)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    meant = b"hatoba device renewal\0" + der + digest.encode()
    key.verify(_decoded(signed), meant, ec.ECDSA(hashes.SHA256()))
    assert digest == hashlib.sha256(csr.encode()).hexdigest()
    return certificate.serial_number


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
