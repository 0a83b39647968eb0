-- Names of hosts may change; the id of the pool that a host has does not. NULL: it has not said.
ALTER TABLE hosts ADD COLUMN pool TEXT;
CREATE UNIQUE INDEX hosts_by_pool ON hosts (pool) WHERE pool IS NOT NULL;
