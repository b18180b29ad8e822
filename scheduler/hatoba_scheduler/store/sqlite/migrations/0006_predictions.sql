-- Predictions that routers kept; the newest stay.
CREATE TABLE predictions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL,
    deployment TEXT NOT NULL,
    revision INTEGER NOT NULL,
    model_version TEXT NOT NULL,
    replica TEXT NOT NULL,
    status INTEGER NOT NULL,
    time INTEGER NOT NULL,
    duration INTEGER NOT NULL,
    item TEXT NOT NULL
) STRICT;

CREATE INDEX predictions_by_trace ON predictions (trace_id);

-- Reports that were taken, so that none is taken twice.
CREATE TABLE prediction_batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    batch TEXT NOT NULL UNIQUE
) STRICT;
