-- Schedules: what their owners said, and how far their times were looked at. Times up to `position` do
-- not count any more; `waiting` is the one that waits for the end of `last_job`, a job's uid;
-- `submitting` the one whose job was about to be submitted.
CREATE TABLE schedules (
    uid TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    settings_version INTEGER NOT NULL,
    cron TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    spec BLOB NOT NULL,
    overlap INTEGER NOT NULL,
    catch_up INTEGER NOT NULL,
    max_catch_up INTEGER NOT NULL,
    paused INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    labels TEXT NOT NULL,
    created_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    position INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    last_outcome TEXT NOT NULL,
    waiting INTEGER NOT NULL,
    submitting INTEGER NOT NULL,
    last_job TEXT NOT NULL,
    recent TEXT NOT NULL,
    UNIQUE (project, name)
) STRICT;
