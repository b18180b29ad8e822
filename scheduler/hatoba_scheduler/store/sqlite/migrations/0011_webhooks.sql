-- Webhooks: what they want, and how far they were told. `cursor` is the newest event of which nothing
-- has to be posted any more. The signing key is kept as it is: it is needed for each signature.
CREATE TABLE webhooks (
    uid TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    filter TEXT NOT NULL,
    jobs_only INTEGER NOT NULL,
    reasons TEXT NOT NULL,
    paused INTEGER NOT NULL,
    signing_key TEXT NOT NULL,
    created_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    cursor INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    next_try INTEGER NOT NULL,
    given_up INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX webhooks_by_name ON webhooks (project, name);
