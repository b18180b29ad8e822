"""The worker: hears the server, sees the keeper, and sends each attempt on its course."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_worker import gpus, host, trees
from hatoba_worker.absence import Absence
from hatoba_worker.attaching.opening import Opener
from hatoba_worker.attaching.sessions import Sessions
from hatoba_worker.attempts import Attempt, Book, GangPlace
from hatoba_worker.burials import Burials
from hatoba_worker.config import Config
from hatoba_worker.course import Course, Parts, Way, gone_item, started_item
from hatoba_worker.dial import Connection, Locator
from hatoba_worker.environments import Environments
from hatoba_worker.executors.both import Executors
from hatoba_worker.executors.containers import choosing
from hatoba_worker.executors.containers.contained import Contained
from hatoba_worker.executors.containers.executor import ContainerExecutor
from hatoba_worker.executors.containers.images import Images
from hatoba_worker.executors.process import ProcessExecutor
from hatoba_worker.gang_ports import GangPorts
from hatoba_worker.homes import Homes
from hatoba_worker.host_secrets import Secrets
from hatoba_worker.keeper.ensure import release
from hatoba_worker.keeper.messages import AttemptStatus, Exited, KeeperInfo
from hatoba_worker.logs import FILES, LogShipper
from hatoba_worker.replicas import probe
from hatoba_worker.replicas.fleet import Fleet
from hatoba_worker.replicas.life import Tools
from hatoba_worker.replicas.staging import ReplicaStager
from hatoba_worker.reports import Reporter
from hatoba_worker.server_transfers import ServerTransfers
from hatoba_worker.session import Items, Session
from hatoba_worker.spans import Spans
from hatoba_worker.staging import Stager
from hatoba_worker.streams_in import InputStreams
from hatoba_worker.timeouts import Timeouts
from hatoba_worker.trees import TreeCache
from hatoba_worker.vitals import Vitals

if TYPE_CHECKING:
    from hatoba_worker.known_by import KnownBy

log = structlog.get_logger(__name__)

SECRETS_EVERY = 2.0

PROTOCOL = 1
_SAVE_AGAIN = 1.0
_GRANTED = runner_pb2.CLAIM_VERDICT_GRANTED
_WAIT = runner_pb2.CLAIM_VERDICT_WAIT


class AlreadyRuns(Exception):
    """Another worker has the data directory."""


def hold(data: Path) -> int:
    """Take the data directory for this worker until the handle is closed; raises AlreadyRuns."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(data / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise AlreadyRuns(f"another worker runs on {data}") from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


class Worker:
    """One run of the worker of a data directory."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self._config = config
        self._environ = environ
        self._known_by = _known_by(config)
        name = self._known_by.host if self._known_by else config.name
        self._identity = host.Identity.load(config.data, name, embedded=config.embedded)
        self._boot = host.boot_id()
        self._incarnation = uuid.uuid4().hex
        self._gpus = gpus.found(config.gpus)
        self._secrets = Secrets(config.data, environ)
        self._book = Book(config.data, self._boot, lambda: uuid.uuid4().hex)
        self._rebooted = False
        self._keeper = ""
        self._orphans: set[str] = set()
        self._settled = asyncio.Event()
        self._unsaved: list[Attempt] = []
        self._courses: dict[str, asyncio.Task[None]] = {}
        self._resaving = False
        self._secret_names: list[str] = []
        self._ports = GangPorts(config.reached_at)
        self._gathering: dict[str, asyncio.TimerHandle] = {}
        """Members of gangs that ask again later whether the others have claimed."""
        self._called: set[str] = set()
        """Members that heard that all have claimed before they had an answer to their own claim."""
        self._absence = Absence(config.data, self._boot)
        self._engine = choosing.socket_of(config.engine, environ)
        self._engine_told = False
        self._containers_known = False
        """Whether the engine has told of all containers once."""
        self._adrift: set[str] = set()
        """Containers that no journal speaks of, until they are gone."""

    async def run(self) -> None:
        """Work until cancelled; what runs goes on without us."""
        async with asyncio.TaskGroup() as tasks:
            self._assemble(tasks)
            await asyncio.to_thread(self._recover)
            tasks.create_task(self._environments.warm_up(), name="probe interpreter")
            tasks.create_task(self._processes.run(), name="keeper")
            if self._engine:
                tasks.create_task(self._containers.run(), name="engine")
            tasks.create_task(self._session.run(), name="server")
            tasks.create_task(self._shipper.poll(), name="poll logs")
            tasks.create_task(self._reporter.poll(), name="poll spools")
            tasks.create_task(self._vitals.beat(), name="heartbeats")
            tasks.create_task(self._vitals.listen(), name="signs of life")
            tasks.create_task(self._vitals.send_spans(), name="spans")
            tasks.create_task(self._watch_secrets(), name="secrets")
            tasks.create_task(self._fleet.run(), name="replicas")
            tasks.create_task(self._fleet.bound_logs(), name="replicas' logs")
            if self._known_by is not None:
                renewing = self._known_by.renew(self._session)
                tasks.create_task(renewing, name="certificates")

    def holds(self) -> bool:
        """Whether something of a job is here that is not told and done with."""
        return bool(self._book.live)

    def _assemble(self, tasks: asyncio.TaskGroup) -> None:
        config, data = self._config, self._config.data
        self._tasks = tasks
        credential = self._known_by.credential if self._known_by else _claim(config)
        locator = Locator(data, config.server, config.token_path, config.ca_file, credential)
        self._session = Session(locator, self)
        self._processes = ProcessExecutor(data, self, asyncio.sleep)
        key = choosing.key_of(self._identity.name, data)
        self._containers = ContainerExecutor(self._engine, key, self, asyncio.sleep)
        self._executor = Executors(self._processes, self._containers)
        opener = Opener(self._book, self._processes, self._containers)
        self._attached = Sessions(self._session.link, opener.open, tasks)
        contained = self._contained(tasks) if self._engine else None
        transfers = ServerTransfers(self._session)
        self._environments = Environments(data, self._environ, tasks, embedded=config.embedded)
        cache = TreeCache(data / "cache" / "trees", transfers, config.cache_limit_bytes)
        self._homes = Homes(data / "attempts", {FILES["stdout"], FILES["stderr"]})
        self._stager = Stager(
            data,
            self._environ,
            self._homes,
            cache,
            self._environments,
            self._secrets,
            host_has_gpus=bool(self._gpus.ids),
            contained=contained,
        )
        self._fleet = Fleet(data, self._identity.name, self._session.send)
        self._fleet.begin(self._replica_tools(cache, contained), tasks)
        self._shipper = LogShipper(self._book, limit=config.log_limit_bytes)
        self._reporter = Reporter(self._book, self._session, transfers, tasks)
        spans = Spans()
        self._vitals = Vitals(self._book, self._executor, self._session, spans, self._absence)
        burials = Burials(
            self._book, self._homes, self._executor, self._environments, tasks, self._save
        )
        self._course = Course(
            Parts(
                book=self._book,
                executor=self._executor,
                session=self._session,
                stager=self._stager,
                shipper=self._shipper,
                reporter=self._reporter,
                transfers=transfers,
                spans=spans,
                timeouts=Timeouts(),
                absence=self._absence,
                burials=burials,
                streams=InputStreams(transfers, tasks),
            )
        )

    def _contained(self, tasks: asyncio.TaskGroup) -> Contained:
        config = self._config
        images = Images(
            self._containers, self._secrets, config.registries, config.data / "images", tasks
        )
        return Contained(images, choosing.mounts_of(config.mounts))

    def _replica_tools(self, cache: TreeCache, contained: Contained | None) -> Tools:
        stager = ReplicaStager(
            self._config.data,
            self._environ,
            cache,
            self._environments,
            self._secrets,
            serve_address=self._config.serves_at,
            serving_tls=self._known_by.serving if self._known_by else lambda: None,
            host_has_gpus=bool(self._gpus.ids),
            contained=contained,
        )
        known_by = self._known_by
        ask = probe.prober(known_by.caller if known_by else lambda: None)
        return Tools(self._executor, stager, ask, asyncio.sleep, time.time)

    def _recover(self) -> None:
        """Read the journal, and clear away what belongs to nothing."""
        data = self._config.data
        homes = data / "attempts"
        for directory in (homes, data / "cache" / "trees"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._rebooted = self._book.load()
        self._absence.load()
        trees.tidy(data / "cache" / "trees")
        self._stager.prepare()
        self._environments.tidy()
        self._fleet.load()
        for path in homes.iterdir():
            if path.name not in self._book.live:
                shutil.rmtree(path, ignore_errors=True)
        self._homes.prepare()

    # -- the keeper -----------------------------------------------------------------------------

    def inventory(self, info: KeeperInfo, held: dict[str, AttemptStatus]) -> None:
        """The keeper is there: everything is taken up from where it stands."""
        changed = self._keeper not in ("", info.incarnation)
        self._keeper = info.incarnation
        self._settled.clear()
        ours = self._fleet.take_up(held) | self._book.live.keys()
        self._orphans = held.keys() - ours
        for name in list(self._orphans):
            self._end_orphan(name, held[name])
        for attempt in list(self._book.live.values()):
            if not attempt.contained:
                self._take_up(attempt, held.get(attempt.name))
        self._settle()
        if changed:
            # The server learns from a new hello that an old keeper's attempts are over.
            self._session.hang_up()

    # -- the engine -----------------------------------------------------------------------------

    def containers(self, held: dict[str, AttemptStatus]) -> None:
        """The engine is there: its containers are taken up from where they stand."""
        self._containers_known = True
        ours = self._fleet.take_up(held, contained=True)
        live = [attempt for attempt in self._book.live.values() if attempt.contained]
        for attempt in live:
            begun = attempt.begun is not None
            self._take_up(attempt, self._after_boot(held.get(attempt.name)))
            if attempt.begun is not None and not begun:
                self._session.send(started_item(attempt))
        self._adrift = held.keys() - ours - {attempt.name for attempt in live}
        for name in list(self._adrift):
            self._end_adrift(name, held[name])

    def _after_boot(self, status: AttemptStatus | None) -> AttemptStatus | None:
        """What did not end well before the machine was started anew was ended by that."""
        ended_well = status and status.exit and status.exit.exit_code == 0
        if status is None or ended_well or not self._rebooted:
            return status
        return replace(status, exit=None, lost=True, gone=True)

    def _end_adrift(self, name: str, status: AttemptStatus) -> None:
        if status.gone:
            self._adrift.discard(name)
            self._containers.forget(name)
        else:
            self._containers.stop(name, 0.0)

    def lost(self, name: str) -> None:
        """Nothing of a container is left, and nobody saw how it ended."""
        attempt = self._book.live.get(name)
        if attempt is not None:
            attempt.lost = True
            attempt.ended.set()
        self.gone(name)

    def engine_changed(self) -> None:
        """The server learns from a new hello whether containers can run here."""
        now = self._containers.facts is not None
        if now != self._engine_told and self._session.greeted:
            self._session.hang_up()

    # -- the keeper again -----------------------------------------------------------------------

    def _end_orphan(self, name: str, status: AttemptStatus) -> None:
        """A process that no journal speaks of: it must be gone before we say what we have."""
        if status.gone:
            self._orphans.discard(name)
            self._executor.forget(name)
        else:
            self._executor.stop(name, 0.0)

    def _settle(self) -> None:
        if not self._orphans:
            self._settled.set()

    def _take_up(self, attempt: Attempt, status: AttemptStatus | None) -> None:
        if status is not None:
            attempt.learn(status)
        elif attempt.begun is not None:
            # Its keeper lost its memory, and ended what it had no record of.
            attempt.lost = attempt.exit is None
            attempt.ended.set()
            attempt.is_gone.set()
        if attempt.name in self._courses:
            return
        if attempt.dropped:
            self._go(attempt, self._course.discard)
        elif status is not None and status.failed is None:
            attempt.granted = True
            self._go(attempt, self._course.resume)
        elif self._rebooted:
            attempt.is_gone.set()
            self._go(attempt, self._course.lose)
        elif "claim" not in attempt.unanswered:
            self._claim(attempt)

    def exited(self, event: Exited) -> None:
        """The main process of an attempt ended."""
        attempt = self._book.live.get(event.attempt)
        if attempt is not None:
            attempt.exit = event.exit
            attempt.ended.set()
        elif self._fleet.exited(event):
            return
        if event.gone:
            self.gone(event.attempt)

    def gone(self, name: str) -> None:
        """Nothing of an attempt is left."""
        attempt = self._book.live.get(name)
        if attempt is not None:
            attempt.is_gone.set()
        elif name in self._orphans:
            self._orphans.discard(name)
            self._executor.forget(name)
            self._settle()
        elif name in self._adrift:
            self._adrift.discard(name)
            self._containers.forget(name)
        else:
            self._fleet.gone(name)

    # -- the server -----------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return when it is known what this host holds."""
        await self._settled.wait()
        if self._engine:
            await self._containers.tried.wait()
        self._secret_names = await asyncio.to_thread(self._secrets.names)

    async def _watch_secrets(self) -> None:
        """The server learns of secrets that came or went from a new hello."""
        while True:
            await asyncio.sleep(SECRETS_EVERY)
            names = await asyncio.to_thread(self._secrets.names)
            if self._session.greeted and names != self._secret_names:
                self._session.hang_up()

    def greeting(self) -> list[worker_pb2.WorkerItem]:
        """Hello, inventory, and everything that was not answered."""
        live = self._book.live.values()
        items = [worker_pb2.WorkerItem(hello=self._hello())]
        items += [worker_pb2.WorkerItem(held=_held(attempt)) for attempt in live]
        items.append(worker_pb2.WorkerItem(inventory_complete=worker_pb2.InventoryComplete()))
        items += self._fleet.report()
        for attempt in live:
            if attempt.begun is not None and "commit" not in attempt.unanswered:
                items.append(started_item(attempt))
            items += attempt.unanswered.values()
        return items

    def _hello(self) -> worker_pb2.WorkerHello:
        cpus, memory, slots = self._config.resolved()
        self._engine_told = self._containers.facts is not None
        labels = dict(self._config.labels)
        if self._containers.facts is not None:
            labels[choosing.LABEL] = "docker"
        if self._gpus.product:
            labels[gpus.PRODUCT_LABEL] = self._gpus.product
        return worker_pb2.WorkerHello(
            host=self._identity.name,
            incarnation=self._incarnation,
            boot_id=self._boot,
            keeper=self._keeper,
            protocol=PROTOCOL,
            cluster_id=self._identity.cluster_id,
            version=release(),
            cpus=cpus,
            memory_bytes=memory,
            gpus=self._gpus.ids,
            slots=slots,
            labels=labels,
            secrets=self._secret_names,
            embedded=self._config.embedded,
            named=self._config.named,
            address=self._config.reached_at,
        )

    async def serve(self, link: Connection) -> None:
        """Ship logs while the stream is open."""
        await self._shipper.serve(link)

    def heard(self, items: Items) -> None:
        """What the server said, in order."""
        self._absence.heard()
        for item in items:
            match item.WhichOneof("item"):
                case "launch":
                    self._launched(item.launch)
                case "claimed":
                    self._claimed(item.claimed)
                case "committed":
                    self._committed(item.committed)
                case "metrics_stored":
                    self._metrics_stored(item.metrics_stored)
                case "checkpoint_stored":
                    self._checkpoint_stored(item.checkpoint_stored)
                case "stop":
                    self._stop(item.stop)
                case "order":
                    self._ordered(item.order)
                case "drop":
                    self._drop(item.drop.attempt)
                case _:
                    self._heard_of_host(item)
        self._save()

    def _heard_of_host(self, item: worker_pb2.ServerItem) -> None:
        match item.WhichOneof("item"):
            case "going_away":
                self._session.hang_up(item.going_away.after.ToTimedelta().total_seconds())
            case "welcome":
                self._welcomed(item.welcome)
            case "replicas":
                self._fleet.ordered(item.replicas)
            case "tail":
                self._fleet.tail(item.tail)
            case "attach":
                self._attached.ordered(item.attach)

    def _welcomed(self, welcome: worker_pb2.WorkerWelcome) -> None:
        if self._identity.cluster_id != welcome.cluster_id:
            self._identity.cluster_id = welcome.cluster_id
            saving = asyncio.to_thread(self._identity.save)
            self._tasks.create_task(saving, name="save identity")
        if welcome.tell_ended:
            self._tasks.create_task(self._tell_ended(), name="tell what ended")

    async def _tell_ended(self) -> None:
        """Name what is forgotten here, for a server that knows less than we told it."""
        commits = await asyncio.to_thread(lambda: list(self._book.tombstones.commits()))
        for commit in commits:
            outcome = runner_pb2.CommitAttemptRequest.FromString(commit)
            held = worker_pb2.HeldAttempt(
                attempt=outcome.attempt,
                fence=outcome.fence,
                claimed=True,
                started=True,
                nonce=outcome.nonce,
                outcome=outcome,
            )
            self._session.send(worker_pb2.WorkerItem(held=held))
        complete = worker_pb2.InventoryComplete(ended=True)
        self._session.send(worker_pb2.WorkerItem(inventory_complete=complete))

    def _launched(self, launch: worker_pb2.LaunchAttempt) -> None:
        attempt = self._book.enter(launch)
        if attempt is not None:
            self._unsaved.append(attempt)
        elif launch.attempt not in self._book.live:
            outcome = self._book.tombstones.get(launch.attempt)
            log.info("launch.refused", attempt=launch.attempt, outcome=outcome)
            self._session.send(gone_item(launch.attempt, launch.fence))

    def _claim(self, attempt: Attempt) -> None:
        claim = runner_pb2.ClaimAttemptRequest(
            attempt=attempt.name, fence=attempt.fence, nonce=attempt.nonce
        )
        if attempt.launch.gang_size:
            claim.address = self._ports.address_of(attempt.name)
        attempt.unanswered["claim"] = worker_pb2.WorkerItem(claim=claim)
        self._session.send(attempt.unanswered["claim"])

    def _claimed(self, answer: runner_pb2.ClaimAttemptResponse) -> None:
        attempt = self._book.live.get(answer.attempt)
        if attempt is None:
            return
        wait = answer.retry_after.ToTimedelta().total_seconds()
        if answer.verdict == _WAIT and not wait:
            self._called_together(attempt)
            return
        if attempt.unanswered.pop("claim", None) is None:
            return
        called = answer.attempt in self._called
        self._called.discard(answer.attempt)
        if answer.verdict == _WAIT:
            loop, wait = asyncio.get_running_loop(), 0.0 if called else wait
            timer = loop.call_later(wait, self._claim_again, attempt)
            self._gathering[attempt.name] = timer
            return
        self._ports.free(attempt.name)
        if answer.verdict != _GRANTED:
            self._session.send(gone_item(attempt.name, attempt.fence))
            self._course.forget(attempt, runner_pb2.ClaimVerdict.Name(answer.verdict))
            return
        attempt.granted = True
        if answer.members:
            addresses = tuple(member.address for member in answer.members)
            attempt.gang = GangPlace(attempt.launch.index, answer.generation, addresses)
        restore = answer.checkpoint if answer.HasField("checkpoint") else None
        self._go(attempt, lambda one: self._course.begin(one, restore))

    def _called_together(self, attempt: Attempt) -> None:
        """Told unasked: the last of its gang has claimed."""
        timer = self._gathering.get(attempt.name)
        if timer is not None:
            timer.cancel()
            self._claim_again(attempt)
        elif "claim" in attempt.unanswered:
            self._called.add(attempt.name)

    def _claim_again(self, attempt: Attempt) -> None:
        """The others of its gang may have claimed by now."""
        self._gathering.pop(attempt.name, None)
        live = self._book.live.get(attempt.name) is attempt
        if live and not attempt.granted and not attempt.dropped:
            self._claim(attempt)

    def _committed(self, answer: runner_pb2.CommitAttemptResponse) -> None:
        attempt = self._book.live.get(answer.attempt)
        if attempt is not None and attempt.unanswered.pop("commit", None) is not None:
            attempt.committed.set()

    def _metrics_stored(self, answer: runner_pb2.ReportMetricsResponse) -> None:
        attempt = self._book.live.get(answer.attempt)
        if attempt is not None:
            self._reporter.stored(attempt, answer.acked_report)

    def _checkpoint_stored(self, answer: runner_pb2.CommitCheckpointResponse) -> None:
        attempt = self._book.live.get(answer.attempt)
        if attempt is not None:
            self._reporter.checkpoint_stored(attempt, answer.step)

    def _stop(self, order: worker_pb2.StopAttempt) -> None:
        attempt = self._book.live.get(order.attempt)
        grace = order.grace.ToTimedelta().total_seconds()
        if attempt is not None:
            self._course.stop(attempt, "stop", grace)
            return
        # Its launch may still be on the way: the name is remembered to refuse it.
        if order.attempt not in self._book.tombstones:
            self._book.forget(order.attempt, "STOPPED")
        self._session.send(gone_item(order.attempt, order.fence))

    def _ordered(self, order: runner_pb2.HeartbeatResponse) -> None:
        attempt = self._book.live.get(order.attempt)
        grace = order.grace.ToTimedelta().total_seconds()
        if attempt is not None and order.order == runner_pb2.RUNNER_ORDER_STOP:
            self._course.stop(attempt, "stop", grace)
        elif attempt is not None and order.order == runner_pb2.RUNNER_ORDER_CHECKPOINT:
            self._course.ask_to_save(attempt, grace)

    def _drop(self, name: str) -> None:
        attempt = self._book.live.get(name)
        if attempt is None or attempt.dropped:
            return
        if attempt.ended.is_set():
            # The server is done with its end; what it wrote may still be wanted.
            attempt.committed.set()
            return
        self._book.dropped(attempt)
        self._ports.free(name)
        self._called.discard(name)
        if attempt.contained and not self._containers_known:
            # Whether it runs is not known: whoever takes it up sees the mark.
            return
        if self._course.drop(attempt):
            return
        course = self._courses.pop(name, None)
        if course is not None:
            course.cancel()
        self._go(attempt, self._course.discard)

    # -- courses --------------------------------------------------------------------------------

    def _go(self, attempt: Attempt, way: Callable[[Attempt], Way]) -> None:
        task = self._tasks.create_task(self._along(attempt, way), name=attempt.name)
        self._courses[attempt.name] = task

    async def _along(self, attempt: Attempt, way: Callable[[Attempt], Way]) -> None:
        try:
            await way(attempt)
        except Exception as error:
            log.exception("attempt.given_up", attempt=attempt.name)
            await self._course.give_up(attempt, repr(error))
        finally:
            if self._courses.get(attempt.name) is asyncio.current_task():
                del self._courses[attempt.name]

    def _save(self) -> None:
        """Put the journal on disk; only then claims may go out. A full disk is waited for."""
        try:
            self._book.save()
        except OSError as error:
            log.error("journal.full", error=str(error))
            if not self._resaving:
                self._resaving = True
                asyncio.get_running_loop().call_later(_SAVE_AGAIN, self._save_again)
            return
        claims, self._unsaved = self._unsaved, []
        for attempt in claims:
            self._claim(attempt)

    def _save_again(self) -> None:
        self._resaving = False
        self._save()


def _known_by(config: Config) -> KnownBy | None:
    """By what the server knows a worker that joined; the libraries for it take their time."""
    if not config.joined:
        return None
    from hatoba_worker.known_by import KnownBy

    return KnownBy.load(config)


def _claim(config: Config) -> Callable[[], str] | None:
    """What a device's worker shows: a name, which the way that it goes proves."""
    return (lambda: f"dc_{config.device}") if config.device else None


def _held(attempt: Attempt) -> worker_pb2.HeldAttempt:
    return worker_pb2.HeldAttempt(
        attempt=attempt.name,
        fence=attempt.fence,
        claimed=attempt.granted,
        started=attempt.begun is not None,
        job_uid=attempt.launch.job_uid,
        index=attempt.launch.index,
        number=attempt.launch.number,
        nonce=attempt.nonce,
        gpus=attempt.launch.gpus,
    )
