-- Statements about copies of the store, and about the store as a whole.

-- name: insert_backup
INSERT OR REPLACE INTO backups (id, create_time, path, size_bytes, last_event, manifests)
VALUES (?, ?, ?, ?, ?, ?);

-- name: insert_roots
INSERT OR IGNORE INTO backup_roots (backup, digest) VALUES /*rows 2*/;

-- name: backups
SELECT id, create_time, path, size_bytes, last_event, manifests FROM backups
ORDER BY create_time DESC, id DESC;

-- name: roots
SELECT DISTINCT digest FROM backup_roots;

-- name: delete_backup
DELETE FROM backups WHERE id = ?;

-- name: delete_roots
DELETE FROM backup_roots WHERE (backup, digest) IN (
    SELECT backup, digest FROM backup_roots WHERE backup = ? LIMIT ?
);

-- name: adopted
UPDATE identity SET restored = 0;

-- Says nothing, and has to reach the disk like any other write.
-- name: probe
UPDATE identity SET probes = probes + 1;
