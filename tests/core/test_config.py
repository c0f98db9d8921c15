"""The table of options, beside what cannot be generated from it: types and documentation."""

import inspect
import re
from pathlib import Path

from flagkit.config import OPTIONS, Options, Settings

_DOCS = Path(__file__).parents[2] / "docs/client.md"
_ROW = re.compile(r"^\| `(\w+)` \| `(FLAGKIT_\w+)` \| (.+) \|$", re.MULTILINE)
_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")


def test_each_option_has_its_types_and_its_setting() -> None:
    assert Settings.__struct_fields__ == (*OPTIONS,)
    assert ["uri", *Options.__annotations__] == [*OPTIONS]


def test_required_options_are_the_settings_without_defaults() -> None:
    required = len(OPTIONS) - len(Settings.__struct_defaults__)
    assert [option.is_required for option in OPTIONS.values()] == [
        number < required for number in range(len(OPTIONS))
    ]


def test_the_docs_have_each_option_with_its_variable_and_description() -> None:
    rows = {found[0]: found[1:] for found in _ROW.findall(_LINK.sub(r"\1", _DOCS.read_text()))}
    assert rows == {name: (option.variable, option.description) for name, option in OPTIONS.items()}


def test_help_shows_each_option() -> None:
    text = inspect.getdoc(Options) or ""
    assert all(
        f"`{name}`, or {option.variable}: {option.description}" in text
        for name, option in OPTIONS.items()
    )
