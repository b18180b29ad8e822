"""Devices: make machines at the edge devices, look at them, and say which run a deployment."""

from __future__ import annotations

import re
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from hatoba.errors import Exhausted, InvalidSpec, Unavailable
from hatoba.following import Patience
from hatoba.terms import parse_requirement
from hatoba.v1 import deployment_pb2, device_pb2, job_pb2

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

Device = device_pb2.Device
Label = str | job_pb2.LabelRequirement
"""What a label must be: `site=tokyo`, `site!=tokyo`, `site in (tokyo,osaka)`, `ssd` or `!ssd`."""
Group = str | deployment_pb2.DeviceGroup
"""Devices that come first: an amount, then labels: `5%`, `10,ring=canary`, `ring=b,approve`."""
_Placed = TypeVar("_Placed", device_pb2.DeviceLog, device_pb2.StoredDeviceRecord)
_Page = Callable[[int, int], Awaitable[Sequence[_Placed]]]
"""What comes after a position, at most so many; after 0 the last ones."""
_PAGE = 500
LOOK_SECONDS = 2.0
"""Between two questions of a follower; what a device writes comes when its link allows it."""
GROUP_HELP = (
    "write an amount, then labels, then `approve`, for example `5%`, `10`, `ring=canary` or "
    "`5%,ring=canary,approve`"
)
_COMMA = re.compile(r",(?![^(]*\))")
_AMOUNT = re.compile(r"([0-9]{1,9})(%?)")
_NUMBERS = (
    "per_minute",
    "growth",
    "growth_after",
    "go_on_share",
    "abort_share",
    "abort_least",
    "retries",
    "allow_unenforced_limits",
)
_TIMES = ("group_wait", "retry_wait", "offer_deadline", "apply_deadline", "approve_deadline")
_LABELLED = ("selector", "groups")


class ListOptions(TypedDict, total=False):
    """Which devices are listed. `away`: out of reach for so many seconds or longer; `behind`: they
    have not done all that is wanted of them; `states`: words such as `revoked`; `platform`:
    `arm64`, `arm`, `arm/v7`; `agent`: a version, `none` for those that never said theirs.
    """

    away: float
    behind: bool
    states: Sequence[str]
    platform: str
    agent: str


class AsyncDevices:
    """Devices of the installation; `AsyncClient.devices`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def token(
        self,
        *,
        uses: int = 1,
        ttl: float | None = None,
        labels: Mapping[str, str] | None = None,
        device: str = "",
        transport: str = "",
    ) -> device_pb2.DeviceToken:
        """A token that makes so many machines devices, good for `ttl` seconds (default: a day).

        Its devices get the labels. With `device` it makes the one of that name. `transport` is what
        they dial: `grpc`, the server, which is meant where nothing is said, or `aws-iot`.
        """
        request = device_pb2.CreateDeviceTokenRequest(
            uses=uses, labels=labels or {}, device=device, transport=transport
        )
        if ttl is not None:
            request.ttl.FromTimedelta(timedelta(seconds=ttl))
        return await self._client.call(request, device_pb2.DeviceToken)

    async def list(
        self, selector: Sequence[Label] = (), **asked: Unpack[ListOptions]
    ) -> list[Device]:
        """Devices for which all of these hold, by name."""
        request = device_pb2.ListDevicesRequest(
            selector=requirements(selector),
            page_size=_PAGE,
            behind=asked.get("behind", False),
            states=[state_of(word) for word in asked.get("states", ())],
            platform=asked.get("platform", ""),
            agent=asked.get("agent", ""),
        )
        if (away := asked.get("away")) is not None:
            request.away.FromTimedelta(timedelta(seconds=away))
        found: list[Device] = []
        while True:
            page = await self._client.call(request, device_pb2.ListDevicesResponse)
            found.extend(page.devices)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def get(self, name: str) -> Device:
        """One device. Raises NotFound."""
        return await self._client.call(device_pb2.GetDeviceRequest(name=name), Device)

    async def label(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        remove: Collection[str] = (),
        allow_removal: bool = False,
    ) -> Device:
        """Give a device these labels and take those named away; the others stay.

        Raises FailedPrecondition where it would lose deployments by that and `allow_removal` is
        not set, and Aborted where somebody else changed it meanwhile.
        """
        known = await self.get(name)
        wanted = {key: value for key, value in known.labels.items() if key not in remove}
        request = device_pb2.UpdateDeviceRequest(
            name=name,
            labels={**wanted, **labels},
            allow_removal=allow_removal,
            etag=known.etag,
        )
        return await self._client.call(request, Device)

    async def revoke(self, name: str, reason: str = "") -> Device:
        """Refuse its certificates from now on; what it runs, it goes on with. Twice is once."""
        request = device_pb2.RevokeDeviceRequest(name=name, reason=reason)
        return await self._client.call(request, Device)

    async def decommission(self, name: str, *, force: bool = False) -> Device:
        """Have it end all that it runs, and forget it then; with `force` now. Twice is once."""
        request = device_pb2.DecommissionDeviceRequest(name=name, force=force)
        return await self._client.call(request, Device)

    async def plan(self, deployment: str, selector: Sequence[Label]) -> device_pb2.DevicePlan:
        """Which devices come to a deployment and which go from it by this selector."""
        request = device_pb2.PlanDevicesRequest(
            project=self._client.project, deployment=deployment, selector=requirements(selector)
        )
        return await self._client.call(request, device_pb2.DevicePlan)

    async def rollout(
        self, deployment: str, stages: Sequence[str] = (), rollout: int = 0
    ) -> Sequence[device_pb2.RolloutDevice]:
        """Where devices stand on the way to a deployment's newest revision, by name.

        `stages`: those alone, as `failed` or `not-reached`; `rollout`: where they stood in an
        earlier roll-out, by its number. Raises InvalidSpec, NotFound.
        """
        request = device_pb2.ListRolloutDevicesRequest(
            project=self._client.project,
            deployment=deployment,
            stages=[stage_of(word) for word in stages],
            page_size=_PAGE,
            rollout=rollout,
        )
        found: list[device_pb2.RolloutDevice] = []
        while True:
            page = await self._client.call(request, device_pb2.ListRolloutDevicesResponse)
            found.extend(page.devices)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def retry(
        self, deployment: str, devices: Sequence[str] = (), stages: Sequence[str] = ()
    ) -> device_pb2.RetryRolloutDevicesResponse:
        """Have a deployment's newest revision tried again on devices that do not have it.

        `devices`: on those alone; `stages`: on those that are `failed`, `rejected`, `timed-out` or
        `not-reached` (default: the first three). Raises InvalidSpec, NotFound, WrongState once the
        revision was given up.
        """
        request = device_pb2.RetryRolloutDevicesRequest(
            project=self._client.project,
            deployment=deployment,
            devices=devices,
            stages=[stage_of(word) for word in stages],
        )
        return await self._client.call(request, device_pb2.RetryRolloutDevicesResponse)

    async def events(self, name: str, limit: int = 100) -> Sequence[device_pb2.DeviceEvent]:
        """What happened to a device, newest first."""
        request = device_pb2.ListDeviceEventsRequest(name=name, page_size=min(limit, 1000))
        page = await self._client.call(request, device_pb2.ListDeviceEventsResponse)
        return page.events

    async def logs(
        self, name: str, *, deployment: str = "", tail: int = 0, follow: bool = False
    ) -> AsyncGenerator[device_pb2.DeviceLog, None]:
        """The last `tail` lines (default: 100) that came from a device, oldest first.

        `deployment`: of that one alone. With `follow` also those that come later, for ever;
        servers and connections may go and come back meanwhile. What was lost on the device behind
        the last line is one more, which has a number of `lost` records and no text.
        """

        async def page(after: int, limit: int) -> Sequence[device_pb2.DeviceLog]:
            request = device_pb2.ListDeviceLogsRequest(
                name=name, deployment=self._resource(deployment), after=after, limit=limit
            )
            return (await self._client.call(request, device_pb2.ListDeviceLogsResponse)).lines

        async with aclosing(self._pages(page, tail, follow)) as lines:
            async for line in lines:
                yield line

    async def figures(
        self, name: str, *, deployment: str = "", tail: int = 0, follow: bool = False
    ) -> AsyncGenerator[device_pb2.StoredDeviceRecord, None]:
        """The last `tail` figures (default: 100) that a device told, as in `logs`."""
        kind = device_pb2.DEVICE_RECORD_KIND_FIGURE
        source = self._records(name, kind, deployment, tail, follow)
        async with aclosing(source) as records:
            async for record in records:
                yield record

    async def happenings(
        self, name: str, limit: int = 100
    ) -> Sequence[device_pb2.StoredDeviceRecord]:
        """What a device told of what happened there, the last `limit`, oldest first, and gaps as
        in `logs`."""
        kind = device_pb2.DEVICE_RECORD_KIND_HAPPENING
        async with aclosing(self._records(name, kind, "", limit, follow=False)) as records:
            return [record async for record in records]

    def _records(
        self,
        name: str,
        kind: device_pb2.DeviceRecordKind.ValueType,
        deployment: str,
        tail: int,
        follow: bool,
    ) -> AsyncGenerator[device_pb2.StoredDeviceRecord, None]:
        async def page(after: int, limit: int) -> Sequence[device_pb2.StoredDeviceRecord]:
            request = device_pb2.ListDeviceRecordsRequest(
                name=name,
                kind=kind,
                deployment=self._resource(deployment),
                after=after,
                limit=limit,
            )
            answer = await self._client.call(request, device_pb2.ListDeviceRecordsResponse)
            return answer.records

        return self._pages(page, tail, follow)

    async def _pages(
        self, page: _Page[_Placed], tail: int, follow: bool
    ) -> AsyncGenerator[_Placed, None]:
        """The last `tail`; with `follow` also what comes later, over servers and connections."""
        patience = Patience(self._client.transport, self._client.notify)
        after, limit = 0, tail
        while True:
            try:
                found = await page(after, limit)
            except (Unavailable, Exhausted) as error:
                if not follow:
                    raise
                await patience.after(error)
                continue
            patience.good()
            for one in found:
                after = max(after, one.position)
                yield one
            if not follow:
                return
            limit = _PAGE
            if not found:
                await self._client.transport.pause(LOOK_SECONDS)

    def _resource(self, deployment: str) -> str:
        """A bare name belongs to the project of this client."""
        if not deployment or "/" in deployment:
            return deployment
        return f"projects/{self._client.project}/deployments/{deployment}"


class Devices:
    """The same calls, synchronously; `Client.devices`."""

    def __init__(self, loop: _LoopThread, devices: AsyncDevices) -> None:
        self._loop = loop
        self._devices = devices

    def token(
        self,
        *,
        uses: int = 1,
        ttl: float | None = None,
        labels: Mapping[str, str] | None = None,
        device: str = "",
        transport: str = "",
    ) -> device_pb2.DeviceToken:
        """See AsyncDevices.token."""
        made = self._devices.token(
            uses=uses, ttl=ttl, labels=labels, device=device, transport=transport
        )
        return self._loop.run(made)

    def list(self, selector: Sequence[Label] = (), **asked: Unpack[ListOptions]) -> list[Device]:
        """See AsyncDevices.list."""
        return self._loop.run(self._devices.list(selector, **asked))

    def get(self, name: str) -> Device:
        """One device. Raises NotFound."""
        return self._loop.run(self._devices.get(name))

    def label(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        remove: Collection[str] = (),
        allow_removal: bool = False,
    ) -> Device:
        """See AsyncDevices.label."""
        labelled = self._devices.label(name, labels, remove=remove, allow_removal=allow_removal)
        return self._loop.run(labelled)

    def revoke(self, name: str, reason: str = "") -> Device:
        """See AsyncDevices.revoke."""
        return self._loop.run(self._devices.revoke(name, reason))

    def decommission(self, name: str, *, force: bool = False) -> Device:
        """See AsyncDevices.decommission."""
        return self._loop.run(self._devices.decommission(name, force=force))

    def plan(self, deployment: str, selector: Sequence[Label]) -> device_pb2.DevicePlan:
        """See AsyncDevices.plan."""
        return self._loop.run(self._devices.plan(deployment, selector))

    def rollout(
        self, deployment: str, stages: Sequence[str] = (), rollout: int = 0
    ) -> Sequence[device_pb2.RolloutDevice]:
        """See AsyncDevices.rollout."""
        return self._loop.run(self._devices.rollout(deployment, stages, rollout))

    def retry(
        self, deployment: str, devices: Sequence[str] = (), stages: Sequence[str] = ()
    ) -> device_pb2.RetryRolloutDevicesResponse:
        """See AsyncDevices.retry."""
        return self._loop.run(self._devices.retry(deployment, devices, stages))

    def events(self, name: str, limit: int = 100) -> Sequence[device_pb2.DeviceEvent]:
        """What happened to a device, newest first."""
        return self._loop.run(self._devices.events(name, limit))

    def figures(
        self, name: str, *, deployment: str = "", tail: int = 0, follow: bool = False
    ) -> Generator[device_pb2.StoredDeviceRecord, None, None]:
        """See AsyncDevices.figures."""
        found = self._devices.figures(name, deployment=deployment, tail=tail, follow=follow)
        return self._loop.iterate(found)

    def happenings(self, name: str, limit: int = 100) -> Sequence[device_pb2.StoredDeviceRecord]:
        """See AsyncDevices.happenings."""
        return self._loop.run(self._devices.happenings(name, limit))

    def logs(
        self, name: str, *, deployment: str = "", tail: int = 0, follow: bool = False
    ) -> Generator[device_pb2.DeviceLog, None, None]:
        """See AsyncDevices.logs."""
        lines = self._devices.logs(name, deployment=deployment, tail=tail, follow=follow)
        return self._loop.iterate(lines)


# -- what is said of targets -----------------------------------------------------------------------


def requirements(selector: Sequence[Label]) -> list[job_pb2.LabelRequirement]:
    """What a selector asks of labels. Raises InvalidSpec."""
    return [parse_requirement(one) if isinstance(one, str) else one for one in selector]


def parse_group(text: str) -> deployment_pb2.DeviceGroup:
    """A group as people write it: an amount, then labels, then `approve`. Raises InvalidSpec."""
    group = deployment_pb2.DeviceGroup()
    parts = [part.strip() for part in _COMMA.split(text)]
    if amount := _AMOUNT.fullmatch(parts[0]):
        _put_amount(group, amount, text)
        parts = parts[1:]
    if parts and parts[-1] == "approve":
        group.approve = True
        parts = parts[:-1]
    if not all(parts) or any(part == "approve" or _AMOUNT.fullmatch(part) for part in parts):
        raise InvalidSpec(f"{text!r} is no group of devices", remedy=GROUP_HELP)
    _refuse_loose_values(text, parts)
    group.require.extend(map(parse_requirement, parts))
    return group


def _put_amount(group: deployment_pb2.DeviceGroup, amount: re.Match[str], text: str) -> None:
    number = int(amount[1])
    if not number or (amount[2] and number > 100):
        raise InvalidSpec(f"{text!r} names no amount of devices", remedy=GROUP_HELP)
    if amount[2]:
        group.percent = number
    else:
        group.devices = number


def _refuse_loose_values(text: str, parts: Sequence[str]) -> None:
    """`ring=a,b` could mean two values of one label, or two labels."""
    for before, part in pairwise(parts):
        if "=" in before and not set(part) & set("=!("):
            raise InvalidSpec(
                f"group {text!r}: {part!r} after {before!r} could be a value or a label",
                remedy="write values as `ring in (a,b)`, and labels without a value before others",
            )


def say_requirement(one: job_pb2.LabelRequirement) -> str:
    """A requirement as people write it."""
    values = ",".join(one.values)
    match one.operator:
        case job_pb2.LABEL_OPERATOR_NOT_IN:
            return f"{one.key}!={values}"
        case job_pb2.LABEL_OPERATOR_EXISTS:
            return one.key
        case job_pb2.LABEL_OPERATOR_NOT_EXISTS:
            return f"!{one.key}"
        case _:
            return f"{one.key}={values}"


def state_of(word: str) -> device_pb2.DeviceState.ValueType:
    """The state of a word such as `revoked`. Raises InvalidSpec."""
    if word not in STATES:
        raise InvalidSpec(f"{word!r} is no state", remedy=f"write one of {', '.join(STATES)}")
    return device_pb2.DeviceState.Value(f"DEVICE_STATE_{word.upper()}")


STATES = ("enrolled", "revoked", "leaving")


def stage_of(word: str) -> device_pb2.DeviceStage.ValueType:
    """The stage of a word such as `failed` or `not-reached`. Raises InvalidSpec."""
    name = f"DEVICE_STAGE_{word.upper().replace('-', '_')}"
    if name not in device_pb2.DeviceStage.keys() or word == "unspecified":  # noqa: SIM118
        raise InvalidSpec(f"{word!r} is no stage", remedy=f"write one of {', '.join(STAGES)}")
    return device_pb2.DeviceStage.Value(name)


STAGES = (
    "waiting",
    "offered",
    "applying",
    "baking",
    "succeeded",
    "failed",
    "rejected",
    "timed-out",
    "not-reached",
    "superseded",
    "left",
)


def put_targets(spec: deployment_pb2.DeploymentSpec, said: Mapping[str, Any]) -> bool:
    """Put what is said of devices into a specification; whether anything was. Raises InvalidSpec
    for what only makes sense with devices.
    """
    named = [name for name in (*_LABELLED, *_NUMBERS, *_TIMES) if name in said]
    if not named:
        return False
    if "selector" not in said and not spec.HasField("devices"):
        raise InvalidSpec(
            f"{', '.join(named)}: only deployments to devices have that",
            remedy="say which devices by a selector, for example site=tokyo",
        )
    targets = spec.devices
    for name in said.keys() & set(_NUMBERS):
        setattr(targets, name, said[name])
    for name in said.keys() & set(_TIMES):
        _put_seconds(getattr(targets, name), said[name])
    _put_labelled(targets, said)
    return True


def _put_labelled(targets: deployment_pb2.DeviceTargets, said: Mapping[str, Any]) -> None:
    if "selector" in said:
        del targets.selector[:]
        targets.selector.extend(requirements(said["selector"]))
    if "groups" in said:
        del targets.groups[:]
        groups = (parse_group(one) if isinstance(one, str) else one for one in said["groups"])
        targets.groups.extend(groups)


def _put_seconds(duration: Duration, seconds: float) -> None:
    duration.FromMicroseconds(round(seconds * 1e6))
