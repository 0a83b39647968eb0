-- Moves of which the host that the record names does not have the volume. Nothing is destroyed before somebody has chosen a copy.
ALTER TABLE volumes ADD COLUMN copy_halted INTEGER NOT NULL DEFAULT 0 CHECK (copy_halted IN (0, 1));
