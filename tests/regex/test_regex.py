"""`$regex`: the syntax that is allowed, and both ways to search, held to a real mongod."""

import random
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Some
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from flagkit._core import regex
from flagkit._core.model.conditions import parse_condition
from flagkit._core.regex import TEXT_MAX, Search, compile_search, has_match
from flagkit._core.regex import automaton as automata
from flagkit._core.regex import automaton as positions
from flagkit._core.regex import parser as patterns
from flagkit._core.regex.automaton import Automaton, Positions
from flagkit._core.regex.parser import (
    Boundary,
    Chars,
    Choice,
    Node,
    Repeat,
    Sequence,
    parse_pattern,
)
from flagkit.errors import InvalidDocumentError

pytestmark = pytest.mark.every_python

Document: TypeAlias = dict[str, Any]
Engine: TypeAlias = Callable[[str, str], Search]

PATTERN_COUNT = 6_000
TEXTS_PER_PATTERN = 16
PATTERNS_PER_REQUEST = 20
SEED = 20_261_122


def automaton(source: str, options: str = "") -> Search:
    return Automaton(Positions(parse_pattern(source, options, ""))).search


def harmless(source: str, options: str = "") -> bool:
    return regex.is_harmless(Positions(parse_pattern(source, options, "")))


def python(source: str, options: str = "") -> Search:
    """Search with Python's `re`, harmless or not: texts here are short."""
    pattern = re.compile(regex.to_python_pattern(parse_pattern(source, options, "")), re.ASCII)
    return pattern.search


@pytest.fixture(scope="module")
def collection(mongo_uri: str) -> Iterator[Collection[Document]]:
    with MongoClient[Document](mongo_uri) as client:
        name = f"test_patterns_{uuid.uuid4().hex}"
        yield client.get_database(name).get_collection("texts")
        client.drop_database(name)


def found(
    collection: Collection[Document], source: str, options: str, first_id: int, count: int
) -> set[int]:
    """Ask mongod which of the texts with some consecutive ids have a pattern in them."""
    among = {"$gte": first_id, "$lt": first_id + count}
    written = {"$regex": source, "$options": options}
    return {
        answer["_id"] - first_id
        for answer in collection.find({"_id": among, "text": written}, {"_id": 1})
    }


def found_by_each(
    collection: Collection[Document], patterns: Some[tuple[str, str]], first_id: int, count: int
) -> list[set[int]]:
    """Ask as `found` does for several patterns, each of its own texts, in one request."""
    firsts = [first_id + i * count for i in range(len(patterns))]
    facets = {
        str(first): [
            {
                "$match": {
                    "_id": {"$gte": first, "$lt": first + count},
                    "text": {"$regex": source, "$options": options},
                }
            },
            {"$project": {"_id": 1}},
        ]
        for first, (source, options) in zip(firsts, patterns, strict=True)
    }
    among = {"_id": {"$gte": first_id, "$lt": first_id + count * len(patterns)}}
    [answers] = collection.aggregate([{"$match": among}, {"$facet": facets}])
    return [{answer["_id"] - first for answer in answers[str(first)]} for first in firsts]


class Case(NamedTuple):
    """A pattern, and texts that have it in them or not."""

    source: str
    options: str
    yes: Some[str]
    no: Some[str]


KELVIN, LONG_S = "\u212a", "\u017f"

CASES = [
    # Where
    Case("b", "", ["b", "abc", "\nb"], ["", "B", "a"]),
    Case("", "", ["", "a"], []),
    Case("^a", "", ["a", "ab"], ["ba", "\na"]),
    Case("a$", "", ["a", "ba", "a\n"], ["ab", "a\n\n", "a\nb", "a\r"]),
    Case("^$", "", ["", "\n"], ["\n\n", "a"]),
    Case("$^", "", ["", "\n"], ["\n\n", "a"]),
    Case("^a", "m", ["b\na", "a"], ["ba", "b\ra"]),
    Case("a$", "m", ["a\nb", "a"], ["ab", "a\r\nb"]),
    Case("\n^", "m", ["\na", "\n\n"], ["a\n", "\n"]),
    Case("^$", "m", ["", "\n\n", "\n", "a\n\nb"], ["a\n", "a"]),
    Case("$\n^", "m", ["a\nb", "\n\n"], ["a\n", "\n"]),
    Case(r"\Aa", "m", ["a"], ["b\na"]),
    Case(r"\ba\b", "", ["a", "-a-", "éa"], ["ab", "a_", "a1"]),
    Case(r"\B", "", ["", "ab", "-"], ["a", "a-a"]),
    Case(r"a\B", "", ["ab", "a_"], ["a", "a ", "aé"]),
    Case("a^b|^c", "", ["c"], ["ab", "bc"]),
    Case("(^|,)b(,|$)", "", ["b", "a,b", "b,c\n"], ["ab", "bc,"]),
    # Characters
    Case("^.$", "", ["a", "\r", "\x85", "\u2028", "\0", "\U0001f600", "a\n"], ["", "\n", "ab"]),
    Case("^.$", "s", ["\n", "a", "a\n"], ["", "ab"]),
    Case(r"^\d$", "", ["0", "9"], ["a", "\u0661", "²"]),
    Case(r"^\w$", "", ["a", "Z", "_", "0"], ["é", "-", KELVIN, "\u0661"]),
    Case(r"^\w$", "i", ["a"], [KELVIN, LONG_S]),
    Case(r"^\s$", "", [" ", "\t", "\r", "\x0b", "\x0c"], ["\x1c", "\x85", "\xa0", "\u2028"]),
    Case(r"^[\D\n]\W\S$", "", ["a-b", "\n-b", "é é"], ["1-b", "aab", "a- "]),
    Case(r"\x41\x{1F600}\t\n\r\f\.", "", ["A\U0001f600\t\n\r\x0c."], ["A"]),
    Case(r"^\x00$", "", ["\0"], ["", "0"]),
    Case("^[]a]$", "", ["]", "a"], ["b"]),
    Case("^[^]a]$", "", ["b", "\n", "é"], ["]", "a"]),
    Case(r"^[a\-c.^$[-]$", "", ["a", "-", "c", ".", "^", "$", "["], ["b", "\\"]),
    Case("^[.][^.a.][:=]$", "", [".b:", ".b="], ["...", "ab:"]),
    Case("^[-a][a-][+--][--/]$", "", ["--,.", "aa+/"], ["b-,.", "--*."]),
    Case(r"^[^\W\d]$", "", ["a", "_"], ["1", "-", "é"]),
    Case(r"^([^\d\D]|a)[\d\D]$", "", ["a\n", "aé"], ["a", "aaa"]),
    Case("^a]}$", "", ["a]}"], ["a"]),
    # Case
    Case("^kS$", "i", ["ks", "KS", KELVIN + LONG_S], ["k", "kz"]),
    Case("^[j-l]$", "i", ["K", "k", KELVIN], ["m", "i"]),
    Case("^[^k]$", "i", ["a", LONG_S], ["K", "k", KELVIN]),
    Case("^[A-z]$", "i", ["[", "a", KELVIN, LONG_S], ["{", "@"]),
    Case(r"^[^\x00-\x7f]$", "i", ["é"], ["a", KELVIN, LONG_S]),
    Case(r"^[\Wa]$", "i", ["A", "-", KELVIN, LONG_S], ["k", "s"]),
    Case("é", "", ["é"], ["É", "e"]),
    # How often
    Case("^a{2}$", "", ["aa"], ["a", "aaa"]),
    Case("^a{2,}$", "", ["aa", "aaaa"], ["a"]),
    Case("^(ab?){1,2}$", "", ["a", "ab", "aba", "abab"], ["", "b", "aaa"]),
    Case("^a{0}b$", "", ["b"], ["ab"]),
    Case("^a*?b+?c??$", "", ["b", "aabbc"], ["a", "bcc"]),
    Case(r"^(a|\b)*$", "", ["", "aa"], ["-", "ab"]),
    Case(r"(?:^|a)+b", "", ["b", "ab", "aab"], ["cb"]),
    Case(r"(?:\b|a){2}-", "", ["a-", "aa-", "b-"], ["-", "--"]),
    Case("^(|a|)+$", "", ["", "aaa"], ["b"]),
    Case("^a|b$", "", ["ac", "cb"], ["ca", "bc"]),
    # Blanks and comments
    Case("^a b # c\n +  c$", "x", ["abc", "abbc"], ["a b", "ab c"]),
    Case(r"^[ #]\ \#$", "x", ["  #", "# #"], ["##"]),
    Case("^(?: a | ( # )\n b ) ) {2} $", "x", ["aa", "ab"], ["a"]),
    Case("A.b#\n$", "imsx", ["a\nB", "a\nb\nc"], ["ab"]),
]  # fmt: skip


def wrong(case: Case, search: Search) -> list[str]:
    """Return the texts that a search answers other than stated."""
    return [
        *(text for text in case.yes if not search(text)),
        *(text for text in case.no if search(text)),
    ]


@pytest.mark.mongo
def test_mongod_answers_as_stated(collection: Collection[Document]) -> None:
    first = 10_000_000
    for case in CASES:
        texts = [*case.yes, *case.no]
        collection.insert_many({"_id": first + i, "text": text} for i, text in enumerate(texts))
        answer = found(collection, case.source, case.options, first, len(texts))
        assert answer == set(range(len(case.yes))), case.source
        first += len(texts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.source!a} {case.options}")
@pytest.mark.parametrize("engine", [automaton, python, compile_search])
def test_each_engine_answers_as_stated(engine: Engine, case: Case) -> None:
    assert wrong(case, engine(case.source, case.options)) == []


class Refused(NamedTuple):
    """What is said of some patterns, with some options."""

    said: str
    options: str
    sources: Some[str]


REFUSED = [
    Refused("repeats nothing", "", ("*a", "a**", "a|+", "(*UCP)a", "?a", "a*?+")),
    Refused("repeats nothing", "", ("a+??", "{2}", "a{2}{3}")),
    Refused("repeats nothing", "x", (" *", "a + +", "a+ ?", "a# b\n**", "( ?:a)")),
    Refused("has no characters", "", ("^*", "$?", r"\b+", "(^|)*", "()+", "^{2}", "(a{0})*")),
    Refused("a possessive repetition", "", ("a*+", "a{2}+", "a?+")),
    Refused("a { that is no repetition", "", ("{", "a{,2}", "a{1", "a{2 }", "a{b}")),
    Refused("a { that is no repetition", "x", ("a{ 2}",)),
    Refused("that is not (?:", "", ("(?=a)", "(?<!a)", "(?P<n>a)", "(?i)a", "(?>a)", "(?)")),
    Refused("among what is allowed", "", [rf"\{letter}" for letter in "zZvVhRXKGQENpCaUekl10cé\n"]),
    Refused("among what is allowed", "", [rf"[\{letter}]" for letter in "bBAvhRpQEz1a"]),
    Refused("among what is allowed", "", (r"\x", r"\x4", r"\x{}", r"\x{1234567}", "\\", "[\\")),
    Refused("a code that is no character", "", (r"\x{D800}", r"\x{DFFF}", r"\x{110000}")),
    Refused("a group without an end", "", ("(", "(a", "(?:a|", "((a)")),
    Refused("closes a group", "", (")", "a)b", "(a))")),
    Refused("a class without an end", "", ("[", "[a", "[]", "[^]", "[a-", "[[")),
    Refused("a class by name", "", ("[[:alpha:]]", "[[.a.]]", "[a[=b=]]", "[:a:]", r"[=\]\=]")),
    Refused("a range from or to a class", "", (r"[a-\d]", r"[\d-a]", r"[\w-\d]")),
    Refused("a - within a class", "", ("[a-c-e]", "[a-c--]", r"[ab-c-\d]")),
    Refused("ends before it starts", "", ("[b-a]",)),
    Refused("from more to less", "", ("a{2,1}",)),
    Refused("a NUL character", "", ("a\0", "[\0]")),
    Refused("works for ASCII alone", "i", ("é", KELVIN, "[a-é]", r"\x{e9}", "中")),
    Refused("a comment without an end", "x", ("a#", "(a # b)")),
    Refused("newer servers", "x", ("a\x85", "\u200eb", "(\u2028)")),
    Refused("more than 1000 characters", "", ("()" * 501,)),
    Refused("once its repetitions", "", ("a{129}", "(a{20}){20}", "a{99999}", "a{129,}")),
    Refused("once its repetitions", "", ("a" * 129, "((a|){99}b?){99}", r"(\b|a){65}", "|" * 130)),
    Refused("nested more than", "", ("(" * 40 + ")" * 40,)),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_allowed_is_refused_with_a_remedy(case: Refused) -> None:
    for source in case.sources:
        with pytest.raises(InvalidDocumentError) as caught:
            parse_pattern(source, case.options, "when.a.$regex")
        assert caught.value.path == "when.a.$regex"
        assert case.said in caught.value.problem, source
        assert caught.value.remedy


NO_PATTERNS: list[tuple[Any, str]] = [
    ({"$options": "i"}, "$options"),
    ({"$not": {"$options": "i"}}, "$not.$options"),
    *(({"$regex": source}, "$regex") for source in (1, None, ["a", "i"], {"a": 1}, True)),
    *(({"$regex": "a", "$options": options}, "$options") for options in (None, 1, "g", "iI")),
]  # fmt: skip


@pytest.mark.parametrize(("written", "place"), NO_PATTERNS)
def test_what_is_no_pattern_is_refused(written: Any, place: str) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        parse_condition({"a": written}, "when")
    assert caught.value.path == f"when.a.{place}"


def test_options_stand_before_or_after_and_may_repeat() -> None:
    one = parse_condition({"a": {"$regex": "b", "$options": "smi"}}, "")
    assert one == parse_condition({"a": {"$options": "immiss", "$regex": "b"}}, "")
    assert one != parse_condition({"a": {"$regex": "b", "$options": "im"}}, "")


# The random oracle. Patterns that can be empty in many ways, within others, are kept rare: there
# mongod gives up on some, and says that they are not in the text.

ATOMS = (
    *("a", "b", "A", "k", "K", "s", "1", "_", " ", "\n", "-", "é", KELVIN, LONG_S, "]", "}", "aa"),
    *(".", ".", "^", "$", r"\b", r"\B", r"\A", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\n"),
    *(r"\x0b", r"\x{e9}", r"\.", "[ab]", "[^a]", "[^k]", "[j-l]", "[^j-l]", r"[\w-]", r"[^\W]"),
    *(
        "[]a]",
        "[^]a]",
        "[a-]",
        r"[^\n]",
        r"[\s\d]",
        "[A-z]",
        "[ #]",
        r"[^\w\W]",
        r"[\s\S]",
        "#a\n",
        "ab",
    ),
)
QUANTIFIERS = ("*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,2}", "{2,}", "{0}", "{1,3}?")
LETTERS = (
    *("a", "a", "b", "A", "k", "K", "s", "S", KELVIN, LONG_S, "\n", "\n", " ", "1", "_", "-", "é"),
    *("\x0b", "\0", "\x85", "\u2028", "\U0001f600", "]", "j", "#", "."),
)
OPTIONS = ("", "", "", "i", "m", "s", "x", "im", "ms", "is", "imsx")


def drawn(chance: random.Random, depth: int = 0) -> str:
    """Draw a pattern; it may be one that is refused."""
    branches: list[str] = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        branch = ""
        for _ in range(chance.choice((0, 1, 1, 2, 2, 3))):
            if depth < 2 and chance.random() < 0.25:
                branch += chance.choice(("(", "(?:")) + drawn(chance, depth + 1) + ")"
            else:
                branch += chance.choice(ATOMS)
            if chance.random() < 0.35:
                branch += chance.choice(QUANTIFIERS)
        branches.append(branch)
    return "|".join(branches)


SIGNS = (
    *"abkS01 _-\n#.^$|(())[[]]{}?*+\\\\,:=dwsDWSbBAnxé",
    "(?:",
    "[^",
    "{2}",
    "{1,3}",
    r"\x{41}",
)


def soup(chance: random.Random) -> str:
    """Draw signs at random: most of it is refused, the rest tells what the parser overlooks."""
    return "".join(chance.choices(SIGNS, k=chance.choice((3, 4, 5, 6, 7, 8, 10))))


class Question(NamedTuple):
    """A pattern, some texts, and which of them mongod finds."""

    source: str
    options: str
    texts: list[str]
    answer: set[int]


@pytest.fixture(scope="module")
def questions(collection: Collection[Document]) -> list[Question]:
    chance = random.Random(SEED)
    asked: list[tuple[str, str, list[str]]] = []
    for _ in range(PATTERN_COUNT):
        around = chance.choice(("", "", "^")), chance.choice(("", "", "$"))
        draw = chance.choice((drawn, drawn, soup))
        source, options = draw(chance).join(around), chance.choice(OPTIONS)
        texts = [
            "".join(chance.choices(LETTERS, k=chance.choice((0, 1, 1, 2, 2, 3, 3, 4, 5, 6))))
            + chance.choice(("", "", "", "\n"))
            for _ in range(TEXTS_PER_PATTERN)
        ]
        try:
            parse_pattern(source, options, "")
        except InvalidDocumentError:
            continue
        asked.append((source, options, texts))
    stored = (text for _, _, texts in asked for text in texts)
    collection.insert_many({"_id": i, "text": text} for i, text in enumerate(stored))
    count, answers = TEXTS_PER_PATTERN, list[set[int]]()
    for first in range(0, len(asked), PATTERNS_PER_REQUEST):
        patterns = [each[:2] for each in asked[first : first + PATTERNS_PER_REQUEST]]
        # It raises where mongod refuses what is allowed here.
        answers += found_by_each(collection, patterns, first * count, count)
    return [Question(*each, answer) for each, answer in zip(asked, answers, strict=True)]


def disagreement(questions: Iterable[Question], engine: Engine) -> str | None:
    """Return the first question that an engine answers other than mongod, None if there is none."""
    for question in questions:
        try:
            search = engine(question.source, question.options)
        except InvalidDocumentError as refused:
            return f"{question.source!r}: {refused}"
        for i, text in enumerate(question.texts):
            if bool(search(text)) is not (i in question.answer):
                said = f"mongod says {i in question.answer}"
                return f"{question.source!r} {question.options} on {text!r}: {said}"
    return None


@pytest.mark.mongo
def test_automata_agree_with_mongod(questions: list[Question]) -> None:
    assert disagreement(questions, automaton) is None


@pytest.mark.mongo
def test_what_is_chosen_agrees_with_mongod(questions: list[Question]) -> None:
    assert disagreement(questions, compile_search.__wrapped__) is None


@pytest.mark.mongo
def test_the_questions_are_not_one_sided(questions: list[Question]) -> None:
    assert len(questions) > PATTERN_COUNT / 3
    answered = sum(len(question.answer) for question in questions)
    assert 0.3 < answered / (len(questions) * TEXTS_PER_PATTERN) < 0.7
    quick = sum(harmless(question.source, question.options) for question in questions)
    assert 0.3 < quick / len(questions) < 0.7


# Deliberately wrong engines and readers, each by what it puts in the place of a part.

right_part = Positions.add_part
right_inverted = patterns.invert_ranges
right_join = Positions.join_parts
right_skip = patterns._Parser.skip_blanks
UNICODE_WORDS = {**automata._AFTER, "é": positions.WORD}
BORDERS_OF = positions._collect_borders


def joined_without_the_empty(
    self: Positions, left: positions.PatternPart, right: positions.PatternPart
) -> positions.PatternPart:
    part = right_join(self, left, right)
    return positions.PatternPart(left.first, right.last, part.empty)


def repeated_once_more(self: Positions, node: Node) -> positions.PatternPart:
    if isinstance(node, Repeat) and node.most is not None:
        node = Repeat(node.part, node.least, node.most + 1)
    return right_part(self, node)


def endless_from_none(self: Positions, node: Node) -> positions.PatternPart:
    if isinstance(node, Repeat) and node.most is None:
        node = Repeat(node.part, 0, None)
    return right_part(self, node)


def any_branch_but_the_last(self: Positions, node: Node) -> positions.PatternPart:
    if isinstance(node, Choice):
        node = Choice(node.branches[:-1])
    return right_part(self, node)


def any_character(self: Positions, node: Node) -> positions.PatternPart:
    if isinstance(node, Chars) and node.ranges == ((0, 9), (11, 0x10FFFF)):
        node = Chars(((0, 0x10FFFF),))
    return right_part(self, node)


def skip_no_comments(self: patterns._Parser) -> None:
    while (
        "x" in self.options
        and self.position < len(self.source)
        and self.source[self.position] in " \n"
    ):
        self.position += 1


def places(place: patterns.Place, borders: int) -> dict[patterns.Place, int]:
    return {**positions.PLACES, place: borders}


NOTHING, NEWLINE = positions.NOTHING, positions.NEWLINE
ENDS = BORDERS_OF(lambda _, after: after == NOTHING)
LINE_STARTS = BORDERS_OF(lambda before, _: before in (NOTHING, NEWLINE))
CLASSES = patterns._CLASSES
WRITTEN = regex._PLACES

WRONG: dict[str, tuple[object, str, object]] = {
    "$ is not before a last newline": (positions, "PLACES", places("end", ENDS)),
    "a line starts after a last newline": (positions, "PLACES", places("line start", LINE_STARTS)),
    "$ is at all line ends": (positions, "PLACES", places("end", positions.PLACES["line end"])),
    "^ is at all line starts": (positions, "PLACES", places("start", LINE_STARTS)),
    "words have letters beyond ASCII": (automata, "_AFTER", UNICODE_WORDS),
    "\\w has letters beyond ASCII": (
        patterns, "_CLASSES", {**CLASSES, "w": (*CLASSES["w"], (0xE9, 0xE9))}
    ),
    "\\s has no vertical tab": (
        patterns, "_CLASSES", {**CLASSES, "s": ((9, 10), (12, 13), (32, 32))}
    ),
    "no sign has another case": (patterns, "_FOLDS", patterns._FOLDS[:2]),
    "only upper case has another case": (patterns, "_FOLDS", patterns._FOLDS[:1]),
    "classes keep their case": (
        patterns._Parser, "fold_if_ignored", lambda _, r: patterns.join_ranges(r)
    ),
    "a dot is any character": (Positions, "add_part", any_character),
    "negated classes have no newline": (
        patterns, "invert_ranges", lambda r: right_inverted(patterns.join_ranges((*r, (10, 10))))
    ),
    "what may be empty never is": (Positions, "join_parts", joined_without_the_empty),
    "{n,m} is one more": (Positions, "add_part", repeated_once_more),
    "+ is *": (Positions, "add_part", endless_from_none),
    "the last branch is lost": (Positions, "add_part", any_branch_but_the_last),
    "comments are text": (patterns._Parser, "skip_blanks", skip_no_comments),
    "no blank is skipped": (patterns._Parser, "skip_blanks", lambda _: None),
    "Python's $ is not before a last newline": (regex, "_PLACES", {**WRITTEN, "end": r"\Z"}),
    "Python's lines": (regex, "_PLACES", {**WRITTEN, "line start": "(?m:^)"}),
    "Python's \\B": (regex, "_PLACES", {**WRITTEN, "no word edge": r"\B"}),
    "borders do not count": (
        automata, "_collect_at_border", lambda edges, _: positions.union_positions(edges)
    ),
}  # fmt: skip


@pytest.mark.mongo
@pytest.mark.parametrize(("room", "name", "part"), WRONG.values(), ids=WRONG.keys())
def test_the_oracle_catches_a_wrong_engine(
    questions: list[Question],
    room: object,
    name: str,
    part: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, name, part)
    engines = (automaton, compile_search.__wrapped__)
    assert any(disagreement(questions, engine) for engine in engines)


# Work, counted and not timed.

ADVERSARIES = [
    *("(a*)*b", "(a|a)*b", "(a|aa)+b", "(x+x+)+y", "((a|b|ab)*)*c", "(.*a){60}b", "(a?){60}a{60}b"),
    *("(a|b)*a(a|b){60}c", ".*a.{100}c", r"(\w|\W)*a(\b.|\B.){20}c", r"(\ba?\b|.a|.b|\B){14}c"),
    *("(.*)*(.*)*(.*)*x", "^(([a-z])+.)+[A-Z]([a-z])+$", "(a+)+$", ".*.*=.*", "[a-z]+@", "a*b"),
]


def hard_texts(length: int) -> list[str]:
    chance = random.Random(SEED)
    unit = ("a", "ab", "xy", "a\n", "aé-")
    texts = ["".join(chance.choices(letters, k=length)) for letters in (*unit, "ab -\nAé=@")]
    return [*(letters * (length // len(letters)) for letters in unit), *texts]


def steps(search: Automaton) -> int:
    """Return how many steps and unions were worked out for all texts so far."""
    unions = sum(len(union) for tables in search.unions.values() for union in tables)
    return unions + sum(map(len, (search.start, *search.states.values())))


@pytest.mark.parametrize("source", ADVERSARIES)
def test_an_automaton_takes_at_most_one_step_for_a_character(source: str) -> None:
    assert not harmless(source)
    tree = parse_pattern(source, "", "")
    for text in hard_texts(1000):
        search = Automaton(Positions(tree))
        search.search(text)
        # Sixteen unions for each four positions, at each of 20 borders; however long the text.
        assert steps(search) <= len(text) + 2 + 16 * 20 * (patterns.measure_size(tree) // 4 + 1)
        before = steps(search)
        search.search(text)
        assert steps(search) == before


def test_what_automata_keep_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automata, "CACHE_ENTRIES_MAX", 100)
    monkeypatch.setattr(automata, "_cache_entries", deque())
    small = [Automaton(Positions(parse_pattern(source, "", ""))) for source in ADVERSARIES]
    whole = [
        re.compile(regex.to_python_pattern(parse_pattern(s, "", "")), re.ASCII) for s in ADVERSARIES
    ]
    for text in hard_texts(10):
        for search, pattern in zip(small, whole, strict=True):
            assert search.search(text) is (pattern.search(text) is not None)
    assert len(automata._cache_entries) == 100
    assert sum(map(steps, small)) + sum(len(search.states) for search in small) <= 100


def test_threads_share_an_automaton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automata, "CACHE_ENTRIES_MAX", 100)
    monkeypatch.setattr(automata, "_cache_entries", deque())
    texts = hard_texts(60)
    search = Automaton(Positions(parse_pattern(r"a(b|\n).{4}[^b]\B", "", ""))).search
    expected = [python(r"a(b|\n).{4}[^b]\B")(text) is not None for text in texts]
    assert {True, False} == {*expected}
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: [search(text) for text in texts], range(200))
        assert all(answer == expected for answer in answers)


def ends(node: Node, text: str, at: int, tries: list[int]) -> Iterator[int]:  # noqa: C901, PLR0912 - one for each node
    """Yield where a node can end, one way tried after the other as `re` does; count the tries."""
    match node:
        case Chars(ranges):
            tries[0] += 1
            if at < len(text) and any(low <= ord(text[at]) <= high for low, high in ranges):
                yield at + 1
        case Boundary(place):
            if re.compile(regex._PLACES[place], re.ASCII).match(text, at):
                yield at
        case Sequence(()):
            yield at
        case Sequence(parts):
            for end in ends(parts[0], text, at, tries):
                yield from ends(Sequence(parts[1:]), text, end, tries)
        case Choice(branches):
            for branch in branches:
                yield from ends(branch, text, at, tries)
        case Repeat(part, least, most):
            if most != 0:
                rest = Repeat(part, max(0, least - 1), None if most is None else most - 1)
                for end in ends(part, text, at, tries):
                    if end > at or least:
                        yield from ends(rest, text, end, tries)
            if least == 0:
                yield at


def tried(source: str, options: str, text: str) -> tuple[bool, int]:
    """Search by backtracking; return whether it is found, and how many characters were tried."""
    tree = parse_pattern(source, options, "")
    starts = 1 if Positions(tree).is_anchored else len(text) + 1
    tries = [0]
    answer = any(any(True for _ in ends(tree, text, at, tries)) for at in range(starts))
    return answer, tries[0]


def most_tries(source: str, options: str, length: int) -> int:
    """Return the bound on tries that a harmless pattern is said to keep."""
    found = Positions(parse_pattern(source, options, ""))
    edges = (found.pattern.first, *found.follow)
    nexts = [positions.union_positions(each).bit_count() for each in edges]
    return (length + 1) * (max(nexts) if found.is_anchored else sum(nexts))


HARMLESS = [
    *("^abc", r"@example\.com$", "^(DE|AT|CH)$", "(foo|bar)baz", "beta", r"^[a-z.]+@example\.com$"),
    *(
        "^(a+b+)*c",
        "^(?:a?b?c)*d",
        "^(a|b|c)*-",
        r"\bab?\b",
        r"^\d{3}-\d{4}$",
        "a?b?c?-?",
        "a{60}b",
    ),
    *("^(a{1,3}b{1,3})*c", "^(ab|c(ab|c))*x", r"^v?\d+(\.\d+)*$"),
]


@pytest.mark.parametrize("source", HARMLESS)
def test_what_is_harmless_makes_little_work(source: str) -> None:
    assert harmless(source)
    texts = [*hard_texts(80), *("abc" * 20, "aaab" * 15, "2.10.3" * 9 + "x", "abb" * 20, "a" * 59)]
    for text in texts:
        answer, tries = tried(source, "", text)
        assert tries <= most_tries(source, "", len(text))
        assert answer is bool(compile_search(source, "")(text))


@pytest.mark.mongo
def test_random_patterns_that_are_harmless_make_little_work(questions: list[Question]) -> None:
    seen = 0
    for question in questions:
        if harmless(question.source, question.options):
            seen += 1
            for text in (*question.texts[:4], "".join(question.texts), "aab" * 8):
                _, tries = tried(question.source, question.options, text)
                assert tries <= most_tries(question.source, question.options, len(text)), question
    assert seen > 500


def test_the_count_of_tries_shows_what_is_not_harmless() -> None:
    for source in ("(a*)*b", "(a|aa)+b", "(a?){10}a{10}b"):
        _, tries = tried(source, "", "a" * 14)
        assert tries > most_tries(source, "", 14)


def test_longer_texts_are_not_searched() -> None:
    for source in ("a", ".*a.*"):
        assert has_match("a" * TEXT_MAX, source, "")
        assert not has_match("a" * (TEXT_MAX + 1), source, "")


def test_characters_that_utf8_has_not_are_characters() -> None:
    for source in ("^.$", r"^\W$", "^[^a]$", "(.|.)$"):
        assert compile_search(source, "")("\ud800")


@pytest.mark.mongo
def test_what_mongod_gives_up_on_is_found(collection: Collection[Document]) -> None:
    source, text = "((a*|b*|)*)*c", "ab" * 500 + "c"
    collection.insert_one({"_id": 20_000_000, "text": text})
    assert found(collection, source, "", 20_000_000, 1) == set()
    assert has_match(text, source, "")
