"""What a plug-in needs: hooks, the backend contracts, the loader and the conformance kit."""

from __future__ import annotations
