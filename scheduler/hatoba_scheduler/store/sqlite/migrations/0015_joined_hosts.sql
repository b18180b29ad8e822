-- A token that made a machine a host is kept with the host and the key: certificates of that host are good as long
-- as it is.
ALTER TABLE tokens ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN used_by TEXT NOT NULL DEFAULT '';
