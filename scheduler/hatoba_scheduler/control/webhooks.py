"""Posts events to webhooks: each follows the event log by itself, so that a receiver that is away
or slow delays nobody else.

A webhook has at most one delivery under way. Its position is stored after the receiver's 2xx: what
was posted by a server that died before that is posted again, under the same delivery id.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import aiohttp
import structlog

from hatoba import __version__
from hatoba.plain import to_plain
from hatoba.webhooks import DELIVERY_HEADER, SIGNATURE_HEADER
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.event_filters import EventFilter
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.fanout import Wants
from hatoba_scheduler.convert import event_to_proto, job_to_proto
from hatoba_scheduler.domain.filters import FilterError
from hatoba_scheduler.domain.naming import webhook_name
from hatoba_scheduler.domain.records import Event
from hatoba_scheduler.domain.webhooks import (
    LONGEST_PAUSE,
    Webhook,
    delivery_id,
    pause,
    signature,
    too_old,
    url_problem,
)
from hatoba_scheduler.errors import AlreadyExists, HatobaError, NotFound, ResourceExhausted
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

TIMEOUT = 10.0
MOST = 256
"""Webhooks of one installation: each has its own connection."""
GATHER = 0.02
"""Seconds in which events gather before one that waited for some looks at them."""
SKIPPED = 1_000
"""Events that it does not want, after which its position is stored all the same."""
STORE_AGAIN = 1.0
SHOWN_ERROR = 256


class Answer(NamedTuple):
    """What a receiver answered: its status, 0 when there was no answer, and then why."""

    status: int
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether it took the delivery."""
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """What went wrong, for people."""
        return self.error or f"the receiver answered {self.status}"


@dataclass(eq=False, slots=True)
class _Hook:
    row: Webhook
    wants: Wants
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Webhooks:
    """All webhooks, and their deliveries."""

    def __init__(
        self,
        store: Store,
        events: EventLog,
        clock: Clock,
        allowed: Sequence[str],
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock
        self._allowed = tuple(allowed)
        self._rng = rng or random.Random()
        self._hooks: dict[tuple[str, str], _Hook] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._session: aiohttp.ClientSession | None = None

    # -- what there is --------------------------------------------------------------------------

    async def recover(self) -> None:
        """Load what was kept, at start."""
        for row in await self._store.webhooks.all():
            try:
                wants = wants_of(row)
            except FilterError as error:
                log.error("webhook.unreadable", webhook=row.name, error=str(error))
            else:
                self._hooks[row.project, row.name] = _Hook(row, wants)

    def get(self, project: str, name: str) -> Webhook:
        """One webhook, with how its deliveries go. Raises NotFound."""
        return self._hook(project, name).row

    @property
    def failing(self) -> int:
        """How many were not taken the last time."""
        return sum(hook.row.failures > 0 for hook in self._hooks.values())

    def of(self, project: str) -> list[Webhook]:
        """Those of a project, by name."""
        return [hook.row for key, hook in sorted(self._hooks.items()) if key[0] == project]

    def _hook(self, project: str, name: str) -> _Hook:
        found = self._hooks.get((project, name))
        if found is None:
            raise NotFound(
                f"there is no webhook {name!r} in project {project!r}; "
                "`hatoba webhooks list` names those there are"
            )
        return found

    async def add(self, row: Webhook) -> Webhook:
        """Keep a new one; it begins with the events from now on.

        Raises AlreadyExists and ResourceExhausted.
        """
        if len(self._hooks) >= MOST:
            raise ResourceExhausted(f"there are {MOST} webhooks already; delete one first")
        row = replace(row, cursor=self._events.newest)
        if not await self._store.webhooks.add(row):
            raise AlreadyExists(f"webhook {row.name!r} exists in project {row.project!r}")
        hook = self._hooks[row.project, row.name] = _Hook(row, wants_of(row))
        self._start(hook)
        return row

    async def update(self, row: Webhook) -> Webhook:
        """Write new settings; what waited for its next try is tried at once. Raises NotFound."""
        hook = self._hook(row.project, row.name)
        await self._store.webhooks.put_settings(row)
        hook.wants = wants_of(row)
        hook.row = replace(
            hook.row,
            url=row.url,
            filter=row.filter,
            jobs_only=row.jobs_only,
            reasons=row.reasons,
            paused=row.paused,
            next_try=0,
        )
        hook.changed.set()
        return hook.row

    async def delete(self, project: str, name: str) -> None:
        """End one; twice is once."""
        hook = self._hooks.pop((project, name), None)
        if hook is None:
            return
        if hook.task is not None:
            hook.task.cancel()
        await self._store.webhooks.delete(hook.row.uid)

    async def test(self, project: str, name: str) -> Answer:
        """Post a message that tells of nothing; what the receiver answered."""
        row = self.get(project, name)
        stamp = round(self._clock.time() * 1e6)
        return await self._post(row, f"{row.uid}-test.{stamp}", {"test": True})

    # -- deliveries -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            self._session = session
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    for hook in list(self._hooks.values()):
                        self._start(hook)
                    await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = self._session = None

    def _start(self, hook: _Hook) -> None:
        if self._tasks is not None:
            name = f"webhook:{hook.row.project}/{hook.row.name}"
            hook.task = self._tasks.create_task(self._forever(hook), name=name)

    async def _forever(self, hook: _Hook) -> None:
        """No failure ends a webhook: it begins again where it was stored to be."""
        while True:
            try:
                await self._follow(hook)
            except HatobaError as error:
                log.warning("webhook.not_stored", webhook=hook.row.name, error=error.message)
            except Exception:
                log.exception("webhook.failed", webhook=hook.row.name)
            await self._clock.sleep(STORE_AGAIN)

    async def _follow(self, hook: _Hook) -> None:
        stored = hook.row.cursor
        while True:
            if hook.row.paused:
                await self._told(hook)
                continue
            told, upto = await self._events.read_for(hook.wants, hook.row.cursor)
            if upto <= hook.row.cursor:
                await self._events.wait_beyond(hook.row.cursor)
                await self._clock.sleep(GATHER)
                continue
            wants = hook.wants
            for each in told:
                if not wants.admits(each):
                    continue
                if hook.wants is not wants:
                    break
                if not await self._deliver(hook, each.event):
                    break
                stored = hook.row.cursor
            else:
                hook.row = replace(hook.row, cursor=max(hook.row.cursor, upto))
            if hook.row.cursor - stored >= SKIPPED:
                await self._store.webhooks.put_progress(hook.row)
                stored = hook.row.cursor

    async def _told(self, hook: _Hook) -> None:
        """Wait until its settings change."""
        hook.changed.clear()
        await hook.changed.wait()

    async def _deliver(self, hook: _Hook, event: Event) -> bool:
        """Post an event until it is taken or given up; False when settings changed meanwhile."""
        hook.changed.clear()
        if hook.row.paused or not await self._wait(hook):
            return False
        name = delivery_id(hook.row.uid, self._store.identity.store_epoch, event.seq)
        body = {"event": to_plain(event_to_proto(event)), "job": await self._job(event.job_uid)}
        while True:
            answer = await self._post(hook.row, name, body)
            now = round(self._clock.time() * 1e6)
            if answer.good:
                hook.row = replace(
                    hook.row, cursor=event.seq, failures=0, last_error="", next_try=0
                )
                await self._store.webhooks.put_progress(hook.row)
                return True
            if too_old(event.time, now):
                self._give_up(hook, event, answer)
                await self._store.webhooks.put_progress(hook.row)
                return True
            self._failed(hook, answer, now)
            await self._store.webhooks.put_progress(hook.row)
            if not await self._wait(hook):
                return False

    def _failed(self, hook: _Hook, answer: Answer, now: int) -> None:
        failures = hook.row.failures + 1
        wait = pause(failures, self._rng.random())
        error = answer.words[:SHOWN_ERROR]
        hook.row = replace(
            hook.row, failures=failures, last_error=error, next_try=now + round(wait * 1e6)
        )
        log.warning(
            "webhook.not_taken", webhook=hook.row.name, error=error, again_in=round(wait, 1)
        )

    def _give_up(self, hook: _Hook, event: Event, answer: Answer) -> None:
        hook.row = replace(
            hook.row,
            cursor=event.seq,
            failures=hook.row.failures + 1,
            last_error=answer.words[:SHOWN_ERROR],
            given_up=hook.row.given_up + 1,
        )
        log.error("webhook.given_up", webhook=hook.row.name, seq=event.seq, error=answer.words)

    async def _wait(self, hook: _Hook) -> bool:
        """Sleep until its next try; False when its settings changed meanwhile."""
        # Whoever sets the clock back by a year does not make anybody wait for that long.
        left = min(hook.row.next_try / 1e6 - self._clock.time(), LONGEST_PAUSE)
        if left <= 0:
            return not hook.changed.is_set()
        async with asyncio.TaskGroup() as group:
            slept = group.create_task(self._clock.sleep(left), name="webhook:pause")
            woken = group.create_task(hook.changed.wait(), name="webhook:changed")
            await asyncio.wait((slept, woken), return_when=asyncio.FIRST_COMPLETED)
            slept.cancel()
            woken.cancel()
        return not hook.changed.is_set()

    async def _job(self, uid: str) -> dict[str, Any]:
        job = (await self._store.jobs_by_uid([uid])).get(uid)
        return to_plain(job_to_proto(job, None)) if job is not None else {}

    async def _post(self, row: Webhook, name: str, body: dict[str, Any]) -> Answer:
        problem = url_problem(row.url, self._allowed)
        if problem:
            return Answer(0, problem)
        if self._session is None:
            return Answer(0, "the server posts nothing before its store is adopted")
        whole = {"delivery": name, "webhook": webhook_name(row.project, row.name), **body}
        data = json.dumps(whole, separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": f"hatoba/{__version__}",
            DELIVERY_HEADER: name,
            SIGNATURE_HEADER: signature(row.signing_key, int(self._clock.time()), data),
        }
        try:
            async with self._session.post(
                row.url, data=data, headers=headers, allow_redirects=False
            ) as response:
                return Answer(response.status)
        except TimeoutError:
            return Answer(0, f"the receiver did not answer within {TIMEOUT:.0f} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(0, str(error) or type(error).__name__)


def wants_of(row: Webhook) -> Wants:
    """Which events it is told of. Raises FilterError."""
    return Wants(row.project, filter=EventFilter.parse(row.filter, row.jobs_only, row.reasons))
