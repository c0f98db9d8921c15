"""Text of others: shown with escapes; in errors, explanations and logs as well."""

import ast
import io
import logging
import logging.config
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient

from flagkit import errors
from flagkit._core.background import get_logger
from flagkit._core.printable import format_traceback, to_printable
from flagkit.errors import FlagkitError, InvalidDocumentError
from flagkit.testing import client_from
from flagkit.writer import Writer
from tests.support.hostile import FORGED, HOSTILE, LEGITIMATE, STORABLE, assert_harmless

SOURCE = Path(__file__).parents[2] / "src" / "flagkit"
STAMP = "STAMP "
"""What each line of a log begins with here, so that no other line can be one."""


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items(), ids=map(ascii, HOSTILE))
def test_what_a_terminal_obeys_or_nobody_sees_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert to_printable(f"a{text}b") == f"a{shown}b"


@pytest.mark.parametrize("text", LEGITIMATE)
def test_text_that_people_write_stays_as_it_is(text: str) -> None:
    assert to_printable(text) == text


@given(st.text())
def test_what_was_made_printable_is_harmless_and_stays_as_it_is(text: str) -> None:
    shown = to_printable(text)
    assert_harmless(shown)
    assert shown.splitlines() in ([], [shown])
    assert to_printable(shown) == shown


@given(st.characters())
def test_no_control_format_or_surrogate_character_is_shown(character: str) -> None:
    category = unicodedata.category(character)
    if category in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}:
        assert to_printable(character) == ascii(character)[1:-1]
    elif category[0] in "LNPSZ" and "FILLER" not in unicodedata.name(character, ""):
        assert to_printable(character) == character


def test_a_selector_of_colour_stays_behind_a_symbol_alone() -> None:
    assert to_printable("\u26a0\ufe0f") == "\u26a0\ufe0f"
    assert to_printable("on\ufe0f") == "on\\ufe0f"
    assert to_printable("\ufe0f") == "\\ufe0f"


# Errors


def each_error() -> Iterator[FlagkitError]:
    """Yield an error of each class that is made of one text."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, FlagkitError):
            if kind.__init__ is FlagkitError.__init__:
                yield kind(FORGED)
            else:
                made = kind.__new__(kind)
                BaseException.__init__(made, FORGED)
                if isinstance(made, InvalidDocumentError):
                    made.path, made.problem, made.remedy, made.subject = FORGED, FORGED, "", ""
                yield made


@pytest.mark.parametrize("error", [*each_error()], ids=lambda error: type(error).__name__)
def test_the_text_of_each_error_is_one_harmless_line(error: FlagkitError) -> None:
    assert "CRITICAL" in str(error)
    assert_harmless(str(error))
    assert error.args


def test_a_traceback_gives_the_text_of_an_error_no_line_of_its_own() -> None:
    def fail() -> None:
        try:
            Path(FORGED).read_text()
        except ValueError as error:
            failed = KeyError(FORGED)
            failed.add_note(FORGED)
            raise ExceptionGroup("several", [failed, ValueError(FORGED)]) from error

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    told = format_traceback(caught.value)
    assert told.count("CRITICAL") == 3
    assert not re.search(r"^(\d|CRITICAL)", told, re.MULTILINE)
    assert "direct cause" in told
    assert "in fail" in told
    for line in told.split("\n"):
        assert_harmless(line)


def test_a_chain_of_errors_that_leads_back_to_itself_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert format_traceback(one).splitlines()[0] == "ValueError: two"


class SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_an_error_without_a_text_is_named_by_its_class() -> None:
    assert "<SilentError without a text>" in format_traceback(SilentError())


# Explanations


def test_an_explanation_shows_escapes_as_text_and_the_data_as_it_is() -> None:
    document = {
        "key": "shop.theme",
        "variants": {f"on{STORABLE}": STORABLE, "off": "off"},
        "rules": [{"name": "r", "when": {f"name{STORABLE}": STORABLE}, "serve": f"on{STORABLE}"}],
        "fallthrough": {"serve": "off"},
    }
    found = client_from([document]).explain("shop.theme", {f"name{STORABLE}": STORABLE}, "x")
    assert found.evaluation.value == STORABLE
    assert found.flags[0].variant == f"on{STORABLE}"
    for line in str(found).split("\n"):
        assert_harmless(line)
    for key in (f"shop.{FORGED}", FORGED):
        assert_harmless(str(client_from([]).explain(key, FORGED, FORGED)).replace("\n", ""))


# Logs


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Give what a plain handler writes of flagkit's records, each line of it with a stamp."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(f"{STAMP}%(message)s"))
    root = logging.getLogger("flagkit")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


ARGUMENTS: list[tuple[str, tuple[Any, ...]]] = [
    ("%s", (FORGED,)),
    ("%r", (FORGED,)),
    ("%s at %d, %.1f", (FORGED, 3, 0.5)),
    ("%s", (ValueError(FORGED),)),
    ("%s", ([FORGED],)),
    ("%(key)s", ({"key": FORGED},)),
    ("%s", (Path(FORGED.replace("\0", "")),)),
    (FORGED.replace("%", ""), ()),
]


@pytest.mark.parametrize(("message", "arguments"), ARGUMENTS)
@pytest.mark.parametrize("name", ["flagkit", "flagkit.refresh", "flagkit.writer"])
def test_no_argument_of_a_record_makes_a_line_or_an_escape(
    name: str, message: str, arguments: tuple[Any, ...], written: io.StringIO
) -> None:
    get_logger(name).warning(message, *arguments)
    line = written.getvalue().removesuffix("\n")
    assert line.startswith(STAMP)
    assert "CRITICAL" in line
    assert_harmless(line)


def test_the_traceback_of_a_record_has_no_line_that_its_error_made(written: io.StringIO) -> None:
    try:
        Path("\0").read_text()
    except ValueError as error:
        error.args = (FORGED,)
        get_logger("flagkit.refresh").warning("not current: %s", error, exc_info=error)
    lines = written.getvalue().removesuffix("\n").split("\n")
    assert lines[1] == "Traceback (most recent call last):"
    assert [line.startswith(STAMP) for line in lines] == [True] + [False] * (len(lines) - 1)
    assert not any(line.startswith("2026") for line in lines)
    for line in lines:
        assert_harmless(line)


def test_an_argument_that_has_no_text_fails_no_call(written: io.StringIO) -> None:
    get_logger("flagkit").warning("%s", SilentError())
    assert written.getvalue() == f"{STAMP}<SilentError without a text>\n"


def test_the_configuration_of_an_application_leaves_records_printable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger("flagkit")
    before = root.handlers[:], root.propagate, root.level
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"plain": {"class": "logging.StreamHandler"}},
                "loggers": {"flagkit": {"handlers": ["plain"], "level": "DEBUG"}},
            }
        )
        get_logger("flagkit").warning("%s", FORGED)
    finally:
        root.handlers[:], root.propagate, root.level = before
    said = capsys.readouterr().err
    assert "CRITICAL" in said
    assert_harmless(said.removesuffix("\n"))


def test_a_callback_that_raises_stored_text_makes_no_line(written: io.StringIO) -> None:
    client = client_from([])
    with pytest.raises(InvalidDocumentError) as caught:
        client_from([{"key": FORGED}])
    get_logger("flagkit").warning("%s", caught.value, exc_info=caught.value.__cause__)
    assert client.keys() == []
    assert written.getvalue().count(STAMP) == 1


@pytest.mark.mongo
def test_requests_and_reasons_make_no_line_of_a_log(
    mongo_uri: str, database: str, written: io.StringIO
) -> None:
    document = {"key": "shop.a", "variants": {"on": True, "off": False}, "off": "off"}
    with (
        Writer(mongo_uri, "production", actor="ada", database=database) as writer,
        MongoClient[dict[str, Any]](mongo_uri) as mongo,
    ):
        writer.create_environment()
        writer.create({**document, "fallthrough": {"serve": "on"}})
        with writer.change() as change:
            change.bypass_guards(f"why {STORABLE}")
            change.pause("shop.a")
        with mongo.start_session() as session, session.start_transaction():
            pending = writer.in_transaction(session).resume(
                "shop.a", idempotency_key=f"k {STORABLE}"
            )
        writer.archive("shop.a")
        with pytest.raises(FlagkitError):
            pending.commit()
    said = written.getvalue()
    assert "broke the glass" in said
    assert "was refused" in said
    for line in said.removesuffix("\n").split("\n"):
        assert line.startswith(STAMP)
        assert_harmless(line)


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_a_record_says_what_it_is_of_by_arguments(path: Path) -> None:
    # A text within the message could hold a percent sign, and be taken for a format.
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("_log."):
            assert isinstance(call.args[0], ast.Constant), ast.unparse(call)


# The one place


WAYS_OUT = re.compile(
    r"getLogger|warnings\.|import warn\b|click\.s?echo|\becho\(|(?<!\.)\bprint\(|\bConsole\b|"
    r"sys\.(?:std|__std)(?:out|err)|traceback\.print|os\.write|rich\.(?:markup|table)"
)
ALLOWED = {
    "_core/background.py": {"getLogger"},
    # What the starter of a server reads, which is an error's text.
    "testing/embedded.py": {"print("},
    "cli/output.py": {"sys.stdout", "sys.stderr", "Console"},
    # What is in a buffer is written before the exit code is known.
    "cli/errors.py": {"sys.stdout"},
}


def code_of(path: Path) -> str:
    """Return the code of a module, without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_no_module_has_a_way_of_its_own_to_a_log_or_a_terminal(path: Path) -> None:
    name = str(path.relative_to(SOURCE))
    found = set(WAYS_OUT.findall(code_of(path)))
    assert found == ALLOWED.get(name, set()), (
        f"{name}: take flagkit._core.background.Log, or flagkit.cli.output"
    )
