-- By which way a build came, and the name of the token that asked for it; NULL where it is not known.
ALTER TABLE builds ADD COLUMN source TEXT NOT NULL DEFAULT 'deploy' CHECK (source IN ('deploy', 'docker', 'buildkit'));
ALTER TABLE builds ADD COLUMN asked_by TEXT;
