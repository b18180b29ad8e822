"""TLS of a model server that other machines can reach: who may ask, and fresh certificates.

Standard library only: it runs in the model's own environment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable

from hatoba_worker.serving.config import Tls

LOOK_EVERY = 30.0
"""Seconds between two looks at whether the certificate was renewed."""


class Gate:
    """The server's side of TLS; lets in whom `Tls` names. Raises OSError, ssl.SSLError."""

    def __init__(self, settings: Tls) -> None:
        self._settings = settings
        self._stamp = self._now()
        self._looked = 0.0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_verify_locations(settings.authority)
        self.context.load_cert_chain(settings.certificate)

    def admits(self, transport: asyncio.BaseTransport) -> bool:
        """Whether who is at the other end may ask here."""
        shown = transport.get_extra_info("peercert") or {}
        return _named(shown.get("subjectAltName", ()), self._settings.peers)

    def refresh(self, now: float) -> None:
        """Show a renewed certificate to those who come from now on."""
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        try:
            stamp = self._now()
            if stamp != self._stamp:
                self.context.load_cert_chain(self._settings.certificate)
                self._stamp = stamp
        except OSError:
            # Being exchanged: it is looked at again.
            return

    def _now(self) -> int:
        return self._settings.certificate.stat().st_mtime_ns


def _named(names: Iterable[tuple[str, str]], peers: tuple[str, ...]) -> bool:
    return any(kind == "URI" and name.startswith(peers) for kind, name in names)
