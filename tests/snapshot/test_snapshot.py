"""Snapshots: a change applied is a snapshot built anew."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from flagkit._core.cooperative import run_slices
from flagkit._core.model.changes import (
    Change,
    PolicyChange,
    PolicyId,
    PolicyState,
    build_genesis_tip,
    build_next_change,
    build_state,
)
from flagkit._core.snapshot import (
    Record,
    Snapshot,
    build_arena,
    build_snapshot,
    check_digests,
    compact_snapshot,
    create_snapshot,
    encode_record,
    list_regions,
    list_snapshot_regions,
    unpack_flag,
)
from flagkit._core.snapshot import snapshot as snapshots
from flagkit.errors import HistoryLostError

pytestmark = pytest.mark.every_python

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GENESIS = build_genesis_tip("production", "epoch", NOON)
EVERYWHERE: PolicyId = ("*", "f")
OVERRIDE: PolicyId = ("eu", "f")

Edit: TypeAlias = tuple[PolicyId, int | None]
"""A flag, and the value that it gets; None deletes it."""


class History:
    """Changes, and the states that they lead to."""

    def __init__(self, *revisions: Iterable[Edit]) -> None:
        self.tips = [GENESIS]
        self.changes: list[Change] = []
        self.states: list[dict[PolicyId, PolicyState]] = [{}]
        self._versions: dict[PolicyId, int] = {}
        for edits in revisions:
            self.commit(*edits)

    def commit(self, *edits: Edit) -> Change:
        states = dict(self.states[-1])
        made: list[PolicyChange] = []
        for flag, value in edits:
            before, after = states.pop(flag, None), None
            if value is not None:
                self._versions[flag] = self._versions.get(flag, 0) + 1
                region, key = flag
                document = {"key": key, "variants": {"v": value}, "fallthrough": {"serve": "v"}}
                after = build_state(key, region, self._versions[flag], document)
                states[flag] = after
            if before is not None or after is not None:
                made.append(PolicyChange(before, after))
        change = build_next_change(self.tips[-1], f"request {len(self.tips)}", NOON, made)
        self.tips.append(change.tip)
        self.changes.append(change)
        self.states.append(states)
        return change

    def build(self, revision: int = -1, region: str = "eu") -> Snapshot:
        kept = list_regions(region)
        states = self.states[revision].values()
        return build_snapshot(
            self.tips[revision], region, [each for each in states if each.region in kept]
        )


def held(snapshot: Snapshot) -> list[Record]:
    return sorted(snapshot.iter_records())


def value(snapshot: Snapshot, key: str = "f") -> object:
    found = snapshot.find(key)
    return None if found is None else unpack_flag(found).variants["v"]


def folded(snapshot: Snapshot) -> Snapshot:
    return snapshot.rebase(run_slices(compact_snapshot(snapshot)), snapshot.overlay)


# Overrides


def test_an_override_holds_in_its_region_and_its_end_uncovers_what_holds_everywhere() -> None:
    history = History([(EVERYWHERE, 1)])
    here = history.build(0).apply(history.changes)
    there = history.build(0, "us").apply(history.changes)
    assert (value(here), value(there)) == (1, 1)
    covered = history.commit((OVERRIDE, 2))
    here, there = here.apply([covered]), there.apply([covered])
    assert (value(here), value(there)) == (2, 1)
    below = history.commit((EVERYWHERE, 3))
    here, there = here.apply([below]), there.apply([below])
    assert (value(here), value(there)) == (2, 3)
    uncovered = history.commit((OVERRIDE, None))
    here, there = here.apply([uncovered]), there.apply([uncovered])
    assert (value(here), value(there)) == (3, 3)
    gone = history.commit((EVERYWHERE, None))
    assert here.apply([gone]).find("f") is None


def test_an_override_in_the_base_is_uncovered_too() -> None:
    history = History([(EVERYWHERE, 1), (OVERRIDE, 2)])
    base = history.build()
    assert value(base) == 2
    assert value(base.apply([history.commit((OVERRIDE, None))])) == 1


def test_a_flag_may_hold_in_one_region_only() -> None:
    history = History([(OVERRIDE, 2)])
    assert value(history.build()) == 2
    assert value(history.build(region="us")) is None
    assert value(history.build(region="*")) is None


def test_without_a_region_only_what_holds_everywhere_is_kept() -> None:
    history = History([(EVERYWHERE, 1), (OVERRIDE, 2)])
    snapshot = history.build(0, "*").apply(history.changes)
    assert [record.id for record in held(snapshot)] == [EVERYWHERE]
    assert list_regions("*") == ("*",)
    assert list_regions("eu") == ("eu", "*")


def test_the_keys_are_those_of_both_regions() -> None:
    history = History([(EVERYWHERE, 1), (("eu", "g"), 1), (("us", "h"), 1)])
    assert history.build().list_keys() == ["f", "g"]
    assert history.build(0).apply(history.changes).list_keys() == ["f", "g"]


# Immutability


def test_applying_changes_nothing_in_the_snapshot_before() -> None:
    history = History([(EVERYWHERE, 1)], [(OVERRIDE, 2)])
    before = history.build()
    states = held(before)
    middle = before.apply([history.commit((EVERYWHERE, None), (OVERRIDE, 5))])
    middle_states = held(middle)
    middle.apply([history.commit((OVERRIDE, None), (("eu", "g"), 1))])
    assert held(before) == states
    assert held(middle) == middle_states


def test_applying_nothing_is_the_same_snapshot() -> None:
    snapshot = History([(EVERYWHERE, 1)]).build()
    assert snapshot.apply([]) == snapshot


# Refusals


def test_a_gap_a_repetition_and_a_wrong_order_are_refused() -> None:
    history = History([(EVERYWHERE, 1)], [(EVERYWHERE, 2)], [(EVERYWHERE, 3)])
    first, second, third = history.changes
    start = history.build(0)
    for wrong in ([second], [first, third], [first, first], [second, first]):
        with pytest.raises(HistoryLostError, match="does not continue revision"):
            start.apply(wrong)
    assert value(start.apply([first, second, third])) == 3


def test_an_altered_change_is_refused_whole() -> None:
    history = History([(EVERYWHERE, 1)], [(EVERYWHERE, 2)])
    first, second = history.changes
    altered = replace(second, request="another")
    start = history.build(0)
    with pytest.raises(HistoryLostError):
        start.apply([first, altered])
    assert start.tip == GENESIS
    assert value(start) is None


@pytest.mark.parametrize("before", [None, 7], ids=["absent", "another"])
def test_a_change_of_what_is_not_held_is_refused(before: int | None) -> None:
    # The chain is sound, but the ledger's state before is not the one that was loaded.
    history = History([(EVERYWHERE, 1)])
    snapshot = history.build()
    claimed = before and build_state("f", "*", before, {"key": "f", "value": before})
    after = build_state("f", "*", 2, {"key": "f", "value": 2})
    change = build_next_change(
        snapshot.tip, "request", NOON, [PolicyChange(claimed or None, after)]
    )
    assert change.continues(snapshot.tip)
    with pytest.raises(HistoryLostError, match="f is not as revision 2 found it"):
        snapshot.apply([change])


def test_what_is_not_held_in_other_regions_is_not_asked_for() -> None:
    history = History([(("us", "f"), 1)])
    snapshot = history.build()
    change = history.commit((("us", "f"), 2))
    assert snapshot.apply([change]).tip.revision == 2


# Digests


def test_an_edit_past_the_writer_is_found() -> None:
    history = History([(EVERYWHERE, 1), (OVERRIDE, 2), (("*", "g"), 3)])
    sound = list(history.states[-1].values())
    first, *others = sound
    for edited in (
        [replace(first, packed=first.packed + b"\xc0"), *others],
        [replace(first, version=9), *others],
        [replace(first, key="x"), *others],
        others,
        [*sound, build_state("h", "*", 1, {"key": "h"})],
        [],
    ):
        with pytest.raises(HistoryLostError, match="past the writer"):
            build_snapshot(history.tips[-1], "eu", edited)
    assert held(build_snapshot(history.tips[-1], "eu", sound[::-1])) == held(history.build())


def test_an_edit_in_another_region_is_not_this_ones_concern() -> None:
    history = History([(EVERYWHERE, 1), (("us", "f"), 2)])
    states = [state for state in history.states[-1].values() if state.region == "*"]
    assert build_snapshot(history.tips[-1], "eu", states).list_keys() == ["f"]


def test_digests_are_compared_for_the_regions_that_are_kept() -> None:
    history = History([(EVERYWHERE, 1), (("us", "f"), 2)])
    tip = history.tips[-1]
    check_digests({"*": tip.digests["*"]}, tip, list_snapshot_regions("eu"))
    for region, found in (("us", {"*": tip.digests["*"]}), ("eu", {}), ("eu", {"*": 1})):
        with pytest.raises(HistoryLostError, match=r"the policies of '(us|\*)'"):
            check_digests(found, tip, list_snapshot_regions(region))


# Folding


def test_a_large_overlay_is_to_be_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 4)
    history = History()
    snapshot = history.build()
    sizes: list[tuple[int, int]] = []
    for i in range(10):
        snapshot = snapshot.apply([history.commit((("*", f"f{i}"), i))])
        if snapshot.needs_compaction:
            snapshot = folded(snapshot)
        sizes.append((snapshot.base.count, len(snapshot.overlay)))
        assert held(snapshot) == held(history.build())
    assert sizes == [(0, i) for i in range(1, 5)] + [(5, i) for i in range(5)] + [(10, 0)]


def test_an_overlay_may_grow_with_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 1)
    monkeypatch.setattr(snapshots, "BASE_PER_OVERLAY", 8)
    history = History([(("*", f"f{i}"), i) for i in range(32)])
    snapshot = history.build()
    for i in range(4):
        snapshot = snapshot.apply([history.commit((("*", f"f{i}"), -1))])
        assert not snapshot.needs_compaction
    snapshot = snapshot.apply([history.commit((("*", "f9"), None))])
    assert snapshot.needs_compaction
    assert folded(snapshot).overlay == {}
    assert folded(snapshot).base.count == 31


def test_what_changes_while_an_overlay_is_folded_stays_in_the_overlay() -> None:
    history = History([(("*", key), 1) for key in "abcd"])
    before = history.build().apply([history.commit((("*", "a"), 2), (("*", "b"), None))])
    base = run_slices(compact_snapshot(before))
    after = before.apply([history.commit((("*", "b"), 3), (("*", "c"), None))])
    rebased = after.rebase(base, before.overlay)
    assert set(rebased.overlay) == {("*", "b"), ("*", "c")}
    assert held(rebased) == held(after) == held(history.build())


# Properties

FLAGS = st.tuples(st.sampled_from(["*", "eu", "us"]), st.sampled_from("abc"))
REVISIONS = st.lists(
    st.dictionaries(FLAGS, st.none() | st.integers(0, 9), max_size=4).map(
        lambda edits: list(edits.items())
    ),
    max_size=10,
)


@settings(max_examples=200)
@given(REVISIONS, st.sampled_from(["*", "eu"]), st.data())
def test_applying_is_building_anew(
    revisions: list[list[Edit]], region: str, data: st.DataObject
) -> None:
    history = History(*revisions)
    snapshot = history.build(0, region)
    while snapshot.tip.revision < len(revisions):
        revision = snapshot.tip.revision
        end = data.draw(st.integers(revision + 1, len(revisions)))
        snapshot = snapshot.apply(history.changes[revision:end])
        anew = history.build(end, region)
        if data.draw(st.booleans()):
            snapshot = folded(snapshot)
            assert snapshot.overlay == {}
            check_digests(snapshot.base.header.digests, history.tips[end], region)
            assert snapshot.base.header.counts == anew.base.header.counts
        assert snapshot.tip == anew.tip
        assert held(snapshot) == held(anew)
        assert snapshot.list_keys() == anew.list_keys()
        for key in "abcd":
            assert snapshot.find(key) == anew.find(key)


@settings(max_examples=200)
@given(REVISIONS, st.sampled_from(["*", "eu"]), st.data())
def test_a_base_of_all_regions_answers_as_one_of_its_own(
    revisions: list[list[Edit]], region: str, data: st.DataObject
) -> None:
    history = History(*revisions)
    start = data.draw(st.integers(0, len(revisions)))
    states = history.states[start].values()
    snapshot = create_snapshot(build_arena(history.tips[start], map(encode_record, states)), region)
    for revision in range(start, len(revisions) + 1):
        if revision > start:
            snapshot = snapshot.apply([history.changes[revision - 1]])
        if data.draw(st.booleans()):
            snapshot = folded(snapshot)
            check_digests(snapshot.base.header.digests, history.tips[revision], region)
        own = history.build(revision, region)
        assert snapshot.tip == own.tip
        assert held(snapshot) == held(own)
        for prefix in ("", "a", "d"):
            assert snapshot.list_keys(prefix) == own.list_keys(prefix)
        for key in "abcd":
            assert snapshot.find(key) == own.find(key)


@settings(max_examples=200)
@given(REVISIONS, st.data())
def test_only_the_changes_that_follow_are_applied(
    revisions: list[list[Edit]], data: st.DataObject
) -> None:
    history = History(*revisions)
    at = data.draw(st.integers(0, len(revisions)))
    snapshot = history.build(at)
    chosen = data.draw(st.lists(st.integers(0, len(revisions)), max_size=4))
    changes = [history.changes[i] for i in chosen if i < len(revisions)]
    follows = [change.revision for change in changes] == list(range(at + 1, at + 1 + len(changes)))
    if follows:
        assert snapshot.apply(changes).tip == history.tips[at + len(changes)]
    else:
        with pytest.raises(HistoryLostError):
            snapshot.apply(changes)
