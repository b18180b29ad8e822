-- Statements about outputs that become dataset versions.

-- With each new job that publishes.
-- name: expect
INSERT OR IGNORE INTO publications (job_uid, done, published, summary) VALUES /*rows 4*/;

-- What became of one; the first word stays.
-- name: settle
UPDATE publications SET done = 1, published = ?2, summary = ?3 WHERE job_uid = ?1 AND done = 0;

-- name: due
SELECT job_uid FROM publications WHERE done = 0 ORDER BY job_uid;

-- name: settled
SELECT job_uid, published, summary FROM publications
WHERE done = 1 AND job_uid IN (SELECT value FROM json_each(?1));
