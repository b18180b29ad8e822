-- Models, their versions and aliases, and what came from what.

-- name: heads
SELECT m.project, m.model, m.last
FROM (VALUES /*rows 2*/) AS v
CROSS JOIN models AS m ON m.project = v.column1 AND m.model = v.column2;

-- name: put_heads
INSERT INTO models (project, model, last, protected, revision, create_time, created_by)
VALUES /*rows 7*/
ON CONFLICT (project, model) DO UPDATE SET
    last = excluded.last, revision = models.revision + 1;

-- name: insert_versions
INSERT INTO model_versions (
    version, project, model, state, manifest, total_bytes, files, content, create_time,
    created_by, handler, code, has_example, metrics, description, labels, job, attempt, datasets,
    code_version, git_commit, parent, check_job, cause, trace_id
) VALUES /*rows 25*/;

-- name: insert_links
INSERT OR IGNORE INTO links (source, target, relation) VALUES /*rows 3*/;

-- name: versions
SELECT version, project, model, state, manifest, total_bytes, files, content, create_time,
    created_by, handler, code, has_example, metrics, description, labels, job, attempt, datasets,
    code_version, git_commit, parent, check_job, cause, trace_id
FROM model_versions;

-- name: models
SELECT m.project, m.model,
    coalesce(
        (
            SELECT max(v.version) FROM model_versions AS v
            WHERE v.project = m.project AND v.model = m.model
        ),
        0
    ),
    m.protected, m.revision, m.create_time, m.created_by
FROM models AS m;

-- name: aliases
SELECT alias, version, update_time, updated_by FROM aliases
WHERE project = ? AND model = ? ORDER BY alias;

-- name: alias
SELECT version FROM aliases WHERE project = ? AND model = ? AND alias = ?;

-- name: moves
SELECT project, model, number, alias, source, target, state, reason, requested_by, request_time,
    decided_by, decide_time, comment
FROM alias_moves;

-- name: version_state
SELECT state FROM model_versions WHERE project = ? AND model = ? AND version = ?;

-- name: settle
UPDATE model_versions SET state = ?, cause = ?, content = ?
WHERE project = ? AND model = ? AND version = ? AND state = 1;

-- name: replace_content
UPDATE model_versions SET content = ?
WHERE project = ? AND model = ? AND version = ? AND content = ?;

-- name: note_check
UPDATE model_versions SET check_job = ?
WHERE project = ? AND model = ? AND version = ? AND check_job = '';

-- name: touch
UPDATE models SET revision = revision + 1 WHERE project = ? AND model = ?;

-- name: protect
UPDATE models SET protected = ?, revision = revision + 1 WHERE project = ? AND model = ?;

-- name: put_alias
INSERT INTO aliases (project, model, alias, version, update_time, updated_by)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (project, model, alias) DO UPDATE SET
    version = excluded.version, update_time = excluded.update_time,
    updated_by = excluded.updated_by;

-- name: delete_alias
DELETE FROM aliases WHERE project = ? AND model = ? AND alias = ?;

-- name: insert_move
INSERT INTO alias_moves (
    project, model, alias, source, target, state, reason, requested_by, request_time, decided_by,
    decide_time, comment
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: close_move
UPDATE alias_moves SET state = ?, decided_by = ?, decide_time = ?, comment = ?
WHERE number = ? AND state = 1;

-- name: supersede_moves
UPDATE alias_moves SET state = 4, decide_time = ?
WHERE project = ? AND model = ? AND alias = ? AND state = 1;

-- name: followers
-- Deployments that follow an alias (`projects/P/models/digits@production`), of whatever project.
SELECT project, name FROM deployments WHERE target = ? ORDER BY project, name LIMIT ?;

-- name: users
-- What uses a version: aliases, moves that wait, deployments, jobs that have not ended, versions, and
-- its own check.
SELECT 'alias ' || alias FROM aliases WHERE project = ?1 AND model = ?2 AND version = ?3
UNION ALL
SELECT 'move ' || number || ' of alias ' || alias FROM alias_moves
WHERE project = ?1 AND model = ?2 AND target = ?3 AND state = 1
UNION ALL
SELECT 'deployments/' || d.name || ' (revision ' || max(r.revision) || ')'
FROM revisions AS r JOIN deployments AS d ON d.uid = r.deployment_uid
WHERE r.model_version = ?4 AND r.in_use = 1 GROUP BY d.name
UNION ALL
SELECT 'jobs/' || j.base_name || '-' || j.number
FROM job_inputs AS i JOIN jobs AS j ON j.uid = i.job_uid
WHERE i.resource = ?4 AND j.state < 9
UNION ALL
SELECT target FROM links WHERE source = ?4 AND relation = 'parent'
UNION ALL
SELECT 'its check ' || check_job FROM model_versions
WHERE project = ?1 AND model = ?2 AND version = ?3 AND state = 1 AND check_job <> ''
LIMIT ?5;

-- name: delete_version
DELETE FROM model_versions WHERE project = ? AND model = ? AND version = ?;

-- name: delete_links
DELETE FROM links WHERE target = ?;

-- name: of_jobs
SELECT job, project, model, version FROM model_versions;

-- name: last_metrics
-- The value of each key's highest step: SQLite takes bare columns from the row of max().
SELECT key, value, max(step) FROM metrics WHERE job_uid = ? AND idx = ? GROUP BY key;

-- name: roots
SELECT manifest FROM model_versions UNION SELECT code FROM model_versions WHERE code <> '';
