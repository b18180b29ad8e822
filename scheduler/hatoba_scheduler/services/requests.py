"""Idempotency of mutating calls: the key of a request, and what to do when it was seen before."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message

from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.errors import AlreadyExists, Reason
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.store.base import Met, Mismatch, RequestKey, Store

DEDUPLICATED = ("hatoba-deduplicated", "true")


def request_key(project: str, method: str, request_id: str, body: Message) -> RequestKey | None:
    """The key of a request as it was parsed, before defaults; None when it has no id."""
    if not request_id:
        return None
    digest = hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
    return RequestKey(project or DEFAULT_PROJECT, method, request_id, digest)


def mismatch(request_id: str, met: Mismatch) -> AlreadyExists:
    """The same id came with another body."""
    return AlreadyExists(
        f"request_id {request_id!r} was used for another request "
        f"(body {met.given_sha256[:12]}, before {met.stored_sha256[:12]}); use a new one",
        reason=Reason.IDEMPOTENCY_MISMATCH,
    )


def mark_deduplicated() -> None:
    """Say in the reply's trailers that this request had been carried out before."""
    current_call().trailers.append(DEDUPLICATED)


async def seen_before(store: Store, key: RequestKey | None) -> str | None:
    """What a repeated request made or changed, None for a new one. Raises AlreadyExists."""
    if key is None:
        return None
    met = await store.recall_request(key)
    return None if met is None else made_before(met, key)


def made_before(known: Met, key: RequestKey | None) -> str:
    """What a request had made that met its own key at its write. Raises AlreadyExists."""
    if isinstance(known, Mismatch):
        raise mismatch(key.request_id if key else "", known)
    mark_deduplicated()
    return known.resource


async def remember(store: Store, key: RequestKey | None, resource: str) -> None:
    """Keep the key of a request that was carried out."""
    if key is not None:
        await store.remember_request(key, resource)
