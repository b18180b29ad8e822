"""Webhooks: what is posted where, how it is signed, and when it is tried again."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from hatoba_scheduler.domain.records import Micros

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 900.0
KEPT: Micros = 7 * 24 * 3600 * 1_000_000
"""An event that could not be delivered for so long is given up."""
ANY_HOST = ("*",)


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook's row."""

    uid: str
    project: str
    name: str
    url: str
    filter: str
    jobs_only: bool
    reasons: tuple[str, ...]
    paused: bool
    signing_key: str
    created_by: str
    create_time: Micros
    cursor: int
    """The newest event of which nothing has to be posted any more."""
    failures: int = 0
    """Deliveries that failed in a row."""
    last_error: str = ""
    next_try: Micros = 0
    given_up: int = 0


def signature(key: str, second: int, body: bytes) -> str:
    """The header `hatoba-signature` of a body that is posted in this second since 1970."""
    signed = hmac.new(key.encode(), b"%d.%s" % (second, body), hashlib.sha256)
    return f"t={second},v1={signed.hexdigest()}"


def delivery_id(uid: str, epoch: int, seq: int) -> str:
    """The same each time an event is posted, and no other event's, also after a restore."""
    return f"{uid}-{epoch}.{seq}"


def pause(failures: int, chance: float) -> float:
    """Seconds until the next try after so many failures in a row; `chance` is from 0 to 1."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 30))
    return longest * (0.5 + 0.5 * chance)


def too_old(event_time: Micros, now: Micros) -> bool:
    """Whether an event is given up when it cannot be delivered."""
    return now - event_time > KEPT


def url_problem(url: str, allowed: Sequence[str] = ANY_HOST) -> str:
    """Why nothing may be posted there, in words; empty when it may.

    `allowed` are patterns of host names (`*.example.org`). Addresses that only this machine's own
    network segment routes, where clouds keep credentials, must be named without a star.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"it is no address: {error}"
    if parts.scheme not in ("http", "https"):
        return f"it must begin with http:// or https://, not {parts.scheme or 'nothing'}"
    if not parts.hostname or port == 0:
        return "it names no host, or no port that can be reached"
    if parts.username is not None or parts.password is not None:
        return "it must not hold a user or password; receivers check the signature"
    host = parts.hostname.lower()
    if not any(fnmatchcase(host, pattern.lower()) for pattern in allowed):
        return f"host {host} is not among those that `[webhooks] allow` names"
    if _link_local(host) and host not in allowed:
        return f"{host} is a link-local address; `[webhooks] allow` must name it as it is"
    return ""


def _link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False
