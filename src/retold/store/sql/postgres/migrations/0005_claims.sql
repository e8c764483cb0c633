-- The partitions of Kafka that a subscription works: the number under which parked events know one,
-- the word of the member that claimed it last, and the position from which that went on.

CREATE TABLE {claims} (
    subscription text COLLATE "C" NOT NULL,
    topic text COLLATE "C" NOT NULL,
    topic_partition integer NOT NULL,
    number integer NOT NULL,
    word text NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (subscription, topic, topic_partition),
    UNIQUE (subscription, number)
);
