-- How far projections have come, in the database of their read models. The row with an empty place is the
-- projection's own: position is the generation of its tables, owner says what is being done to them.
-- projection_seen holds the last event of each entity that a projection with track_versions has seen.

CREATE TABLE IF NOT EXISTS {projections} (
    name VARCHAR(100) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    place VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    position BIGINT NOT NULL,
    owner VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation},
    PRIMARY KEY (name, place)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {projection_seen} (
    name VARCHAR(100) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    event_id VARCHAR(40) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    PRIMARY KEY (name, entity_type, entity_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
