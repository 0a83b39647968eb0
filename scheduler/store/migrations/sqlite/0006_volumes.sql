-- Volumes of an org's own besides its builders' caches; what is wanted of each; snapshots.
ALTER TABLE volumes ADD COLUMN name TEXT NOT NULL DEFAULT 'builder-cache';
ALTER TABLE volumes ADD COLUMN purpose TEXT NOT NULL DEFAULT 'cache' CHECK (purpose IN ('cache', 'data'));
-- What the host has said it has. Less than `size` while a growth is under way; 0 before it is made.
ALTER TABLE volumes ADD COLUMN made_size INTEGER NOT NULL DEFAULT 0 CHECK (made_size >= 0);
UPDATE volumes SET made_size = size WHERE state <> 'planned';
-- Whether it is encrypted; NULL until its host has said so.
ALTER TABLE volumes ADD COLUMN encrypted INTEGER CHECK (encrypted IN (0, 1));
-- What it was made from. Ids of volumes and snapshots that may be gone.
ALTER TABLE volumes ADD COLUMN from_volume TEXT;
ALTER TABLE volumes ADD COLUMN from_snapshot TEXT CHECK (from_snapshot IS NULL OR from_volume IS NULL);
ALTER TABLE volumes ADD COLUMN snapshot_retention_days INTEGER NOT NULL DEFAULT 5;
ALTER TABLE volumes ADD COLUMN scheduled_snapshots INTEGER NOT NULL DEFAULT 0 CHECK (scheduled_snapshots IN (0, 1));
ALTER TABLE volumes ADD COLUMN extend_percent INTEGER;
ALTER TABLE volumes ADD COLUMN extend_by INTEGER;
ALTER TABLE volumes ADD COLUMN extend_limit INTEGER;
-- From then on it is to go, unless its owner wants it back before.
ALTER TABLE volumes ADD COLUMN destroy_at INTEGER;
ALTER TABLE volumes ADD COLUMN notice TEXT;

-- Snapshots outlive their volume, so they have its id without a reference. What they take counts for the pool.
CREATE TABLE snapshots (
    id          TEXT    NOT NULL PRIMARY KEY,
    org_id      TEXT    NOT NULL REFERENCES orgs (id),
    host_id     TEXT    NOT NULL REFERENCES hosts (id),
    volume_id   TEXT    NOT NULL,
    volume_name TEXT    NOT NULL,
    size        INTEGER NOT NULL CHECK (size > 0),
    stored      INTEGER NOT NULL CHECK (stored >= 0),
    state       TEXT    NOT NULL CHECK (state IN ('planned', 'ready', 'condemned')),
    scheduled   INTEGER NOT NULL CHECK (scheduled IN (0, 1)),
    encrypted   INTEGER NOT NULL CHECK (encrypted IN (0, 1)),
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshots_of_volume ON snapshots (org_id, volume_id, created_at);
CREATE INDEX snapshots_of_host ON snapshots (host_id);
