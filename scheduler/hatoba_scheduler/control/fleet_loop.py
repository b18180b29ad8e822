"""Deployments to devices: everything that is decided about them, and everything devices say.

One loop takes in what devices said since its last turn, decides about the roll-outs that it
concerns, composes what each device is to run now, and has the backend tell them. What is decided is
on the disk before a device hears of it; what it hears is composed anew from there at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cache, lru_cache, partial

import structlog

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import Clock, DeviceBackend
from hatoba_plugins.values import (
    DeviceCame,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    DeviceWish,
    NotYet,
    RefusedWish,
    Superseded,
    Synced,
)
from hatoba_scheduler.control.alarm import LONGEST, Alarm
from hatoba_scheduler.control.built_images import choose_image
from hatoba_scheduler.control.deployments import DeploymentBook, Live, precondition
from hatoba_scheduler.control.devices import DeviceBook, Happening
from hatoba_scheduler.control.fleet import Fleet, refusal
from hatoba_scheduler.control.forever import forever
from hatoba_scheduler.convert_deployments import spec_of
from hatoba_scheduler.convert_devices import (
    NEWEST_GENERATION,
    capacity_of,
    desired_to_proto,
    leaving_proto,
    platform_of,
    targets_of,
    want_to_proto,
    words_of,
)
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.deployments import Change, RolloutState
from hatoba_scheduler.domain.device_rollouts import (
    FleetView,
    Row,
    Stage,
    excused,
    next_look,
    retried,
    said,
    step,
    superseded,
)
from hatoba_scheduler.domain.devices import (
    Device,
    DeviceState,
    Want,
    desired,
)
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.rollouts import Refused
from hatoba_scheduler.errors import Aborted, HatobaError
from hatoba_scheduler.store.devices import DeviceStore, batches

log = structlog.get_logger(__name__)

GATHER = 0.02
"""Seconds for which what devices say is gathered before it is looked at."""
BREATH = 0.1
"""Seconds between two batches of devices that are told: with thousands at once others wait, and
what is on its way to them and back fills the memory."""
WISHED_AGAIN = 5.0
STEPS_AT_ONCE = 50
CLOCK_WAS_SET = 5.0
"""Seconds that the clock of the day may gain on the monotonic one between two looks."""
KEPT_ROLLOUTS = 5
"""Rows of so many of the newest roll-outs are kept."""


class FleetLoop:
    """One device backend's deployments and devices."""

    def __init__(
        self,
        name: str,
        backend: DeviceBackend,
        deployments: DeploymentBook,
        devices: DeviceBook,
        store: DeviceStore,
        clock: Clock,
    ) -> None:
        self.name = name
        self.backend = backend
        self._deployments = deployments
        self._devices = devices
        self._store = store
        self._clock = clock
        self._fleets: dict[str, Fleet] = {}
        self._connected: set[str] = set()
        self._arrived: set[str] = set()
        """Who was told of since the backend is followed anew."""
        self._gone: set[str] = set()
        """Devices that were forgotten, of which the backend may still know."""
        self._hellos: dict[str, DeviceCame] = {}
        self._reports: dict[str, device_pb2.DeviceReport] = {}
        self._todo: set[str] = set()
        """Deployments (uid) to be decided about."""
        self._stale: set[str] = set()
        """Devices whose set is to be composed anew."""
        self._wishes: set[str] = set()
        """Devices to be told what is wanted of them."""
        self._synced = False
        self._deaf = True
        """Devices may have said something that did not come to us."""
        self._ahead = clock.time() - clock.monotonic()
        self._deciding = asyncio.Lock()
        """Rows are changed by one at a time."""
        self._alarm = Alarm(clock)
        deployments.listen(self._deployment_changed)
        devices.listen(self._device_changed)

    async def recover(self) -> None:
        """Know what was known before; every device is told anew what is wanted of it."""
        for live in self._deployments.all():
            if live.deployment.backend == self.name:
                await self._add(live)
        self._stale = {one.name for one in self._devices.all()}
        self._wishes = set(self._stale)

    async def _add(self, live: Live) -> Fleet:
        deployment = live.deployment
        spec = spec_of(deployment.settings)
        fleet = Fleet(live, targets_of(spec), deployment.settings.spec, self._connected)
        if deployment.rollout is not None:
            await self._end_earlier(live.uid, deployment.rollout.number)
            await self._load_rows(fleet, deployment.rollout.number)
        fleet.select(self._devices.all())
        live.fleet = fleet
        self._fleets[live.uid] = fleet
        self._todo.add(live.uid)
        return fleet

    async def _end_earlier(self, uid: str, number: int) -> None:
        """A server that died just after another roll-out began left rows of an earlier one open."""
        for earlier in range(number - 1, max(number - KEPT_ROLLOUTS, 1) - 1, -1):
            rows = await self._store.rows(uid, earlier)
            for some in batches(superseded(rows, self._deployments.now())):
                await self._store.put_rows(some)
            if rows:
                return

    async def _load_rows(self, fleet: Fleet, number: int) -> None:
        fleet.take(number, await self._store.rows(fleet.live.uid, number))

    # -- news -----------------------------------------------------------------------------------

    def _deployment_changed(self, live: Live) -> None:
        if live.deployment.backend == self.name:
            self._todo.add(live.uid)
            self._alarm.ring()

    def _device_changed(self, device: Device) -> None:
        for fleet in self._fleets.values():
            if fleet.note(device):
                self._todo.add(fleet.live.uid)
                self._stale.add(device.name)
        if device.state is not DeviceState.ENROLLED and device.wants:
            self._stale.add(device.name)
        if device.state is DeviceState.LEAVING and device.acked < device.generation:
            self._wishes.add(device.name)
        if self._devices.get(device.name) is None:
            self._gone.add(device.name)
        self._alarm.ring()

    def _heard(self, news: DeviceNews) -> None:
        if isinstance(news, DeviceCame):
            self._connected.add(news.device)
            self._arrived.add(news.device)
            self._hellos[news.device] = news
            self._wishes.add(news.device)
            self._devices.saw(news.device)
        elif isinstance(news, DeviceWent):
            self._connected.discard(news.device)
            self._devices.saw(news.device)
        elif isinstance(news, DeviceTold):
            self._reports[news.device] = news.report
        else:
            # After Synced, whoever was not told of is not there.
            if isinstance(news, Synced):
                self._synced = True
                self._connected.intersection_update(self._arrived)
            self._deaf = True
            self._wishes |= self._connected
        self._alarm.ring()

    def connected(self, device: str) -> bool:
        """Whether a device can be reached now."""
        return device in self._connected

    @property
    def reachable(self) -> AbstractSet[str]:
        """Devices that can be reached now; changes as they come and go."""
        return self._connected

    # -- the loops ------------------------------------------------------------------------------

    async def run(self) -> None:
        """All loops of this backend; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            for loop in (self._watch, self._work):
                again = forever(loop, self._clock, "fleet", self.name)
                group.create_task(again, name=f"{self.name}:{loop.__name__}")

    async def _watch(self) -> None:
        self._arrived.clear()
        try:
            async for news in self.backend.reports():
                self._heard(news)
        finally:
            self._synced, self._deaf = False, True

    async def _work(self) -> None:
        while True:
            await self._turn()
            await self._alarm.sleep_until(self._due())
            # What comes is gathered for a moment.
            await self._clock.sleep(GATHER)

    def _due(self) -> float:
        """When time alone moves something (seconds since 1970); what is due then is looked at."""
        now = self._deployments.now().time
        moment = now / 1e6 + (WISHED_AGAIN if self._wishes or self._gone else LONGEST)
        for uid, fleet in self._fleets.items():
            due = next_look(self._view(fleet), now)
            if due:
                moment = min(moment, due / 1e6)
                self._todo.add(uid)
        return moment

    async def _turn(self) -> None:
        """Everything that follows from what is known now."""
        await self._take_in()
        await self._excuse()
        todo, self._todo = self._todo, set()
        try:
            while todo:
                uid = next(iter(todo))
                async with self._deciding:
                    await self._tend(uid)
                todo.discard(uid)
        finally:
            self._todo |= todo
        await self._compose()
        await self._wish()
        await self._forget()

    async def _excuse(self) -> None:
        """No device's time ends while it is we who do not hear it, nor by a clock that was set."""
        ahead = self._clock.time() - self._clock.monotonic()
        was_set, self._ahead = ahead > self._ahead + CLOCK_WAS_SET, ahead
        deaf, self._deaf = self._deaf, not self._synced
        if deaf or was_set:
            now = self._deployments.now()
            for fleet in list(self._fleets.values()):
                await self._put_rows(fleet, excused(fleet.rows.values(), now))

    # -- what devices say -----------------------------------------------------------------------

    async def _take_in(self) -> None:
        """Note what devices said of themselves, and what it means for roll-outs."""
        hellos, reports = self._hellos, self._reports
        self._hellos, self._reports = {}, {}
        names = list(dict.fromkeys([*hellos, *reports]))

        def decide(device: Device) -> Device | None:
            after = device
            if came := hellos.get(device.name):
                after = _introduced(after, came)
            if report := reports.get(device.name):
                after = _reported(after, report)
            return changed(after, version=device.version + 1) if after != device else None

        try:
            await self._adopt(hellos.values())
            await self._devices.change_all(names, decide)
        except HatobaError:
            self._hellos, self._reports = hellos | self._hellos, reports | self._reports
            raise
        if reports:
            self._todo.update(self._going_back())
        for name, report in reports.items():
            self._hear_words(name, report)
        await self._outrun(names)

    async def _adopt(self, came: Iterable[DeviceCame]) -> None:
        """Take in devices that the backend vouches for, and that are not being forgotten."""
        for one in came:
            known = self._devices.get(one.device) is not None or one.device in self._gone
            if one.vouched and not known:
                now = self._deployments.now().time
                text = f"It came by {one.transport}, where it was provisioned."
                await self._devices.adopt(_made_elsewhere(one, now), Happening("enrolled", text))
                self._stale.add(one.device)
                log.info("device.adopted", device=one.device, transport=one.transport)

    def _hear_words(self, name: str, report: device_pb2.DeviceReport) -> None:
        """What is said of an older set than the newest comes again of that one."""
        device, words = self._devices.get(name), words_of(name, report)
        if device is None or report.generation != device.generation:
            return
        for uid, fleet in self._fleets.items():
            word, row = words.get(fleet.name), fleet.rows.get(name)
            if word is not None and row is not None:
                # What is good already runs as the try that it became good by.
                fleet.words[name] = word._replace(tries=row.tries)
                self._todo.add(uid)

    def _going_back(self) -> list[str]:
        """Roll-backs follow what devices have done, not what they say of a revision."""
        return [
            uid
            for uid, fleet in self._fleets.items()
            if (one := fleet.live.deployment.active) is not None
            and one.state is RolloutState.ROLLING_BACK
        ]

    async def _outrun(self, names: Iterable[str]) -> None:
        """A device that has a generation which we never gave, as after a restored backup, is told
        one above it; one that nobody can have reached is not believed."""
        for name in names:
            device = self._devices.get(name)
            if device is None or device.acked <= device.generation:
                continue
            told = device.acked
            honest = told < NEWEST_GENERATION
            text = f"It says that it has generation {told}, and {device.generation} is the newest"
            text += "; it is told a newer one." if honest else "; it is not believed."
            after = told + 1 if honest else device.generation
            await self._devices.change(
                name,
                lambda one, after=after: changed(  # type: ignore[misc]
                    one, generation=after, acked=0, version=one.version + 1
                ),
                Happening("generation", text),
            )
            log.warning("device.generation", device=name, told=told, known=device.generation)
            self._wishes.add(name)

    # -- deciding -------------------------------------------------------------------------------

    def _view(self, fleet: Fleet) -> FleetView:
        view = self._deployments.view(fleet.live)
        refuse = partial(refusal, fleet, self._fleets.values())
        return FleetView(view, fleet.targets.policy, fleet.rows, fleet.meant, refuse, fleet.roomier)

    async def _tend(self, uid: str) -> None:
        """Decide about one deployment, until nothing more follows."""
        live = self._deployments.by_uid(uid)
        fleet = self._fleets.get(uid)
        if live is None:
            if fleet is not None:
                self._stale |= fleet.meant.keys()
                del self._fleets[uid]
            return
        if fleet is None:
            fleet = await self._add(live)
        if live.deployment.deleting:
            await self._remove(fleet)
            return
        if fleet.refresh():
            self._reselect(fleet)
        await self._follow_rollout(fleet)
        await self._hear(fleet)
        for _ in range(STEPS_AT_ONCE):
            if not await self._step(fleet):
                return
        self._todo.add(uid)

    def _reselect(self, fleet: Fleet) -> None:
        self._stale |= fleet.meant.keys()
        fleet.select(self._devices.all())
        self._stale |= fleet.meant.keys()

    async def _remove(self, fleet: Fleet) -> None:
        """It is wanted of nobody any more; who is away hears of it when it comes."""
        self._stale |= fleet.meant.keys()
        fleet.meant.clear()
        await self._compose()
        await self._deployments.remove(fleet.live)
        self._fleets.pop(fleet.live.uid, None)

    async def _follow_rollout(self, fleet: Fleet) -> None:
        """Another roll-out took the place of the one that the rows are of."""
        rollout = fleet.live.deployment.rollout
        if rollout is None or rollout.number == fleet.number:
            return
        rows = superseded(fleet.rows.values(), self._deployments.now())
        await self._put_rows(fleet, rows)
        await self._store.drop_rows(fleet.live.uid, rollout.number - KEPT_ROLLOUTS)
        await self._load_rows(fleet, rollout.number)
        fleet.words.clear()
        self._stale |= fleet.meant.keys()

    async def _hear(self, fleet: Fleet) -> None:
        words, fleet.words = fleet.words, {}
        rows = said(self._view(fleet), words.values(), self._deployments.now())
        if rows:
            await self._put_rows(fleet, rows)
            fleet.live.tell()

    async def _step(self, fleet: Fleet) -> bool:
        decided = step(self._view(fleet), self._deployments.now())
        if decided is None:
            fleet.judged()
            return False
        if decided.change is None:
            await self._put_rows(fleet, decided.rows)
            fleet.live.tell()
            return True
        if await self._write(fleet, decided.change, decided.rows):
            self._stale |= fleet.meant.keys()
            # What follows is judged by what devices have done of what is wanted from now on.
            await self._compose()
        return True

    async def _write(self, fleet: Fleet, change: Change, rows: Sequence[Row]) -> bool:
        """Whether nobody else had changed the deployment."""
        current = await self._deployments.change(
            fleet.live,
            lambda view: change if view.deployment.version == change.expected else None,
            rows=rows,
        )
        if current:
            self._took(fleet, rows)
        return current

    async def retry(
        self, uid: str, names: Collection[str], stages: Collection[Stage], actor: str
    ) -> int:
        """Offer a deployment's newest revision anew to those of these devices (none: of all) that
        stand there; to how many. Raises FailedPrecondition, Aborted, Unavailable."""
        async with self._deciding:
            fleet = self._fleets.get(uid)
            if fleet is None:
                return 0
            await self._follow_rollout(fleet)
            try:
                decided = retried(self._view(fleet), names, stages, self._deployments.now(actor))
            except Refused as refused:
                raise precondition(fleet.live.deployment, str(refused)) from None
            if decided is None or decided.change is None:
                return 0
            if not await self._write(fleet, decided.change, decided.rows):
                raise Aborted(f"{fleet.name} was changed at the same time; ask again")
        self._todo.add(uid)
        self._alarm.ring()
        return len(decided.rows)

    async def _put_rows(self, fleet: Fleet, rows: Sequence[Row]) -> None:
        for some in batches(rows):
            await self._store.put_rows(some)
            self._took(fleet, some)

    def _took(self, fleet: Fleet, rows: Iterable[Row]) -> None:
        for row in rows:
            fleet.put(row)
            self._stale.add(row.device)

    # -- telling --------------------------------------------------------------------------------

    async def _compose(self) -> None:
        """What is wanted of devices, where something of it may have changed."""
        stale, self._stale = self._stale, set()

        def decide(device: Device) -> Device | None:
            after = desired(device, self._wants(device))
            return after if after is not device else None

        try:
            written = await self._devices.change_all(stale, decide)
        except HatobaError:
            self._stale |= stale
            raise
        self._wishes.update(one.name for one in written)

    def _wants(self, device: Device) -> list[Want]:
        if device.state is not DeviceState.ENROLLED:
            return []
        wants = (fleet.want(device) for fleet in self._fleets.values())
        return [one for one in wants if one is not None]

    async def _wish(self) -> None:
        """Have devices told. Who is away is told when it comes."""
        names, self._wishes = self._wishes, set()
        known = (self._devices.get(name) for name in names)
        devices = sorted((one for one in known if one is not None), key=_alike)
        by_name = {fleet.name: fleet for fleet in self._fleets.values()}

        @cache
        def made_of(want: Want, architecture: str) -> device_pb2.DeviceWant | None:
            return _made(by_name.get(want.deployment), want, architecture)

        @lru_cache(maxsize=1)
        def document(
            generation: int, wants: Sequence[Want], architecture: str
        ) -> device_pb2.DeviceDesired:
            return desired_to_proto(generation, (made_of(one, architecture) for one in wants))

        def wish(device: Device) -> DeviceWish:
            what = document(device.generation, device.wants, device.platform.architecture)
            if device.state is DeviceState.LEAVING:
                what = leaving_proto(what)
            return DeviceWish(device.name, what)

        left = {one.name for one in devices}
        try:
            for some in batches(devices):
                if len(left) < len(devices):
                    await self._clock.sleep(BREATH)
                    await self._take_in()
                await self._desire([wish(one) for one in some])
                left.difference_update(one.name for one in some)
        finally:
            self._wishes |= left

    async def _desire(self, wishes: Sequence[DeviceWish]) -> None:
        """What is refused is wished again after a while."""
        for outcome in await self.backend.desire(wishes):
            if isinstance(outcome, RefusedWish | Superseded):
                log.warning("device.wish", device=outcome.device, outcome=repr(outcome))
            if isinstance(outcome, RefusedWish):
                self._wishes.add(outcome.device)

    async def _forget(self) -> None:
        """Devices that are to leave and say that nothing of ours runs there any more; and let the
        backend forget whoever is forgotten, after that: nobody comes in between.
        """
        for device in self._devices.all():
            done = not device.behind and not device.wants
            if device.state is DeviceState.LEAVING and done:
                await self._devices.remove(device.name)
        noted = set(self._gone)
        gone = {name for name in noted if self._devices.get(name) is None}
        if gone:
            outcomes = await self.backend.forget(sorted(gone))
            self._connected -= gone
            for name in gone:
                self._hellos.pop(name, None)
            noted -= {one.name for one in outcomes if isinstance(one, NotYet)}
        # Not before: a call that fails is made again.
        self._gone -= noted

    # -- looking --------------------------------------------------------------------------------

    def fleet(self, uid: str) -> Fleet | None:
        """A deployment's, by uid."""
        return self._fleets.get(uid)

    def fleets(self) -> list[Fleet]:
        """All."""
        return list(self._fleets.values())


def _alike(device: Device) -> tuple[int, tuple[Want, ...], str, str]:
    """Sorts those together that are told the same: they share one document."""
    return device.generation, device.wants, device.platform.architecture, device.name


def _made(fleet: Fleet | None, want: Want, architecture: str) -> device_pb2.DeviceWant | None:
    template = fleet.template(want.revision) if fleet is not None else None
    if fleet is None or template is None:
        log.error("device.want.unknown", deployment=want.deployment, revision=want.revision)
        return None
    spec = choose_image(template, architecture)
    return want_to_proto(want, spec, fleet.targets.policy.bake)


def _made_elsewhere(came: DeviceCame, now: Micros) -> Device:
    """A device that is new here. It has no certificate of ours."""
    return Device(
        name=came.device,
        state=DeviceState.ENROLLED,
        labels=(),
        platform=platform_of(came.hello.platform),
        capacity=capacity_of(came.hello.capacity),
        version=1,
        transport=came.transport,
        create_time=now,
    )


def _introduced(device: Device, came: DeviceCame) -> Device:
    """What a device said of itself when it came."""
    hello = came.hello
    return changed(
        device,
        boot_id=hello.boot_id,
        agent=hello.version,
        platform=platform_of(hello.platform) if hello.HasField("platform") else device.platform,
        capacity=capacity_of(hello.capacity) if hello.HasField("capacity") else device.capacity,
        installation=device.installation or hello.installation,
        transport=came.transport,
        acked=max(device.acked, hello.generation),
    )


def _reported(device: Device, report: device_pb2.DeviceReport) -> Device:
    """What a device said of what it runs; of an older generation than it said before is late."""
    if report.generation < device.acked:
        return device
    done = report.settled and report.generation == device.generation
    told, has = report.SerializeToString(deterministic=True), device.capacity
    # Said once more it changes nothing: what it came with since is newer.
    if report.disk_bytes and told != device.report:
        has = changed(has, disk=report.disk_bytes)
    return changed(
        device,
        acked=report.generation,
        reported=device.generation if done else device.reported,
        report=told,
        capacity=has,
    )
