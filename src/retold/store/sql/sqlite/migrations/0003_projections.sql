-- How far projections have come, in the database of their read models. The row with an empty place is the
-- projection's own: position is the generation of its tables, owner says what is being done to them.
-- projection_seen holds the last event of each entity that a projection with track_versions has seen.

CREATE TABLE {projections} (
    name TEXT NOT NULL,
    place TEXT NOT NULL,
    position INTEGER NOT NULL,
    owner TEXT,
    PRIMARY KEY (name, place)
) WITHOUT ROWID;

CREATE TABLE {projection_seen} (
    name TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (name, entity_type, entity_id)
) WITHOUT ROWID;
