"""DeviceService: the streams of devices, and what operators do with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from hatoba import __version__
from hatoba.scopes import lapse
from hatoba.v1 import device_pb2, device_pb2_grpc, worker_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.auth.device_credentials import DeviceCaller
from hatoba_scheduler.control.deployments import DeploymentBook, Live, precondition
from hatoba_scheduler.control.device_hub import DeviceHub, DeviceSession
from hatoba_scheduler.control.device_records import DeviceRecordDesk
from hatoba_scheduler.control.devices import DeviceBook, Happening, put_into, relabelled, showed
from hatoba_scheduler.control.fleet import Fleet, unfit
from hatoba_scheduler.control.fleet_loop import KEPT_ROLLOUTS, FleetLoop
from hatoba_scheduler.convert import requirements_of, set_time
from hatoba_scheduler.convert_deployments import is_for_devices
from hatoba_scheduler.convert_devices import (
    ShownDevice,
    device_etag,
    device_to_proto,
    event_to_proto,
    kind_of,
    log_to_proto,
    record_to_proto,
    row_to_proto,
)
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.device_rollouts import Stage
from hatoba_scheduler.domain.devices import AWS_IOT, Device, DeviceState, matches, reach
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    Resource,
    Unavailable,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.device_filters import filter_of
from hatoba_scheduler.services.device_words import explained
from hatoba_scheduler.services.enrolling import Enrolling
from hatoba_scheduler.services.labels import reserved_labels
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.signing import Signing
from hatoba_scheduler.store.devices import DeviceStore, RecordKind, batches

Context = grpc.aio.ServicerContext[Any, Any]
Order = device_pb2.DeviceOrder
Response = device_pb2.DeviceServiceConnectResponse
log = structlog.get_logger(__name__)

PROTOCOL = 1
NAMED = 100
"""Names of devices that a plan tells."""
REFUSALS = 20
"""Devices of which a plan tells why they cannot have it."""


def _no_jobs(device: str) -> Sequence[str]:
    del device
    return ()


@dataclass(frozen=True, slots=True)
class DeviceParts:
    """What the service stands on. `loops` are those of all device backends, `tasks` owns the
    readers of open streams."""

    store: DeviceStore
    book: DeviceBook
    hub: DeviceHub
    deployments: DeploymentBook
    records: DeviceRecordDesk
    loops: Callable[[], Iterable[FleetLoop]]
    enrolling: Enrolling
    cluster_id: str
    pager: Pager
    clock: Clock
    tasks: asyncio.TaskGroup
    cut: Callable[[str], None]
    """Ends the calls of who is known by this identity."""
    signing: Signing
    jobs: Callable[[str], Sequence[str]] = _no_jobs
    """Names of the jobs that have something to do on a device."""


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    """See proto/hatoba/v1/device.proto."""

    def __init__(self, parts: DeviceParts) -> None:
        self._parts = parts
        self._book = parts.book
        self._hub = parts.hub

    # -- identities -----------------------------------------------------------------------------

    async def CreateDeviceToken(
        self, request: device_pb2.CreateDeviceTokenRequest, context: Context
    ) -> device_pb2.DeviceToken:
        """A token that makes devices."""
        return await self._parts.enrolling.create_token(request)

    async def EnrollDevice(
        self, request: device_pb2.EnrollDeviceRequest, context: Context
    ) -> device_pb2.DeviceIdentity:
        """Make the caller's machine a device."""
        return await self._parts.enrolling.enroll(request)

    async def RenewDevice(
        self, request: device_pb2.RenewDeviceRequest, context: Context
    ) -> device_pb2.DeviceIdentity:
        """A new certificate for the device that calls."""
        return await self._parts.enrolling.renew(request)

    async def RevokeDevice(
        self, request: device_pb2.RevokeDeviceRequest, context: Context
    ) -> device_pb2.Device:
        """Refuse its certificates from now on."""
        device = self._book.named(request.name)
        why = f": {request.reason}" if request.reason else ""
        end = "to end at AWS IoT" if device.transport == AWS_IOT else "refused from now on"
        text = f"Its certificates are {end}{why}."
        device = await self._book.change(
            device.name,
            lambda one: put_into(one, DeviceState.REVOKED),
            Happening("revoked", text, current_call().principal),
        )
        self._cut(device, f"device {device.name!r} was revoked")
        if device.transport == AWS_IOT:
            await self._parts.signing.revoke(device.name)
        return self._shown(device)

    async def DecommissionDevice(
        self, request: device_pb2.DecommissionDeviceRequest, context: Context
    ) -> device_pb2.Device:
        """Have it run nothing, then forget it."""
        device = self._book.named(request.name)
        actor = current_call().principal
        if request.force or device.state is DeviceState.REVOKED:
            # Removed first: who is cut would come again.
            await self._book.remove(device.name)
            self._cut(device, f"device {device.name!r} was decommissioned")
            log.info("device.forgotten", device=device.name, actor=actor)
            return self._shown(device)
        works = bool(self._parts.jobs(device.name))
        device = await self._book.change(
            device.name,
            lambda one: put_into(one, DeviceState.LEAVING, told=works),
            Happening("leaving", "It is to end all that it runs for us, and is forgotten.", actor),
        )
        return self._shown(device)

    def _cut(self, device: Device, why: str) -> None:
        """End all that it has open."""
        self._hub.end(device.name, why)
        self._parts.cut(device.identity)

    # -- looking --------------------------------------------------------------------------------

    def _shown(self, device: Device) -> device_pb2.Device:
        device = changed(device, last_seen=self._book.last_seen(device))
        connected = self._connected(device.name)
        now = round(self._parts.clock.time() * 1e6)
        words = explained(device, connected, self._fleets(), now, self._parts.jobs(device.name))
        return device_to_proto(ShownDevice(device, connected, words))

    def _connected(self, name: str) -> bool:
        return any(loop.connected(name) for loop in self._parts.loops())

    def _fleets(self) -> list[Fleet]:
        return [fleet for loop in self._parts.loops() for fleet in loop.fleets()]

    async def GetDevice(
        self, request: device_pb2.GetDeviceRequest, context: Context
    ) -> device_pb2.Device:
        """One device."""
        return self._shown(self._book.named(request.name))

    async def ListDevices(
        self, request: device_pb2.ListDevicesRequest, context: Context
    ) -> device_pb2.ListDevicesResponse:
        """Devices by name."""
        asked = filter_of(request)
        scope = f"devices:{asked!r}"
        after = self._parts.pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        now = round(self._parts.clock.time() * 1e6)
        fits = [one for one in self._book.all() if asked.fits(one, self._silent(one, now))]
        found = sorted((one for one in fits if one.name > after), key=lambda one: one.name)
        reply = device_pb2.ListDevicesResponse(
            devices=[self._shown(one) for one in found[:size]],
            total=len(fits),
            connected=sum(self._connected(one.name) for one in fits),
        )
        if len(found) > size:
            reply.next_page_token = self._parts.pager.token(scope, found[size - 1].name)
        return reply

    def _silent(self, device: Device, now: Micros) -> Micros | None:
        """For how long nothing was heard of a device; None: it is connected."""
        if self._connected(device.name):
            return None
        return now - self._book.last_seen(device)

    async def UpdateDevice(
        self, request: device_pb2.UpdateDeviceRequest, context: Context
    ) -> device_pb2.Device:
        """Other labels."""
        labels = tuple(sorted(request.labels.items()))
        if found := reserved_labels(request.labels, "labels"):
            raise InvalidArgument.of(found)

        def decide(device: Device) -> Device | None:
            if request.etag and request.etag != device_etag(device):
                raise Aborted(
                    f"device {device.name!r} was changed since it was read; read it again and retry"
                )
            if not request.allow_removal:
                self._require_none_lost(device, labels)
            return relabelled(device, labels)

        text = f"Its labels are {', '.join(f'{k}={v}' for k, v in labels) or 'none'} now."
        device = await self._book.change(
            self._book.named(request.name).name,
            decide,
            Happening("labels", text, current_call().principal),
        )
        return self._shown(device)

    def _require_none_lost(self, device: Device, labels: tuple[tuple[str, str], ...]) -> None:
        after = changed(device, labels=labels)
        lost = [
            fleet.live.deployment.name
            for fleet in self._fleets()
            if device.name in fleet.meant and not matches(after, fleet.targets.selector)
        ]
        if lost:
            raise FailedPrecondition(
                f"device {device.name!r} would lose {', '.join(sorted(lost))}; "
                "allow that with --allow-removal",
                resource=Resource("device", device.resource),
            )

    async def PlanDevices(
        self, request: device_pb2.PlanDevicesRequest, context: Context
    ) -> device_pb2.DevicePlan:
        """What a selector would change."""
        live = self._parts.deployments.find(request.deployment, request.project)
        found = (loop.fleet(live.uid) for loop in self._parts.loops()) if live else ()
        fleet = next((one for one in found if one is not None), None)
        have = fleet.meant if fleet is not None else {}
        plan = reach(self._book.all(), requirements_of(request.selector), have)
        refused = await self._refused(fleet, plan.comes) if fleet is not None else []
        return device_pb2.DevicePlan(
            refused=len(refused),
            refusals=refused[:REFUSALS],
            comes=len(plan.comes),
            stays=len(plan.stays),
            goes=len(plan.goes),
            coming=plan.comes[:NAMED],
            going=plan.goes[:NAMED],
        )

    async def _refused(self, fleet: Fleet, names: Sequence[str]) -> list[device_pb2.DeviceRefusal]:
        """Which of these cannot have what they would be offered, as the fleet's loop judges it."""
        found: list[device_pb2.DeviceRefusal] = []
        if not fleet.offers:
            return found
        for some in batches(names):
            fleets = self._fleets()
            found.extend(
                device_pb2.DeviceRefusal(device=device.name, message=why.message)
                for device in filter(None, map(self._book.get, some))
                if (why := unfit(fleet, fleets, device)) is not None
            )
            # Others have a turn between hundreds of devices.
            await asyncio.sleep(0)
        return found

    async def ListRolloutDevices(
        self, request: device_pb2.ListRolloutDevicesRequest, context: Context
    ) -> device_pb2.ListRolloutDevicesResponse:
        """Devices on the way to a revision."""
        live = self._parts.deployments.named(request.deployment, request.project, "deployment")
        number = _rollout_number(live, request.rollout)
        stages = frozenset(Stage(one) for one in request.stages if one)
        scope = f"rollout:{live.uid}:{number}:{sorted(stages)}"
        after = self._parts.pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = await self._parts.store.page_of_rows(live.uid, number, after, size + 1, stages)
        reply = device_pb2.ListRolloutDevicesResponse(
            devices=[
                row_to_proto(row, connected=self._connected(row.device)) for row in found[:size]
            ]
        )
        if len(found) > size:
            reply.next_page_token = self._parts.pager.token(scope, found[size - 1].device)
        return reply

    async def RetryRolloutDevices(
        self, request: device_pb2.RetryRolloutDevicesRequest, context: Context
    ) -> device_pb2.RetryRolloutDevicesResponse:
        """Offer it anew to devices that do not have it."""
        live = self._parts.deployments.named(request.deployment, request.project, "deployment")
        if not is_for_devices(live.deployment):
            raise precondition(live.deployment, "it is not for devices; nothing of it is offered")
        names = {one.removeprefix("devices/") for one in request.devices}
        stages = {Stage(one) for one in request.stages} or {one for one in Stage if one.bad}
        actor = current_call().principal
        found = [
            await loop.retry(live.uid, names, stages, actor)
            for loop in self._parts.loops()
            if loop.fleet(live.uid) is not None
        ]
        return device_pb2.RetryRolloutDevicesResponse(devices=sum(found))

    async def ListDeviceLogs(
        self, request: device_pb2.ListDeviceLogsRequest, context: Context
    ) -> device_pb2.ListDeviceLogsResponse:
        """Lines that a device sent."""
        device = self._book.named(request.name)
        found = await self._parts.store.records(
            device.name,
            RecordKind.LOG,
            request.deployment,
            request.after,
            page_size(request.limit),
        )
        return device_pb2.ListDeviceLogsResponse(lines=[log_to_proto(one) for one in found])

    async def ListDeviceRecords(
        self, request: device_pb2.ListDeviceRecordsRequest, context: Context
    ) -> device_pb2.ListDeviceRecordsResponse:
        """Records of one kind that a device sent."""
        device = self._book.named(request.name)
        found = await self._parts.store.records(
            device.name,
            kind_of(request.kind),
            request.deployment,
            request.after,
            page_size(request.limit),
        )
        return device_pb2.ListDeviceRecordsResponse(records=map(record_to_proto, found))

    async def ListDeviceEvents(
        self, request: device_pb2.ListDeviceEventsRequest, context: Context
    ) -> device_pb2.ListDeviceEventsResponse:
        """What happened to a device, newest first."""
        device = self._book.named(request.name)
        scope = f"device-events:{device.name}"
        below = int(self._parts.pager.position(scope, request.page_token) or 0)
        size = page_size(request.page_size)
        found = await self._parts.store.events(device.name, below, size + 1)
        reply = device_pb2.ListDeviceEventsResponse(
            events=[event_to_proto(one) for one in found[:size]]
        )
        if len(found) > size:
            reply.next_page_token = self._parts.pager.token(scope, str(found[size - 1].seq))
        return reply

    # -- the stream -----------------------------------------------------------------------------

    async def Connect(  # type: ignore[override]  # it writes instead of yielding
        self,
        request_iterator: AsyncIterator[device_pb2.DeviceServiceConnectRequest],
        context: Context,
    ) -> None:
        """A device's stream. While nothing is said it is this task alone, which reads."""
        session, rest = self._opened(await anext(request_iterator, None), context.peer())
        sender = _Sender(session, context, self._parts.tasks)
        try:
            async with sender.scope:
                await self._begin(session, context)
                session.listen(sender.wake)
                await self._take_all(session, rest)
                await self._read(session, request_iterator)
        except TimeoutError:
            if session.ended is None:
                raise
        finally:
            sender.close()
            self._hub.left(session)
        raise session.ended or Unavailable("the device ended its stream")

    def _opened(
        self, first: device_pb2.DeviceServiceConnectRequest | None, peer: str
    ) -> tuple[DeviceSession, Sequence[device_pb2.DeviceItem]]:
        """A new session, and what came with its hello."""
        hello, rest = self._hello(first)
        return self._hub.open(hello, peer), rest

    async def _begin(self, session: DeviceSession, context: Context) -> None:
        """Look who it is, and welcome it."""
        token = current_call().token
        since = token.create_time if token is not None else 0
        await self._note_clone(session)
        await self._book.change(session.device, lambda one: showed(one, since))
        welcome = await self._welcome(session.device)
        await context.write(Response(items=[Order(welcome=welcome)]))

    async def _note_clone(self, session: DeviceSession) -> None:
        former = session.clone_of
        if former is None:
            return
        text = (
            f"Two machines show its certificate: one at {former.peer} (boot {former.boot_id},"
            f" installation {former.installation}), which was cut, and one at {session.peer} "
            f"(boot {session.boot_id}, installation {session.installation}). Revoke the"
            " device and enroll both anew."
        )
        log.warning("device.cloned", device=session.device, former=former.peer, now=session.peer)
        await self._book.note(session.device, Happening("cloned", text))

    def _hello(
        self, first: device_pb2.DeviceServiceConnectRequest | None
    ) -> tuple[device_pb2.DeviceHello, list[device_pb2.DeviceItem]]:
        """The hello of a stream's first message, and what came with it."""
        items = list(first.items) if first is not None else []
        if not items or not items[0].HasField("hello"):
            raise InvalidArgument.field("items", "must begin with a hello", value="")
        hello, call = items[0].hello, current_call()
        if call.principal != f"devices/{hello.device}":
            why = f"its hello names {hello.device!r}, and it is {call.principal}"
            if isinstance(call.token, DeviceCaller):
                call.token.spoke_for(f"devices/{hello.device}", call.method, why)
            raise PermissionDenied(why, reason=Reason.OUT_OF_SCOPE)
        if hello.protocol != PROTOCOL:
            raise FailedPrecondition(
                f"the agent speaks protocol {hello.protocol}, this server {PROTOCOL}; "
                "install the agent of the server's version"
            )
        return hello, items[1:]

    async def _welcome(self, device: str) -> device_pb2.DeviceWelcome:
        out = device_pb2.DeviceWelcome(
            cluster_id=self._parts.cluster_id,
            version=__version__,
            stored=await self._parts.store.newest_record(device),
        )
        out.alive_every.FromMicroseconds(round(self._hub.alive_every * 1e6))
        set_time(out.time, round(self._parts.clock.time() * 1e6))
        return out

    async def _read(
        self,
        session: DeviceSession,
        requests: AsyncIterator[device_pb2.DeviceServiceConnectRequest],
    ) -> None:
        """Take what comes, until the device ends its stream."""
        try:
            async for request in requests:
                self._hub.heard(session)
                await self._take_all(session, request.items)
                del request  # nothing is kept while nothing comes
        except Exception as error:
            log.info("device.stream.ended", device=session.device, error=repr(error))
            raise Unavailable("the device's stream broke") from error

    async def _take_all(
        self, session: DeviceSession, items: Iterable[device_pb2.DeviceItem]
    ) -> None:
        for item in items:
            await self._take(session, item)

    async def _take(self, session: DeviceSession, item: device_pb2.DeviceItem) -> None:
        kind = item.WhichOneof("item")
        if kind == "report":
            self._hub.told(session, item.report)
        elif kind == "records":
            await self._keep(session, item.records)

    async def _keep(self, session: DeviceSession, told: device_pb2.DeviceRecords) -> None:
        session.stored(await self._parts.records.keep(session.device, told))


class _Sender:
    """Sends what waits in a session. It has a task only while there is something to be sent; once
    the session ends it has `scope` time out.
    """

    __slots__ = ("_context", "_session", "_task", "_tasks", "scope")

    def __init__(self, session: DeviceSession, context: Context, tasks: asyncio.TaskGroup) -> None:
        self.scope = asyncio.timeout(None)
        self._session = session
        self._context = context
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is something to be sent, or the stream is to end."""
        if self._task is None:
            name = f"device:{self._session.device}"
            self._task = self._tasks.create_task(self._send(), name=name)

    async def _send(self) -> None:
        session = self._session
        try:
            while session.ended is None and (response := session.take()) is not None:
                await self._context.write(response)
            if session.farewell:
                await self._context.write(_farewell(session.farewell))
        except Exception as error:  # noqa: BLE001 - a broken stream is an ordinary end of a session
            log.info("device.stream.ended", device=session.device, error=repr(error))
            session.ended = session.ended or Unavailable("the device's stream broke")
        self._task = None
        if session.ended is not None:
            lapse(self.scope)

    def close(self) -> None:
        """Send no more."""
        if self._task is not None:
            self._task.cancel()


def _rollout_number(live: Live, asked: int) -> int:
    """The number of a roll-out whose rows are kept; 0: there was none yet."""
    newest = live.deployment.rollout.number if live.deployment.rollout is not None else 0
    if not asked:
        return newest
    oldest = max(1, newest - KEPT_ROLLOUTS)
    if not oldest <= asked <= newest:
        kept = f"those of {oldest} to {newest} are kept" if newest else "it had none yet"
        raise NotFound(
            f"{live.deployment.resource} has no devices of a roll-out {asked}, now at least; {kept}"
        )
    return asked


def _farewell(seconds: float) -> Response:
    away = worker_pb2.ServerGoingAway()
    away.after.FromMilliseconds(round(1e3 * seconds))
    return Response(items=[Order(going_away=away)])
