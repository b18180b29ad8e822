"""The command line: one file per noun, loaded when it is used."""

from __future__ import annotations
