"""`WebhookStore` on the store's SQLite file."""

from __future__ import annotations

import json

from hatoba_scheduler.domain.webhooks import Webhook
from hatoba_scheduler.store.sqlite.readers import Readers, decoded, fetch
from hatoba_scheduler.store.sqlite.statements import Row, of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

PART = "webhooks"


class SqliteWebhooks:
    """See `WebhookStore`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def add(self, webhook: Webhook) -> bool:
        """See `WebhookStore.add`."""
        return bool(await self._write("insert", _row(webhook)))

    async def put_settings(self, webhook: Webhook) -> None:
        """See `WebhookStore.put_settings`."""
        await self._write("settings", (webhook.uid, *_settings(webhook)))

    async def put_progress(self, webhook: Webhook) -> None:
        """See `WebhookStore.put_progress`."""
        await self._write("progress", (webhook.uid, *_progress(webhook)))

    async def delete(self, uid: str) -> None:
        """See `WebhookStore.delete`."""
        await self._write("delete", (uid,))

    async def all(self) -> list[Webhook]:
        """See `WebhookStore.all`."""
        return await self._readers.run(lambda c: decoded(fetch(c, of(PART, "all")), _from, PART))

    async def _write(self, name: str, row: Row) -> int:
        changed: int = await self._writer.call(
            Direct(lambda connection: connection.execute(of(PART, name), row).rowcount)
        )
        return changed


def _row(one: Webhook) -> Row:
    created = (one.signing_key, one.created_by, one.create_time)
    return (one.uid, one.project, one.name, *_settings(one), *created, *_progress(one))


def _settings(one: Webhook) -> Row:
    return (one.url, one.filter, int(one.jobs_only), json.dumps(one.reasons), int(one.paused))


def _progress(one: Webhook) -> Row:
    return (one.cursor, one.failures, one.last_error, one.next_try, one.given_up)


def _from(row: Row) -> Webhook:
    uid, project, name, url, chosen, jobs_only, reasons, paused, *rest = row
    return Webhook(
        uid,
        project,
        name,
        url,
        chosen,
        bool(jobs_only),
        tuple(json.loads(reasons)),
        bool(paused),
        *rest,
    )
