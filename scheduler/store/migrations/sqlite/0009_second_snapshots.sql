-- Volumes that are moved while they are in use: what has changed since the first snapshot is sent from a second one. From when
-- it has a name on, nobody may use the volume until the move has ended.
ALTER TABLE volumes ADD COLUMN copy_second TEXT;
