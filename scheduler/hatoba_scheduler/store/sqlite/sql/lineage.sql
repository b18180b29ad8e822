-- What came from what, of many resources at once: rows of (source, target, relation).

-- name: forwards
WITH v (name) AS (VALUES /*rows 1*/)
SELECT l.source, l.target, l.relation FROM v CROSS JOIN links AS l ON l.source = v.name
UNION
SELECT i.resource, 'projects/' || j.project || '/jobs/' || j.base_name || '-' || j.number,
    CASE WHEN i.resource LIKE '%/code/%' THEN 'code-of' ELSE 'read-by' END
FROM v CROSS JOIN job_inputs AS i ON i.resource = v.name JOIN jobs AS j ON j.uid = i.job_uid
UNION
SELECT d.job, 'projects/' || d.project || '/datasets/' || d.dataset || '/versions/' || d.version,
    'made-by'
FROM v CROSS JOIN dataset_versions AS d ON d.job = v.name AND d.job <> ''
UNION
SELECT d.model_version,
    'projects/' || d.project || '/datasets/' || d.dataset || '/versions/' || d.version,
    CASE d.job WHEN '' THEN 'captured-from' ELSE 'predicted-with' END
FROM v CROSS JOIN dataset_versions AS d ON d.model_version = v.name AND d.model_version <> ''
UNION
SELECT m.value, 'projects/' || d.project || '/datasets/' || d.dataset || '/versions/' || d.version,
    'made-from'
FROM dataset_versions AS d JOIN json_each(d.made_from) AS m JOIN v ON m.value = v.name
WHERE d.made_from <> ''
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
SELECT d.job, v.name, 'made-by'
FROM v
CROSS JOIN dataset_versions AS d
    ON d.project = v.project AND d.dataset = v.base AND d.version = v.number
WHERE v.kind = 'datasets' AND d.job <> ''
UNION
SELECT d.model_version, v.name, CASE d.job WHEN '' THEN 'captured-from' ELSE 'predicted-with' END
FROM v
CROSS JOIN dataset_versions AS d
    ON d.project = v.project AND d.dataset = v.base AND d.version = v.number
WHERE v.kind = 'datasets' AND d.model_version <> ''
UNION
SELECT m.value, v.name, 'made-from'
FROM v
CROSS JOIN dataset_versions AS d
    ON d.project = v.project AND d.dataset = v.base AND d.version = v.number
JOIN json_each(d.made_from) AS m
WHERE v.kind = 'datasets' AND d.made_from <> ''
UNION
SELECT r.model_version, v.name, 'serves'
FROM v
CROSS JOIN deployments AS d ON d.project = v.project AND d.name = v.base
JOIN revisions AS r ON r.deployment_uid = d.uid
WHERE v.kind = 'deployments';
