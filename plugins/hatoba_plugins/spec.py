"""The hooks. They are synchronous and only register; all I/O is in what they return."""

from __future__ import annotations

import pluggy

from hatoba_plugins.backend import BackendType

PROJECT = "hatoba"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HatobaSpec:
    """Every hook that a plug-in may implement."""

    @hookspec
    def hatoba_backend_types(self) -> list[BackendType]:
        """Backend types that this plug-in brings."""
        raise AssertionError("a specification is never called")
