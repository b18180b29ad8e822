"""Generated messages and stubs of the contract hatoba.v1."""

from __future__ import annotations
