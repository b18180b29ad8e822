"""Jobs on hosts.

The hub is the transport; this module says what a job backend says. An attempt's handle is the host
it was sent to: everything else is in the host's own journal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.backend import WorkerHub
from hatoba_plugins.checks import require_kind
from hatoba_plugins.errors import Fatal, NoCapacity
from hatoba_plugins.runner import launch_message
from hatoba_plugins.values import (
    Absent,
    Capabilities,
    FindOutcome,
    Found,
    GroupKind,
    Handle,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    NotYet,
    Observation,
    Owned,
    Phase,
    Ref,
    Refused,
    Released,
    ReleaseOutcome,
    StopResult,
    Unsure,
    WatchItem,
)

HANDLE_VERSION = 1
ASK_AGAIN = 1.0
_LAUNCHES = Capabilities(gangs=True)
MARKS = 100_000
"""Stops of what was not there that are remembered, to refuse a late launch."""


class HostJobs:
    """Runs jobs on the hosts that are connected to this scheduler."""

    def __init__(self, hub: WorkerHub, launches: Capabilities = _LAUNCHES) -> None:
        """`launches`: what groups of these hosts it takes."""
        self._hub = hub
        self._launches = launches
        self._refused: OrderedDict[str, None] = OrderedDict()

    def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """What the hosts' inventories say; Unsure of a host that is not connected."""
        return [self._find(ref) for ref in refs]

    def _find(self, ref: Ref) -> FindOutcome:
        seen = self._hub.seen(ref.name, _host_of(ref))
        if seen is None or not seen.reachable:
            return Unsure(ref.name, ASK_AGAIN)
        if seen.phase is Phase.GONE:
            return Absent(ref.name)
        return Found(ref.name, Handle(HANDLE_VERSION, seen.host))

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """What hosts have, told by their inventories; they serve one installation only."""
        for owned in self._hub.owned():
            if owned.cluster_id == cluster_id:
                yield owned

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """Send each member to the host it was planned for; what a host has is not sent again.

        Of a gang nothing is sent while a host of it is away.
        """
        require_kind(group, self._launches)
        if group.kind is GroupKind.GANG and (away := self._away(group)):
            error = NoCapacity(f"not connected: {', '.join(away)}", after=1.0)
            return [self._known(one) or Refused(one.name, error) for one in group.members]
        return [self._launch(member) for member in group.members]

    def _away(self, group: LaunchGroup) -> list[str]:
        ready = set(self._hub.ready_hosts())
        return sorted({one.placement.pool for one in group.members} - ready)

    def _known(self, member: LaunchRequest) -> Launched | None:
        """What became of an earlier launch of it; None when no host has it."""
        seen = self._hub.seen(member.name, member.placement.pool)
        if seen is not None and seen.phase is not Phase.GONE and seen.host:
            return Launched(member.name, Handle(HANDLE_VERSION, seen.host))
        return None

    def _launch(self, member: LaunchRequest) -> LaunchOutcome:
        if member.name in self._refused:
            return Refused(member.name, Fatal("it was stopped before it was launched"))
        host = member.placement.pool or next(iter(self._hub.ready_hosts()), "")
        if known := self._known(member):
            return known
        if self._hub.send_launch(host, launch_message(member)):
            return Launched(member.name, Handle(HANDLE_VERSION, host))
        return Refused(member.name, NoCapacity(f"host {host!r} is not connected", after=1.0))

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """What hosts have told; not reachable while they are away."""
        return [self._observe(ref) for ref in refs]

    def _observe(self, ref: Ref) -> Observation:
        host = _host_of(ref)
        unknown = Observation(ref.name, Phase.EXISTS, exists=True, host=host, reachable=False)
        return self._hub.seen(ref.name, host) or unknown

    def watch(self) -> AsyncIterator[WatchItem]:
        """The hub's own watch."""
        return self._hub.watch()

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """Tell the hosts; one that is away is told again later, for it may still run there."""
        return [self._stop(ref, grace) for ref in refs]

    def _stop(self, ref: Ref, grace: float) -> StopResult:
        """A host that does not have it is told too: a launch still under way is then refused."""
        seen = self._hub.seen(ref.name, _host_of(ref))
        known = seen is None or seen.phase is not Phase.GONE
        if not known:
            self._refused[ref.name] = None
            while len(self._refused) > MARKS:
                self._refused.popitem(last=False)
        host = seen.host if seen is not None else _host_of(ref)
        if seen is None or seen.phase is not Phase.ENDED:
            self._hub.send_stop(host or _host_of(ref), ref.name, ref.fence, grace)
        return StopResult(ref.name, known)

    def exec(
        self, ref: Ref, start: job_pb2.ExecStart, said: AsyncIterator[job_pb2.AttachInput]
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """Its host runs the command, in the attempt's container where it is one."""
        order = worker_pb2.AttachAttempt(attempt=ref.name, fence=ref.fence, exec=start)
        return self._hub.attach(_host_of(ref), order, said)

    def forward(
        self, ref: Ref, port: int, said: AsyncIterator[job_pb2.AttachInput]
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """Its host connects, to ports of the attempt's own."""
        order = worker_pb2.AttachAttempt(attempt=ref.name, fence=ref.fence, port=port)
        return self._hub.attach(_host_of(ref), order, said)

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """Released when nothing of it is left on its host."""
        return [self._release(ref) for ref in refs]

    def _release(self, ref: Ref) -> ReleaseOutcome:
        seen = self._hub.seen(ref.name, _host_of(ref))
        if seen is None or seen.exists or not seen.reachable:
            return NotYet(ref.name, ASK_AGAIN)
        self._hub.forget(ref.name)
        return Released(ref.name)


def _host_of(ref: Ref) -> str:
    return ref.handle.data if ref.handle else ref.pool
