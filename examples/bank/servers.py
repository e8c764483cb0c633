"""The bank with a database server and Kafka: `make demo-kafka`.

RETOLD_DATABASE_URL and RETOLD_KAFKA name those that are there; private ones are started for what is not
named, by the tests' rig, and end with this.

    python -m examples.bank.servers [mysql | mariadb | postgres] [options of examples.bank]
"""

from __future__ import annotations

import os
import sys

from examples.bank import __main__ as bank
from tests.rig import Rig
from tests.rig.databases import with_parts

_KINDS = {"mysql": "mysql8", "mariadb": "mariadb", "postgres": "postgres18"}


def main() -> int:
    chosen = sys.argv.pop(1) if sys.argv[1:] and not sys.argv[1].startswith("-") else "mysql"
    if chosen not in _KINDS:
        print(f"{chosen!r} is no database: {', '.join(_KINDS)}", file=sys.stderr)
        return 2
    kind = _KINDS[chosen]
    with Rig() as rig:
        wanted = {"RETOLD_DATABASE_URL": kind, "RETOLD_KAFKA": "kafka"}
        missing = [name for variable, name in wanted.items() if not os.environ.get(variable)]
        if missing:
            print(f"== starting {' and '.join(missing)}", flush=True)
            rig.want(missing)
        if kind in missing:
            rig[kind].create_database("bank")
            # Its administrator, who may read the log.
            os.environ["RETOLD_DATABASE_URL"] = with_parts(rig[kind].url, database="bank")
        if "kafka" in missing:
            os.environ["RETOLD_KAFKA"] = rig.kafka.url
        return bank.main()


if __name__ == "__main__":
    sys.exit(main())
