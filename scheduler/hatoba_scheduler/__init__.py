"""The control plane."""

from __future__ import annotations
