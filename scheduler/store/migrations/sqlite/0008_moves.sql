-- Volumes that move to another host. While one does, there are two copies of it; `host_id` names the one that counts.
-- Where the other copy is; NULL: there is none.
ALTER TABLE volumes ADD COLUMN copy_host TEXT REFERENCES hosts (id);
-- It is being made, or is to be destroyed.
ALTER TABLE volumes ADD COLUMN copy_step TEXT CHECK (copy_step IN ('sending', 'clearing'));
-- The snapshot that it is made from: a host's own, which no row of `snapshots` has; where it is; and what it takes there.
ALTER TABLE volumes ADD COLUMN copy_snapshot TEXT;
ALTER TABLE volumes ADD COLUMN copy_source TEXT REFERENCES hosts (id);
ALTER TABLE volumes ADD COLUMN copy_reserve INTEGER NOT NULL DEFAULT 0 CHECK (copy_reserve >= 0);
CREATE INDEX volumes_copied_to ON volumes (copy_host) WHERE copy_host IS NOT NULL;
CREATE INDEX volumes_copied_from ON volumes (copy_source) WHERE copy_source IS NOT NULL;
