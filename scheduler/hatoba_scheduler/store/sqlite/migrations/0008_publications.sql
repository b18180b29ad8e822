-- Jobs whose outputs become a dataset version when they succeed, and what became of that.

-- A row comes with its job. `done` 0: the job has not ended, or what is due has not been done yet.
CREATE TABLE publications (
    job_uid TEXT NOT NULL PRIMARY KEY,
    done INTEGER NOT NULL,
    published TEXT NOT NULL,
    summary TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX publications_due ON publications (job_uid) WHERE done = 0;
