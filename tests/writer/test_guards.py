"""Guards: what a planned change may not do, what stops no guard, and the glass that is broken."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from flagkit._core.model import decode, encode
from flagkit._core.model.segments import decode_segment, encode_segment
from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    GuardError,
    InvalidArgumentError,
    InvalidDocumentError,
    RequestConflictError,
)
from flagkit.writer import (
    Draft,
    Freeze,
    Guard,
    LargestStep,
    PlannedChange,
    Refusal,
    Required,
    Retention,
    Writer,
)
from flagkit.writer.guards import check_guards
from tests.writer.test_writer import flag

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
"""A Friday."""


def planned(
    before: dict[str, Any] | None, after: dict[str, Any] | None, **more: Any
) -> PlannedChange:
    sides = [None if side is None else dict(encode(decode(side))) for side in (before, after)]
    given: dict[str, Any] = {
        "environment": "production",
        "region": "*",
        "key": "shop.search",
        "action": "release",
        "before": sides[0],
        "after": sides[1],
        "served_before": sides[0],
        "served_after": sides[1],
        "actor": "ada",
        "reason": "",
        "now": NOON,
    }
    return PlannedChange(**{**given, **more})


def rollout(percent: float, **more: Any) -> dict[str, Any]:
    return {"rollout": {"weights": {"on": percent, "off": 100 - percent}, **more}}


def refusal(guard: Guard, plan: PlannedChange) -> str | None:
    try:
        check_guards([guard], [plan])
    except GuardError as error:
        return str(error)
    return None


def without_off(**more: Any) -> dict[str, Any]:
    return {name: value for name, value in flag(**more).items() if name != "off"}


RULE = {"name": "dach", "when": {"country": "DE"}}
STEPS: dict[str, tuple[dict[str, Any], dict[str, Any], float | None]] = {
    "as far as allowed": (
        flag(fallthrough=rollout(10)),
        flag(fallthrough=rollout(35)),
        None,
    ),
    "too far": (flag(fallthrough=rollout(10)), flag(fallthrough=rollout(35.5)), 25.5),
    "too far back": (flag(fallthrough=rollout(90)), flag(fallthrough=rollout(10)), 80),
    "to all": (flag(fallthrough=rollout(10)), flag(), 90),
    "of a paused flag": (
        flag(fallthrough=rollout(10), state="paused"),
        flag(fallthrough=rollout(100), state="paused"),
        None,
    ),
    "resumed, and the ledger does not have what it served": (flag(state="paused"), flag(), 100),
    "resumed to few, and the ledger does not have what it served": (
        flag(state="paused"),
        flag(fallthrough=rollout(20)),
        None,
    ),
    "paused": (flag(), flag(state="paused"), None),
    "archived": (flag(), flag(state="archived"), None),
    "values of variants swapped": (
        flag(fallthrough=rollout(10)),
        flag(fallthrough=rollout(10), variants={"on": False, "off": True}, off="on"),
        100,
    ),
    "names of variants swapped": (
        flag(fallthrough=rollout(10)),
        flag(
            fallthrough={"rollout": {"weights": {"off": 10, "on": 90}}},
            variants={"on": False, "off": True},
            off="on",
        ),
        None,
    ),
    "a variant with another name": (
        flag(),
        flag(variants={"yes": True, "off": False}, fallthrough={"serve": "yes"}),
        None,
    ),
    "another type": (
        flag(fallthrough=rollout(10)),
        flag(fallthrough=rollout(10), variants={"on": 1, "off": 0}),
        100,
    ),
    "another off variant": (flag(fallthrough=rollout(0)), flag(off="on"), 100),
    "another off variant of a paused flag": (
        flag(state="paused"),
        flag(state="paused", off="on"),
        100,
    ),
    "no off variant any more": (flag(), without_off(), 100),
    "an off variant that is false where there was none": (without_off(), flag(), None),
    "an off variant where there was none, of a paused flag": (
        without_off(state="paused"),
        flag(state="paused", off="on"),
        100,
    ),
    "an off variant that most are served already": (
        without_off(fallthrough=rollout(90)),
        flag(fallthrough=rollout(90), off="on"),
        None,
    ),
    "an off variant that few are served": (
        without_off(fallthrough=rollout(10)),
        flag(fallthrough=rollout(10), off="on"),
        90,
    ),
    "an off variant for those who do not meet a prerequisite": (
        without_off(prerequisites=[{"flag": "base", "variants": ["on"]}]),
        flag(prerequisites=[{"flag": "base", "variants": ["on"]}], off="on"),
        100,
    ),
    "mirrored in a new rule": (
        flag(fallthrough=rollout(50)),
        flag(
            rules=[{**RULE, "rollout": {"weights": {"off": 50, "on": 50}}}],
            fallthrough=rollout(50),
        ),
        100,
    ),
    "a rule with another name": (
        flag(rules=[{**RULE, "serve": "on"}], fallthrough={"serve": "off"}),
        flag(rules=[{**RULE, "name": "germany", "serve": "on"}], fallthrough={"serve": "off"}),
        None,
    ),
    "by another attribute than the key": (
        flag(fallthrough={"serve": "off"}),
        flag(fallthrough=rollout(5, by="org.id")),
        100,
    ),
    "served another": (flag(), flag(fallthrough={"serve": "off"}), 100),
    "hashed anew": (
        flag(fallthrough=rollout(50)),
        flag(fallthrough=rollout(50, salt="other")),
        50,
    ),
    "hashed by another attribute": (
        flag(fallthrough=rollout(10)),
        flag(fallthrough=rollout(10, by="country")),
        100,
    ),
    "a ramp as it stands": (
        flag(fallthrough=rollout(0)),
        flag(
            fallthrough={
                "ramp": {
                    "variant": "on",
                    "otherwise": "off",
                    "start": datetime(2026, 1, 2, 6, tzinfo=UTC),
                    "end": datetime(2026, 1, 2, 18, tzinfo=UTC),
                    "from": 0,
                    "to": 100,
                }
            }
        ),
        50,
    ),
    "a rule that is there": (
        flag(rules=[{**RULE, **rollout(10)}], fallthrough={"serve": "off"}),
        flag(rules=[{**RULE, **rollout(60)}], fallthrough={"serve": "off"}),
        50,
    ),
    "a rule that is new": (
        flag(fallthrough={"serve": "off"}),
        flag(rules=[{**RULE, **rollout(30)}], fallthrough={"serve": "off"}),
        30,
    ),
    "a rule that goes": (
        flag(rules=[{**RULE, **rollout(30)}], fallthrough={"serve": "off"}),
        flag(fallthrough={"serve": "off"}),
        30,
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_no_step_is_larger_than_the_largest(case: str) -> None:
    before, after, moved = STEPS[case]
    found = refusal(LargestStep(25), planned(before, after))
    if moved is None or moved <= 25:
        assert found is None
        return
    assert found is not None
    assert f"serves another value to {moved} % of the keys at once" in found
    assert found.endswith("Take steps of at most 25 % (guard LargestStep)")
    assert any(f": {path}:" in found for path in ("rules[0]", "fallthrough", "off"))
    assert refusal(LargestStep(100), planned(before, after)) is None


def test_flags_that_come_and_go_take_no_steps() -> None:
    guard = LargestStep(1)
    assert refusal(guard, planned(None, flag())) is None
    assert refusal(guard, planned(flag(), None)) is None


WINDOW = {
    "days": ["fri", "sat"],
    "hours": {"from": "22:00", "until": "06:00"},
    "zone": "Asia/Tokyo",
}


@pytest.mark.parametrize(
    ("now", "until"),
    [
        (datetime(2026, 1, 2, 12, 59, tzinfo=UTC), None),
        (datetime(2026, 1, 2, 13, 0, tzinfo=UTC), "2026-01-02T21:00:00+00:00"),
        (datetime(2026, 1, 2, 20, 59, tzinfo=UTC), "2026-01-02T21:00:00+00:00"),
        (datetime(2026, 1, 2, 21, 0, tzinfo=UTC), None),
        (datetime(2026, 1, 3, 14, 0, tzinfo=UTC), "2026-01-03T21:00:00+00:00"),
        (datetime(2026, 1, 4, 14, 0, tzinfo=UTC), None),
    ],
)
def test_a_freeze_is_by_the_clock_of_its_zone(now: datetime, until: str | None) -> None:
    found = refusal(Freeze(WINDOW), planned(flag(), flag(owner="ada"), now=now))
    assert (found is None) == (until is None)
    assert found is None or f"is frozen. Wait until {until}" in found


def test_a_freeze_without_an_end_says_what_can_be_done() -> None:
    freeze = Freeze({"from": datetime(2026, 1, 1, tzinfo=UTC)})
    found = refusal(freeze, planned(flag(), None))
    assert found == "flag 'shop.search': is frozen. Pause it (guard Freeze)"


def test_what_is_required_must_be_there() -> None:
    guard = Required("owner", "expires", "reason")
    whole = flag(owner="ada", expires=NOON)
    assert refusal(guard, planned(None, whole, reason="launch")) is None
    assert refusal(guard, planned(whole, None, reason="done")) is None
    for plan, path in (
        (planned(None, flag(expires=NOON), reason="launch"), "owner"),
        (planned(whole, flag(owner="ada"), reason="launch"), "expires"),
        (planned(None, whole, reason=" "), "reason"),
    ):
        with pytest.raises(GuardError) as caught:
            check_guards([guard], [plan])
        assert (caught.value.guard, caught.value.path) == ("Required", path)
        assert path in caught.value.remedy


def test_of_segments_nothing_is_required_that_they_have_not() -> None:
    document = dict(encode_segment(decode_segment({"key": "staff", "owner": "ada"}).segment))
    given = planned(None, None, region="@segments", key="staff")
    plan = msgspec.structs.replace(given, after=document)
    assert refusal(Required("expires", "owner"), plan) is None
    assert refusal(LargestStep(1), plan) is None
    found = refusal(Required("tags"), plan)
    assert found == "segment 'staff': tags: is missing. Write tags in the document (guard Required)"


def test_guards_that_make_no_sense_are_not_made() -> None:
    with pytest.raises(ConfigurationError, match="write percent"):
        LargestStep(0)
    with pytest.raises(ConfigurationError, match="what can be required is owner, description"):
        Required("budget")  # type: ignore[arg-type]
    with pytest.raises(InvalidDocumentError, match=r"during\.zone"):
        Freeze({"days": ["sat"], "zone": "Mars/Base"})


def not_by_bots(plan: PlannedChange) -> Refusal | None:
    """Refuse what bots do to live flags."""
    if plan.actor.endswith("bot") and plan.action == "release":
        return Refusal("state", "is live", "Have a person do it")
    return None


def guarded(mongo_uri: str, database: str, *guards: Guard, actor: str = "deploy-bot") -> Writer:
    return Writer(mongo_uri, "production", actor=actor, database=database, guards=guards)


@contextlib.contextmanager
def broken_glass(writer: Writer, **named: Any) -> Iterator[Draft]:
    with writer.change(**named) as change:
        change.bypass_guards("in a hurry")
        yield change


@pytest.mark.mongo
def test_a_function_is_a_guard(writer: Writer, mongo_uri: str, database: str) -> None:
    writer.create(flag())
    before = writer.store.read_tip()
    with guarded(mongo_uri, database, not_by_bots) as bot:
        with pytest.raises(GuardError) as caught:
            bot.update(flag(fallthrough={"serve": "off"}))
        assert str(caught.value) == (
            "flag 'shop.search': state: is live. Have a person do it (guard not_by_bots)"
        )
        assert writer.store.read_tip() == before
        assert bot.update(flag(owner="ada")).revision == 2


@pytest.mark.mongo
def test_guards_are_told_all_of_a_change(writer: Writer, mongo_uri: str, database: str) -> None:
    seen: list[PlannedChange] = []

    def see(plan: PlannedChange) -> None:
        seen.append(plan)

    writer.create(flag())
    with (
        guarded(mongo_uri, database, see) as bot,
        bot.change(reason="launch") as change,
    ):
        change.update(flag(owner="ada"))
        change.create(flag("shop.new", region="eu"))
        change.create_segment({"key": "shop.staff"})
    told = [(plan.key, plan.region, plan.action, plan.actor, plan.reason) for plan in seen]
    assert told == [
        ("shop.search", "*", "edit", "deploy-bot", "launch"),
        ("shop.new", "eu", "release", "deploy-bot", "launch"),
        ("shop.staff", "@segments", "edit", "deploy-bot", "launch"),
    ]
    assert seen[0].before is not None
    assert seen[0].after == {**seen[0].before, "owner": "ada"}
    assert seen[1].before is None
    assert {plan.environment for plan in seen} == {"production"}
    assert change.commit is not None
    assert all(plan.now <= change.commit.time for plan in seen)


@pytest.mark.mongo
def test_no_guard_stops_the_kill_switch_nor_a_revocation(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    always = Freeze({"from": datetime(2020, 1, 1, tzinfo=UTC)})
    writer.create(flag())
    with guarded(mongo_uri, database, always, Required("reason"), actor="ada") as ada:
        with ada.change() as change:
            change.grant("ada", "admin")
            change.set_limit("actor", capacity=100, rate=1)
        ada.pause("shop.search")
        ada.pause("shop.search")
        with pytest.raises(GuardError, match="is frozen"):
            ada.resume("shop.search")
        with pytest.raises(GuardError, match="is frozen"), ada.change() as change:
            change.update(flag(owner="ada", state="paused"))
    assert writer.store.read_tip().revision == 4


@pytest.mark.mongo
def test_the_glass_is_broken_loudly_and_on_record(
    writer: Writer, mongo_uri: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    always = Freeze({"from": datetime(2020, 1, 1, tzinfo=UTC)})
    writer.create(flag())
    with (
        caplog.at_level(logging.WARNING, "flagkit.writer"),
        guarded(mongo_uri, database, always, actor="ada") as ada,
        ada.change(reason="fix") as change,
    ):
        change.bypass_guards("incident 7: checkout is down")
        change.update(flag(fallthrough={"serve": "off"}))
    assert caplog.messages == [
        "ada broke the glass for revision 2 of production: incident 7: checkout is down"
    ]
    first, second = writer.reader.entries()
    assert (first.bypass_reason, second.bypass_reason) == ("", "incident 7: checkout is down")
    assert second.reason == "fix"
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_who_may_not_release_may_not_break_the_glass(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    with writer.change() as change:
        change.create(flag(state="paused"))
        change.grant("tester", "admin")
        change.grant("ada", "editor")
    with guarded(mongo_uri, database, actor="ada") as ada:
        ada.update(flag(state="paused", owner="ada"))
        with (
            pytest.raises(AccessDeniedError, match=r"may not break glass for shop\.search"),
            broken_glass(ada) as change,
        ):
            change.update(flag(state="paused", owner="bob"))


@pytest.mark.mongo
def test_a_request_does_not_break_the_glass_unrecorded(writer: Writer) -> None:
    writer.create(flag(), idempotency_key="deploy-7")
    with (
        pytest.raises(RequestConflictError),
        broken_glass(writer, idempotency_key="deploy-7") as change,
    ):
        change.create(flag())


def test_the_glass_is_not_broken_without_a_word() -> None:
    with pytest.raises(InvalidArgumentError, match="write why the guards are bypassed"):
        Draft("production").bypass_guards(" ")


@pytest.fixture
def careful(writer: Writer, mongo_uri: str, database: str) -> Iterator[Writer]:
    """A writer of the same environment that takes steps of 10 % at most."""
    del writer
    with guarded(mongo_uri, database, LargestStep(10)) as careful:
        yield careful


def is_refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except GuardError:
        return True
    return False


Steps = Callable[[Writer, Writer], Iterator[bool]]
"""Yields, step by step, whether a careful writer is refused; the other writer has no guards."""


def resume_what_was_active(free: Writer, careful: Writer) -> Iterator[bool]:
    free.create(flag())
    yield is_refused(lambda: careful.pause("shop.search"))
    free.update(flag(owner="ada"))
    yield is_refused(lambda: careful.resume("shop.search"))
    yield is_refused(lambda: careful.archive("shop.search"))
    free.update(flag(owner="bob"))
    yield is_refused(lambda: careful.restore("shop.search"))
    yield is_refused(lambda: careful.resume("shop.search"))


def resume_what_was_edited_meanwhile(free: Writer, careful: Writer) -> Iterator[bool]:
    free.create(flag(fallthrough=rollout(1)))
    free.pause("shop.search")
    free.set_rollout("shop.search", 12)
    free.set_rollout("shop.search", 11)
    yield is_refused(lambda: careful.resume("shop.search"))
    free.pause("shop.search")
    free.set_rollout("shop.search", 22)
    yield not is_refused(lambda: careful.resume("shop.search"))
    yield not is_refused(lambda: careful.update(flag(state="active")))


def resume_what_was_never_active(free: Writer, careful: Writer) -> Iterator[bool]:
    free.create(flag(state="paused"))
    yield not is_refused(lambda: careful.resume("shop.search"))
    free.create(flag("shop.few", state="paused", fallthrough=rollout(10)))
    yield is_refused(lambda: careful.resume("shop.few"))
    # It has served nobody, as a flag that is new.
    free.create(flag("shop.new", state="paused", off=None))
    yield is_refused(lambda: careful.resume("shop.new"))


def override_a_region(free: Writer, careful: Writer) -> Iterator[bool]:
    free.create(flag(fallthrough=rollout(1)))
    yield not is_refused(lambda: careful.create(flag(region="eu")))
    yield is_refused(lambda: careful.create(flag(region="eu", fallthrough=rollout(11))))
    free.archive("shop.search", region="eu")
    # Its callers have `off` now, and would have what all regions have.
    yield is_refused(lambda: careful.delete("shop.search", region="eu"))
    free.create(flag(region="us", state="archived"))
    free.set_rollout("shop.search", 50)
    yield not is_refused(lambda: careful.delete("shop.search", region="us"))


def override_what_changes_with_it(free: Writer, careful: Writer) -> Iterator[bool]:
    free.create(flag(fallthrough=rollout(1)))
    free.create(flag(region="eu", state="archived"))

    def both() -> None:
        with careful.change() as change:
            change.set_rollout("shop.search", 11)
            change.delete("shop.search", region="eu")

    yield not is_refused(both)


def delete_and_create_again(free: Writer, careful: Writer) -> Iterator[bool]:
    free.create(flag(fallthrough=rollout(1)))
    yield is_refused(lambda: careful.archive("shop.search"))
    yield is_refused(lambda: careful.delete("shop.search"))
    yield not is_refused(lambda: careful.create(flag()))
    yield not is_refused(lambda: careful.create(flag(state="active", fallthrough=rollout(12))))
    yield is_refused(lambda: careful.create(flag(fallthrough=rollout(11))))

    def at_once() -> None:
        with careful.change() as change:
            change.archive("shop.search")
            change.delete("shop.search")
            change.create(flag())

    yield not is_refused(at_once)


def roll_back(free: Writer, careful: Writer) -> Iterator[bool]:
    free.create(flag())
    free.update(flag(fallthrough=rollout(1)))
    yield not is_refused(lambda: careful.rollback("shop.search", to=1))
    free.pause("shop.search")
    yield not is_refused(lambda: careful.rollback("shop.search", to=1))
    yield is_refused(lambda: careful.rollback("shop.search", to=2))


WAYS: list[Steps] = [
    resume_what_was_active,
    resume_what_was_edited_meanwhile,
    resume_what_was_never_active,
    override_a_region,
    override_what_changes_with_it,
    delete_and_create_again,
    roll_back,
]


@pytest.mark.mongo
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_way_leads_around_the_largest_step(way: Steps, writer: Writer, careful: Writer) -> None:
    # Each way says what would be wrong.
    assert not any([*way(writer, careful)])


@pytest.mark.mongo
def test_a_resumed_flag_is_judged_by_off_where_the_ledger_was_pruned(
    writer: Writer, careful: Writer
) -> None:
    writer.create(flag())
    writer.pause("shop.search")
    writer.create(flag("shop.other"))
    later = datetime.now(UTC) + timedelta(days=400)
    writer.prune(Retention(ledger_days=1), now=later)
    with writer.preview() as change:
        change.resume("shop.search")
    assert change.preview is not None
    assert change.preview.notes == (
        "shop.search: the ledger no longer has what it served when it was last active",
    )
    with pytest.raises(GuardError, match="serves another value to 100 % of the keys"):
        careful.resume("shop.search")


@pytest.mark.mongo
def test_guards_are_told_by_what_callers_are_served(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    seen: list[PlannedChange] = []
    writer.create(flag())
    writer.pause("shop.search")
    writer.update(flag(owner="ada"))
    with guarded(mongo_uri, database, seen.append) as bot:
        bot.resume("shop.search")
        bot.create(flag(region="eu"))
    resumed, override = seen
    assert resumed.before is not None
    assert resumed.served_before is not None
    assert (resumed.before["state"], resumed.before["owner"]) == ("paused", "ada")
    assert (resumed.served_before["state"], resumed.served_before.get("owner")) == ("active", None)
    assert override.before is None
    assert override.served_before == resumed.after
