"""A process that publishes numbers until it is killed: python -m tests.relay.publishing.

    BOOTSTRAP NAME TOPIC SEED

Every record holds the next number, and the checkpoint says which is the next. It prints a line
before each transaction, and ends with 3 when it is fenced.
"""

from __future__ import annotations

import random
import sys

from retold.brokers.base import Record
from retold.brokers.kafka import KafkaPublisher
from retold.errors import Fenced

FENCED = 3
_KEYS = 7


def numbered(topic: str, first: int, count: int) -> list[Record]:
    """Records of the next numbers, spread over some keys."""
    return [
        Record(topic, b"key-%d" % (number % _KEYS), b"%d" % number, [("id", b"%d" % number)])
        for number in range(first, first + count)
    ]


def main(bootstrap: str, name: str, topic: str, seed: str) -> int:
    chance = random.Random(int(seed))
    publisher = KafkaPublisher(name, bootstrap)
    saved = publisher.begin()
    publisher.partitions([topic])
    following = int(saved) if saved else 0
    while True:
        count = chance.choice([1, 1, 10, 3000])
        print(following, flush=True)
        try:
            publisher.publish(numbered(topic, following, count), b"%d" % (following + count))
        except Fenced:
            return FENCED
        following += count


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
