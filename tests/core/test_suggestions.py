"""Suggestions: which names are near, and how environments and lookups in storage tell of them."""

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import SEGMENTS
from flagkit._core.storage import reader
from flagkit._core.suggestions import (
    ENVIRONMENTS_LISTED_MAX,
    NAME_LENGTH_MAX,
    SUGGESTED_MAX,
    environment_not_found,
    nearest,
    suggested,
)
from flagkit.errors import (
    BrokenReferenceError,
    FlagNotFoundError,
    InvalidDocumentError,
    SegmentNotFoundError,
)
from flagkit.writer import Writer

NAMES = st.lists(st.text(max_size=30), max_size=8)


def flag(key: str, **fields: Any) -> dict[str, Any]:
    return {
        "key": key,
        "owner": "search",
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"serve": "off"},
        **fields,
    }


@given(st.text(max_size=30), NAMES)
def test_what_is_near_is_one_of_the_names_and_never_the_name_itself(
    name: str, names: list[str]
) -> None:
    found = nearest(name, names)
    assert set(found) <= set(names) - {name}
    assert len(found) == len(set(found)) <= SUGGESTED_MAX


@given(st.text("abcdefgh.-", min_size=5, max_size=30), st.data())
def test_a_name_with_one_character_too_few_is_near(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    mistyped = name[:at] + name[at + 1 :]
    assert nearest(mistyped, ["0123456789", name]) == [name]


def test_upper_case_and_beginnings_are_near_and_anything_else_is_not() -> None:
    names = ["production", "staging"]
    assert nearest("PRODUCTION", names) == ["production"]
    assert nearest("prod", names) == ["production"]
    assert nearest("elsewhere", names) == []
    assert nearest("pay", ["checkout.express.pay"]) == ["checkout.express.pay"]
    assert nearest("", names) == []
    assert nearest(None, names) == []


def test_long_names_are_not_compared() -> None:
    long = "a" * (NAME_LENGTH_MAX + 1)
    assert nearest(long, [long[:-1]]) == []
    assert nearest(long[:-2], [long]) == []


def test_a_sentence_stays_as_it_is_if_nothing_is_near() -> None:
    assert suggested("There is no x", "x", ["other"]) == "There is no x"
    assert suggested("There is none", "shop", ["shop", "shop.a"]) == "There is none"
    assert suggested("No", "colour", ["color"]) == "No. Did you mean 'color'?"


def test_the_advice_to_create_an_environment_is_for_a_database_with_none_that_is_near() -> None:
    assert "create it once" in str(environment_not_found("production", "flagkit", []))
    near = str(environment_not_found("productoin", "flagkit", ["production", "staging"]))
    assert near.endswith("Did you mean 'production'?")
    assert "create" not in near
    names = [f"team-{number:02}" for number in range(ENVIRONMENTS_LISTED_MAX + 2)]
    other = str(environment_not_found("production", "flagkit", names))
    assert "'team-00', 'team-01'" in other
    assert "'team-09' and 2 more: check the name" in other


def test_a_name_of_an_environment_makes_no_line() -> None:
    told = str(environment_not_found("odd", "flagkit", ["odd\nError: \x1b[2J"]))
    assert "\n" not in told
    assert "\x1b" not in told


@pytest.fixture
def filled(writer: Writer) -> Writer:
    with writer.change() as change:
        change.create_segment({"key": "shop.beta", "included": ["u-1"]})
        for key in ("checkout.enabled", "checkout.express-pay", "shop.search"):
            change.create(flag(key))
    return writer


def near(writer: Writer, key: str, region: str = EVERYWHERE) -> list[str]:
    with writer.store.open_reader() as reading:
        return nearest(key, reading.find_similar_keys((region, key)))


@pytest.mark.mongo
class TestKeysNear:
    def test_flags_and_segments_are_told_apart(self, filled: Writer) -> None:
        with filled.store.open_reader() as reading:
            assert reading.find_similar_keys((SEGMENTS, "a")) == {"shop.beta"}
            flags = {"checkout.enabled", "checkout.express-pay", "shop.search"}
            assert reading.find_similar_keys((EVERYWHERE, "z")) == flags

    def test_deleted_flags_are_not_among_them(self, filled: Writer) -> None:
        filled.archive("shop.search")
        filled.delete("shop.search")
        assert near(filled, "shop.serch") == []

    def test_other_environments_are_not_among_them(self, filled: Writer, mongo_uri: str) -> None:
        database = filled.store._database.name
        name = f"other-{uuid.uuid4().hex}"
        with Writer(mongo_uri, name, actor="tester", database=database) as other:
            other.create_environment()
            with other.store.open_reader() as reading:
                assert reading.find_similar_keys((EVERYWHERE, "shop.serch")) == set()

    @pytest.mark.parametrize(
        "key",
        [
            *("hop.search", "hsop.search", "xshop.search", "zhop.search", "shop.searc"),
            *("shop.search2", "shopsearch", "SHOP.serch"),
        ],
    )
    def test_one_mistake_anywhere_is_found_among_many_flags(
        self, key: str, filled: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reader, "KEYS_AROUND_MAX", 1)
        with filled.change() as change:
            for number in range(5):
                for name in ("a", "hop", "shoa", "shop", "shopz", "xs", "zh", "zz"):
                    change.create(flag(f"{name}.s{number}"))
        assert near(filled, key)[0] == "shop.search"
        with filled.store.open_reader() as reading:
            assert len(reading.find_similar_keys((EVERYWHERE, key))) <= 4

    @pytest.mark.parametrize("key", ["\udce9", "a\0b", "a" * 1_000])
    def test_what_can_be_no_key_is_not_asked_for(self, key: str, filled: Writer) -> None:
        assert near(filled, key) == []


@pytest.mark.mongo
class TestWriter:
    def test_an_unknown_flag_or_segment_is_answered_with_what_is_near(self, filled: Writer) -> None:
        with pytest.raises(FlagNotFoundError, match=r"Did you mean 'checkout\.express-pay'\?"):
            filled.pause("checkout.expres-pay")
        with pytest.raises(SegmentNotFoundError, match=r"Did you mean 'shop\.beta'\?"):
            filled.delete_segment("shop.betas")

    def test_an_unknown_rule_or_variant_is_answered_with_what_is_near(self, filled: Writer) -> None:
        rule = {"name": "germany", "when": {"country": "DE"}, "serve": "on"}
        filled.update(flag("shop.search", rules=[rule]))
        with pytest.raises(InvalidDocumentError, match=r"Did you mean 'germany'\?"):
            filled.serve("shop.search", "on", rule="germny")
        with pytest.raises(InvalidDocumentError, match=r"Did you mean 'off'\?"):
            filled.serve("shop.search", "of")
        with pytest.raises(InvalidDocumentError, match=r"Did you mean 'on'\?"):
            filled.update(flag("shop.search", fallthrough={"rollout": {"weights": {"onn": 100}}}))

    def test_an_unknown_reference_is_answered_with_what_is_near(self, filled: Writer) -> None:
        needs = [{"flag": "shop.serch", "variants": ["on"]}]
        with pytest.raises(BrokenReferenceError, match=r"Did you mean 'shop\.search'\?"):
            filled.create(flag("shop.top", prerequisites=needs))
        needs = [{"flag": "shop.search", "variants": ["onn"]}]
        with pytest.raises(BrokenReferenceError, match=r"Did you mean 'on'\?"):
            filled.create(flag("shop.top", prerequisites=needs))
        rule = {"name": "beta", "when": {"$segment": "shop.bta"}, "serve": "on"}
        with pytest.raises(BrokenReferenceError, match=r"Did you mean 'shop\.beta'\?"):
            filled.create(flag("shop.top", rules=[rule]))
