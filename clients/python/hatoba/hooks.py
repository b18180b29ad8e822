"""Webhooks of a project: events that the server posts to other systems.

Their receivers need `hatoba.webhooks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from hatoba.errors import InvalidSpec
from hatoba.v1 import webhook_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

Webhook = webhook_pb2.Webhook
_PAGE = 1000


class WebhookChoice(TypedDict, total=False):
    """Which events are posted. What is left out stays as it is.

    `filter` chooses jobs as in job lists; with `jobs_only` only what moved a job itself counts,
    with `reasons` only events with one of these. Nothing is posted while it is `paused`.
    """

    filter: str
    jobs_only: bool
    reasons: Sequence[str]
    paused: bool


class WebhookOptions(WebhookChoice, total=False):
    """Which events are posted, and where."""

    url: str


class AsyncWebhooks:
    """Webhooks of the project; `AsyncClient.webhooks`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, name: str, url: str, **options: Unpack[WebhookChoice]
    ) -> webhook_pb2.CreateWebhookResponse:
        """Post events from now on; the reply has the key of their signatures, this once."""
        request = webhook_pb2.CreateWebhookRequest(
            project=self._client.project, webhook_id=name, webhook=Webhook(url=url, **options)
        )
        return await self._client.call(request, webhook_pb2.CreateWebhookResponse)

    async def get(self, name: str) -> Webhook:
        """One webhook, with how its deliveries go. Raises NotFound."""
        request = webhook_pb2.GetWebhookRequest(name=self._full(name))
        return await self._client.call(request, Webhook)

    async def update(self, name: str, **options: Unpack[WebhookOptions]) -> Webhook:
        """Change a webhook. Paused it keeps its place; going on it posts what waited."""
        if not options:
            raise InvalidSpec("there is nothing to change", remedy="name at least one option")
        request = webhook_pb2.UpdateWebhookRequest(
            webhook=Webhook(name=self._full(name), **options),
            update_mask=FieldMask(paths=list(options)),
        )
        return await self._client.call(request, Webhook)

    async def delete(self, name: str) -> None:
        """End a webhook; what was not delivered is not. Twice is once."""
        request = webhook_pb2.DeleteWebhookRequest(name=self._full(name))
        await self._client.call(request, webhook_pb2.DeleteWebhookResponse)

    async def test(self, name: str) -> webhook_pb2.TestWebhookResponse:
        """Post a test message now; what the receiver answered."""
        request = webhook_pb2.TestWebhookRequest(name=self._full(name))
        return await self._client.call(request, webhook_pb2.TestWebhookResponse)

    async def list(self) -> list[Webhook]:
        """Webhooks of the project, by name."""
        request = webhook_pb2.ListWebhooksRequest(project=self._client.project, page_size=_PAGE)
        found: list[Webhook] = []
        while True:
            page = await self._client.call(request, webhook_pb2.ListWebhooksResponse)
            found.extend(page.webhooks)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    def _full(self, name: str) -> str:
        return name if "/" in name else f"projects/{self._client.project}/webhooks/{name}"


class Webhooks:
    """The same calls, synchronously; `Client.webhooks`."""

    def __init__(self, loop: _LoopThread, webhooks: AsyncWebhooks) -> None:
        self._loop = loop
        self._webhooks = webhooks

    def create(
        self, name: str, url: str, **options: Unpack[WebhookChoice]
    ) -> webhook_pb2.CreateWebhookResponse:
        """See AsyncWebhooks.create."""
        return self._loop.run(self._webhooks.create(name, url, **options))

    def get(self, name: str) -> Webhook:
        """One webhook, with how its deliveries go. Raises NotFound."""
        return self._loop.run(self._webhooks.get(name))

    def update(self, name: str, **options: Unpack[WebhookOptions]) -> Webhook:
        """See AsyncWebhooks.update."""
        return self._loop.run(self._webhooks.update(name, **options))

    def delete(self, name: str) -> None:
        """See AsyncWebhooks.delete."""
        self._loop.run(self._webhooks.delete(name))

    def test(self, name: str) -> webhook_pb2.TestWebhookResponse:
        """See AsyncWebhooks.test."""
        return self._loop.run(self._webhooks.test(name))

    def list(self) -> list[Webhook]:
        """Webhooks of the project, by name."""
        return self._loop.run(self._webhooks.list())
