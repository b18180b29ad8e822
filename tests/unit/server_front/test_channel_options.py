"""Settings of channels and servers: gRPC takes any name without a word, also one that it lacks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from hatoba.transport import CHANNEL_OPTIONS
from hatoba_scheduler.interceptors import server_options
from hatoba_worker import dial

NAMES = sorted({name for name, _ in (*server_options(), *CHANNEL_OPTIONS, *dial.OPTIONS)})


@pytest.fixture(scope="module")
def library() -> bytes:
    """What gRPC is made of."""
    found = find_spec("grpc._cython.cygrpc")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_grpc_knows_it(library: bytes, name: str) -> None:
    assert f"{name}\0".encode() in library
