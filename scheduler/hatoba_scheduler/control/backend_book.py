"""What operators say of backends: kept in the store, in force at once and after each start."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.backend_loop import BackendLoop
from hatoba_scheduler.control.ledger import Decide, Ledger
from hatoba_scheduler.domain.preempting import drained, give_way
from hatoba_scheduler.domain.records import BackendNote
from hatoba_scheduler.domain.transitions import Now
from hatoba_scheduler.errors import NotFound
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)


class BackendBook:
    """Cordons of backends."""

    def __init__(
        self, store: Store, ledger: Ledger, clock: Clock, loops: Mapping[str, BackendLoop]
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._loops = loops

    async def recover(self) -> None:
        """Take up what was said before this start; of backends that are not open it is kept."""
        for note in await self._store.backends():
            loop = self._loops.get(note.name)
            if loop is not None:
                loop.supply.cordon(note.cordoned, note.cordon_reason)

    async def cordon(self, note: BackendNote, *, drain: bool, actor: str) -> None:
        """Keep work away from a backend, or let it come. Raises NotFound."""
        loop = self._loops.get(note.name)
        if loop is None:
            raise NotFound(
                f"no backend {note.name!r}; `hatoba backends list` names those there are"
            )
        hit("backend.cordon.before")
        await self._store.put_backend(note)
        hit("backend.cordon.after")
        loop.supply.cordon(note.cordoned, note.cordon_reason)
        log.info("backend.cordoned", backend=note.name, cordoned=note.cordoned, actor=actor)
        if note.cordoned and drain:
            await self._drain(note, actor)

    async def _drain(self, note: BackendNote, actor: str) -> None:
        """Have what runs there go elsewhere, at nobody's charge."""
        asked = [
            self._ledger.ask(uid, self._decision(indices, note, actor))
            for uid, indices in self._running(note.name).items()
        ]
        await asyncio.gather(*asked)

    def _running(self, backend: str) -> dict[str, list[int]]:
        """Tasks on a backend by job."""
        running: dict[str, list[int]] = defaultdict(list)
        for rows in self._ledger.all_rows():
            for index, attempt in rows.attempts.items():
                if attempt.backend == backend and not attempt.state.terminal:
                    running[rows.job.uid].append(index)
        return running

    def _decision(self, indices: list[int], note: BackendNote, actor: str) -> Decide:
        cause = drained(f"backend {note.name!r}", actor, note.cordon_reason)
        now = Now(round(self._clock.time() * 1e6), actor)
        return lambda rows: give_way(rows, indices, cause, now)
