"""Specifications of live jobs: the newest in memory, the others read from the store when needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.store.base import Store

LIMIT_BYTES = 32 * 1024 * 1024
MOST = 20_000
"""Equal specs share their bytes, and each job its place here."""


class SpecCache:
    """Serialised specs by job uid, bounded in bytes and number; what falls out is read again."""

    def __init__(self, store: Store, limit: int = LIMIT_BYTES) -> None:
        self._store = store
        self._limit = limit
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def put(self, uid: str, spec: bytes) -> None:
        """Keep the spec of a job that was just stored."""
        if uid in self._kept:
            return
        self._kept[uid] = spec
        self._size += len(spec)
        if len(self._kept) > MOST or self._size > self._limit:
            self._shrink()

    def _shrink(self) -> None:
        while len(self._kept) > MOST or (self._size > self._limit and len(self._kept) > 1):
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)

    def drop(self, uid: str) -> None:
        """Forget a job that is over."""
        spec = self._kept.pop(uid, None)
        if spec is not None:
            self._size -= len(spec)

    async def get(self, uids: Sequence[str]) -> dict[str, job_pb2.JobSpec]:
        """The specs of these jobs, parsed."""
        found = {uid: self._kept[uid] for uid in uids if uid in self._kept}
        missing = [uid for uid in uids if uid not in found]
        if missing:
            read = await self._store.specs(missing)
            for uid, spec in read.items():
                self.put(uid, spec)
            found |= read
        return {uid: job_pb2.JobSpec.FromString(spec) for uid, spec in found.items()}
