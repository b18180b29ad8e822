"""The part of the store that keeps webhooks and how far they were told."""

from __future__ import annotations

from typing import Protocol

from hatoba_scheduler.domain.webhooks import Webhook


class WebhookStore(Protocol):
    """See the module."""

    async def add(self, webhook: Webhook) -> bool:
        """Keep a new one; False when there is one of its name."""
        ...

    async def put_settings(self, webhook: Webhook) -> None:
        """Write what its owner may change: address, filters, whether it is paused."""
        ...

    async def put_progress(self, webhook: Webhook) -> None:
        """Write how its deliveries go; a cursor never goes back."""
        ...

    async def delete(self, uid: str) -> None:
        """Forget one; twice is once."""
        ...

    async def all(self) -> list[Webhook]:
        """All, by project and name."""
        ...
