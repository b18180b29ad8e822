"""Trees of files to the server and back; what only has to wait is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import grpc.aio
import structlog

from hatoba import errors
from hatoba.artifacts.errors import ObjectChanged, TreeChanged, TreeRefused
from hatoba.artifacts.pack import pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.artifacts.transfer import (
    TransferOptions,
    download_files,
    download_tree,
    fetch_manifest,
    upload_tree,
)
from hatoba.errors import HatobaError
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc, common_pb2
from hatoba_worker.dial import Connection
from hatoba_worker.failures import Away
from hatoba_worker.transfers import InputChanged, TransferFailed

log = structlog.get_logger(__name__)

T = TypeVar("T")
FIRST_WAIT = 0.2
LONGEST_WAIT = 5.0
_CHANGES = 3
_TROUBLES = 5
_PASSING = (
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Exhausted,
    errors.Aborted,
    errors.NotAllowed,
)
_OUT_OF_SCOPE = "OUT_OF_SCOPE"
"""Of a runner's credential whose attempt is over: it opens nothing more."""
Stub: TypeAlias = "artifact_pb2_grpc.ArtifactServiceAsyncStub"


class Link(Protocol):
    """Where an open connection comes from."""

    async def link(self) -> Connection:
        """The open connection, waited for."""


class ServerTransfers:
    """Trees to and from the server that the worker is connected to."""

    def __init__(
        self, link: Link, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._link = link
        self._sleep = sleep

    async def upload(self, root: Path) -> common_pb2.ManifestRef:
        """Store everything below `root`; raises TransferFailed when it keeps changing."""
        if await asyncio.to_thread(root.is_symlink):
            # Of a container it would lead to what only the worker may read.
            raise TransferFailed(f"{root.name} is a link, and not a directory")
        for _ in range(_CHANGES):
            try:
                return await self._upload(root)
            except TreeChanged as error:
                log.info("tree.changed", error=str(error))
        raise TransferFailed(f"{root.name} was written to while it was brought out")

    async def _upload(self, root: Path) -> common_pb2.ManifestRef:
        try:
            packed = await asyncio.to_thread(pack_tree, root, Selection.EVERYTHING)
        except TreeRefused as error:
            raise TransferFailed(str(error)) from error
        return await self._patiently(lambda stub, options: upload_tree(stub, packed, options))

    async def download(self, ref: common_pb2.ManifestRef, root: Path) -> None:
        """Put a stored tree below `root`, which does not exist yet; raises TransferFailed."""
        await self._patiently(lambda stub, options: download_tree(stub, ref.digest, root, options))

    async def manifest(self, ref: common_pb2.ManifestRef) -> artifact_pb2.Manifest:
        """What a stored tree holds; raises TransferFailed."""
        return await self._patiently(
            lambda stub, options: fetch_manifest(stub, ref.digest, options)
        )

    async def files(
        self, ref: common_pb2.ManifestRef, some: artifact_pb2.Manifest, root: Path
    ) -> None:
        """Put some of a stored tree's files below `root`, which does not exist yet; raises
        TransferFailed.
        """
        digest = ref.digest
        await self._patiently(
            lambda stub, options: download_files(stub, some, root, options, digest=digest)
        )

    async def _patiently(self, move: Callable[[Stub, TransferOptions], Awaitable[T]]) -> T:
        wait, troubles = FIRST_WAIT, 0
        while True:
            link = await self._link.link()
            try:
                return await _once(link, move)
            except errors.ServerError as error:
                troubles += 1
                if troubles >= _TROUBLES:
                    raise TransferFailed(str(error)) from error
                log.warning("transfer.trouble", error=str(error), seconds=wait)
            except Away as error:
                log.info("transfer.again", error=str(error), seconds=wait)
            await self._sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)


async def _once(link: Connection, move: Callable[[Stub, TransferOptions], Awaitable[T]]) -> T:
    stub = artifact_pb2_grpc.ArtifactServiceStub(link.bulk)
    try:
        return await move(stub, TransferOptions(metadata=link.metadata))
    except _PASSING as error:
        if error.reason == _OUT_OF_SCOPE:
            raise TransferFailed(str(error)) from error
        raise Away(str(error)) from error
    except (TreeChanged, errors.ServerError):
        raise
    except ObjectChanged as error:
        raise InputChanged(str(error)) from error
    except HatobaError as error:
        raise TransferFailed(str(error)) from error
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
        raise Away(f"the connection was closed: {error}") from error
    except asyncio.CancelledError as error:
        # A channel that is closed cancels its calls, which is not to say that we are cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Away("the connection was closed") from error
