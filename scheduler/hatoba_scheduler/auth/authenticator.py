"""Tells who calls from the token they present, and ends the streams of those who lost theirs."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from hatoba_scheduler.auth import tokens
from hatoba_scheduler.auth.roles import PREDICTING, READ, Role
from hatoba_scheduler.domain.records import Micros, TokenRecord
from hatoba_scheduler.errors import NotFound, Reason, Resource, Unauthenticated
from hatoba_scheduler.whole import whole

_SCHEME = "bearer "
_PREFIX = 3


class TokenStore(Protocol):
    """What the authenticator needs of durable state; both calls are durable when they return."""

    async def tokens(self) -> list[TokenRecord]:
        """All tokens, revoked and expired ones too."""
        ...

    async def put_token(self, token: TokenRecord) -> None:
        """Write a token's row, over an older one of the same id."""
        ...


class Authenticator:
    """Holds all tokens in memory; `clock` gives microseconds since 1970."""

    def __init__(self, store: TokenStore, clock: Callable[[], Micros]) -> None:
        self._store = store
        self._clock = clock
        self._records: dict[str, TokenRecord] = {}
        self._watchers: dict[str, list[Callable[[], None]]] = {}
        self._followers: set[Callable[[], None]] = set()
        self._identities: dict[str, str] = {}
        self._others: dict[str, Callable[[str], TokenRecord]] = {}

    def accept(self, prefix: str, authenticate: Callable[[str], TokenRecord]) -> None:
        """Have texts with this prefix of three characters, which are no tokens of the store, looked
        at by `authenticate`; it raises Unauthenticated."""
        self._others[prefix] = authenticate

    async def load(self) -> None:
        """Read every token from the store; before the first call is answered."""
        self._records = {record.id: record for record in await self._store.tokens()}
        for record in self._records.values():
            self._note_identity(record)

    @property
    def records(self) -> Sequence[TokenRecord]:
        """All tokens by id, without their texts."""
        return [self._records[identity] for identity in sorted(self._records)]

    def authenticate(self, authorization: str | None) -> TokenRecord:
        """The token of an `authorization` header; Unauthenticated says what is wrong with it."""
        if not authorization:
            raise _refused(Reason.TOKEN_MISSING, "no token", "send `authorization: Bearer TOKEN`")
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise _malformed()
        text = authorization[len(_SCHEME) :].strip()
        other = self._others.get(text[:_PREFIX])
        if other is not None:
            record = other(text)
            self.verify(record)
            return record
        return self._stored(text)

    def _stored(self, text: str) -> TokenRecord:
        record = self._records.get(tokens.id_part(text))
        if record is None or not hmac.compare_digest(record.sha256, tokens.digest(text)):
            raise _unknown() if tokens.token_id(text) else _malformed()
        self.verify(record)
        return record

    def verify(self, record: TokenRecord) -> None:
        """Raise Unauthenticated unless the token is still good now."""
        current = self._records.get(record.id, record)
        expired = current.expire_time and current.expire_time <= self._clock()
        if current.revoked or expired:
            raise self.ended(record)

    def ended(self, record: TokenRecord) -> Unauthenticated:
        """The error for a token that was good once."""
        if record.role == Role.DEVICE:
            what = "the device's certificate has ended, or it was revoked or enrolled anew"
            return _refused(Reason.DEVICE_UNKNOWN, what, "connect again to learn which")
        if self._records.get(record.id, record).revoked:
            return _refused(Reason.TOKEN_REVOKED, "the token was revoked", "ask for a new one")
        return _refused(Reason.TOKEN_EXPIRED, "the token has expired", "ask for a new one")

    def may_read(self, authorization: str | None) -> bool:
        """Whether an `authorization` header opens what anybody may see who may see jobs."""
        try:
            return self.authenticate(authorization).role in READ
        except Unauthenticated:
            return False

    def seconds_left(self, record: TokenRecord) -> float | None:
        """Time until the token expires; None: it does not."""
        if not record.expire_time:
            return None
        return max(0.0, (record.expire_time - self._clock()) / 1e6)

    def access(self) -> list[TokenRecord]:
        """The tokens that may ask for predictions now, by id; an empty `deployment` opens all.

        Whoever goes by this list later has to look at `expire_time` too.
        """
        now = self._clock()
        return [
            record
            for record in self.records
            if record.role in PREDICTING
            and not record.revoked
            and not 0 < record.expire_time <= now
        ]

    async def create(
        self,
        principal: str,
        role: Role,
        *,
        ttl: Micros = 0,
        created_by: str = "",
        deployment: str = "",
        host: str = "",
    ) -> tuple[TokenRecord, str]:
        """Make and store a token; the text is in the result and nowhere else. `ttl` 0: no end.

        `deployment` is the one that it opens for predictions (resource name), `host` the one that
        it makes a machine.
        """
        identity, text = tokens.mint()
        now = self._clock()
        record = TokenRecord(
            id=identity,
            sha256=tokens.digest(text),
            principal=principal,
            role=role,
            create_time=now,
            expire_time=now + ttl if ttl else 0,
            created_by=created_by,
            deployment=deployment,
            host=host,
        )
        await whole(self._put(record))
        return record, text

    async def use(self, record: TokenRecord, key: str, host: str) -> None:
        """Let a join token be the identity of a host from now on, without an end, for one key (its
        digest); another machine that was this host is it no more.

        Durable when it returns; again with the same key is the same as once. Calls must not
        overlap. Raises Unauthenticated for another key.
        """
        self.verify(record)
        current = self._records[record.id]
        if current.used_by == key:
            return
        if current.used_by:
            why = "the join token was used by another machine"
            raise _refused(Reason.TOKEN_USED, why, "make another: `hatoba hosts add`")
        if former := self.identity_of(host):
            await self.revoke(former)
        used = replace(current, used_by=key, host=host, principal=f"hosts/{host}", expire_time=0)
        await whole(self._put(used))

    def identity_of(self, host: str) -> str:
        """Id of the token by which a host is known; empty: it has not joined, or was removed."""
        return self._identities.get(host, "")

    def _note_identity(self, record: TokenRecord) -> None:
        if record.used_by and not record.revoked:
            self._identities[record.host] = record.id
        elif self._identities.get(record.host) == record.id:
            del self._identities[record.host]

    async def revoke(self, identity: str) -> TokenRecord:
        """End a token and the streams opened with it; twice is the same as once."""
        record = self._records.get(identity)
        if record is None:
            raise NotFound(f"no token {identity}", resource=Resource("token", f"tokens/{identity}"))
        if record.revoked:
            return record
        revoked = replace(record, revoked=True)
        await whole(self._put(revoked))
        return revoked

    async def _put(self, record: TokenRecord) -> None:
        await self._store.put_token(record)
        self._records[record.id] = record
        self._note_identity(record)
        if record.revoked:
            self.cut(record.id)
        self._tell_followers(record)

    def on_revoked(self, identity: str, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` once this token is revoked, or cut; the result takes that back."""
        # Ten thousand devices wait here, each by itself: a list, and no closure, are small.
        self._watchers.setdefault(identity, []).append(notify)
        return partial(self._forget, identity, notify)

    def _forget(self, identity: str, notify: Callable[[], None]) -> None:
        watchers = self._watchers.get(identity, [])
        if notify in watchers:
            watchers.remove(notify)
        if not watchers:
            self._watchers.pop(identity, None)

    def cut(self, identity: str) -> None:
        """End the streams of who is known by this: the id of a token, or a device's identity."""
        for notify in tuple(self._watchers.get(identity, ())):
            notify()

    def on_access(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` whenever `access` gives something else; the result takes that back.

        A token whose time is over is not told of: it carries its end with it.
        """
        self._followers.add(notify)
        return lambda: self._followers.discard(notify)

    def _tell_followers(self, record: TokenRecord) -> None:
        if record.role in PREDICTING:
            for notify in tuple(self._followers):
                notify()


def _refused(reason: Reason, what: str, remedy: str) -> Unauthenticated:
    return Unauthenticated(f"{what}; {remedy}", reason=reason)


def _unknown() -> Unauthenticated:
    return _refused(
        Reason.TOKEN_UNKNOWN, "this server does not know the token", "check token and address"
    )


def _malformed() -> Unauthenticated:
    return _refused(
        Reason.TOKEN_MALFORMED,
        "the authorization header holds no token of ours",
        "send `authorization: Bearer hb_...`, the text of a token file alone",
    )
