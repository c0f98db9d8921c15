"""Counting client: a client whose every check is counted.

A class of its own, so that the checks of a client that does not count have no test for it.
"""

import time
from collections.abc import Iterator

from flagkit.client import Client
from flagkit.core.contexts import ContextLike
from flagkit.counting import Counting, Counts
from flagkit.forks import Stage, watch
from flagkit.origin import Origin


class CountingClient(Client):
    """A client that counts: `counts` tells how often flags were asked, and how long it takes.

    Arguments and methods are those of Client. A child that was forked counts from its own zero.
    """

    __slots__ = ("_ticks",)

    _ticks: Iterator[None]

    def is_enabled(self, key: str, context: ContextLike = None, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as every peer has it
        """Return the value of a boolean flag, or `default` where there is none. Never raises."""
        try:
            # One step of an iterator counts a check; a call to do so would cost twice as much.
            for _ in self._ticks:
                break
            else:
                return self._is_enabled_timed(key, context, default)
            switch = self._switches[key]
            if switch is True or switch is False:
                return switch
            return switch(context, default)
        except Exception as error:  # noqa: BLE001 - not compiled yet, or what a caller passed misbehaves
            return self._is_enabled_first(key, context, default, error)

    def counts(self) -> Counts:
        """Return how often flags were asked. Never raises."""
        return self._counted().read()

    def go_on_after_fork(self) -> None:
        """Replace what has not survived a fork, and count anew."""
        self._count_from_zero()
        super().go_on_after_fork()

    def _set_up(self, origin: Origin) -> None:
        super()._set_up(origin)
        self._count_from_zero()
        # Not only once it is started: a client of a snapshot is not, and counts.
        watch(self, Stage.STARTED)

    def _counted(self) -> Counting:
        assert self._counting is not None, "it is what makes a client one that counts"
        return self._counting

    def _count_from_zero(self) -> None:
        self._counting = Counting()
        self._ticks = self._counting.lap.ticks

    def _is_enabled_timed(self, key: str, context: ContextLike, default: bool) -> bool:  # noqa: FBT001 - as `is_enabled`
        counting = self._counted()
        # Perhaps older ticks than another thread has put here: they have ended, and lead here.
        self._ticks = counting.after_lap()
        began = time.perf_counter_ns()
        enabled = Client.is_enabled(self, key, context, default)
        counting.record(time.perf_counter_ns() - began)
        return enabled
