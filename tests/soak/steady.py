"""A writer that makes revisions at an even pace, whatever happens meanwhile."""

import threading
import time
import uuid
from typing import Self, TypeAlias

from flagkit.errors import StoreUnavailableError
from flagkit.writer import Writer
from tests.support.followers import ENVIRONMENT, FLAG_COUNT, build_followed_flag

Acknowledged: TypeAlias = tuple[str, int, float]
"""A request, the revision that it led to, and when that was known, on the monotonic clock."""


def create_stocked_writer(uri: str, database: str) -> Writer:
    """Return the writer of a new environment that has the flags that are followed."""
    writer = Writer(uri, ENVIRONMENT, actor="soak", database=database)
    writer.create_environment()
    with writer.change() as change:
        for number in range(FLAG_COUNT):
            change.create(build_followed_flag(number))
    return writer


class SteadyWriter:
    """Makes revisions at an even pace, each asked for until it is acknowledged.

    `acknowledged` has what came of it, in order.
    """

    def __init__(self, writer: Writer, rate: float) -> None:
        self.acknowledged: list[Acknowledged] = []
        self._writer = writer
        self._pause_seconds = 1 / rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="writer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        due = time.monotonic()
        for number in range(1_000_000_000):
            # What a failover held up is not made up for: the pace is even, not the count.
            due = max(due + self._pause_seconds, time.monotonic() - self._pause_seconds)
            if self._over.wait(max(due - time.monotonic(), 0)):
                return
            self._make(number)

    def _make(self, number: int) -> None:
        request = uuid.uuid4().hex
        changed = build_followed_flag(number % FLAG_COUNT, description=f"edit {number}")
        while not self._over.is_set():
            try:
                commit = self._writer.update(changed, idempotency_key=request)
            except StoreUnavailableError:
                continue
            self.acknowledged.append((request, commit.revision, time.monotonic()))
            return
