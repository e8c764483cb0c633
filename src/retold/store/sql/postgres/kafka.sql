-- Who works which Kafka partition.

-- claims --
SELECT topic, topic_partition, number, word FROM {claims} WHERE subscription = %s

-- claim_begin --
INSERT INTO {claims} (subscription, topic, topic_partition, number, word, position)
SELECT CAST(%s AS text), CAST(%s AS text), CAST(%s AS integer), COALESCE(max(c.number) + 1, 0), '', -1 FROM {claims} c WHERE c.subscription = %s
ON CONFLICT DO NOTHING

-- claim --
UPDATE {claims} SET word = %s, position = %s WHERE subscription = %s AND number = %s AND word = %s

-- claimed --
-- To the end of the transaction nobody else can claim the partition.
SELECT position FROM {claims} WHERE subscription = %s AND number = %s AND word = %s FOR UPDATE
