-- Datasets with their versions and heads, code versions, and what jobs were given.
-- A manifest is its digest with the sizes beside it; '' is none.

-- `counter` is the highest number ever given, `latest` the newest version that is kept, `batch` the
-- part of the head that is open: those below are being frozen by a commit.
CREATE TABLE datasets (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    counter INTEGER NOT NULL,
    latest INTEGER NOT NULL,
    versions INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    head_items INTEGER NOT NULL,
    head_bytes INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    update_time INTEGER NOT NULL,
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE dataset_versions (
    project TEXT NOT NULL,
    dataset TEXT NOT NULL,
    version INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    manifest_bytes INTEGER NOT NULL,
    manifest_files INTEGER NOT NULL,
    items TEXT NOT NULL,
    items_bytes INTEGER NOT NULL,
    item_count INTEGER NOT NULL,
    splits TEXT NOT NULL,
    item_labels TEXT NOT NULL,
    message TEXT NOT NULL,
    by_reference INTEGER NOT NULL,
    labels TEXT NOT NULL,
    source TEXT NOT NULL,
    job TEXT NOT NULL,
    model_version TEXT NOT NULL,
    made_from TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (project, dataset, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX dataset_versions_of_jobs ON dataset_versions (job) WHERE job <> '';

-- `id` is the order; `manifest` is the tree that keeps the item's file, stored with its append.
CREATE TABLE dataset_head (
    id INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    dataset TEXT NOT NULL,
    batch INTEGER NOT NULL,
    item TEXT NOT NULL,
    path TEXT NOT NULL,
    attributes TEXT NOT NULL,
    media_type TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    manifest TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX dataset_head_items ON dataset_head (project, dataset, batch, item);
CREATE INDEX dataset_head_order ON dataset_head (project, dataset, id);
CREATE INDEX dataset_head_manifests ON dataset_head (manifest) WHERE manifest <> '';

CREATE TABLE code_versions (
    project TEXT NOT NULL,
    code TEXT NOT NULL,
    version INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    manifest_bytes INTEGER NOT NULL,
    manifest_files INTEGER NOT NULL,
    git_remote TEXT NOT NULL,
    git_commit TEXT NOT NULL,
    dirty INTEGER NOT NULL,
    patch TEXT NOT NULL,
    patch_bytes INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (project, code, version)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX code_versions_by_content
ON code_versions (project, code, manifest, git_remote, git_commit, dirty, patch);
CREATE INDEX code_versions_by_time ON code_versions (project, create_time, code, version);

-- What jobs were given, by resource name: dataset and model versions, outputs of jobs.
CREATE TABLE job_inputs (
    resource TEXT NOT NULL,
    job_uid TEXT NOT NULL,
    PRIMARY KEY (resource, job_uid)
) STRICT, WITHOUT ROWID;
