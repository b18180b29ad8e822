"""Page tokens: where the next page begins, bound to the query that it belongs to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets

from hatoba_scheduler.errors import InvalidArgument, Reason

DEFAULT_SIZE = 100


class Pager:
    """Makes and reads page tokens; those of another query, or made elsewhere, are refused."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(16)

    def token(self, query: str, position: str) -> str:
        """A token for what follows `position` in the answer to `query`."""
        body = json.dumps([_digest(query), position]).encode()
        return base64.urlsafe_b64encode(self._mac(body) + body).decode()

    def position(self, query: str, token: str) -> str:
        """Where the page of a token begins; empty for no token. Raises InvalidArgument."""
        if not token:
            return ""
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
            mac, body = raw[:16], raw[16:]
            if not hmac.compare_digest(mac, self._mac(body)):
                raise ValueError
            digest, position = json.loads(body)
        except (ValueError, binascii.Error):
            raise _refused("is damaged or from another server") from None
        if digest != _digest(query):
            raise _refused("belongs to another query")
        return str(position)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:16]


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument(
        f"page_token {what}; send the one of the last reply with the same filter, or none",
        reason=Reason.INVALID_PAGE_TOKEN,
    )


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:16]


def page_size(asked: int) -> int:
    """How many to send when so many were asked for."""
    return asked or DEFAULT_SIZE
