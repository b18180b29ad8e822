"""The text of a token: `hb_ID_RANDOM`. Only its SHA-256 is ever stored."""

from __future__ import annotations

import hashlib
import re
import secrets

_ID_BYTES = 6
_SECRET_BYTES = 24
_TEXT = re.compile(r"hb_([0-9a-f]{12})_([A-Za-z0-9_-]{32})")


def mint() -> tuple[str, str]:
    """A new token: (id, text). The text has 192 random bits and is for its bearer alone."""
    identity = secrets.token_hex(_ID_BYTES)
    return identity, f"hb_{identity}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def token_id(text: str) -> str | None:
    """The id inside a token's text; None when it is not shaped like one of ours."""
    match = _TEXT.fullmatch(text)
    return match[1] if match else None


def id_part(text: str) -> str:
    """Where the id stands in a token's text, whatever the text is; for a fast look-up."""
    return text[3:15]


def digest(text: str) -> str:
    """SHA-256 of a token's text in hex, as stored."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
