-- Volumes whose contents are sent by their owner. Such a one is planned until they are there.
-- From then on nobody waits for them any longer; NULL: none are sent.
ALTER TABLE volumes ADD COLUMN import_until INTEGER;
-- What the sender says is the checksum of the whole stream.
ALTER TABLE volumes ADD COLUMN import_digest TEXT;
