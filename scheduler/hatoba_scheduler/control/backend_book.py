"""What operators say of backends: kept in the store, in force at once and after each start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import structlog

from hatoba_scheduler.control.backend_loop import BackendLoop
from hatoba_scheduler.control.draining import Drainer, Place, backend_place
from hatoba_scheduler.domain.records import BackendNote
from hatoba_scheduler.errors import NotFound
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)


class BackendBook:
    """Cordons and drains of backends."""

    def __init__(self, store: Store, drainer: Drainer, loops: Mapping[str, BackendLoop]) -> None:
        self._store = store
        self._drainer = drainer
        self._loops = loops

    async def recover(self) -> None:
        """Take up what was said before this start; of backends that are not open it is kept."""
        for note in await self._store.backends():
            loop = self._loops.get(note.name)
            if loop is not None:
                loop.supply.take(note)

    def places(self) -> Iterator[Place]:
        """All backends that are drained."""
        notes = (loop.supply.note for loop in self._loops.values())
        return (backend_place(note) for note in notes if note.draining)

    async def cordon(self, note: BackendNote, actor: str) -> None:
        """Keep work away from a backend, and have what runs there go elsewhere when it is to be
        drained; or let work come. Raises NotFound."""
        loop = self._loops.get(note.name)
        if loop is None:
            raise NotFound(
                f"no backend {note.name!r}; `hatoba backends list` names those there are"
            )
        hit("backend.cordon.before")
        await self._store.put_backend(note)
        hit("backend.cordon.after")
        loop.supply.take(note)
        log.info("backend.cordoned", backend=note.name, cordoned=note.cordoned, actor=actor)
        if note.draining:
            await self._drainer.drain(backend_place(note), actor)
