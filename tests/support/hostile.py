"""Texts that do more than be read, where they reach a terminal or a log; and texts that do not."""

import re
import unicodedata

HOSTILE = {
    "\x00": r"\x00",
    "\x07": r"\x07",
    "\b": r"\x08",
    "\t": r"\t",
    "\n": r"\n",
    "\r": r"\r",
    "\r\n": r"\r\n",
    "\v\f": r"\x0b\x0c",
    "\x1c\x1d\x1e": r"\x1c\x1d\x1e",
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x7f": r"\x7f",
    "\x85": r"\x85",
    "\x9b31m": r"\x9b31m",
    "\x9d0;title\x9c": r"\x9d0;title\x9c",
    "\xad": r"\xad",
    "\u061c": r"\u061c",
    "\u200b\u200c\u200d": r"\u200b\u200c\u200d",
    "\u200e\u200f": r"\u200e\u200f",
    "\u2028\u2029": r"\u2028\u2029",
    "\u202a\u202b\u202c\u202d\u202e": r"\u202a\u202b\u202c\u202d\u202e",
    "\u2060": r"\u2060",
    "\u2066\u2067\u2068\u2069": r"\u2066\u2067\u2068\u2069",
    "\ufeff": r"\ufeff",
    "\ufff9": r"\ufff9",
    "\U000e0061": r"\U000e0061",
    "\u034f\u3164\uffa0": r"\u034f\u3164\uffa0",
    "\ufe00": r"\ufe00",
    "\U000e0100": r"\U000e0100",
    "\ue000": r"\ue000",
    "\uffff": r"\uffff",
    "\ud800": r"\ud800",
}
"""Each text, and how it is shown."""

LEGITIMATE = [
    "",
    "checkout.express-pay",
    "Zo\xeb \u2013 Zoe\u0308",
    "\u691c\u7d22\u3000\u30d5\u30e9\u30b0",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "Attention\xa0: 5\u202f%",
    "\U0001f680 \u2705 \u26a0\ufe0f \u2764\ufe0f \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "\U0001fae8",
    r"^\d+\x1b$",
    "[red]x[/] :smile: urn:x:1",
]

MARKUP = "[red]:smile:[/] urn:x:1 arn:a:100:"
"""What rich would take for colours and emoji."""

FORGED = (
    "k\r\n2026-11-29 12:00:00 CRITICAL root: all is lost\x00"
    "\x1b[31m\x1b]0;t\x07\x9b2J\x85\u2028\u2029"
    "\u202e\u2066\ufeff\t|" + MARKUP
)
"""All of it at once."""

STORABLE = FORGED.replace("\x00", "")


def assert_harmless(line: str) -> None:
    """Check that a text is one line that no terminal obeys, and of characters that are seen."""
    assert len(line.splitlines()) <= 1, ascii(line)
    bad = [
        character
        for character in line
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    ]
    assert not bad, ascii(line)


ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""The sequences that the command itself sends a terminal, for bold and for its bars."""
