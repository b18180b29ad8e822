-- Every index of jobs ends with the id, which grows with time: each gives its jobs in order, and a
-- list of any state, queue, owner or label is a walk along one of them.
DROP INDEX jobs_by_project;
DROP INDEX jobs_live;
DROP INDEX jobs_finished;

CREATE INDEX jobs_by_state ON jobs (state, project);
CREATE INDEX jobs_by_queue ON jobs (project, queue, state);
CREATE INDEX jobs_by_creator ON jobs (project, created_by);

-- Equal specs that come together are one row of `specs`; 0: its own, under the job's id.
ALTER TABLE jobs ADD COLUMN spec INTEGER NOT NULL DEFAULT 0;
