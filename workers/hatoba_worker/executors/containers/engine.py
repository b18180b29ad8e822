"""One connection to a Docker engine, in few words and few errors.

Raises EngineAway when it cannot be told whether the engine did what was asked, EngineRefused when
it answered and did not. `aiodocker` is imported when a connection is made.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import aiodocker
    import aiohttp

ANSWERS_WITHIN = 60.0
"""Seconds for a call that is not a stream; starting a large image can take tens."""
_LOAD_FAILED = 500
"""What stands for an error that comes with status 200."""
_AWAY = 900
_PIECE = 256 << 10
_NEVER_DETACHED = "ctrl-^,ctrl-],ctrl-^,ctrl-]"
"""Keys that nobody types: by default Ctrl-P would be held back."""
_HEADER = struct.Struct(">BxxxL")
_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}

Json = Mapping[str, Any]


class EngineAway(Exception):
    """The engine could not be reached, or went away over a call."""


class EngineRefused(Exception):
    """The engine answered, and did not do it. `status` is HTTP's; 0: told in a stream."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EngineMissing(Exception):
    """The client is not installed."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine is: its version, the architecture of its machine, and the directory where it
    keeps everything."""

    version: str
    arch: str
    root: str = ""


class Frame(NamedTuple):
    """A piece of output: `stream` 1 is stdout, 2 stderr; `time` as the engine writes it."""

    stream: int
    time: str
    data: bytes


class Engine:
    """An open connection; see `connected`."""

    def __init__(self, docker: aiodocker.Docker) -> None:
        self._docker = docker

    # -- the engine -----------------------------------------------------------------------------

    @property
    def api(self) -> str:
        """The version of its interface that is spoken, as in paths."""
        return self._docker.api_version

    async def facts(self) -> Facts:
        """Who it is."""
        async with _called():
            told = await self._docker.system.info()
        arch = str(told["Architecture"])
        root = str(told.get("DockerRootDir") or "")
        return Facts(str(told["ServerVersion"]), _NAMES.get(arch, arch), root)

    async def events(self, label: str, since: str) -> AsyncGenerator[Json, None]:
        """Events of containers with a label, those it remembers since then first; for ever.

        The first item is empty: from then on nothing is missed.
        """
        filters = json.dumps({"type": ["container"], "label": [label]})
        params = {"filters": filters, "since": since or "0"}
        async with self._stream("events", params) as response:
            yield {}
            async for line in response.content:
                yield json.loads(line)
        raise EngineAway("the engine closed its stream of events")

    # -- containers -----------------------------------------------------------------------------

    async def list(self, label: str, image: str = "") -> Sequence[Json]:
        """All containers with a label, running or not, each in short; with `image` those of it or
        of one that was made from it."""
        filters = json.dumps({"label": [label], **({"ancestor": [image]} if image else {})})
        async with _called():
            found = await self._docker.containers.list(all=True, filters=filters)
        return [{key: one[key] for key in ("Id", "Labels", "State")} for one in found]

    async def inspect(self, name: str) -> Json:
        """All of one container. Raises EngineRefused (404)."""
        async with _called():
            return await self._docker.containers.container(name).show()

    async def create(self, name: str, config: Json) -> None:
        """Make a container. Raises EngineRefused: 409 for a name that is taken."""
        async with _called():
            await self._docker.containers.create(config, name=name)

    async def start(self, name: str) -> None:
        """Start a container, which must not have run before."""
        async with _called():
            await self._docker.containers.container(name).start()

    async def signal(self, name: str, signal: str) -> None:
        """Send a signal to the main process. Raises EngineRefused: 409 for one that does not
        run."""
        async with _called():
            await self._docker.containers.container(name).kill(signal=signal)

    async def create_exec(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], *, terminal: bool
    ) -> str:
        """Make ready a command in a running container; its id. Raises EngineRefused."""
        async with _called():
            made = await self._docker.containers.container(name).exec(
                list(argv),
                stdin=True,
                tty=terminal,
                environment=dict(env),
                detach_keys=_NEVER_DETACHED,
            )
        return made.id

    async def inspect_exec(self, ident: str) -> Json:
        """All of a command in a container. Raises EngineRefused (404)."""
        from aiodocker.execs import Exec

        async with _called():
            found: Json = await Exec(self._docker, ident).inspect()
        return found

    async def resize_exec(self, ident: str, rows: int, columns: int) -> None:
        """Its terminal is of this size from now on."""
        from aiodocker.execs import Exec

        async with _called():
            await Exec(self._docker, ident).resize(h=rows, w=columns)

    async def remove(self, name: str) -> None:
        """End and remove a container; one that is not there is removed already."""
        try:
            async with _called():
                await self._docker.containers.container(name).delete(force=True, v=True)
        except EngineRefused as error:
            if error.status != 404 and "already in progress" not in str(error):
                raise

    async def output(
        self, name: str, since: str, *, follow: bool
    ) -> AsyncGenerator[Sequence[Frame], None]:
        """What a container wrote, from the time on that `since` names, as it comes; ends with
        it."""
        params = {
            "stdout": "1",
            "stderr": "1",
            "timestamps": "1",
            "since": since or "0",
            "follow": "1" if follow else "0",
        }
        async with self._stream(f"containers/{name}/logs", params) as response:
            rest = b""
            async for data in response.content.iter_any():
                frames, rest = frames_in(rest + data)
                yield frames

    async def sample(self, name: str) -> Json:
        """What a container uses now."""
        params = {"stream": "false", "one-shot": "true"}
        async with self._stream(f"containers/{name}/stats", params) as response:
            found: Json = json.loads(await response.read())
        return found

    # -- images ---------------------------------------------------------------------------------

    async def image(self, reference: str) -> Json:
        """What the engine has of an image. Raises EngineRefused (404)."""
        async with _called():
            return await self._docker.images.inspect(reference)

    async def pull(self, reference: str, auth: Json | None) -> AsyncIterator[Json]:
        """Bring an image in, telling of each step."""
        async with _called(None):
            async for step in self._docker.images.pull(reference, auth=auth, stream=True):
                yield step

    async def load(self, archive: AsyncIterator[bytes]) -> None:
        """Take in an image as an archive, as `docker save` makes one: all of it, or nothing. Raises
        EngineRefused.
        """
        async with _called(None):
            for told in await self._docker.images.import_image(archive):
                if error := told.get("error"):
                    raise EngineRefused(_LOAD_FAILED, str(error))

    async def save(self, name: str) -> AsyncGenerator[bytes, None]:
        """An image as an archive, read again from the engine's disk, which has to have room for it
        once more. Raises EngineRefused.
        """
        async with self._stream(f"images/{name}/get", {}) as response:
            async for piece in response.content.iter_chunked(_PIECE):
                yield piece

    async def remove_image(self, name: str, *, force: bool = False) -> None:
        """Take a name from an image, and with its last one the image itself; one that is not there
        is removed already. Raises EngineRefused: 409 for one that a container is made of.
        """
        try:
            async with _called():
                await self._docker.images.delete(name, force=force)
        except EngineRefused as error:
            if error.status != 404:
                raise

    # -- streams --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _stream(
        self, path: str, params: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response that may go on for ever: the client's own reads give no stream numbers."""
        from aiohttp import ClientTimeout

        docker = self._docker
        url = f"{docker.docker_host}/{docker.api_version}/{path}"
        patient = ClientTimeout(total=None, sock_read=None, sock_connect=ANSWERS_WITHIN)
        async with (
            _called(None),
            docker.session.get(url, params=dict(params), timeout=patient) as response,
        ):
            if response.status >= 400:
                raise EngineRefused(response.status, _message(await response.text()))
            yield response


@asynccontextmanager
async def connected(socket: str) -> AsyncIterator[Engine]:
    """A connection to the engine at a unix socket. Raises EngineAway, EngineMissing."""
    try:
        await asyncio.to_thread(importlib.import_module, "aiodocker")
    except ImportError as error:
        raise EngineMissing("pip install 'hatoba[docker]'") from error
    import aiodocker

    docker = aiodocker.Docker(url=f"unix://{socket}")
    try:
        async with _called():
            docker.api_version = f"v{(await docker.version())['ApiVersion']}"
        yield Engine(docker)
    finally:
        await docker.close()


@asynccontextmanager
async def _called(seconds: float | None = ANSWERS_WITHIN) -> AsyncIterator[None]:
    """One call: the client's many errors become two."""
    import aiodocker
    import aiohttp

    try:
        async with asyncio.timeout(seconds):
            yield
    except aiodocker.DockerError as error:
        if error.status == _AWAY:
            raise EngineAway(error.message) from error
        raise EngineRefused(error.status, str(error.message)) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EngineAway(str(error) or type(error).__name__) from error


def frames_in(data: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames of what came, and what is left of one that is not whole yet."""
    found: list[Frame] = []
    at = 0
    while len(data) - at >= _HEADER.size:
        stream, length = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + length
        if end > len(data):
            break
        moment, _, piece = data[at + _HEADER.size : end].partition(b" ")
        found.append(Frame(stream, moment.decode(), piece))
        at = end
    return found, data[at:]


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:500]
