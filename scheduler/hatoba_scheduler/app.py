"""Puts the parts together: the only place that knows them all.

Order of start: directory and store, identities, what was unfinished, backends, loops, ports; then
SERVING. The stop goes backwards: refuse what is new, end streams, finish calls, end loops, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import hashlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hatoba import __version__
from hatoba.router_port import router_address
from hatoba.sampling import RateSampler
from hatoba.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifact_pb2_grpc,
    dataset_pb2_grpc,
    deployment_pb2_grpc,
    device_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    model_pb2_grpc,
    queue_pb2_grpc,
    runner_pb2_grpc,
    schedule_pb2_grpc,
    webhook_pb2_grpc,
    worker_pb2_grpc,
)
from hatoba_plugins.backend import Backend, BackendContext, BringsRecords, SignsDevices
from hatoba_plugins.budgets import Budget, Budgets
from hatoba_plugins.clock import SystemClock
from hatoba_scheduler import failpoints
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.authority import Authority
from hatoba_scheduler.auth.device_credentials import PREFIX as DEVICE_PREFIX
from hatoba_scheduler.auth.device_credentials import Audit, DeviceGate
from hatoba_scheduler.auth.device_renewals import PREFIX as RENEWAL_PREFIX
from hatoba_scheduler.auth.device_renewals import DeviceRenewals
from hatoba_scheduler.auth.files import ensure_token_files
from hatoba_scheduler.auth.host_credentials import PREFIX as HOST_PREFIX
from hatoba_scheduler.auth.host_credentials import HostCredentials
from hatoba_scheduler.auth.runner_credentials import PREFIX as RUNNER_PREFIX
from hatoba_scheduler.auth.runner_credentials import RunnerCredentials
from hatoba_scheduler.auth.runner_keys import RunnerKeys
from hatoba_scheduler.auth.runner_scopes import RunnerGate
from hatoba_scheduler.auth.server_secrets import ServerSecrets, without
from hatoba_scheduler.backends import Backends, loop_settings, open_backends
from hatoba_scheduler.config import Address, Config, ConfigError, LimitsConfig
from hatoba_scheduler.control.activity import Activity
from hatoba_scheduler.control.admission import Grounds
from hatoba_scheduler.control.adoption import Adoption
from hatoba_scheduler.control.alias_follower import AliasFollower
from hatoba_scheduler.control.aliases import Aliases
from hatoba_scheduler.control.assignments import Assignments
from hatoba_scheduler.control.backend_book import BackendBook
from hatoba_scheduler.control.backend_loop import BackendLoop
from hatoba_scheduler.control.backups import Backups
from hatoba_scheduler.control.checking import StoreCheck
from hatoba_scheduler.control.counts import JobCounts
from hatoba_scheduler.control.deployables import ServingGrounds
from hatoba_scheduler.control.deployment_loop import DeploymentLoop
from hatoba_scheduler.control.deployments import DeploymentBook
from hatoba_scheduler.control.device_figures import DeviceFigures
from hatoba_scheduler.control.device_hub import DeviceHub
from hatoba_scheduler.control.device_kept import KeptLoop
from hatoba_scheduler.control.device_records import DeviceRecordDesk
from hatoba_scheduler.control.device_targets import DeviceGrounds
from hatoba_scheduler.control.device_work import DeviceWork, Unkept
from hatoba_scheduler.control.devices import DeviceBook
from hatoba_scheduler.control.disconnects import Disconnects
from hatoba_scheduler.control.disk_watch import DiskWatch
from hatoba_scheduler.control.dispatch import Dispatcher, Site
from hatoba_scheduler.control.draining import Drainer, Drains, host_place, queue_places
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.exits import Exits
from hatoba_scheduler.control.figures import Figures
from hatoba_scheduler.control.fleet_loop import FleetLoop
from hatoba_scheduler.control.followers import Followers
from hatoba_scheduler.control.gang_clock import GangClock
from hatoba_scheduler.control.garbage import Garbage
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.ids import UidMaker
from hatoba_scheduler.control.instance import Elsewhere, LoopContext
from hatoba_scheduler.control.latecomers import Latecomers
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logged_models import LoggedModels
from hatoba_scheduler.control.logs import LogStore
from hatoba_scheduler.control.metrics import MetricWriter
from hatoba_scheduler.control.model_versions import register_models
from hatoba_scheduler.control.overview import Overviewer, OverviewParts, Reports
from hatoba_scheduler.control.predictions import Append, PredictionDesk
from hatoba_scheduler.control.publisher import Publisher
from hatoba_scheduler.control.quarantine import Quarantine
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.control.registrar import Registrar, RegistrarParts
from hatoba_scheduler.control.routes import RouteFeed
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.control.schedule_book import ScheduleBook
from hatoba_scheduler.control.schedules import ScheduleParts, Schedules
from hatoba_scheduler.control.shares import ShareKeeper
from hatoba_scheduler.control.sources import Sources, register_stored
from hatoba_scheduler.control.spans import AttemptSpans
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.control.submit import JobMaker
from hatoba_scheduler.control.sweep import sweep, turn_keys
from hatoba_scheduler.control.timers import Timers
from hatoba_scheduler.control.usage import QueueUsages
from hatoba_scheduler.control.webhooks import Webhooks
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.convert_deployments import ReplicaCredential
from hatoba_scheduler.device_port import DevicePort
from hatoba_scheduler.domain.blame import Blame
from hatoba_scheduler.domain.planning.model import PlannerRules
from hatoba_scheduler.domain.records import Attempt, BackendNote
from hatoba_scheduler.domain.states import Release
from hatoba_scheduler.interceptors import (
    Admission,
    CallLimits,
    Front,
    Phase,
    PrincipalLimits,
    current_call,
    server_options,
)
from hatoba_scheduler.open_files import FileWatch, allow_most
from hatoba_scheduler.services.admin import AdminParts, AdminServicer
from hatoba_scheduler.services.artifacts import ArtifactParts, ArtifactServicer
from hatoba_scheduler.services.cordons import check_drain
from hatoba_scheduler.services.datasets import DatasetParts, DatasetServicer
from hatoba_scheduler.services.deployments import DeploymentParts, DeploymentServicer
from hatoba_scheduler.services.devices import DeviceParts, DeviceServicer
from hatoba_scheduler.services.enrolling import Enrolling, EnrollParts
from hatoba_scheduler.services.explaining import Explainer
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.jobs import JobServicer
from hatoba_scheduler.services.joining import Joining, JoinParts
from hatoba_scheduler.services.models import ModelParts, ModelServicer
from hatoba_scheduler.services.paging import Pager
from hatoba_scheduler.services.probing import Probe, ProbeParts
from hatoba_scheduler.services.queues import QueueParts, QueueServicer
from hatoba_scheduler.services.runners import RunnerServicer
from hatoba_scheduler.services.schedules import ScheduleServiceParts, ScheduleServicer
from hatoba_scheduler.services.signing import Signing
from hatoba_scheduler.services.upkeep import Adopted, Upkeep
from hatoba_scheduler.services.webhooks import WebhookParts, WebhookServicer
from hatoba_scheduler.services.workers import Side, WorkerItems, WorkerServicer
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.blob_index import Roots
from hatoba_scheduler.store.blobs import ChunkStore, StoreLimits
from hatoba_scheduler.store.buckets import Externals, external_bucket
from hatoba_scheduler.store.errors import DatabaseDamaged, StorageDamaged
from hatoba_scheduler.store.places import open_place
from hatoba_scheduler.store.sqlite import open_store, tune_interpreter
from hatoba_scheduler.store.sqlite.database import FILE
from hatoba_scheduler.telemetry.metrics import (
    ServerMetrics,
    metrics_app,
    serve_http,
    watch_loop_lag,
)
from hatoba_scheduler.telemetry.trace_store import TraceStore
from hatoba_scheduler.telemetry.tracing import Tracer
from hatoba_scheduler.tls import Transport, prepare
from hatoba_scheduler.validation import warm

log = structlog.get_logger(__name__)

SERVICES = (
    "hatoba.v1.JobService",
    "hatoba.v1.QueueService",
    "hatoba.v1.ScheduleService",
    "hatoba.v1.ArtifactService",
    "hatoba.v1.DatasetService",
    "hatoba.v1.ModelService",
    "hatoba.v1.DeploymentService",
    "hatoba.v1.DeviceService",
    "hatoba.v1.RunnerService",
    "hatoba.v1.WorkerService",
    "hatoba.v1.AdminService",
    "hatoba.v1.WebhookService",
)
RESTORED_LOOPS = frozenset(
    {"ledger", "runner-desk", "metric-writer", "loop-lag", "watchers", "store-watch"}
)
"""Loops that run before a restored store is adopted: they start, end and forget nothing."""
DRAIN_SECONDS = 5.0
STOP_SECONDS = 2.0
WORKER_AWAY = 10.0
"""Seconds after which a worker that has not come is started once more."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve: where the data is, what the configuration says, whom to tell when ready."""

    data: Path
    config: Config
    ready_file: Path | None = None
    embedded_worker: bool = True


@dataclass(slots=True)
class Core:
    """The parts that everything else stands on."""

    options: ServeOptions
    store: Store
    clock: SystemClock
    authenticator: Authenticator
    tracer: Tracer
    traces: TraceStore
    metrics: ServerMetrics
    admission: Admission
    ledger: Ledger
    counts: JobCounts
    activity: Activity
    specs: SpecCache
    events: EventLog
    dispatcher: Dispatcher
    hub: Hub
    desk: RunnerDesk
    exits: Exits
    runner_keys: RunnerKeys
    credentials: RunnerCredentials
    logs: LogStore
    metric_writer: MetricWriter
    followers: Followers
    timers: Timers
    gang_clock: GangClock
    share_keeper: ShareKeeper
    schedule_book: ScheduleBook
    schedules: Schedules
    publisher: Publisher
    queues: QueueBook
    chunks: ChunkStore
    garbage: Garbage
    sources: Sources
    pager: Pager
    authority: Authority
    aliases: Aliases
    registrar: Registrar
    feed: RouteFeed
    deployments: DeploymentBook
    devices: DeviceBook
    device_hub: DeviceHub
    device_jobs: Hub
    """That of the streams that devices open for jobs."""
    backups: Backups
    webhooks: Webhooks
    adopted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once what runs belongs to the store's jobs: at once, unless it came out of a backup."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    started: float = field(default_factory=time.time)
    joined_at: str = ""
    """`HOST:PORT` that runners, and machines which become hosts, are to dial."""
    devices_at: str = ""
    """`HOST:PORT` that devices are to dial; empty: there is no port for them."""
    loops: dict[str, BackendLoop] = field(default_factory=dict)
    serving_loops: dict[str, DeploymentLoop] = field(default_factory=dict)
    fleet_loops: dict[str, FleetLoop] = field(default_factory=dict)
    kept_loops: dict[str, KeptLoop] = field(default_factory=dict)
    drainer: Drainer = field(init=False)
    backend_book: BackendBook = field(init=False)
    disconnects: Disconnects = field(init=False)
    device_work: DeviceWork = field(init=False)
    quarantine: Quarantine = field(init=False)

    def __post_init__(self) -> None:
        self.disconnects = Disconnects(self.ledger, self.clock, random.Random(), self._recall)
        self.quarantine = Quarantine(self.ledger, self.hub, self.clock, Blame())
        self.device_work = DeviceWork(
            self.ledger, self.clock, self.devices, self.device_hub, self.device_jobs
        )
        self.dispatcher.away = self.device_work.away
        self.drainer = Drainer(self.ledger, self.clock, lambda: self.activity.live)
        self.backend_book = BackendBook(self.store, self.drainer, self.loops)

    def now(self) -> int:
        """Microseconds since 1970."""
        return round(self.clock.time() * 1e6)

    def _recall(self, attempt: Attempt) -> None:
        if (loop := self.loops.get(attempt.backend)) is not None:
            loop.recall(attempt)


async def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises AlreadyRunning for a directory in use, ConfigError, InsecureFile and OSError for a
    configuration that cannot be served.
    """
    _arm_failpoints()
    tune_interpreter()
    # Live jobs are long-lived and hold no cycles: frequent full collections would only walk them.
    gc.set_threshold(50_000, 20, 100)
    options.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    transport = prepare(options.config.server, options.data, dt.datetime.now(dt.UTC))
    async with AsyncExitStack() as stack:
        core = await _open_core(options, stack)
        stop = _on_signals()
        async with asyncio.TaskGroup() as tasks:
            bound = _bind_grpc(core, transport)
            backends = await _open_backends(core, bound, stack)
            running = _start_loops(core, backends, tasks)
            server = await _serve_grpc(core, backends, tasks, bound)
            running += [
                tasks.create_task(_adopted(core, loop.run), name=f"kept-{name}")
                for name, loop in core.kept_loops.items()
            ]
            # After a failure that ends everything; what was drained is stopped already.
            stack.push_async_callback(_stop, server.server, None)
            watch = _disk_watch(core, server)
            running.append(tasks.create_task(watch.run(), name="disk-watch"))
            http = await stack.enter_async_context(_http(core, transport))
            _announce(core, transport, server.port, http)
            if options.embedded_worker:
                running.append(tasks.create_task(_keep_worker(core), name="worker"))
            await stop
            await _drain(core, server)
            for task in running:
                task.cancel()


def _arm_failpoints() -> None:
    try:
        failpoints.arm_from_environment()
    except ValueError as error:
        raise ConfigError.of(failpoints.VARIABLE, str(error)) from error


def _on_signals() -> asyncio.Future[None]:
    """Done at the first SIGTERM or SIGINT; the second ends the process at once."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def asked() -> None:
        if stop.done():
            os._exit(130)
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    return stop


async def _open_core(options: ServeOptions, stack: AsyncExitStack) -> Core:
    clock = SystemClock()
    store = await open_store(options.data, lambda: round(clock.time() * 1e6))
    stack.push_async_callback(store.close)
    authenticator = Authenticator(store, lambda: round(clock.time() * 1e6))
    await authenticator.load()
    await ensure_token_files(authenticator, options.data)
    authority = await asyncio.to_thread(_authority, options.data, store, clock)
    hosts = HostCredentials(authority, authenticator.identity_of, lambda: round(clock.time() * 1e6))
    authenticator.accept(HOST_PREFIX, hosts.authenticate)
    runner_keys = await asyncio.to_thread(RunnerKeys.open, options.data, round(clock.time() * 1e6))
    credentials = RunnerCredentials(runner_keys, lambda: round(clock.time() * 1e6))
    traces = TraceStore(options.data / "traces.db", options.config.limits.kept_spans)
    stack.push_async_callback(traces.close)
    tracer = _tracer(options.config, traces, store.identity.cluster_id, stack)
    chunks = await _open_chunks(options, store, clock, stack)
    ledger = Ledger(store)
    specs = SpecCache(store)
    _, newest = await store.event_bounds()
    schedule_book = ScheduleBook(store.schedules)
    rules = _planner_rules(options.config)
    dispatcher = Dispatcher(ledger, clock, store.identity.store_epoch, rules)
    rng = random.Random()
    feed = RouteFeed(store.deployments, authenticator, clock)
    metrics = ServerMetrics()
    metrics.watch("hatoba_spans_dropped", "Spans not kept.", lambda: float(traces.dropped))
    events = EventLog(store, newest, options.config.limits.watch_behind)
    logged = LoggedModels(store, specs, chunks.ref)
    core = Core(
        options=options,
        store=store,
        clock=clock,
        authenticator=authenticator,
        tracer=tracer,
        traces=traces,
        metrics=metrics,
        admission=Admission(Phase.RECOVERING),
        ledger=ledger,
        counts=JobCounts(store, ledger),
        activity=Activity(clock),
        specs=specs,
        events=events,
        webhooks=Webhooks(store, events, clock, options.config.webhooks.allow),
        dispatcher=dispatcher,
        hub=Hub(store, clock, __version__),
        desk=RunnerDesk(ledger, store, clock, rng, logged, dispatcher),
        exits=Exits(clock),
        runner_keys=runner_keys,
        credentials=credentials,
        aliases=Aliases(store),
        registrar=Registrar(RegistrarParts(store, ledger, chunks, tracer, clock)),
        logs=LogStore(options.data / "logs"),
        metric_writer=MetricWriter(store),
        followers=Followers(ledger, store, clock),
        timers=Timers(ledger, store, clock),
        gang_clock=GangClock(ledger, clock),
        share_keeper=ShareKeeper(dispatcher.planner, store, clock),
        schedule_book=schedule_book,
        schedules=Schedules(ScheduleParts(store, schedule_book, ledger, clock, tracer.root)),
        publisher=Publisher(ledger, store, specs, chunks, clock),
        queues=QueueBook(store, dispatcher.set_queue, dispatcher.drop_queue),
        chunks=chunks,
        garbage=Garbage(chunks, _roots(store, schedule_book), clock),
        sources=_sources(store),
        feed=feed,
        deployments=DeploymentBook(store.deployments, feed, clock),
        devices=DeviceBook(store.devices, clock),
        device_hub=DeviceHub(clock, options.config.devices.alive_every),
        device_jobs=Hub(Unkept(store.identity), clock, __version__, of_devices=True),
        authority=authority,
        pager=Pager(hashlib.sha256(store.identity.cluster_id.encode()).digest()),
        backups=Backups(
            store, chunks, options.data, lambda: round(clock.time() * 1e6), __version__
        ),
    )
    await _begin(core)
    return core


async def _begin(core: Core) -> None:
    """Know what was known before."""
    _accept_runners(core)
    _accept_devices(core)
    if not core.store.identity.restored:
        core.adopted.set()
    await _recover(core)


def _accept_runners(core: Core) -> None:
    """Runners are known by what was derived for their attempts."""
    desk = core.desk
    gate = RunnerGate(core.credentials, lambda name, fence: desk.current(name, fence) is not None)
    core.authenticator.accept(RUNNER_PREFIX, gate.authenticate)


def _accept_devices(core: Core) -> None:
    """Devices are known by their certificates."""
    audit = Audit(core.clock.monotonic, core.devices.denied)
    gate = DeviceGate(core.authority, core.devices, audit)
    gate.works = core.device_work.has
    core.authenticator.accept(DEVICE_PREFIX, gate.authenticate)
    renewals = DeviceRenewals(core.authority, gate, core.now)
    core.authenticator.accept(RENEWAL_PREFIX, renewals.authenticate)


async def _open_chunks(
    options: ServeOptions, store: Store, clock: SystemClock, stack: AsyncExitStack
) -> ChunkStore:
    place = await asyncio.to_thread(open_place, options.config.blobs, options.data / "blobs")
    limits = StoreLimits(lease_seconds=options.config.blobs.lease_seconds)
    return await stack.enter_async_context(
        ChunkStore.open(place, store.blob_index, lambda: round(clock.time() * 1e6), limits)
    )


def _authority(data: Path, store: Store, clock: SystemClock) -> Authority:
    def now() -> dt.datetime:
        return dt.datetime.fromtimestamp(clock.time(), dt.UTC)

    return Authority.open(data / "tls", store.identity.cluster_id, now)


def _planner_rules(config: Config) -> PlannerRules:
    wanted = config.scheduling
    return PlannerRules(gap=wanted.preempt_gap, ageing=wanted.ageing, patience=wanted.patience)


def _roots(store: Store, schedules: ScheduleBook) -> Roots:
    """All that names manifests, so that the collector leaves them alone."""
    return Roots([store, store.datasets, store.models, store.deployments, store.backups, schedules])


def _sources(store: Store) -> Sources:
    sources = Sources()
    register_stored(sources, store)
    register_models(sources, store)
    return sources


def _tracer(config: Config, traces: TraceStore, cluster_id: str, stack: AsyncExitStack) -> Tracer:
    sinks: list[Any] = [traces]
    if config.server.otlp_endpoint:
        from hatoba_scheduler.telemetry.otlp import open_sink

        sink = open_sink(config.server.otlp_endpoint, __version__, cluster_id)
        stack.push_async_callback(asyncio.to_thread, sink.close)
        sinks.append(sink)
    sampler = RateSampler(config.server.trace_full_below, config.server.trace_share)
    return Tracer(sinks, sampler=sampler)


async def _recover(core: Core) -> None:
    """Take up everything that was not over when the last process ended."""
    await core.ledger.recover()
    await core.counts.recover()
    core.activity.recover(core.ledger.all_rows())
    core.ledger.listen(core.activity.on_commit)
    core.ledger.listen(core.events.on_commit)
    core.ledger.listen(core.logs.on_commit)
    core.ledger.listen(core.desk.on_commit)
    core.ledger.listen(core.exits.on_commit)
    core.ledger.listen(core.hub.on_commit)
    core.ledger.listen(core.device_jobs.on_commit)
    core.ledger.listen(AttemptSpans(core.tracer).on_commit)
    await _recover_hubs(core)
    await core.queues.recover()
    core.dispatcher.recover()
    core.followers.recover()
    await core.timers.recover()
    core.gang_clock.recover()
    await core.share_keeper.recover()
    await core.schedule_book.recover()
    await core.schedules.recover()
    await core.publisher.recover()
    await core.webhooks.recover()
    await core.backups.recover()
    await core.feed.recover()
    await core.deployments.recover()
    await core.devices.recover()
    _watch_files(core)
    core.device_work.recover()
    await core.ledger.recover_parked()
    log.info("recovered", active_jobs=core.ledger.active(), last_event=core.events.newest)


def _watch_files(core: Core) -> None:
    """Each device has a stream, which is a file."""
    watch = FileWatch(allow_most(), lambda: len(core.devices.by_name))
    core.devices.listen(lambda _: watch.look())
    watch.look()


async def _recover_hubs(core: Core) -> None:
    """Tell both hubs of what is not over and theirs."""
    theirs: dict[bool, list[Attempt]] = {False: [], True: []}
    for rows in core.ledger.all_rows():
        theirs[bool(rows.job.terms.devices)] += rows.attempts.values()
    await core.hub.recover(theirs[False])
    await core.device_jobs.recover(theirs[True])


# -- backends and loops --------------------------------------------------------------------------


async def _open_backends(core: Core, bound: Bound, stack: AsyncExitStack) -> Backends:
    budgets = Budgets(core.clock)
    shares: dict[str, Budget] = {}
    authority = await asyncio.to_thread(bound.transport.authority)
    credentials = ServerSecrets(core.options.data)

    def context(instance: str) -> BackendContext:
        return BackendContext(
            clock=core.clock,
            rng=random.Random(),
            cluster_id=core.store.identity.cluster_id,
            store_epoch=core.store.identity.store_epoch,
            advertise=core.joined_at,
            budget=shares.setdefault(instance, budgets.share(instance)),
            secret=credentials.value,
            workers=core.hub,
            devices=core.device_hub if core.options.config.devices.listen else None,
            device_jobs=core.device_jobs if core.options.config.devices.listen else None,
            ca=authority,
            tls=bound.transport.secure,
            dials=core.devices.dials,
        )

    core.disconnects.recover()
    backends = await open_backends(core.options.config, context, stack)
    loop_context = LoopContext(
        core.ledger,
        core.store,
        core.specs,
        core.clock,
        random.Random(),
        core.store.identity.cluster_id,
        core.dispatcher.describe,
        core.dispatcher.set_backend,
        core.dispatcher,
        Elsewhere(core.exits, core.desk.heard, _launch_credential(core)),
        core.logs,
    )
    for name, opened in backends.opened.items():
        shares[name].declare(opened.backend.capabilities().limits)
        if opened.backend.jobs is not None:
            settings = loop_settings(core.options.config, name)
            core.loops[name] = loop = BackendLoop(name, opened.backend, loop_context, settings)
            fenced = opened.backend.capabilities().runner != "none"
            core.dispatcher.add_site(name, Site(fenced, loop.launch))
            loop.recover()
        if opened.backend.deployments is not None:
            serving = DeploymentLoop(
                name,
                opened.backend.deployments,
                core.deployments,
                core.feed,
                core.clock,
                _replica_credential(core, opened.backend),
            )
            core.serving_loops[name] = serving
            serving.recover()
        if opened.backend.devices is not None:
            core.fleet_loops[name] = fleet = FleetLoop(
                name,
                opened.backend.devices,
                core.deployments,
                core.devices,
                core.store.devices,
                core.clock,
            )
            await fleet.recover()
    core.deployments.served_by({*core.serving_loops, *core.fleet_loops})
    await core.backend_book.recover()
    return backends


def _launch_credential(core: Core) -> Callable[[Attempt], str]:
    return lambda one: core.credentials.launch(one.name, one.fence, one.create_time)


def _replica_credential(core: Core, backend: Backend) -> ReplicaCredential:
    if backend.capabilities().runner == "host":
        return lambda uid, revision: ""
    return lambda uid, one: core.credentials.replica(uid, one.revision, one.create_time)


def _oldest_runner(core: Core) -> int:
    """When the oldest thing began whose runner or replica may still show a credential."""
    attempts = (
        attempt.create_time
        for rows in core.ledger.all_rows()
        for attempt in rows.attempts.values()
        if attempt.release is not Release.RELEASED
    )
    revisions = (
        revision.create_time
        for live in core.deployments.all()
        for revision in live.revisions.values()
    )
    return min((*attempts, *revisions), default=core.now())


def _start_loops(
    core: Core, backends: Backends, tasks: asyncio.TaskGroup
) -> list[asyncio.Task[None]]:
    loops: Mapping[str, Callable[[], Awaitable[None]]] = {
        "ledger": core.ledger.run,
        "runner-desk": core.desk.run,
        "registrar": core.registrar.run,
        "dispatch": core.dispatcher.run,
        "dispatch-timer": core.dispatcher.run_timer,
        "followers": core.followers.run,
        "timers": core.timers.run,
        "quarantine": core.quarantine.run,
        "drains": _drains(core).run,
        "gang-clock": core.gang_clock.run,
        "shares": core.share_keeper.run,
        "disconnects": core.disconnects.run,
        "schedules": core.schedules.run,
        "publisher": core.publisher.run,
        "metric-writer": core.metric_writer.run,
        "alias-follower": _alias_follower(core, backends).run,
        "loop-lag": lambda: watch_loop_lag(core.metrics),
        "watchers": lambda: core.events.run(core.clock, core.stopping),
        "sweep": lambda: sweep(core.store, core.clock),
        "runner-keys": lambda: turn_keys(
            core.runner_keys, core.clock, lambda: _oldest_runner(core)
        ),
        "garbage": core.garbage.run_forever,
        "webhooks": core.webhooks.run,
        "store-watch": lambda: _end_with_store(core),
        **{f"backend-{name}": loop.run for name, loop in core.loops.items()},
        **{f"deployments-{name}": loop.run for name, loop in core.serving_loops.items()},
        **{f"fleet-{name}": loop.run for name, loop in core.fleet_loops.items()},
        "device-hub": core.device_hub.run,
        "device-work": core.device_work.run,
        "device-work-again": core.device_work.remind,
        "devices-seen": core.devices.run,
    }
    return [
        tasks.create_task(_own(run) if name in RESTORED_LOOPS else _adopted(core, run), name=name)
        for name, run in loops.items()
    ]


def _drains(core: Core) -> Drains:
    return Drains(
        core.drainer,
        core.clock,
        lambda: map(host_place, (host for host in core.hub.hosts() if host.draining)),
        lambda: queue_places(core.queues),
        core.backend_book.places,
    )


def _alias_follower(core: Core, backends: Backends) -> AliasFollower:
    def backend_of(name: str) -> Backend | None:
        opened = backends.opened.get(name)
        return opened.backend if opened is not None else None

    follower = AliasFollower(core.store, core.deployments, core.clock, backend_of)
    core.aliases.listen(follower.on_move)
    return follower


async def _own(run: Callable[[], Awaitable[None]]) -> None:
    await run()


async def _adopted(core: Core, run: Callable[[], Awaitable[None]]) -> None:
    await core.adopted.wait()
    await run()


async def _end_with_store(core: Core) -> None:
    """A store that can go on no more ends the server: what is not durable is not done."""
    async for error in core.store.broken():
        if isinstance(error, StorageDamaged):
            raise DatabaseDamaged(core.options.data / FILE, error.message) from error
        raise OSError(f"the store failed for good: {error}") from error


# -- ports ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class GrpcServer:
    """The listening server, its port, and its health."""

    server: grpc.aio.Server
    port: int
    health: health.aio.HealthServicer


@dataclass(frozen=True, slots=True)
class Bound:
    """The server with its port, not serving yet: what is opened next may tell others of it."""

    server: grpc.aio.Server
    port: int
    transport: Transport


def _bind_grpc(core: Core, transport: Transport) -> Bound:
    config = core.options.config
    limits = _call_limits(config.limits)
    front = Front(core.authenticator, core.tracer, core.metrics, core.admission, limits=limits)
    server = grpc.aio.server(
        interceptors=[front],
        options=server_options(config.limits.max_message_bytes),
        maximum_concurrent_rpcs=_most_rpcs(config.limits),
    )
    port = _bind(server, str(config.server.listen), transport)
    core.joined_at = str(config.server.advertise or _named(config.server.listen, port))
    core.devices_at = _bind_devices(core, server)
    return Bound(server, port, transport)


def _bind_devices(core: Core, server: grpc.aio.Server) -> str:
    """Open the port of devices, if there is to be one; what they are to dial."""
    devices = core.options.config.devices
    if devices.listen is None:
        return ""
    port = server.add_secure_port(str(devices.listen), DevicePort(core.authority).credentials())
    return str(devices.advertise or _named(devices.listen, port))


async def _serve_grpc(
    core: Core, backends: Backends, tasks: asyncio.TaskGroup, bound: Bound
) -> GrpcServer:
    config, server = core.options.config, bound.server
    _add_services(core, backends, tasks, bound)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if config.server.reflection:
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    warm((job_pb2.SubmitJobRequest, job_pb2.JobSpec))
    await server.start()
    core.admission.phase = Phase.SERVING if core.adopted.is_set() else Phase.RESTORED
    for name in ("", *SERVICES):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return GrpcServer(server, bound.port, health_servicer)


def _disk_watch(core: Core, server: GrpcServer) -> DiskWatch:
    async def tell(works: bool) -> None:
        """Health of the services that change something; the server as a whole serves reads."""
        response = health_pb2.HealthCheckResponse
        for name in SERVICES:
            await server.health.set(name, response.SERVING if works else response.NOT_SERVING)

    return DiskWatch(core.store, core.options.data, core.clock, core.admission, tell)


def _call_limits(limits: LimitsConfig) -> CallLimits:
    principals = PrincipalLimits(
        limits.calls_per_principal,
        limits.streams_per_principal,
        limits.changes_per_second,
        limits.jobs_per_second,
        limits.max_concurrent_calls,
        limits.max_streams,
    )
    return CallLimits(limits.max_message_bytes, limits.max_unary_seconds, principals)


def _most_rpcs(limits: LimitsConfig) -> int:
    """grpc's own limit, which tells nobody when to come again: above ours, which do."""
    return 2 * (limits.max_concurrent_calls + limits.max_streams)


def _bind(server: grpc.aio.Server, address: str, transport: Transport) -> int:
    credentials = transport.grpc_credentials()
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials)


def _add_services(core: Core, backends: Backends, tasks: asyncio.TaskGroup, bound: Bound) -> None:
    server, pinned = bound.server, bound.transport.ca_file is not None
    instances = {name: opened.backend for name, opened in backends.opened.items()}

    def grounds() -> Grounds:
        secrets = frozenset(secret for host in core.hub.hosts() for secret in host.secrets)
        secrets |= core.dispatcher.planner.secrets()
        ours = (instances, backends.default, core.queues, secrets)
        devices = DeviceGrounds(_runs_on_devices(core), core.devices.by_name)
        return Grounds(*ours, now=core.now(), choice=backends.choice, devices=devices)

    parts = _job_parts(core, backends, grounds)
    jobs = JobServicer(parts)
    job_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)
    core.registrar.open(jobs.submitter.submit_for)
    core.schedules.open(jobs.submitter.submit_for)
    schedules = ScheduleServicer(_schedule_parts(core, jobs))
    schedule_pb2_grpc.add_ScheduleServiceServicer_to_server(schedules, server)
    models = _model_parts(core)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(models), server)
    queue_pb2_grpc.add_QueueServiceServicer_to_server(QueueServicer(_queue_parts(core)), server)
    artifacts = ArtifactParts(core.chunks, core.garbage, Externals(core.options.config.blobs))
    artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(ArtifactServicer(artifacts), server)
    datasets = DatasetParts(
        core.store,
        core.chunks,
        lambda name: external_bucket(name, core.options.config.blobs),
        core.pager,
        core.now,
    )
    dataset_servicer = DatasetServicer(datasets)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(dataset_servicer, server)

    def serving_grounds() -> ServingGrounds:
        return ServingGrounds(
            instances, backends.default_serves, grounds().secrets, backends.default_devices
        )

    deployments = _deployment_parts(core, serving_grounds, dataset_servicer.append, tasks)
    deployment_pb2_grpc.add_DeploymentServiceServicer_to_server(
        DeploymentServicer(deployments), server
    )
    devices = _device_parts(core, deployments.desk, tasks, pinned=pinned)
    device_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceServicer(devices), server)
    for name, backend in instances.items():
        role: object = backend.devices
        if isinstance(role, BringsRecords):
            core.kept_loops[name] = KeptLoop(name, role, devices.records, core.clock)
    _add_workers(core, tasks, server, pinned=pinned)
    _add_runners(core, server)
    webhook_pb2_grpc.add_WebhookServiceServicer_to_server(
        WebhookServicer(_webhook_parts(core)), server
    )
    explainer = Explainer(parts)
    probe_parts = ProbeParts(
        parts,
        jobs.submitter,
        explainer,
        backends.failures,
        lambda: _reached_at(core, bound.transport),
    )
    _add_admin(core, backends, probe_parts, server)


def _add_workers(
    core: Core, tasks: asyncio.TaskGroup, server: grpc.aio.Server, *, pinned: bool
) -> None:
    latecomers = Latecomers(core.ledger, core.store, core.clock, lambda: _backend_of_hosts(core))
    items = WorkerItems(core.hub, core.desk, latecomers, core.metric_writer, core.traces)
    joining = Joining(
        JoinParts(core.hub, core.authenticator, core.authority, lambda: core.joined_at, pinned)
    )
    workers = WorkerServicer(
        core.hub,
        items,
        core.ledger,
        core.drainer,
        core.pager,
        tasks,
        joining,
        _device_side(core),
    )
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(workers, server)


def _add_runners(core: Core, server: grpc.aio.Server) -> None:
    cluster_id = core.store.identity.cluster_id
    runner = RunnerServicer(
        core.desk,
        core.ledger,
        core.store,
        core.logs,
        core.metric_writer,
        core.exits,
        Assignments(core.ledger, core.specs, cluster_id, core.credentials),
    )
    runner_pb2_grpc.add_RunnerServiceServicer_to_server(runner, server)


def _schedule_parts(core: Core, jobs: JobServicer) -> ScheduleServiceParts:
    return ScheduleServiceParts(
        core.store,
        core.schedule_book,
        jobs.submitter,
        core.pager,
        UidMaker(core.clock.time),
        core.now,
    )


def _model_parts(core: Core) -> ModelParts:
    return ModelParts(
        core.store,
        core.specs,
        core.aliases,
        core.registrar,
        core.chunks.ref,
        core.pager,
        core.clock,
    )


def _job_parts(core: Core, backends: Backends, grounds: Callable[[], Grounds]) -> JobParts:
    return JobParts(
        store=core.store,
        ledger=core.ledger,
        counts=core.counts,
        specs=core.specs,
        maker=JobMaker(UidMaker(core.clock.time), backends.default),
        events=core.events,
        dispatcher=core.dispatcher,
        desk=core.desk,
        logs=core.logs,
        traces=core.traces,
        pager=core.pager,
        clock=core.clock,
        grounds=grounds,
        manifest=core.chunks.ref,
        sources=core.sources,
        ailing=lambda name: core.loops[name].ailing if name in core.loops else "",
        stopping=core.stopping,
    )


def _add_admin(core: Core, backends: Backends, probes: ProbeParts, server: grpc.aio.Server) -> None:
    reports = Reports(
        lambda: _status(core), lambda: backends.report(core.loops, core.dispatcher.planner)
    )

    async def cordon_backend(request: admin_pb2.CordonBackendRequest) -> admin_pb2.BackendInfo:
        check_drain(request)
        reason = request.reason if request.cordoned else ""
        note = BackendNote(request.name, request.cordoned, reason, request.drain)
        await core.backend_book.cordon(note, current_call().principal)
        return backends.info(note.name, core.loops[note.name], core.dispatcher.planner)

    overview = OverviewParts(
        core.store,
        _usages(core),
        core.activity,
        core.hub,
        reports,
        probes.explainer.waiting,
        core.timers.late,
        lambda: core.metrics.last_lag,
        core.dispatcher.rounds,
    )
    admin = AdminParts(
        core.store,
        core.authenticator,
        core.traces,
        core.pager,
        reports,
        cordon_backend,
        lambda request: Probe(probes, request).run(),
        _upkeep(core, backends),
        Overviewer(overview),
    )
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(admin), server)


def _reached_at(core: Core, transport: Transport) -> str:
    """The address that runners elsewhere are told, as they show it."""
    scheme = "grpcs" if transport.secure else "grpc"
    return f"{scheme}://{core.joined_at}"


def _backend_of_hosts(core: Core) -> str:
    """The instance whose attempts workers run; empty: none is open."""
    loops = ((name, one.backend) for name, one in core.loops.items() if not one.backend.devices)
    return next((name for name, one in loops if one.capabilities().runner == "host"), "")


def _runs_on_devices(core: Core) -> str:
    """The instance that runs jobs on devices; empty: none does."""
    return next((name for name, one in core.loops.items() if one.backend.devices), "")


def _device_side(core: Core) -> Side:
    late = Latecomers(core.ledger, core.store, core.clock, lambda: _runs_on_devices(core))
    items = WorkerItems(core.device_jobs, core.desk, late, core.metric_writer, core.traces)
    return Side(core.device_jobs, items)


def _webhook_parts(core: Core) -> WebhookParts:
    allowed = core.options.config.webhooks.allow
    return WebhookParts(core.webhooks, allowed, core.pager, core.now, UidMaker(core.clock.time))


def _upkeep(core: Core, backends: Backends) -> Upkeep:
    check = StoreCheck(core.store, core.ledger, core.clock)
    instances = {name: opened.backend for name, opened in backends.opened.items()}
    adoption = Adoption(
        core.ledger,
        core.store,
        core.clock,
        core.hub,
        instances,
        core.desk.commit,
        core.clock.monotonic(),
    )

    async def adopt_all(dry_run: bool) -> Adopted:
        report = await adoption.adopt(dry_run=dry_run)
        if not dry_run:
            await core.schedules.adopted()
            await core.store.backups.adopted()
            core.hub.adopted()
            core.device_jobs.adopted()
            core.admission.adopted()
            core.adopted.set()
            log.info("store.adopted", adopted=len(report.adopted), left=len(report.reported))
        return report

    def restored() -> bool:
        return not core.adopted.is_set()

    return Upkeep(core.backups, check, restored, adopt_all, asyncio.Lock())


def _show_figures(core: Core) -> None:
    """The operators' numbers, on the metrics page."""
    core.dispatcher.rounds.observe = core.metrics.planner_rounds.observe
    core.store.commit_times.observe = core.metrics.commits.observe
    figures = Figures(
        _usages(core),
        core.activity,
        core.loops,
        lambda: core.events.watchers,
        lambda: core.webhooks.failing,
    )
    core.metrics.show(figures.read)
    days = core.options.config.devices.certificate_days
    of_devices = DeviceFigures(core.devices, core.fleet_loops.values, core.clock, days)
    core.metrics.show(of_devices.read)


def _queue_parts(core: Core) -> QueueParts:
    return QueueParts(core.queues, core.store, core.drainer, _usages(core), core.pager, core.now)


def _usages(core: Core) -> QueueUsages:
    planning = core.dispatcher
    return QueueUsages(
        core.queues, core.counts, core.activity, planning.share, planning.total, core.now
    )


def _deployment_parts(
    core: Core, grounds: Callable[[], ServingGrounds], append: Append, tasks: asyncio.TaskGroup
) -> DeploymentParts:
    return DeploymentParts(
        store=core.store,
        book=core.deployments,
        feed=core.feed,
        authority=core.authority,
        desk=PredictionDesk(core.store.deployments, core.traces, append),
        grounds=grounds,
        new_uid=UidMaker(core.clock.time),
        pager=core.pager,
        clock=core.clock,
        tasks=tasks,
        stopping=core.stopping,
    )


def _device_parts(
    core: Core, predictions: PredictionDesk, tasks: asyncio.TaskGroup, *, pinned: bool
) -> DeviceParts:
    store = core.store.devices
    return DeviceParts(
        store=store,
        book=core.devices,
        hub=core.device_hub,
        deployments=core.deployments,
        records=DeviceRecordDesk(store, core.devices, core.deployments, predictions),
        loops=core.fleet_loops.values,
        enrolling=_enrolling(core, pinned=pinned),
        cluster_id=core.store.identity.cluster_id,
        pager=core.pager,
        clock=core.clock,
        tasks=tasks,
        cut=core.authenticator.cut,
        signing=_signing(core),
        jobs=core.device_work.jobs,
    )


def _enrolling(core: Core, *, pinned: bool) -> Enrolling:
    days = core.options.config.devices.certificate_days
    return Enrolling(
        EnrollParts(
            core.store.devices,
            core.devices,
            core.authenticator,
            core.authority,
            lambda: core.joined_at,
            lambda: core.devices_at,
            pinned,
            dt.timedelta(days=days),
            core.now,
            lambda: uuid.uuid4().hex,
            _signing(core),
        )
    )


def _signing(core: Core) -> Signing:
    def role() -> SignsDevices | None:
        roles: Iterable[object] = (loop.backend for loop in core.fleet_loops.values())
        return next((one for one in roles if isinstance(one, SignsDevices)), None)

    return Signing(role)


def _status(core: Core) -> admin_pb2.ServerStatus:
    held = sum(
        attempt.release is not Release.RELEASED
        for rows in core.ledger.all_rows()
        for attempt in rows.attempts.values()
    )
    status = admin_pb2.ServerStatus(
        cluster_id=core.store.identity.cluster_id,
        version=__version__,
        phase=str(core.admission.phase),
        active_jobs=core.ledger.active(),
        live_attempts=held,
        last_event=core.events.newest,
        data_dir=str(core.options.data),
        pid=os.getpid(),
        store_epoch=core.store.identity.store_epoch,
    )
    set_time(status.start_time, round(core.started * 1e6))
    return status


def _http(core: Core, transport: Transport) -> Any:
    _show_figures(core)
    listen = core.options.config.server.http_listen
    authorize = None if listen.loopback else core.authenticator.may_read
    app = metrics_app(core.metrics, authorize)
    return serve_http(app, listen.host, listen.port, transport.ssl_context())


def _announce(core: Core, transport: Transport, grpc_port: int, http_port: int) -> None:
    """Write the ready file, whole or not at all, here and where it was asked for."""
    server = core.options.config.server
    ready = {
        "grpc": str(_dialled(server.listen, grpc_port)),
        "http": str(_dialled(server.http_listen, http_port)),
        "pid": os.getpid(),
        "token_file": str(core.options.data / "admin.token"),
    }
    authority = transport.ca_file or transport.certificate
    if authority is not None:
        ready["ca_file"] = str(authority)
    if core.devices_at:
        ready["devices"] = core.devices_at
    if core.options.embedded_worker:
        ready["router"] = router_address(core.options.data)
    for path in (core.options.data / "server.json", core.options.ready_file):
        if path is not None:
            _write_whole(path, json.dumps(ready) + "\n")
    log.info("ready", **ready)


def _dialled(listen: Address, port: int) -> Address:
    """Where this machine reaches a port: a wildcard cannot be dialled or certified."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    return Address(host, port)


def _named(listen: Address, port: int) -> Address:
    """Where other machines may reach a port: a wildcard stands for this machine's name."""
    wildcard = listen.host in ("0.0.0.0", "::")
    return Address(socket.gethostname() if wildcard else listen.host, port)


def _write_whole(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(name).replace(path)


async def _keep_worker(core: Core) -> None:
    """Have a worker here: the keeper restarts it, and we do when the keeper is gone as well."""
    while True:
        await _start_worker(core.options.data)
        await core.clock.sleep(WORKER_AWAY)
        while any(host.embedded and core.hub.reachable(host.name) for host in core.hub.hosts()):
            await core.clock.sleep(WORKER_AWAY)


async def _start_worker(data: Path) -> None:
    """Have the keeper of this directory run a worker; it lives on when the server does not."""
    command = [sys.executable, "-m", "hatoba_worker.embedded", "embed", "--data", str(data)]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=without(os.environ),
        )
    except OSError as error:
        log.error("worker.not_started", error=str(error))
        return
    try:
        if await process.wait() != 0:
            log.error("worker.not_started", remedy="pip install 'hatoba[worker]'")
    except asyncio.CancelledError:
        # A server that ends leaves nobody behind who starts things after it.
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        raise


async def _drain(core: Core, server: GrpcServer) -> None:
    """Refuse what is new, end streams, finish what was begun; in under ten seconds."""
    log.info("draining", in_flight=core.admission.in_flight)
    await server.health.enter_graceful_shutdown()
    core.stopping.set()
    core.backups.stop()
    core.hub.close()
    core.device_jobs.close()
    core.device_hub.close()
    core.feed.close()
    core.exits.close()
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            await core.admission.drain()
    except TimeoutError:
        log.warning("drain.unfinished", in_flight=core.admission.in_flight)
    await _stop(server.server, STOP_SECONDS)
    log.info("stopped")


async def _stop(server: grpc.aio.Server, grace: float | None) -> None:
    """End what is still answered. Connections whose other end went without a word would hold it up
    for as long as the kernel tries to reach them: they end with the process.
    """
    try:
        async with asyncio.timeout(2 * STOP_SECONDS):
            await server.stop(grace)
    except TimeoutError:
        log.warning("stop.unfinished")
