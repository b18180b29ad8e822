-- Deployments, their revisions, roll-outs and events, what routers were told, what they told.

-- name: deployments
SELECT uid, project, name, backend, spec, target, replicas, strategy, version, settings_version,
    generation, wanted, current, newest, following, followed, events, create_time, created_by,
    deleting, handle
FROM deployments;

-- name: newest_rollouts
-- SQLite takes bare columns from the row of max().
SELECT deployment_uid, max(number), from_revision, to_revision, state, steps, step, start_time,
    since, healthy_since, end_time, pause, back, cause
FROM rollouts GROUP BY deployment_uid;

-- name: kept_revisions
SELECT r.deployment_uid, r.revision, r.model_version, r.spec, r.template, r.manifests,
    r.create_time, r.created_by, r.proven, r.cause, r.in_use
FROM revisions AS r JOIN deployments AS d ON d.uid = r.deployment_uid
WHERE r.in_use = 1 OR r.revision > d.newest - ?;

-- name: revisions
SELECT deployment_uid, revision, model_version, spec, template, manifests, create_time,
    created_by, proven, cause, in_use
FROM revisions;

-- name: events
SELECT seq, time, kind, message, revision, actor, cause FROM deployment_events
WHERE deployment_uid = ? AND seq < ? ORDER BY seq DESC LIMIT ?;

-- name: routes
SELECT deployment_uid, served FROM routes;

-- name: newest_cursor
SELECT coalesce(max(cursor), 0) FROM routes;

-- name: routers
SELECT url, router, last_seen FROM routers;

-- name: version
SELECT version FROM deployments WHERE uid = ?;

-- name: taken
SELECT 1 FROM deployments WHERE project = ? AND name = ?;

-- name: has_version
SELECT 1 FROM model_versions WHERE project = ? AND model = ? AND version = ?;

-- name: put_deployment
INSERT INTO deployments (
    uid, project, name, backend, spec, target, replicas, strategy, version, settings_version,
    generation, wanted, current, newest, following, followed, events, create_time, created_by,
    deleting, handle, model
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (uid) DO UPDATE SET
    spec = excluded.spec, target = excluded.target, replicas = excluded.replicas,
    strategy = excluded.strategy, version = excluded.version,
    settings_version = excluded.settings_version, generation = excluded.generation,
    wanted = excluded.wanted, current = excluded.current, newest = excluded.newest,
    following = excluded.following, followed = excluded.followed, events = excluded.events,
    deleting = excluded.deleting, handle = excluded.handle, model = excluded.model;

-- name: put_revision
INSERT INTO revisions (
    deployment_uid, revision, model_version, spec, template, manifests, create_time, created_by,
    proven, cause, in_use
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (deployment_uid, revision) DO UPDATE SET
    proven = excluded.proven, cause = excluded.cause, in_use = excluded.in_use;

-- name: put_rollout
INSERT INTO rollouts (
    deployment_uid, number, from_revision, to_revision, state, steps, step, start_time, since,
    healthy_since, end_time, pause, back, cause
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (deployment_uid, number) DO UPDATE SET
    state = excluded.state, step = excluded.step, since = excluded.since,
    healthy_since = excluded.healthy_since, end_time = excluded.end_time, pause = excluded.pause,
    cause = excluded.cause;

-- name: insert_event
INSERT INTO deployment_events (deployment_uid, seq, time, kind, message, revision, actor, cause)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: trim_events
DELETE FROM deployment_events WHERE deployment_uid = ? AND seq <= ?;

-- name: put_route
INSERT INTO routes (deployment_uid, cursor, served) VALUES (?, ?, ?)
ON CONFLICT (deployment_uid) DO UPDATE SET cursor = excluded.cursor, served = excluded.served;

-- name: put_router
INSERT INTO routers (url, router, last_seen) VALUES (?, ?, ?)
ON CONFLICT (url) DO UPDATE SET router = excluded.router, last_seen = excluded.last_seen;

-- name: drop_routers
DELETE FROM routers WHERE last_seen < ?;

-- name: drop_route
DELETE FROM routes WHERE deployment_uid = ?;

-- name: drop_events
DELETE FROM deployment_events WHERE deployment_uid = ?;

-- name: drop_rollouts
DELETE FROM rollouts WHERE deployment_uid = ?;

-- name: drop_revisions
DELETE FROM revisions WHERE deployment_uid = ?;

-- name: drop_deployment
DELETE FROM deployments WHERE uid = ?;

-- name: manifests
-- Others are gone back to only while their model versions are there, which keep their own.
SELECT manifests FROM revisions WHERE in_use = 1;

-- name: batch
SELECT 1 FROM prediction_batches WHERE batch = ?;

-- name: insert_batch
INSERT OR IGNORE INTO prediction_batches (batch) VALUES (?);

-- name: trim_batches
DELETE FROM prediction_batches WHERE id <= (SELECT max(id) FROM prediction_batches) - ?;

-- name: insert_predictions
INSERT INTO predictions (
    trace_id, deployment, revision, model_version, replica, status, time, duration, item
) VALUES /*rows 9*/;

-- name: trim_predictions
DELETE FROM predictions WHERE id <= (SELECT max(id) FROM predictions) - ?;

-- name: prediction
SELECT trace_id, deployment, revision, model_version, replica, status, time, duration, item
FROM predictions WHERE trace_id = ? ORDER BY id DESC LIMIT 1;
