"""What a host that joined shows with each call: its certificate, the time, its signature over both.

The key never leaves the host. Whoever reads such a text could show it again for an hour, so it
travels where tokens do: over TLS, or on one machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cryptography import x509

from hatoba_scheduler.auth import proofs
from hatoba_scheduler.auth.authority import Authority, HostIdentity
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.domain.records import Micros, TokenRecord
from hatoba_scheduler.errors import Reason, Unauthenticated

PREFIX = "hc_"
SKEW = 3600
"""Seconds by which the signer's clock may differ from ours, its text's age included."""
MEANING = b"hatoba host credential\0"
_KNOWN = 10_000


class _Shown(NamedTuple):
    """A text that was found good: whose it is, when it was signed (Unix seconds)."""

    who: HostIdentity
    signed: int
    record: TokenRecord


class HostCredentials:
    """Tells which host calls. `identity_of` gives a host's identity, empty for one without."""

    def __init__(
        self,
        authority: Authority,
        identity_of: Callable[[str], str],
        clock: Callable[[], Micros],
    ) -> None:
        self._authority = authority
        self._identity_of = identity_of
        self._clock = clock
        self._known: OrderedDict[str, _Shown] = OrderedDict()

    def authenticate(self, text: str) -> TokenRecord:
        """Who shows this; raises Unauthenticated."""
        shown = self._known.get(text) or self._checked(text)
        now = self._clock()
        if abs(ahead := shown.signed - now / 1e6) > SKEW:
            raise _refused(f"it was signed {ahead:+.0f} s from now; set this host's clock")
        if shown.record.expire_time <= now:
            raise _over()
        if self._identity_of(shown.who.host) != shown.who.identity:
            raise _refused(
                f"host {shown.who.host!r} was removed, or another machine took its place; "
                "`hatoba hosts add` makes a machine a host"
            )
        return shown.record

    def _checked(self, text: str) -> _Shown:
        try:
            certificate, told = proofs.read(text.removeprefix(PREFIX), MEANING)
            signed = int(told)
        except ValueError as error:
            raise _refused("it is damaged, or not signed by its host") from error
        who = self._authority.host_of(certificate)
        if who is None:
            raise _over()
        shown = self._known[text] = _Shown(who, signed, _record(who, certificate))
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return shown


def _record(who: HostIdentity, certificate: x509.Certificate) -> TokenRecord:
    """As if it were a token that ends with the certificate."""
    return TokenRecord(
        id=who.identity,
        sha256="",
        principal=f"hosts/{who.host}",
        role=Role.WORKER,
        create_time=round(certificate.not_valid_before_utc.timestamp() * 1e6),
        expire_time=round(certificate.not_valid_after_utc.timestamp() * 1e6),
        host=who.host,
    )


def _over() -> Unauthenticated:
    return _refused(
        "its certificate is not of this server, or its time is over; "
        "`hatoba hosts add NAME` makes the machine a host again"
    )


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"this host's credential is not good: {why}", reason=Reason.HOST_UNKNOWN)
