-- Events that handlers gave up on, and those of the same entity that wait behind them; parked_at in
-- milliseconds since the epoch, mark what an operator wants: 'retry' or 'skip'.

CREATE TABLE {parked} (
    subscription text COLLATE "C" NOT NULL,
    entity_type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    event_type text NOT NULL,
    event_data text NOT NULL,
    metadata text,
    error text,
    traceback text,
    attempts integer NOT NULL,
    parked_at bigint NOT NULL,
    mark text,
    PRIMARY KEY (subscription, entity_type, entity_id, event_id)
);

CREATE INDEX {parked_idx} ON {parked} (subscription, mark);
