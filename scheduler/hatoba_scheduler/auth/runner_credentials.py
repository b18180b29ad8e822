"""Credentials of runners in pods and images, and of replicas: made from keys, stored nowhere.

`hr_KIND_KEY_NAME_NUMBER_EXPIRES_MAC`: what it is for stands in it, and an HMAC-SHA256 vouches for
it. `l`aunch: of an attempt, opens its claim; `s`ession: of a granted claim, opens everything that a
runner does; `r`eplica: of a revision, reads files.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from hatoba_scheduler.auth.runner_keys import Key, RunnerKeys
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.errors import Reason, Unauthenticated

PREFIX = "hr_"
SESSION_SECONDS = 24 * 3_600
_TEXT = re.compile(
    r"hr_([lsr])_([0-9a-f]{8})_([a-z0-9-]{1,128})_(\d{1,19})_(\d{1,12})_([0-9a-f]{64})"
)


class Kind(Enum):
    """What a credential is for."""

    LAUNCH = "l"
    SESSION = "s"
    REPLICA = "r"


class Bearer(NamedTuple):
    """Whom a credential speaks for: the attempt `name` with its fence, or the revision `number` of
    the deployment with the uid `name`. `expires`: seconds since 1970; 0: never."""

    kind: Kind
    name: str
    number: int
    expires: int = 0


class RunnerCredentials:
    """Makes and reads them; `clock` gives microseconds since 1970."""

    def __init__(self, keys: RunnerKeys, clock: Callable[[], Micros]) -> None:
        self._keys = keys
        self._clock = clock

    def launch(self, attempt: str, fence: int, began: Micros) -> str:
        """What opens the claim of an attempt that was decided on at `began`; always the same."""
        return _text(Bearer(Kind.LAUNCH, attempt, fence), self._keys.of(began))

    def replica(self, uid: str, revision: int, began: Micros) -> str:
        """What reads the files of a revision made at `began`; always the same."""
        return _text(Bearer(Kind.REPLICA, uid, revision), self._keys.of(began))

    def session(self, attempt: str, fence: int) -> tuple[str, Micros]:
        """What a granted claim is answered, and until when it is good."""
        expires = self._clock() // 1_000_000 + SESSION_SECONDS
        bearer = Bearer(Kind.SESSION, attempt, fence, expires)
        return _text(bearer, self._keys.newest), expires * 1_000_000

    def ages(self, bearer: Bearer) -> bool:
        """Whether half of a session's life is over."""
        left = bearer.expires - self._clock() / 1e6
        return bearer.kind is Kind.SESSION and left < SESSION_SECONDS / 2

    def open(self, text: str) -> Bearer:
        """Whom a credential speaks for. Raises Unauthenticated, with why."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise _refused(Reason.TOKEN_MALFORMED, "this is no runner's credential")
        kind, key_id, name, number, expires, mac = found.groups()
        bearer = Bearer(Kind(kind), name, int(number), int(expires))
        key = self._keys.get(key_id)
        if key is None or not hmac.compare_digest(mac, _mac(bearer, key)):
            raise _refused(Reason.TOKEN_UNKNOWN, "this server did not make the credential")
        if bearer.expires and bearer.expires * 1_000_000 <= self._clock():
            raise _refused(
                Reason.TOKEN_EXPIRED, "the credential has expired; claim again with the same nonce"
            )
        return bearer


def _text(bearer: Bearer, key: Key) -> str:
    kind, name, number, expires = bearer
    return f"{PREFIX}{kind.value}_{key.id}_{name}_{number}_{expires}_{_mac(bearer, key)}"


def _mac(bearer: Bearer, key: Key) -> str:
    kind, name, number, expires = bearer
    told = f"hatoba runner {kind.value} {name} {number} {expires}"
    return hmac.new(key.secret, told.encode(), hashlib.sha256).hexdigest()


def _refused(reason: Reason, what: str) -> Unauthenticated:
    return Unauthenticated(what, reason=reason)
