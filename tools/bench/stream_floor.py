"""The floor of devices: a bare grpc server that plays DeviceService.Connect with constant bytes.

`stream_floor.py PORT READY_FILE` in plain text. A line of its input is a revision, which it tells
everybody at once; it answers with a line: the monotonic seconds when it began.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from hatoba.v1 import device_pb2

Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = "hatoba.v1.DeviceService"
Response = device_pb2.DeviceServiceConnectResponse


def desired(generation: int) -> device_pb2.DeviceDesired:
    """About as long as what a server wants of a device with one model."""
    out = device_pb2.DeviceDesired(generation=generation)
    want = out.wants.add(deployment="projects/default/deployments/reader", revision=generation)
    want.bake.seconds = 60
    spec = want.spec
    spec.deployment, spec.revision = want.deployment, generation
    spec.model_version = "projects/default/models/digits/versions/1"
    spec.serving.handler = "serve:Model"
    for manifest in (spec.model, spec.serving.code):
        manifest.digest, manifest.total_bytes = f"sha256:{'0' * 64}", 1 << 20
    return out


class Streams:
    """All streams that are open."""

    def __init__(self) -> None:
        self._open: set[Context] = set()
        self._newest = 1

    async def connect(self, _: Any, context: Context) -> None:
        """One of them."""
        await context.read()
        welcome = device_pb2.DeviceOrder(welcome=device_pb2.DeviceWelcome(version="floor"))
        wanted = device_pb2.DeviceOrder(desired=desired(self._newest))
        await context.write(Response(items=[welcome, wanted]).SerializeToString())
        self._open.add(context)
        try:
            while await context.read() is not grpc.aio.EOF:
                pass
        finally:
            self._open.discard(context)

    async def tell(self, revision: int) -> None:
        """Everybody is to have this."""
        self._newest = revision
        order = device_pb2.DeviceOrder(desired=desired(revision))
        message = Response(items=[order]).SerializeToString()
        for context in list(self._open):
            await context.write(message)


async def serve(port: int, ready: Path) -> None:
    """Serve until the input ends."""
    server, streams = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), Streams()
    handlers = {"Connect": grpc.stream_stream_rpc_method_handler(streams.connect)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.to_thread(ready.write_text, str(os.getpid()))
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(time.monotonic(), flush=True)
        await streams.tell(int(line))
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
