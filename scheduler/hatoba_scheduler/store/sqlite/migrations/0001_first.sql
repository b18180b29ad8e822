-- Empty text stands for "none" in optional columns: sqlite3 binds None slower than any text.

CREATE TABLE identity (
    cluster_id TEXT NOT NULL,
    store_epoch INTEGER NOT NULL
) STRICT;

-- `id` is the position of the job's first event; `name` is base_name || '-' || number.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    base_name TEXT NOT NULL,
    uid TEXT NOT NULL,
    project TEXT NOT NULL,
    queue TEXT NOT NULL,
    backend TEXT NOT NULL,
    priority INTEGER NOT NULL,
    size INTEGER NOT NULL,
    max_parallel INTEGER NOT NULL,
    fail_fast INTEGER NOT NULL,
    resources TEXT NOT NULL,
    retries TEXT NOT NULL,
    state INTEGER NOT NULL,
    desired INTEGER NOT NULL,
    version INTEGER NOT NULL,
    settings_version INTEGER NOT NULL,
    unstarted TEXT NOT NULL,
    unstarted_state INTEGER NOT NULL,
    counts TEXT NOT NULL,
    hold INTEGER NOT NULL,
    blocked_on TEXT NOT NULL,
    created_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    cause TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    sampled INTEGER NOT NULL,
    rerun_of TEXT NOT NULL,
    stop_grace REAL NOT NULL,
    labels TEXT NOT NULL,
    secrets TEXT NOT NULL,
    embedded_only INTEGER NOT NULL,
    outputs TEXT NOT NULL,
    restore TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX jobs_by_uid ON jobs (uid);
CREATE UNIQUE INDEX jobs_by_name ON jobs (project, base_name, number);
CREATE INDEX jobs_by_project ON jobs (project, uid);
CREATE INDEX jobs_live ON jobs (project, uid) WHERE state < 9;
CREATE INDEX jobs_finished ON jobs (project, state, uid) WHERE state >= 9;

CREATE TRIGGER jobs_final BEFORE UPDATE OF state ON jobs
WHEN old.state >= 9 AND new.state <> old.state
BEGIN
    SELECT raise(ABORT, 'a job left a final state');
END;

CREATE TABLE specs (
    id INTEGER PRIMARY KEY,
    spec BLOB NOT NULL
) STRICT;

CREATE TABLE job_labels (
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    id INTEGER NOT NULL,
    PRIMARY KEY (key, value, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE name_counters (
    project TEXT NOT NULL,
    base_name TEXT NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (project, base_name)
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    job_uid TEXT NOT NULL,
    idx INTEGER NOT NULL,
    state INTEGER NOT NULL,
    version INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    user_failures INTEGER NOT NULL,
    infrastructure_failures INTEGER NOT NULL,
    preemptions INTEGER NOT NULL,
    cause TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    outputs TEXT NOT NULL,
    start_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    PRIMARY KEY (job_uid, idx)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER tasks_final BEFORE UPDATE OF state ON tasks
WHEN old.state >= 9 AND new.state <> old.state
BEGIN
    SELECT raise(ABORT, 'a task left a final state');
END;

CREATE TABLE attempts (
    job_uid TEXT NOT NULL,
    idx INTEGER NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    fence INTEGER NOT NULL,
    backend TEXT NOT NULL,
    host TEXT NOT NULL,
    gpus TEXT NOT NULL,
    state INTEGER NOT NULL,
    version INTEGER NOT NULL,
    release INTEGER NOT NULL,
    fenced INTEGER NOT NULL,
    span_id TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    handle BLOB NOT NULL,
    nonce TEXT NOT NULL,
    intended INTEGER NOT NULL,
    unknown_since INTEGER NOT NULL,
    claim_time INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    cause TEXT NOT NULL,
    usage TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    outputs TEXT NOT NULL,
    log_sizes TEXT NOT NULL,
    reserved TEXT NOT NULL,
    PRIMARY KEY (job_uid, idx, number)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX attempts_by_name ON attempts (name);
CREATE UNIQUE INDEX attempts_one_under_way ON attempts (job_uid, idx) WHERE state < 6;
CREATE INDEX attempts_held ON attempts (job_uid) WHERE release < 3;

CREATE TRIGGER attempts_final BEFORE UPDATE OF state ON attempts
WHEN old.state >= 6 AND new.state <> old.state
BEGIN
    SELECT raise(ABORT, 'an attempt left a final state');
END;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    job_name TEXT NOT NULL,
    job_uid TEXT NOT NULL,
    job_seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    from_state INTEGER NOT NULL,
    to_state INTEGER NOT NULL,
    job_from INTEGER NOT NULL,
    job_to INTEGER NOT NULL,
    cause TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    project TEXT NOT NULL,
    trace_id TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_job ON events (job_uid);

-- Ids grow with time; keys that do too (UUIDv7) are cheap, random ones dirty a page each.
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    method TEXT NOT NULL,
    request_id TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    resource TEXT NOT NULL,
    create_time INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX requests_by_key ON requests (project, method, request_id);

-- `value` is null for NaN, which SQLite cannot keep.
CREATE TABLE metrics (
    job_uid TEXT NOT NULL,
    key TEXT NOT NULL,
    idx INTEGER NOT NULL,
    step INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    value REAL,
    time INTEGER NOT NULL,
    PRIMARY KEY (job_uid, key, idx, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE queues (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    weight REAL NOT NULL,
    max_running INTEGER NOT NULL,
    max_pending INTEGER NOT NULL,
    labels TEXT NOT NULL,
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (
    name TEXT PRIMARY KEY,
    boot_id TEXT NOT NULL,
    keeper TEXT NOT NULL,
    capacity TEXT NOT NULL,
    gpus TEXT NOT NULL,
    labels TEXT NOT NULL,
    secrets TEXT NOT NULL,
    version TEXT NOT NULL,
    embedded INTEGER NOT NULL,
    cordoned INTEGER NOT NULL,
    declared_gone INTEGER NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    principal TEXT NOT NULL,
    role INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    revoked INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;
