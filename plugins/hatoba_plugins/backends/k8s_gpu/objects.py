"""What of Kubernetes' objects the states need: small, so that ten thousand of them can be held."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from sys import intern
from typing import Any, NamedTuple

from hatoba_plugins.backends.k8s_gpu import names

Json = Mapping[str, Any]


class Condition(NamedTuple):
    """A condition that holds."""

    reason: str
    message: str


class Running(Enum):
    """What a container does."""

    ABSENT = "absent"
    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


class Container(NamedTuple):
    """One container's state; the code is that of its end."""

    state: Running = Running.ABSENT
    reason: str = ""
    message: str = ""
    code: int = 0
    restarts: int = 0
    ready: bool = False
    last: tuple[str, int, str] | None = None
    """Reason, code and message of the end before this one."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an object is, by its labels."""

    cluster: str
    job: str
    index: int
    number: int
    fence: int


@dataclass(frozen=True, slots=True)
class SeenJob:
    """A Job."""

    name: str
    uid: str
    owner: Owner
    spec: str
    members: tuple[str, ...]
    """Attempts by completion index; one when it is no gang."""
    runner: str
    suspended: bool
    halted: bool
    """The controller has seen that it is suspended: no pod will come."""
    queued: bool
    """Kueue decides when it begins."""
    deleting: bool
    half: bool
    """Of a gang, what it needs beside its Job may be missing: nothing of it runs."""
    verdict: str
    complete: bool
    failed: Condition | None
    created: float

    @property
    def finished(self) -> bool:
        """The controller is done with it."""
        return self.complete or self.failed is not None


@dataclass(frozen=True, slots=True)
class SeenPod:
    """A pod."""

    name: str
    uid: str
    job: str
    """The Job that made it, or the replica that it is."""
    index: int
    phase: str
    node: str
    address: str
    reason: str
    message: str
    deleting: bool
    scheduled: bool
    unschedulable: str
    disrupted: Condition | None
    ready: bool
    lapsed: bool
    """It was ready since its program began, and is not any more."""
    created: float
    main: Container
    init: Container
    sidecar: Container

    @property
    def over(self) -> bool:
        """Nothing of it runs any more, or ever will."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def ended(self) -> bool:
        """Its command does not run any more, or ever will."""
        return self.over or self.main.state is Running.TERMINATED


def seen_job(told: Json) -> SeenJob | None:
    """A Job as it was told; None when its labels are not those of an attempt."""
    meta, spec = told["metadata"], told.get("spec") or {}
    status = told.get("status") or {}
    owner = _owner(meta.get("labels") or {})
    if owner is None:
        return None
    notes = meta.get("annotations") or {}
    conditions = _conditions(status)
    return SeenJob(
        name=meta["name"],
        uid=meta["uid"],
        owner=owner,
        spec=notes.get(names.SPEC, ""),
        members=_members(meta["name"], notes.get(names.MEMBERS, "")),
        runner=intern(notes.get(names.RUNNER, "none")),
        suspended=bool(spec.get("suspend")),
        halted="Suspended" in conditions,
        queued=names.KUEUE_QUEUE in (meta.get("labels") or {}),
        deleting="deletionTimestamp" in meta,
        half=names.HALF in notes and names.VERDICT not in notes,
        verdict=notes.get(names.VERDICT, ""),
        complete="Complete" in conditions,
        failed=conditions.get("Failed"),
        created=instant(meta.get("creationTimestamp")),
    )


def _owner(labels: Json) -> Owner | None:
    try:
        return Owner(
            intern(labels[names.CLUSTER]),
            labels[names.JOB],
            int(labels[names.INDEX]),
            int(labels[names.NUMBER]),
            int(labels[names.FENCE]),
        )
    except (KeyError, ValueError):
        return None


def _members(name: str, noted: str) -> tuple[str, ...]:
    return tuple(json.loads(noted)) if noted else (name,)


def _conditions(status: Json) -> dict[str, Condition]:
    return {
        one["type"]: Condition(one.get("reason") or "", one.get("message") or "")
        for one in status.get("conditions") or ()
        if one.get("status") == "True"
    }


def seen_pod(told: Json) -> SeenPod:
    """A pod as it was told."""
    meta, status = told["metadata"], told.get("status") or {}
    labels = meta.get("labels") or {}
    conditions = _conditions(status)
    waits = _waits(status)
    init = _containers(status.get("initContainerStatuses"))
    return SeenPod(
        name=meta["name"],
        uid=meta["uid"],
        job=labels.get(names.JOB_NAME) or labels.get(names.REPLICA, ""),
        index=int((meta.get("annotations") or {}).get(names.COMPLETION_INDEX, 0)),
        phase=intern(status.get("phase") or "Pending"),
        node=intern((told.get("spec") or {}).get("nodeName") or ""),
        address=status.get("podIP") or "",
        reason=intern(status.get("reason") or ""),
        message=status.get("message") or "",
        deleting="deletionTimestamp" in meta,
        scheduled="PodScheduled" in conditions,
        unschedulable=waits,
        disrupted=conditions.get("DisruptionTarget"),
        ready="Ready" in conditions,
        lapsed=_lapsed(status),
        created=instant(meta.get("creationTimestamp")),
        main=_containers(status.get("containerStatuses")).get(names.MAIN, Container()),
        init=init.get(names.INIT, Container()),
        sidecar=init.get(names.SIDECAR, Container()),
    )


def _waits(status: Json) -> str:
    """Why the scheduler finds no node; empty: it does, or has not tried."""
    for one in status.get("conditions") or ():
        if one["type"] == "PodScheduled" and one.get("status") == "False":
            return str(one.get("message") or one.get("reason") or "")
    return ""


def _lapsed(status: Json) -> bool:
    # The first "not ready" is written before any program begins, and stays until it is ready.
    return any(
        one["type"] == "Ready"
        and one.get("status") != "True"
        and instant(one.get("lastTransitionTime")) > (_began(status) or math.inf)
        for one in status.get("conditions") or ()
    )


def _began(status: Json) -> float:
    for one in status.get("containerStatuses") or ():
        if one["name"] == names.MAIN:
            running = (one.get("state") or {}).get("running") or {}
            return instant(running.get("startedAt"))
    return 0.0


def _containers(statuses: list[Json] | None) -> dict[str, Container]:
    return {one["name"]: _container(one) for one in statuses or ()}


def _container(status: Json) -> Container:
    state = status.get("state") or {}
    for kind in (Running.TERMINATED, Running.RUNNING, Running.WAITING):
        now = state.get(kind.value)
        if now is not None:
            return Container(
                kind,
                intern(now.get("reason") or ""),
                now.get("message") or "",
                now.get("exitCode", 0),
                status.get("restartCount", 0),
                bool(status.get("ready")),
                _last(status),
            )
    return Container(Running.WAITING)


def _last(status: Json) -> tuple[str, int, str] | None:
    before = (status.get("lastState") or {}).get("terminated")
    if before is None:
        return None
    return before.get("reason") or "", before.get("exitCode", 0), before.get("message") or ""


def instant(text: str | None) -> float:
    """Seconds since 1970 of a time as Kubernetes writes it; 0: none."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0
