-- Rare terms of a job and what retries changed of a task are one column each; empty for the ordinary.

ALTER TABLE jobs ADD COLUMN terms TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN blocked_any TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN blocked_end TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;

ALTER TABLE tasks ADD COLUMN adapted TEXT NOT NULL DEFAULT '';

ALTER TABLE attempts ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN address TEXT NOT NULL DEFAULT '';

ALTER TABLE events ADD COLUMN note TEXT NOT NULL DEFAULT '';
ALTER TABLE events ADD COLUMN queue TEXT NOT NULL DEFAULT '';

ALTER TABLE queues ADD COLUMN parent TEXT NOT NULL DEFAULT '';
ALTER TABLE queues ADD COLUMN quota TEXT NOT NULL DEFAULT '';
ALTER TABLE queues ADD COLUMN guaranteed TEXT NOT NULL DEFAULT '';
ALTER TABLE queues ADD COLUMN no_borrowing INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN cordoned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN cordon_reason TEXT NOT NULL DEFAULT '';

ALTER TABLE hosts ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE hosts ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hosts ADD COLUMN cordon_reason TEXT NOT NULL DEFAULT '';
ALTER TABLE hosts ADD COLUMN quarantined_until INTEGER NOT NULL DEFAULT 0;

-- Operators' settings of backends; what queues used in the past, so that shares outlive a restart.
CREATE TABLE backend_settings (
    name TEXT PRIMARY KEY,
    cordoned INTEGER NOT NULL,
    cordon_reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE queue_usage (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    usage TEXT NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;
