"""A server with a worker that these tests share, and its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine
from house_fixtures import server, wire
from server_process import HatobaServer

__all__ = ["server", "wire"]


@pytest.fixture
def hatoba(server: HatobaServer, tmp_path: Path) -> CommandLine:
    """`hatoba` in a directory of its own."""
    return CommandLine(server, tmp_path)
