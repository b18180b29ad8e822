"""The house that these tests share."""

from __future__ import annotations

from batch_house import batch, client, server

__all__ = ["batch", "client", "server"]
