"""The mock's outside world: virtual objects that live by their scripts, and every fault on demand.

A test that holds the `MockWorld` decides what happens; a server that was only given options leaves
that to the scripts in the specifications.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hatoba_plugins.backend import Clock
from hatoba_plugins.backends.mock.faults import OPERATIONS, Fault, Faults
from hatoba_plugins.backends.mock.fleet import Fleet, Outside
from hatoba_plugins.backends.mock.ledger import Entry, Ledger
from hatoba_plugins.backends.mock.objects import (
    MockObject,
    Owner,
    Population,
    created_entry,
    exit_data,
    population_of,
)
from hatoba_plugins.backends.mock.script import ERRORS, GONE, FaultKind, Script
from hatoba_plugins.clock import SystemClock
from hatoba_plugins.errors import BackendError, Conflict, Fatal, NoCapacity, Retry, Throttled
from hatoba_plugins.feed import Feed
from hatoba_plugins.runner import CLAIM_REFUSED
from hatoba_plugins.values import (
    DeploymentItem,
    Exit,
    ExitKind,
    Gap,
    Observation,
    OwnedDeployment,
    Phase,
    Target,
    WatchItem,
)

FOREIGN = Owner("somebody-else", "", 0, 0, 0)


class MockRunner(Protocol):
    """What stands beside each run in place of a real runner: it claims, and it commits."""

    async def claim(self, name: str, fence: int, nonce: str) -> bool:
        """Whether this run may start the user's code. The same nonce gets the same answer."""
        ...

    async def commit(self, name: str, fence: int, nonce: str, exit: Exit) -> None:
        """The run ended; called before the world shows it."""
        ...


class FirstClaimWins:
    """A runner that grants each attempt to the nonce that asks first, and commits nowhere."""

    def __init__(self) -> None:
        self._winners: dict[str, str] = {}

    async def claim(self, name: str, fence: int, nonce: str) -> bool:
        """Grant the first nonce."""
        return self._winners.setdefault(name, nonce) == nonce

    async def commit(self, name: str, fence: int, nonce: str, exit: Exit) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the world is asked to create."""

    name: str
    owner: Owner
    script: Script
    timeout: float = 0.0
    environment: tuple[tuple[str, str], ...] = ()
    """What its runner is given."""


class MockWorld:
    """Objects, their lives, their ledger, and the faults.

    `ledger`: its file; without one the entries are in memory only. `runner`: claims for each run;
    without one nothing fences the runs.
    """

    def __init__(self, ledger: Path | None = None, runner: MockRunner | None = None) -> None:
        self.faults = Faults()
        self.runner = runner
        self.elsewhere = False
        """Runners are other processes, which claim and commit at the server."""
        self._ledger = Ledger(ledger)
        self._population = Population()
        self._feed: Feed[WatchItem] = Feed()
        self._clock: Clock = SystemClock()
        self._tasks: asyncio.TaskGroup | None = None
        self._lives: dict[str, set[asyncio.Task[None]]] = {}
        self._room = asyncio.Semaphore(1)
        self._capacity = 1
        self._elastic = False
        self._scripted: dict[str, int] = {}
        self._hidden_for = 0.0
        self._double_next = False
        self._cut_until = 0.0
        self._muted = False
        self._fleet = Fleet(self._outside())

    def _outside(self) -> Outside:
        return Outside(
            now=lambda: self._clock.time(),
            until=self._until,
            spawn=self._spawn,
            lay_down=self._lay_down,
            record=self._record,
            quiet=lambda: self._muted or self._clock.time() < self._cut_until,
        )

    # -- for tests: what happened, and what shall happen -----------------------------------------

    @property
    def entries(self) -> Sequence[Entry]:
        """Everything that happened, oldest first."""
        return self._ledger.entries

    def count(self, event: str, name: str) -> int:
        """How often something happened to a name."""
        return sum(entry.event == event and entry.name == name for entry in self.entries)

    def refuse_launch(self, error: BackendError, times: int = 1, name: str = "") -> None:
        """The next creations do nothing and fail with this."""
        self.faults.add("create", Fault(FaultKind.REFUSED, error=error), times=times, name=name)

    def lose_reply(self, operation: str = "create") -> None:
        """The next call takes effect, and its reply is lost."""
        self.faults.add(operation, Fault(FaultKind.REPLY_LOST))

    def delay_reply(self, seconds: float, operation: str = "create") -> None:
        """The next call takes effect at once, and its reply comes so much later."""
        self.faults.add(operation, Fault(FaultKind.REPLY_DELAYED, seconds))

    def double_reply(self, operation: str = "create") -> None:
        """The next call arrives twice."""
        self.faults.add(operation, Fault(FaultKind.REPLY_DOUBLED))

    def hang(self, operation: str = "create") -> None:
        """The next call does nothing and never answers."""
        self.faults.add(operation, Fault(FaultKind.HANGS))

    def land_late(self, seconds: float, operation: str = "create") -> None:
        """The next creation (or `apply`) never answers, and happens so much later."""
        self.faults.add(operation, Fault(FaultKind.LANDS_LATE, seconds))

    def throttle(self, calls: int = 1, after: float = 1.0) -> None:
        """So many calls of every operation are turned away."""
        for operation in OPERATIONS:
            error = Throttled("too many calls", after=after)
            self.faults.add(operation, Fault(FaultKind.REFUSED, error=error), times=calls)

    def hide_launches(self, seconds: float) -> None:
        """Whatever is created from now on is invisible for so long."""
        self._hidden_for = seconds

    def double_run(self) -> None:
        """The provider starts the next object twice."""
        self._double_next = True

    def plant_foreign(self, name: str) -> None:
        """Somebody else's object of this name."""
        self._add(Wanted(name, FOREIGN, Script()))

    def delete_behind(self, name: str) -> None:
        """Somebody deletes an object: it is gone, and so is how it ended."""
        self._delete(self._population.objects[name])

    def delete_replica(self, name: str) -> None:
        """Somebody deletes a replica; its deployment replaces it."""
        self._fleet.delete_behind(name)

    def crash_replica(self, name: str) -> None:
        """A replica ends by itself, and starts again."""
        self._fleet.crash(name)

    def refuse_replicas(self, why: str) -> None:
        """No replica is made from now on, and deployments say why; empty: some are again."""
        self._fleet.refuse(why)

    def cut(self, seconds: float) -> None:
        """Nothing can be reached for so long; lives go on meanwhile."""
        self._cut_until = self._clock.time() + seconds
        self._spawn("", self._mend_at(self._cut_until))

    def gap(self) -> None:
        """Watchers lose what they have not read, and are told so."""
        for feed in (self._feed, self._fleet.feed):
            feed.drop()
            feed.publish([Gap()])

    def end_watches(self) -> None:
        """Every watch ends without a word; what was not read is lost."""
        for feed in (self._feed, self._fleet.feed):
            feed.drop()
            feed.end()

    def mute_watches(self, muted: bool = True) -> None:
        """Watches stay open and tell nothing, until unmuted."""
        self._muted = muted

    # -- native calls ---------------------------------------------------------------------------

    async def create(self, wanted: Wanted) -> MockObject:
        """Make an object, or return the one of this name and owner."""
        fault = self._scripted_fault(wanted) or self.faults.take("create", wanted.name)
        if fault and fault.kind is FaultKind.LANDS_LATE:
            self._spawn("", self._add_later(wanted, fault.seconds))
        await self._before("create", fault)
        made = self._add(wanted)
        if fault and fault.kind is FaultKind.REPLY_DOUBLED:
            made = self._add(wanted)
        await self._after(fault)
        return made

    async def describe(self, names: Sequence[str]) -> list[MockObject | None]:
        """What is visible of these names."""
        fault = self.faults.take("describe")
        await self._before("describe", fault)
        seen = [self._visible(name) for name in names]
        await self._after(fault)
        return seen

    async def terminate(self, name: str, grace: float) -> bool:
        """End an object politely, and by force after the grace. False: no such thing; noted."""
        fault = self.faults.take("terminate", name)
        await self._before("terminate", fault)
        known = self._terminate(name, grace)
        await self._after(fault)
        return known

    async def delete(self, name: str) -> bool:
        """Remove what ended. False: it is not gone yet."""
        fault = self.faults.take("delete", name)
        await self._before("delete", fault)
        gone = self._release(name)
        await self._after(fault)
        return gone

    async def list_objects(self) -> list[MockObject]:
        """Everything visible, ended objects too."""
        fault = self.faults.take("list")
        await self._before("list", fault)
        return [known for name in self._population.objects if (known := self._visible(name))]

    def watch(self, now: Callable[[], Iterable[WatchItem]]) -> AsyncIterator[WatchItem]:
        """News of all objects; `now` tells what comes before them."""
        return self._feed.watch(lambda: [*now(), *self._everything()])

    async def apply(self, cluster_id: str, target: Target) -> None:
        """Have a deployment become this. Raises Stale and Invalid."""
        fault = self.faults.take("apply", target.uid)
        if fault and fault.kind is FaultKind.LANDS_LATE:
            self._spawn("", self._apply_later(cluster_id, target, fault.seconds))
        await self._before("apply", fault)
        self._fleet.apply(cluster_id, target)
        if fault and fault.kind is FaultKind.REPLY_DOUBLED:
            self._fleet.apply(cluster_id, target)
        await self._after(fault)

    async def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """Let replicas that are leaving drain and end."""
        fault = self.faults.take("retire", uid)
        await self._before("retire", fault)
        self._fleet.retire(uid, replicas)
        await self._after(fault)

    async def remove(self, uid: str) -> float | None:
        """End all of a deployment. None: nothing is left; else seconds until that may be so."""
        fault = self.faults.take("remove", uid)
        await self._before("remove", fault)
        left = self._fleet.remove(uid)
        await self._after(fault)
        return left

    async def list_deployments(self) -> list[OwnedDeployment]:
        """Every deployment of which something is left."""
        fault = self.faults.take("list")
        await self._before("list", fault)
        return self._fleet.owned()

    def watch_deployments(self) -> AsyncIterator[DeploymentItem]:
        """News of all deployments, after all that there are."""
        return self._fleet.feed.watch(self._fleet.everything)

    def observe(self, known: MockObject) -> Observation:
        """How an object looks."""
        if known.loser_unseen:
            known.loser_unseen = False
            return _loser(known)
        if not self._reaches(known):
            phase = min(known.phase, Phase.RUNNING)
            return Observation(known.name, phase, exists=True, reachable=False)
        return _seen(known)

    # -- opening --------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, clock: Clock, capacity: int, elastic: bool) -> AsyncIterator[None]:
        """Let lives go on, from where the ledger says they were, until the context ends."""
        self._clock, self._capacity, self._elastic = clock, capacity, elastic
        self._room = asyncio.Semaphore(capacity)
        await self._ledger.load()
        self._population = population_of(self._ledger.entries)
        self._fleet.load(self._ledger.entries)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._ledger.write_what_comes(), name="mock-ledger")
            for known in self._population.objects.values():
                self._begin(known)
            self._fleet.begin()
            try:
                yield
            finally:
                self._close()

    def _close(self) -> None:
        for tasks in self._lives.values():
            for task in tasks:
                task.cancel()
        self._feed.end()
        self._fleet.feed.end()
        self._ledger.close()

    def _spawn(self, name: str, life: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            raise RuntimeError("the mock's world is not running")
        task = self._tasks.create_task(life, name=f"mock-{name}")
        lives = self._lives.setdefault(name, set())
        lives.add(task)
        task.add_done_callback(lambda done: self._bury(name, done))

    def _bury(self, name: str, done: asyncio.Task[None]) -> None:
        self._lives[name].discard(done)
        if not self._lives[name]:
            del self._lives[name]

    # -- calls and their faults -----------------------------------------------------------------

    async def _before(self, operation: str, fault: Fault | None) -> None:
        await asyncio.sleep(0)
        if self._clock.time() < self._cut_until:
            raise Retry(f"cannot connect for {operation}", after=1.0)
        if fault is None:
            return
        if fault.kind is FaultKind.REFUSED:
            raise fault.error or Retry("refused by script")
        if fault.kind in (FaultKind.HANGS, FaultKind.LANDS_LATE):
            await asyncio.get_running_loop().create_future()

    async def _after(self, fault: Fault | None) -> None:
        await self._ledger.flush()
        if fault is None:
            return
        if fault.kind is FaultKind.REPLY_DELAYED:
            await self._clock.sleep(fault.seconds)
        if fault.kind is FaultKind.REPLY_LOST:
            raise ConnectionResetError("connection reset before the reply")

    def _scripted_fault(self, wanted: Wanted) -> Fault | None:
        script, done = wanted.script, self._scripted.get(wanted.name, 0)
        if not script.launch_fault or done >= script.fault_times:
            return None
        self._scripted[wanted.name] = done + 1
        error = ERRORS[script.error]("refused by its script")
        return Fault(FaultKind(script.launch_fault), script.fault_seconds, error)

    async def _add_later(self, wanted: Wanted, seconds: float) -> None:
        await self._clock.sleep(seconds)
        try:
            self._add(wanted)
        except BackendError:
            return  # meanwhile the name was taken or stopped, and nobody waits for the reply

    async def _apply_later(self, cluster_id: str, target: Target, seconds: float) -> None:
        await self._clock.sleep(seconds)
        try:
            self._fleet.apply(cluster_id, target)
        except BackendError:
            return  # meanwhile a newer one came, and nobody waits for the reply

    # -- objects --------------------------------------------------------------------------------

    def _add(self, wanted: Wanted) -> MockObject:
        known = self._population.objects.get(wanted.name)
        if known is not None:
            if known.owner == wanted.owner:
                return known
            evidence = f"it belongs to {known.owner}"
            raise Conflict(f"{wanted.name} exists already", evidence=evidence)
        if wanted.name in self._population.used:
            raise Fatal(f"{wanted.name} was {self._population.used[wanted.name]}")
        self._require_room()
        return self._make(wanted)

    def _require_room(self) -> None:
        live = sum(not known.ended for known in self._population.objects.values())
        if not self._elastic and live >= self._capacity:
            raise NoCapacity(f"all {self._capacity} slots are taken")

    def _make(self, wanted: Wanted) -> MockObject:
        now = self._clock.time()
        doubled = wanted.script.doubled_run or self._double_next
        self._double_next = False
        script = replace(wanted.script, doubled_run=doubled)
        hidden = max(script.hidden_for, self._hidden_for)
        made = MockObject(wanted.name, wanted.owner, script, now, wanted.timeout)
        made.hidden_until = now + hidden if hidden else 0.0
        made.releases_left = script.release_not_yet
        self._population.objects[made.name] = made
        self._ledger.record(created_entry(made, wanted.environment))
        self._begin(made)
        self._tell(made)
        return made

    def _terminate(self, name: str, grace: float) -> bool:
        known = self._population.objects.get(name)
        if known is None and name in self._population.used:
            return self._population.used[name] == "released"
        self._record("stop", name, grace=grace)
        if known is None:
            self._population.used[name] = "stopped before it was launched"
            return False
        self._stop(known, grace)
        return True

    def _stop(self, known: MockObject, grace: float) -> None:
        if known.ended:
            return
        polite = known.script.on_stop == "exit" or known.phase < Phase.RUNNING
        if polite or grace <= 0:
            self._end(known, Exit(ExitKind.STOPPED))
        elif not known.kill_at:
            known.kill_at = self._clock.time() + grace
            self._spawn(known.name, self._kill(known))

    def _release(self, name: str) -> bool:
        known = self._population.objects.get(name)
        if known is None:
            return True
        if not known.ended:
            return False
        if known.releases_left > 0:
            known.releases_left -= 1
            return False
        del self._population.objects[name]
        self._population.used[name] = "released"
        self._record("release", name)
        return True

    def _end(self, known: MockObject, end: Exit) -> None:
        if known.ended:
            return
        known.phase, known.exit, known.loser_unseen = Phase.ENDED, end, False
        self._ledger.record(Entry("end", known.name, self._clock.time(), exit_data(end)))
        self._tell(known)
        self._lay_down(known.name)

    def _delete(self, known: MockObject) -> None:
        if known.deleted:
            return
        known.phase, known.deleted, known.exit = Phase.GONE, True, None
        self._record("delete", known.name)
        self._tell(known)
        self._lay_down(known.name)

    def _lay_down(self, name: str) -> None:
        """End the tasks of an object; the one that this happens in ends by itself."""
        for task in self._lives.get(name, set()) - {asyncio.current_task()}:
            task.cancel()

    def _visible(self, name: str) -> MockObject | None:
        known = self._population.objects.get(name)
        return None if known is None or known.hidden(self._clock.time()) else known

    def _reaches(self, known: MockObject) -> bool:
        now = self._clock.time()
        return now >= self._cut_until and not known.unreachable(now)

    def _record(self, event: str, name: str, **data: object) -> None:
        self._ledger.record(Entry(event, name, self._clock.time(), data))

    # -- news -----------------------------------------------------------------------------------

    def _tell(self, known: MockObject) -> None:
        visible = self._visible(known.name) is not None
        if visible and self._reaches(known) and not self._muted:
            self._feed.publish([_seen(known)])

    def _everything(self) -> list[Observation]:
        names = self._population.objects
        return [self.observe(known) for name in names if (known := self._visible(name))]

    async def _mend_at(self, when: float) -> None:
        await self._until(when)
        self._feed.publish([Gap()])
        self._fleet.feed.publish([Gap()])

    # -- lives ----------------------------------------------------------------------------------

    def _begin(self, known: MockObject) -> None:
        if known.ended or known.owner == FOREIGN:
            return
        self._spawn(known.name, self._live(known))
        for wanted, life in (
            (known.hidden_until, self._appear),
            (known.kill_at, self._kill),
            (known.script.deleted_after, self._vanish),
        ):
            if wanted:
                self._spawn(known.name, life(known))

    async def _live(self, known: MockObject) -> None:
        try:
            await self._live_by_script(known)
        except Exception as error:  # noqa: BLE001 - a test's runner may raise what it likes
            self._end(known, Exit(ExitKind.FAILED, message=f"its runner failed: {error!r}"))

    async def _live_by_script(self, known: MockObject) -> None:
        async with self._room:
            await self._until(known.created_at + known.script.waits_for)
            if known.phase is Phase.WAITING:
                self._enter(known, Phase.STARTING)
            await self._until(known.created_at + known.script.waits_for + known.script.starts_in)
            nonce = f"{known.name}/1"
            if known.phase is not Phase.RUNNING and not await self._start(known, nonce):
                return
            await self._run(known, nonce)

    async def _start(self, known: MockObject, nonce: str) -> bool:
        """Claim, and start the user's code; False when the claim was refused."""
        granted = await self._claim(known, nonce)
        if not granted:
            self._end(known, Exit(ExitKind.EXITED, CLAIM_REFUSED, message="claim refused"))
            return False
        known.started_at = self._clock.time()
        self._record("start", known.name, nonce=nonce)
        if known.script.doubled_run:
            await self._start_again(known)
        self._enter(known, Phase.RUNNING)
        if known.script.unreachable_for:
            self._spawn("", self._mend_at(known.started_at + known.script.unreachable_for))
        return True

    async def _start_again(self, known: MockObject) -> None:
        """The provider's second start. Its end is the first that anybody sees of the object."""
        nonce = f"{known.name}/2"
        if not self.elsewhere and await self._claim(known, nonce):
            self._record("start", known.name, nonce=nonce)
            return
        known.loser_unseen = True
        if not known.hidden(self._clock.time()):
            self._feed.publish([_loser(known)])

    async def _claim(self, known: MockObject, nonce: str) -> bool:
        if self.runner is None:
            return True
        granted = await self.runner.claim(known.name, known.owner.fence, nonce)
        self._record("claim", known.name, nonce=nonce, granted=granted)
        return granted

    async def _run(self, known: MockObject, nonce: str) -> None:
        script = known.script
        timed_out = 0 < known.timeout < script.run_for
        await self._until(known.started_at + (known.timeout if timed_out else script.run_for))
        if script.outcome == GONE and not timed_out:
            self._delete(known)
            return
        end = Exit(ExitKind.RUN_TIMEOUT) if timed_out else script.exit()
        if self.runner is not None:
            await self.runner.commit(known.name, known.owner.fence, nonce, end)
        self._end(known, end)

    async def _appear(self, known: MockObject) -> None:
        await self._until(known.hidden_until)
        self._tell(known)

    async def _kill(self, known: MockObject) -> None:
        await self._until(known.kill_at)
        self._end(known, Exit(ExitKind.STOPPED, message="killed after its grace"))

    async def _vanish(self, known: MockObject) -> None:
        await self._until(known.created_at + known.script.deleted_after)
        self._delete(known)

    def _enter(self, known: MockObject, phase: Phase) -> None:
        known.phase = phase
        self._tell(known)

    async def _until(self, when: float) -> None:
        await self._clock.sleep(max(0.0, when - self._clock.time()))


def _seen(known: MockObject) -> Observation:
    if known.deleted:
        return Observation(known.name, known.phase, exists=False, exit=known.exit)
    return Observation(known.name, known.phase, True, known.exit, run=f"{known.name}/1")


def _loser(known: MockObject) -> Observation:
    end = Exit(ExitKind.EXITED, CLAIM_REFUSED, message="another run holds the claim")
    return Observation(known.name, Phase.ENDED, True, end, run=f"{known.name}/2")
