"""Whether calls are taken now: not before recovery is done, and nothing that changes something
while the server is about to stop, waits to adopt a restored store, or has a disk that takes no
writes.
"""

from __future__ import annotations

import asyncio
import enum

from hatoba_scheduler.errors import FailedPrecondition, HatobaError, Reason, Unavailable

DRAIN_RETRY_SECONDS = 2.0
RUNNER_RETRY_SECONDS = 1.0

ASKED_ONLY = frozenset(
    {
        "hatoba.v1.AdminService/ListTokens",
        "hatoba.v1.AdminService/ListBackups",
        "hatoba.v1.AdminService/CheckStore",
    }
)
"""For administrators alone, and no changes all the same."""
WHILE_RESTORED = ASKED_ONLY | {
    "hatoba.v1.AdminService/AdoptStore",
    "hatoba.v1.AdminService/CreateBackup",
    "hatoba.v1.AdminService/DeleteBackup",
    "hatoba.v1.AdminService/CreateToken",
    "hatoba.v1.AdminService/RevokeToken",
    "hatoba.v1.AdminService/CordonBackend",
    "hatoba.v1.AdminService/PushSpans",
    "hatoba.v1.WorkerService/Connect",
    "hatoba.v1.WorkerService/CordonHost",
    "hatoba.v1.WorkerService/DeclareHostGone",
}
"""What leads to the adoption of a restored store, or keeps apart from its jobs."""
_MACHINES = (
    "hatoba.v1.RunnerService/",
    "hatoba.v1.DeploymentService/WatchDeployments",
    "hatoba.v1.DeviceService/Connect",
    "hatoba.v1.DeviceService/RenewDevice",
)


class Phase(enum.StrEnum):
    """Where the server stands between its start and its end; the words of `ServerStatus.phase`."""

    RECOVERING = "recovering"
    SERVING = "serving"
    RESTORED = "restored"
    READ_ONLY = "read-only"
    DRAINING = "draining"


class Admission:
    """The server's phase, and how many unary calls are being answered."""

    def __init__(self, phase: Phase = Phase.SERVING) -> None:
        self.phase = phase
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._resumes = phase
        self._trouble: HatobaError | None = None

    def check(self, *, changes: bool, method: str = "") -> None:
        """Raise unless a call of `method` may begin; `changes`: it is no mere read."""
        if self.phase is Phase.SERVING:
            return
        if self.phase is Phase.RECOVERING:
            raise Unavailable("the server is starting; try again soon", reason=Reason.STARTING)
        if not changes or method in ASKED_ONLY:
            return
        if self.phase is Phase.RESTORED:
            _check_restored(method)
        elif self.phase is Phase.READ_ONLY and self._trouble is not None:
            raise _repeated(self._trouble)
        else:
            raise Unavailable(
                "the server is about to stop; try again soon",
                reason=Reason.DRAINING,
                retry_after=DRAIN_RETRY_SECONDS,
            )

    def adopted(self) -> None:
        """A restored store is served like any other from now on."""
        self._resumes = Phase.SERVING
        if self.phase is Phase.RESTORED:
            self.phase = Phase.SERVING

    def disk_fails(self, trouble: HatobaError) -> None:
        """The store takes no writes: what changes anything is refused with this."""
        self._trouble = trouble
        if self.phase in (Phase.SERVING, Phase.RESTORED):
            self._resumes, self.phase = self.phase, Phase.READ_ONLY

    def disk_works(self) -> None:
        """The store takes writes again."""
        self._trouble = None
        if self.phase is Phase.READ_ONLY:
            self.phase = self._resumes

    def enter(self) -> None:
        """A unary call begins."""
        self.in_flight += 1

    def leave(self) -> None:
        """A unary call has ended."""
        self.in_flight -= 1
        if not self.in_flight and self.phase is Phase.DRAINING:
            self._idle.set()

    async def drain(self) -> None:
        """Refuse what changes anything from now on; returns once no unary call is in flight."""
        self.phase = Phase.DRAINING
        if self.in_flight:
            await self._idle.wait()


def _check_restored(method: str) -> None:
    if method in WHILE_RESTORED:
        return
    if method.startswith(_MACHINES):
        raise Unavailable(
            "the store was restored, and what runs is not adopted yet",
            reason=Reason.NOT_ADOPTED,
            retry_after=RUNNER_RETRY_SECONDS,
        )
    raise FailedPrecondition(
        "the store was restored from a backup: nothing is changed or started before "
        "`hatoba server adopt`, which attaches what backends still run "
        "(`--dry-run` only says what it would do)",
        reason=Reason.NOT_ADOPTED,
    )


def _repeated(trouble: HatobaError) -> HatobaError:
    """The same for one more caller: an exception is raised in one place only."""
    again = type(trouble)(
        f"{trouble.message}; reading works, and changes are taken again as soon as the disk does"
    )
    again.retry_after = DRAIN_RETRY_SECONDS
    return again
