"""Brings a job's directories to the server, and its outputs back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hatoba.v1 import common_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.options import Parcel


async def bring(client: AsyncClient, parcel: Parcel) -> None:
    """Pack and send the parcel's directories, and name them in its specification."""


async def fetch(client: AsyncClient, ref: common_pb2.ManifestRef, directory: Path) -> None:
    """Fetch a tree into a directory."""
