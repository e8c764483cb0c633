"""python -m tests.rig [NAME…]: start servers, print their URLs, end them at Ctrl-C."""

from __future__ import annotations

import shlex
import signal
import sys
import time

from tests.rig import VARIABLES, Rig


def main() -> None:
    names = tuple(sys.argv[1:]) or tuple(VARIABLES)
    if unknown := set(names) - set(VARIABLES):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(VARIABLES)}")
    # SIGTERM as Ctrl-C: the servers end either way, this way in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    with Rig() as rig:
        try:
            rig.want(names)
            for name in names:
                print(f"export {VARIABLES[name]}={shlex.quote(rig[name].url)}", flush=True)
            seconds = time.monotonic() - began
            print(f"# ready in {seconds:.1f} s; Ctrl-C ends them", file=sys.stderr, flush=True)
            while True:
                signal.pause()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
