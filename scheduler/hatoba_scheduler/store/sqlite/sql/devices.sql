-- Devices, where they stand in roll-outs, and what they sent.

-- name: devices
SELECT name, state, labels, architecture, variant, cpus, memory, disk, limits_memory, version,
    generation, wants, acked, reported, boot_id, agent, transport, create_time, last_seen, identity,
    certificate_end, installation, report, certificate_since, images
FROM devices;

-- name: versions
SELECT d.name, d.version
FROM (VALUES /*rows 1*/) AS v
CROSS JOIN devices AS d ON d.name = v.column1;

-- name: put_devices
-- What counts its records stays.
INSERT INTO devices (
    name, state, labels, architecture, variant, cpus, memory, disk, limits_memory, version,
    generation, wants, acked, reported, boot_id, agent, transport, create_time, last_seen, identity,
    certificate_end, installation, report, certificate_since, images
) VALUES /*rows 25*/
ON CONFLICT (name) DO UPDATE SET
    state = excluded.state, labels = excluded.labels, architecture = excluded.architecture,
    variant = excluded.variant, cpus = excluded.cpus, memory = excluded.memory,
    disk = excluded.disk, limits_memory = excluded.limits_memory, version = excluded.version,
    generation = excluded.generation, wants = excluded.wants, acked = excluded.acked,
    reported = excluded.reported, boot_id = excluded.boot_id, agent = excluded.agent,
    transport = excluded.transport, create_time = excluded.create_time,
    last_seen = excluded.last_seen, identity = excluded.identity,
    certificate_end = excluded.certificate_end, installation = excluded.installation,
    report = excluded.report, certificate_since = excluded.certificate_since,
    images = excluded.images;

-- name: touch
UPDATE devices SET last_seen = v.column2
FROM (VALUES /*rows 2*/) AS v
WHERE devices.name = v.column1;

-- name: drop_device
DELETE FROM devices WHERE name = ?;

-- name: newest_events
-- Of devices that are there.
SELECT d.name, coalesce((SELECT max(e.seq) FROM device_events AS e WHERE e.device = d.name), 0)
FROM (VALUES /*rows 1*/) AS v
CROSS JOIN devices AS d ON d.name = v.column1;

-- name: insert_events
INSERT INTO device_events (device, seq, time, kind, message, actor) VALUES /*rows 6*/;

-- name: trim_events
-- Up to a position of each device.
DELETE FROM device_events WHERE (device, seq) IN (
    SELECT e.device, e.seq
    FROM (VALUES /*rows 2*/) AS v
    CROSS JOIN device_events AS e ON e.device = v.column1 AND e.seq <= v.column2
);

-- name: events
SELECT device, time, kind, message, actor, seq FROM device_events
WHERE device = ? AND seq < ? ORDER BY seq DESC LIMIT ?;

-- name: drop_events
DELETE FROM device_events WHERE device = ?;

-- name: put_token
INSERT INTO device_tokens (id, uses, labels, device, used, transport) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING;

-- name: tokens
SELECT id, uses, labels, device, used, transport FROM device_tokens
WHERE id IN (SELECT value FROM json_each(?));

-- name: use_token
UPDATE device_tokens SET used = used + 1 WHERE id = ?;

-- name: known_key
SELECT device, identity FROM device_keys WHERE key = ? AND token = ?;

-- name: insert_key
INSERT INTO device_keys (key, token, device, identity) VALUES (?, ?, ?, ?);

-- name: rows
SELECT deployment_uid, number, device, place, stage, since, due, offered, tries, cause
FROM device_rollouts WHERE deployment_uid = ? AND number = ?;

-- name: put_rows
INSERT INTO device_rollouts (
    deployment_uid, number, device, place, stage, since, due, offered, tries, cause
) VALUES /*rows 10*/
ON CONFLICT (deployment_uid, number, device) DO UPDATE SET
    place = excluded.place, stage = excluded.stage, since = excluded.since, due = excluded.due,
    offered = excluded.offered, tries = excluded.tries, cause = excluded.cause;

-- name: drop_rows
DELETE FROM device_rollouts WHERE deployment_uid = ? AND number < ?;

-- name: drop_rows_of_device
DELETE FROM device_rollouts WHERE device = ?;

-- name: newest_record
SELECT newest_record FROM devices WHERE name = ?;

-- name: note_newest
UPDATE devices SET newest_record = ? WHERE name = ?;

-- name: kept_records
SELECT kind, kept, trimmed FROM device_record_kinds WHERE device = ?;

-- name: put_kept
INSERT INTO device_record_kinds (device, kind, kept, trimmed) VALUES /*rows 4*/
ON CONFLICT (device, kind) DO UPDATE SET kept = excluded.kept, trimmed = excluded.trimmed;

-- name: insert_records
INSERT INTO device_records (device, position, time, kind, deployment, body, lost)
VALUES /*rows 7*/;

-- name: oldest_records
-- The last position of so many, one more than the last parameter.
SELECT position FROM device_records WHERE device = ? AND kind = ?
ORDER BY position LIMIT 1 OFFSET ?;

-- name: trim_records
DELETE FROM device_records WHERE device = ? AND kind = ? AND position <= ?;

-- name: records
SELECT position, time, kind, deployment, body, lost FROM device_records
WHERE device = ? AND kind = ? AND position > ?;

-- name: drop_records
DELETE FROM device_records WHERE device = ?;

-- name: drop_record_kinds
DELETE FROM device_record_kinds WHERE device = ?;
