"""Images of a few random bytes, pushed to a registry without an engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Pushed:
    """What was pushed: a manifest or an index."""

    host: str
    name: str
    digest: str
    size: int
    media_type: str

    @property
    def reference(self) -> str:
        """As a device is told it."""
        return f"{self.host}/{self.name}@{self.digest}"


def digest_of(data: bytes) -> str:
    """`sha256:...`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: Mapping[str, bytes]) -> bytes:
    """A layer with these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), compresslevel=0, mtime=0)


class Pusher:
    """Pushes to one name of a registry."""

    def __init__(self, session: aiohttp.ClientSession, host: str, name: str) -> None:
        self._session = session
        self.host, self._name = host, name
        self._base = f"http://{host}/v2/{name}"

    async def image(
        self,
        files: Mapping[str, bytes],
        architecture: str,
        *,
        command: str = "/main",
        unpacked: str = "",
    ) -> Pushed:
        """An image of one layer; `unpacked` is what it is said to be unpacked, if that is a lie."""
        packed = layer(files)
        plain = gzip.decompress(packed)
        config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Entrypoint": [command]},
                "rootfs": {"type": "layers", "diff_ids": [unpacked or digest_of(plain)]},
            }
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": await self._blob(config, CONFIG),
            "layers": [await self._blob(packed, LAYER)],
        }
        return await self._manifest(manifest, MANIFEST)

    async def index(self, *parts: tuple[Pushed, str, str]) -> Pushed:
        """An index of images, each with the architecture and variant that it is said to be for."""
        told = [
            {
                "mediaType": one.media_type,
                "digest": one.digest,
                "size": one.size,
                "platform": {"os": "linux", "architecture": architecture}
                | ({"variant": variant} if variant else {}),
            }
            for one, architecture, variant in parts
        ]
        return await self._manifest(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": told}, INDEX
        )

    async def _blob(self, data: bytes, media_type: str) -> Json:
        digest = digest_of(data)
        async with self._session.post(f"{self._base}/blobs/uploads/") as begun:
            begun.raise_for_status()
            place = begun.headers["Location"]
        async with self._session.put(
            place, params={"digest": digest}, data=io.BytesIO(data)
        ) as done:
            done.raise_for_status()
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    async def _manifest(self, told: Json, media_type: str) -> Pushed:
        data = json.dumps(told).encode()
        digest = digest_of(data)
        headers = {"Content-Type": media_type}
        async with self._session.put(
            f"{self._base}/manifests/{digest}", data=data, headers=headers
        ) as done:
            done.raise_for_status()
        return Pushed(self.host, self._name, digest, len(data), media_type)
