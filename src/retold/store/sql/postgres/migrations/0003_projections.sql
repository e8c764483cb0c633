-- How far projections have come, in the database of their read models. The row with an empty place is the
-- projection's own: position is the generation of its tables, owner says what is being done to them.
-- projection_seen holds the last event of each entity that a projection with track_versions has seen.

CREATE TABLE {projections} (
    name text COLLATE "C" NOT NULL,
    place text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    owner text,
    PRIMARY KEY (name, place)
) WITH (fillfactor = 50);

CREATE TABLE {projection_seen} (
    name text COLLATE "C" NOT NULL,
    entity_type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (name, entity_type, entity_id)
);
