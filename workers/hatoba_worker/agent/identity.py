"""Who a device is: a key made here and its certificate, in two slots.

A new pair is used before the old one is given up: it lies in the other slot until the server has
welcomed it. Whatever a power cut takes, one of the two is whole, and the one in use is known.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

from hatoba_worker import key_files
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.disk import sync_directory
from hatoba_worker.validity import Validity

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

log = structlog.get_logger(__name__)

SLOTS = ("a", "b")
AUTHORITY = "authority.pem"
_CURRENT, _PENDING = "current", "pending.pem"


class NotEnrolled(ValueError):
    """The device has no identity here; says what makes one."""


class Credential(NamedTuple):
    """A slot with a key and its certificate."""

    slot: str
    path: Path
    validity: Validity


@dataclass(frozen=True, slots=True)
class Identity:
    """The directory of a device's keys. Calls block."""

    root: Path

    @property
    def authority(self) -> Path:
        """Whom the device believes."""
        return self.root / AUTHORITY

    def pending_key(self) -> ec.EllipticCurvePrivateKey:
        """The key for the certificate that is asked for next: the same after a reply that was
        lost, so that nobody becomes two.
        """
        from hatoba_worker import keys  # `cryptography`, which is 9 MB and seldom needed

        path = self.root / _PENDING
        with contextlib.suppress(FileNotFoundError, ValueError):
            (key,) = keys.read_keys(path.read_text(encoding="ascii"))
            return key
        key = keys.new_key()
        key_files.write_secret(path, keys.key_text(key))
        return key

    def enrolled(self, certificate: str, authority: str) -> Credential:
        """The first certificate came. It is in use from now on. Without an authority (PEM) those
        are believed whom the machine believes.
        """
        if authority:
            key_files.write_secret(self.authority, authority)
        else:
            self.authority.unlink(missing_ok=True)
        slot = self._keep(SLOTS[0], certificate)
        self._use(slot)
        # Of another enrolment: it must not be taken for a newer one.
        self._path(SLOTS[1]).unlink(missing_ok=True)
        return self.current()

    def renewed(self, certificate: str) -> Credential:
        """Another certificate came: to be shown, and used once it was welcomed."""
        other = SLOTS[1 - SLOTS.index(self._slot())]
        self._keep(other, certificate)
        found = self._read(other)
        assert found is not None
        return found

    def _keep(self, slot: str, certificate: str) -> str:
        from cryptography import x509  # as above

        from hatoba_worker import keys

        validity = keys.validity(x509.load_pem_x509_certificate(certificate.encode()))
        text = validity.note + keys.key_text(self.pending_key()) + certificate
        key_files.write_secret(self._path(slot), text)
        (self.root / _PENDING).unlink(missing_ok=True)
        return slot

    def current(self) -> Credential:
        """What is in use. Raises NotEnrolled."""
        found = self._read(self._slot())
        if found is None:
            # The pointer was written last: the other slot is the older one, and whole.
            found = self._read(SLOTS[1 - SLOTS.index(self._slot())])
        if found is None:
            raise NotEnrolled(
                "this device is not enrolled; `hatoba devices add` on the server prints the line"
                " that does it"
            )
        return found

    def candidate(self) -> Credential | None:
        """A pair that came and was not welcomed yet; None: there is none."""
        current = self.current()
        found = self._read(SLOTS[1 - SLOTS.index(current.slot)])
        if found is None:
            return None
        return found if found.validity.ends > current.validity.ends else None

    def proven(self, credential: Credential) -> None:
        """The server has welcomed it: it is what is used from now on, and the other one is gone."""
        self._use(credential.slot)
        other = SLOTS[1 - SLOTS.index(credential.slot)]
        self._path(other).unlink(missing_ok=True)

    def refused(self, credential: Credential) -> None:
        """The server does not know it, and knows the one in use: it is thrown away."""
        if credential.slot != self._slot():
            self._path(credential.slot).unlink(missing_ok=True)

    def is_due(self, clock: FloorClock) -> bool:
        """Whether two thirds of the life of what is in use are over, or nobody can tell."""
        return self.current().validity.is_due(clock.now())

    # -- files ----------------------------------------------------------------------------------

    def _path(self, slot: str) -> Path:
        return self.root / f"device-{slot}.pem"

    def _slot(self) -> str:
        try:
            slot = (self.root / _CURRENT).read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return SLOTS[0]
        return slot if slot in SLOTS else SLOTS[0]

    def _use(self, slot: str) -> None:
        key_files.write_secret(self.root / _CURRENT, slot)
        sync_directory(self.root)

    def _read(self, slot: str) -> Credential | None:
        path = self._path(slot)
        try:
            validity = _validity(path)
        except (ValueError, ssl.SSLError) as error:
            log.error("identity.damaged", path=str(path), error=str(error))
            return None
        return Credential(slot, path, validity) if validity is not None else None


def _validity(path: Path) -> Validity | None:
    """Of a key and its certificate, None when there is no such file. Raises ValueError or SSLError
    for one that is not whole, OSError.
    """
    try:
        noted = Validity.noted(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    if noted is None:
        from hatoba_worker import keys  # a file of before this was noted

        own = keys.read_own(path)
        return keys.validity(own.certificate) if own is not None else None
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path)
    return noted
