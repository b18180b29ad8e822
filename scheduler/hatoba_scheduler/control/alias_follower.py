"""Deployments that follow an alias: each move of it is one roll-out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from hatoba_plugins.backend import Backend, Clock
from hatoba_scheduler.control.deployables import Deployable, resolved
from hatoba_scheduler.control.deployments import DeploymentBook, Live
from hatoba_scheduler.convert_deployments import spec_of
from hatoba_scheduler.domain.deployments import Change
from hatoba_scheduler.domain.references import short, version_name
from hatoba_scheduler.domain.rollouts import View, deployed_already, followed, ignored
from hatoba_scheduler.errors import HatobaError, ResourceExhausted, Unavailable
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

AGAIN = 5.0
"""Seconds until what could not be read or stored is tried again."""
_AGAIN = (Unavailable, ResourceExhausted)


class AliasFollower:
    """Hears of moves of aliases, and rolls out what they point to."""

    def __init__(
        self,
        store: Store,
        book: DeploymentBook,
        clock: Clock,
        backend_of: Callable[[str], Backend | None],
    ) -> None:
        self._store = store
        self._book = book
        self._clock = clock
        self._backend_of = backend_of
        self._wake = asyncio.Event()
        # Moves that were made while no server ran are found by a first look.
        self._moved: set[str] | None = None
        book.listen(self.on_change)

    def on_move(self, project: str, model: str, alias: str, version: int) -> None:
        """An alias points elsewhere; a listener of `Aliases`."""
        del version
        self._look_at(f"projects/{project}/models/{model}@{alias}")

    def on_change(self, live: Live) -> None:
        """A deployment changed: its alias may have moved while that was decided."""
        if live.deployment.following and not live.gone:
            self._look_at(live.deployment.settings.model)

    def _look_at(self, model: str) -> None:
        if self._moved is not None:
            self._moved.add(model)
        self._wake.set()

    async def run(self) -> None:
        """Follow; ends by cancellation."""
        while True:
            moved, self._moved = self._moved, set()
            try:
                for live in self._book.all():
                    if moved is None or live.deployment.settings.model in moved:
                        await self._look(live)
            except _AGAIN as error:
                log.warning("alias.not_followed", error=error.message)
                self._moved = None
                await self._clock.sleep(AGAIN)
                continue
            if not self._moved:
                self._wake.clear()
                await self._wake.wait()

    async def _look(self, live: Live) -> None:
        one = live.deployment
        if not one.following or one.deleting or not one.settings.alias:
            return
        model, _, alias = one.settings.model.partition("@")
        _, project, _, name = model.split("/")
        number = await self._store.models.alias(project, name, alias)
        version = version_name("models", project, name, number)
        if not number or version == one.followed:
            return
        reason = ""
        wanted: Deployable | None = None
        try:
            key = (one.project, one.name)
            wanted = await resolved(
                self._store, key, spec_of(one.settings), self._backend_of(one.backend)
            )
        except _AGAIN:
            raise
        except HatobaError as error:
            reason = error.message
        await self._follow(live, wanted, version, reason)

    async def _follow(
        self, live: Live, wanted: Deployable | None, version: str, reason: str
    ) -> None:
        def decide(view: View) -> Change | None:
            one = view.deployment
            if not one.following or one.deleting:
                return None
            now = self._book.now(f"alias {short(one.settings.model)}")
            if wanted is None:
                text = f"{short(version)} is not rolled out: {reason}"
                return ignored(view, version, text, now)
            if deployed_already(view, wanted.template):
                text = f"{short(version)} is deployed already."
                return ignored(view, wanted.version.name, text, now)
            return followed(view, wanted.revision(one.newest + 1, now.actor, now.time), now)

        try:
            await self._book.change(live, decide)
        except _AGAIN:
            raise
        except HatobaError as error:
            # It was removed, or the version was: the next move, or the next start, looks again.
            log.warning("alias.not_followed", deployment=live.uid, error=error.message)
