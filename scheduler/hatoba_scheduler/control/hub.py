"""The server's side of all host workers' streams.

A stream is believed once its hello was good and its inventory complete; then launches may go to it.
Each host has at most one stream: a newer one ends the older. What a host holds follows from its
inventory and from what was sent since, so "does it have this attempt" has an answer whenever it is
connected.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from hatoba.v1 import deployment_pb2, job_pb2, runner_pb2, worker_pb2
from hatoba_plugins.backend import Clock, HostRoom
from hatoba_plugins.values import (
    CapacitySnapshot,
    Exit,
    ExitKind,
    Gap,
    Handle,
    LogChunk,
    Observation,
    Owned,
    Phase,
    Pool,
    Share,
    Synced,
    WatchItem,
)
from hatoba_scheduler.control.attachments import Attachments
from hatoba_scheduler.control.holdings import Holdings
from hatoba_scheduler.control.host_replicas import HostReplicas
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.control.orders import fill_order
from hatoba_scheduler.domain import gangs
from hatoba_scheduler.domain.naming import parse_attempt
from hatoba_scheduler.domain.preempting import may_save
from hatoba_scheduler.domain.records import Attempt, Event, Host, Job, Micros, Resources
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.errors import FailedPrecondition, NotFound, Reason
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import ServerIdentity

log = structlog.get_logger(__name__)

PROTOCOL = 1
BATCH = 100
BATCH_BYTES = 1 << 20
OUT_LIMIT = 20_000
WATCH_LIMIT = 10_000
TAIL_TIMEOUT = 10.0


@dataclass(slots=True)
class Known:
    """What a host has told of one attempt, from its launch until it is forgotten."""

    host: str
    job_uid: str
    index: int
    number: int
    phase: Phase = Phase.EXISTS
    exit: Exit | None = None
    left: bool = True
    """Something of it is left on the host."""
    session: Session | None = None
    """The stream that last named it; of an older one it must be named again."""
    gpus: tuple[str, ...] = ()
    nonce: str = ""
    outcome: runner_pb2.CommitAttemptRequest | None = None
    """Of one that its host has forgotten: how it ended."""

    def observation(self, name: str) -> Observation:
        """As the backend tells it."""
        return Observation(name, self.phase, exists=self.left, exit=self.exit, host=self.host)


@dataclass(eq=False, slots=True)
class Session:
    """One open stream of one host."""

    hello: worker_pb2.WorkerHello
    out: list[worker_pb2.ServerItem] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = False
    denied: Callable[[str, str], None] | None = None
    """Hears that it spoke for another, of whom, and what; None: nobody does."""
    closed: bool = False

    def send(self, item: worker_pb2.ServerItem) -> bool:
        """Queue an item; False when the stream is over or its peer does not read."""
        if self.closed or len(self.out) >= OUT_LIMIT:
            return False
        self.out.append(item)
        self.wake.set()
        return True

    def close(self) -> None:
        """End the stream once what is queued was sent."""
        self.closed = True
        self.wake.set()

    async def responses(self) -> AsyncIterator[worker_pb2.WorkerServiceConnectResponse]:
        """What is queued, in messages of bounded number and size, until the session is closed."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.out:
                count = _fitting(self.out)
                batch, self.out = self.out[:count], self.out[count:]
                yield worker_pb2.WorkerServiceConnectResponse(items=batch)
            if self.closed:
                return


def _fitting(items: Sequence[worker_pb2.ServerItem]) -> int:
    """How many of these go into one message: at least one."""
    size = 0
    for count, item in enumerate(items[:BATCH]):
        size += item.ByteSize()
        if size > BATCH_BYTES:
            return max(1, count)
    return min(BATCH, len(items))


class _Watch:
    """What one backend is still to hear. Of all snapshots that wait it gets one, the newest."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[WatchItem | None] = asyncio.Queue(WATCH_LIMIT)
        self._room_is_news = False

    def room(self) -> None:
        """Capacity is another."""
        if not self._room_is_news:
            self._room_is_news = True
            self._put(None)

    def tell(self, item: WatchItem) -> None:
        """Something happened."""
        self._put(item)

    def _put(self, item: WatchItem | None) -> None:
        if self._items.full():
            while not self._items.empty():
                self._items.get_nowait()
            self._room_is_news = True
            self._items.put_nowait(None)
            self._items.put_nowait(Gap())
        self._items.put_nowait(item)

    async def next(self) -> WatchItem | None:
        """What comes next; None: a snapshot of now."""
        item = await self._items.get()
        if item is None:
            self._room_is_news = False
        return item


class HostStore(Protocol):
    """What is kept of hosts."""

    @property
    def identity(self) -> ServerIdentity:
        """Of this installation."""
        ...

    async def hosts(self) -> list[Host]:
        """All that were put and not deleted."""
        ...

    async def put_host(self, host: Host) -> None:
        """Keep a host's row."""
        ...

    async def delete_host(self, name: str) -> None:
        """Keep it no more."""
        ...


class Hub:
    """All hosts, connected or remembered. Implements `hatoba_plugins.backend.WorkerHub`.

    One `of_devices` has devices for hosts, and to do with the jobs that are for devices alone; any
    other with all other jobs. So a host and a device may have the same name.
    """

    def __init__(
        self, store: HostStore, clock: Clock, version: str, *, of_devices: bool = False
    ) -> None:
        self._of_devices = of_devices
        self._store = store
        self._clock = clock
        self._version = version
        self._hosts: dict[str, Host] = {}
        self._sessions: dict[str, Session] = {}
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By host: what is written of one is made of what was written before."""
        self._watchers: set[_Watch] = set()
        self._known: dict[str, Known] = {}
        self._holdings = Holdings()
        self._replicas = HostReplicas()
        self.attachments = Attachments()
        self._tails: dict[int, tuple[Session, asyncio.Future[worker_pb2.ReplicaTail | None]]] = {}
        self._asked = 0
        self.restored = store.identity.restored
        """The store came out of a backup and is not adopted: nothing is ended or forgotten."""
        self._told_all: set[Session] = set()

    def speaker(self, session: Session) -> str:
        """Who speaks on a stream: a host by its name, a device as `devices/NAME`."""
        host = session.hello.host
        return f"devices/{host}" if self._of_devices else host

    @property
    def clock(self) -> Clock:
        """What it tells the time by."""
        return self._clock

    async def recover(self, attempts: Iterable[Attempt] = ()) -> None:
        """Load the hosts that were known before; `attempts`: all of its jobs that are not over."""
        self._hosts = {host.name: host for host in await self._store.hosts()}
        for attempt in attempts:
            self._holdings.note(attempt)

    # -- the worker's stream --------------------------------------------------------------------

    async def open(self, hello: worker_pb2.WorkerHello) -> Session:
        """Begin a stream. Raises FailedPrecondition for a foreign or too new worker."""
        self._check(hello)
        async with self._writing[hello.host]:
            host = _host(hello, self._hosts.get(hello.host), round(self._clock.time() * 1e6))
            await self._store.put_host(host)
            self._hosts[host.name] = host
            former = self._sessions.pop(hello.host, None)
            if former is not None:
                former.close()
            session = self._sessions[hello.host] = Session(hello)
        welcome = worker_pb2.WorkerWelcome(
            cluster_id=self._store.identity.cluster_id,
            version=self._version,
            tell_ended=self.restored,
        )
        session.send(worker_pb2.ServerItem(welcome=welcome))
        log.info("host.connected", host=hello.host, incarnation=hello.incarnation)
        return session

    def _check(self, hello: worker_pb2.WorkerHello) -> None:
        if hello.protocol != PROTOCOL:
            raise FailedPrecondition(
                f"worker protocol {hello.protocol} is not spoken here, {PROTOCOL} is; "
                f"install hatoba {self._version} on the host",
                reason=Reason.VERSION_UNSUPPORTED,
            )
        ours = self._store.identity.cluster_id
        if hello.cluster_id and hello.cluster_id != ours:
            raise FailedPrecondition(
                f"this worker belongs to installation {hello.cluster_id}, this server is {ours}; "
                "give the worker a data directory of its own",
                reason=Reason.CLUSTER_MISMATCH,
            )

    def inventory_complete(self, session: Session, *, ended: bool = False) -> None:
        """The host has named all it holds: it may be sent work, and is observed anew.

        `ended`: it has named also what it holds no more.
        """
        if self._sessions.get(session.hello.host) is not session:
            return
        if ended:
            self._told_all.add(session)
            return
        session.ready = True
        for name, known in list(self._known.items()):
            if known.host == session.hello.host and known.session is not session:
                # Of one that ended the word that nothing is left may have been lost.
                del self._known[name]
        self._publish_room()
        self._publish(Gap(session.hello.host))
        self._replicas.touch(session.hello.host)

    def held(self, session: Session, held: worker_pb2.HeldAttempt) -> None:
        """A host names an attempt that it has, or had."""
        known = self._known.get(held.attempt)
        if held.HasField("outcome"):
            self._held_before(session, held, known)
            return
        if known is None:
            known = Known(session.hello.host, held.job_uid, held.index, held.number)
            self._known[held.attempt] = known
        known.session = session
        known.nonce, known.gpus = held.nonce, tuple(held.gpus)
        if known.phase < Phase.RUNNING:
            known.phase = Phase.RUNNING if held.started else known.phase

    def _held_before(
        self, session: Session, held: worker_pb2.HeldAttempt, known: Known | None
    ) -> None:
        named = parse_attempt(held.attempt)
        if known is not None or named is None or not self.restored:
            return
        self._known[held.attempt] = Known(
            session.hello.host,
            named.job_uid,
            named.index,
            named.number,
            Phase.ENDED,
            left=False,
            session=session,
            nonce=held.nonce,
            outcome=held.outcome,
        )

    def silent_hosts(self) -> list[str]:
        """Remembered hosts that have not named what ended on them, by name."""
        told = {session.hello.host for session in self._told_all if not session.closed}
        return sorted(self._hosts.keys() - told)

    def outcome(self, name: str) -> runner_pb2.CommitAttemptRequest | None:
        """How an attempt ended that its host has forgotten; None: it does not say so."""
        known = self._known.get(name)
        return known.outcome if known is not None else None

    def adopted(self) -> None:
        """What ran before is attached to its jobs: hosts say again what was not answered."""
        self.restored = False
        self._known = {n: known for n, known in self._known.items() if known.outcome is None}
        for session in list(self._sessions.values()):
            session.close()

    def started(self, name: str) -> None:
        """A host told that the user's code of an attempt began."""
        known = self._known.get(name)
        if known is not None and known.phase < Phase.RUNNING:
            known.phase = Phase.RUNNING
            self._publish(known.observation(name))

    def ended(self, name: str, exit_: Exit, left: bool) -> None:
        """A host told how an attempt ended, and whether something of it is left."""
        known = self._known.get(name)
        if known is not None and known.phase < Phase.ENDED:
            known.phase, known.exit, known.left = Phase.ENDED, exit_, left
            self._publish(known.observation(name))

    def left_nothing(self, name: str) -> None:
        """A host told that nothing of an attempt is left."""
        known = self._known.get(name)
        if known is None or not known.left:
            return
        known.left = False
        if known.phase < Phase.ENDED:
            del self._known[name]

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Forget attempts that were released; a listener of the ledger."""
        del events
        for commit in commits:
            if bool(commit.change.job.terms.devices) != self._of_devices:
                continue
            for attempt, _ in commit.change.attempts:
                if attempt.host not in self._hosts:
                    continue
                self._holdings.note(attempt)
                self._ask_to_save(commit.change.job, attempt)
                if attempt.release is Release.RELEASED:
                    self._known.pop(attempt.name, None)
                    self._replicas.touch(attempt.host)
            if commit.change.job.terms.gang:
                self._call_together(commit)

    def _call_together(self, commit: Commit) -> None:
        """The last of a gang has claimed: the others hear that they may ask again at once."""
        claims = (row for row, _ in commit.change.attempts if row.state is AttemptState.STARTING)
        if next(claims, None) is None or not gangs.all_claimed(commit.rows):
            return
        for member in gangs.current(commit.rows):
            session = self._sessions.get(member.host)
            if session is not None:
                again = runner_pb2.ClaimAttemptResponse(
                    attempt=member.name, verdict=runner_pb2.CLAIM_VERDICT_WAIT
                )
                session.send(worker_pb2.ServerItem(claimed=again))

    def _ask_to_save(self, job: Job, attempt: Attempt) -> None:
        """One that is to give way hears at once that it may save a checkpoint first."""
        session = self._sessions.get(attempt.host)
        now = round(self._clock.time() * 1e6)
        if session is None or not session.ready or not may_save(attempt, now):
            return
        order = runner_pb2.HeartbeatResponse(attempt=attempt.name)
        fill_order(order, job.stop_grace, attempt, now)
        session.send(worker_pb2.ServerItem(order=order))

    def is_current(self, session: Session) -> bool:
        """Whether this is the host's newest stream; items of an older one are dropped."""
        return self._sessions.get(session.hello.host) is session

    async def left(self, session: Session) -> None:
        """A stream ended; its host is remembered."""
        session.close()
        self._told_all.discard(session)
        if self._sessions.get(session.hello.host) is not session:
            return
        name = session.hello.host
        del self._sessions[name]
        log.info("host.left", host=name)
        self._publish_room()
        self._publish(Gap(name))
        self._replicas.touch(name)
        self._answer_none(session)
        last_seen = round(self._clock.time() * 1e6)
        await self._write(name, lambda host: replace(host, last_seen=last_seen))

    def close(self) -> None:
        """Tell all workers that the server goes away, and end their streams."""
        self.attachments.close()
        for session in self._sessions.values():
            going = worker_pb2.ServerGoingAway()
            going.after.FromMilliseconds(500)
            session.send(worker_pb2.ServerItem(going_away=going))
            session.close()

    # -- what backends use ----------------------------------------------------------------------

    def ready_hosts(self) -> list[str]:
        """Hosts that may be sent work now, by name."""
        return sorted(name for name in self._sessions if self.reachable(name))

    def send_launch(self, host: str, launch: worker_pb2.LaunchAttempt) -> bool:
        """Queue a launch on a host's stream; False when that host is not ready for dispatch."""
        session = self._sessions.get(host)
        if session is None or not session.ready:
            return False
        if not session.send(worker_pb2.ServerItem(launch=launch)):
            return False
        if launch.attempt not in self._known:
            self._known[launch.attempt] = Known(
                host, launch.job_uid, launch.index, launch.number, session=session
            )
        return True

    def send_stop(self, host: str, name: str, fence: int, grace: float) -> bool:
        """Queue a stop on a host's stream; False when that host is not connected."""
        session = self._sessions.get(host)
        if session is None or not session.ready:
            return False
        stop = worker_pb2.StopAttempt(attempt=name, fence=fence)
        stop.grace.FromMilliseconds(round(grace * 1000))
        return session.send(worker_pb2.ServerItem(stop=stop))

    def attach(
        self,
        host: str,
        order: worker_pb2.AttachAttempt,
        said: AsyncIterator[job_pb2.AttachInput],
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """Have a host attach somebody to an attempt. Raises Retry where it does not."""

        def send(item: worker_pb2.ServerItem) -> bool:
            session = self._sessions.get(host)
            return session is not None and session.ready and session.send(item)

        return self.attachments.open(host, order, said, send)

    def seen(self, name: str, host: str) -> Observation | None:
        """What is known of an attempt, on this host (empty: wherever it is); None: nothing yet."""
        known = self._known.get(name)
        where = host or (known.host if known else "")
        remembered = self._hosts.get(where)
        if remembered is not None and remembered.declared_gone:
            return _gone(name, where, f"Host {where!r} was declared gone.")
        if known is not None and known.phase >= Phase.ENDED:
            return known.observation(name)
        if where and not self.reachable(where):
            return Observation(name, Phase.EXISTS, exists=True, host=where, reachable=False)
        if known is not None:
            return known.observation(name)
        if not where and not all(map(self.reachable, self._hosts)):
            return None
        return _gone(name, where, f"Host {where!r} has nothing of it.")

    def reachable(self, host: str) -> bool:
        """Whether its stream is open and its inventory complete."""
        session = self._sessions.get(host)
        return session is not None and session.ready

    def owned(self) -> list[Owned]:
        """All attempts that hosts have, and ended ones that were not forgotten."""
        return [
            Owned(
                name,
                self._store.identity.cluster_id,
                known.job_uid,
                known.index,
                known.number,
                Handle(1, known.host),
                known.phase >= Phase.ENDED,
                known.host,
                known.gpus,
                known.nonce,
            )
            for name, known in self._known.items()
        ]

    def forget(self, name: str) -> None:
        """An ended attempt was released."""
        self._known.pop(name, None)

    async def watch(self) -> AsyncIterator[WatchItem]:
        """Snapshots of all hosts as they change, gaps when a host comes or goes."""
        watch = _Watch()
        self._watchers.add(watch)
        try:
            yield self.snapshot()
            for name, known in list(self._known.items()):
                yield known.observation(name)
            yield Synced()
            while True:
                item = await watch.next()
                yield self.snapshot() if item is None else item
        finally:
            self._watchers.discard(watch)

    def _publish(self, item: WatchItem) -> None:
        for watch in self._watchers:
            watch.tell(item)

    def _publish_room(self) -> None:
        for watch in self._watchers:
            watch.room()

    def snapshot(self) -> CapacitySnapshot:
        """All hosts as pools."""
        pools = tuple(self._pool(host) for host in self._hosts.values())
        return CapacitySnapshot(pools, elastic=False, as_of=self._clock.time())

    def _pool(self, host: Host) -> Pool:
        """A host as jobs see it: what replicas hold is not there for them."""
        held, gpus = self._replicas.held(host.name)
        return Pool(
            host.name,
            Share(*host.capacity.minus(held)),
            tuple(gpu for gpu in host.gpus if gpu not in gpus),
            host.labels,
            self._accepting(host),
            host.embedded,
            frozenset(host.secrets),
        )

    def _accepting(self, host: Host) -> bool:
        if host.cordoned or host.declared_gone or not self.reachable(host.name):
            return False
        return host.quarantined_until <= self._clock.time() * 1e6

    # -- replicas -------------------------------------------------------------------------------

    def hosts_for_replicas(self) -> list[HostRoom]:
        """All remembered hosts by name, connected or not, with what jobs leave of them."""
        return [self._room(host) for host in self.hosts()]

    def _room(self, host: Host) -> HostRoom:
        held, gpus = self._replicas.held(host.name)
        jobs = self._holdings.of(host.name)
        taken = gpus | jobs.gpus
        return HostRoom(
            host.name,
            connected=self.reachable(host.name),
            accepting=self._accepting(host),
            free=Share(*host.capacity.minus(jobs.amount.plus(held))),
            free_gpus=tuple(gpu for gpu in host.gpus if gpu not in taken),
            labels=host.labels,
            embedded=host.embedded,
            secrets=frozenset(host.secrets),
            declared_gone=host.declared_gone,
            draining=host.draining,
        )

    def order_replicas(self, host: str, replicas: Sequence[worker_pb2.ReplicaSpec]) -> bool:
        """Have a host keep exactly these replicas; False when it is not connected."""
        session = self._sessions.get(host)
        if session is None or not session.ready:
            return False
        before = self._replicas.held(host)
        sent = self._replicas.order(host, replicas, session, session.send)
        if self._replicas.held(host) != before:
            self._publish_room()
        return sent

    def replicas_told(self, session: Session, report: worker_pb2.ReplicaReport) -> None:
        """A host tells how its replicas are."""
        if self._replicas.report(session.hello.host, session, report):
            self._publish_room()

    def replicas(self, host: str) -> Mapping[str, deployment_pb2.Replica] | None:
        """Replicas that a host has, or may yet get by an order under way, by name."""
        return self._replicas.of(host)

    def watch_replicas(self) -> AsyncIterator[str]:
        """Names of hosts whose replicas, connection or room changed; first each that there is."""
        return self._replicas.watch(self._hosts)

    async def replica_tail(
        self, host: str, replica: str, stream: str, lines: int
    ) -> LogChunk | None:
        """The last lines of a replica's log; None when its host does not answer."""
        session = self._sessions.get(host)
        if session is None or not session.ready:
            return None
        self._asked += 1
        number = self._asked
        future: asyncio.Future[worker_pb2.ReplicaTail | None]
        future = asyncio.get_running_loop().create_future()
        self._tails[number] = session, future
        look = worker_pb2.TailReplica(request=number, replica=replica, stream=stream, lines=lines)
        session.send(worker_pb2.ServerItem(tail=look))
        try:
            async with asyncio.timeout(TAIL_TIMEOUT):
                found = await future
        except TimeoutError:
            found = None
        finally:
            del self._tails[number]
        return LogChunk(replica, stream, found.offset, found.data) if found else None

    def tail_told(self, tail: worker_pb2.ReplicaTail) -> None:
        """A host tells the last lines of a replica's log."""
        _, future = self._tails.get(tail.request, (None, None))
        if future is not None and not future.done():
            future.set_result(tail)

    def _answer_none(self, session: Session) -> None:
        for of, future in self._tails.values():
            if of is session and not future.done():
                future.set_result(None)

    # -- what operators use ---------------------------------------------------------------------

    def held_of(self, host: str) -> tuple[Resources, int]:
        """What attempts and replicas hold of a host, and how many attempts they are."""
        jobs = self._holdings.of(host)
        return jobs.amount.plus(self._replicas.held(host)[0]), jobs.attempts

    def hosts(self) -> list[Host]:
        """All hosts by name."""
        return [host for _, host in sorted(self._hosts.items())]

    def host(self, name: str) -> Host:
        """One host. Raises NotFound."""
        found = self._hosts.get(name)
        if found is None:
            raise NotFound(f"no host {name!r}; `hatoba hosts list` names those there are")
        return found

    async def cordon(
        self, name: str, cordoned: bool, reason: str = "", *, drain: bool = False
    ) -> Host:
        """Keep new work away from a host, or let it come again, also after a quarantine."""

        def change(host: Host) -> Host:
            return replace(
                host,
                cordoned=cordoned,
                draining=cordoned and drain,
                cordon_reason=reason if cordoned else "",
                quarantined_until=host.quarantined_until if cordoned else 0,
            )

        return await self._changed(name, change)

    async def quarantine(self, name: str, until: Micros, reason: str) -> Host:
        """Keep new work away from a host for a while; `until` in the past ends that now.

        When the time has come, it is to be called once more, with 0.
        """

        def change(host: Host) -> Host:
            why = host.cordon_reason if host.cordoned else reason
            return replace(host, quarantined_until=until, cordon_reason=why)

        return await self._changed(name, change)

    async def declare_gone(self, name: str) -> Host:
        """Evidence that a host is gone for good. Raises FailedPrecondition while connected."""

        def change(host: Host) -> Host:
            if name in self._sessions:
                raise FailedPrecondition(f"host {name!r} is connected; stop its worker first")
            return replace(host, declared_gone=True)

        return await self._changed(name, change)

    async def remove(self, name: str) -> Host:
        """Forget a host. Raises NotFound, and FailedPrecondition while it has or may have work."""
        host = self.host(name)
        async with self._writing[name]:
            self.check_idle(host)
            session = self._sessions.pop(name, None)
            if session is not None:
                session.close()
                self._answer_none(session)
            await self._store.delete_host(name)
            self._hosts.pop(name, None)
        self._replicas.forget(name)
        self._publish_room()
        self._publish(Gap(name))
        return host

    def check_idle(self, host: Host) -> None:
        """Raise FailedPrecondition for a host that has work, or may get some by an order."""
        if host.embedded:
            raise FailedPrecondition(f"host {host.name!r} is this server's own")
        held, attempts = self.held_of(host.name)
        if attempts or held != Resources() or self._replicas.of(host.name):
            raise FailedPrecondition(
                f"host {host.name!r} still has work; `hatoba hosts drain` it first, or, when the "
                "machine is gone for good, `hatoba hosts declare-gone` it",
                reason=Reason.NOT_EMPTY,
            )

    async def _changed(self, name: str, change: Callable[[Host], Host]) -> Host:
        hit("host.cordon.before")
        host = await self._write(name, change)
        hit("host.cordon.after")
        if host.declared_gone:
            self._replicas.lost(host.name)
        self._publish_room()
        self._publish(Gap(host.name))
        self._replicas.touch(host.name)
        return host

    async def _write(self, name: str, change: Callable[[Host], Host]) -> Host:
        """Store a host as it is changed to. Raises NotFound, and whatever `change` does."""
        self.host(name)
        async with self._writing[name]:
            host = change(self.host(name))
            await self._store.put_host(host)
            self._hosts[name] = host
            return host


def _gone(name: str, host: str, message: str) -> Observation:
    lost = Exit(ExitKind.LOST, message=message)
    return Observation(name, Phase.GONE, exists=False, exit=lost, host=host)


def _host(hello: worker_pb2.WorkerHello, known: Host | None, now: int) -> Host:
    return Host(
        name=hello.host,
        boot_id=hello.boot_id,
        keeper=hello.keeper,
        capacity=Resources(
            hello.cpus,
            hello.memory_bytes,
            len(hello.gpus),
            hello.slots,
            tuple(sorted((name, amount) for name, amount in hello.named.items() if amount > 0)),
        ),
        gpus=tuple(hello.gpus),
        labels=tuple(sorted(hello.labels.items())),
        secrets=tuple(sorted(hello.secrets)),
        version=hello.version,
        embedded=hello.embedded,
        cordoned=known.cordoned if known else False,
        last_seen=now,
        address=hello.address,
        draining=known.draining if known else False,
        cordon_reason=known.cordon_reason if known else "",
        quarantined_until=known.quarantined_until if known else 0,
    )
