"""Models and code straight from the server's bucket, for a device that reaches AWS alone.

Objects are named by their digests, so that the server need not be asked which they are. For its
certificate the device gets credentials from AWS IoT's credential provider, good for an hour, whose
role may read these objects and nothing else.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from hatoba.v1 import artifact_pb2
from hatoba_worker import key_files
from hatoba_worker.agent.blobs import PIECE, Cut, Gone, Wrong
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.identity import Identity, NotEnrolled
from hatoba_worker.agent.library import LARGEST_MANIFEST, manifest_of
from hatoba_worker.agent.registry import links, opened
from hatoba_worker.agent.settings import AwsIot, BucketPlace
from hatoba_worker.agent.tunnel import Peer, context_of

if TYPE_CHECKING:
    import aiohttp

AHEAD = 300.0
"""Seconds before their end from which on credentials are asked for anew."""
EMPTY = hashlib.sha256(b"").hexdigest()
SIGNED = "host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
_CODE = re.compile(rb"<Code>(\w+)</Code>")
_STALE = frozenset({"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "RequestTimeTooSkewed"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What opens the bucket, until a Unix time."""

    key: str
    secret: str
    token: str
    until: float


class BucketLibrary:
    """See `Library`. Without a place there is nothing to be had."""

    def __init__(self, data: Path, thing: AwsIot, clock: FloorClock) -> None:
        self._identity = Identity(key_files.directory(data))
        self._thing = thing.thing
        self._place = thing.place
        self._clock = clock
        self._credentials: Credentials | None = None

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        """What a tree holds. Raises Gone, Cut, Wrong."""
        data = bytearray()
        async with self._object(f"manifests/{_name(digest)}", 0) as response:
            async for piece in response.content.iter_chunked(PIECE):
                data += piece
                if len(data) > LARGEST_MANIFEST:
                    raise Wrong(f"manifest {digest} has more than {LARGEST_MANIFEST:,} bytes")
        return await asyncio.to_thread(manifest_of, digest, bytes(data))

    async def read(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a chunk from an offset on. Raises Gone, Cut."""
        name = _name(digest)
        async with self._object(f"chunks/{name[:2]}/{name}", offset) as response:
            async for piece in response.content.iter_chunked(PIECE):
                yield piece

    @asynccontextmanager
    async def _object(self, key: str, offset: int) -> AsyncIterator[aiohttp.ClientResponse]:
        """An object from an offset on. Raises Gone, Cut."""
        place = self._place
        if place is None:
            raise Gone("this device knows no bucket to bring models from: enroll it with one")
        credentials = await self._current(place)
        url = f"{place.url}/{quote(place.key(key))}"
        headers = headers_for(url, place.region, credentials, self._clock.now())
        if offset:
            headers["Range"] = f"bytes={offset}-"
        tls = await asyncio.to_thread(self._tls, urlsplit(url).hostname or "", shown=False)
        async with opened(tls) as session:
            with links("the bucket"):
                async with session.get(url, headers=headers) as response:
                    await self._check(response, offset)
                    yield response

    async def _check(self, response: aiohttp.ClientResponse, offset: int) -> None:
        if response.status == (206 if offset else 200):
            return
        found = _CODE.search(await response.content.read(PIECE))
        code = found[1].decode() if found else ""
        if response.status == 404:
            raise Gone(f"the bucket does not have {response.url.path} ({code})")
        if code in _STALE:
            self._credentials = None
        raise Cut(f"the bucket answers {response.status} {code}")

    # -- what opens it --------------------------------------------------------------------------

    async def _current(self, place: BucketPlace) -> Credentials:
        """Credentials that are good for a while. Raises Cut."""
        known = self._credentials
        if known is None or self._clock.now() > known.until - AHEAD:
            known = self._credentials = await self._ask(place)
        return known

    async def _ask(self, place: BucketPlace) -> Credentials:
        host = place.credentials.partition(":")[0]
        url = f"https://{place.credentials}/role-aliases/{quote(place.role_alias)}/credentials"
        tls = await asyncio.to_thread(self._tls, host, shown=True)
        async with opened(tls) as session:
            with links("AWS IoT's credential provider"):
                headers = {"x-amzn-iot-thingname": self._thing}
                async with session.get(url, headers=headers) as response:
                    body = await response.content.read(PIECE)
        try:
            return _credentials_of(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            told = body[:200].decode(errors="replace")
            raise Cut(f"AWS IoT gives no credentials: {response.status} {told}") from error

    def _tls(self, host: str, *, shown: bool) -> ssl.SSLContext:
        """Of who is believed as AWS IoT is, dates apart. Blocks; raises Cut."""
        try:
            own = self._identity.current().path if shown else None
            authority = self._identity.authority
            believed = authority if authority.exists() else None
            return context_of(Peer(host, 443, host, believed, own, ()))
        except (NotEnrolled, OSError) as error:
            raise Cut(str(error)) from error


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _credentials_of(told: Mapping[str, Mapping[str, str]]) -> Credentials:
    given = told["credentials"]
    until = dt.datetime.fromisoformat(given["expiration"].replace("Z", "+00:00"))
    return Credentials(
        given["accessKeyId"], given["secretAccessKey"], given["sessionToken"], until.timestamp()
    )


def headers_for(url: str, region: str, credentials: Credentials, now: float) -> dict[str, str]:
    """What a GET of an object has to carry, signed as AWS has it (version 4)."""
    there = urlsplit(url)
    moment = dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    told = {
        "host": there.netloc,
        "x-amz-content-sha256": EMPTY,
        "x-amz-date": moment,
        "x-amz-security-token": credentials.token,
    }
    lines = "".join(f"{name}:{value}\n" for name, value in told.items())
    request = f"GET\n{there.path}\n\n{lines}\n{SIGNED}\n{EMPTY}"
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
    key = f"AWS4{credentials.secret}".encode()
    for part in (moment[:8], region, "s3", "aws4_request", text):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = (
        f"AWS4-HMAC-SHA256 Credential={credentials.key}/{scope}, "
        f"SignedHeaders={SIGNED}, Signature={key.hex()}"
    )
    return {name: value for name, value in told.items() if name != "host"} | {
        "Authorization": signature
    }
