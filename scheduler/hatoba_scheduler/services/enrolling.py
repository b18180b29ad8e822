"""How machines become devices, and stay the devices that they are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog
from cryptography import x509

from hatoba.v1 import device_pb2
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.authority import (
    DEVICES_NAME,
    Authority,
    DeviceIdentity,
    key_digest,
    read_request,
)
from hatoba_scheduler.auth.device_credentials import DeviceCaller, refused
from hatoba_scheduler.auth.device_renewals import DeviceRenewal
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.control.devices import DeviceBook, Enrolment, Happening
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.convert_devices import capacity_of, platform_of
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.devices import AWS_IOT, GRPC, Device, DeviceState
from hatoba_scheduler.domain.records import Micros, TokenRecord
from hatoba_scheduler.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    HatobaError,
    InvalidArgument,
    Reason,
    Resource,
    Unauthenticated,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.labels import reserved_labels
from hatoba_scheduler.services.signing import Signing
from hatoba_scheduler.store.devices import (
    DeviceEvent,
    DeviceStore,
    DeviceToken,
    NotEnrolled,
    Write,
)

TTL_SECONDS = 86_400.0
Make = Callable[[Device | None], Enrolment]
log = structlog.get_logger(__name__)


class EnrollParts(NamedTuple):
    """What enrolling stands on. `address` gives what machines dial to enroll, `devices_at` what
    devices dial, empty where there is no such port; `pinned` says whether the server's own
    certificate is the authority's work. `clock` gives microseconds since 1970. `signing` is for
    devices of AWS IoT.
    """

    store: DeviceStore
    book: DeviceBook
    authenticator: Authenticator
    authority: Authority
    address: Callable[[], str]
    devices_at: Callable[[], str]
    pinned: bool
    life: dt.timedelta
    clock: Callable[[], Micros]
    new_identity: Callable[[], str]
    signing: Signing


class _Asked(NamedTuple):
    """One that is asked for: by whom, under which terms, with which key."""

    token: TokenRecord
    terms: DeviceToken
    request: device_pb2.EnrollDeviceRequest
    csr: x509.CertificateSigningRequest

    @property
    def name(self) -> str:
        """Of the device that it makes."""
        return self.terms.device or self.request.device or f"device-{key_digest(self.csr)[:12]}"

    @property
    def actor(self) -> str:
        """Who answers for it."""
        return self.token.created_by or self.token.principal


class Enrolling:
    """Makes tokens, devices and their certificates."""

    def __init__(self, parts: EnrollParts) -> None:
        self._parts = parts

    # -- tokens ---------------------------------------------------------------------------------

    async def create_token(
        self, request: device_pb2.CreateDeviceTokenRequest
    ) -> device_pb2.DeviceToken:
        """A token for so many machines."""
        parts, uses, transport = self._parts, request.uses or 1, request.transport or GRPC
        self._require(transport)
        _check_token(request)
        asked = request.ttl.ToTimedelta().total_seconds() if request.HasField("ttl") else 0.0
        record, text = await parts.authenticator.create(
            f"devices/{request.device}" if request.device else "devices/?",
            Role.ENROLL,
            ttl=round((asked or TTL_SECONDS) * 1e6),
            created_by=current_call().principal,
        )
        labels = tuple(sorted(request.labels.items()))
        terms = DeviceToken(record.id, uses, labels, request.device, transport=transport)
        await parts.store.put_token(terms)
        reply = device_pb2.DeviceToken(
            name=f"tokens/{record.id}",
            secret=f"{text}.{parts.authority.short}" if parts.pinned else text,
            uses=uses,
            address=parts.address(),
            transport=transport,
        )
        set_time(reply.expire_time, record.expire_time)
        return reply

    def _require(self, transport: str) -> None:
        """Raises FailedPrecondition where there are no such devices."""
        if transport == AWS_IOT:
            self._parts.signing.require()
        elif not self._parts.devices_at():
            other = ", or say `--transport aws-iot`" if self._parts.signing.able else ""
            raise FailedPrecondition(
                "this server has no port for devices; set `listen` below `[devices]` in its "
                f"hatoba.toml{other}"
            )

    # -- becoming a device ----------------------------------------------------------------------

    async def enroll(self, request: device_pb2.EnrollDeviceRequest) -> device_pb2.DeviceIdentity:
        """Make the caller's machine a device."""
        token = current_call().token
        if token is None or token.role != Role.ENROLL:
            raise FailedPrecondition("show a device token; `hatoba devices add` makes one")
        _refuse_reserved(request.labels)
        csr = read_request(request.csr, "csr")
        terms = await self._parts.store.token(token.id)
        if terms is None:
            raise Unauthenticated("this token makes no devices", reason=Reason.TOKEN_UNKNOWN)
        self._require(terms.transport)
        enrolment = _Asked(token, terms, request, csr)
        if terms.transport == AWS_IOT:
            return await self._enroll_at_aws(enrolment)
        return await self._enroll(enrolment)

    async def _enroll(self, enrolment: _Asked) -> device_pb2.DeviceIdentity:
        certificate, replaced = "", ""

        def make(known: Device | None) -> Enrolment:
            nonlocal certificate, replaced
            former = known if enrolment.terms.device else None
            who = DeviceIdentity(enrolment.name, self._parts.new_identity())
            certificate = self._parts.authority.sign_device(enrolment.csr, who, self._parts.life)
            replaced = former.identity if former is not None else ""
            device = self._device(enrolment, who.identity, former)
            device = changed(device, certificate_end=_end_of(certificate))
            return self._enrolment(enrolment, device, former)

        known = await self._known(enrolment, make)
        if known is not None:
            # It is the device already, and may not know it.
            return await self._renewed(DeviceIdentity(known.name, known.identity), enrolment.csr)
        if replaced:
            self._parts.authenticator.cut(replaced)
        log.info("device.enrolled", device=enrolment.name, token=enrolment.token.id)
        return self._identity(enrolment.name, certificate)

    async def _enroll_at_aws(self, enrolment: _Asked) -> device_pb2.DeviceIdentity:
        """First it has its name here, then it is signed for: who fails in between asks again."""
        if self._parts.book.get(enrolment.name) is None:
            await self._parts.signing.check_free(enrolment.name)

        def make(known: Device | None) -> Enrolment:
            former = known if enrolment.terms.device else None
            device = self._device(enrolment, self._parts.new_identity(), former)
            return self._enrolment(enrolment, device, former)

        known = await self._known(enrolment, make)
        if known is not None and known.state is DeviceState.REVOKED:
            raise refused("the device was revoked")
        device = known.name if known is not None else enrolment.name
        reply = await self._parts.signing.enroll(device, enrolment.request.csr)
        set_time(reply.time, self._parts.clock())
        log.info("device.enrolled", device=device, token=enrolment.token.id, transport=AWS_IOT)
        return reply

    async def _known(self, enrolment: _Asked, make: Make) -> Device | None:
        """The device that its key has made already; None: it was made now."""
        key = key_digest(enrolment.csr)
        known = await self._parts.book.enroll(enrolment.name, make, key, enrolment.token.id)
        if isinstance(known, NotEnrolled):
            raise _not_enrolled(known, enrolment)
        return known

    def _enrolment(self, enrolment: _Asked, device: Device, former: Device | None) -> Enrolment:
        what = "made anew" if former is not None else "enrolled"
        text = f"It was {what} with tokens/{enrolment.token.id}."
        now = self._parts.clock()
        event = DeviceEvent(device.name, now, "enrolled", text, enrolment.actor)
        return Enrolment(Write(device, former.version if former is not None else 0), event)

    def _device(self, enrolment: _Asked, identity: str, former: Device | None) -> Device:
        """The device that is to be. One that is made anew keeps what is wanted of it and its
        labels, and begins with an empty disk. Raises FailedPrecondition where it would have to be
        reached by another way."""
        name, request, now = enrolment.name, enrolment.request, self._parts.clock()
        transport = enrolment.terms.transport
        if former is not None and former.transport != transport:
            raise _elsewhere(former, transport)
        own = dict(request.labels) | dict(former.labels if former is not None else ())
        made = Device(
            name=name,
            state=DeviceState.ENROLLED,
            labels=tuple(sorted((own | dict(enrolment.terms.labels)).items())),
            platform=platform_of(request.platform),
            capacity=capacity_of(request.capacity),
            version=1,
            transport=transport,
            create_time=now,
            identity=identity,
        )
        if former is not None:
            made = changed(
                made,
                version=former.version + 1,
                generation=former.generation,
                wants=former.wants,
                create_time=former.create_time,
            )
        return made

    # -- staying one ----------------------------------------------------------------------------

    async def renew(self, request: device_pb2.RenewDeviceRequest) -> device_pb2.DeviceIdentity:
        """A new certificate for the device that calls."""
        token = current_call().token
        if not isinstance(token, DeviceCaller):
            raise FailedPrecondition("only a device has a certificate to renew")
        if isinstance(token, DeviceRenewal):
            token.check_csr(request.csr)
        csr = read_request(request.csr, "csr")
        who = DeviceIdentity(token.device, token.identity)
        reply = await self._renewed(who, csr, Happening("renewed", "It got a new certificate."))
        log.info("device.renewed", device=token.device)
        return reply

    async def _renewed(
        self, who: DeviceIdentity, csr: x509.CertificateSigningRequest, *events: Happening
    ) -> device_pb2.DeviceIdentity:
        certificate = self._parts.authority.sign_device(csr, who, self._parts.life)
        end = _end_of(certificate)

        def decide(device: Device) -> Device:
            if device.identity != who.identity or device.state is DeviceState.REVOKED:
                raise refused("the device was revoked, or another machine took its place")
            return changed(device, certificate_end=end, version=device.version + 1)

        await self._parts.book.change(who.device, decide, *events)
        return self._identity(who.device, certificate)

    def _identity(self, device: str, certificate: str) -> device_pb2.DeviceIdentity:
        reply = device_pb2.DeviceIdentity(
            device=device,
            certificate=certificate,
            authority=self._parts.authority.pem,
            address=self._parts.devices_at(),
            server_name=DEVICES_NAME,
        )
        set_time(reply.time, self._parts.clock())
        return reply


def _elsewhere(former: Device, transport: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"device {former.name!r} is reached by {former.transport}, and the token is for devices by "
        f"{transport}; `hatoba devices decommission {former.name}` first, or take a token for "
        f"{former.transport}"
    )


def _check_token(request: device_pb2.CreateDeviceTokenRequest) -> None:
    _refuse_reserved(request.labels)
    if request.device and request.uses > 1:
        raise InvalidArgument.field(
            "uses",
            "must be 1 for a token that names its device",
            value=request.uses,
            remedy="leave the name out, or make a token for each device",
        )


def _refuse_reserved(labels: Iterable[str]) -> None:
    if found := reserved_labels(labels, "labels"):
        raise InvalidArgument.of(found)


def _not_enrolled(why: NotEnrolled, enrolment: _Asked) -> HatobaError:
    name = enrolment.name
    if why is NotEnrolled.USED_UP:
        return Unauthenticated(
            "the device token has made as many devices as it may, or its device is gone; make "
            "another: `hatoba devices add`",
            reason=Reason.TOKEN_USED,
        )
    if enrolment.terms.device:
        return Aborted(f"device {name!r} was changed at this moment; enroll again")
    return AlreadyExists(
        f"there is a device {name!r}; choose another name, or have this machine take its place "
        f"with a token from `hatoba devices add --name {name}`",
        resource=Resource("device", f"devices/{name}"),
    )


def _end_of(certificate: str) -> Micros:
    ends = x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc
    return round(ends.timestamp() * 1e6)
