"""Policy text: flags written as a policy file, in YAML or JSON, that reads as the same flags.

The YAML is of a small kind that readers of YAML 1.1 and 1.2 agree on: whatever could be taken for
something else stands in double quotes. Comments of the file that was read are not kept.
"""

import json
import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from flagkit.cli.policy_files import Policy, SegmentPolicy
from flagkit.model.canonical import canonical, canonical_segment, date_text, extended
from flagkit.model.segments import listed_keys
from flagkit.model.values import Value

_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$@./+-]*( [A-Za-z0-9_$@./+-]+)*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""What some YAML reader takes for something other than text, in lower case."""
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON may hold as it is, but YAML may not, or changes."""


def yaml_text(policies: Iterable[Policy], segments: Iterable[SegmentPolicy] = ()) -> str:
    """Return a policy file in YAML with policies in canonical form."""
    lines: list[str] = []
    for field, documents in _lists(policies, segments).items():
        lines.append(f"{field}:" if documents else f"{field}: []")
        lines += [line for document in documents for line in _item(document, 2)]
    return "\n".join([*lines, ""])


def json_text(policies: Iterable[Policy], segments: Iterable[SegmentPolicy] = ()) -> str:
    """Return a policy file in JSON with policies in canonical form; dates are Extended JSON."""
    return _json(extended(_lists(policies, segments)), indent=2) + "\n"


def _lists(policies: Iterable[Policy], segments: Iterable[SegmentPolicy]) -> dict[str, Any]:
    lists: dict[str, Any] = {"flags": [_written(policy) for policy in policies]}
    named = [_written_segment(policy) for policy in segments]
    return lists | {"segments": named} if named else lists


def _written_segment(policy: SegmentPolicy) -> dict[str, Any]:
    """Return the canonical document with the keys themselves, sorted, and what a writer heeds."""
    document = canonical_segment(policy.segment)
    for side, keys in listed_keys(policy.document).items():
        document.pop(side, None)
        if keys:
            document[side] = sorted({str(key) for key in keys})
    kept = {name: policy.document[name] for name in ("environment",) if name in policy.document}
    return {"key": policy.segment.key} | kept | document


def _written(policy: Policy) -> dict[str, Any]:
    """Return the canonical document, with what it leaves out and a writer heeds."""
    kept = {name: policy.document[name] for name in ("environment", "state")
            if name in policy.document}  # fmt: skip
    return {"key": policy.flag.key} | kept | canonical(policy.flag)


def _item(value: Value, indent: int) -> list[str]:
    """Return the lines of a list's item."""
    first, *others = _lines(value, indent + 2)
    return [f"{' ' * indent}- {first.lstrip(' ')}", *others]


def _lines(value: Value, indent: int) -> list[str]:
    """Return the lines of a value that begins on a line of its own."""
    if not isinstance(value, dict | list) or not value:
        return [" " * indent + _one_line(value)]
    if isinstance(value, list):
        return [line for item in value for line in _item(item, indent)]
    return [line for name, item in value.items() for line in _field(name, item, indent)]


def _field(name: str, value: Value, indent: int) -> list[str]:
    start = f"{' ' * indent}{_scalar(name)}:"
    line = f"{start} {_one_line(value)}"
    if not isinstance(value, dict | list) or (_is_flat(value) and len(line) <= _WIDTH):
        return [line]
    return [start, *_lines(value, indent + 2)]


def _is_flat(value: Value, within: int = 2) -> bool:
    """Tell whether a value is simple enough for one line: scalars, and lists of them."""
    match value:
        case dict():
            return within == 2 and all(_is_flat(item, 1) for item in value.values())  # noqa: PLR2004 - outermost
        case list():
            return within > 0 and all(_is_flat(item, 0) for item in value)
        case _:
            return True


def _one_line(value: Value) -> str:
    match value:
        case dict():
            inner = (f"{_scalar(name)}: {_one_line(item)}" for name, item in value.items())
            return f"{{{', '.join(inner)}}}"
        case list():
            return f"[{', '.join(map(_one_line, value))}]"
        case _:
            return _scalar(value)


def _scalar(value: Value) -> str:
    match value:
        case str():
            plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
            return value if plain else _json(value)
        case datetime():
            return date_text(value).replace(".000Z", "Z")
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        case float():
            # Without a point, YAML 1.1 takes 1e+22 for text.
            return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
        case _:
            return json.dumps(value)


def _json(value: Value, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
