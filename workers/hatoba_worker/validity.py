"""From when to when a certificate is good, as it is known without `cryptography`."""

from __future__ import annotations

import datetime as dt
import re
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

_NOTED = re.compile(r"^Good from (\S+) until (\S+)$", re.M)


class Validity(NamedTuple):
    """Both Unix seconds."""

    begins: float
    ends: float

    @classmethod
    def told(cls, certificate: Mapping[str, Any]) -> Validity:
        """Of what `getpeercert` says of a certificate that was verified. Raises ValueError."""
        begins, ends = (certificate[name] for name in ("notBefore", "notAfter"))
        return cls(ssl.cert_time_to_seconds(begins), ssl.cert_time_to_seconds(ends))

    @classmethod
    def noted(cls, text: str) -> Validity | None:
        """What a file says with `note`; None: nothing. Raises ValueError."""
        found = _NOTED.search(text)
        if found is None:
            return None
        return cls(*(dt.datetime.fromisoformat(one).timestamp() for one in found.groups()))

    @property
    def note(self) -> str:
        """A line for a file beside the certificate; who reads PEM passes over it."""
        return f"Good from {date(self.begins)} until {date(self.ends)}\n"

    def is_due(self, now: float) -> bool:
        """Whether two thirds of it are over; `now` is Unix seconds."""
        return now >= self.begins + (self.ends - self.begins) * 2 / 3


def date(seconds: float) -> str:
    """ISO 8601 in UTC of Unix seconds."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
