"""A backend that has things of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Self

from hatoba_plugins.values import Capabilities, Owned


@dataclass
class OwningBackend:
    """Lists these."""

    things: list[Owned] = field(default_factory=list)

    @property
    def jobs(self) -> Self:
        """Itself."""
        return self

    def capabilities(self) -> Capabilities:
        """The plainest."""
        return Capabilities()

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """All of them, of whatever cluster."""
        for one in self.things:
            yield one
