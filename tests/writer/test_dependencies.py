"""Dependencies: a proposal is void once a segment or a prerequisite that it rests on has moved."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flagkit.errors import ProposalVoidError
from flagkit.writer import Draft, Writer
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

Ask = Callable[[Draft], object]


def on(*keys: str) -> list[dict[str, Any]]:
    """Return prerequisites."""
    return [{"flag": key, "variants": ["on"]} for key in keys]


def within(segment: str) -> list[dict[str, Any]]:
    """Return rules."""
    return [{"name": "s", "when": {"$segment": segment}, "serve": "off"}]


@pytest.fixture
def shop(writer: Writer) -> Writer:
    """Return a writer of flags that depend on each other, and on segments.

    a.top depends on a.mid, and that on a.low, which has a rule on `build_nested`; a.top has one on
    `staff`. In eu there is another a.mid, which depends on a.eu; and in us an a.top that depends on
    nothing.
    """
    for segment in ("staff", "deep", "later", "other"):
        writer.create_segment({"key": segment, "included": ["ada"]})
    for key in ("a.eu", "a.later", "a.other"):
        writer.create(flag(key))
    writer.create(flag("a.low", rules=within("deep")))
    writer.create(flag("a.mid", prerequisites=on("a.low")))
    writer.create(flag("a.mid", region="eu", prerequisites=on("a.eu")))
    writer.create(flag("a.top", prerequisites=on("a.mid"), rules=within("staff")))
    writer.create(flag("a.top", region="us"))
    return writer


def proposed(writer: Writer, ask: Ask) -> str:
    with writer.proposals.propose(actor="ada") as change:
        ask(change)
    assert change.proposal is not None
    return change.proposal


def top(**more: Any) -> dict[str, Any]:
    return flag("a.top", prerequisites=on("a.mid"), rules=within("staff"), **more)


def off(region: str = "*") -> Ask:
    return lambda draft: draft.update(top(region=region, fallthrough={"serve": "off"}))


def widen(segment: str) -> Ask:
    return lambda draft: draft.update_segment({"key": segment, "when": {}})


def redo(key: str, **more: Any) -> Ask:
    return lambda draft: draft.update(flag(key, owner="somebody", **more))


ANYWHERE: dict[str, Ask] = {
    "the flag of all regions": off(),
    "its metadata": lambda d: d.update(top(owner="ada")),
    "without any of them": lambda d: d.update(flag("a.top")),
}
MOVES: dict[str, tuple[Ask, str, set[str]]] = {
    "a segment": (widen("staff"), "staff", {"*", "eu"}),
    "a segment's members": (
        lambda d: d.change_members("staff", include=["bob"]),
        "staff",
        {"*", "eu"},
    ),
    "a segment of what it depends on": (widen("deep"), "deep", {"*"}),
    "a prerequisite": (redo("a.mid", prerequisites=on("a.low")), "a.mid", {"*"}),
    "a prerequisite's override": (
        redo("a.mid", region="eu", prerequisites=on("a.eu")),
        "a.mid",
        {"*", "eu"},
    ),
    "what the override depends on": (redo("a.eu"), "a.eu", {"*", "eu"}),
    "what a prerequisite depends on": (lambda d: d.pause("a.low"), "a.low", {"*"}),
    "a new override of a prerequisite": (
        lambda d: d.create(flag("a.low", region="asia")),
        "a.low",
        {"*"},
    ),
    "an override where another hides the flag": (
        lambda d: d.create(flag("a.mid", region="us")),
        "",
        set(),
    ),
    "an override that hid the flag": (lambda d: _gone(d, "us"), "a.top", {"*"}),
    "a change of what hides the flag": (redo("a.top", region="us"), "", set()),
    "another flag": (redo("a.other"), "", set()),
    "another segment": (widen("other"), "", set()),
    "what depends on it": (
        lambda d: d.create(flag("a.above", prerequisites=on("a.top"))),
        "",
        set(),
    ),
}


def _gone(draft: Draft, region: str) -> None:
    draft.archive("a.top", region=region)
    draft.delete("a.top", region=region)


def held_to(writer: Writer, ask: Ask, move: Ask, key: str) -> None:
    proposal = proposed(writer, ask)
    writer.proposals.approve(proposal, actor="bob")
    with writer.change(actor="dana") as change:
        move(change)
    if not key:
        assert writer.reader.proposal(proposal).state == "open"
        writer.proposals.apply(proposal)
        return
    for use in (writer.proposals.apply, lambda it: writer.proposals.approve(it, actor="carol")):
        with pytest.raises(ProposalVoidError, match=key) as caught:
            use(proposal)
        assert (caught.value.key, caught.value.actor) == (key, "dana")
    assert writer.reader.proposal(proposal).state == "void"
    (listed,) = writer.reader.proposals()
    assert listed.state == "void"
    assert key in listed.problem
    assert writer.reader.verify() == []


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("asked", ANYWHERE)
def test_a_flag_of_all_regions_depends_on_what_any_of_them_is_served(
    asked: str, move: str, shop: Writer
) -> None:
    does, key, regions = MOVES[move]
    held_to(shop, ANYWHERE[asked], does, key if "*" in regions else "")


@pytest.mark.parametrize("move", MOVES)
def test_an_override_depends_on_what_its_region_is_served(move: str, shop: Writer) -> None:
    does, key, regions = MOVES[move]
    shop.create(top(region="eu"))
    held_to(shop, off("eu"), does, _if("eu", regions, key))


def _if(region: str, regions: set[str], key: str) -> str:
    return key if region in regions else ""


def test_an_override_that_comes_or_goes_depends_on_the_flag_that_it_hides(shop: Writer) -> None:
    ask: Ask = lambda d: d.create(flag("a.top", region="eu"))  # noqa: E731
    held_to(shop, ask, lambda d: d.update(top(owner="eve")), "a.top")


def test_an_override_that_goes_depends_on_what_the_bared_flag_depends_on(shop: Writer) -> None:
    # In us a.mid is that of all regions.
    held_to(shop, lambda d: _gone(d, "us"), widen("deep"), "deep")


def test_what_only_the_proposed_document_refers_to_counts(shop: Writer) -> None:
    ask: Ask = lambda d: d.update(  # noqa: E731
        flag("a.other", prerequisites=on("a.later"), rules=within("later"))
    )
    held_to(shop, ask, widen("later"), "later")


@pytest.mark.parametrize("what", ["a.later", "later"])
def test_what_is_deleted_before_anything_refers_to_it_is_named(what: str, shop: Writer) -> None:
    proposal = proposed(
        shop,
        lambda d: d.update(flag("a.other", prerequisites=on("a.later"), rules=within("later"))),
    )
    shop.proposals.approve(proposal, actor="bob")
    with shop.change() as change:
        if what == "later":
            change.delete_segment("later")
        else:
            change.archive("a.later")
            change.delete("a.later")
    with pytest.raises(ProposalVoidError, match="is not there any more, and was at 1") as caught:
        shop.proposals.apply(proposal)
    assert caught.value.key == what
    assert shop.reader.proposal(proposal).state == "void"


def test_what_a_proposal_itself_changes_is_what_it_touches(shop: Writer) -> None:
    def ask(draft: Draft) -> None:
        draft.update(flag("a.mid", prerequisites=on("a.low"), owner="ada"))
        draft.update(top(owner="ada"))
        draft.update_segment({"key": "staff", "included": ["ada", "bob"]})

    held_to(shop, ask, redo("a.other"), "")


def test_nothing_moves_between_the_look_and_the_commit(
    shop: Writer, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = proposed(shop, off())
    shop.proposals.approve(proposal, actor="bob")
    compare_and_set = shop.store.compare_and_set

    def late(*asked: Any) -> bool:
        monkeypatch.undo()
        with Writer(mongo_uri, "production", actor="eve", database=database) as other:
            other.update_segment({"key": "deep", "when": {}})
        return compare_and_set(*asked)

    monkeypatch.setattr(shop.store, "compare_and_set", late)
    with pytest.raises(ProposalVoidError, match="deep"):
        shop.proposals.apply(proposal)


def test_a_proposal_of_an_earlier_version_has_no_dependencies(shop: Writer) -> None:
    from flagkit.writer.approvals import hash_proposal  # noqa: PLC0415 - of this test alone

    proposal = proposed(shop, off())
    collection = shop.store._database.proposals
    (made,) = collection.find({"_id.proposal": proposal})
    del made["depends"]
    made["digest"] = hash_proposal("ada", made)
    collection.delete_one({"_id": made["_id"]})
    collection.insert_one(made)
    shop.proposals.approve(proposal, actor="bob")
    shop.update_segment({"key": "staff", "when": {}})
    shop.proposals.apply(proposal)
    assert shop.reader.verify() == []


KEYS = ("a.one", "a.two", "a.three")
REGIONS = ("*", "eu")
Placed = dict[tuple[str, str], list[str]]
placed = st.dictionaries(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(REGIONS)),
    st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
    max_size=6,
)


def served(flags: Placed, region: str, key: str) -> set[tuple[str, str]]:
    """Return the flags that an answer of a region depends on, as a book would say it."""
    place = (key, region) if (key, region) in flags else (key, "*")
    found = {place}
    for other in flags[place]:
        found |= served(flags, region, other)
    return found


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=placed,
    root=st.sampled_from(KEYS),
    mover=st.sampled_from(KEYS),
    region=st.sampled_from(REGIONS),
)
def test_a_proposal_is_void_if_and_only_if_an_answer_depends_on_what_moved(
    drawn: Placed, root: str, mover: str, region: str, writer: Writer
) -> None:
    # Only later keys, so that there are no cycles; and each has a flag of all regions.
    flags = {
        (key, place): sorted({other for other in drawn.get((key, place), ()) if other > key})
        for key in KEYS
        for place in REGIONS
        if place == "*" or (key, place) in drawn
    }
    name = f"x{writer.store.read_tip().revision}"
    for (key, place), needed in sorted(flags.items(), reverse=True):
        prerequisites = on(*(f"{name}.{other}" for other in needed))
        document = flag(f"{name}.{key}", region=place, prerequisites=prerequisites)
        writer.create(document | {"fallthrough": {"rollout": 5}})
    moved = (mover, region)
    if moved not in flags or moved == (root, "*"):
        return
    proposal = proposed(writer, lambda d: d.set_rollout(f"{name}.{root}", 50))
    writer.proposals.approve(proposal, actor="bob")
    writer.set_rollout(f"{name}.{mover}", 10, region=region)
    places = [place for place in ("eu", "asia") if (root, place) not in flags]
    expected = any(moved in served(flags, place, root) for place in places)
    with pytest.raises(ProposalVoidError) if expected else contextlib.nullcontext():
        writer.proposals.apply(proposal)
