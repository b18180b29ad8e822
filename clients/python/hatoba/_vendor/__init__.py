"""Generated modules of other projects, under our own name so that they clash with nobody's install."""

from __future__ import annotations
