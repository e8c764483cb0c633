-- Who works which Kafka partition.

-- claims --
SELECT topic, topic_partition, number, word FROM {claims} WHERE subscription = ?

-- claim_begin --
INSERT INTO {claims} (subscription, topic, topic_partition, number, word, position)
SELECT ?, ?, ?, COALESCE(max(c.number) + 1, 0), '', -1 FROM {claims} c WHERE c.subscription = ?
ON CONFLICT DO NOTHING

-- claim --
UPDATE {claims} SET word = ?, position = ? WHERE subscription = ? AND number = ? AND word = ?

-- claimed --
-- To the end of the transaction nobody else can claim the partition.
SELECT position FROM {claims} WHERE subscription = ? AND number = ? AND word = ?
