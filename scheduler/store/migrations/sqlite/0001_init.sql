-- Times are milliseconds since the Unix epoch, sizes are bytes. Ids carry their kind as a prefix.
-- Rows of a tenant name their org, and refer to other rows of a tenant together with the org, so that a row of one org
-- can never refer to one of another.

CREATE TABLE orgs (
    id                 TEXT    NOT NULL PRIMARY KEY,
    slug               TEXT    NOT NULL UNIQUE,
    name               TEXT    NOT NULL,
    idle_ms            INTEGER NOT NULL CHECK (idle_ms >= 0),
    default_region     TEXT    NOT NULL,
    default_arch       TEXT    NOT NULL,
    builder_cpu_millis INTEGER NOT NULL,
    builder_memory     INTEGER NOT NULL,
    builder_volume     INTEGER NOT NULL,
    created_at         INTEGER NOT NULL
) STRICT;

CREATE TABLE apps (
    id         TEXT    NOT NULL PRIMARY KEY,
    org_id     TEXT    NOT NULL REFERENCES orgs (id),
    name       TEXT    NOT NULL,
    role       TEXT    NOT NULL CHECK (role IN ('user', 'builder')),
    billable   INTEGER NOT NULL CHECK (billable IN (0, 1)),
    created_at INTEGER NOT NULL,
    UNIQUE (org_id, name),
    UNIQUE (id, org_id)
) STRICT;
CREATE UNIQUE INDEX apps_one_builder ON apps (org_id) WHERE role = 'builder';

CREATE TABLE tokens (
    id           TEXT    NOT NULL PRIMARY KEY,
    org_id       TEXT    REFERENCES orgs (id),
    app_id       TEXT,
    name         TEXT    NOT NULL,
    role         TEXT    NOT NULL CHECK (role IN ('read', 'deploy', 'admin')),
    secret_hash  BLOB    NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    last_used_at INTEGER,
    CHECK (app_id IS NULL OR org_id IS NOT NULL),
    FOREIGN KEY (app_id, org_id) REFERENCES apps (id, org_id) ON DELETE CASCADE
) STRICT;
CREATE INDEX tokens_of_org ON tokens (org_id, created_at);

CREATE TABLE hosts (
    id            TEXT    NOT NULL PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    region        TEXT    NOT NULL,
    arch          TEXT    NOT NULL,
    socket        TEXT    NOT NULL,
    pool_capacity INTEGER NOT NULL CHECK (pool_capacity >= 0),
    memory        INTEGER NOT NULL,
    cpu_millis    INTEGER NOT NULL
) STRICT;

CREATE TABLE volumes (
    id         TEXT    NOT NULL PRIMARY KEY,
    org_id     TEXT    NOT NULL REFERENCES orgs (id),
    host_id    TEXT    NOT NULL REFERENCES hosts (id),
    size       INTEGER NOT NULL CHECK (size > 0),
    state      TEXT    NOT NULL CHECK (state IN ('planned', 'ready', 'aside', 'condemned')),
    created_at INTEGER NOT NULL,
    UNIQUE (id, org_id)
) STRICT;
CREATE INDEX volumes_of_org ON volumes (org_id, created_at);
CREATE INDEX volumes_of_host ON volumes (host_id);

CREATE TABLE machines (
    id              TEXT    NOT NULL PRIMARY KEY,
    org_id          TEXT    NOT NULL REFERENCES orgs (id),
    app_id          TEXT    NOT NULL,
    region          TEXT    NOT NULL,
    arch            TEXT    NOT NULL,
    host_id         TEXT    NOT NULL REFERENCES hosts (id),
    volume_id       TEXT    NOT NULL UNIQUE,
    cpu_millis      INTEGER NOT NULL,
    memory          INTEGER NOT NULL,
    generation      INTEGER NOT NULL CHECK (generation >= 0),
    intent          TEXT    NOT NULL CHECK (intent IN ('wanted', 'stopped')),
    state           TEXT    NOT NULL,
    failed_starts   INTEGER NOT NULL,
    volume_replaced INTEGER NOT NULL CHECK (volume_replaced IN (0, 1)),
    last_error      TEXT,
    notice          TEXT,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    UNIQUE (org_id, region, arch),
    UNIQUE (id, org_id),
    FOREIGN KEY (app_id, org_id) REFERENCES apps (id, org_id),
    FOREIGN KEY (volume_id, org_id) REFERENCES volumes (id, org_id)
) STRICT;

CREATE TABLE builds (
    -- Order of arrival, for paging.
    number      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    org_id      TEXT    NOT NULL REFERENCES orgs (id),
    app_id      TEXT    NOT NULL,
    machine_id  TEXT    NOT NULL,
    state       TEXT    NOT NULL
                CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
    spec        TEXT    NOT NULL,
    outcome     TEXT,
    created_at  INTEGER NOT NULL,
    ended_at    INTEGER,
    last_seq    INTEGER NOT NULL,
    event_bytes INTEGER NOT NULL,
    FOREIGN KEY (app_id, org_id) REFERENCES apps (id, org_id),
    FOREIGN KEY (machine_id, org_id) REFERENCES machines (id, org_id)
) STRICT;
CREATE INDEX builds_of_org ON builds (org_id, number);
CREATE INDEX builds_of_app ON builds (org_id, app_id, number);
CREATE INDEX builds_unfinished ON builds (number) WHERE state IN ('pending', 'running');

CREATE TABLE build_events (
    build INTEGER NOT NULL REFERENCES builds (number) ON DELETE CASCADE,
    seq   INTEGER NOT NULL CHECK (seq > 0),
    json  TEXT    NOT NULL,
    PRIMARY KEY (build, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE registry_credentials (
    id         TEXT    NOT NULL PRIMARY KEY,
    org_id     TEXT    NOT NULL REFERENCES orgs (id),
    registry   TEXT    NOT NULL,
    username   TEXT    NOT NULL,
    sealed     BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (org_id, registry)
) STRICT;

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
