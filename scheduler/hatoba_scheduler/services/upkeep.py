"""AdminService's part about the store as a whole: backups, adoption, checks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from hatoba.v1 import admin_pb2
from hatoba_scheduler.control.backups import Backups
from hatoba_scheduler.control.checking import LIVE_CHECKED, StoreCheck
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.errors import FailedPrecondition
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.store.backups import BackupRecord
from hatoba_scheduler.store.sqlite.doctor import CHECKED


class Adopted(Protocol):
    """What an adoption did, or would do."""

    @property
    def adopted(self) -> list[str]:
        """External names that have their tasks again."""
        ...

    @property
    def reported(self) -> list[str]:
        """What was left alone: name and why."""
        ...


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Answers the calls. `restored` says whether an adoption is waited for."""

    backups: Backups
    check: StoreCheck
    restored: Callable[[], bool]
    adopt: Callable[[bool], Awaitable[Adopted]]
    one: asyncio.Lock

    async def create(self, request: admin_pb2.CreateBackupRequest) -> admin_pb2.Backup:
        """Take a backup."""
        record = await self.backups.create(request.path, with_blobs=request.with_blobs)
        return _message(record)

    async def list(self) -> admin_pb2.ListBackupsResponse:
        """Backups, newest first."""
        found = await self.backups.all()
        return admin_pb2.ListBackupsResponse(backups=[_message(one) for one in found])

    async def delete(self, request: admin_pb2.DeleteBackupRequest) -> None:
        """Let go of a backup."""
        await self.backups.delete(request.name)

    async def adopt_store(
        self, request: admin_pb2.AdoptStoreRequest
    ) -> admin_pb2.AdoptStoreResponse:
        """Attach what runs to the jobs of a restored store, then serve."""
        async with self.one:
            if not self.restored():
                raise FailedPrecondition(
                    "the store was not restored, or is adopted already: there is nothing to adopt"
                )
            done = await self.adopt(request.dry_run)
        return admin_pb2.AdoptStoreResponse(adopted=done.adopted, reported=done.reported)

    async def check_store(
        self, request: admin_pb2.CheckStoreRequest
    ) -> admin_pb2.CheckStoreResponse:
        """What is wrong with the store, and with what memory holds of it."""
        found = await self.check.check(current_call().principal, repair=request.repair)
        return admin_pb2.CheckStoreResponse(
            problems=[
                admin_pb2.StoreProblem(
                    invariant=one.invariant,
                    message=one.message,
                    repair=one.repair,
                    repaired=one.repaired,
                )
                for one in found
            ],
            checked=[*CHECKED, LIVE_CHECKED],
        )


def _message(record: BackupRecord) -> admin_pb2.Backup:
    out = admin_pb2.Backup(
        name=f"backups/{record.id}",
        path=record.path,
        size_bytes=record.size_bytes,
        last_event=record.last_event,
        manifests=record.manifests,
    )
    set_time(out.create_time, record.create_time)
    return out
