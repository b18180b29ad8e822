"""What operators do: look at the whole installation, keep work away from places, take backups."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from hatoba.v1 import admin_pb2, worker_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

BACKUP_SECONDS = 600.0
"""Longest wait for what takes as long as the store is large."""
_PAGE = 1000


class AsyncOperations:
    """Calls for operators; `AsyncClient.operations`. Most need an administrator's token."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def overview(self) -> admin_pb2.Overview:
        """What one must know first: health, queues, what waits longest, what is late or unclear."""
        return await self._client.call(admin_pb2.GetOverviewRequest(), admin_pb2.Overview)

    async def backends(self) -> admin_pb2.ListBackendsResponse:
        """Opened backends, and plug-ins that could not be loaded."""
        request = admin_pb2.ListBackendsRequest()
        return await self._client.call(request, admin_pb2.ListBackendsResponse)

    async def cordon_backend(
        self, name: str, *, drain: bool = False, reason: str = ""
    ) -> admin_pb2.BackendInfo:
        """Launch nothing more there; with `drain` what runs there goes elsewhere."""
        request = admin_pb2.CordonBackendRequest(
            name=name, cordoned=True, drain=drain, reason=reason
        )
        return await self._client.call(request, admin_pb2.BackendInfo)

    async def check_backend(
        self, name: str, *, image: str = "", patience: float = 0.0
    ) -> AsyncGenerator[admin_pb2.CheckBackendResponse, None]:
        """Send a short job through all of a backend; yields each step as it is done, and ends
        with the first that fails. `patience`: seconds a step may take, 0: two minutes."""
        request = admin_pb2.CheckBackendRequest(name=name, image=image)
        if patience:
            request.patience.FromMilliseconds(round(patience * 1000))
        steps = self._client.transport.stream(request, admin_pb2.CheckBackendResponse)
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def uncordon_backend(self, name: str) -> admin_pb2.BackendInfo:
        """Let work come again."""
        request = admin_pb2.CordonBackendRequest(name=name)
        return await self._client.call(request, admin_pb2.BackendInfo)

    async def hosts(self) -> list[worker_pb2.Host]:
        """Hosts by name, connected or not."""
        request = worker_pb2.ListHostsRequest(page_size=_PAGE)
        found: list[worker_pb2.Host] = []
        while True:
            page = await self._client.call(request, worker_pb2.ListHostsResponse)
            found.extend(page.hosts)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def cordon_host(
        self, name: str, *, drain: bool = False, reason: str = ""
    ) -> worker_pb2.Host:
        """Keep new work away; with `drain` what runs there goes elsewhere."""
        request = worker_pb2.CordonHostRequest(name=name, cordoned=True, drain=drain, reason=reason)
        return await self._client.call(request, worker_pb2.Host)

    async def uncordon_host(self, name: str) -> worker_pb2.Host:
        """Let work come again."""
        return await self._client.call(worker_pb2.CordonHostRequest(name=name), worker_pb2.Host)

    async def back_up(self, path: str = "", *, with_blobs: bool = False) -> admin_pb2.Backup:
        """Write a copy of the store into a new directory of the server's machine."""
        request = admin_pb2.CreateBackupRequest(path=path, with_blobs=with_blobs)
        return await self._client.call(request, admin_pb2.Backup, timeout=BACKUP_SECONDS)

    async def backups(self) -> list[admin_pb2.Backup]:
        """Backups that files are kept for, newest first."""
        request = admin_pb2.ListBackupsRequest()
        return list((await self._client.call(request, admin_pb2.ListBackupsResponse)).backups)

    async def delete_backup(self, name: str) -> None:
        """Remove a backup and keep no files for it any more; twice is once."""
        request = admin_pb2.DeleteBackupRequest(name=name)
        await self._client.call(request, admin_pb2.DeleteBackupResponse)

    async def adopt_store(self, *, dry_run: bool = False) -> admin_pb2.AdoptStoreResponse:
        """After a restore: attach what backends still run to its jobs, then serve.

        Raises FailedPrecondition unless the server waits for it.
        """
        request = admin_pb2.AdoptStoreRequest(dry_run=dry_run)
        return await self._client.call(
            request, admin_pb2.AdoptStoreResponse, timeout=BACKUP_SECONDS
        )

    async def check_store(self, *, repair: bool = False) -> list[admin_pb2.StoreProblem]:
        """What is not as it must be of the store; `repair` mends what needs no guess."""
        request = admin_pb2.CheckStoreRequest(repair=repair)
        reply = await self._client.call(
            request, admin_pb2.CheckStoreResponse, timeout=BACKUP_SECONDS
        )
        return list(reply.problems)


class Operations:
    """The same calls, synchronously; `Client.operations`."""

    def __init__(self, loop: _LoopThread, operations: AsyncOperations) -> None:
        self._loop = loop
        self._operations = operations

    def overview(self) -> admin_pb2.Overview:
        """See AsyncOperations.overview."""
        return self._loop.run(self._operations.overview())

    def backends(self) -> admin_pb2.ListBackendsResponse:
        """See AsyncOperations.backends."""
        return self._loop.run(self._operations.backends())

    def cordon_backend(
        self, name: str, *, drain: bool = False, reason: str = ""
    ) -> admin_pb2.BackendInfo:
        """See AsyncOperations.cordon_backend."""
        return self._loop.run(self._operations.cordon_backend(name, drain=drain, reason=reason))

    def uncordon_backend(self, name: str) -> admin_pb2.BackendInfo:
        """Let work come again."""
        return self._loop.run(self._operations.uncordon_backend(name))

    def hosts(self) -> list[worker_pb2.Host]:
        """Hosts by name, connected or not."""
        return self._loop.run(self._operations.hosts())

    def cordon_host(self, name: str, *, drain: bool = False, reason: str = "") -> worker_pb2.Host:
        """See AsyncOperations.cordon_host."""
        return self._loop.run(self._operations.cordon_host(name, drain=drain, reason=reason))

    def uncordon_host(self, name: str) -> worker_pb2.Host:
        """Let work come again."""
        return self._loop.run(self._operations.uncordon_host(name))

    def back_up(self, path: str = "", *, with_blobs: bool = False) -> admin_pb2.Backup:
        """See AsyncOperations.back_up."""
        return self._loop.run(self._operations.back_up(path, with_blobs=with_blobs))

    def backups(self) -> list[admin_pb2.Backup]:
        """See AsyncOperations.backups."""
        return self._loop.run(self._operations.backups())

    def delete_backup(self, name: str) -> None:
        """See AsyncOperations.delete_backup."""
        self._loop.run(self._operations.delete_backup(name))

    def adopt_store(self, *, dry_run: bool = False) -> admin_pb2.AdoptStoreResponse:
        """See AsyncOperations.adopt_store."""
        return self._loop.run(self._operations.adopt_store(dry_run=dry_run))

    def check_store(self, *, repair: bool = False) -> list[admin_pb2.StoreProblem]:
        """See AsyncOperations.check_store."""
        return self._loop.run(self._operations.check_store(repair=repair))
