"""File trees by content: packed, sent, fetched and unpacked."""

from __future__ import annotations
