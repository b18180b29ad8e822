-- Datasets, their heads, and code versions: what the writer and the readers run.

-- name: dataset
SELECT counter, latest, versions, batch, head_items, head_bytes FROM datasets
WHERE project = ? AND name = ?;

-- name: datasets
SELECT project, name, latest, versions, head_items, head_bytes, create_time, created_by, update_time
FROM datasets;

-- name: add_dataset
INSERT INTO datasets (
    project, name, counter, latest, versions, batch, head_items, head_bytes, create_time, created_by,
    update_time
) VALUES (?, ?, 0, 0, 0, 1, 0, 0, ?, ?, ?)
ON CONFLICT (project, name) DO NOTHING;

-- name: versions
SELECT project, dataset, version, manifest, manifest_bytes, manifest_files, items, items_bytes,
    item_count, splits, item_labels, message, by_reference, labels, source, job, model_version,
    made_from, create_time, created_by
FROM dataset_versions;

-- name: version_of_job
WHERE job = ? AND project = ? AND dataset = ? ORDER BY version DESC LIMIT 1;

-- name: add_version
INSERT INTO dataset_versions (
    project, dataset, version, manifest, manifest_bytes, manifest_files, items, items_bytes,
    item_count, splits, item_labels, message, by_reference, labels, source, job, model_version,
    made_from, create_time, created_by
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: newer
UPDATE datasets SET counter = ?3, latest = ?3, versions = versions + 1, update_time = ?4
WHERE project = ?1 AND name = ?2;

-- name: delete_version
DELETE FROM dataset_versions WHERE project = ? AND dataset = ? AND version = ?;

-- name: one_less
UPDATE datasets SET versions = versions - 1, latest = coalesce((
    SELECT max(v.version) FROM dataset_versions AS v
    WHERE v.project = datasets.project AND v.dataset = datasets.name
), 0)
WHERE project = ? AND name = ?;

-- name: users
-- What uses a version: jobs that have not ended, and models that were trained on it.
SELECT 'jobs/' || j.base_name || '-' || j.number
FROM job_inputs AS i JOIN jobs AS j ON j.uid = i.job_uid
WHERE i.resource = ?1 AND j.state < 9
UNION ALL
SELECT 'models/' || v.model || ':' || v.version
FROM links AS l
JOIN model_versions AS v
    ON l.target = 'projects/' || v.project || '/models/' || v.model || '/versions/' || v.version
WHERE l.source = ?1
LIMIT 10;

-- name: add_links
INSERT OR IGNORE INTO links (source, target, relation) VALUES /*rows 3*/;

-- name: delete_links
DELETE FROM links WHERE target = ?;

-- name: head_known
-- Of the given ids those that the open head has, with their sizes.
SELECT h.item, h.size
FROM (VALUES /*rows 4*/) AS v
CROSS JOIN dataset_head AS h
    ON h.project = v.column1 AND h.dataset = v.column2 AND h.batch = v.column3
    AND h.item = v.column4;

-- name: put_head
INSERT INTO dataset_head (
    project, dataset, batch, item, path, attributes, media_type, sha256, size, manifest
) VALUES /*rows 10*/
ON CONFLICT (project, dataset, batch, item) DO UPDATE SET
    path = excluded.path, attributes = excluded.attributes, media_type = excluded.media_type,
    sha256 = excluded.sha256, size = excluded.size, manifest = excluded.manifest;

-- name: head_grew
UPDATE datasets SET head_items = head_items + ?3, head_bytes = head_bytes + ?4, update_time = ?5
WHERE project = ?1 AND name = ?2;

-- name: head
SELECT item, path, attributes, media_type, sha256, size, manifest, batch, id FROM dataset_head
WHERE project = ? AND dataset = ? AND id > ? AND batch <= ? ORDER BY id LIMIT ?;

-- name: freeze
UPDATE datasets SET batch = batch + 1 WHERE project = ? AND name = ?;

-- name: frozen_size
SELECT count(*), coalesce(sum(size), 0) FROM dataset_head
WHERE project = ? AND dataset = ? AND batch <= ?;

-- name: drop_frozen
DELETE FROM dataset_head WHERE project = ? AND dataset = ? AND batch <= ?;

-- name: manifests
SELECT manifest FROM dataset_versions
UNION SELECT items FROM dataset_versions WHERE items <> ''
UNION SELECT manifest FROM dataset_head WHERE manifest <> ''
UNION SELECT manifest FROM code_versions
UNION SELECT patch FROM code_versions WHERE patch <> '';

-- name: code
SELECT project, code, version, manifest, manifest_bytes, manifest_files, git_remote, git_commit,
    dirty, patch, patch_bytes, create_time, created_by
FROM code_versions;

-- name: code_like
WHERE project = ? AND code = ? AND manifest = ? AND git_remote = ? AND git_commit = ?
    AND dirty = ? AND patch = ?;

-- name: code_last
SELECT coalesce(max(version), 0) FROM code_versions WHERE project = ? AND code = ?;

-- name: add_code
INSERT INTO code_versions (
    project, code, version, manifest, manifest_bytes, manifest_files, git_remote, git_commit, dirty,
    patch, patch_bytes, create_time, created_by
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: put_job_inputs
INSERT OR IGNORE INTO job_inputs (resource, job_uid) VALUES /*rows 2*/;
