-- That a queue or backend is drained is kept with its cordon, so that it goes on after a restart.
ALTER TABLE queues ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
ALTER TABLE backend_settings ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
