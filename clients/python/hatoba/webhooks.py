"""For receivers of webhooks: whether a body is the server's. The standard library is enough."""

from __future__ import annotations

import hashlib
import hmac
import time

SIGNATURE_HEADER = "hatoba-signature"
DELIVERY_HEADER = "hatoba-delivery"
TOLERANCE = 300.0


class BadSignature(ValueError):
    """What came was not signed with this key, was changed, or is a message of long ago."""


def verify(
    body: bytes,
    header: str,
    signing_key: str,
    *,
    tolerance: float = TOLERANCE,
    now: float | None = None,
) -> None:
    """Raise BadSignature unless `header` signs `body`, not longer than `tolerance` seconds ago.

    `header` is the value of `hatoba-signature`, `signing_key` what `hatoba webhooks create`
    printed. The same event may come more than once: its `hatoba-delivery` is the same then.
    """
    stamp, given = _parts(header)
    expected = hmac.new(signing_key.encode(), b"%d.%s" % (stamp, body), hashlib.sha256).hexdigest()
    if not any(hmac.compare_digest(expected, one) for one in given):
        raise BadSignature("the signature is not that of this body and key")
    age = (time.time() if now is None else now) - stamp
    if abs(age) > tolerance:
        raise BadSignature(f"it was signed {age:.0f} s ago, over {tolerance:.0f} s")


def _parts(header: str) -> tuple[int, list[str]]:
    pairs = [part.partition("=")[::2] for part in header.split(",")]
    stamps = [value for name, value in pairs if name.strip() == "t"]
    given = [value.strip() for name, value in pairs if name.strip() == "v1"]
    if len(stamps) != 1 or not stamps[0].isascii() or not stamps[0].isdigit() or not given:
        raise BadSignature(f"{header[:80]!r} is no signature: `t=SECONDS,v1=HEX`")
    return int(stamps[0]), given
