-- What came from what, of many resources at once: rows of (source, target, relation).

-- name: forwards
WITH v (name) AS (VALUES /*rows 1*/)
SELECT l.source, l.target, l.relation FROM v CROSS JOIN links AS l ON l.source = v.name
UNION
SELECT i.resource, 'projects/' || j.project || '/jobs/' || j.base_name || '-' || j.number,
    CASE WHEN i.resource LIKE '%/code/%' THEN 'code-of' ELSE 'read-by' END
FROM v CROSS JOIN job_inputs AS i ON i.resource = v.name JOIN jobs AS j ON j.uid = i.job_uid
UNION
SELECT r.model_version, 'projects/' || d.project || '/deployments/' || d.name, 'serves'
FROM v CROSS JOIN revisions AS r ON r.model_version = v.name
JOIN deployments AS d ON d.uid = r.deployment_uid;

-- name: deployment
SELECT model, replicas, current, following FROM deployments WHERE project = ? AND name = ?;

-- name: backwards
WITH v (name, project, kind, base, number) AS (VALUES /*rows 5*/)
SELECT l.source, l.target, l.relation FROM v CROSS JOIN links AS l ON l.target = v.name
UNION
SELECT i.resource, v.name,
    CASE WHEN i.resource LIKE '%/code/%' THEN 'code-of' ELSE 'read-by' END
FROM v
CROSS JOIN jobs AS j ON j.project = v.project AND j.base_name = v.base AND j.number = v.number
JOIN job_inputs AS i ON i.job_uid = j.uid
WHERE v.kind = 'jobs'
UNION
SELECT j.rerun_of, v.name, 'rerun-of'
FROM v
CROSS JOIN jobs AS j ON j.project = v.project AND j.base_name = v.base AND j.number = v.number
WHERE v.kind = 'jobs' AND j.rerun_of <> ''
UNION
SELECT r.model_version, v.name, 'serves'
FROM v
CROSS JOIN deployments AS d ON d.project = v.project AND d.name = v.base
JOIN revisions AS r ON r.deployment_uid = d.uid
WHERE v.kind = 'deployments';
