"""What hosts have of replicas, what they were told to have, and what is held back for them.

A host's own reports are the truth. Of an order that it has not answered yet each new replica counts
as there, PENDING: what it needs is taken, and nobody may say that nothing of it is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba.v1 import deployment_pb2, worker_pb2
from hatoba_plugins.values import Share
from hatoba_scheduler.domain.records import Resources

Replica = deployment_pb2.Replica
Spec = worker_pb2.ReplicaSpec
PENDING = deployment_pb2.REPLICA_STATE_PENDING
GONE = deployment_pb2.REPLICA_STATE_GONE
ORDER_BYTES = 1 << 20
"""An order brings new replicas of about so many bytes; the next one brings the others."""


class _Promise(NamedTuple):
    """A replica of an order that is on its way, on this stream."""

    order: int
    stream: object
    replica: Replica


@dataclass(slots=True)
class _OfHost:
    """What is known of one host."""

    told: bool = False
    told_on: object = None
    has: dict[str, Replica] = field(default_factory=dict)
    promised: dict[str, _Promise] = field(default_factory=dict)
    order: int = 0
    last: tuple[object, list[str]] | None = None

    def all(self) -> dict[str, Replica]:
        """What it has, and may have."""
        return {name: one.replica for name, one in self.promised.items()} | self.has


class _Watcher:
    """Names of hosts that somebody has still to look at."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self.hosts = dict.fromkeys(hosts)
        self.wake = asyncio.Event()

    async def next(self) -> str:
        """The host that changed first."""
        while not self.hosts:
            self.wake.clear()
            await self.wake.wait()
        host = next(iter(self.hosts))
        del self.hosts[host]
        return host


class HostReplicas:
    """The replicas of all hosts."""

    def __init__(self) -> None:
        self._hosts: dict[str, _OfHost] = {}
        self._watchers: set[_Watcher] = set()

    def of(self, host: str) -> Mapping[str, Replica] | None:
        """What a host has, or may yet get; None until it has told of all once."""
        known = self._hosts.get(host)
        return known.all() if known is not None and known.told else None

    def held(self, host: str) -> tuple[Resources, frozenset[str]]:
        """What they hold of a host, and which GPUs."""
        known = self._hosts.get(host)
        total, gpus = Resources(), set[str]()
        for replica in known.all().values() if known else ():
            total = total.plus(Resources(*Share.of(replica.resources)))
            gpus.update(replica.gpus)
        return total, frozenset(gpus)

    def order(
        self,
        host: str,
        specs: Sequence[Spec],
        stream: object,
        send: Callable[[worker_pb2.ServerItem], bool],
    ) -> bool:
        """Send an order, unless it is the one that was sent last on this stream.

        Of what a host has the name is sent alone; new ones go in several orders where they are
        large. False when the host has not told on this stream what it has, or does not listen.
        """
        known = self._hosts.get(host)
        if known is None or known.told_on is not stream:
            return False
        names = [spec.name for spec in specs]
        if known.last == (stream, names):
            return True
        for part in _in_parts(specs, known.has.keys()):
            known.order += 1
            order = worker_pb2.ReplicaOrder(order=known.order, replicas=part)
            if not send(worker_pb2.ServerItem(replicas=order)):
                return False
            in_it = {spec.name for spec in part} - known.has.keys()
            for spec in specs:
                if spec.name in in_it:
                    promise = _Promise(known.order, stream, _pending(spec, host))
                    known.promised[spec.name] = promise
        known.last = (stream, names)
        return True

    def report(self, host: str, stream: object, report: worker_pb2.ReplicaReport) -> bool:
        """Take in what a host tells; True when what it holds may have changed."""
        known = self._hosts.setdefault(host, _OfHost())
        before = set(known.all())
        known.order = max(known.order, report.order)
        if report.complete:
            known.told, known.told_on, known.has = True, stream, {}
        for replica in report.replicas:
            if replica.state == GONE:
                known.has.pop(replica.name, None)
            else:
                known.has[replica.name] = _at(replica, host)
        known.promised = {
            name: one
            for name, one in known.promised.items()
            if one.stream is stream and one.order > report.order
        }
        self.touch(host)
        return before != set(known.all())

    def lost(self, host: str) -> None:
        """A host was declared gone: nothing of it is left."""
        self._hosts[host] = _OfHost(told=True)
        self.touch(host)

    def forget(self, host: str) -> None:
        """A host was removed."""
        self._hosts.pop(host, None)
        self.touch(host)

    def touch(self, host: str) -> None:
        """Something of a host changed that its replicas depend on."""
        for watcher in self._watchers:
            watcher.hosts[host] = None
            watcher.wake.set()

    async def watch(self, hosts: Iterable[str]) -> AsyncIterator[str]:
        """These hosts, then each that changes, several changes of one perhaps together."""
        watcher = _Watcher(hosts)
        self._watchers.add(watcher)
        try:
            while True:
                yield await watcher.next()
        finally:
            self._watchers.discard(watcher)


def _in_parts(specs: Sequence[Spec], has: Container[str]) -> Iterator[list[Spec]]:
    """Orders one after another, each with more new replicas than the one before."""
    part = [Spec(name=spec.name) for spec in specs if spec.name in has]
    size = 0
    for spec in specs:
        if spec.name in has:
            continue
        if size and size + spec.ByteSize() > ORDER_BYTES:
            yield list(part)
            part, size = [Spec(name=one.name) for one in part], 0
        part.append(spec)
        size += spec.ByteSize()
    yield part


def _pending(spec: worker_pb2.ReplicaSpec, host: str) -> Replica:
    return Replica(
        name=spec.name,
        revision=spec.revision,
        state=PENDING,
        host=host,
        resources=spec.resources,
        gpus=spec.gpus,
    )


def _at(replica: Replica, host: str) -> Replica:
    """As told, its host filled in: whose stream it came on is what counts."""
    out = Replica()
    out.CopyFrom(replica)
    out.host = host
    return out
