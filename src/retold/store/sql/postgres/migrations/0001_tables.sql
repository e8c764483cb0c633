-- Eventuate's three tables with columns that do not truncate and ids that compare by byte, and what
-- retold needs beside them.

CREATE TABLE {events} (
    event_id text COLLATE "C" PRIMARY KEY,
    event_type text COLLATE "C" NOT NULL,
    event_data text NOT NULL,
    entity_type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    triggering_event text,
    metadata text,
    published smallint NOT NULL DEFAULT 0
);

CREATE INDEX {events_idx} ON {events} (entity_type, entity_id, event_id);

-- Every append updates an entity's row: free space in its page lets PostgreSQL do so in place.
CREATE TABLE {entities} (
    entity_type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    entity_version text COLLATE "C" NOT NULL,
    PRIMARY KEY (entity_type, entity_id)
) WITH (fillfactor = 80);

CREATE TABLE {snapshots} (
    entity_type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    entity_version text COLLATE "C" NOT NULL,
    snapshot_type text COLLATE "C" NOT NULL,
    snapshot_json text NOT NULL,
    triggering_events text,
    PRIMARY KEY (entity_type, entity_id, entity_version)
);

-- Keys of deliveries and of once(…) that were handled; handled_at in milliseconds since the epoch.
CREATE TABLE {handled} (
    entity_type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    trigger_key text COLLATE "C" NOT NULL,
    command text NOT NULL,
    update_id text COLLATE "C" NOT NULL,
    handled_at bigint NOT NULL,
    PRIMARY KEY (entity_type, entity_id, trigger_key)
);
