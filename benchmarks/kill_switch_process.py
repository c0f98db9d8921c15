"""A kill switch in a process of its own: pauses and resumes a flag until its input ends.

Prints how long each call took, in milliseconds, as a list in JSON.
"""

import json
import sys
import threading
import time

from benchmarks.catalogue import ENVIRONMENT
from flagkit.writer import Writer

KEY = "switch.kill"


def main() -> None:
    """Do it, and print."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    took: list[float] = []
    with Writer(sys.argv[1], ENVIRONMENT, actor="switch") as writer:
        writer.pause(KEY)
        print("ready", flush=True)
        while not ended.is_set():
            for change in (writer.resume, writer.pause):
                started = time.monotonic()
                change(KEY)
                took.append((time.monotonic() - started) * 1000)
                time.sleep(0.02)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
