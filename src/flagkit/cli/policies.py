"""Policies: how flags and segments are told of, in a line each or one in full.

Rollouts are told by their weights: which keys have which variant, an update keeps by itself.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from flagkit.changes import PolicyState
from flagkit.cli.policy_files import Policy, SegmentPolicy
from flagkit.cli.policy_text import yaml_text
from flagkit.model import decode
from flagkit.model.canonical import extended
from flagkit.model.segments import decode_segment, encode_segment
from flagkit.model.values import Value
from flagkit.writer.differences import told
from flagkit.writer.operations import as_written

_Document: TypeAlias = dict[str, Any]


class FlagLine(Struct, frozen=True):
    """A flag in a line; `serves` says in short what it serves to whom."""

    key: str
    region: str
    version: int
    state: str
    type: str
    serves: str
    owner: str


class SegmentLine(Struct, frozen=True):
    """A segment in a line; `by` is the attribute that is looked up among its keys."""

    key: str
    version: int
    condition: bool
    by: str
    included: int
    excluded: int
    owner: str


def flag_line(state: PolicyState) -> FlagLine:
    """Return a flag in a line."""
    flag = decode(state.policy, stored=True)
    serves = told(state.policy["fallthrough"])
    if flag.rules:
        rules = "1 rule" if len(flag.rules) == 1 else f"{len(flag.rules)} rules"
        serves = f"{rules}, else {serves}"
    owner = str(flag.metadata.get("owner", ""))
    return FlagLine(state.key, state.region, state.version, flag.state, flag.type, serves, owner)


def segment_line(state: PolicyState) -> SegmentLine:
    """Return a segment in a line."""
    segment = decode_segment(state.policy, stored=True).segment
    return SegmentLine(
        state.key,
        state.version,
        segment.when is not None,
        ".".join(segment.by),
        segment.included.count,
        segment.excluded.count,
        str(segment.metadata.get("owner", "")),
    )


def flag_document(state: PolicyState) -> _Document:
    """Return a flag's document as people write it."""
    return as_written(decode(state.policy, stored=True))


def segment_document(state: PolicyState) -> _Document:
    """Return a segment's document; of its keys there are only hashes."""
    return encode_segment(decode_segment(state.policy, stored=True).segment)


def flag_file(state: PolicyState) -> str:
    """Return a policy file of a flag, to change and to update it with.

    It has no state: whoever pauses the flag before the update is not to be undone by it.
    """
    document = flag_document(state)
    del document["state"]
    return yaml_text([Policy(document, decode(document))])


def segment_file(state: PolicyState) -> str:
    """Return a policy file of a segment, to change and to update it with."""
    document = segment_document(state)
    return yaml_text([], [SegmentPolicy(document, decode_segment(document).segment)])


def rows_of(document: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield what a document says: the name of each field, and its lines."""
    for name, value in document.items():
        # A seed tells people nothing.
        if name in ("key", "seed"):
            continue
        match name:
            case "variants":
                yield name, [f"{variant}: {_shown(value[variant])}" for variant in value]
            case "prerequisites":
                yield (
                    name,
                    [f"{item['flag']} serves {' or '.join(item['variants'])}" for item in value],
                )
            case "rules":
                for rule in value:
                    yield f"rule {rule['name']}", [*_rule(rule)]
            case "fallthrough":
                yield name, [told(value)]
            case "included" | "excluded":
                yield name, [f"{value['count']:,} keys"]
            case _:
                yield name, [_shown(value)]


def _rule(rule: _Document) -> Iterator[str]:
    for name in ("when", "during"):
        if name in rule:
            yield f"{name} {_shown(rule[name])}"
    yield told(rule)


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(extended(value), ensure_ascii=False)
