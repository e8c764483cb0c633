-- Events that handlers gave up on, and those of the same entity that wait behind them; parked_at in
-- milliseconds since the epoch, mark what an operator wants: 'retry' or 'skip'.

CREATE TABLE IF NOT EXISTS {parked} (
    subscription VARCHAR(100) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    entity_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    event_id VARCHAR(40) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    `partition` INT NOT NULL,
    event_type VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    event_data LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    metadata LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    error LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    traceback LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation},
    attempts INT NOT NULL,
    parked_at BIGINT NOT NULL,
    mark VARCHAR(10) CHARACTER SET utf8mb4 COLLATE {collation},
    PRIMARY KEY (subscription, entity_type, entity_id, event_id),
    INDEX {parked_idx} (subscription, mark)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
