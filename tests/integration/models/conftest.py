"""Servers with a real worker, which runs the checks."""

from __future__ import annotations

from house_fixtures import own_server, own_wire, server, wire

__all__ = ["own_server", "own_wire", "server", "wire"]
