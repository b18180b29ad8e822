-- `last` is the newest number that was given: numbers are never given twice.
CREATE TABLE models (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    last INTEGER NOT NULL,
    protected TEXT NOT NULL,
    revision INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (project, model)
) STRICT, WITHOUT ROWID;

-- `manifest` and `code` are digests; `job`, `datasets`, `code_version` and `parent` resource names.
CREATE TABLE model_versions (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    state INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    total_bytes INTEGER NOT NULL,
    files INTEGER NOT NULL,
    content BLOB NOT NULL,
    create_time INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    handler TEXT NOT NULL,
    code TEXT NOT NULL,
    has_example INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    description TEXT NOT NULL,
    labels TEXT NOT NULL,
    job TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    datasets TEXT NOT NULL,
    code_version TEXT NOT NULL,
    git_commit TEXT NOT NULL,
    parent TEXT NOT NULL,
    check_job TEXT NOT NULL,
    cause TEXT NOT NULL,
    trace_id TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX model_versions_by_name ON model_versions (project, model, version);
CREATE INDEX model_versions_registering ON model_versions (project) WHERE state = 1;
CREATE INDEX model_versions_by_job ON model_versions (job) WHERE job <> '';

CREATE TRIGGER model_versions_final BEFORE UPDATE OF state ON model_versions
WHEN old.state > 1 AND new.state <> old.state
BEGIN
    SELECT raise(ABORT, 'a model version left a final state');
END;

CREATE TABLE aliases (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    version INTEGER NOT NULL,
    update_time INTEGER NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (project, model, alias)
) STRICT, WITHOUT ROWID;

CREATE TABLE alias_moves (
    number INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    source INTEGER NOT NULL,
    target INTEGER NOT NULL,
    state INTEGER NOT NULL,
    reason TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    request_time INTEGER NOT NULL,
    decided_by TEXT NOT NULL,
    decide_time INTEGER NOT NULL,
    comment TEXT NOT NULL
) STRICT;

CREATE INDEX alias_moves_by_model ON alias_moves (project, model, number);
CREATE INDEX alias_moves_pending ON alias_moves (project, model, alias) WHERE state = 1;

-- `target` came from `source`: what versions of models and datasets were made from.
CREATE TABLE links (
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    relation TEXT NOT NULL,
    PRIMARY KEY (source, target, relation)
) STRICT, WITHOUT ROWID;

CREATE INDEX links_by_target ON links (target);

CREATE INDEX job_inputs_by_job ON job_inputs (job_uid);
