"""The device's certificates over time: which one is shown, and another one before it ends.

A new one is shown first. It is proven when the server welcomes it, and given up when the server
welcomes the old one instead, again and again: no single cut decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import structlog

from hatoba.errors import InvalidSpec
from hatoba.v1 import device_pb2, device_pb2_grpc
from hatoba_worker import key_files
from hatoba_worker.agent.calls import Broken, typed
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.identity import Credential, Identity, NotEnrolled
from hatoba_worker.agent.library import Metadata
from hatoba_worker.agent.ordinary import Place, reached
from hatoba_worker.agent.settings import FILE, AwsIot, Settings
from hatoba_worker.agent.tunnel import GRPC, HTTPS_PORT, MQTT, Peer

log = structlog.get_logger(__name__)

SERVER = "server.pem"
"""Among a device's keys: who is believed at the server's ordinary port, if it is not who this
machine believes."""
CLAIM = "dc_"
CALL_SECONDS = SIGN_SECONDS = 60.0
LOOK_EVERY, LOOK_SOON = 3_600.0, 60.0
DOUBTS = 3
"""So often a new certificate may be in vain while the old one is welcomed."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is shown now, and who is believed, none: those whom the machine believes; `candidate` is
    the one that is not proven, if there is one.
    """

    settings: Settings
    credential: Credential
    candidate: Credential | None
    authority: Path | None

    @property
    def on_trial(self) -> bool:
        return self.credential == self.candidate


class Shown:
    """By what the device is known, as it is now."""

    def __init__(self, data: Path, clock: FloorClock) -> None:
        self._data = data
        self._clock = clock
        self._identity = Identity(key_files.directory(data))
        self._choice: _Choice | None = None
        self._failures = 0
        """Tries since the last welcome."""
        self._doubts = 0
        """Of them those with the candidate, over all."""
        self._unknown = False
        """The server said last that it does not know what was shown, or may have meant that."""

    async def choose(self) -> None:
        """Settle what is shown from now on. Raises NotEnrolled, BadSettings, OSError."""
        self._choice = await asyncio.to_thread(self._chosen)

    def _chosen(self) -> _Choice:
        settings = Settings.load(self._data)
        if settings is None:
            raise NotEnrolled("this device is not enrolled; `hatoba agent enroll` does that")
        current, candidate = self._identity.current(), self._identity.candidate()
        # By turns: neither may keep the other from being tried.
        first = candidate if candidate is not None and self._failures % 2 == 0 else current
        return _Choice(settings, first, candidate, self._authority(settings))

    def _authority(self, settings: Settings) -> Path | None:
        """A server is known by its own; AWS IoT perhaps by one that the machine has."""
        own = self._identity.authority
        return own if settings.aws_iot is None or own.exists() else None

    @property
    def _now(self) -> _Choice:
        if self._choice is None:
            raise NotEnrolled("nothing was chosen yet")
        return self._choice

    @property
    def device(self) -> str:
        """The device's name."""
        return self._now.settings.device

    @property
    def metadata(self) -> Metadata:
        """What a call carries: a claim that the certificate proves."""
        return (("authorization", f"Bearer {CLAIM}{self.device}"),)

    def peer(self) -> Peer:
        """Whom to reach, and what to show there."""
        settings = self._now.settings
        own, authority = self._now.credential.path, self._now.authority
        alpn = alpn_of(settings)
        return Peer(settings.host, settings.port, settings.server_name, authority, own, alpn)

    @property
    def aws_iot(self) -> AwsIot:
        """What the device is at AWS IoT. Raises NotEnrolled where it is nothing there."""
        known = self._now.settings.aws_iot
        if known is None:
            raise NotEnrolled("this device is enrolled at a server, and not at AWS IoT")
        return known

    async def welcomed(self) -> None:
        """The server knows what was shown. Raises OSError."""
        choice = self._now
        self._failures, self._unknown = 0, False
        if choice.on_trial:
            await asyncio.to_thread(self._identity.proven, choice.credential)
            log.info("identity.renewed", device=self.device)
        elif choice.candidate is not None and self._doubts >= DOUBTS:
            await asyncio.to_thread(self._identity.refused, choice.candidate)
            log.warning("identity.candidate_refused", device=self.device)
        else:
            return
        self._doubts = 0
        self._choice = replace(choice, candidate=None)

    def failed(self, *, unknown: bool, silent: bool = False) -> None:
        """It came to no welcome; `unknown`: the server does not know what was shown, `silent`: it
        may not.
        """
        self._failures += 1
        self._unknown = unknown or silent
        if self._choice is not None and self._choice.on_trial:
            self._doubts += DOUBTS if unknown else 1

    # -- another one ----------------------------------------------------------------------------

    def renews_first(self) -> bool:
        """Whether a new certificate is asked for by proof before anything else: this one has ended,
        or the server may not take it any more. Where that is not sure both are tried by turns.
        """
        if self._now.candidate is not None:
            return False
        over = self._clock.now() > _end(self._now.credential)
        if over and self._clock.certain:
            return True
        return (over or self._unknown) and self._failures % 2 == 1

    async def renew(self, channel: grpc.aio.Channel) -> None:
        """Have a new certificate, which is shown from the next connection on. Raises Broken,
        OSError.
        """
        await self._ask(channel, await asyncio.to_thread(self._request), self.metadata)

    async def renew_by_proof(self) -> None:
        """The same at the server's ordinary port, where no certificate is shown: for one that has
        ended. Raises Broken, OSError.
        """
        csr = await asyncio.to_thread(self._request)
        proof = await asyncio.to_thread(signed, "proof", self._now.credential.path, csr)
        place = await asyncio.to_thread(self._place)
        metadata = (("authorization", f"Bearer {proof}"),)
        try:
            async with reached(place, self._data / "renewing", self._clock) as (channel, tunnel):
                try:
                    await self._ask(channel, csr, metadata)
                except Broken as error:
                    problem = tunnel.problem if tunnel is not None else ""
                    raise Broken(f"{place.server}: {problem or error}", error.code) from error
        except InvalidSpec as error:
            raise Broken(f"{FILE} names no server: {error.message}") from error

    def _request(self) -> str:
        return signed("request", self._identity.root)

    def _place(self) -> Place:
        path = key_files.directory(self._data) / SERVER
        authority = path.read_text(encoding="ascii") if path.exists() else ""
        return Place(self._now.settings.server, authority)

    async def _ask(self, channel: grpc.aio.Channel, csr: str, metadata: Metadata) -> None:
        stub = device_pb2_grpc.DeviceServiceStub(channel)
        request = device_pb2.RenewDeviceRequest(csr=csr)
        with typed():
            given = await stub.RenewDevice(request, metadata=metadata, timeout=CALL_SECONDS)
        await asyncio.to_thread(signed, "keep", self._identity.root, given.certificate)
        self._failures = self._doubts = 0

    async def keep_young(
        self,
        channel: grpc.aio.Channel,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Return when there is another certificate to be shown: the link has to be made anew."""
        while True:
            if self._now.candidate is not None:
                await sleep(LOOK_SOON)
                return
            wait = LOOK_EVERY
            if await self._is_due():
                if await self._renewed(channel):
                    return
                wait = LOOK_SOON
            await sleep(wait)

    async def _renewed(self, channel: grpc.aio.Channel) -> bool:
        try:
            await self.renew(channel)
        except (Broken, OSError) as error:
            log.warning("identity.not_renewed", error=str(error))
            return False
        return True

    async def _is_due(self) -> bool:
        with contextlib.suppress(NotEnrolled, OSError):
            return await asyncio.to_thread(self._identity.is_due, self._clock)
        return False


def alpn_of(settings: Settings) -> tuple[str, ...]:
    """Which protocols a device offers at its address."""
    if settings.aws_iot is None:
        return GRPC
    return MQTT if settings.port == HTTPS_PORT else ()


def signed(work: str, path: Path, told: str = "") -> str:
    """What one of `signing.WORKS` gives, in its own process. Blocks; raises Broken, OSError."""
    command = [sys.executable, "-m", "hatoba_worker.agent.signing", work, str(path)]
    try:
        done = subprocess.run(
            command, input=told.encode(), capture_output=True, timeout=SIGN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Broken(f"the device's keys are not at hand: {error}") from error
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Broken(why or f"what uses the device's keys ended by {done.returncode}")
    return done.stdout.decode()


def _end(credential: Credential) -> float:
    return credential.validity.ends
