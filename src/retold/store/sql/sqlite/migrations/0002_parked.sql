-- Events that handlers gave up on, and those of the same entity that wait behind them; parked_at in
-- milliseconds since the epoch, mark what an operator wants: 'retry' or 'skip'.

CREATE TABLE {parked} (
    subscription TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    event_data TEXT NOT NULL,
    metadata TEXT,
    error TEXT,
    traceback TEXT,
    attempts INTEGER NOT NULL,
    parked_at INTEGER NOT NULL,
    mark TEXT,
    PRIMARY KEY (subscription, entity_type, entity_id, event_id)
) WITHOUT ROWID;

CREATE INDEX {parked_idx} ON {parked} (subscription, mark);
