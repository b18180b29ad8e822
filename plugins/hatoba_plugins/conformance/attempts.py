"""What the kit's tests are written with: attempts to launch, and questions about them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import Backend, JobBackend
from hatoba_plugins.conformance.harness import Command, JobHarness
from hatoba_plugins.errors import BackendError
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    Exit,
    ExitKind,
    Found,
    GroupKind,
    Handle,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    Observation,
    Owned,
    Phase,
    Placement,
    Ref,
    Refused,
    Released,
    Unsure,
)

LOSER = 83
"""Exit code of a run whose claim was refused."""

ENDED_BY_STOP = {ExitKind.STOPPED, ExitKind.SIGNALED}


@dataclass
class Kit:
    """One opened harness, with words for what every test does."""

    harness: JobHarness

    @property
    def backend(self) -> Backend:
        """The opened instance."""
        return self.harness.backend

    @property
    def jobs(self) -> JobBackend:
        """Its job role."""
        jobs = self.backend.jobs
        assert jobs is not None, "the backend has no job role"
        return jobs

    def request(self, kind: Command = Command.RUNS, name: str = "") -> LaunchRequest:
        """An attempt of a job of its own."""
        uid = uuid.uuid4().hex
        name = name or f"kit-{uid}-0-1"
        spec = job_pb2.JobSpec()
        spec.CopyFrom(self.harness.command(kind, name))
        return LaunchRequest(
            name=name,
            fence=1,
            job="projects/default/jobs/conformance-1",
            job_uid=uid,
            index=0,
            number=1,
            task_count=1,
            spec=spec,
            placement=Placement(),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            labels=(("hatoba-cluster", self.harness.cluster_id), ("hatoba-job", uid)),
        )

    async def launch(self, request: LaunchRequest) -> LaunchOutcome:
        """Launch one; raising refuses it, as it does for the core."""
        try:
            outcomes = await self.jobs.launch(LaunchGroup(GroupKind.SINGLE, (request,)))
        except BackendError as error:
            return Refused(request.name, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, it perhaps happened
            return Ambiguous(request.name, repr(error))
        assert [outcome.name for outcome in outcomes] == [request.name]
        return outcomes[0]

    async def launched(self, kind: Command = Command.RUNS, name: str = "") -> Ref:
        """Launch one that must succeed."""
        request = self.request(kind, name)
        outcome = await self.launch(request)
        assert isinstance(outcome, Launched), outcome
        return Ref(request.name, request.fence, outcome.handle)

    async def running(self, kind: Command = Command.RUNS) -> Ref:
        """Launch one and see it start."""
        ref = await self.launched(kind)
        await self.harness.until_started(ref)
        return ref

    async def ended(self, kind: Command = Command.SUCCEEDS) -> Ref:
        """Launch one and see it end."""
        ref = await self.launched(kind)
        await self.end_of(ref)
        return ref

    async def end_of(self, ref: Ref) -> Exit:
        """How it ended, waiting for it."""
        seen = await self.harness.wait(ref, Phase.ENDED)
        assert seen.phase is Phase.ENDED, seen
        assert seen.exit is not None, "an ended attempt comes with its exit"
        return seen.exit

    async def observe(self, ref: Ref) -> Observation:
        """How one is now."""
        (seen,) = await self.jobs.observe([ref])
        assert seen.name == ref.name
        return seen

    async def stop(self, ref: Ref, grace: float = 0.0) -> bool:
        """Stop one; whether anything of that name was there."""
        (result,) = await self.jobs.stop([ref], grace)
        assert result.name == ref.name
        return result.known

    async def find(self, name: str) -> Found | Absent:
        """Look one up by its name until it is known."""
        while True:
            (outcome,) = await self.backend.find([by_name(name)])
            assert outcome.name == name
            if not isinstance(outcome, Unsure):
                return outcome
            assert outcome.after > 0, "Unsure says when to ask again"
            await self.harness.sleep(outcome.after)

    async def release(self, ref: Ref) -> None:
        """Release one until nothing of it is left."""
        while True:
            (outcome,) = await self.jobs.release([ref])
            assert outcome.name == ref.name
            if isinstance(outcome, Released):
                return
            assert outcome.after >= 0
            await self.harness.sleep(outcome.after)

    async def owned(self) -> dict[str, Owned]:
        """Everything that carries our labels."""
        listed = [one async for one in self.backend.list_owned(self.harness.cluster_id)]
        assert len({one.name for one in listed}) == len(listed), "listed twice"
        return {one.name: one for one in listed}

    async def starts_are(self, expected: int, name: str) -> bool:
        """Whether the user's code was started so often; True where nobody can know."""
        return await self.harness.starts(name) in (None, expected)


@asynccontextmanager
async def opened(harness: JobHarness) -> AsyncIterator[Kit]:
    """The kit with its backend open; what a test leaves running is ended after it."""
    await harness.__aenter__()
    try:
        kit = Kit(harness)
        try:
            yield kit
        finally:
            with suppress(BackendError):
                await _clear(kit)
    finally:
        # Not told of the test's own failure: task groups of the backend would wrap it.
        await harness.__aexit__(None, None, None)


async def _clear(kit: Kit) -> None:
    left = [Ref(o.name, 1, o.handle) for o in (await kit.owned()).values() if not o.ended]
    if left:
        await kit.jobs.stop(left, 0.0)
        await _until_ended(kit, left)


async def _until_ended(kit: Kit, refs: Sequence[Ref]) -> None:
    for ref in refs:
        await kit.harness.wait(ref, Phase.ENDED)


def by_name(name: str) -> Ref:
    """How the core speaks of an attempt whose handle it never got."""
    return Ref(name, 1, None)


def serialised(ref: Ref) -> Ref:
    """The reference as a store gives it back."""
    assert ref.handle is not None
    assert isinstance(ref.handle.data, str)
    data = ref.handle.data.encode().decode()
    return Ref(ref.name, ref.fence, Handle(int(ref.handle.version), data))
