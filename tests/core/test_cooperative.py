"""Collector: paused for a block, and always left as the application wants it."""

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagkit._core.cooperative import PAUSED_THRESHOLD, pause_gc

pytestmark = pytest.mark.every_python

FIRST, SECOND, THIRD = 700, 10, 10


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    was_enabled, thresholds = gc.isenabled(), gc.get_threshold()
    gc.enable()
    gc.set_threshold(FIRST, SECOND, THIRD)
    yield
    gc.set_threshold(*thresholds)
    (gc.enable if was_enabled else gc.disable)()


def runs() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_the_collector_does_not_run_in_a_pause() -> None:
    with pause_gc():
        before = runs()
        kept = [[number] for number in range(100_000)]
        assert runs() == before
    kept += [[number] for number in range(1_000)]
    assert runs() > before


STEPS = ["begin", "end", "disable", "enable", "threshold"]


@given(st.lists(st.sampled_from(STEPS), max_size=12))
def test_what_the_application_asks_for_in_a_pause_stays(steps: list[str]) -> None:
    gc.enable()
    gc.set_threshold(FIRST, SECOND, THIRD)
    is_enabled, thresholds = True, (FIRST, SECOND, THIRD)
    pauses: list[contextlib.ExitStack] = []
    for number, step in enumerate(steps):
        if step == "begin":
            pauses.append(contextlib.ExitStack())
            pauses[-1].enter_context(pause_gc())
        elif step == "end" and pauses:
            # The oldest first, as pauses of several threads may end.
            pauses.pop(0).close()
        elif step == "disable":
            gc.disable()
            is_enabled = False
        elif step == "enable":
            gc.enable()
            is_enabled = True
        elif step == "threshold":
            thresholds = (1_000 + number, 20 + number, 30)
            gc.set_threshold(*thresholds)
        assert gc.isenabled() is is_enabled
    for pause in pauses:
        pause.close()
    assert (gc.isenabled(), gc.get_threshold()) == (is_enabled, thresholds)


def test_what_disables_the_collector_in_another_thread_is_not_undone() -> None:
    entered, disabled = threading.Event(), threading.Event()

    def pause() -> None:
        with pause_gc():
            entered.set()
            assert disabled.wait(10)

    thread = threading.Thread(target=pause)
    thread.start()
    assert entered.wait(10)
    gc.disable()
    disabled.set()
    thread.join(10)
    assert not gc.isenabled()


def test_a_threshold_that_was_read_in_a_pause_and_set_later_is_mended_by_the_next_pause() -> None:
    with pause_gc():
        thresholds = gc.get_threshold()
    gc.set_threshold(*thresholds)
    with pause_gc():
        assert gc.get_threshold()[0] == PAUSED_THRESHOLD
    assert gc.get_threshold() == (FIRST, SECOND, THIRD)


def test_a_collector_that_never_runs_by_itself_stays_so() -> None:
    gc.set_threshold(0)
    with pause_gc():
        assert gc.get_threshold()[0] == 0
    assert gc.get_threshold()[0] == 0


def test_what_is_frozen_stays_frozen() -> None:
    with pause_gc():
        kept = [[number] for number in range(1_000)]
        gc.freeze()
    try:
        assert gc.get_freeze_count() >= len(kept)
    finally:
        gc.unfreeze()


def test_a_child_forked_in_a_pause_has_its_collector() -> None:
    with pause_gc():
        child = os.fork()
        if child == 0:
            os._exit(0 if gc.get_threshold() == (FIRST, SECOND, THIRD) else 1)
    assert os.waitpid(child, 0)[1] == 0
