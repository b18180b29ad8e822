-- A host that joined is known by a key; a token that makes a host is good for one key.
ALTER TABLE hosts ADD COLUMN identity TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN used_by TEXT NOT NULL DEFAULT '';
