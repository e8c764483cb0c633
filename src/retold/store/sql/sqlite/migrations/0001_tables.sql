-- Eventuate's three tables, and what retold needs beside them. SQLite has one writer at a time, so
-- `position` is the order of commits: the events table is its own log.

CREATE TABLE {events} (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    event_type TEXT NOT NULL,
    event_data TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    triggering_event TEXT,
    metadata TEXT,
    published INTEGER NOT NULL DEFAULT 0
);

CREATE INDEX {events_idx} ON {events} (entity_type, entity_id, event_id);

CREATE TABLE {entities} (
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    entity_version TEXT NOT NULL,
    PRIMARY KEY (entity_type, entity_id)
) WITHOUT ROWID;

CREATE TABLE {snapshots} (
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    entity_version TEXT NOT NULL,
    snapshot_type TEXT NOT NULL,
    snapshot_json TEXT NOT NULL,
    triggering_events TEXT,
    PRIMARY KEY (entity_type, entity_id, entity_version)
);

-- Keys of deliveries and of once(…) that were handled; handled_at in milliseconds since the epoch.
CREATE TABLE {handled} (
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    trigger_key TEXT NOT NULL,
    command TEXT NOT NULL,
    update_id TEXT NOT NULL,
    handled_at INTEGER NOT NULL,
    PRIMARY KEY (entity_type, entity_id, trigger_key)
) WITHOUT ROWID;

-- How far a subscription has come, and who works it until when (milliseconds since the epoch).
CREATE TABLE {subscriptions} (
    name TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    owner TEXT,
    lease_until INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (name, partition)
) WITHOUT ROWID;
