-- The database as its own broker: the numbered log and the members that share it.

-- broker_trigger_exists --
SELECT 1 FROM information_schema.triggers WHERE trigger_schema = {schema} AND trigger_name = {note_event_name}

-- broker_wait --
SET SESSION lock_wait_timeout = 30

-- make_unnumbered --
-- Types and collations of the ids are those of the events table, whoever made that.
CREATE TABLE IF NOT EXISTS {unnumbered_events} (PRIMARY KEY (event_id)) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
SELECT event_id FROM {events} WHERE 1 = 0

-- make_log --
CREATE TABLE IF NOT EXISTS {event_log} (
position BIGINT NOT NULL, `partition` SMALLINT NOT NULL, PRIMARY KEY (position),
INDEX {event_log_idx} (`partition`, position)) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
SELECT CAST(0 AS SIGNED) AS position, CAST(0 AS SIGNED) AS `partition`, event_id FROM {events} WHERE 1 = 0

-- make_subscriptions --
CREATE TABLE IF NOT EXISTS {subscriptions} (
name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE @collation@ NOT NULL, `partition` SMALLINT NOT NULL,
position BIGINT NOT NULL, owner VARCHAR(255) CHARACTER SET utf8mb4 COLLATE @collation@,
PRIMARY KEY (name, `partition`)) ENGINE = InnoDB ROW_FORMAT = DYNAMIC

-- make_subscribers --
CREATE TABLE IF NOT EXISTS {subscribers} (
name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE @collation@ NOT NULL,
member VARCHAR(255) CHARACTER SET utf8mb4 COLLATE @collation@ NOT NULL, lease_until BIGINT NOT NULL,
PRIMARY KEY (name, member)) ENGINE = InnoDB ROW_FORMAT = DYNAMIC

-- make_numbering --
CREATE TABLE IF NOT EXISTS {numbering} (
id SMALLINT NOT NULL PRIMARY KEY, last_position BIGINT NOT NULL, partitions SMALLINT NOT NULL) ENGINE = InnoDB

-- broker_trigger --
CREATE TRIGGER {note_event} AFTER INSERT ON {events} FOR EACH ROW
INSERT INTO {unnumbered_events} (event_id) VALUES (NEW.event_id) ON DUPLICATE KEY UPDATE event_id = NEW.event_id

-- broker_page --
SELECT max(event_id) FROM (SELECT event_id FROM {events} WHERE event_id > %s ORDER BY event_id LIMIT %s) page

-- broker_fill --
INSERT IGNORE INTO {unnumbered_events} (event_id)
SELECT event_id FROM {events} WHERE event_id > %s AND event_id <= %s

-- broker_ready --
INSERT IGNORE INTO {numbering} (id, last_position, partitions) VALUES (1, 0, %s)

-- broker_counter --
SELECT id FROM {numbering}

-- broker_pause --
-- With another id nobody numbers.
UPDATE {numbering} SET id = 2

-- broker_resume --
UPDATE {numbering} SET id = 1

-- newest_event --
SELECT event_id FROM {events} ORDER BY event_id DESC LIMIT 1

-- is_noted --
-- Near the end of the log, where the newest event nearly always is: there is no index on its ids.
SELECT EXISTS (SELECT 1 FROM {unnumbered_events} WHERE event_id = %s) OR EXISTS (
SELECT 1 FROM {event_log} WHERE event_id = %s AND position > (SELECT max(last_position) - 10000 FROM {numbering}))

-- is_numbered --
SELECT EXISTS (SELECT 1 FROM {event_log} WHERE event_id = %s)

-- broker_fill_missing --
INSERT INTO {unnumbered_events} (event_id)
SELECT e.event_id FROM {events} e LEFT JOIN {event_log} l ON l.event_id = e.event_id
WHERE l.event_id IS NULL AND NOT EXISTS (SELECT 1 FROM {unnumbered_events} u WHERE u.event_id = e.event_id)

-- log_state --
SELECT last_position, partitions, EXISTS (SELECT 1 FROM {unnumbered_events}) FROM {numbering} WHERE id = 1

-- unnumbered_before --
SELECT event_id FROM {unnumbered_events} ORDER BY event_id LIMIT %s

-- unnumbered --
SELECT u.event_id, e.entity_type, e.entity_id
FROM (SELECT event_id FROM {unnumbered_events} ORDER BY event_id LIMIT %s) u
LEFT JOIN {events} e ON e.event_id = u.event_id ORDER BY u.event_id

-- number_claim --
-- Nothing where somebody else numbered since the position was read.
UPDATE {numbering} SET last_position = last_position + %s WHERE id = 1 AND last_position = %s

-- number_mark --
SET @retold_won = ROW_COUNT()

-- number_log --
INSERT INTO {event_log} (position, `partition`, event_id)
SELECT %s + t.n, t.p, t.id FROM JSON_TABLE(%s, '$[*]' COLUMNS (
n FOR ORDINALITY, p SMALLINT PATH '$[0]', id VARCHAR(255) PATH '$[1]')) t
WHERE @retold_won = 1

-- number_done --
-- By the primary key, row for row: a range of it would wait for what others are inserting.
DELETE u FROM {event_log} l STRAIGHT_JOIN {unnumbered_events} u ON u.event_id = l.event_id
WHERE l.position > %s AND l.position <= %s AND @retold_won = 1

-- number_gone --
DELETE FROM {unnumbered_events} WHERE event_id = %s

-- number_won --
SELECT @retold_won

-- log_read --
SELECT l.position, l.`partition`, e.event_id, e.event_type, e.event_data, e.entity_type, e.entity_id, e.metadata
FROM {event_log} l STRAIGHT_JOIN {events} e ON e.event_id = l.event_id
WHERE l.position > %s AND l.position <= %s AND l.`partition` IN %s
AND e.entity_type IN %s AND e.event_type IN %s
ORDER BY l.position

-- log_position_at --
SELECT min(position) - 1 FROM {event_log} WHERE event_id >= %s

-- clock --
SELECT CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)

-- members --
SELECT member, lease_until FROM {subscribers} WHERE name = %s ORDER BY member

-- member_join --
INSERT INTO {subscribers} (name, member, lease_until)
VALUES (%s, %s, CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED) + %s)

-- member_renew --
-- The server counts changed rows, so it must change.
UPDATE {subscribers}
SET lease_until = GREATEST(lease_until + 1, CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED) + %s)
WHERE name = %s AND member = %s

-- member_evict --
DELETE FROM {subscribers} WHERE name = %s AND member = %s AND lease_until = %s

-- member_leave --
DELETE FROM {subscribers} WHERE name = %s AND member = %s

-- shares --
SELECT `partition`, position, owner FROM {subscriptions} WHERE name = %s ORDER BY `partition`

-- share_begin --
INSERT IGNORE INTO {subscriptions} (name, `partition`, position) VALUES (%s, %s, %s)

-- share_claim --
UPDATE {subscriptions} SET owner = %s
WHERE name = %s AND `partition` = %s AND position = %s AND owner <=> %s

-- share_save --
UPDATE {subscriptions} SET position = %s
WHERE name = %s AND `partition` = %s AND owner = %s AND position <= %s

-- share_move --
UPDATE {subscriptions} SET position = %s WHERE name = %s AND `partition` = %s AND owner = %s

-- share_release --
UPDATE {subscriptions} SET owner = NULL WHERE name = %s AND `partition` = %s AND owner = %s

-- shares_release --
UPDATE {subscriptions} SET owner = NULL WHERE name = %s AND owner = %s

-- shares_held --
SELECT `partition`, position FROM {subscriptions} WHERE name = %s AND owner = %s
