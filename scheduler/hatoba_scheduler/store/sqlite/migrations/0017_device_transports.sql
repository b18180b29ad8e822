-- What devices dial that a token makes.
ALTER TABLE device_tokens ADD COLUMN transport TEXT NOT NULL DEFAULT 'grpc';
