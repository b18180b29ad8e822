"""What a session is attached to, whatever stands behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from hatoba.v1 import job_pb2

CHUNK = 65_536
"""Bytes of one piece at most."""


class AttachFailed(Exception):
    """Nothing was begun; the text says why, to whoever asked."""


class Door(Protocol):
    """An open one. `give` and `tell` go on at the same time; `close` ends both, also twice."""

    async def give(self, said: job_pb2.AttachInput) -> None:
        """Take what was said, as fast as the other side takes it."""

    def tell(self) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """What comes, to its end."""
        ...

    async def close(self) -> None:
        """Hang up."""
