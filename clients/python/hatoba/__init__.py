"""The Python SDK. Importing it needs the standard library only."""

from __future__ import annotations
