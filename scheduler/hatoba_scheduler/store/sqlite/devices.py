"""`DeviceStore` on SQLite."""

from __future__ import annotations

import functools
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from hatoba_scheduler.domain import device_rollouts
from hatoba_scheduler.domain.device_rollouts import Stage
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState, Platform, Want
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.devices import (
    KEPT_EVENTS,
    KEPT_RECORDS,
    DeviceEvent,
    DeviceRecord,
    DeviceToken,
    NotEnrolled,
    RecordKind,
    Write,
    with_gaps,
)
from hatoba_scheduler.store.sqlite import rows
from hatoba_scheduler.store.sqlite.readers import (
    Parameters,
    Readers,
    decoded,
    decoded_row,
    fetch,
    page,
)
from hatoba_scheduler.store.sqlite.statements import Row, execute_rows, of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

PART = "devices"
T = TypeVar("T")
NO_BOUND = (1 << 62) - 1


def _sql(name: str) -> str:
    return of(PART, name)


class SqliteDevices:
    """See `DeviceStore`; shares the writer and the readers of its store."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def load(self) -> list[Device]:
        """See `DeviceStore.load`."""
        return await self._all(_sql("devices"), (), _device, "devices")

    async def write(
        self, writes: Sequence[Write], events: Sequence[DeviceEvent] = ()
    ) -> frozenset[str]:
        """See `DeviceStore.write`."""
        return await self._write(lambda connection: _write(connection, writes, events))

    async def touch(self, seen: Sequence[tuple[str, Micros]]) -> None:
        """See `DeviceStore.touch`."""
        last: list[Row] = list(dict(seen).items())
        await self._write(lambda connection: execute_rows(connection, "touch", last, PART))

    async def remove(self, name: str) -> None:
        """See `DeviceStore.remove`."""
        parts = ("device", "rows_of_device", "records", "record_kinds", "events")

        def work(connection: sqlite3.Connection) -> None:
            for part in parts:
                connection.execute(_sql(f"drop_{part}"), (name,))

        await self._write(work)

    # -- becoming one ---------------------------------------------------------------------------

    async def put_token(self, token: DeviceToken) -> None:
        """See `DeviceStore.put_token`."""
        labels = json.dumps(token.labels)
        row = (token.id, token.uses, labels, token.device, token.used, token.transport)
        await self._write(lambda connection: connection.execute(_sql("put_token"), row).rowcount)

    async def token(self, identity: str) -> DeviceToken | None:
        """See `DeviceStore.token`."""
        return (await self.tokens([identity])).get(identity)

    async def tokens(self, identities: Sequence[str]) -> dict[str, DeviceToken]:
        """See `DeviceStore.tokens`."""
        asked = (json.dumps(list(identities)),)
        found = await self._all(_sql("tokens"), asked, _token, "device_tokens")
        return {one.id: one for one in found}

    async def enroll(
        self, write: Write, key: str, token: str, event: DeviceEvent
    ) -> Device | NotEnrolled | None:
        """See `DeviceStore.enroll`."""

        def work(connection: sqlite3.Connection) -> Device | NotEnrolled | None:
            known = fetch(connection, _sql("known_key"), (key, token))
            if known:
                return _made(connection, *known[0])
            refused = _refusal(connection, write, token)
            if refused is None:
                _enroll(connection, write, key, token)
                _add_events(connection, [event])
            return refused

        return await self._write(work)

    # -- roll-outs ------------------------------------------------------------------------------

    async def rows(self, deployment: str, number: int) -> list[device_rollouts.Row]:
        """See `DeviceStore.rows`."""
        sql = f"{_sql('rows')} ORDER BY device"
        return await self._all(sql, (deployment, number), _rollout_row, "device_rollouts")

    async def put_rows(self, rows: Sequence[device_rollouts.Row]) -> None:
        """See `DeviceStore.put_rows`."""
        await self._write(lambda connection: put_rows(connection, rows))

    async def page_of_rows(
        self, deployment: str, number: int, after: str, limit: int, stages: Collection[Stage]
    ) -> list[device_rollouts.Row]:
        """See `DeviceStore.page_of_rows`."""
        wanted = [int(stage) for stage in sorted(set(stages))]
        some_of = f" AND stage IN ({', '.join('?' * len(wanted))})" if wanted else ""
        sql = f"{_sql('rows')} AND device > ?{some_of} ORDER BY device LIMIT ?"

        def work(connection: sqlite3.Connection) -> list[device_rollouts.Row]:
            def some(above: str, count: int) -> list[Row]:
                return fetch(connection, sql, (deployment, number, above, *wanted, count))

            return page(some, _rollout_row, "device_rollouts", after, limit, lambda row: row[2])

        return await self._readers.run(work)

    async def drop_rows(self, deployment: str, below: int) -> None:
        """See `DeviceStore.drop_rows`."""
        await self._write(lambda connection: drop_rows(connection, deployment, below))

    # -- what they sent -------------------------------------------------------------------------

    async def add_records(self, device: str, records: Sequence[DeviceRecord]) -> int:
        """See `DeviceStore.add_records`."""
        return await self._write(lambda connection: _add_records(connection, device, records))

    async def newest_record(self, device: str) -> int:
        """See `DeviceStore.newest_record`."""
        found = await self._readers.run(lambda c: fetch(c, _sql("newest_record"), (device,)))
        return int(found[0][0]) if found else 0

    async def records(
        self, device: str, kind: RecordKind, deployment: str, after: int, limit: int
    ) -> list[DeviceRecord]:
        """See `DeviceStore.records`."""
        asked = _Asked(device, kind, deployment, after, limit)
        return await self._readers.run(lambda connection: _records(connection, asked))

    async def events(self, device: str, below: int, limit: int) -> list[DeviceEvent]:
        """See `DeviceStore.events`."""
        own = (device, below or NO_BOUND, limit)
        return await self._all(_sql("events"), own, lambda row: DeviceEvent(*row), "device_events")

    async def _all(
        self, sql: str, parameters: Parameters, decode: Callable[[Row], T], table: str
    ) -> list[T]:
        return await self._readers.run(lambda c: decoded(fetch(c, sql, parameters), decode, table))

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        answer: T = await self._writer.call(Direct(work))
        return answer


# -- writing ---------------------------------------------------------------------------------------


def _write(
    connection: sqlite3.Connection, writes: Sequence[Write], events: Sequence[DeviceEvent]
) -> frozenset[str]:
    known = _versions(connection, [one.device.name for one in writes])
    fresh: dict[str, Device] = {}
    stale: set[str] = set()
    for device, expected in writes:
        if known.get(device.name, 0) != expected:
            stale.add(device.name)
            continue
        known[device.name] = device.version
        fresh[device.name] = device
    _put(connection, fresh.values())
    _add_events(connection, events)
    return frozenset(stale)


def _versions(connection: sqlite3.Connection, names: Iterable[str]) -> dict[str, int]:
    """Versions of those that are there."""
    return dict(execute_rows(connection, "versions", [(name,) for name in set(names)], PART))


def _put(connection: sqlite3.Connection, devices: Iterable[Device]) -> None:
    execute_rows(connection, "put_devices", [_device_row(one) for one in devices], PART)


def _add_events(connection: sqlite3.Connection, events: Sequence[DeviceEvent]) -> None:
    """Number and keep them; nothing is kept of who is no device."""
    names: list[Row] = [(name,) for name in {event.device for event in events}]
    newest: dict[str, int] = dict(execute_rows(connection, "newest_events", names, PART))
    new: list[Row] = []
    for event in events:
        if event.device in newest:
            newest[event.device] += 1
            new.append((event.device, newest[event.device], *event[1:5]))
    execute_rows(connection, "insert_events", new, PART)
    full: list[Row] = [(name, seq - KEPT_EVENTS) for name, seq in newest.items()]
    execute_rows(connection, "trim_events", [row for row in full if row[1] > 0], PART)


def _made(connection: sqlite3.Connection, name: str, identity: str) -> Device | NotEnrolled:
    """The device that a key made, unless it is gone, or another one has its name."""
    found = fetch(connection, f"{_sql('devices')} WHERE name = ?", (name,))
    device = decoded_row(found[0], _device) if found else None
    return device if device and device.identity == identity else NotEnrolled.USED_UP


def _refusal(connection: sqlite3.Connection, write: Write, token: str) -> NotEnrolled | None:
    found = fetch(connection, _sql("tokens"), (json.dumps([token]),))
    if not found:
        return NotEnrolled.USED_UP
    terms = decoded_row(found[0], _token)
    if terms.used >= terms.uses:
        return NotEnrolled.USED_UP
    name = write.device.name
    expected = write.expected if terms.device == name else 0
    taken = _versions(connection, [name]).get(name, 0) != expected
    return NotEnrolled.NAME_TAKEN if taken else None


def _enroll(connection: sqlite3.Connection, write: Write, key: str, token: str) -> None:
    device = write.device
    _put(connection, [device])
    connection.execute(_sql("insert_key"), (key, token, device.name, device.identity))
    connection.execute(_sql("use_token"), (token,))
    # A new disk counts what it sends from 1 again: nothing of it may pass for kept.
    connection.execute(_sql("drop_records"), (device.name,))
    connection.execute(_sql("drop_record_kinds"), (device.name,))
    connection.execute(_sql("note_newest"), (0, device.name))


def put_rows(connection: sqlite3.Connection, rows: Sequence[device_rollouts.Row]) -> None:
    """Write rows of roll-outs, in the transaction that is open."""
    execute_rows(connection, "put_rows", [_row_of(one) for one in rows], PART)


def drop_rows(connection: sqlite3.Connection, deployment: str, below: int = NO_BOUND) -> None:
    """Forget rows of a deployment's roll-outs below a number, in the transaction that is open."""
    connection.execute(_sql("drop_rows"), (deployment, below))


def _add_records(
    connection: sqlite3.Connection, device: str, records: Sequence[DeviceRecord]
) -> int:
    found = connection.execute(_sql("newest_record"), (device,)).fetchone()
    if found is None:
        return 0
    (newest,) = found
    new = {one.position: one for one in records if one.position > newest}
    if not new:
        return int(newest)
    execute_rows(connection, "insert_records", [_record_row(device, r) for r in new.values()], PART)
    _count_records(connection, device, Counter(one.kind.value for one in new.values()))
    newest = max(new)
    connection.execute(_sql("note_newest"), (newest, device))
    return newest


def _count_records(connection: sqlite3.Connection, device: str, more: Mapping[int, int]) -> None:
    """There are so many more, by kind: what is too many of one goes."""
    known = _kept(connection, device)
    rows: list[Row] = []
    for kind, count in more.items():
        kept, trimmed = known.get(kind, (0, 0))
        over = kept + count - KEPT_RECORDS
        if over > 0:
            oldest = fetch(connection, _sql("oldest_records"), (device, kind, over - 1))
            trimmed = oldest[0][0]
            connection.execute(_sql("trim_records"), (device, kind, trimmed))
        rows.append((device, kind, min(kept + count, KEPT_RECORDS), trimmed))
    execute_rows(connection, "put_kept", rows, PART)


def _kept(connection: sqlite3.Connection, device: str) -> dict[int, tuple[int, int]]:
    """How many there are of each kind, and up to which position it was trimmed."""
    found = fetch(connection, _sql("kept_records"), (device,))
    return {kind: (kept, trimmed) for kind, kept, trimmed in found}


def _device_row(one: Device) -> Row:
    return (
        one.name,
        int(one.state),
        json.dumps(one.labels),
        one.platform.architecture,
        one.platform.variant,
        one.capacity.cpus,
        one.capacity.memory,
        one.capacity.disk,
        int(one.capacity.limits_memory),
        one.version,
        one.generation,
        json.dumps(one.wants),
        one.acked,
        one.reported,
        one.boot_id,
        one.agent,
        one.transport,
        one.create_time,
        one.last_seen,
        one.identity,
        one.certificate_end,
        one.installation,
        one.report,
        one.certificate_since,
        int(one.capacity.images),
    )


def _row_of(one: device_rollouts.Row) -> Row:
    return (
        one.deployment,
        one.number,
        one.device,
        one.group,
        int(one.stage),
        one.since,
        one.due,
        one.offered,
        one.tries,
        rows.cause_text(one.cause),
    )


def _record_row(device: str, one: DeviceRecord) -> Row:
    return device, one.position, one.time, one.kind.value, one.deployment, one.body, one.lost


# -- reading ---------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """What is asked for of what a device sent."""

    device: str
    kind: RecordKind
    deployment: str
    after: int
    limit: int


def _records(connection: sqlite3.Connection, asked: _Asked) -> list[DeviceRecord]:
    # What comes between two of its statements would be told by neither, or by the wrong one.
    connection.execute("BEGIN")
    try:
        found = _found(connection, asked)
        before = asked.after
        if not before and len(found) > asked.limit:
            before = found.pop(0)[0]
        full = asked.after and len(found) == asked.limit
        gaps = _gaps(connection, asked.device, before, found[-1][0] if full else NO_BOUND)
        kept = _kept(connection, asked.device)
    finally:
        connection.execute("COMMIT")
    trimmed = max(kept.get(one.value, (0, 0))[1] for one in (asked.kind, RecordKind.GAP))
    told = with_gaps(
        decoded(found, _record, "device_records"),
        decoded(gaps, _record, "device_records"),
        trimmed=before < trimmed,
    )
    if not told and before < trimmed:
        return [DeviceRecord(trimmed, 0, RecordKind.GAP, "", b"", trimmed=True)]
    return told


def _found(connection: sqlite3.Connection, asked: _Asked) -> list[Row]:
    """In order; of the last ones also the one before them."""
    device, kind, deployment, after, limit = asked
    sql = _sql("records") + (" AND deployment = ?" if deployment else "")
    own = (device, kind.value, after, *([deployment] if deployment else []))
    if after:
        return fetch(connection, f"{sql} ORDER BY position LIMIT ?", (*own, limit))
    return fetch(connection, f"{sql} ORDER BY position DESC LIMIT ?", (*own, limit + 1))[::-1]


def _gaps(connection: sqlite3.Connection, device: str, after: int, below: int) -> list[Row]:
    sql = f"{_sql('records')} AND position < ? ORDER BY position"
    return fetch(connection, sql, (device, RecordKind.GAP.value, after, below))


def _device(row: Row) -> Device:
    return Device(
        name=row[0],
        state=DeviceState(row[1]),
        labels=_labels(row[2]),
        platform=Platform(row[3], row[4]),
        capacity=Capacity(row[5], row[6], row[7], bool(row[8]), bool(row[24])),
        version=row[9],
        generation=row[10],
        wants=_wants(row[11]),
        acked=row[12],
        reported=row[13],
        boot_id=row[14],
        agent=row[15],
        transport=row[16],
        create_time=row[17],
        last_seen=row[18],
        identity=row[19],
        certificate_end=row[20],
        installation=row[21],
        report=row[22],
        certificate_since=row[23],
    )


@functools.lru_cache(maxsize=1024)
def _labels(text: str) -> tuple[tuple[str, str], ...]:
    """Of many devices they are the same."""
    return tuple((key, value) for key, value in json.loads(text))


@functools.lru_cache(maxsize=1024)
def _wants(text: str) -> tuple[Want, ...]:
    return tuple(Want(*one) for one in json.loads(text))


def _token(row: Row) -> DeviceToken:
    identity, uses, labels, device, used, transport = row
    return DeviceToken(identity, uses, _labels(labels), device, used, transport)


def _rollout_row(row: Row) -> device_rollouts.Row:
    deployment, number, device, group, stage, since, due, offered, tries, cause = row
    return device_rollouts.Row(
        deployment,
        number,
        device,
        group,
        Stage(stage),
        since,
        due,
        offered,
        tries,
        rows.cause_from(cause),
    )


def _record(row: Row) -> DeviceRecord:
    position, time, kind, deployment, body, lost = row
    return DeviceRecord(position, time, RecordKind(kind), deployment, body, lost)
