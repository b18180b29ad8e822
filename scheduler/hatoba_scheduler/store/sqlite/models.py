"""`ModelStore` on SQLite."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.deployments import deployment_name
from hatoba_scheduler.domain.models import (
    Decision,
    Link,
    Model,
    ModelState,
    ModelVersion,
    Move,
    Moved,
    MoveState,
    Refusal,
    Refused,
    Step,
    VersionKey,
    Want,
    judge_decision,
    judge_want,
    links_of,
)
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.references import parse, short
from hatoba_scheduler.store.base import Met, RequestKey, Stale
from hatoba_scheduler.store.models import InUse, Metrics, MoveQuery, Verdict
from hatoba_scheduler.store.sqlite import queries, rows
from hatoba_scheduler.store.sqlite.readers import Parameters, Readers, decoded, fetch, keyed, page
from hatoba_scheduler.store.sqlite.requests import keep, met
from hatoba_scheduler.store.sqlite.statements import Row, execute_rows, of
from hatoba_scheduler.store.sqlite.unit import Direct, head_row
from hatoba_scheduler.store.sqlite.writer import Writer

T = TypeVar("T")

NAMED_USERS = 20
"""As many users of something are named when it cannot be removed."""
KEYS_AT_ONCE = 500


def _sql(name: str) -> str:
    return of("models", name)


class SqliteModels:
    """See `ModelStore`; shares the writer and the readers of its store."""

    def __init__(self, writer: Writer, readers: Readers, now: Callable[[], Micros]) -> None:
        self._writer = writer
        self._readers = readers
        self._now = now

    # -- versions -------------------------------------------------------------------------------

    async def register(
        self, version: ModelVersion, request: RequestKey | None
    ) -> ModelVersion | Met:
        """See `ModelStore.register`."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> ModelVersion | Met:
            known = met(connection, request)
            if known is not None:
                return known
            _insert(connection, version)
            keep(connection, request, version.name, now)
            return version

        return await self._write(work)

    async def note_check(self, key: VersionKey, check_job: str) -> None:
        """See `ModelStore.note_check`."""
        await self._write(lambda c: c.execute(_sql("note_check"), (check_job, *key)).rowcount)

    async def settle(self, key: VersionKey, verdict: Verdict) -> bool:
        """See `ModelStore.settle`."""

        def work(connection: sqlite3.Connection) -> bool:
            row = (int(verdict.state), rows.cause_text(verdict.cause), verdict.content, *key)
            if not connection.execute(_sql("settle"), row).rowcount:
                return False
            connection.execute(_sql("touch"), key[:2])
            return True

        return await self._write(work)

    async def replace_content(
        self, version: ModelVersion, content: bytes, request: RequestKey | None = None
    ) -> Stale | Met | None:
        """See `ModelStore.replace_content`."""
        now, row = self._now(), (content, *version.key, version.content)

        def work(connection: sqlite3.Connection) -> Stale | Met | None:
            known = met(connection, request)
            if known is not None:
                return known
            if not connection.execute(_sql("replace_content"), row).rowcount:
                return Stale.STALE
            connection.execute(_sql("touch"), version.key[:2])
            keep(connection, request, version.name, now)
            return None

        return await self._write(work)

    async def version(self, key: VersionKey) -> ModelVersion | None:
        """One version."""
        found = await self._versions("WHERE project = ? AND model = ? AND version = ?", key)
        return found[0] if found else None

    async def newest_ready(self, project: str, model: str) -> ModelVersion | None:
        """The newest READY version of a model."""
        found = await self._versions(
            "WHERE project = ? AND model = ? AND state = ? ORDER BY version DESC LIMIT 1",
            (project, model, int(ModelState.READY)),
        )
        return found[0] if found else None

    async def alias(self, project: str, model: str, alias: str) -> int:
        """The version that an alias points to; 0 for none."""
        return await self._readers.run(lambda c: _points_to(c, project, model, alias))

    async def versions(
        self, project: str, model: str, below: int, limit: int
    ) -> list[ModelVersion]:
        """Versions of a model, newest first, below a number (0: from the newest)."""
        sql = (
            f"{_sql('versions')} WHERE project = ? AND model = ? AND version < ? "
            "ORDER BY version DESC LIMIT ?"
        )

        def work(connection: sqlite3.Connection) -> list[ModelVersion]:
            def some(above: int, count: int) -> list[Row]:
                return fetch(connection, sql, (project, model, above, count))

            start = below or 2**31
            return page(
                some, rows.model_version_from, "model_versions", start, limit, lambda row: row[0]
            )

        return await self._readers.run(work)

    async def registering(self) -> list[ModelVersion]:
        """All versions whose check has not ended."""
        return await self._versions(
            "INDEXED BY model_versions_registering WHERE state = 1 ORDER BY create_time", ()
        )

    async def delete_version(
        self, key: VersionKey, request: RequestKey | None = None
    ) -> ModelVersion | InUse | Met | None:
        """See `ModelStore.delete_version`."""
        now = self._now()

        def work(
            connection: sqlite3.Connection,
        ) -> ModelVersion | InUse | Met | None:
            known = met(connection, request)
            if known is not None:
                return known
            found = _version(connection, key)
            if found is None:
                return None
            asked = (*key, key.resource, NAMED_USERS)
            users = connection.execute(_sql("users"), asked).fetchall()
            if users:
                return InUse(tuple(_user(user) for (user,) in users))
            connection.execute(_sql("delete_version"), key)
            connection.execute(_sql("delete_links"), (key.resource,))
            connection.execute(_sql("touch"), key[:2])
            keep(connection, request, key.resource, now)
            return found

        return await self._write(work)

    async def made_by(self, jobs: Sequence[str]) -> dict[str, list[str]]:
        """Versions of those jobs that made any, by resource names."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for start in range(0, len(jobs), KEYS_AT_ONCE):
            some_of, keys = keyed(jobs[start : start + KEYS_AT_ONCE])
            sql = f"{_sql('of_jobs')} WHERE job {some_of} AND job <> '' ORDER BY model, version"
            for job, *key in await self._rows(sql, keys):
                found[job].append(VersionKey(*key).resource)
        return dict(found)

    async def last_metrics(self, job_uid: str, index: int) -> Metrics:
        """Of each metric of a task the value at its highest step, by key."""
        found = await self._rows(_sql("last_metrics"), (job_uid, index))
        return tuple((key, float("nan") if value is None else value) for key, value, _ in found)

    # -- models and aliases -----------------------------------------------------------------------

    async def model(self, project: str, model: str) -> Model | None:
        """One model with its aliases."""
        return await self._readers.run(lambda c: _model(c, project, model))

    async def models(self, project: str, after: str, limit: int) -> list[Model]:
        """Models by name, above the name `after`."""
        sql = f"{_sql('models')} WHERE m.project = ? AND m.model > ? ORDER BY m.model LIMIT ?"

        def work(connection: sqlite3.Connection) -> list[Model]:
            def decode(row: Row) -> Model:
                return rows.model_from(row, fetch(connection, _sql("aliases"), row[:2]))

            def some(above: str, count: int) -> list[Row]:
                return fetch(connection, sql, (project, above, count))

            return page(some, decode, "models", after, limit, lambda row: row[1])

        return await self._readers.run(work)

    async def protect(
        self,
        project: str,
        model: str,
        aliases: tuple[str, ...],
        etag: str,
        request: RequestKey | None = None,
    ) -> Model | Stale | Met | None:
        """See `ModelStore.protect`."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> Model | Stale | Met | None:
            before = met(connection, request)
            if before is not None:
                return before
            known = _model(connection, project, model)
            if known is None:
                return None
            if etag and etag != known.etag:
                return Stale.STALE
            if set(known.protected) != set(aliases):
                row = (rows.protected_text(aliases), project, model)
                connection.execute(_sql("protect"), row)
            keep(connection, request, model, now)
            return _model(connection, project, model)

        return await self._write(work)

    async def move(self, want: Want, request: RequestKey | None = None) -> Moved | Refused | Met:
        """See `ModelStore.move`."""
        return await self._moved(lambda connection: _want(connection, want), request)

    async def decide(
        self, decision: Decision, request: RequestKey | None = None
    ) -> Moved | Refused | Met:
        """See `ModelStore.decide`."""
        return await self._moved(lambda connection: _decide(connection, decision), request)

    async def _moved(
        self,
        step: Callable[[sqlite3.Connection], Moved | Refused],
        request: RequestKey | None,
    ) -> Moved | Refused | Met:
        """Take a step, and keep the key of who asked for a move with it."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> Moved | Refused | Met:
            before = met(connection, request)
            if before is not None:
                return before
            moved = step(connection)
            if isinstance(moved, Moved) and moved.move.number:
                keep(connection, request, moved.move.name, now)
            return moved

        return await self._write(work)

    async def moves(self, query: MoveQuery, below: int, limit: int) -> list[Move]:
        """Moves, newest first, below a number (0: from the newest)."""
        conditions, own = ["project = ?"], [query.project]
        if query.model:
            conditions.append("model = ?")
            own.append(query.model)
        if query.pending_only:
            conditions.append(f"state = {int(MoveState.PENDING)}")
        sql = (
            f"{_sql('moves')} WHERE {' AND '.join(conditions)} AND number < ? "
            "ORDER BY number DESC LIMIT ?"
        )

        def work(connection: sqlite3.Connection) -> list[Move]:
            def some(above: int, count: int) -> list[Row]:
                return fetch(connection, sql, (*own, above, count))

            start = below or 2**62
            return page(some, rows.move_from, "alias_moves", start, limit, lambda row: row[2])

        return await self._readers.run(work)

    # -- lineage and garbage ----------------------------------------------------------------------

    async def links(self, names: Sequence[str], *, backwards: bool) -> list[Link]:
        """What came from these resources, or (backwards) what they came from."""
        statement = "backwards" if backwards else "forwards"
        asked: list[Row] = [_parts(name) if backwards else (name,) for name in names]
        found = await self._readers.run(lambda c: execute_rows(c, statement, asked, "lineage"))
        return [Link(*row) for row in found]

    async def deployment_facts(self, project: str, name: str) -> dict[str, str] | None:
        """See `ModelStore.deployment_facts`."""
        found = await self._rows(of("lineage", "deployment"), (project, name))
        if not found:
            return None
        model, replicas, current, following = found[0]
        facts = {"model": model, "replicas": str(replicas), "revision": str(current)}
        return facts | ({"following": "true"} if following else {})

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that versions name."""
        return {digest for (digest,) in await self._rows(_sql("roots"), ())}

    # -- helpers ----------------------------------------------------------------------------------

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        answer: T = await self._writer.call(Direct(work))
        return answer

    async def _rows(self, sql: str, parameters: Parameters) -> list[Row]:
        return await self._readers.run(lambda connection: fetch(connection, sql, parameters))

    async def _versions(self, where: str, parameters: Parameters) -> list[ModelVersion]:
        sql = f"{_sql('versions')} {where}"
        return await self._readers.run(
            lambda c: decoded(fetch(c, sql, parameters), rows.model_version_from, "model_versions")
        )


def _parts(name: str) -> Row:
    """A resource name with project, kind, name and number."""
    found = parse(name)
    base, number = found.name, found.version
    if found.kind == "jobs":
        base, number = queries.split_name(found.name)
    return name, found.project, found.kind, base, number


# -- steps of the writer --------------------------------------------------------------------------


def _insert(connection: sqlite3.Connection, version: ModelVersion) -> None:
    """Number a version and store it with its links."""
    found = execute_rows(connection, "heads", [(version.project, version.model)], "models")
    number = (found[0][2] if found else 0) + 1
    version.completed(number)
    execute_rows(connection, "put_heads", [head_row(version)], "models")
    row = (number, *rows.model_version_row(version))
    execute_rows(connection, "insert_versions", [row], "models")
    execute_rows(connection, "insert_links", links_of(version), "models")


def _version(connection: sqlite3.Connection, key: VersionKey) -> ModelVersion | None:
    sql = f"{_sql('versions')} WHERE project = ? AND model = ? AND version = ?"
    found = fetch(connection, sql, key)
    return rows.model_version_from(found[0]) if found else None


def _user(name: str) -> str:
    """A user of a version as people call it: versions come as resource names."""
    return f"models/{short(name)}" if name.startswith("projects/") else name


def _model(connection: sqlite3.Connection, project: str, model: str) -> Model | None:
    key = (project, model)
    found = fetch(connection, f"{_sql('models')} WHERE m.project = ? AND m.model = ?", key)
    return rows.model_from(found[0], fetch(connection, _sql("aliases"), key)) if found else None


def _points_to(connection: sqlite3.Connection, project: str, model: str, alias: str) -> int:
    found = connection.execute(_sql("alias"), (project, model, alias)).fetchone()
    return int(found[0]) if found else 0


def _state(connection: sqlite3.Connection, key: VersionKey) -> ModelState | None:
    found = connection.execute(_sql("version_state"), key).fetchone()
    return ModelState(found[0]) if found else None


def _want(connection: sqlite3.Connection, want: Want) -> Moved | Refused:
    model = _model(connection, want.project, want.model)
    if model is None:
        return Refused(Refusal.NO_MODEL)
    points_to = _points_to(connection, want.project, want.model, want.alias)
    target = _state(connection, VersionKey(want.project, want.model, want.version))
    step = judge_want(want, points_to, target, want.alias in model.protected)
    if isinstance(step, Refused):
        return step
    if step is Step.NOTHING:
        return Moved(model, _last_move(connection, want, points_to), changed=False)
    if not want.version and (followed := _followers(connection, want)):
        return Refused(Refusal.FOLLOWED, points_to, users=followed)
    if step is Step.ASK:
        move = _asked_before(connection, want, points_to) or _ask(connection, want, points_to)
        return Moved(model, move, changed=False)
    return _carried_out(connection, _new_move(want, points_to))


def _carried_out(connection: sqlite3.Connection, move: Move) -> Moved:
    """Point the alias elsewhere: a move that is new, or one that waited."""
    key = (move.project, move.model, move.alias)
    if move.number:
        _close(connection, move)
    else:
        move = _numbered(connection, move)
    connection.execute(_sql("supersede_moves"), (move.decide_time, *key))
    if move.target:
        row = (*key, move.target, move.decide_time, move.decided_by)
        connection.execute(_sql("put_alias"), row)
    else:
        connection.execute(_sql("delete_alias"), key)
    connection.execute(_sql("touch"), key[:2])
    model = _model(connection, *key[:2])
    assert model is not None
    return Moved(model, move, changed=True)


def _close(connection: sqlite3.Connection, move: Move) -> None:
    row = (int(move.state), move.decided_by, move.decide_time, move.comment, move.number)
    connection.execute(_sql("close_move"), row)


def _new_move(want: Want, points_to: int, state: MoveState = MoveState.APPLIED) -> Move:
    decided = state is MoveState.APPLIED
    return Move(
        want.project,
        want.model,
        0,
        want.alias,
        points_to,
        want.version,
        state,
        want.reason,
        want.actor,
        want.time,
        want.actor if decided else "",
        want.time if decided else 0,
    )


def _ask(connection: sqlite3.Connection, want: Want, points_to: int) -> Move:
    return _numbered(connection, _new_move(want, points_to, MoveState.PENDING))


def _numbered(connection: sqlite3.Connection, move: Move) -> Move:
    number = connection.execute(_sql("insert_move"), rows.move_row(move)).lastrowid
    return changed(move, number=number or 0)


def _asked_before(connection: sqlite3.Connection, want: Want, points_to: int) -> Move | None:
    """The same wish of the same principal, still waiting."""
    sql = (
        f"{_sql('moves')} WHERE project = ? AND model = ? AND alias = ? AND state = 1 "
        "AND source = ? AND target = ? AND requested_by = ?"
    )
    own = (want.project, want.model, want.alias, points_to, want.version, want.actor)
    found = fetch(connection, sql, own)
    return rows.move_from(found[0]) if found else None


def _last_move(connection: sqlite3.Connection, want: Want, points_to: int) -> Move:
    """The move that made it so; one that was never needed where an alias never pointed anywhere."""
    sql = (
        f"{_sql('moves')} WHERE project = ? AND model = ? AND alias = ? AND state = 2 "
        "ORDER BY number DESC LIMIT 1"
    )
    found = fetch(connection, sql, (want.project, want.model, want.alias))
    return rows.move_from(found[0]) if found else _new_move(want, points_to)


def _followers(connection: sqlite3.Connection, want: Want | Move) -> tuple[str, ...]:
    asked = (f"projects/{want.project}/models/{want.model}@{want.alias}", NAMED_USERS)
    found = connection.execute(_sql("followers"), asked)
    return tuple(
        f"deployments/{name}" if project == want.project else deployment_name(project, name)
        for project, name in found
    )


def _decide(connection: sqlite3.Connection, decision: Decision) -> Moved | Refused:
    sql = f"{_sql('moves')} WHERE project = ? AND model = ? AND number = ?"
    found = fetch(connection, sql, (decision.project, decision.model, decision.number))
    model = _model(connection, decision.project, decision.model)
    if not found or model is None:
        return Refused(Refusal.NO_MOVE)
    move = rows.move_from(found[0])
    points_to = _points_to(connection, move.project, move.model, move.alias)
    target = _state(connection, VersionKey(move.project, move.model, move.target))
    step = judge_decision(decision, move, points_to, target)
    if isinstance(step, Refused):
        return step
    if step is Step.NOTHING:
        return Moved(model, move, changed=False)
    closed = _closed(move, decision, step)
    if step is not Step.APPLY:
        _close(connection, closed)
        superseded = step is Step.SUPERSEDE
        return Refused(Refusal.SUPERSEDED, points_to) if superseded else Moved(model, closed, False)
    if not move.target and (followed := _followers(connection, move)):
        return Refused(Refusal.FOLLOWED, points_to, users=followed)
    return _carried_out(connection, closed)


_CLOSED = {
    Step.APPLY: MoveState.APPLIED,
    Step.REJECT: MoveState.REJECTED,
    Step.SUPERSEDE: MoveState.SUPERSEDED,
}


def _closed(move: Move, decision: Decision, step: Step) -> Move:
    return changed(
        move,
        state=_CLOSED[step],
        decided_by=decision.actor,
        decide_time=decision.time,
        comment=decision.comment,
    )
