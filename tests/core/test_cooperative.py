"""Pauses of the collector, which leave it as the application wants it, and work in slices."""

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagkit._core.aio import cancel_task, run_cooperatively
from flagkit._core.cooperative import (
    PAUSED_THRESHOLD,
    pace_slices,
    pause_gc,
    run_slices,
    split_batches,
)

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


def count_to(last: int) -> Generator[int, None, str]:
    yield from range(1, last + 1)
    return "done"


def test_work_in_slices_tells_of_each_slice() -> None:
    seen: list[int] = []
    assert run_slices(count_to(3), seen.append) == "done"
    assert seen == [1, 2, 3]


def test_paced_work_pauses_after_each_slice_and_ends_with_its_pause() -> None:
    pauses: list[float] = []
    seen: list[int] = []
    assert run_slices(pace_slices(count_to(3), pauses.append), seen.append) == "done"
    assert seen == [1, 2, 3]
    assert len(pauses) == 3
    assert min(pauses) >= 0

    def stop(_: float) -> None:
        raise InterruptedError

    slices = count_to(3)
    with pytest.raises(InterruptedError):
        run_slices(pace_slices(slices, stop))
    assert next(slices) == 2, "it was left after the first slice"


@pytest.mark.parametrize("is_paced", [False, True])
def test_other_tasks_run_between_the_slices_of_cooperative_work(*, is_paced: bool) -> None:
    seen: list[int] = []

    def work() -> Generator[None, None, list[int]]:
        for _ in range(3):
            seen.append(0)
            yield
        return seen

    async def watch() -> None:
        while True:
            seen.append(1)
            await asyncio.sleep(0)

    async def main() -> list[int]:
        other = asyncio.ensure_future(watch())
        await run_cooperatively(work(), is_paced=is_paced)
        await cancel_task(other)
        return seen

    found = asyncio.run(main())
    assert found.count(0) == 3
    assert all(1 in found[at:] for at, item in enumerate(found) if item == 0)


def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    async def resist() -> None:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        raise ValueError("nobody reads it")

    async def main() -> asyncio.Future[None]:
        task = asyncio.ensure_future(resist())
        await asyncio.sleep(0)
        await cancel_task(task)
        await cancel_task(task)
        return task

    assert asyncio.run(main()).done()


@given(st.lists(st.integers()), st.integers(1, 7))
def test_batches_are_the_items_in_lists_of_a_size(items: list[int], size: int) -> None:
    batches = [*split_batches(iter(items), size)]
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches[-1:])
