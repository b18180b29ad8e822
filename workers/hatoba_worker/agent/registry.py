"""Images from an OCI registry by digest, for one platform, as blobs that survive a broken link.

`docker pull` throws away what came when the link breaks, so the engine is not asked to: manifest,
configuration and layers are brought in here, checked, and given to the engine as a whole. `aiohttp`
is imported when a session is made: a device that has no images has no memory for it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib
import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hatoba_worker.agent.blobs import PIECE, READ_SECONDS, Cut, Gone, Unusable

if TYPE_CHECKING:
    import aiohttp

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LARGEST_MANIFEST = 4 << 20
CONNECT_SECONDS = 30.0
BUFFER = 16 << 10
"""Bytes that wait to be taken: with a link that breaks they are lost, and brought again."""
_REFERENCE = re.compile(
    r"(?P<host>[^/]+)/(?P<name>[a-z0-9][a-z0-9._/-]*)(?::[\w.-]+)?@(?P<digest>sha256:[0-9a-f]{64})"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_REFUSED = frozenset({401, 403})
Json = Mapping[str, Any]


class Reference(NamedTuple):
    """`HOST/NAME@sha256:...`: what is named by a tag alone may be something else tomorrow."""

    host: str
    name: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises Unusable."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise Unusable(f"{text!r} names no image by digest: HOST/NAME@sha256:...")
        return cls(found["host"], found["name"], found["digest"])


class Blob(NamedTuple):
    """A part of an image; a layer that is not packed says so by its type."""

    digest: str
    size: int
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's image. `size` is of all that has to be brought; unpacked it is more."""

    digest: str
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All parts, the small one first."""
        return (self.config, *self.layers)

    @property
    def size(self) -> int:
        """Bytes to bring."""
        return sum(one.size for one in self.blobs)


class Platform(NamedTuple):
    """What an image is for, in an index's words."""

    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.architecture}/{self.variant}" if self.variant else self.architecture

    def runs(self, image: Platform) -> bool:
        """Whether a device of this platform runs an image for that one. An ARM of 32 bits also
        runs what was made for older ones."""
        if self.architecture != image.architecture:
            return False
        if self.architecture != "arm" or not image.variant:
            return not (self.variant and image.variant) or self.variant == image.variant
        return image.variant <= (self.variant or "v7")


@dataclass(frozen=True, slots=True)
class Login:
    """What a registry wants to see."""

    user: str = ""
    password: str = ""


@contextlib.asynccontextmanager
async def opened(tls: ssl.SSLContext | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose calls may take as long as they bring something."""
    await asyncio.to_thread(importlib.import_module, "aiohttp")
    import aiohttp

    patience = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
    )
    connector = aiohttp.TCPConnector(ssl=tls or True)
    async with aiohttp.ClientSession(
        timeout=patience, read_bufsize=BUFFER, connector=connector
    ) as session:
        yield session


@contextlib.contextmanager
def links(who: str) -> Iterator[None]:
    """Raise Cut for a link that breaks."""
    import aiohttp

    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Cut(f"{who}: {str(error) or type(error).__name__}") from error


class Registry:
    """One registry's images of one name: a source of their blobs. `at` is the `HOST:PORT` where it
    is reached instead of where its name says.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        reference: Reference,
        *,
        at: str = "",
        plain: bool = False,
        login: Login | None = None,
    ) -> None:
        self._session = session
        self._reference = reference
        self._login = login
        self._host = at or reference.host
        self._base = f"{'http' if plain else 'https'}://{self._host}/v2/{reference.name}"
        self._authorization = ""

    async def manifest(self, platform: Platform) -> Manifest:
        """The image for a platform. Raises Gone, Cut, Unusable."""
        told = await self._document(self._reference.digest)
        digest = self._reference.digest
        if "manifests" in told:
            try:
                digest = _chosen(told, platform)
            except (KeyError, TypeError, AttributeError) as error:
                raise Unusable(f"{digest} is no index of images: {error!r}") from error
            told = await self._document(digest)
        try:
            layers = tuple(_blob(one) for one in told["layers"])
            config = _blob(told["config"])
            if config.size > LARGEST_MANIFEST:
                raise ValueError(f"its configuration has {config.size:,} bytes")
        except (KeyError, TypeError, ValueError) as error:
            raise Unusable(f"{digest} is no manifest of an image: {error!r}") from error
        return Manifest(digest, config, layers)

    async def _document(self, digest: str) -> Json:
        """A manifest or an index, which is what its digest says. Raises Gone, Cut, Unusable."""
        headers = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}
        async with self._asked(f"{self._base}/manifests/{digest}", headers) as response:
            data = await self._whole(response)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise Unusable(f"what the registry gives as {digest} is something else")
        try:
            told = json.loads(data)
        except ValueError as error:
            raise Unusable(f"{digest} is no manifest: {error}") from error
        if not isinstance(told, dict):
            raise Unusable(f"{digest} is no manifest")
        return told

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        """A document, which is cut off where it is longer than any that is one."""
        data = bytearray()
        with links(self._host):
            while len(data) < LARGEST_MANIFEST and (
                piece := await response.content.read(LARGEST_MANIFEST - len(data))
            ):
                data += piece
        return bytes(data)

    async def read(self, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from an offset on. Raises Gone, Cut."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._asked(f"{self._base}/blobs/{digest}", headers) as response:
            if offset and response.status != 206:
                raise Cut("the registry begins every blob at its beginning")
            with links(self._host):
                async for piece in response.content.iter_chunked(PIECE):
                    yield piece

    @contextlib.asynccontextmanager
    async def _asked(
        self, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer; who has to log in does so once. Raises Gone, Cut."""
        response = await self._get(url, headers)
        if response.status == 401 and await self._log_in(response):
            response.release()
            response = await self._get(url, headers)
        try:
            if response.status in _REFUSED:
                raise Gone(f"{self._host} refuses {self._reference.name}: log in to it")
            if response.status in (404, 410):
                raise Gone(f"{self._host} has no {url.rpartition('/')[2]}")
            if response.status >= 400:
                raise Cut(f"{self._host} answers {response.status}")
            yield response
        finally:
            response.close()

    async def _get(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        own = {"Authorization": self._authorization} if self._authorization else {}
        with links(self._host):
            return await self._session.get(url, headers={**headers, **own})

    async def _log_in(self, response: aiohttp.ClientResponse) -> bool:
        """Do what the registry asks for; False when there is nothing to show."""
        scheme, _, rest = response.headers.get("WWW-Authenticate", "").partition(" ")
        told = dict(_CHALLENGE.findall(rest))
        basic = _basic(self._login) if self._login is not None else ""
        if scheme.lower() == "basic" and basic:
            self._authorization = basic
            return True
        if scheme.lower() != "bearer" or "realm" not in told:
            return False
        asked = {key: told[key] for key in ("service", "scope") if key in told}
        own = {"Authorization": basic} if basic else {}
        with links(told["realm"]):
            async with self._session.get(told["realm"], params=asked, headers=own) as answer:
                if answer.status != 200:
                    return False
                body = await answer.read()
        try:
            found = json.loads(body)
            token = found.get("token") or found["access_token"]
        except (ValueError, KeyError, AttributeError) as error:
            raise Cut(f"{told['realm']} gives no token: {error!r}") from error
        self._authorization = f"Bearer {token}"
        return True


def _basic(login: Login) -> str:
    return f"Basic {base64.b64encode(f'{login.user}:{login.password}'.encode()).decode()}"


def _blob(told: Json) -> Blob:
    digest, size = str(told["digest"]), int(told["size"])
    if not _DIGEST.fullmatch(digest) or size < 0:
        raise ValueError(f"{digest!r} of {size} bytes is no part of an image")
    return Blob(digest, size, str(told.get("mediaType") or ""))


def _chosen(index: Json, wanted: Platform) -> str:
    """The digest of the manifest for a platform. Raises Unusable and names those there are."""
    there: list[Platform] = []
    for one in index["manifests"]:
        told = one.get("platform") or {}
        if told.get("os", "linux") != "linux":
            continue
        has = Platform(str(told.get("architecture", "")), str(told.get("variant") or ""))
        if wanted.runs(has):
            return str(one["digest"])
        there.append(has)
    names = ", ".join(sorted(map(str, there))) or "nothing"
    raise Unusable(f"the image is there for {names}, this device is {wanted}")


def require_platform(config: bytes, wanted: Platform) -> Json:
    """The image's own configuration, which has to be for the platform that its index says: a
    manifest may lie. Raises Unusable.
    """
    try:
        told = json.loads(config)
        has = str(told["architecture"])
        if not all(isinstance(told.get(part) or {}, dict) for part in ("config", "rootfs")):
            raise TypeError("its parts are no objects")
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"the image's configuration cannot be read: {error!r}") from error
    if has != wanted.architecture:
        raise Unusable(f"the image is for {has}, this device is {wanted}")
    found: Json = told
    return found
