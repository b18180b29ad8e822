"""Specs stored lately, so that equal ones that come together are stored once."""

from __future__ import annotations

MOST = 4_096
LARGEST = 4_096
"""Bytes; larger specs are rarely equal and would only hold memory."""


class RecentSpecs:
    """Where recent specs are kept. Used by the writer's thread alone.

    Must be cleared when a transaction is rolled back: what it placed is not there then.
    """

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}

    def known(self, spec: bytes, own: int) -> int:
        """The id under which the spec is stored already; 0: store it under `own`."""
        found = self._ids.get(spec)
        if found is not None:
            return found
        if len(spec) <= LARGEST:
            if len(self._ids) >= MOST:
                self._ids.clear()
            self._ids[spec] = own
        return 0

    def clear(self) -> None:
        """Forget all."""
        self._ids.clear()
