-- What `hatoba server doctor` asks. Every statement gives one row for each thing that is wrong.

-- name: two_under_way
SELECT j.base_name || '-' || j.number, a.idx, count(*) FROM attempts AS a
LEFT JOIN jobs AS j ON j.uid = a.job_uid
WHERE a.state < 6 GROUP BY a.job_uid, a.idx HAVING count(*) > 1;

-- A task's row, its newest attempt, and the attempt that goes with the task's state: a state under
-- way (4 to 8) is that of the newest attempt (1 to 5); any other state has no attempt under way.
-- Only a member of a gang whose attempt has ended is STOPPING until the others have ended as well.
-- name: tasks_and_attempts
SELECT coalesce(j.base_name || '-' || j.number, t.job_uid), t.idx, t.state, t.attempt,
    coalesce(a.number, 0), coalesce(a.state, 0)
FROM tasks AS t
LEFT JOIN attempts AS a ON a.job_uid = t.job_uid AND a.idx = t.idx AND a.number = (
    SELECT max(b.number) FROM attempts AS b WHERE b.job_uid = t.job_uid AND b.idx = t.idx
)
LEFT JOIN jobs AS j ON j.uid = t.job_uid
WHERE t.attempt <> coalesce(a.number, 0)
    OR CASE WHEN t.state BETWEEN 4 AND 8 THEN coalesce(a.state, 0) <> t.state - 3
        ELSE coalesce(a.state, 6) < 6 END
    AND NOT (t.state = 8 AND t.attempt = a.number AND a.state >= 6 AND a.generation > 0 AND EXISTS (
        SELECT 1 FROM attempts AS c
        WHERE c.job_uid = a.job_uid AND c.generation = a.generation AND c.state < 6
    ));

-- name: overlapping
SELECT a.name, a.number, a.state, a.release FROM attempts AS a
WHERE (a.state < 6 OR a.release < 3) AND EXISTS (
    SELECT 1 FROM attempts AS b
    WHERE b.job_uid = a.job_uid AND b.idx = a.idx AND b.number > a.number
);

-- name: held_after_end
SELECT name, job_uid, idx, number FROM attempts WHERE state >= 6 AND release = 1;

-- name: released_before_end
SELECT name, state, release FROM attempts WHERE state < 6 AND release <> 1;

-- name: releasing_since
SELECT name, backend, host, end_time FROM attempts WHERE release = 2 AND end_time < ?;

-- name: fences
SELECT name, number, fence, before_number, before_fence FROM (
    SELECT name, number, fence,
        lag(number) OVER task AS before_number, lag(fence) OVER task AS before_fence
    FROM attempts WINDOW task AS (PARTITION BY job_uid, idx ORDER BY number)
)
WHERE number <> coalesce(before_number, 0) + 1 OR fence <= coalesce(before_fence, 0);

-- name: generations
SELECT j.base_name || '-' || j.number, j.generation, a.name, a.generation
FROM attempts AS a JOIN jobs AS j ON j.uid = a.job_uid
WHERE a.state < 6 AND a.generation <> 0 AND a.generation <> j.generation;

-- Positions of the log have no gaps.
-- name: log_gaps
SELECT min(seq), max(seq), count(*) FROM events
HAVING count(*) > 0 AND count(*) <> max(seq) - min(seq) + 1;

-- Each event of a job continues where the one before it ended.
-- name: histories
SELECT job_name, seq, job_seq, before_seq, job_from, before_to FROM (
    SELECT job_name, job_uid, seq, job_seq, job_from,
        lag(job_seq) OVER job AS before_seq, lag(job_to) OVER job AS before_to
    FROM events WINDOW job AS (PARTITION BY job_uid ORDER BY seq)
)
WHERE job_seq <> coalesce(before_seq, 0) + 1 OR job_from <> coalesce(before_to, job_from);

-- The newest event of a job and of a task tells the state that its row has.
-- name: untold_jobs
SELECT j.base_name || '-' || j.number, j.version, j.state, e.job_seq, e.job_to FROM jobs AS j
LEFT JOIN events AS e ON e.seq = (SELECT max(l.seq) FROM events AS l WHERE l.job_uid = j.uid)
WHERE e.seq IS NULL OR e.job_seq <> j.version OR e.job_to <> j.state;

-- name: untold_tasks
SELECT e.job_name, t.idx, t.state, e.to_state FROM tasks AS t
JOIN (
    SELECT job_uid, job_name, idx, to_state, max(seq) FROM events
    WHERE idx >= 0 GROUP BY job_uid, idx
) AS e ON e.job_uid = t.job_uid AND e.idx = t.idx
WHERE e.to_state <> t.state;

-- name: cancels_forgotten
SELECT j.base_name || '-' || j.number, t.idx, t.state FROM jobs AS j
JOIN tasks AS t ON t.job_uid = j.uid WHERE j.state < 9 AND j.desired = 2 AND t.state <= 3;

-- name: keys_to_nothing
SELECT method, request_id, resource FROM requests
WHERE method IN ('SubmitJob', 'SubmitJobs', 'RerunJob') AND resource NOT IN (SELECT uid FROM jobs);

-- name: blocked_on_nothing
SELECT j.base_name || '-' || j.number, u.value FROM jobs AS j,
    json_each(iif(json_valid(j.blocked_on), j.blocked_on, '[]')) AS u
WHERE j.state < 9 AND j.blocked_on <> '' AND u.value NOT IN (SELECT uid FROM jobs);

-- name: events_of_nothing
SELECT job_name, count(*) FROM events WHERE job_uid NOT IN (SELECT uid FROM jobs) GROUP BY job_uid;

-- name: tasks_of_nothing
SELECT job_uid, idx FROM tasks WHERE job_uid NOT IN (SELECT uid FROM jobs);

-- name: attempts_of_nothing
SELECT a.name FROM attempts AS a LEFT JOIN tasks AS t ON t.job_uid = a.job_uid AND t.idx = a.idx
WHERE t.job_uid IS NULL;

-- name: jobs_without_spec
SELECT base_name || '-' || number FROM jobs
WHERE CASE spec WHEN 0 THEN id ELSE spec END NOT IN (SELECT id FROM specs);

-- name: task_counts
SELECT job_uid, state, count(*) FROM tasks GROUP BY job_uid, state;
