-- What each subscription handles, and who may go on: generation counts the changes of that, wanted and
-- offered are JSON, [[entity type, event type], …], paused_at is in milliseconds since the epoch.

CREATE TABLE {generations} (
    subscription TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    wanted TEXT NOT NULL,
    offered TEXT,
    paused_at INTEGER,
    begun INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- Events that a subscription has passed because it did not handle them then: those behind one place of
-- each partition, up to another, JSON {partition: position}.
CREATE TABLE {missed} (
    subscription TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    event_type TEXT NOT NULL,
    generation INTEGER NOT NULL,
    behind TEXT,
    up_to TEXT,
    events INTEGER,
    whole INTEGER NOT NULL DEFAULT 0,
    backfilled_at INTEGER,
    PRIMARY KEY (subscription, entity_type, event_type)
) WITHOUT ROWID;
