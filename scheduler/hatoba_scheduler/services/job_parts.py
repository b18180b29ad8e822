"""What the job service stands on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hatoba.v1 import common_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.admission import Grounds
from hatoba_scheduler.control.counts import JobCounts
from hatoba_scheduler.control.dispatch import Dispatcher
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logs import LogStore
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.control.sources import Sources
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.control.submit import JobMaker
from hatoba_scheduler.services.paging import Pager
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.telemetry.trace_store import TraceStore


@dataclass(frozen=True, slots=True)
class JobParts:
    """What the job service stands on."""

    store: Store
    ledger: Ledger
    counts: JobCounts
    specs: SpecCache
    maker: JobMaker
    events: EventLog
    dispatcher: Dispatcher
    desk: RunnerDesk
    logs: LogStore
    traces: TraceStore
    pager: Pager
    clock: Clock
    grounds: Callable[[], Grounds]
    manifest: Callable[[str], Awaitable[common_pb2.ManifestRef]]
    """The stored manifest of a digest. Raises NotFound."""
    sources: Sources
    ailing: Callable[[str], str]
    """What a backend says of itself; empty for one that is well."""
    stopping: asyncio.Event
    """Set when the server begins to stop: streams end."""
