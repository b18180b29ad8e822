-- Webhooks: what they want, and how far they were told. `cursor` is the newest event of which no
-- more has to be posted; `epoch` the store's when that was said: another store's positions mean nothing.
CREATE TABLE webhooks (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    uid TEXT NOT NULL,
    url TEXT NOT NULL,
    filter TEXT NOT NULL,
    jobs_only INTEGER NOT NULL,
    reasons TEXT NOT NULL,
    paused INTEGER NOT NULL,
    signing_key TEXT NOT NULL,
    created_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    cursor INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    next_try INTEGER NOT NULL,
    given_up INTEGER NOT NULL,
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;
