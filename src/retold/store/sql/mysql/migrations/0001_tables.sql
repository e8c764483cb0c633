-- Eventuate's three tables with ids that compare by byte ({collation}, which pads nothing), and what
-- retold needs beside them.

CREATE TABLE IF NOT EXISTS {events} (
    event_id VARCHAR(40) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL PRIMARY KEY,
    event_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    event_data LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    triggering_event LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    metadata LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    published TINYINT NOT NULL DEFAULT 0,
    INDEX {events_idx} (entity_type, entity_id, event_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {entities} (
    entity_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_version VARCHAR(40) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    PRIMARY KEY (entity_type, entity_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {snapshots} (
    entity_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_version VARCHAR(40) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    snapshot_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    snapshot_json LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    triggering_events LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    PRIMARY KEY (entity_type, entity_id, entity_version)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Keys of deliveries and of once(…) that were handled; handled_at in milliseconds since the epoch.
CREATE TABLE IF NOT EXISTS {handled} (
    entity_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    trigger_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    command LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    update_id VARCHAR(40) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    handled_at BIGINT NOT NULL,
    PRIMARY KEY (entity_type, entity_id, trigger_key)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
