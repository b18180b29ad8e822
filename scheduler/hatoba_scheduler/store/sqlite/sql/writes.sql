-- What the writer runs. `/*rows N*/` becomes as many rows of N parameters as a call has.

-- name: insert_jobs
INSERT INTO jobs (
    id, number, base_name, uid, project, queue, backend, priority, size, max_parallel, fail_fast,
    resources, retries, state, desired, version, settings_version, unstarted, unstarted_state,
    counts, hold, blocked_on, created_by, create_time, start_time, end_time, cause, trace_id,
    span_id, sampled, rerun_of, stop_grace, labels, secrets, embedded_only, outputs, restore,
    terms, blocked_any, blocked_end, generation, spec
) VALUES /*rows 42*/;

-- name: insert_alike_jobs
-- As insert_jobs; what they have in common comes first, once, in the order of the columns.
INSERT INTO jobs (
    id, number, base_name, uid, project, queue, backend, priority, size, max_parallel, fail_fast,
    resources, retries, state, desired, version, settings_version, unstarted, unstarted_state,
    counts, hold, blocked_on, created_by, create_time, start_time, end_time, cause, trace_id,
    span_id, sampled, rerun_of, stop_grace, labels, secrets, embedded_only, outputs, restore,
    terms, blocked_any, blocked_end, generation, spec
)
SELECT
    ? + column1, ? + column1, ?, column2, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, column3, ?, ?, ?, column4,
    column5, column6, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?
FROM (VALUES /*rows 6*/);

-- name: insert_alike_events
INSERT INTO events (
    seq, job_name, job_uid, job_seq, time, idx, attempt, from_state, to_state, job_from, job_to,
    cause, actor, reason, project, trace_id, note, queue
)
SELECT id, base_name || '-' || number, uid, ?, create_time, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, trace_id, ?, ?
FROM jobs WHERE id BETWEEN ? AND ?;

-- name: update_jobs
-- What may change of a job; the rest was fixed when it was submitted.
UPDATE jobs SET
    queue = v.column2, priority = v.column3, state = v.column4, desired = v.column5,
    version = v.column6, settings_version = v.column7, unstarted = v.column8,
    unstarted_state = v.column9, counts = v.column10, hold = v.column11, blocked_on = v.column12,
    start_time = v.column13, end_time = v.column14, cause = v.column15, outputs = v.column16,
    backend = v.column17, blocked_any = v.column18, blocked_end = v.column19,
    generation = v.column20
FROM (VALUES /*rows 20*/) AS v
WHERE jobs.uid = v.column1;

-- name: insert_specs
INSERT INTO specs (id, spec) VALUES /*rows 2*/;

-- name: insert_labels
INSERT INTO job_labels (key, value, id) VALUES /*rows 3*/;

-- name: name_counters
SELECT c.project, c.base_name, c.last
FROM (VALUES /*rows 2*/) AS v
CROSS JOIN name_counters AS c ON c.project = v.column1 AND c.base_name = v.column2;

-- name: put_name_counters
INSERT INTO name_counters (project, base_name, last) VALUES /*rows 3*/
ON CONFLICT (project, base_name) DO UPDATE SET last = excluded.last;

-- name: stale_jobs
-- Of (uid, expected version) those that do not hold, with the version that is there.
SELECT v.column1, coalesce(j.version, 0)
FROM (VALUES /*rows 2*/) AS v
LEFT JOIN jobs AS j ON j.uid = v.column1
WHERE coalesce(j.version, 0) <> v.column2;

-- name: stale_tasks
SELECT v.column1, v.column2, coalesce(t.version, 0)
FROM (VALUES /*rows 3*/) AS v
LEFT JOIN tasks AS t ON t.job_uid = v.column1 AND t.idx = v.column2
WHERE coalesce(t.version, 0) <> v.column3;

-- name: stale_attempts
SELECT v.column1, v.column2, v.column3, coalesce(a.version, 0)
FROM (VALUES /*rows 4*/) AS v
LEFT JOIN attempts AS a
    ON a.job_uid = v.column1 AND a.idx = v.column2 AND a.number = v.column3
WHERE coalesce(a.version, 0) <> v.column4;

-- name: put_tasks
INSERT INTO tasks (
    job_uid, idx, state, version, attempt, not_before, user_failures, infrastructure_failures,
    preemptions, cause, checkpoint, outputs, start_time, end_time, adapted
) VALUES /*rows 15*/
ON CONFLICT (job_uid, idx) DO UPDATE SET
    state = excluded.state, version = excluded.version, attempt = excluded.attempt,
    not_before = excluded.not_before, user_failures = excluded.user_failures,
    infrastructure_failures = excluded.infrastructure_failures,
    preemptions = excluded.preemptions, cause = excluded.cause, checkpoint = excluded.checkpoint,
    outputs = excluded.outputs, start_time = excluded.start_time, end_time = excluded.end_time,
    adapted = excluded.adapted;

-- name: put_attempts
INSERT INTO attempts (
    job_uid, idx, number, name, fence, backend, host, gpus, state, version, release, fenced,
    span_id, create_time, handle, nonce, intended, unknown_since, claim_time, start_time, end_time,
    cause, usage, checkpoint, outputs, log_sizes, reserved, generation, address
) VALUES /*rows 29*/
ON CONFLICT (job_uid, idx, number) DO UPDATE SET
    fence = excluded.fence, backend = excluded.backend, host = excluded.host,
    gpus = excluded.gpus, state = excluded.state, version = excluded.version,
    release = excluded.release, fenced = excluded.fenced, span_id = excluded.span_id,
    create_time = excluded.create_time, handle = excluded.handle, nonce = excluded.nonce,
    intended = excluded.intended, unknown_since = excluded.unknown_since,
    claim_time = excluded.claim_time, start_time = excluded.start_time,
    end_time = excluded.end_time, cause = excluded.cause, usage = excluded.usage,
    checkpoint = excluded.checkpoint, outputs = excluded.outputs, log_sizes = excluded.log_sizes,
    reserved = excluded.reserved, generation = excluded.generation, address = excluded.address;

-- name: insert_events
INSERT INTO events (
    seq, job_name, job_uid, job_seq, time, idx, attempt, from_state, to_state, job_from, job_to,
    cause, actor, reason, project, trace_id, note, queue
) VALUES /*rows 18*/;

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM events;

-- name: requests
SELECT r.project, r.method, r.request_id, r.body_sha256, r.resource
FROM (VALUES /*rows 3*/) AS v
CROSS JOIN requests AS r
    ON r.project = v.column1 AND r.method = v.column2 AND r.request_id = v.column3;

-- name: insert_requests
INSERT INTO requests (project, method, request_id, body_sha256, resource, create_time)
VALUES /*rows 6*/;

-- name: forget_requests
-- Oldest first, by id; no index on the time for the sake of the inserts.
DELETE FROM requests
WHERE create_time < ? AND id IN (SELECT id FROM requests ORDER BY id LIMIT ?);

-- name: put_metrics
INSERT INTO metrics (job_uid, key, idx, step, attempt, value, time) VALUES /*rows 7*/
ON CONFLICT (job_uid, key, idx, step) DO UPDATE SET
    attempt = excluded.attempt, value = excluded.value, time = excluded.time
WHERE excluded.attempt >= metrics.attempt;

-- name: add_default_queues
INSERT INTO queues (
    project, name, version, created_by, create_time, weight, max_running, max_pending, labels,
    parent, quota, guaranteed, no_borrowing, cordoned, cordon_reason, draining
) VALUES /*rows 16*/
ON CONFLICT (project, name) DO NOTHING;

-- name: queue_version
SELECT version FROM queues WHERE project = ? AND name = ?;

-- name: put_queue
INSERT INTO queues (
    project, name, version, created_by, create_time, weight, max_running, max_pending, labels,
    parent, quota, guaranteed, no_borrowing, cordoned, cordon_reason, draining
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (project, name) DO UPDATE SET
    version = excluded.version, created_by = excluded.created_by,
    create_time = excluded.create_time, weight = excluded.weight,
    max_running = excluded.max_running, max_pending = excluded.max_pending,
    labels = excluded.labels, parent = excluded.parent, quota = excluded.quota,
    guaranteed = excluded.guaranteed, no_borrowing = excluded.no_borrowing,
    cordoned = excluded.cordoned, cordon_reason = excluded.cordon_reason,
    draining = excluded.draining;

-- name: queue_in_use
SELECT 1 FROM jobs INDEXED BY jobs_by_queue
WHERE project = ? AND queue = ? AND state < 9 LIMIT 1;

-- name: delete_queue
DELETE FROM queues WHERE project = ? AND name = ?;

-- name: put_host
INSERT OR REPLACE INTO hosts (
    name, boot_id, keeper, capacity, gpus, labels, secrets, version, embedded, cordoned,
    declared_gone, last_seen, address, draining, cordon_reason, quarantined_until
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: delete_host
DELETE FROM hosts WHERE name = ?;

-- name: put_queue_usage
INSERT OR REPLACE INTO queue_usage (project, name, usage, time) VALUES (?, ?, ?, ?);

-- name: put_backend
INSERT OR REPLACE INTO backend_settings (name, cordoned, cordon_reason, draining)
VALUES (?, ?, ?, ?);

-- name: put_token
INSERT OR REPLACE INTO tokens (
    id, sha256, principal, role, create_time, expire_time, revoked, created_by, deployment, host,
    used_by
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
