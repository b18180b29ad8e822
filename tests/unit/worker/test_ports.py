"""Which address leads to a port that a process listens on."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack

import pytest

from hatoba_worker.attaching.ports import listening_address, reached_at


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("family", "bound", "reached"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.2", "127.0.0.2"),
        (socket.AF_INET6, "::1", "::1"),
    ],
)
def test_a_port_is_found_by_who_listens(
    family: socket.AddressFamily, bound: str, reached: str
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(family))
        try:
            server.bind((bound, 0))
        except OSError as error:
            pytest.skip(f"{bound}: {error}")
        port = server.getsockname()[1]
        assert listening_address([os.getpid()], port) is None
        server.listen(1)
        assert listening_address([os.getpid()], port) == reached
        assert listening_address([os.getppid()], port) is None
        assert listening_address([], port) is None


def test_what_listens_everywhere_is_reached_here() -> None:
    assert reached_at("0" * 8) == "127.0.0.1"
    assert reached_at("0" * 32) == "::1"
