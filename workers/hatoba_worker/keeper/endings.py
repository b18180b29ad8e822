"""Making an end of all processes of an owner, however they hide or breed."""

from __future__ import annotations

import signal
from collections.abc import Callable

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.family import Family, Owner
from hatoba_worker.keeper.timers import Timer, Timers

_FREEZES = 20
_FIRST_SWEEP = 0.01
_SLOWEST_SWEEP = 0.5


class Endings:
    """Asks processes to end, and kills what has not ended in time.

    `look` is called after each sweep: it reaps, adopts, and tells who is gone.
    """

    def __init__(self, family: Family, timers: Timers, look: Callable[[], None]) -> None:
        self._family = family
        self._timers = timers
        self._look = look
        self._deadlines: dict[Owner, Timer] = {}
        self._asked: dict[Owner, set[int]] = {}
        self._killing: set[Owner] = set()

    def ask(self, owner: Owner, number: int, grace: float) -> None:
        """Send signal `number` to every process, and kill what is left after `grace` seconds.

        A signal is sent once: the second SIGTERM means "at once" to some programs.
        """
        if owner in self._killing:
            return
        asked = self._asked.setdefault(owner, set())
        if number not in asked:
            asked.add(number)
            self._signal(owner, number)
        self._kill_after(owner, grace)

    def linger(self, owner: Owner, grace: float) -> None:
        """Ask what its main process left behind, and kill it after `grace` seconds."""
        self.ask(owner, signal.SIGTERM, grace)

    def kill(self, owner: Owner) -> None:
        """Kill every process, again and again until none is left."""
        if owner not in self._killing:
            self._killing.add(owner)
            self._sweep(owner, _FIRST_SWEEP)

    def done(self, owner: Owner) -> None:
        """Nothing of `owner` is left: stop sweeping."""
        deadline = self._deadlines.pop(owner, None)
        if deadline:
            deadline.cancel()
        self._asked.pop(owner, None)
        self._killing.discard(owner)

    def _signal(self, owner: Owner, number: int) -> None:
        for member in self._family.members(owner).values():
            procfs.send(member, number)
            # One that is stopped would not see it before it is continued.
            procfs.send(member, signal.SIGCONT)

    def _kill_after(self, owner: Owner, grace: float) -> None:
        pending = self._deadlines.get(owner)
        due = self._timers.clock() + grace
        if pending and pending.due <= due:
            return
        if pending:
            pending.cancel()
        self._deadlines[owner] = self._timers.after(grace, lambda: self.kill(owner))

    def _sweep(self, owner: Owner, pause: float) -> None:
        if owner not in self._killing:
            return
        kill_all(lambda: self._family.members(owner))
        slower = min(pause * 2, _SLOWEST_SWEEP)
        self._timers.after(pause, lambda: self._sweep_again(owner, slower))

    def _sweep_again(self, owner: Owner, pause: float) -> None:
        # What the dead left was given to us, and is seen only by looking.
        self._look()
        self._sweep(owner, pause)


def kill_all(members: Callable[[], dict[int, procfs.Stat]]) -> None:
    """Kill what `members` returns. All are stopped first: what is stopped cannot fork."""
    held: dict[int, procfs.Stat] = {}
    for _ in range(_FREEZES):
        fresh = {pid: each for pid, each in members().items() if pid not in held}
        if not fresh:
            break
        for each in fresh.values():
            procfs.send(each, signal.SIGSTOP)
        held |= fresh
    for each in held.values():
        procfs.send(each, signal.SIGKILL)
