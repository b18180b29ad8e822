-- What the readers run; `jobs`, `tasks` and so on are heads to which a query adds its conditions.

-- name: jobs
SELECT uid, project, base_name, number, queue, backend, priority, size, max_parallel, fail_fast,
    resources, retries, state, desired, version, settings_version, unstarted, unstarted_state,
    counts, hold, blocked_on, created_by, create_time, start_time, end_time, cause, trace_id,
    span_id, sampled, rerun_of, stop_grace, labels, secrets, embedded_only, outputs, restore,
    terms, blocked_any, blocked_end, generation
FROM jobs;

-- name: plain
-- One task that never started, nothing to wait for but room; see domain/parking.py.
size = 1 AND unstarted <> '' AND blocked_on = '' AND blocked_any = '' AND blocked_end = ''
AND (terms = '' OR (
    json_valid(terms) AND json_extract(terms, '$[4]') = 0 AND json_extract(terms, '$[5]') = 0
    AND json_extract(terms, '$[6]') = 0
));

-- name: parked
-- What many have in common is one text, so that it is read once for all of them.
SELECT id, uid, json_array(
    project, queue, backend, priority, state, resources, terms, secrets, embedded_only, created_by
)
FROM jobs INDEXED BY jobs_by_state;

-- name: projects
SELECT DISTINCT project FROM queues ORDER BY project;

-- name: job_counts
SELECT project, queue, state, count(*) FROM jobs INDEXED BY jobs_by_queue
GROUP BY project, queue, state;

-- name: specs
SELECT j.uid, s.spec
FROM jobs AS j JOIN specs AS s ON s.id = CASE j.spec WHEN 0 THEN j.id ELSE j.spec END;

-- name: tasks
SELECT job_uid, idx, state, version, attempt, not_before, user_failures, infrastructure_failures,
    preemptions, cause, checkpoint, outputs, start_time, end_time, adapted
FROM tasks;

-- name: succeeded
-- Neighbours have the same distance to their rank.
SELECT min(idx), max(idx) + 1 FROM (
    SELECT idx, idx - row_number() OVER (ORDER BY idx) AS run
    FROM tasks WHERE job_uid = ? AND state = ?
) GROUP BY run ORDER BY 1;

-- name: attempts
SELECT name, job_uid, idx, number, fence, backend, host, gpus, state, version, release, fenced,
    span_id, create_time, handle, nonce, intended, unknown_since, claim_time, start_time, end_time,
    cause, usage, checkpoint, outputs, log_sizes, reserved, generation, address
FROM attempts;

-- name: newest_attempts
AND number = (
    SELECT max(b.number) FROM attempts AS b
    WHERE b.job_uid = attempts.job_uid AND b.idx = attempts.idx
);

-- name: events
SELECT seq, job_name, job_uid, job_seq, time, idx, attempt, from_state, to_state, job_from, job_to,
    cause, actor, reason, project, trace_id, note, queue
FROM events;

-- name: event_bounds
SELECT coalesce((SELECT min(seq) FROM events), 1), coalesce((SELECT max(seq) FROM events), 0);

-- name: request
SELECT body_sha256, resource FROM requests WHERE project = ? AND method = ? AND request_id = ?;

-- name: metrics
SELECT job_uid, idx, key, step, attempt, value, time FROM metrics;

-- name: queues
SELECT project, name, version, created_by, create_time, weight, max_running, max_pending, labels,
    parent, quota, guaranteed, no_borrowing, cordoned, cordon_reason, draining
FROM queues;

-- name: hosts
SELECT name, boot_id, keeper, capacity, gpus, labels, secrets, version, embedded, cordoned,
    declared_gone, last_seen, address, draining, cordon_reason, quarantined_until
FROM hosts ORDER BY name;

-- name: backends
SELECT name, cordoned, cordon_reason, draining FROM backend_settings ORDER BY name;

-- name: queue_usage
SELECT project, name, usage, time FROM queue_usage;

-- name: tokens
SELECT id, sha256, principal, role, create_time, expire_time, revoked, created_by, deployment, host,
    used_by
FROM tokens ORDER BY id;
