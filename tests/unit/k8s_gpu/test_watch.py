"""The list-then-watch loop against a scripted API server: whatever happens, nothing is missed."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached
from hatoba_plugins.backends.k8s_gpu.watch import SILENCE, Kind, Reflector
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import NoWorkers

KIND = Kind("jobs", "/jobs", "a=b")


def thing(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def event(kind: str, name: str, version: int) -> bytes:
    return json.dumps({"type": kind, "object": thing(name, version)}).encode() + b"\n"


def expired_event() -> bytes:
    return json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old"}}).encode()


class Refused(Exception):
    """A watch that is answered with a status."""


class ScriptedKube:
    """Answers lists and watches one after the other; the last watch stays open."""

    def __init__(self, lists: list[list[Any]], watches: list[Any]) -> None:
        self.lists, self.watches = deque(lists), deque(watches)
        self.asked: list[dict[str, str]] = []
        self.idle = asyncio.Event()

    async def pages(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        for page in self.lists.popleft():
            if isinstance(page, Exception):
                raise page
            yield page

    @asynccontextmanager
    async def lines(
        self, path: str, query: Mapping[str, str], silence: float | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        assert silence == SILENCE
        self.asked.append(dict(query))
        script = self.watches.popleft() if self.watches else None
        if isinstance(script, Exception):
            raise script
        yield self._read(script)

    async def _read(self, script: list[Any] | None) -> AsyncIterator[bytes]:
        for line in script or ():
            if isinstance(line, Exception):
                raise line
            yield line
        if script is None:
            self.idle.set()
            await asyncio.Event().wait()


class Told:
    """What a follower was told."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.gaps = 0
        self._named: set[str] = set()

    def begin(self) -> None:
        self._named.clear()

    def seen(self, told: Mapping[str, Any]) -> None:
        self._named.add(told["metadata"]["name"])
        self.now[told["metadata"]["name"]] = told["metadata"]["resourceVersion"]

    def gone(self, told: Mapping[str, Any]) -> None:
        self.now.pop(told["metadata"]["name"], None)

    def listed(self) -> None:
        self.now = {name: at for name, at in self.now.items() if name in self._named}

    def missed(self) -> None:
        self.gaps += 1


def page(version: int, *names: str, more: str = "") -> dict[str, Any]:
    meta = {"resourceVersion": str(version), "continue": more}
    return {"metadata": meta, "items": [thing(name, version) for name in names]}


async def never_waits(operation: str) -> None:
    assert operation in ("list", "watch")


def context(clock: FakeClock) -> BackendContext:
    async def no_secret(name: str) -> str:
        raise KeyError(name)

    return BackendContext(
        clock, random.Random(1), "c1", 1, "127.0.0.1:1", never_waits, no_secret, NoWorkers()
    )


async def followed(kube: ScriptedKube) -> tuple[Told, Reflector]:
    """What is told until the script is at its end."""
    clock, told = FakeClock(), Told()
    reflector = Reflector(cast(Kube, kube), KIND, told, context(clock))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reflector.run(), name="reflector")
        while not kube.idle.is_set():
            await clock.advance_to_next()
            await asyncio.sleep(0)
        task.cancel()
    return told, reflector


async def test_a_list_then_its_changes() -> None:
    kube = ScriptedKube(
        [[page(5, "a", more="x"), page(5, "b")]],
        [[event("MODIFIED", "a", 6), event("ADDED", "c", 7), event("DELETED", "b", 8)]],
    )
    told, reflector = await followed(kube)
    assert told.now == {"a": "6", "c": "7"}
    assert reflector.synced.is_set()
    assert [one["resourceVersion"] for one in kube.asked] == ["5", "8"]
    assert all(one["allowWatchBookmarks"] == "true" for one in kube.asked)
    assert told.gaps == 0


async def test_a_silent_end_goes_on_from_the_newest_bookmark() -> None:
    bookmark = event("BOOKMARK", "", 90)
    kube = ScriptedKube([[page(5, "a")]], [[event("MODIFIED", "a", 6), bookmark], []])
    told, _ = await followed(kube)
    assert [one["resourceVersion"] for one in kube.asked] == ["5", "90", "90"]
    assert told.now == {"a": "6"}


@pytest.mark.parametrize(
    "first",
    [
        [expired_event()],
        [b"<html>a portal</html>"],
        [b"[]"],
        Refusal(410, {"reason": "Expired", "message": "too old"}, None, "GET /jobs"),
    ],
)
async def test_an_expired_watch_lists_again(first: Any) -> None:
    kube = ScriptedKube([[page(5, "a", "b")], [page(50, "b", "c")]], [first])
    told, _ = await followed(kube)
    assert told.now == {"b": "50", "c": "50"}
    assert told.gaps == 1
    assert [one["resourceVersion"] for one in kube.asked] == ["5", "50"]


async def test_an_expired_page_begins_the_list_again() -> None:
    expired = Refusal(410, {"reason": "Expired"}, None, "GET /jobs")
    kube = ScriptedKube([[page(5, "a", more="x"), expired], [page(9, "b")]], [])
    told, _ = await followed(kube)
    assert told.now == {"b": "9"}


@pytest.mark.parametrize(
    "trouble",
    [
        Unreached("half open", sent=True),
        Refusal(429, {"message": "too many requests"}, 7.0, "GET /jobs"),
        Refusal(500, {}, None, "GET /jobs"),
    ],
)
async def test_trouble_is_waited_out_without_a_new_list(trouble: Exception) -> None:
    kube = ScriptedKube([[page(5, "a")]], [[event("MODIFIED", "a", 6), trouble], trouble])
    told, reflector = await followed(kube)
    assert told.now == {"a": "6"}
    assert [one["resourceVersion"] for one in kube.asked] == ["5", "6", "6"]
    assert reflector.problem == ""


async def test_a_list_that_fails_is_tried_again_and_told_as_trouble() -> None:
    kube = ScriptedKube([[Refusal(403, {"message": "may not"}, None, "GET")], [page(1, "a")]], [])
    told, reflector = await followed(kube)
    assert told.now == {"a": "1"}
    assert reflector.problem == ""
