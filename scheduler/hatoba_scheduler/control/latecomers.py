"""What hosts bring that no task has: it is taken up, or ended, or nobody's business.

Of an attempt that this epoch of the store launched the store knows all: what it does not want is to
end. What an earlier epoch launched may have come too late for the adoption, on a host that was away
or declared gone. It must not run beside another attempt of its task: where that waits still, it has
this one again, and where not, this one is to end. What belongs to no job that this store has, or to
one that is over here, is left alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import structlog

from hatoba.v1 import worker_pb2
from hatoba_plugins.backend import Clock
from hatoba_plugins.values import Handle
from hatoba_scheduler.control.launches import encode_handle
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.domain.adopting import Stray, attached
from hatoba_scheduler.domain.naming import AttemptName, parse_attempt
from hatoba_scheduler.domain.transitions import Now
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)


class Latecomers:
    """`backend` names the instance whose attempts hosts run; empty: there is none."""

    def __init__(
        self, ledger: Ledger, store: Store, clock: Clock, backend: Callable[[], str]
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._backend = backend

    async def may_go_on(self, held: worker_pb2.HeldAttempt, host: str) -> bool:
        """Whether an attempt that a host has, and no task in memory, may stay there."""
        named = parse_attempt(held.attempt)
        if named is None or named.epoch == self._store.identity.store_epoch:
            return False
        rows = await self._ledger.load(named.job_uid)
        if rows is None:
            return await self._store.attempt(held.attempt) is None
        stray = self._stray(named, held, host)
        if stray.backend and not rows.job.terms.gang:
            now = Now(round(self._clock.time() * 1e6))
            await self._ledger.decide(named.job_uid, lambda known: attached(known, stray, now))
        found = self._ledger.find_attempt(held.attempt) is not None
        log.warning("attempt.came_late", attempt=held.attempt, host=host, taken_up=found)
        return found

    def _stray(self, named: AttemptName, held: worker_pb2.HeldAttempt, host: str) -> Stray:
        return Stray(
            name=held.attempt,
            backend=self._backend(),
            index=named.index,
            number=named.number,
            handle=encode_handle(Handle(1, host)),
            fenced=True,
            span_id=secrets.token_hex(8),
            host=host,
            gpus=tuple(held.gpus),
            nonce=held.nonce if held.claimed else "",
        )
