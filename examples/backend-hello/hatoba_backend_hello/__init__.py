"""A backend of a third party: runs each command as a process of this machine."""

from __future__ import annotations

from hatoba_backend_hello.backend import HelloType
from hatoba_plugins.backend import BackendType
from hatoba_plugins.spec import hookimpl


class _Plugin:
    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The type `hello`."""
        return [HelloType()]


plugin = _Plugin()
