"""The built-in backends; each comes in through the same entry points as anybody's."""

from __future__ import annotations
