"""What makes a machine a host or a device: a token, and whom it is to believe."""

from __future__ import annotations

import base64

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

_ID = 12


def parsed(text: str, kind: str, command: str) -> tuple[str, str, str]:
    """A token, its id, and the server's own authority (PEM), empty if it has none. `command` prints
    tokens of this kind. Raises ValueError, which says so.
    """
    token, _, pinned = text.strip().partition(".")
    parts = token.split("_")
    if len(parts) < 3 or parts[0] != "hb" or len(parts[1]) != _ID:
        raise ValueError(f"this is no {kind} token; `{command}` prints the whole line")
    try:
        return token, parts[1], _authority(pinned) if pinned else ""
    except ValueError:
        raise ValueError(
            f"the {kind} token is not whole: after its point the server's authority follows; paste "
            f"the line that `{command}` printed"
        ) from None


def _authority(text: str) -> str:
    der = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
