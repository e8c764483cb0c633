-- What each subscription handles, and who may go on: generation counts the changes of that, wanted and
-- offered are JSON, [[entity type, event type], …], paused_at is in milliseconds since the epoch.

CREATE TABLE {generations} (
    subscription text COLLATE "C" PRIMARY KEY,
    generation bigint NOT NULL,
    wanted text NOT NULL,
    offered text,
    paused_at bigint,
    begun smallint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Events that a subscription has passed because it did not handle them then: those behind one place of
-- each partition, up to another, JSON {partition: position}.
CREATE TABLE {missed} (
    subscription text COLLATE "C" NOT NULL,
    entity_type text COLLATE "C" NOT NULL,
    event_type text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    behind text,
    up_to text,
    events bigint,
    whole smallint NOT NULL DEFAULT 0,
    backfilled_at bigint,
    PRIMARY KEY (subscription, entity_type, event_type)
);
