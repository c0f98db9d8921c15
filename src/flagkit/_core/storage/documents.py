"""Domain values as stored documents, and back.

Reading checks every document: a document of another form was changed outside of the writer. A large
change is encoded once, for the check of its size and for the projection. Only its revision is
unknown before the commit, so it may be encoded ahead of it. `layout` lists the collections.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, cast

import bson
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from msgspec import Struct

from flagkit._core.model import Flag, decode, packing
from flagkit._core.model.access import decode_grants, decode_limits
from flagkit._core.model.changes import (
    CUT,
    GRANTS,
    LIMITS,
    Change,
    PolicyChange,
    PolicyId,
    PolicyState,
    Tip,
    build_state,
    decode_cut,
)
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.flags import collect_flag_segments
from flagkit._core.storage import layout
from flagkit._core.storage.pages import join_pages, read_page_names
from flagkit._core.storage.validation import (
    check_form,
    check_type,
    check_whole_number,
    translate_form_errors,
    validates_form,
)
from flagkit.errors import InvalidDocumentError, StoreError


def encode_head(
    tip: Tip,
    change: Change | None,
    buckets: Mapping[str, int] | None = None,
    pages: Iterable[str] = (),
    unprojected: int | None = None,
) -> layout.Document:
    """Return the head at a tip, with the change that led to it, and the rate limits' buckets.

    `pages` are the names of those that the change is on, if it is on any; `unprojected` is the
    first revision that flags may lack.
    """
    body = None if change is None else _encode_change_body(change, pages)
    stored: layout.Document = {"buckets": {**buckets}} if buckets else {}
    if unprojected is not None:
        stored["unprojected"] = unprojected
    return {"_id": tip.environment, **encode_tip(tip), "change": body, **stored}


CODEC: Final[CodecOptions[layout.Document]] = CodecOptions(tz_aware=True)


@validates_form
def decode_head_tip(head: Mapping[str, Any]) -> Tip:
    """Return the tip that a head stands at."""
    return _decode_tip_fields(head["_id"], head)


def check_head(head: layout.Document) -> layout.Document:
    """Return a head that has the form that it should have; what is in its change is not looked at.

    Buckets of rate limits are left out, so that an altered one holds up nobody.

    Raises:
        StoreError: it has another form.
    """
    checked_head = {name: value for name, value in head.items() if name != "buckets"}
    body = checked_head.get("change")
    if isinstance(body, Mapping) and isinstance(body.get("policies"), list):  # pyright: ignore[reportUnknownMemberType]
        checked_head["change"] = {**cast("layout.Document", body), "policies": []}
    check_form(layout.HEADS, checked_head)
    return head


def read_buckets(head: Mapping[str, Any]) -> dict[str, int]:
    """Return the buckets of the rate limits that a head has.

    Values that are no integers are left out, so that they hold up nobody: who can write such can
    also remove a bucket.
    """
    found = head.get("buckets")
    if not isinstance(found, Mapping):
        return {}
    buckets = cast("Mapping[str, object]", found)
    return {
        name: int(full_at)
        for name, full_at in buckets.items()
        if isinstance(full_at, int) and not isinstance(full_at, bool)
    }


def encode_tip(tip: Tip) -> layout.Document:
    """Return what a document says of a tip beside its environment."""
    return {
        "epoch": tip.epoch,
        "revision": tip.revision,
        "hash": tip.hash,
        "time": tip.time,
        "digests": {region: f"{digest:016x}" for region, digest in tip.digests.items()},
    }


@validates_form
def decode_tip(document: Mapping[str, Any]) -> Tip:
    """Return the tip that a document of the ledger, or a manifest, is of."""
    return _decode_tip_fields(document["_id"]["environment"], document)


@validates_form
def decode_committed_tip(document: Mapping[str, Any]) -> Tip | None:
    """Return the tip that an audit document says its request led to.

    It does where the ledger was cut; None elsewhere.
    """
    tip = document.get("tip")
    return None if tip is None else _decode_tip_fields(document["_id"]["environment"], tip)


@validates_form
def decode_head_change(
    head: Mapping[str, Any], pages: Mapping[str, bytes] | None = None
) -> Change | None:
    """Return the change that led to a head; None at revision 0.

    Raises:
        HistoryLostError: a page that it refers to is not among `pages`, or was altered.
    """
    body = head["change"]
    return None if body is None else _decode_change(decode_head_tip(head), body, pages or {})


def encode_ledger(change: Change, pages: Iterable[str] = ()) -> layout.Document:
    """Return the ledger's document of a change, which is on some pages, if on any."""
    identity = layout.build_ledger_id(change.tip.environment, change.revision)
    return {"_id": identity, **encode_tip(change.tip), **_encode_change_body(change, pages)}


@validates_form
def decode_ledger(document: Mapping[str, Any], pages: Mapping[str, bytes] | None = None) -> Change:
    """Return the change that a ledger document holds.

    Raises:
        StoreError: it stands in the place of another revision.
        HistoryLostError: a page that it refers to is not among `pages`, or was altered.
    """
    change = _decode_change(decode_tip(document), document, pages or {})
    place = document["_id"]["revision"]
    if not change.revision == document["revision"] == place:
        raise StoreError(
            f"the ledger has revision {document['revision']} in the place of revision {place}"
        )
    return change


def encode_policy_document(
    environment: str, revision: int, change: PolicyChange, fields: layout.Document | None = None
) -> layout.Document:
    """Return the document of a policy as a change left it; `fields` are its state's, if made.

    `hash` is that of the state; it and `policy` are null where it was deleted: a tombstone, from
    whose version a new one goes on. A segment's region is "@segments", that of grants and limits
    "@access". A flag has also {body, format, seal}: what clients read of it, packed; the format of
    that; and what binds the body to the state. `segments` are those that its rules refer to, if
    they do.
    """
    state = change.after or change.before
    assert state is not None, "a change has a side"
    document = {
        "_id": layout.build_policy_id(environment, state.key, state.region),
        "revision": revision,
        "version": state.version,
        "policy": None,
        "hash": None,
    }
    if change.after is None:
        return document
    return document | (fields or encode_policy_fields(state, state.policy))


def encode_policy_fields(
    state: PolicyState, policy: Mapping[str, Any], flag: Flag | None = None
) -> layout.Document:
    """Return what a policy's document has of its state; `flag` is what it decodes to, if known."""
    # The document of a segment is its body, and clients do not read grants.
    if layout.get_collection_name(state.region) != layout.FLAGS:
        return {"policy": policy, "hash": f"{state.hash:016x}"}
    names = find_segment_names(state) if flag is None else collect_flag_segments(flag)
    return {
        "policy": policy,
        "hash": f"{state.hash:016x}",
        **_encode_body_fields(state, names, flag),
    }


def _encode_body_fields(
    state: PolicyState, names: set[str], flag: Flag | None = None
) -> layout.Document:
    body = packing.pack_document(state.packed, flag)
    seal = packing.compute_seal(state.key, state.version, state.hash, body)
    fields = {"body": body, "format": packing.FORMAT, "seal": seal}
    return fields | {"segments": sorted(names)} if names else fields


def find_segment_names(state: PolicyState) -> set[str]:
    """Return the segments that a flag's rules refer to; none for a segment."""
    if state.region == SEGMENTS_REGION or b"$segment" not in state.packed:
        return set()
    return collect_flag_segments(decode(state.policy, stored=True))


@validates_form
def decode_members_part(document: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return a part of members by its SHA-256.

    Raises:
        StoreError: something changed it past the writer.
    """
    name, hashes = document["_id"]["part"], document["hashes"]
    if hashlib.sha256(hashes).hexdigest() != name:
        raise StoreError(f"the members {name} were changed past the writer")
    return name, hashes


@validates_form
def read_policy_id(document: Mapping[str, Any]) -> PolicyId:
    """Return which policy a document of flags, segments or access is of."""
    identity = document["_id"]
    return check_type(identity["region"], str), check_type(identity["key"], str)


@validates_form
def read_revision(document: Mapping[str, Any]) -> int:
    """Return the revision that a policy's document, or one of the ledger, has."""
    return check_whole_number(document["revision"])


@validates_form
def read_version(document: Mapping[str, Any]) -> int:
    """Return the version that a policy's document has."""
    return check_whole_number(document["version"])


@validates_form
def read_time(document: Mapping[str, Any]) -> datetime:
    """Return the time that a document has."""
    return check_type(document["time"], datetime)


@validates_form
def is_tombstone(document: Mapping[str, Any]) -> bool:
    """Tell whether a policy's document is what is left of one that was deleted."""
    return document["policy"] is None


@validates_form
def read_operations(document: Mapping[str, Any]) -> list[layout.Document]:
    """Return the operations that a document has; none where it has no such field."""
    found: object = document.get("operations", [])
    if not isinstance(found, list):
        raise TypeError("operations is no list")
    return [check_type(operation, dict) for operation in cast("list[object]", found)]


def find_prerequisites(state: PolicyState) -> list[str]:
    """Return the flags that a flag rests on.

    Raises:
        StoreError: its policy has not the form that it should have.
    """
    with translate_form_errors(
        layout.get_collection_name(state.region),
        {"_id": {"key": state.key, "region": state.region}},
    ):
        return [str(item["flag"]) for item in state.policy.get("prerequisites", ())]


def check_access_policy(environment: str, state: PolicyState) -> None:
    """Read what grants, limits or the cut say, which are read again wherever they are needed.

    Raises:
        StoreError: it has not the form that it should have.
    """
    with translate_form_errors(
        layout.ACCESS, {"_id": layout.build_policy_id(environment, state.key, state.region)}
    ):
        if state.id == GRANTS:
            decode_grants(state.policy)
        elif state.id == LIMITS:
            decode_limits(state.policy)
        elif state.id == CUT:
            cut = decode_cut(environment, state.policy)
            check_type(cut.contents, str)
            check_type(cut.tip.time, datetime)


@validates_form
def decode_partial_change(
    document: Mapping[str, Any], policies: tuple[PolicyChange, ...]
) -> Change:
    """Return the change that a document of the ledger holds, with a part of what it did."""
    request, previous = (
        check_type(document["request"], str),
        check_type(document["previous_hash"], str),
    )
    return Change(decode_tip(document), request, previous, policies)


@validates_form
def decode_policy_state(document: Mapping[str, Any]) -> PolicyState | None:
    """Return the state that a flag's or a segment's document holds; None where it was deleted.

    Raises:
        StoreError: something changed it past the writer.
    """
    identity = document["_id"]
    if document["policy"] is None:
        return None
    state = _build_state(identity, check_whole_number(document["version"]), document["policy"])
    if document.get("hash") != f"{state.hash:016x}":
        raise StoreError(
            f"{identity['key']} ({identity['region']}) was changed past the writer: undo it"
        )
    return state


@validates_form
def decode_last_state(document: Mapping[str, Any]) -> PolicyState | None:
    """Return the state that a deleted policy had, where its tombstone says so.

    It does where the ledger was cut: `last` is {policy, hash}.

    Raises:
        StoreError: something changed it past the writer.
    """
    identity, last = document["_id"], document.get("last")
    if last is None:
        return None
    state = _build_state(identity, check_whole_number(document["version"]), last["policy"])
    if last["hash"] != f"{state.hash:016x}":
        raise StoreError(
            f"what {identity['key']} ({identity['region']}) was when it was deleted was changed"
            " past the writer: undo it"
        )
    return state


@validates_form
def check_body(document: Mapping[str, Any], state: PolicyState) -> None:
    """Compare what clients read of a flag with its policy.

    A body of another format, or none, is not judged: clients here do not read it.

    Raises:
        StoreError: something changed one of them past the writer.
    """
    if document.get("format") == packing.FORMAT:
        expected = _encode_body_fields(state, find_segment_names(state))
        if any(document.get(name) != value for name, value in expected.items()):
            raise StoreError(
                f"the body of {state.key} ({state.region}) is not that of its policy: one of them"
                " was changed past the writer"
            )


def _decode_tip_fields(environment: str, fields: Mapping[str, Any]) -> Tip:
    digests = {region: int(digest, 16) for region, digest in fields["digests"].items()}
    return Tip(
        check_type(environment, str),
        check_type(fields["epoch"], str),
        check_whole_number(fields["revision"]),
        check_type(fields["hash"], str),
        check_type(fields["time"], datetime),
        digests,
    )


def _encode_change_body(change: Change, pages: Iterable[str]) -> layout.Document:
    names = [*pages]
    body: layout.Document = {"request": change.request, "previous_hash": change.previous_hash}
    if names:
        return body | {"pages": names}
    return body | {
        "policies": [
            {
                "region": policy.id[0],
                "key": policy.id[1],
                "before": _encode_side(policy.before),
                "after": _encode_side(policy.after),
            }
            for policy in change.policies
        ],
    }


def _encode_side(state: PolicyState | None) -> layout.Document | None:
    return None if state is None else {"version": state.version, "policy": state.policy}


def _decode_change(tip: Tip, body: Mapping[str, Any], pages: Mapping[str, bytes]) -> Change:
    request, previous = check_type(body["request"], str), check_type(body["previous_hash"], str)
    if "pages" in body:
        return Change(tip, request, previous, join_pages(body["pages"], pages))
    policies = tuple(
        PolicyChange(_decode_side(policy, policy["before"]), _decode_side(policy, policy["after"]))
        for policy in body["policies"]
    )
    return Change(tip, request, previous, policies)


def _decode_side(policy: Mapping[str, Any], side: Mapping[str, Any] | None) -> PolicyState | None:
    if side is None:
        return None
    return _build_state(policy, check_whole_number(side["version"]), side["policy"])


def _build_state(identity: Mapping[str, Any], version: int, policy: object) -> PolicyState:
    if not isinstance(policy, Mapping):
        raise TypeError("policy is no object")
    document = cast("Mapping[str, Any]", policy)
    return build_state(
        check_type(identity["key"], str), check_type(identity["region"], str), version, document
    )


def round_trips(state: PolicyState, encoded: bytes) -> bool:
    """Tell whether MongoDB gives back a policy's document as it was."""
    read: layout.Document = bson.decode(encoded, CODEC)  # pyright: ignore[reportUnknownMemberType]
    return build_state(state.key, state.region, state.version, read) == state


def decode_ledger_strict(
    document: Mapping[str, Any], pages: Mapping[str, bytes] | None = None
) -> Change:
    """Return the change that a ledger document holds, if it holds nothing else.

    Raises:
        StoreError: it has not the form that it should have; with its revision.
    """
    try:
        change = decode_ledger(document, pages)
    except StoreError as error:
        raise StoreError(
            f"revision {document['_id']['revision']} of the ledger: {error}"
        ) from error
    whole = all(item.before or item.after for item in change.policies)
    if not whole or _extract_field_names(document) != _extract_field_names(
        encode_ledger(change, read_page_names(document))
    ):
        raise StoreError(f"revision {change.revision} of the ledger was altered")
    return change


def _extract_field_names(part: object) -> Any:
    """Return the names of fields in a ledger document, without what is in policies."""
    if isinstance(part, list):
        return list(map(_extract_field_names, cast("list[object]", part)))
    if not isinstance(part, Mapping):
        return None
    fields = cast("Mapping[str, object]", part)
    return {name: name == "policy" or _extract_field_names(value) for name, value in fields.items()}


STORED_BYTES_MAX = 12 * 1024 * 1024
"""A change larger than this in BSON is refused: a document of MongoDB ends at 16 MiB."""
POLICY_BYTES_MAX = STORED_BYTES_MAX // 3
"""So that a policy can always be changed by itself, which stores it before and after."""
_SURELY_FITS_BYTES = POLICY_BYTES_MAX // 16
"""A null in a list is one byte in MessagePack, and up to nine in BSON."""
_FAULTS = (BSONError, OverflowError, UnicodeError, TypeError)


class EncodedPolicy(Struct, frozen=True, gc=False):
    """The stored fields of a state, without the revision.

    `size` is that of its policy in BSON; `is_unaltered` tells whether MongoDB gives it back as it
    was.
    """

    state: PolicyState
    size: int
    is_unaltered: bool
    fields: layout.Document


def encode_policy(state: PolicyState, flag: Flag | None = None) -> EncodedPolicy:
    """Return what is to be stored of a state; `flag` is what it decodes to, if that is known.

    Raises:
        InvalidDocumentError: it holds what BSON has not.
    """
    try:
        encoded = bson.encode(state.policy)
        stored = round_trips(state, encoded)
    except _FAULTS as error:
        raise _build_size_error(error) from None
    # The driver copies these bytes, in the place of encoding the document again.
    return EncodedPolicy(
        state, len(encoded), stored, encode_policy_fields(state, RawBSONDocument(encoded), flag)
    )


def encode_change(
    change: Change,
    content: Mapping[str, Any],
    pages: Collection[str] = (),
    flags: Mapping[PolicyId, Flag] | None = None,
    preencoded: Mapping[PolicyId, EncodedPolicy] | None = None,
) -> dict[PolicyId, EncodedPolicy]:
    """Refuse what MongoDB could not store, or not give back as it was, before anything is.

    Return what was prepared of a change on pages; nothing of others, which are judged as a whole.

    Args:
        change: What is to be stored.
        content: What the audit is to have of it.
        pages: The names of those that the change is on, if it is on any.
        flags: What documents after it decode to, as far as that is known.
        preencoded: What was prepared before. It is passed over where the change came to another
            state.

    Raises:
        InvalidDocumentError: it is too large, or holds what BSON has not.
    """
    states = [policy.after for policy in change.policies if policy.after]
    ready = _encode_states(states, flags or {}, preencoded or {}) if pages else {}
    try:
        encoded = bson.encode(encode_ledger(change, pages))
        size = max(len(encoded), len(bson.encode({**content})))
        if pages:
            sizes = [each.size for each in ready.values()]
            same = all(each.is_unaltered for each in ready.values())
        else:
            sizes = [len(bson.encode(state.policy)) for state in states]
            read: layout.Document = bson.decode(encoded, CODEC)  # pyright: ignore[reportUnknownMemberType]
            same = decode_ledger(read) == change
    except _FAULTS as error:
        raise _build_size_error(error) from None
    _check_size(size, "change")
    _check_policy_size(max(sizes, default=0))
    if not same:
        raise InvalidDocumentError("", "would not be read back as it is", "Mend it")
    return ready


def check_policy_fits(state: PolicyState) -> None:
    """Refuse a policy that MongoDB could not store.

    Raises:
        InvalidDocumentError: it is too large, or holds what BSON does not have.
    """
    if len(state.packed) > _SURELY_FITS_BYTES:
        _check_policy_size(encode_policy(state).size)


def _check_policy_size(size: int) -> None:
    if size > POLICY_BYTES_MAX:
        raise InvalidDocumentError(
            "",
            f"a policy is {size:,} bytes in MongoDB; the limit is {POLICY_BYTES_MAX:,}",
            "Shorten its lists: a flag is for rules, not for data",
        )


def check_request_fits(content: Mapping[str, Any]) -> None:
    """Refuse a request that MongoDB could not store."""
    try:
        size = len(bson.encode({**content}))
    except _FAULTS as error:
        raise _build_size_error(error) from None
    _check_size(size, "request")


def _encode_states(
    states: Iterable[PolicyState],
    flags: Mapping[PolicyId, Flag],
    preencoded: Mapping[PolicyId, EncodedPolicy],
) -> dict[PolicyId, EncodedPolicy]:
    found: dict[PolicyId, EncodedPolicy] = {}
    for state in states:
        identity = state.id
        ready = preencoded.get(identity)
        if ready is None or ready.state != state:
            ready = encode_policy(state, flags.get(identity))
        found[identity] = ready
    return found


def _check_size(size: int, what: str) -> None:
    if size > STORED_BYTES_MAX:
        raise InvalidDocumentError(
            "",
            f"the {what} is {size:,} bytes in MongoDB; the limit is {STORED_BYTES_MAX:,}",
            "Split it up",
        )


def _build_size_error(error: Exception) -> InvalidDocumentError:
    return InvalidDocumentError("", f"cannot be stored: {error}", "Mend it")
