"""Frames on the keeper's socket: a big-endian 4-byte length, then that many bytes of JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

Json = dict[str, Any]

PROTOCOL = 1
MAX_FRAME = 1 << 20
_HEAD = struct.Struct(">I")
_to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class FrameError(ValueError):
    """A frame is over `MAX_FRAME` bytes, or is no JSON object; the connection is of no more use."""


def to_json(body: Json) -> bytes:
    """Return `body` as compact JSON."""
    return _to_json(body).encode()


def encode(body: Json) -> bytes:
    """Return `body` as one frame; raises FrameError when it is larger than `MAX_FRAME` bytes."""
    return frame(to_json(body))


def frame(data: bytes) -> bytes:
    """Return JSON as one frame; raises FrameError when it is larger than `MAX_FRAME` bytes."""
    if len(data) > MAX_FRAME:
        raise FrameError(f"frame of {len(data)} bytes; the limit is {MAX_FRAME}")
    return _HEAD.pack(len(data)) + data


class FrameBuffer:
    """Cuts received bytes into frames, however they were split on the way."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Json]:
        """Take `data` and return the frames now complete; raises FrameError on a bad one."""
        self._data += data
        frames: list[Json] = []
        start = 0
        while len(self._data) - start >= _HEAD.size:
            (size,) = _HEAD.unpack_from(self._data, start)
            if size > MAX_FRAME:
                raise FrameError(f"frame of {size} bytes; the limit is {MAX_FRAME}")
            end = start + _HEAD.size + size
            if len(self._data) < end:
                break
            frames.append(_decode(bytes(self._data[start + _HEAD.size : end])))
            start = end
        del self._data[:start]
        return frames


def _decode(data: bytes) -> Json:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise FrameError(f"frame is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise FrameError("frame is no JSON object")
    return body
