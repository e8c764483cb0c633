"""A process that stands by, leads, and says so: python -m tests.relay.leading URL NAME.

It gives the lock back when its standard input is closed.
"""

from __future__ import annotations

import sys
import threading
from contextlib import closing

from retold.drivers import open_driver
from retold.errors import LeadershipLost
from retold.relay.leadership import DatabaseLeadership
from retold.store.url import parse_url


def main(url: str, name: str) -> None:
    told = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        told.set()

    threading.Thread(target=wait, daemon=True).start()
    with closing(open_driver(parse_url(url))) as driver:
        leadership = DatabaseLeadership(driver, name)
        if not leadership.acquire(told):
            return
        print("leads", flush=True)
        try:
            while not told.wait(0.02):
                leadership.check()
        except LeadershipLost:
            print("lost", flush=True)
        finally:
            leadership.release()
        print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
