-- Statements about schedules.

-- Nothing when the name is taken.
-- name: insert
INSERT OR IGNORE INTO schedules (
    uid, project, name, version, settings_version, cron, time_zone, spec, overlap, catch_up,
    max_catch_up, paused, end_time, labels, created_by, create_time, position, last_time,
    last_outcome, waiting, submitting, last_job, recent
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- Over the version that was read.
-- name: update
UPDATE schedules SET
    version = ?4, settings_version = ?5, cron = ?6, time_zone = ?7, spec = ?8, overlap = ?9,
    catch_up = ?10, max_catch_up = ?11, paused = ?12, end_time = ?13, labels = ?14,
    position = ?17, last_time = ?18, last_outcome = ?19, waiting = ?20, submitting = ?21,
    last_job = ?22, recent = ?23
WHERE uid = ?1 AND version = ?4 - 1;

-- name: delete
DELETE FROM schedules WHERE uid = ?;

-- name: all
SELECT
    uid, project, name, version, settings_version, cron, time_zone, spec, overlap, catch_up,
    max_catch_up, paused, end_time, labels, created_by, create_time, position, last_time,
    last_outcome, waiting, submitting, last_job, recent
FROM schedules ORDER BY project, name;
