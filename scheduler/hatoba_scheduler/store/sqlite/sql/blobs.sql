-- Leases and marks of chunks and manifests, and the manifests that jobs name.

-- name: lease
-- Ends of leases are rounded, so that most repeats find theirs in place and write nothing.
INSERT INTO blobs (kind, digest, leased_until, marked) VALUES /*rows 4*/
ON CONFLICT (kind, digest) DO UPDATE SET
    leased_until = max(leased_until, excluded.leased_until), marked = 0
WHERE marked <> 0 OR leased_until < excluded.leased_until;

-- name: states
SELECT b.digest, b.leased_until, b.marked
FROM (VALUES /*rows 2*/) AS v
CROSS JOIN blobs AS b ON b.kind = v.column1 AND b.digest = v.column2;

-- name: mark
INSERT INTO blobs (kind, digest, leased_until, marked) VALUES /*rows 4*/
ON CONFLICT (kind, digest) DO UPDATE SET marked = excluded.marked;

-- name: forget
DELETE FROM blobs
WHERE (kind, digest) IN (VALUES /*rows 2*/);

-- name: leased
SELECT digest FROM blobs WHERE kind = ? AND leased_until > ?;

-- name: purge
DELETE FROM blobs WHERE (kind, digest) IN (
    SELECT kind, digest FROM blobs
    WHERE leased_until <= ? AND (marked = 0 OR marked < ?)
    LIMIT ?
);

-- name: roots_of_specs
-- Specifications are searched as bytes: a digest in one is a root, whatever it stands for.
SELECT spec FROM specs WHERE instr(spec, CAST('sha256:' AS BLOB)) > 0;

-- name: roots_of_jobs
SELECT outputs FROM jobs WHERE outputs <> ''
UNION SELECT restore FROM jobs WHERE restore <> ''
UNION SELECT outputs FROM tasks WHERE outputs <> ''
UNION SELECT checkpoint FROM tasks WHERE checkpoint <> ''
UNION SELECT outputs FROM attempts WHERE outputs <> ''
UNION SELECT checkpoint FROM attempts WHERE checkpoint <> '';
