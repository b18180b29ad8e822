"""What runs beside the work on a host."""

from __future__ import annotations
