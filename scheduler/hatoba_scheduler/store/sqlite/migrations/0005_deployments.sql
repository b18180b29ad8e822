-- `model` is what is followed or served, as people write it: `digits@production`, `digits:7`;
-- `target` the same as a resource name. `wanted` are triples of revision, replicas and weight.
CREATE TABLE deployments (
    uid TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    backend TEXT NOT NULL,
    spec BLOB NOT NULL,
    target TEXT NOT NULL,
    replicas INTEGER NOT NULL,
    strategy TEXT NOT NULL,
    version INTEGER NOT NULL,
    settings_version INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    wanted TEXT NOT NULL,
    current INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    following INTEGER NOT NULL,
    followed TEXT NOT NULL,
    events INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    deleting INTEGER NOT NULL,
    handle TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX deployments_by_name ON deployments (project, name);
CREATE INDEX deployments_by_model ON deployments (project, model);

-- `in_use`: it has replicas or traffic, or a roll-back would go to it. `manifests` are digests.
CREATE TABLE revisions (
    deployment_uid TEXT NOT NULL,
    revision INTEGER NOT NULL,
    model_version TEXT NOT NULL,
    spec BLOB NOT NULL,
    template BLOB NOT NULL,
    manifests TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    proven INTEGER NOT NULL,
    cause TEXT NOT NULL,
    in_use INTEGER NOT NULL,
    PRIMARY KEY (deployment_uid, revision)
) STRICT, WITHOUT ROWID;

CREATE INDEX revisions_by_model ON revisions (model_version);

CREATE TABLE rollouts (
    deployment_uid TEXT NOT NULL,
    number INTEGER NOT NULL,
    from_revision INTEGER NOT NULL,
    to_revision INTEGER NOT NULL,
    state INTEGER NOT NULL,
    steps TEXT NOT NULL,
    step INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    since INTEGER NOT NULL,
    healthy_since INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    pause INTEGER NOT NULL,
    back INTEGER NOT NULL,
    cause TEXT NOT NULL,
    PRIMARY KEY (deployment_uid, number)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER rollouts_final BEFORE UPDATE OF state ON rollouts
WHEN old.state >= 5 AND new.state <> old.state
BEGIN
    SELECT raise(ABORT, 'a roll-out left a final state');
END;

CREATE TABLE deployment_events (
    deployment_uid TEXT NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    revision INTEGER NOT NULL,
    actor TEXT NOT NULL,
    cause TEXT NOT NULL,
    PRIMARY KEY (deployment_uid, seq)
) STRICT, WITHOUT ROWID;

-- What routers were told last: triples of revision, replica and address.
CREATE TABLE routes (
    deployment_uid TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    served TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE routers (
    url TEXT PRIMARY KEY,
    router TEXT NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
