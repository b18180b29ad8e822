-- `restored` 1: this store came out of a backup and nobody has adopted yet what runs elsewhere.
-- `probes` counts what was written only to see whether the disk takes it.
ALTER TABLE identity ADD COLUMN restored INTEGER NOT NULL DEFAULT 0;
ALTER TABLE identity ADD COLUMN probes INTEGER NOT NULL DEFAULT 0;

-- Copies that were taken, and the manifests that they name: those are kept as long as the copy is.
CREATE TABLE backups (
    id TEXT PRIMARY KEY,
    create_time INTEGER NOT NULL,
    path TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    last_event INTEGER NOT NULL,
    manifests INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE backup_roots (
    backup TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (backup, digest)
) STRICT, WITHOUT ROWID;
