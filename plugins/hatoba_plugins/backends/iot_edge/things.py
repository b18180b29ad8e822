"""Devices as things of AWS IoT: who is ours, how one becomes so, and how nothing is left of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from cryptography import x509

from hatoba.shadows import MOST_PARTS, part_names, said_of
from hatoba.v1 import device_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.backend import Clock
from hatoba_plugins.backends.iot_edge.calls import (
    CLUSTER,
    Certificate,
    IotCalls,
    Thing,
    code_of,
)
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.errors import Conflict, Invalid, Retry, Throttled
from hatoba_plugins.values import NotYet, Released, ReleaseOutcome

STRANGE_FOR = 30.0
"""Seconds for which a name that no thing has is not looked up again, to wish it something."""
MOST_STRANGERS = 10_000
AGAIN = 3.0
PORT = 8883


@dataclass(frozen=True, slots=True)
class ThingIdentity:
    """What a device is known by at AWS IoT: it connects with its thing's name as client id."""

    device: str
    thing: str
    certificate: str
    """PEM, for the key of the signing request."""
    certificate_arn: str


class Things:
    """The things of one installation. Those that are known to be there need no call."""

    def __init__(
        self, calls: IotCalls, options: EdgeOptions, cluster_id: str, clock: Clock
    ) -> None:
        self._calls = calls
        self._options = options
        self._cluster_id = cluster_id
        self._clock = clock
        self._arns: dict[str, str] = {}
        self._strange: dict[str, float] = {}
        """Names that no thing of ours has, and until when that is believed."""
        self._ending: dict[str, dict[str, None]] = {}
        """Certificates of devices that are being forgotten: once detached, no listing has them."""
        self.leaving: set[str] = set()
        """Devices that are being forgotten: nothing is heard of them any more."""

    def thing_of(self, device: str) -> str:
        """The name of a device's thing."""
        return self._options.thing_prefix + device

    def device_of(self, thing: str) -> str:
        """The device of a thing; empty: it is named otherwise than ours."""
        prefix = self._options.thing_prefix
        return thing.removeprefix(prefix) if thing.startswith(prefix) else ""

    def arn(self, device: str) -> str:
        """That of the thing of a device that `has` said is there."""
        return self._arns.get(device, "")

    # -- who is ours ----------------------------------------------------------------------------

    async def listed(self) -> AsyncIterator[str]:
        """All devices there are. Raises a BackendError."""
        async for thing in self._calls.things(self._cluster_id):
            device = self.device_of(thing.name)
            if device and device not in self.leaving:
                self._took(device, thing)
                yield device

    async def has(self, device: str) -> bool:
        """Whether it is a device of ours, now. Raises a BackendError, Conflict among them for a
        thing of somebody else."""
        if device in self.leaving:
            return False
        if device in self._arns:
            return True
        thing = await self._calls.thing(self.thing_of(device))
        if thing is None or device in self.leaving:
            return False
        self._check(thing)
        self._took(device, thing)
        return True

    async def expects(self, device: str) -> bool:
        """The same for who is only wished something: that a name is strange is believed for a
        while."""
        now = self._clock.monotonic()
        if self._strange.get(device, now) > now:
            return False
        if await self.has(device):
            return True
        if len(self._strange) >= MOST_STRANGERS:
            self._strange.clear()
        self._strange[device] = now + STRANGE_FOR
        return False

    def drop(self, device: str) -> None:
        """It is not there any more, as far as is known."""
        self._arns.pop(device, None)

    def _took(self, device: str, thing: Thing) -> None:
        self._arns[device] = thing.arn
        self._strange.pop(device, None)

    def _check(self, thing: Thing) -> None:
        """Raises Conflict."""
        if thing.attributes.get(CLUSTER) != self._cluster_id:
            raise Conflict(
                f"the thing {thing.name!r} is not ours: its attribute {CLUSTER!r} is not "
                f"{self._cluster_id!r}",
                evidence=thing.arn,
            )

    # -- becoming ours --------------------------------------------------------------------------

    async def check_free(self, device: str) -> None:
        """Raises Conflict where there is a thing of this name, and another BackendError."""
        thing = self.thing_of(device)
        known = await self._calls.thing(thing)
        if known is not None and device in self.leaving:
            raise Retry(f"device {device!r} is being forgotten at AWS IoT", after=AGAIN)
        if known is not None:
            raise Conflict(f"there is a thing {thing!r} at AWS IoT already", evidence=known.arn)

    async def certified(self, device: str, csr: str) -> ThingIdentity | None:
        """What a device was given for the key of this request before, made good again if that was
        not all done. None: nothing. Raises a BackendError and Unanswered.
        """
        thing, key = self.thing_of(device), x509.load_pem_x509_csr(csr.encode()).public_key()
        for arn in await self._calls.principals(thing) or ():
            certificate = await self._calls.certificate(arn)
            if certificate is None or _key_of(certificate) != key:
                continue
            await self._calls.attach(thing, certificate, self._options.policy)
            identity = ThingIdentity(device, thing, certificate.pem, arn)
            await self.keep_only(identity)
            return identity
        return None

    async def enroll(self, device: str, csr: str) -> ThingIdentity:
        """Make a device's thing and a certificate for its request, the only one from now on. It is
        another machine than the one of before: nothing that this one left is for it.

        Again is the same with another certificate. Raises a BackendError; Conflict for a thing of
        somebody else; Unanswered where it is to be asked for again.
        """
        thing = self.thing_of(device)
        await self._make(device)
        await self.revoke(device)
        await self._clear(thing, MOST_PARTS)
        await self._calls.place(thing, self._options.shadow)
        return await self.renew(device, csr)

    async def told(self, identity: ThingIdentity) -> device_pb2.DeviceIdentity:
        """What a device is told that it is. Raises a BackendError."""
        options = self._options
        endpoint = options.device_endpoint or await self._calls.endpoint()
        return device_pb2.DeviceIdentity(
            device=identity.device,
            certificate=identity.certificate,
            aws_iot=device_pb2.AwsIotIdentity(
                endpoint=endpoint if ":" in endpoint else f"{endpoint}:{PORT}",
                thing=identity.thing,
                shadow=options.shadow,
                content=options.content,
            ),
        )

    async def _make(self, device: str) -> None:
        thing = self.thing_of(device)
        known = await self._calls.thing(thing)
        if known is None:
            # Shadows outlive things, and it may be heard from now on.
            await self._clear(thing, MOST_PARTS)
            await self._calls.make_thing(thing, self._cluster_id)
            known = await self._calls.thing(thing)
        if known is None:
            raise Retry(f"the thing {thing!r} was made and cannot be seen yet", after=AGAIN)
        self._check(known)
        self.leaving.discard(device)
        self._took(device, known)

    async def renew(self, device: str, csr: str) -> ThingIdentity:
        """A further certificate for a device that has a thing; those of before stay good."""
        thing = self.thing_of(device)
        certificate = await self._calls.sign(csr)
        await self._calls.attach(thing, certificate, self._options.policy)
        return ThingIdentity(device, thing, certificate.pem, certificate.arn)

    async def keep_only(self, identity: ThingIdentity) -> None:
        """Refuse a device's other certificates: it has shown this one, or has no other."""
        for arn in await self._calls.principals(identity.thing) or ():
            if arn != identity.certificate_arn:
                await self._calls.end_certificate(identity.thing, arn, self._options.policy)

    async def revoke(self, device: str) -> None:
        """Refuse all its certificates. Idempotent. Raises a BackendError and Unanswered."""
        thing = self.thing_of(device)
        known = await self._calls.thing(thing)
        if known is None:
            return
        self._check(known)
        for arn in await self._calls.principals(thing) or ():
            await self._calls.end_certificate(thing, arn, self._options.policy)

    # -- being nobody's -------------------------------------------------------------------------

    async def forget(self, device: str) -> ReleaseOutcome:
        """Let nothing be left: certificates first, so that it writes no more, its thing last."""
        self.leaving.add(device)
        self.drop(device)
        try:
            await self._forget(device, self.thing_of(device))
        except (Throttled, Retry) as error:
            return NotYet(device, error.after or AGAIN)
        except Unanswered:
            return NotYet(device, AGAIN)
        except Invalid as error:
            if not _in_use(error):
                raise
            return NotYet(device, AGAIN)
        self.leaving.discard(device)
        self._ending.pop(device, None)
        return Released(device)

    async def _forget(self, device: str, thing: str) -> None:
        known = await self._calls.thing(thing)
        if known is None or known.attributes.get(CLUSTER) != self._cluster_id:
            return
        ending = self._ending.setdefault(device, {})
        ending.update(dict.fromkeys(await self._calls.principals(thing) or ()))
        for arn in list(ending):
            await self._calls.end_certificate(thing, arn, self._options.policy)
            del ending[arn]
        await self._clear(thing, await self._parts(thing))
        await self._calls.delete_thing(thing)

    async def _parts(self, thing: str) -> int:
        """Of how many shadows its report is."""
        try:
            return said_of(await self._calls.shadow(thing, self._options.said)).parts
        except ValueError:
            return MOST_PARTS

    async def _clear(self, thing: str, parts: int) -> None:
        for name in (self._options.shadow, *part_names(self._options.said, parts)):
            await self._calls.delete_shadow(thing, name)


def _key_of(certificate: Certificate) -> object:
    return x509.load_pem_x509_certificate(certificate.pem.encode()).public_key()


def _in_use(error: Invalid) -> bool:
    """Whether something still holds it: AWS takes some seconds for a detachment."""
    code = code_of(error)
    if code == "InvalidRequestException":
        return "attached" in error.message
    return code in ("CertificateStateException", "DeleteConflictException")
