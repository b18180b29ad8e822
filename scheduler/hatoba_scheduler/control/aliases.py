"""Aliases of models: moved in one guarded step, then told of."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from hatoba_scheduler.domain.models import Decision, Moved, Refusal, Refused, Want
from hatoba_scheduler.errors import (
    Aborted,
    FailedPrecondition,
    HatobaError,
    NotFound,
    PermissionDenied,
    Reason,
    Resource,
)
from hatoba_scheduler.store.base import Met, RequestKey, Store
from hatoba_scheduler.whole import whole


class AliasListener(Protocol):
    """Hears that an alias points elsewhere, after the commit; must not block and must not raise.

    What a server that was killed in between did not tell is found in `ModelStore.alias`.
    """

    def __call__(self, project: str, model: str, alias: str, version: int) -> None:
        """Take note; version 0: the alias was taken away."""
        ...


class Aliases:
    """Moves aliases, and tells listeners."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: list[AliasListener] = []

    def listen(self, listener: AliasListener) -> None:
        """Tell this listener of every move from now on."""
        self._listeners.append(listener)

    async def move(self, want: Want, request: RequestKey | None = None) -> Moved | Met:
        """Move an alias, or have a protected one's move wait; with it the key of who asked is kept.

        Raises NotFound, Aborted (it points elsewhere), FailedPrecondition (the version is not
        READY, or deployments follow the alias).
        """
        return await whole(self._tell(self._store.models.move(want, request), _About(want)))

    async def decide(self, decision: Decision, request: RequestKey | None = None) -> Moved | Met:
        """Approve or reject a move. Raises NotFound, PermissionDenied (who asked for it), Aborted
        (the alias moved meanwhile), FailedPrecondition (decided otherwise).
        """
        moving = self._store.models.decide(decision, request)
        return await whole(self._tell(moving, _About(decision)))

    async def _tell(
        self, moving: Coroutine[Any, Any, Moved | Refused | Met], about: _About
    ) -> Moved | Met:
        moved = await moving
        if isinstance(moved, Refused):
            raise about.error(moved)
        if isinstance(moved, Moved) and moved.changed:
            move = moved.move
            for listener in self._listeners:
                listener(move.project, move.model, move.alias, move.target)
        return moved


class _About:
    """Words for a refusal of what was asked."""

    def __init__(self, asked: Want | Decision) -> None:
        self._model = asked.model
        if isinstance(asked, Want):
            self._what = f"alias {asked.alias!r} of model {asked.model!r}"
            self._version = f"version {asked.version} of model {asked.model!r}"
            self._again = "read it again and retry"
        else:
            self._what = f"the alias of move {asked.number} of model {asked.model!r}"
            self._version = f"the version that move {asked.number} of {asked.model!r} goes to"
            self._again = "ask for the move anew"
            self._move = f"move {asked.number} of model {asked.model!r}"
        self._resource = Resource("model", f"projects/{asked.project}/models/{asked.model}")

    def error(self, refused: Refused) -> HatobaError:
        """The error that says it."""
        why = refused.why
        if why in (Refusal.ELSEWHERE, Refusal.SUPERSEDED):
            return self._elsewhere(refused.points_to)
        if why is Refusal.NO_MODEL:
            return NotFound(
                f"there is no model {self._model!r}; `hatoba models list` shows those there are",
                resource=self._resource,
            )
        if why is Refusal.NO_MOVE:
            return NotFound(
                f"there is no {self._move}; `hatoba models moves {self._model}` shows them",
                resource=self._resource,
            )
        if why is Refusal.NO_VERSION:
            remedy = f"`hatoba models versions {self._model}` shows those there are"
            return NotFound(f"{self._version} is not there; {remedy}", resource=self._resource)
        if why is Refusal.SAME_PRINCIPAL:
            return PermissionDenied(
                f"{self._move} was asked for by you; a second principal has to decide on it",
                reason=Reason.SECOND_PRINCIPAL,
            )
        return FailedPrecondition(self._precondition(refused), resource=self._resource)

    def _elsewhere(self, points_to: int) -> Aborted:
        now = f"version {points_to}" if points_to else "nothing"
        return Aborted(
            f"{self._what} points to {now}; {self._again}",
            reason=Reason.ALIAS_MOVED,
            resource=self._resource,
            metadata={"points_to": str(points_to)},
        )

    def _precondition(self, refused: Refused) -> str:
        if refused.why is Refusal.FOLLOWED:
            followers = ", ".join(refused.users)
            return f"{self._what} is followed by {followers}; have them follow another one first"
        if refused.why is Refusal.DECIDED:
            return f"{self._move} is {refused.state} already; nothing was changed"
        return f"{self._version} is {refused.state}; only READY versions can be pointed to"
