-- The partitions of Kafka that a subscription works: the number under which parked events know one,
-- the word of the member that claimed it last, and the position from which that went on.

CREATE TABLE IF NOT EXISTS {claims} (
    subscription VARCHAR(100) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    topic VARCHAR(249) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    topic_partition INT NOT NULL,
    number INT NOT NULL,
    word VARCHAR(40) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (subscription, topic, topic_partition),
    UNIQUE INDEX (subscription, number)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
