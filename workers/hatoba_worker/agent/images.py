"""Images of releases in the device's container engine, for which a registry is only needed once.

An image is brought in blob by blob, looked at, and given to the engine when all of it is here; from
then on the engine has it and the blobs go. What the engine said of it then is kept in a file of its
own: by that it is found without a registry, and looked at again after a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tarfile
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import structlog

from hatoba_worker.agent import disk
from hatoba_worker.agent.archive import Digests, archive, require_program
from hatoba_worker.agent.blobs import (
    BlobStore,
    Cut,
    Full,
    NoEngine,
    NotTaken,
    Unusable,
    Wrong,
    room,
)
from hatoba_worker.agent.engines import DeviceEngine, Known, Layer
from hatoba_worker.agent.registries import Registries
from hatoba_worker.agent.registry import (
    Blob,
    Manifest,
    Platform,
    Reference,
    Registry,
    require_platform,
)
from hatoba_worker.executors.containers import manifest
from hatoba_worker.executors.containers.engine import (
    Engine,
    EngineAway,
    EngineMissing,
    EngineRefused,
    connected,
)

log = structlog.get_logger(__name__)

PROGRAM = "python3"
"""What serves in an image, whatever it begins with by itself."""
LOADS_WITHIN = 3_600.0
"""Seconds that an engine may take to unpack an image; a small card is slow."""
UNPACKED = 3
"""So many times its size is a layer believed to take that does not say how large it is."""
_LIKELY = range(1, 31)
"""So many times its size a layer may take that says so itself."""
_TAIL = 4
_NO_ROOM = re.compile(r"no space left|disk quota", re.I)
Json = Mapping[str, Any]


class Silent(OSError):
    """The container engine does not answer: nothing can be said of what it has."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An image on its way. `had`: so many of its layers the engine has, from the first on."""

    reference: str
    manifest: Manifest
    config: Json
    layers: tuple[Layer, ...]
    had: int = 0

    @property
    def missing(self) -> tuple[Blob, ...]:
        """Layers that have to come."""
        return self.manifest.layers[self.had :]

    @property
    def size(self) -> int:
        """Bytes that the engine is given."""
        return self.manifest.config.size + sum(one.size for one in self.missing)


class DeviceImages:
    """See `Images` of `content`. `store` has blobs on their way, below `root`."""

    def __init__(
        self,
        root: Path,
        store: BlobStore,
        engine: DeviceEngine,
        registries: Registries,
        platform: Platform,
    ) -> None:
        self._root = root
        self._store = store
        self._place = engine
        self._book = engine.book
        self._registries = registries
        self._platform = platform
        self._one = asyncio.Lock()
        """One at a time: they share layers, and the link."""

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        self._book.prepare()
        self._store.prepare()

    # -- bringing in ----------------------------------------------------------------------------

    async def require(self, reference: str, architecture: str) -> None:
        """Raise Unusable for an image that can never be here."""
        Reference.parse(reference)
        if lacks := await asyncio.to_thread(self._place.lacks):
            raise NoEngine(f"{lacks}; {reference} is an image")
        if architecture not in ("", self._platform.architecture):
            raise Unusable(f"the image is for {architecture}, this device is {self._platform}")

    async def fetch(self, reference: str, beside: int) -> None:
        """Have an image in the engine; `beside` are bytes that the rest of its release takes.
        Raises Cut, Gone, Wrong, Full, Unusable, OSError.
        """
        try:
            async with connected(self._place.socket) as engine:
                if await self._is_here(engine, reference):
                    return
                async with self._one:
                    if not await self._is_here(engine, reference):
                        await self._bring(engine, reference, beside)
        except (EngineAway, EngineRefused) as error:
            raise Cut(f"the container engine does not answer: {error}") from error
        except EngineMissing as error:
            raise NoEngine(f"this device's agent speaks to no container engine: {error}") from error

    async def _is_here(self, engine: Engine, reference: str) -> bool:
        """Whether the engine has it already, from us or from somebody who pulled it."""
        known = await asyncio.to_thread(self._book.known, reference)
        seen = await _seen(engine, known.id if known is not None else reference)
        if seen is None or known is not None:
            return seen is not None
        has = str(seen.get("Architecture") or "")
        if has != self._platform.architecture:
            raise Unusable(f"the image is for {has}, this device is {self._platform}")
        layers = tuple(Layer("", one) for one in _layers(seen))
        await asyncio.to_thread(self._book.keep, Known(reference, str(seen["Id"]), layers))
        return True

    async def _bring(self, engine: Engine, reference: str, beside: int) -> None:
        async with self._registries.reached(Reference.parse(reference)) as registry:
            found = await registry.manifest(self._platform)
            path = await self._store.fetch(found.config.digest, found.config.size, registry)
            config = require_platform(await asyncio.to_thread(path.read_bytes), self._platform)
            wanted = _Wanted(reference, found, config, _paired(found, config))
            had = await self._had(engine, wanted.layers)
            try:
                await self._take(engine, replace(wanted, had=had), registry, beside)
            except NotTaken:
                if not had:
                    raise
                # Not every engine takes an image without what it has of it.
                await self._take(engine, wanted, registry, beside)

    async def _had(self, engine: Engine, layers: Sequence[Layer]) -> int:
        """How many of these layers, from the first on, images have that we gave the engine."""
        most = 0
        for known in await asyncio.to_thread(self._book.all):
            same = _alike(known.layers, layers)
            if same > most and await _seen(engine, known.id) is not None:
                most = same
        return most

    async def _take(self, engine: Engine, wanted: _Wanted, registry: Registry, beside: int) -> None:
        """Bring in what is missing, look at it, and give it to the engine."""
        makes = await self._require_room(engine, wanted, registry, beside)
        blobs = {
            part.digest: await self._store.fetch(part.digest, part.size, registry)
            for part in (wanted.manifest.config, *wanted.missing)
        }
        try:
            await self._require_program(wanted, blobs)
            await self._load(engine, wanted, blobs, makes)
        except (Unusable, Wrong) as error:
            if not (isinstance(error, NotTaken) and wanted.had):
                await asyncio.to_thread(_removed, blobs.values())
            raise
        await asyncio.to_thread(_removed, blobs.values())

    async def _require_program(self, wanted: _Wanted, blobs: Mapping[str, Path]) -> None:
        architecture = self._platform.architecture
        await asyncio.to_thread(
            require_program, wanted.config, wanted.manifest, blobs, architecture, PROGRAM
        )

    async def _load(
        self, engine: Engine, wanted: _Wanted, blobs: Mapping[str, Path], makes: int
    ) -> None:
        """Give the engine what is whole, and believe it once it has the same."""
        tag = self._book.tag(wanted.reference)
        try:
            async with asyncio.timeout(LOADS_WITHIN):
                await engine.load(_pieces(archive(wanted.manifest, blobs, tag)))
            seen = await engine.image(tag)
        except TimeoutError as error:
            raise Cut(f"the container engine took longer than {LOADS_WITHIN:g} s") from error
        except EngineRefused as error:
            if _NO_ROOM.search(str(error)):
                raise Full(makes, await asyncio.to_thread(room, self._root)) from error
            raise NotTaken(f"the container engine does not take the image: {error}") from error
        if not _is_same(seen, wanted):
            await engine.remove_image(tag, force=True)
            raise Wrong(f"what the container engine made of {wanted.reference} is something else")
        await asyncio.to_thread(_synced, (await engine.facts()).root)
        known = Known(wanted.reference, str(seen["Id"]), wanted.layers)
        await asyncio.to_thread(self._book.keep, known)
        log.info("image.loaded", image=known.reference, id=known.id)

    # -- room -----------------------------------------------------------------------------------

    async def _require_room(
        self, engine: Engine, wanted: _Wanted, registry: Registry, beside: int
    ) -> int:
        """Raise Full before anything large comes; else bytes that the engine needs for it, which
        copies what it is given before it unpacks that.
        """
        here = [await asyncio.to_thread(self._store.size, one.digest) for one in wanted.missing]
        unpacked = [await self._unpacked(one, registry) for one in wanted.missing]
        makes = wanted.size + sum(unpacked)
        root = (await engine.facts()).root
        await asyncio.to_thread(_require, self._root, root, wanted.size - sum(here) + beside, makes)
        return makes

    async def _unpacked(self, layer: Blob, registry: Registry) -> int:
        """Bytes that a layer takes, as its own last ones say."""
        if layer.media_type.endswith(".tar"):
            return layer.size
        tail = await self._tail(layer, registry)
        told = int.from_bytes(tail, "little")
        likely = bool(layer.size) and told // layer.size in _LIKELY
        return told if likely else UNPACKED * layer.size

    async def _tail(self, layer: Blob, registry: Registry) -> bytes:
        start = max(0, layer.size - _TAIL)
        if await asyncio.to_thread(self._store.has, layer.digest):
            return await asyncio.to_thread(_end_of, self._store.path(layer.digest), start)
        found = b""
        # A registry that cannot begin in the middle: what it cannot say is guessed.
        with contextlib.suppress(Cut):
            async with contextlib.aclosing(registry.read(layer.digest, start)) as pieces:
                async for piece in pieces:
                    found += piece
                    if len(found) >= _TAIL:
                        break
        return found[:_TAIL]

    # -- looking again --------------------------------------------------------------------------

    async def check(self, reference: str) -> bool:
        """Whether the engine has all of an image, read again from its disk; one that it has not is
        removed, with our containers of it. Raises Silent.
        """
        known = await asyncio.to_thread(self._book.known, reference)
        if known is None:
            return False
        try:
            async with connected(self._place.socket) as engine:
                whole = await self._is_whole(engine, known)
                if not whole:
                    log.warning("image.spoiled", image=reference)
                    await self._drop(engine, known)
                return whole
        except (EngineAway, EngineMissing, EngineRefused) as error:
            raise Silent(f"the container engine does not answer: {error}") from error

    async def _is_whole(self, engine: Engine, known: Known) -> bool:
        seen = await _seen(engine, known.id)
        if seen is None or _layers(seen) != [one.unpacked for one in known.layers]:
            return False
        for _ in range(2):
            try:
                found = await _digests(engine.save(known.id))
                return all(found & set(layer) for layer in known.layers)
            except EngineRefused as error:
                # Nobody can tell: it is copied out for that, and there is no room.
                return bool(_NO_ROOM.search(str(error)))
            except EngineAway:
                # It ends in the middle for what it cannot read, as it does when it is ended.
                await engine.facts()
        return False

    async def _drop(self, engine: Engine, known: Known) -> None:
        """Have nothing of it in the engine: of what is kept there nothing is unpacked anew."""
        await asyncio.to_thread(self._book.forget, known.reference)
        label = f"{manifest.HOST}={self._book.key}"
        try:
            for one in await engine.list(label, known.id):
                await engine.remove(one["Id"])
            await engine.remove_image(self._book.tag(known.reference), force=True)
            await engine.remove_image(known.id, force=True)
        except EngineRefused as error:
            log.warning("image.not_removed", image=known.reference, error=str(error))

    # -- collecting -----------------------------------------------------------------------------

    async def collect(self, keep: Collection[str]) -> None:
        """Remove images that are not to be kept; those that others brought into the engine are
        theirs. What cannot be done now is done another time.
        """
        every = await asyncio.to_thread(self._book.all)
        gone = [known for known in every if known.reference not in keep]
        if gone:
            with contextlib.suppress(EngineAway, EngineMissing, EngineRefused):
                async with connected(self._place.socket) as engine:
                    for known in gone:
                        await self._let_go(engine, known)
        if not self._one.locked() and {known.reference for known in every} >= set(keep):
            # What is on its way is of what is not here yet: of that nothing is taken.
            async with self._one:
                await asyncio.to_thread(self._store.collect, ())

    async def _let_go(self, engine: Engine, known: Known) -> None:
        try:
            await engine.remove_image(self._book.tag(known.reference))
        except EngineRefused as error:
            log.warning("image.not_removed", image=known.reference, error=str(error))
            return
        await asyncio.to_thread(self._book.forget, known.reference)


async def _seen(engine: Engine, name: str) -> Json | None:
    try:
        return await engine.image(name)
    except EngineRefused:
        return None


def _layers(seen: Json) -> list[str]:
    return [str(one) for one in (seen.get("RootFS") or {}).get("Layers") or ()]


def _paired(found: Manifest, config: Json) -> tuple[Layer, ...]:
    """Layers as they come and as they are unpacked. Raises Unusable."""
    unpacked = (config.get("rootfs") or {}).get("diff_ids") or ()
    if len(unpacked) != len(found.layers):
        text = f"{found.digest} has {len(found.layers)} layers, its configuration {len(unpacked)}"
        raise Unusable(text)
    pairs = zip(found.layers, unpacked, strict=True)
    return tuple(Layer(layer.digest, str(one)) for layer, one in pairs)


def _alike(some: Sequence[Layer], others: Sequence[Layer]) -> int:
    """How many layers are the same, from the first on."""
    pairs = zip(some, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].unpacked == pair[1].unpacked, pairs))


def _is_same(seen: Json, wanted: _Wanted) -> bool:
    """Engines call an image by the digest of its configuration, or, the newer way of keeping them,
    by something of their own: then its layers tell.
    """
    layers = [one.unpacked for one in wanted.layers]
    return seen["Id"] == wanted.manifest.config.digest or _layers(seen) == layers


async def _pieces(made: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, made, b""):
        yield piece


async def _digests(pieces: AsyncIterator[bytes]) -> set[str]:
    """Of all files of an archive; those before what is no archive any more."""
    digests = Digests()
    with contextlib.suppress(tarfile.TarError):
        async for piece in pieces:
            await asyncio.to_thread(digests.take, piece)
    return digests.found


def _removed(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _end_of(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(_TAIL)


def _synced(root: str) -> None:
    """What the engine wrote is on the disk itself; blocks. Its directory may be closed to us."""
    try:
        disk.sync_file_system(Path(root))
    except OSError:
        os.sync()


def _require(own: Path, engine: str, bring: int, makes: int) -> None:
    """Raise Full where there is no room on our disk for what comes, or on the engine's for what it
    makes of it; blocks. Where that cannot be looked at it is ours.
    """
    try:
        apart = os.stat(engine).st_dev != os.stat(own).st_dev
    except OSError:
        apart = False
    needs = [(own, bring), (Path(engine), makes)] if apart else [(own, bring + makes)]
    for path, needed in needs:
        if needed > (free := room(path)):
            raise Full(needed, free)
