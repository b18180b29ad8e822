"""The floor of devices: a bare grpc server that plays DeviceService.Connect with constant bytes.

`stream_floor.py SETTINGS`, a JSON file, see `Settings`. A line of its input is a revision, which it
tells everybody at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from hatoba.v1 import device_pb2

Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = "hatoba.v1.DeviceService"
Order = device_pb2.DeviceOrder
Response = device_pb2.DeviceServiceConnectResponse


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to listen, and what to write when that is so; with `authority`, all three in PEM, by
    TLS on both sides."""

    address: str
    ready: str
    authority: str = ""
    key: str = ""
    certificate: str = ""

    def credentials(self) -> grpc.ServerCredentials:
        """How the port is protected."""
        if not self.authority:
            plain: grpc.ServerCredentials = grpc.insecure_server_credentials()
            return plain
        shown = [(self.key.encode(), self.certificate.encode())]
        return grpc.ssl_server_credentials(shown, self.authority.encode(), require_client_auth=True)


def desired(revision: int) -> device_pb2.DeviceDesired:
    """About as long as what a server wants of a device with one model; 0: nothing."""
    out = device_pb2.DeviceDesired(generation=revision)
    if not revision:
        return out
    want = out.wants.add(deployment="projects/default/deployments/reader", revision=revision)
    want.bake.seconds = 60
    spec = want.spec
    spec.deployment, spec.revision = want.deployment, revision
    spec.model_version = "projects/default/models/digits/versions/1"
    spec.serving.handler = "serve:Model"
    for manifest in (spec.model, spec.serving.code):
        manifest.digest, manifest.total_bytes = f"sha256:{'0' * 64}", 1 << 20
    return out


class Streams:
    """All streams that are open."""

    def __init__(self) -> None:
        self._open: set[Context] = set()
        self._newest = 0

    async def connect(self, _: Any, context: Context) -> None:
        """One of them."""
        await context.read()
        welcome = Order(welcome=device_pb2.DeviceWelcome(version="floor"))
        await context.write(_message(welcome, Order(desired=desired(self._newest))))
        self._open.add(context)
        try:
            while await context.read() is not grpc.aio.EOF:
                pass
        finally:
            self._open.discard(context)

    async def tell(self, revision: int) -> None:
        """Everybody is to have this."""
        self._newest = revision
        message = _message(Order(desired=desired(revision)))
        for context in list(self._open):
            await context.write(message)


def _message(*items: device_pb2.DeviceOrder) -> bytes:
    return Response(items=items).SerializeToString()


async def serve(settings: Settings) -> None:
    """Serve until the input ends."""
    server, streams = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), Streams()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Connect": grpc.stream_stream_rpc_method_handler(streams.connect)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_secure_port(settings.address, settings.credentials())
    await server.start()
    await asyncio.to_thread(Path(settings.ready).touch)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await streams.tell(int(line))
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(Settings(**json.loads(Path(sys.argv[1]).read_text()))))
