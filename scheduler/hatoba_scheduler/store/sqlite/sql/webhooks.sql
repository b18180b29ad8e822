-- Statements about webhooks.

-- name: insert
INSERT OR IGNORE INTO webhooks (uid, project, name, url, filter, jobs_only, reasons, paused,
    signing_key, created_by, create_time, cursor, failures, last_error, next_try, given_up)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: settings
UPDATE webhooks SET url = ?2, filter = ?3, jobs_only = ?4, reasons = ?5, paused = ?6 WHERE uid = ?1;

-- A position never goes back.
-- name: progress
UPDATE webhooks SET cursor = ?2, failures = ?3, last_error = ?4, next_try = ?5, given_up = ?6
WHERE uid = ?1 AND cursor <= ?2;

-- name: delete
DELETE FROM webhooks WHERE uid = ?;

-- name: all
SELECT uid, project, name, url, filter, jobs_only, reasons, paused, signing_key, created_by,
    create_time, cursor, failures, last_error, next_try, given_up
FROM webhooks ORDER BY project, name;
