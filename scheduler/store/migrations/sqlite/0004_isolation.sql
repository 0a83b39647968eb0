-- How an org's builders must be walled off.
ALTER TABLE orgs ADD COLUMN isolation TEXT NOT NULL DEFAULT 'auto' CHECK (isolation IN ('auto', 'sandbox', 'vm'));
