"""The backends of this server: opened from what is configured and what plug-ins bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields

import structlog

from hatoba.v1 import admin_pb2
from hatoba_plugins.backend import Backend, BackendContext
from hatoba_plugins.errors import BackendError
from hatoba_plugins.loader import LoadFailure, RegisteredType, load
from hatoba_plugins.values import Capabilities
from hatoba_scheduler.config import DEVICES, BackendConfig, Config
from hatoba_scheduler.control.awaited_ends import Place
from hatoba_scheduler.control.backend_loop import BackendLoop, LoopSettings
from hatoba_scheduler.control.calls import CallSettings
from hatoba_scheduler.domain.capacity import room_of
from hatoba_scheduler.domain.planning.planner import Planner

log = structlog.get_logger(__name__)

PLACES = [place.value for place in Place]
EMBEDDED = {"hosts": BackendConfig("hosts")}
"""What is opened when nothing is configured."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One opened instance and where it came from."""

    backend: Backend
    registered: RegisteredType


@dataclass(slots=True)
class Backends:
    """All instances by name, the failures, and the one that jobs get when they name none."""

    opened: dict[str, Opened] = field(default_factory=dict)
    failures: list[LoadFailure] = field(default_factory=list)
    default: str = ""
    default_serves: str = ""
    """The one that deployments get when they name none."""
    default_devices: str = ""
    """The one that deployments to devices get; empty: none has devices."""
    choice: tuple[str, ...] = ()
    """Those among which jobs that name none may choose, cheapest first; empty: the default."""

    def report(
        self, loops: Mapping[str, BackendLoop], planner: Planner
    ) -> admin_pb2.ListBackendsResponse:
        """What operators are shown."""
        reply = admin_pb2.ListBackendsResponse()
        for name in sorted(self.opened):
            reply.backends.append(self.info(name, loops.get(name), planner))
        for failure in self.failures:
            reply.failures.add(
                name=failure.name,
                reason=failure.reason,
                remedy=failure.remedy,
                distribution=failure.distribution,
            )
        return reply

    def info(self, name: str, loop: BackendLoop | None, planner: Planner) -> admin_pb2.BackendInfo:
        """What operators are shown of one opened instance."""
        opened = self.opened[name]
        info = admin_pb2.BackendInfo(
            name=name,
            type=opened.registered.type.name,
            health="healthy" if opened.backend.devices is not None else "unhealthy",
            message="it runs deployments to devices"
            if opened.backend.devices is not None
            else "it has no job role",
            capabilities=_shown(opened.backend.capabilities()),
            capacity=room_of(pool for pool in planner.pools(name) if pool.accepting),
            distribution=f"{opened.registered.distribution} {opened.registered.version}",
            is_default=name == self.default,
        )
        if loop is not None:
            _add_loop(info, loop)
        return info


def _add_loop(info: admin_pb2.BackendInfo, loop: BackendLoop) -> None:
    info.health, info.message = loop.health.status.value, loop.health.message
    info.breaker = loop.calls.state.value
    info.calls, info.calls_limit = loop.calls.under_way, loop.calls.limit
    note = loop.supply.note
    info.cordoned, info.cordon_reason = note.cordoned, note.cordon_reason
    info.draining = note.draining
    info.cost_per_hour = loop.supply.cost_per_hour
    info.operations.update(loop.calls.texts())


async def open_backends(
    config: Config, context: Callable[[str], BackendContext], stack: AsyncExitStack
) -> Backends:
    """Open what is configured; what cannot be opened is listed with its reason."""
    loaded = load()
    found = Backends(failures=list(loaded.failures))
    for name, wanted in _wanted(config).items():
        failure = await _open(name, wanted, loaded.types, context, found, stack)
        if failure is not None:
            log.error("backend.not_opened", backend=name, reason=failure.reason)
            found.failures.append(failure)
    found.default = config.defaults.train or _first(found.opened, _any_jobs)
    found.default_devices = _first(found.opened, lambda one: one.devices)
    serving = (name for name, one in found.opened.items() if one.backend.deployments is not None)
    found.default_serves = config.defaults.serves or next(serving, found.default)
    if not config.defaults.train:
        found.choice = _choice(found.opened, config)
    return found


def _wanted(config: Config) -> Mapping[str, BackendConfig]:
    """What is configured. A port for devices brings their backend along."""
    wanted = dict(config.backends or EMBEDDED)
    if config.devices.listen and all(one.type != DEVICES for one in wanted.values()):
        wanted.setdefault("edge", BackendConfig(DEVICES))
    return wanted


def _first(opened: Mapping[str, Opened], role: Callable[[Backend], object]) -> str:
    """The first instance that has a role; empty: none has."""
    return next((name for name, one in opened.items() if role(one.backend) is not None), "")


def _any_jobs(backend: Backend) -> object:
    """The job role of a backend, unless its jobs are for devices alone."""
    return backend.jobs if backend.devices is None else None


def _choice(opened: Mapping[str, Opened], config: Config) -> tuple[str, ...]:
    able = [
        name
        for name, one in opened.items()
        if _any_jobs(one.backend) is not None and not one.backend.capabilities().pretends
    ]
    costs = {name: wanted.cost_per_hour for name, wanted in config.backends.items()}
    return tuple(sorted(able, key=lambda name: costs.get(name, 0.0)))


def loop_settings(config: Config, name: str) -> LoopSettings:
    """What is configured of an instance beside its own options."""
    wanted = _wanted(config)[name]
    return LoopSettings(
        wanted.cost_per_hour, CallSettings(deadline=wanted.deadline), wanted.reap_after
    )


async def _open(
    name: str,
    wanted: BackendConfig,
    types: Mapping[str, RegisteredType],
    context: Callable[[str], BackendContext],
    found: Backends,
    stack: AsyncExitStack,
) -> LoadFailure | None:
    registered = types.get(wanted.type)
    if registered is None:
        known = ", ".join(sorted(types))
        return LoadFailure(
            name, f"no plug-in brings type {wanted.type!r}", f"known types are {known}", ""
        )
    options = dict(wanted.options)
    problems = registered.type.options.check(options)
    if problems:
        reason = "; ".join(f"{one.field}: {one.message}" for one in problems)
        return LoadFailure(name, reason, "correct hatoba.toml", registered.distribution)
    try:
        opening = registered.type.open(name, registered.type.options(**options), context(name))
        backend = await stack.enter_async_context(opening)
    except BackendError as error:
        remedy = "correct what it says, and start the server again"
        return LoadFailure(name, error.message, remedy, registered.distribution)
    except Exception as error:  # noqa: BLE001 - one broken backend stops no other
        return LoadFailure(name, repr(error), "see the server's log", registered.distribution)
    if (place := backend.capabilities().runner) not in PLACES:
        reason = f"its runner stands in {place!r}; known are {', '.join(PLACES)}"
        return LoadFailure(name, reason, "correct the plug-in", registered.distribution)
    if backend.devices is not None and (other := _first(found.opened, lambda one: one.devices)):
        reason = f"{other!r} has devices already, and all devices are of one backend"
        return LoadFailure(name, reason, f"keep {other!r} or {name!r}", registered.distribution)
    found.opened[name] = Opened(backend, registered)
    return None


def _shown(can: Capabilities) -> dict[str, str]:
    shown = {}
    for one in fields(can):
        value = getattr(can, one.name)
        if isinstance(value, bool):
            shown[one.name] = "yes" if value else "no"
        elif isinstance(value, str):
            shown[one.name] = value
    return shown
