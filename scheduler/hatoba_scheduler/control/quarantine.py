"""Keeps new work away from hosts that fail many different jobs, for a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.blame import Blame, Sentence
from hatoba_scheduler.domain.records import Event, Host, Micros
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.errors import HatobaError

LOOK_AGAIN = 1.0
"""Seconds between two looks at whether a quarantine is over."""

log = structlog.get_logger(__name__)


class Quarantine:
    """Follows the ends of attempts; cordons hosts for a while and lets them come again.

    It is remembered with the host, so it outlives a restart. An operator's uncordon ends it. The
    last host that takes work is never sent away.
    """

    def __init__(self, ledger: Ledger, hub: Hub, clock: Clock, blame: Blame) -> None:
        self._hub = hub
        self._clock = clock
        self._blame = blame
        self._sentences: deque[Sentence] = deque()
        ledger.listen(self.on_commit)

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        for commit in commits:
            if commit.change.job.terms.devices:
                # They run there or nowhere.
                continue
            for attempt, _ in commit.change.attempts:
                if attempt.state < AttemptState.SUCCEEDED:
                    continue
                sentence = self._blame.note(commit.change.job, attempt)
                if sentence is not None:
                    self._sentences.append(sentence)

    async def run(self) -> None:
        """Carry sentences out and end them; ends by cancellation."""
        while True:
            try:
                while self._sentences:
                    await self._carry_out(self._sentences[0])
                    self._sentences.popleft()
                await self._end_those_over()
            except HatobaError as error:
                log.warning("quarantine.not_stored", error=error.message)
            await self._clock.sleep(LOOK_AGAIN)

    async def _carry_out(self, sentence: Sentence) -> None:
        host = next((one for one in self._hub.hosts() if one.name == sentence.host), None)
        if host is None or host.declared_gone:
            return
        if not any(self._takes_work(other) for other in self._hub.hosts() if other != host):
            log.warning("quarantine.withheld", host=host.name, reason=sentence.reason)
            return
        await self._hub.quarantine(host.name, sentence.until, sentence.reason)
        log.warning(
            "host.quarantined", host=host.name, until=sentence.until / 1e6, reason=sentence.reason
        )

    async def _end_those_over(self) -> None:
        now = self._now()
        for host in self._hub.hosts():
            if 0 < host.quarantined_until <= now:
                await self._hub.quarantine(host.name, 0, "")
                log.info("host.quarantine_over", host=host.name)

    def _takes_work(self, host: Host) -> bool:
        kept_away = host.cordoned or host.declared_gone or host.quarantined_until > self._now()
        return not kept_away and self._hub.reachable(host.name)

    def _now(self) -> Micros:
        return round(self._clock.time() * 1e6)
