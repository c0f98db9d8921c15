"""Writes flags and segments as a policy file, in YAML or JSON, that reads as the same policies.

The YAML is a small subset on which readers of YAML 1.1 and 1.2 agree. Anything ambiguous is in
double quotes. Comments of an original file are lost.
"""

import json
import math
import re
from collections.abc import Iterable
from datetime import datetime
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from flagkit._core.model.canonical import (
    canonicalize_flag,
    canonicalize_segment,
    format_date,
    to_extended_json,
)
from flagkit._core.model.segments import get_key_lists
from flagkit._core.model.values import Value
from flagkit.policy_files.reader import FlagPolicy, SegmentPolicy

_WIDTH = 2**31
"""Lines are never folded: YAML cannot read a folded name."""
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$@./+-]*( [A-Za-z0-9_$@./+-]+)*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""The words, in lower case, that some YAML readers do not read as text."""
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""The characters that JSON may have unescaped, but that YAML forbids or changes."""


def dump_yaml(policies: Iterable[FlagPolicy], segments: Iterable[SegmentPolicy] = ()) -> str:
    """Return a policy file in YAML with policies in canonical form."""
    return dump_yaml_value(_build_lists(policies, segments))


def dump_yaml_value(value: Value) -> str:
    """Return a value in YAML: names are strings, the outermost ones in block style."""
    yaml: Any = YAML()
    yaml.Representer = _Representer
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = _WIDTH
    styled: Any = _style_value(value)
    if value:
        styled.fa.set_block_style()
    stream = StringIO()
    yaml.dump(styled, stream)
    return stream.getvalue()


def dump_json(policies: Iterable[FlagPolicy], segments: Iterable[SegmentPolicy] = ()) -> str:
    """Return a policy file in JSON with policies in canonical form; dates are Extended JSON."""
    return _encode_json(to_extended_json(_build_lists(policies, segments)), indent=2) + "\n"


def _build_lists(
    policies: Iterable[FlagPolicy], segments: Iterable[SegmentPolicy]
) -> dict[str, Any]:
    lists: dict[str, Any] = {"flags": [_to_written_flag(policy) for policy in policies]}
    named = [_to_written_segment(policy) for policy in segments]
    return lists | {"segments": named} if named else lists


def _to_written_segment(policy: SegmentPolicy) -> dict[str, Any]:
    """Return the canonical document with plain keys, sorted, and the fields that writers read."""
    document = canonicalize_segment(policy.segment)
    for side, keys in get_key_lists(policy.document).items():
        document.pop(side, None)
        if keys:
            document[side] = sorted({str(key) for key in keys})
    extra = {name: policy.document[name] for name in ("environment",) if name in policy.document}
    return {"key": policy.segment.key} | extra | document


def _to_written_flag(policy: FlagPolicy) -> dict[str, Any]:
    """Return the canonical document, with the fields that it lacks and writers read."""
    extra = {name: policy.document[name] for name in ("environment", "state")
            if name in policy.document}  # fmt: skip
    return {"key": policy.flag.key} | extra | canonicalize_flag(policy.flag)


class _Representer(RoundTripRepresenter):
    """Writes dates and floats so that readers of YAML 1.1 and 1.2 take them for the same."""


def _represent_date(representer: Any, value: datetime) -> Any:
    text = format_date(value).replace(".000Z", "Z")
    return representer.represent_scalar("tag:yaml.org,2002:timestamp", text)


def _represent_float(representer: Any, value: float) -> Any:
    # Without a point, YAML 1.1 takes 1e+22 for text.
    text = re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(datetime, _represent_date)  # pyright: ignore[reportUnknownMemberType]
_Representer.add_representer(float, _represent_float)  # pyright: ignore[reportUnknownMemberType]


def _style_value(value: Value) -> Any:
    """Return a value with its YAML styles."""
    match value:
        case str():
            plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
            return value if plain else DoubleQuotedScalarString(value)
        case dict():
            styled = {_style_value(name): _style_value(item) for name, item in value.items()}
            return _apply_flow_style(CommentedMap(styled), value)
        case list():
            return _apply_flow_style(CommentedSeq(map(_style_value, value)), value)
        case _:
            return value


def _apply_flow_style(node: Any, value: Value) -> Any:
    """Return a node that is written on one line if its value is simple enough."""
    if _is_flat(value):
        node.fa.set_flow_style()
    return node


def _is_flat(value: Value, within: int = 2) -> bool:
    """Return True if a value is simple enough for one line: scalars, and lists of them."""
    match value:
        case dict():
            return within == 2 and all(_is_flat(item, 1) for item in value.values())  # noqa: PLR2004 - outermost
        case list():
            return within > 0 and all(_is_flat(item, 0) for item in value)
        case _:
            return True


def _encode_json(value: Value, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
