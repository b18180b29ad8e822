-- Records of devices by kind, each with a bound of its own. What never came is a record of kind 5 in
-- the place of the last one that is missing: `lost` says how many. Nobody reads
-- `devices.kept_records` any more.
CREATE TABLE device_records_by_kind (
    device TEXT NOT NULL,
    kind INTEGER NOT NULL,
    position INTEGER NOT NULL,
    time INTEGER NOT NULL,
    deployment TEXT NOT NULL,
    body BLOB NOT NULL,
    lost INTEGER NOT NULL,
    PRIMARY KEY (device, kind, position)
) STRICT, WITHOUT ROWID;

-- How many there are of a kind, and up to which position it was trimmed.
CREATE TABLE device_record_kinds (
    device TEXT NOT NULL,
    kind INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    trimmed INTEGER NOT NULL,
    PRIMARY KEY (device, kind)
) STRICT, WITHOUT ROWID;

INSERT INTO device_records_by_kind
SELECT device, kind, position, time, deployment, body, 0 FROM device_records;

INSERT INTO device_records_by_kind
SELECT device, 5, position - 1, time, '', x'', lost FROM device_records WHERE lost > 0;

INSERT INTO device_record_kinds
SELECT r.device, r.kind, count(*), CASE
    WHEN d.kept_records < 10000 THEN 0
    ELSE (SELECT min(o.position) - 1 FROM device_records AS o WHERE o.device = r.device)
END
FROM device_records_by_kind AS r
INNER JOIN devices AS d ON d.name = r.device
GROUP BY r.device, r.kind;

DROP TABLE device_records;
ALTER TABLE device_records_by_kind RENAME TO device_records;
