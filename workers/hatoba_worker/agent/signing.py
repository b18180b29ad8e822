"""What a device does with its keys when it renews its certificate, in a process of its own.

It takes `cryptography`, 10 MB, a moment every few weeks: the agent need not have it for ever.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from cryptography import x509

from hatoba_worker import keys
from hatoba_worker.agent.identity import Identity

PROOF, MEANING = "dr_", b"hatoba device renewal\0"


def request(root: Path, _: str) -> str:
    """A signing request (PEM) for an identity. Raises OSError."""
    return keys.request_for(Identity(root).pending_key())


def proof(pair: Path, csr: str) -> str:
    """What shows at the ordinary port whose request this is, signed by the certificate's key. It
    tells no date. Raises ValueError, OSError.
    """
    own = keys.read_own(pair)
    if own is None:
        raise FileNotFoundError(f"{pair} is gone")
    return keys.signed(own, PROOF, MEANING, hashlib.sha256(csr.encode()).hexdigest())


def keep(root: Path, certificate: str) -> str:
    """Keep the certificate (PEM) that came for a request; nothing is said. Raises ValueError,
    OSError.
    """
    identity = Identity(root)
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise ValueError(f"what comes is no certificate: {error}") from error
    if found.public_key() != identity.pending_key().public_key():
        raise ValueError("the certificate that comes is for another key")
    identity.renewed(certificate)
    return ""


WORKS: Mapping[str, Callable[[Path, str], str]] = MappingProxyType(
    {"request": request, "proof": proof, "keep": keep}
)


def main(work: str, path: str) -> None:
    """Do one, with what is read, and write what it gives; or say why not, and end with 1."""
    try:
        sys.stdout.write(WORKS[work](Path(path), sys.stdin.read()))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
