"""Job definitions by their content: registered once, found again after a restart."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from hatoba_plugins.backends.batch_spot.calls import BatchCalls
from hatoba_plugins.backends.batch_spot.manifest import Manifest


class Definitions:
    """What is registered, as far as this process has seen."""

    def __init__(self, calls: BatchCalls) -> None:
        self._calls = calls
        self._known: dict[str, str] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ensure(self, wanted: Manifest) -> str:
        """Its ARN, registered when there is none. Raises a BackendError."""
        name = wanted.definition_name
        async with self._locks[name]:
            if name not in self._known:
                found = await self._calls.definition(name)
                self._known[name] = found or await self._calls.register(name, wanted.definition)
            return self._known[name]

    def forget(self, wanted: Manifest) -> None:
        """Batch says that it is not there any more."""
        self._known.pop(wanted.definition_name, None)
