-- What each subscription handles, and who may go on: generation counts the changes of that, wanted and
-- offered are JSON, [[entity type, event type], …], paused_at is in milliseconds since the epoch.

CREATE TABLE IF NOT EXISTS {generations} (
    subscription VARCHAR(100) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    wanted LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    offered LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    paused_at BIGINT,
    begun TINYINT NOT NULL DEFAULT 0
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Events that a subscription has passed because it did not handle them then: those behind one place of
-- each partition, up to another, JSON {partition: position}.
CREATE TABLE IF NOT EXISTS {missed} (
    subscription VARCHAR(100) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    event_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    generation BIGINT NOT NULL,
    behind LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    up_to LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    events BIGINT,
    whole TINYINT NOT NULL DEFAULT 0,
    backfilled_at BIGINT,
    PRIMARY KEY (subscription, entity_type, event_type)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
