-- The fencing number of each volume: raised by each decision about its copies, and carried by every verb on it.
ALTER TABLE volumes ADD COLUMN fence INTEGER NOT NULL DEFAULT 1 CHECK (fence > 0);
-- No lower than that of the snapshot's volume when the volume was forgotten.
ALTER TABLE snapshots ADD COLUMN fence INTEGER NOT NULL DEFAULT 1 CHECK (fence > 0);
