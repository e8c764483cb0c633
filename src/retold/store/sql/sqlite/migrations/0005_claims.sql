-- The partitions of Kafka that a subscription works: the number under which parked events know one,
-- the word of the member that claimed it last, and the position from which that went on.

CREATE TABLE {claims} (
    subscription TEXT NOT NULL,
    topic TEXT NOT NULL,
    topic_partition INTEGER NOT NULL,
    number INTEGER NOT NULL,
    word TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (subscription, topic, topic_partition),
    UNIQUE (subscription, number)
) WITHOUT ROWID;
