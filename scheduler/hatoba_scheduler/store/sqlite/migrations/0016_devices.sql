-- `wants` are triples of deployment, revision and tries. `newest_record` and `kept_records` are of
-- what the device sent: its newest position, and how many there are.
CREATE TABLE devices (
    name TEXT PRIMARY KEY,
    state INTEGER NOT NULL,
    labels TEXT NOT NULL,
    architecture TEXT NOT NULL,
    variant TEXT NOT NULL,
    cpus REAL NOT NULL,
    memory INTEGER NOT NULL,
    disk INTEGER NOT NULL,
    limits_memory INTEGER NOT NULL,
    version INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    wants TEXT NOT NULL,
    acked INTEGER NOT NULL,
    reported INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    transport TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    identity TEXT NOT NULL,
    certificate_end INTEGER NOT NULL,
    installation TEXT NOT NULL,
    report BLOB NOT NULL,
    certificate_since INTEGER NOT NULL,
    images INTEGER NOT NULL,
    newest_record INTEGER NOT NULL DEFAULT 0,
    kept_records INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE device_events (
    device TEXT NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    actor TEXT NOT NULL,
    PRIMARY KEY (device, seq)
) STRICT, WITHOUT ROWID;

-- What a token with the role ENROLL may make; `device`: that one alone.
CREATE TABLE device_tokens (
    id TEXT PRIMARY KEY,
    uses INTEGER NOT NULL,
    labels TEXT NOT NULL,
    device TEXT NOT NULL,
    used INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Digests of keys that became devices, and as which identity; they outlive their devices.
CREATE TABLE device_keys (
    key TEXT NOT NULL,
    token TEXT NOT NULL,
    device TEXT NOT NULL,
    identity TEXT NOT NULL,
    PRIMARY KEY (key, token)
) STRICT, WITHOUT ROWID;

-- Where a device stands in a deployment's roll-out.
CREATE TABLE device_rollouts (
    deployment_uid TEXT NOT NULL,
    number INTEGER NOT NULL,
    device TEXT NOT NULL,
    place INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    since INTEGER NOT NULL,
    due INTEGER NOT NULL,
    offered INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    cause TEXT NOT NULL,
    PRIMARY KEY (deployment_uid, number, device)
) STRICT, WITHOUT ROWID;

CREATE INDEX device_rollouts_by_device ON device_rollouts (device);

CREATE TABLE device_records (
    device TEXT NOT NULL,
    position INTEGER NOT NULL,
    time INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    deployment TEXT NOT NULL,
    body BLOB NOT NULL,
    lost INTEGER NOT NULL,
    PRIMARY KEY (device, position)
) STRICT, WITHOUT ROWID;
