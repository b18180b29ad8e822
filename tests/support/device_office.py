"""A server's side of enrolling on a real store, and machines that come to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from device_desk import LIFE, DeviceDesk, Machine, enrolment

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import SignsDevices
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.auth import Role
from hatoba_scheduler.auth.authority import DeviceIdentity
from hatoba_scheduler.auth.device_credentials import DeviceClaim
from hatoba_scheduler.control.devices import DeviceBook
from hatoba_scheduler.interceptors.context import CallContext, enter_call
from hatoba_scheduler.services.enrolling import Enrolling, EnrollParts
from hatoba_scheduler.services.signing import Signing
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.sqlite import open_store
from hatoba_scheduler.telemetry.tracing import SpanContext

PORT = "hatoba.example.org:7430"


class Office:
    """A server's side, and machines that come to it."""

    def __init__(self, desk: DeviceDesk, store: Store, book: DeviceBook) -> None:
        self.desk, self.store, self.book = desk, store, book
        self.port = PORT
        self.signer: SignsDevices | None = None
        numbers = iter(range(1, 1_000))
        self.enrolling = Enrolling(
            EnrollParts(
                store=store.devices,
                book=book,
                authenticator=desk.authenticator,
                authority=desk.authority,
                address=lambda: "hatoba.example.org:7420",
                devices_at=lambda: self.port,
                pinned=True,
                life=LIFE,
                clock=desk.micros,
                new_identity=lambda: f"id{next(numbers)}",
                signing=Signing(lambda: self.signer),
            )
        )

    def calls(self, text: str) -> None:
        """Whoever shows this calls from now on."""
        token = self.desk.authenticator.authenticate(f"Bearer {text}")
        trace = SpanContext("0" * 32, "0" * 16, sampled=False)
        enter_call(CallContext("test", "", trace, token))

    def calls_as(self, machine: Machine) -> None:
        """The device calls from now on, at its own port."""
        claim = self.desk.authenticator.authenticate(f"Bearer dc_{machine.name}")
        assert isinstance(claim, DeviceClaim)
        trace = SpanContext("0" * 32, "0" * 16, sampled=False)
        enter_call(CallContext("test", "", trace, claim.prove(machine.shown)))

    async def token(
        self, uses: int = 0, labels: dict[str, str] | None = None, device: str = ""
    ) -> str:
        """What makes devices."""
        _, admin = await self.desk.authenticator.create("ann", Role.ADMIN)
        self.calls(admin)
        made = await self.enrolling.create_token(
            device_pb2.CreateDeviceTokenRequest(uses=uses, labels=labels or {}, device=device)
        )
        text, _, pinned = made.secret.partition(".")
        assert (pinned, made.uses) == (self.desk.authority.short, uses or 1)
        return text

    async def enroll(self, machine: Machine, text: str, **fields: object) -> Machine:
        """The machine becomes a device."""
        self.calls(text)
        given = await self.enrolling.enroll(enrolment(machine, **fields))
        machine.name, machine.certificate = given.device, given.certificate
        return machine

    def who(self, machine: Machine) -> DeviceIdentity | None:
        """Whom its certificate names."""
        certificate = x509.load_pem_x509_certificate(machine.certificate.encode())
        return self.desk.authority.device_of(certificate)

    async def kinds(self, device: str) -> list[tuple[str, str]]:
        """What happened to a device, and by whom, oldest first."""
        events = await self.store.devices.events(device, 0, 10)
        return [(one.kind, one.actor) for one in reversed(events)]


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """One of each test's own."""
    clock = FakeClock()
    store = await open_store(tmp_path, lambda: round(clock.time() * 1e6))
    book = DeviceBook(store.devices, clock)
    desk = await asyncio.to_thread(DeviceDesk, tmp_path, clock, store, book)
    await desk.authenticator.load()
    try:
        yield Office(desk, store, book)
    finally:
        await store.close()
