-- How many ended builds of an org are kept, and for how long.
ALTER TABLE orgs ADD COLUMN builds_kept INTEGER NOT NULL DEFAULT 1000 CHECK (builds_kept > 0);
ALTER TABLE orgs ADD COLUMN builds_age_ms INTEGER NOT NULL DEFAULT 2592000000 CHECK (builds_age_ms > 0);
