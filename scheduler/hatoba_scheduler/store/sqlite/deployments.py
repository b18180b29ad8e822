"""`DeploymentStore` on SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from hatoba_scheduler.domain.deployments import (
    CanaryStep,
    Change,
    Deployment,
    DeploymentEvent,
    Pause,
    Prediction,
    Revision,
    Rollout,
    RolloutState,
    Served,
    Settings,
    Share,
    Strategy,
)
from hatoba_scheduler.domain.device_rollouts import Row as DeviceRow
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.references import parse
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Stale
from hatoba_scheduler.store.deployments import (
    KEPT_BATCHES,
    KEPT_EVENTS,
    KEPT_PREDICTIONS,
    KEPT_REVISIONS,
    Kept,
    KnownRouter,
    Taken,
)
from hatoba_scheduler.store.sqlite import devices, rows
from hatoba_scheduler.store.sqlite.readers import Readers, decoded, fetch
from hatoba_scheduler.store.sqlite.requests import keep, met
from hatoba_scheduler.store.sqlite.statements import Row, execute_rows, of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

T = TypeVar("T")
ROUTER_KEPT = 86_400_000_000
NO_BOUND = (1 << 62) - 1


def _sql(name: str) -> str:
    return of("deployments", name)


class SqliteDeployments:
    """See `DeploymentStore`; shares the writer and the readers of its store."""

    def __init__(self, writer: Writer, readers: Readers, now: Callable[[], Micros]) -> None:
        self._writer = writer
        self._readers = readers
        self._now = now

    async def load(self) -> list[Kept]:
        """See `DeploymentStore.load`."""
        return await self._readers.run(_load)

    async def apply(
        self, change: Change, request: RequestKey | None = None, rows: Sequence[DeviceRow] = ()
    ) -> Stale | Taken | Duplicate | Mismatch | None:
        """See `DeploymentStore.apply`."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> Stale | Taken | Duplicate | Mismatch | None:
            refused = met(connection, request) or _guard(connection, change)
            if refused is None:
                _put(connection, change)
                devices.put_rows(connection, rows)
                keep(connection, request, change.deployment.uid, now)
            return refused

        return await self._write(work)

    async def remove(self, uid: str) -> None:
        """See `DeploymentStore.remove`."""
        parts = ("route", "events", "rollouts", "revisions", "deployment")

        def work(connection: sqlite3.Connection) -> None:
            for part in parts:
                connection.execute(_sql(f"drop_{part}"), (uid,))
            devices.drop_rows(connection, uid)

        await self._write(work)

    async def revision(self, uid: str, number: int) -> Revision | None:
        """One revision."""
        found = await self.revisions(uid, number + 1, 1)
        return found[0] if found and found[0].revision == number else None

    async def revisions(self, uid: str, below: int, limit: int) -> list[Revision]:
        """See `DeploymentStore.revisions`."""
        sql = (
            f"{_sql('revisions')} WHERE deployment_uid = ? AND revision < ? "
            "ORDER BY revision DESC LIMIT ?"
        )
        own = (uid, below or NO_BOUND, limit)
        return await self._readers.run(
            lambda c: decoded(fetch(c, sql, own), _revision, "revisions")
        )

    async def events(self, uid: str, below: int, limit: int) -> list[DeploymentEvent]:
        """See `DeploymentStore.events`."""
        own = (uid, below or NO_BOUND, limit)
        return await self._readers.run(
            lambda c: decoded(fetch(c, _sql("events"), own), _event, "deployment_events")
        )

    # -- routers --------------------------------------------------------------------------------

    async def put_route(self, uid: str, cursor: int, served: Sequence[Served]) -> None:
        """See `DeploymentStore.put_route`."""
        row = (uid, cursor, json.dumps(served))
        await self._write(lambda c: c.execute(_sql("put_route"), row).rowcount)

    async def newest_cursor(self) -> int:
        """See `DeploymentStore.newest_cursor`."""
        found = await self._readers.run(lambda c: fetch(c, _sql("newest_cursor")))
        return int(found[0][0])

    async def put_router(self, router: KnownRouter) -> None:
        """See `DeploymentStore.put_router`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_sql("put_router"), router)
            connection.execute(_sql("drop_routers"), (router.last_seen - ROUTER_KEPT,))

        await self._write(work)

    async def routers(self) -> list[KnownRouter]:
        """All kept routers."""
        return await self._readers.run(
            lambda c: decoded(fetch(c, _sql("routers")), lambda row: KnownRouter(*row), "routers")
        )

    # -- predictions ----------------------------------------------------------------------------

    async def taken(self, batch: str) -> bool:
        """Whether a report with this id was stored before."""
        return bool(await self._readers.run(lambda c: fetch(c, _sql("batch"), (batch,))))

    async def add_predictions(self, batch: str, predictions: Sequence[Prediction]) -> None:
        """See `DeploymentStore.add_predictions`."""
        new = [_prediction_row(one) for one in predictions]

        def work(connection: sqlite3.Connection) -> None:
            if not connection.execute(_sql("insert_batch"), (batch,)).rowcount:
                return
            execute_rows(connection, "insert_predictions", new, "deployments")
            connection.execute(_sql("trim_batches"), (KEPT_BATCHES,))
            connection.execute(_sql("trim_predictions"), (KEPT_PREDICTIONS,))

        await self._write(work)

    async def prediction(self, trace_id: str) -> Prediction | None:
        """See `DeploymentStore.prediction`."""
        found = await self._readers.run(lambda c: fetch(c, _sql("prediction"), (trace_id,)))
        return Prediction(*found[0]) if found else None

    async def manifest_roots(self) -> set[str]:
        """See `DeploymentStore.manifest_roots`."""
        found = await self._readers.run(lambda c: fetch(c, _sql("manifests")))
        return {digest for (text,) in found for digest in json.loads(text)}

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        answer: T = await self._writer.call(Direct(work))
        return answer


# -- writing ---------------------------------------------------------------------------------------


def _guard(connection: sqlite3.Connection, change: Change) -> Stale | Taken | None:
    new = change.deployment
    if not _deployable(connection, change):
        return Stale.STALE
    if not change.expected:
        named = connection.execute(_sql("taken"), (new.project, new.name)).fetchone()
        return Taken.TAKEN if named else None
    found = connection.execute(_sql("version"), (new.uid,)).fetchone()
    return None if found and found[0] == change.expected else Stale.STALE


def _deployable(connection: sqlite3.Connection, change: Change) -> bool:
    """The model versions of its revisions are still there: nobody removes what is in use."""
    for revision in change.revisions:
        if revision.in_use:
            one = parse(revision.model_version, "models")
            key = (one.project, one.name, one.version)
            if not connection.execute(_sql("has_version"), key).fetchone():
                return False
    return True


def _put(connection: sqlite3.Connection, change: Change) -> None:
    uid = change.deployment.uid
    connection.execute(_sql("put_deployment"), _deployment_row(change.deployment))
    for revision in change.revisions:
        connection.execute(_sql("put_revision"), _revision_row(uid, revision))
    for rollout in change.rollouts:
        connection.execute(_sql("put_rollout"), _rollout_row(uid, rollout))
    for event in change.events:
        connection.execute(_sql("insert_event"), _event_row(uid, event))
    if change.events:
        connection.execute(_sql("trim_events"), (uid, change.events[-1].seq - KEPT_EVENTS))


def _deployment_row(one: Deployment) -> Row:
    settings = one.settings
    return (
        one.uid,
        one.project,
        one.name,
        one.backend,
        settings.spec,
        settings.model,
        settings.replicas,
        _strategy_text(settings.strategy),
        one.version,
        one.settings_version,
        one.generation,
        json.dumps(one.wanted),
        one.current,
        one.newest,
        int(one.following),
        one.followed,
        one.events,
        one.create_time,
        one.created_by,
        int(one.deleting),
        one.handle,
        _as_written(settings.model, one.project),
    )


def _as_written(model: str, project: str) -> str:
    """`projects/P/models/digits/versions/7` as `digits:7`; of another project in full."""
    short = model.removeprefix(f"projects/{project}/models/")
    return short.replace("/versions/", ":") if short != model else model


def _strategy_text(one: Strategy) -> str:
    return json.dumps(
        (
            one.max_unavailable,
            one.max_surge,
            one.steps,
            one.bake,
            one.ready_deadline,
            one.rollback,
            one.max_error_share,
        )
    )


def _revision_row(uid: str, one: Revision) -> Row:
    return (
        uid,
        one.revision,
        one.model_version,
        one.spec,
        one.template,
        json.dumps(one.manifests),
        one.create_time,
        one.created_by,
        int(one.proven),
        rows.cause_text(one.cause),
        int(one.in_use),
    )


def _rollout_row(uid: str, one: Rollout) -> Row:
    return (
        uid,
        one.number,
        one.from_revision,
        one.to_revision,
        int(one.state),
        json.dumps(one.steps),
        one.step,
        one.start_time,
        one.since,
        one.healthy_since,
        one.end_time,
        int(one.pause),
        int(one.back),
        rows.cause_text(one.cause),
    )


def _event_row(uid: str, one: DeploymentEvent) -> Row:
    cause = rows.cause_text(one.cause)
    return uid, one.seq, one.time, one.kind, one.message, one.revision, one.actor, cause


def _prediction_row(one: Prediction) -> Row:
    return (
        one.trace_id,
        one.deployment,
        one.revision,
        one.model_version,
        one.replica,
        one.status,
        one.time,
        one.duration,
        one.item,
    )


# -- reading ---------------------------------------------------------------------------------------


def _load(connection: sqlite3.Connection) -> list[Kept]:
    connection.execute("BEGIN")
    try:
        found = fetch(connection, _sql("deployments"))
        newest = fetch(connection, _sql("newest_rollouts"))
        kept = fetch(connection, _sql("kept_revisions"), (KEPT_REVISIONS,))
        told = fetch(connection, _sql("routes"))
    finally:
        connection.execute("COMMIT")
    rollouts = dict(decoded(newest, _rollout, "rollouts"))
    revisions: dict[str, list[Revision]] = defaultdict(list)
    for row in kept:
        revisions[row[0]] += decoded([row], _revision, "revisions")
    served = {uid: tuple(Served(*one) for one in json.loads(text)) for uid, text in told}
    deployments = decoded(found, lambda row: _deployment(row, rollouts.get(row[0])), "deployments")
    return [Kept(one, tuple(revisions[one.uid]), served.get(one.uid, ())) for one in deployments]


def _deployment(row: Row, rollout: Rollout | None) -> Deployment:
    strategy = _strategy(row[7])
    return Deployment(
        uid=row[0],
        project=row[1],
        name=row[2],
        backend=row[3],
        settings=Settings(row[4], row[5], row[6], strategy),
        version=row[8],
        settings_version=row[9],
        generation=row[10],
        wanted=tuple(Share(*one) for one in json.loads(row[11])),
        current=row[12],
        newest=row[13],
        following=bool(row[14]),
        followed=row[15],
        rollout=rollout,
        events=row[16],
        create_time=row[17],
        created_by=row[18],
        deleting=bool(row[19]),
        handle=row[20],
    )


def _strategy(text: str) -> Strategy:
    unavailable, surge, steps, *rest = json.loads(text)
    return Strategy(unavailable, surge, _steps(steps), *rest)


def _steps(found: Sequence[Sequence[int]]) -> tuple[CanaryStep, ...]:
    return tuple(CanaryStep(percent, hold) for percent, hold in found)


def _rollout(row: Row) -> tuple[str, Rollout]:
    return row[0], Rollout(
        number=row[1],
        from_revision=row[2],
        to_revision=row[3],
        state=RolloutState(row[4]),
        steps=_steps(json.loads(row[5])),
        step=row[6],
        start_time=row[7],
        since=row[8],
        healthy_since=row[9],
        end_time=row[10],
        pause=Pause(row[11]),
        back=bool(row[12]),
        cause=rows.cause_from(row[13]),
    )


def _revision(row: Row) -> Revision:
    return Revision(
        revision=row[1],
        model_version=row[2],
        spec=row[3],
        template=row[4],
        manifests=tuple(json.loads(row[5])),
        create_time=row[6],
        created_by=row[7],
        proven=bool(row[8]),
        cause=rows.cause_from(row[9]),
        in_use=bool(row[10]),
    )


def _event(row: Row) -> DeploymentEvent:
    seq, time, kind, message, revision, actor, cause = row
    return DeploymentEvent(seq, time, kind, message, revision, actor, rows.cause_from(cause))
