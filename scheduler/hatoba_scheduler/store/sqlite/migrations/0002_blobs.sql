-- Leases and marks of chunks (kind 1) and manifests (kind 2). What is stored is told by the files.
-- `leased_until` and `marked` are microseconds since 1970; 0: none.
CREATE TABLE blobs (
    kind INTEGER NOT NULL,
    digest BLOB NOT NULL,
    leased_until INTEGER NOT NULL,
    marked INTEGER NOT NULL,
    PRIMARY KEY (kind, digest)
) STRICT, WITHOUT ROWID;
