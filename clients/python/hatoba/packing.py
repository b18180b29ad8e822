"""Brings a job's directories to the server, and its outputs back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hatoba import code_versions
from hatoba.artifacts.pack import PackedTree, pack_tree
from hatoba.artifacts.scan import Scan, Selection, scan_tree
from hatoba.artifacts.scan_cache import ScanCache
from hatoba.artifacts.transfer import Progress, TransferOptions, download_tree, upload_tree
from hatoba.errors import InvalidRequest, InvalidSpec, Unavailable
from hatoba.transport import RETRY_WAITS
from hatoba.v1 import artifact_pb2_grpc, common_pb2, job_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.options import Parcel

T = TypeVar("T")


def nobody(done: int, total: int) -> None:
    """Tell nobody how far a transfer is."""


async def bring(client: AsyncClient, parcel: Parcel) -> None:
    """Pack and send the parcel's directories, and name them in its specification.

    What the server has already is not sent again. Raises InvalidSpec for what is no directory,
    TreeRefused for what cannot be packed, and what the server says.
    """
    if parcel.code is not None:
        await _bring_code(client, parcel.spec, parcel.code)
    for name, directory in parcel.inputs.items():
        ref = await send_tree(client, directory, Selection.EVERYTHING, f"input {name!r}")
        _input(parcel.spec, name).manifest.CopyFrom(ref)


async def _bring_code(client: AsyncClient, spec: job_pb2.JobSpec, directory: Path) -> None:
    # git looks around while the code is packed and sent.
    looking = asyncio.get_running_loop().run_in_executor(None, code_versions.origin_of, directory)
    spec.code.CopyFrom(await send_tree(client, directory, Selection.CODE, "the code"))
    origin = await looking
    spec.source.update(origin.source)
    with client.transport.tracer.span("record the code"):
        spec.code_version = await _recorded(client, spec, origin)


async def _recorded(
    client: AsyncClient, spec: job_pb2.JobSpec, origin: code_versions.Origin
) -> str:
    """The version of the code; none when its name is no name, which the submit will say."""
    try:
        return (await code_versions.record(client, spec.name, spec.code, origin)).name
    except InvalidRequest as error:
        if [one.field for one in error.violations] != ["code"]:
            raise
        return ""


async def send_tree(
    client: AsyncClient,
    directory: Path,
    selection: Selection,
    what: str,
    added: Path | None = None,
) -> common_pb2.ManifestRef:
    """Pack a directory, with `added`, a file from elsewhere, in it, and store it; `what` is what
    people call it.

    Raises InvalidSpec for what is no directory, TreeRefused.
    """
    with client.transport.tracer.span(f"pack {what}"):
        scan = await asyncio.to_thread(_scan, directory, selection, what)
        if added is not None:
            await asyncio.to_thread(scan.add, added)
        for warning in [*scan.warnings, scan.size_warning()]:
            if warning:
                client.notify(warning)
        cache = ScanCache.worth_it(scan)
        packed = await asyncio.to_thread(partial(pack_tree, scan, cache=cache))
    with client.transport.tracer.span(f"send {what}"):
        return await upload(client, packed)


def _scan(directory: Path, selection: Selection, what: str) -> Scan:
    if not directory.is_dir():
        raise InvalidSpec(f"{what}: there is no directory {directory}")
    return scan_tree(directory, selection)


async def upload(
    client: AsyncClient, packed: PackedTree, progress: Progress = nobody
) -> common_pb2.ManifestRef:
    """Store a packed tree; what the server has already is not sent again."""

    async def send() -> common_pb2.ManifestRef:
        return await upload_tree(stub(client), packed, transfer_options(client, progress))

    return await patiently(client, send)


async def fetch(
    client: AsyncClient,
    ref: common_pb2.ManifestRef,
    directory: Path,
    progress: Progress = nobody,
    only: frozenset[str] = frozenset(),
) -> None:
    """Fetch a tree, or `only` the files at some paths, into a directory: absent or empty."""

    async def receive() -> common_pb2.ManifestRef:
        options = replace(transfer_options(client, progress), only=only)
        return await download_tree(stub(client), ref.digest, directory, options)

    await patiently(client, receive)


@contextmanager
def one_file(name: str, content: Iterable[bytes]) -> Iterator[PackedTree]:
    """A tree of one file with this content, as long as it can be read. Blocks."""
    with scratch() as directory:
        path = directory / name
        with open(path, "wb") as file:
            file.writelines(content)
        # The same tree whatever the umask.
        path.chmod(0o644)
        yield pack_tree(path, Selection.EVERYTHING)


@contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """A directory for a while; `beside` another one it is on the same file system. Blocks."""
    where = beside.parent if beside else None
    with tempfile.TemporaryDirectory(prefix=".hatoba-", dir=where) as made:
        yield Path(made)


@asynccontextmanager
async def on_thread(made: AbstractContextManager[T]) -> AsyncIterator[T]:
    """A context whose beginning and end block."""
    entered = await asyncio.to_thread(made.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(made.__exit__, None, None, None)


async def patiently(client: AsyncClient, transfer: Callable[[], Awaitable[T]]) -> T:
    """Repeat a transfer while the server is away: what arrived is not sent again."""
    for wait in RETRY_WAITS:
        try:
            return await transfer()
        except Unavailable:
            await client.transport.pause(wait)
            await client.transport.relocate()
    return await transfer()


def stub(client: AsyncClient) -> artifact_pb2_grpc.ArtifactServiceAsyncStub:
    """The calls that move chunks, on the client's connection."""
    return artifact_pb2_grpc.ArtifactServiceStub(client.transport.channel)


def transfer_options(client: AsyncClient, progress: Progress = nobody) -> TransferOptions:
    """How the client's trees are moved."""
    transport = client.transport
    address = transport.server.address
    return TransferOptions(metadata=transport.metadata, address=address, progress=progress)


def _input(spec: job_pb2.JobSpec, name: str) -> job_pb2.Input:
    """The specification's input of that name, added where it has none."""
    for entry in spec.inputs:
        if entry.name == name:
            return entry
    return spec.inputs.add(name=name)
