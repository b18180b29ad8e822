"""What comes to a device comes in small pieces, and from any byte on: its link breaks often."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import grpc.aio
from hand_device import NAME_SHOWN, PATIENCE, HandDevice
from trees import put_chunks

from hatoba.v1 import artifact_pb2, artifact_pb2_grpc
from hatoba_scheduler.services.artifacts import SMALL_PIECE

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

SIZE = 300_000


async def downloaded(device: HandDevice, sha256: bytes, offset: int = 0) -> list[bytes]:
    """The pieces of a chunk, from a byte on."""
    options = [(NAME_SHOWN, device.identity.server_name)]
    address = device.identity.address
    async with grpc.aio.secure_channel(address, device.credentials(), options) as channel:
        stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
        request = artifact_pb2.DownloadChunksRequest(sha256=[sha256], offset=offset)
        call = stub.DownloadChunks(request, metadata=device.metadata(), timeout=PATIENCE)
        replies = [reply async for reply in call]
    assert [one.last for one in replies] == [False] * (len(replies) - 1) + [True]
    return [one.data for one in replies]


async def test_a_chunk_comes_in_small_pieces_from_any_byte_on(yard: DeviceYard) -> None:
    data = os.urandom(SIZE)
    sha256 = hashlib.sha256(data).digest()
    await put_chunks(yard.wire, {sha256: data})
    device = await yard.device("reader-1")
    for offset in (0, 1, SMALL_PIECE, SIZE - 1):
        pieces = await downloaded(device, sha256, offset)
        assert b"".join(pieces) == data[offset:]
        assert max(map(len, pieces)) <= SMALL_PIECE
