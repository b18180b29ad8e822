"""WebhookService: keeps webhooks; what is posted is `control.webhooks`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from hatoba.v1 import webhook_pb2, webhook_pb2_grpc
from hatoba_scheduler.control.webhooks import Webhooks, wants_of
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.domain.filters import FilterError, reason_problem
from hatoba_scheduler.domain.naming import (
    DEFAULT_PROJECT,
    QueueRef,
    parse_webhook,
    webhook_name,
)
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.webhooks import Webhook, url_problem
from hatoba_scheduler.errors import InvalidArgument
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.paging import Pager, page_size

Context = grpc.aio.ServicerContext[Any, Any]
MASKABLE = ("url", "filter", "jobs_only", "reasons", "paused")
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class WebhookParts:
    """What the webhook service stands on. `allowed` are the hosts of `[webhooks] allow`."""

    webhooks: Webhooks
    allowed: Sequence[str]
    pager: Pager
    now: Callable[[], Micros]
    new_uid: Callable[[], str]


class WebhookServicer(webhook_pb2_grpc.WebhookServiceServicer):
    """See proto/hatoba/v1/webhook.proto."""

    def __init__(self, parts: WebhookParts) -> None:
        self._parts = parts

    async def CreateWebhook(
        self, request: webhook_pb2.CreateWebhookRequest, context: Context
    ) -> webhook_pb2.CreateWebhookResponse:
        """Make a webhook; its key is shown once."""
        told = request.webhook
        row = Webhook(
            uid=self._parts.new_uid(),
            project=request.project or DEFAULT_PROJECT,
            name=request.webhook_id,
            url=told.url,
            filter=told.filter,
            jobs_only=told.jobs_only,
            reasons=tuple(sorted(set(told.reasons))),
            paused=told.paused,
            signing_key=secrets.token_hex(KEY_BYTES),
            created_by=current_call().principal,
            create_time=self._parts.now(),
            cursor=0,
        )
        self._check(row)
        made = await self._parts.webhooks.add(row)
        return webhook_pb2.CreateWebhookResponse(
            webhook=_message(made), signing_key=made.signing_key
        )

    async def GetWebhook(
        self, request: webhook_pb2.GetWebhookRequest, context: Context
    ) -> webhook_pb2.Webhook:
        """One webhook, with how its deliveries go."""
        return _message(self._parts.webhooks.get(*_named(request.name)))

    async def ListWebhooks(
        self, request: webhook_pb2.ListWebhooksRequest, context: Context
    ) -> webhook_pb2.ListWebhooksResponse:
        """Webhooks of a project by name."""
        project = request.project or DEFAULT_PROJECT
        scope = f"webhooks {project}"
        after = self._parts.pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        rest = [row for row in self._parts.webhooks.of(project) if row.name > after]
        reply = webhook_pb2.ListWebhooksResponse(webhooks=[_message(row) for row in rest[:size]])
        if len(rest) > size:
            reply.next_page_token = self._parts.pager.token(scope, rest[size - 1].name)
        return reply

    async def UpdateWebhook(
        self, request: webhook_pb2.UpdateWebhookRequest, context: Context
    ) -> webhook_pb2.Webhook:
        """Change settings, pause, or let go on."""
        paths = set(request.update_mask.paths)
        if not paths or paths - set(MASKABLE):
            raise InvalidArgument.field(
                "update_mask",
                f"must name some of {', '.join(MASKABLE)} and nothing else",
                value=",".join(sorted(paths)),
            )
        row = self._parts.webhooks.get(*_named(request.webhook.name, "webhook.name"))
        told = request.webhook
        row = replace(
            row,
            url=told.url if "url" in paths else row.url,
            filter=told.filter if "filter" in paths else row.filter,
            jobs_only=told.jobs_only if "jobs_only" in paths else row.jobs_only,
            reasons=tuple(sorted(set(told.reasons))) if "reasons" in paths else row.reasons,
            paused=told.paused if "paused" in paths else row.paused,
        )
        self._check(row)
        return _message(await self._parts.webhooks.update(row))

    async def DeleteWebhook(
        self, request: webhook_pb2.DeleteWebhookRequest, context: Context
    ) -> webhook_pb2.DeleteWebhookResponse:
        """End a webhook; twice is once."""
        await self._parts.webhooks.delete(*_named(request.name))
        return webhook_pb2.DeleteWebhookResponse()

    async def TestWebhook(
        self, request: webhook_pb2.TestWebhookRequest, context: Context
    ) -> webhook_pb2.TestWebhookResponse:
        """Post a test message now."""
        answer = await self._parts.webhooks.test(*_named(request.name))
        return webhook_pb2.TestWebhookResponse(status=answer.status, error=answer.error)

    def _check(self, row: Webhook) -> None:
        """Raise InvalidArgument for an address or a filter that cannot be."""
        problem = url_problem(row.url, self._parts.allowed)
        if problem:
            raise InvalidArgument.field(
                "webhook.url",
                problem,
                value=row.url,
                remedy="write for example https://hooks.example.org/hatoba",
            )
        problem = reason_problem(row.reasons)
        if problem:
            raise InvalidArgument.field("webhook.reasons", problem)
        try:
            wants_of(row)
        except FilterError as error:
            raise InvalidArgument.field("webhook.filter", str(error), value=row.filter) from None


def _named(text: str, field: str = "name") -> QueueRef:
    found = parse_webhook(text)
    if found is None:
        raise InvalidArgument.field(field, "must be projects/P/webhooks/W or W", value=text)
    return found


def _message(row: Webhook) -> webhook_pb2.Webhook:
    """The message of a webhook; its key is in none."""
    out = webhook_pb2.Webhook(
        name=webhook_name(row.project, row.name),
        url=row.url,
        filter=row.filter,
        jobs_only=row.jobs_only,
        reasons=row.reasons,
        paused=row.paused,
        created_by=row.created_by,
        delivered_seq=row.cursor,
        failures=row.failures,
        last_error=row.last_error,
        given_up=row.given_up,
    )
    set_time(out.create_time, row.create_time)
    set_time(out.next_try_time, row.next_try)
    return out
