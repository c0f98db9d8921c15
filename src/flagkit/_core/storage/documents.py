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
    cut_in,
    state_of,
)
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.flags import segments_of
from flagkit._core.snapshot import Record, record_of, seal_of
from flagkit._core.storage.layout import (
    ACCESS,
    FLAGS,
    HEADS,
    Document,
    collection_of,
    ledger_id,
    policy_id,
)
from flagkit._core.storage.pages import joined, names_in
from flagkit._core.storage.validation import checked, judged, judging, typed, whole_number
from flagkit.errors import InvalidDocumentError, StoreError


def head_document(
    tip: Tip,
    change: Change | None,
    buckets: Mapping[str, int] | None = None,
    pages: Iterable[str] = (),
    unprojected: int | None = None,
) -> Document:
    """Return the head at a tip, with the change that led to it, and the rate limits' buckets.

    `pages` are the names of those that the change is on, if it is on any; `unprojected` is the
    first revision that flags may lack.
    """
    body = None if change is None else _change_body(change, pages)
    kept: Document = {"buckets": {**buckets}} if buckets else {}
    if unprojected is not None:
        kept["unprojected"] = unprojected
    return {"_id": tip.environment, **tip_fields(tip), "change": body, **kept}


CODEC: Final[CodecOptions[Document]] = CodecOptions(tz_aware=True)


@judged
def tip_of(head: Mapping[str, Any]) -> Tip:
    """Return the tip that a head stands at."""
    return _tip(head["_id"], head)


def checked_head(head: Document) -> Document:
    """Return a head that has the form that it should have; what is in its change is not looked at.

    Buckets of rate limits are left out, so that an altered one holds up nobody.

    Raises:
        StoreError: it has another form.
    """
    looked_at = {name: value for name, value in head.items() if name != "buckets"}
    body = looked_at.get("change")
    if isinstance(body, Mapping) and isinstance(body.get("policies"), list):  # pyright: ignore[reportUnknownMemberType]
        looked_at["change"] = {**cast("Document", body), "policies": []}
    checked(HEADS, looked_at)
    return head


def buckets_in(head: Mapping[str, Any]) -> dict[str, int]:
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


def tip_fields(tip: Tip) -> Document:
    """Return what a document says of a tip beside its environment."""
    return {
        "epoch": tip.epoch,
        "revision": tip.revision,
        "hash": tip.hash,
        "time": tip.time,
        "digests": {region: f"{digest:016x}" for region, digest in tip.digests.items()},
    }


@judged
def tip_in(document: Mapping[str, Any]) -> Tip:
    """Return the tip that a document of the ledger, or a manifest, is of."""
    return _tip(document["_id"]["environment"], document)


@judged
def sequenced(asked: Mapping[str, Any]) -> Tip | None:
    """Return the tip that an audit document says its request led to.

    It does where the ledger was cut; None elsewhere.
    """
    tip = asked.get("tip")
    return None if tip is None else _tip(asked["_id"]["environment"], tip)


@judged
def change_of(head: Mapping[str, Any], pages: Mapping[str, bytes] | None = None) -> Change | None:
    """Return the change that led to a head; None at revision 0.

    Raises:
        HistoryLostError: a page that it refers to is not among `pages`, or was altered.
    """
    body = head["change"]
    return None if body is None else _change(tip_of(head), body, pages or {})


def ledger_document(change: Change, pages: Iterable[str] = ()) -> Document:
    """Return the ledger's document of a change, which is on some pages, if on any."""
    identity = ledger_id(change.tip.environment, change.revision)
    return {"_id": identity, **tip_fields(change.tip), **_change_body(change, pages)}


@judged
def ledgered(document: Mapping[str, Any], pages: Mapping[str, bytes] | None = None) -> Change:
    """Return the change that a ledger document holds.

    Raises:
        StoreError: it stands in the place of another revision.
        HistoryLostError: a page that it refers to is not among `pages`, or was altered.
    """
    change = _change(tip_in(document), document, pages or {})
    place = document["_id"]["revision"]
    if not change.revision == document["revision"] == place:
        raise StoreError(
            f"the ledger has revision {document['revision']} in the place of revision {place}"
        )
    return change


def policy_document(
    environment: str, revision: int, change: PolicyChange, fields: Document | None = None
) -> Document:
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
        "_id": policy_id(environment, state.key, state.region),
        "revision": revision,
        "version": state.version,
        "policy": None,
        "hash": None,
    }
    if change.after is None:
        return document
    return document | (fields or fields_of(state, state.policy))


def fields_of(state: PolicyState, policy: Mapping[str, Any], flag: Flag | None = None) -> Document:
    """Return what a policy's document has of its state; `flag` is what it decodes to, if known."""
    # The document of a segment is its body, and clients do not read grants.
    if collection_of(state.region) != FLAGS:
        return {"policy": policy, "hash": f"{state.hash:016x}"}
    record = record_of(state, flag)
    body = _body_fields(record, segments_named(state) if flag is None else segments_of(flag))
    return {"policy": policy, "hash": f"{record.hash:016x}", **body}


def _body_fields(record: Record, named: set[str]) -> Document:
    seal = seal_of(record.key, record.version, record.hash, record.body)
    fields = {"body": record.body, "format": packing.FORMAT, "seal": seal}
    return fields | {"segments": sorted(named)} if named else fields


def segments_named(state: PolicyState) -> set[str]:
    """Return the segments that a flag's rules refer to; none for a segment."""
    if state.region == SEGMENTS_REGION or b"$segment" not in state.packed:
        return set()
    return segments_of(decode(state.policy, stored=True))


@judged
def members_part(document: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return a part of members by its SHA-256.

    Raises:
        StoreError: something changed it past the writer.
    """
    name, hashes = document["_id"]["part"], document["hashes"]
    if hashlib.sha256(hashes).hexdigest() != name:
        raise StoreError(f"the members {name} were changed past the writer")
    return name, hashes


@judged
def id_in(document: Mapping[str, Any]) -> PolicyId:
    """Return which policy a document of flags, segments or access is of."""
    identity = document["_id"]
    return typed(identity["region"], str), typed(identity["key"], str)


@judged
def revision_in(document: Mapping[str, Any]) -> int:
    """Return the revision that a policy's document, or one of the ledger, has."""
    return whole_number(document["revision"])


@judged
def version_in(document: Mapping[str, Any]) -> int:
    """Return the version that a policy's document has."""
    return whole_number(document["version"])


@judged
def time_in(document: Mapping[str, Any]) -> datetime:
    """Return the time that a document has."""
    return typed(document["time"], datetime)


@judged
def is_tombstone(document: Mapping[str, Any]) -> bool:
    """Tell whether a policy's document is what is left of one that was deleted."""
    return document["policy"] is None


@judged
def operations_in(document: Mapping[str, Any]) -> list[Document]:
    """Return the operations that a document has; none where it has no such field."""
    found: object = document.get("operations", [])
    if not isinstance(found, list):
        raise TypeError("operations is no list")
    return [typed(operation, dict) for operation in cast("list[object]", found)]


def prerequisites_of(state: PolicyState) -> list[str]:
    """Return the flags that a flag rests on.

    Raises:
        StoreError: its policy has not the form that it should have.
    """
    with judging(collection_of(state.region), {"_id": {"key": state.key, "region": state.region}}):
        return [str(item["flag"]) for item in state.policy.get("prerequisites", ())]


def check_access_policy(environment: str, state: PolicyState) -> None:
    """Read what grants, limits or the cut say, which are read again wherever they are needed.

    Raises:
        StoreError: it has not the form that it should have.
    """
    with judging(ACCESS, {"_id": policy_id(environment, state.key, state.region)}):
        if state.id == GRANTS:
            decode_grants(state.policy)
        elif state.id == LIMITS:
            decode_limits(state.policy)
        elif state.id == CUT:
            cut = cut_in(environment, state.policy)
            typed(cut.contents, str)
            typed(cut.tip.time, datetime)


@judged
def part_of_change(document: Mapping[str, Any], policies: tuple[PolicyChange, ...]) -> Change:
    """Return the change that a document of the ledger holds, with a part of what it did."""
    request, previous = typed(document["request"], str), typed(document["previous_hash"], str)
    return Change(tip_in(document), request, previous, policies)


@judged
def policy_state(document: Mapping[str, Any]) -> PolicyState | None:
    """Return the state that a flag's or a segment's document holds; None where it was deleted.

    Raises:
        StoreError: something changed it past the writer.
    """
    identity = document["_id"]
    if document["policy"] is None:
        return None
    state = _state_of(identity, whole_number(document["version"]), document["policy"])
    if document.get("hash") != f"{state.hash:016x}":
        raise StoreError(
            f"{identity['key']} ({identity['region']}) was changed past the writer: undo it"
        )
    return state


@judged
def last_state(document: Mapping[str, Any]) -> PolicyState | None:
    """Return the state that a deleted policy had, where its tombstone says so.

    It does where the ledger was cut: `last` is {policy, hash}.

    Raises:
        StoreError: something changed it past the writer.
    """
    identity, last = document["_id"], document.get("last")
    if last is None:
        return None
    state = _state_of(identity, whole_number(document["version"]), last["policy"])
    if last["hash"] != f"{state.hash:016x}":
        raise StoreError(
            f"what {identity['key']} ({identity['region']}) was when it was deleted was changed"
            " past the writer: undo it"
        )
    return state


@judged
def check_body(document: Mapping[str, Any], state: PolicyState) -> None:
    """Compare what clients read of a flag with its policy.

    A body of another format, or none, is not judged: clients here do not read it.

    Raises:
        StoreError: something changed one of them past the writer.
    """
    if document.get("format") == packing.FORMAT:
        expected = _body_fields(record_of(state), segments_named(state))
        if any(document.get(name) != value for name, value in expected.items()):
            raise StoreError(
                f"the body of {state.key} ({state.region}) is not that of its policy: one of them"
                " was changed past the writer"
            )


def _tip(environment: str, fields: Mapping[str, Any]) -> Tip:
    digests = {region: int(digest, 16) for region, digest in fields["digests"].items()}
    return Tip(
        typed(environment, str),
        typed(fields["epoch"], str),
        whole_number(fields["revision"]),
        typed(fields["hash"], str),
        typed(fields["time"], datetime),
        digests,
    )


def _change_body(change: Change, pages: Iterable[str]) -> Document:
    names = [*pages]
    body: Document = {"request": change.request, "previous_hash": change.previous_hash}
    if names:
        return body | {"pages": names}
    return body | {
        "policies": [
            {
                "region": policy.id[0],
                "key": policy.id[1],
                "before": _side(policy.before),
                "after": _side(policy.after),
            }
            for policy in change.policies
        ],
    }


def _side(state: PolicyState | None) -> Document | None:
    return None if state is None else {"version": state.version, "policy": state.policy}


def _change(tip: Tip, body: Mapping[str, Any], pages: Mapping[str, bytes]) -> Change:
    request, previous = typed(body["request"], str), typed(body["previous_hash"], str)
    if "pages" in body:
        return Change(tip, request, previous, joined(body["pages"], pages))
    policies = tuple(
        PolicyChange(_state(policy, policy["before"]), _state(policy, policy["after"]))
        for policy in body["policies"]
    )
    return Change(tip, request, previous, policies)


def _state(policy: Mapping[str, Any], side: Mapping[str, Any] | None) -> PolicyState | None:
    if side is None:
        return None
    return _state_of(policy, whole_number(side["version"]), side["policy"])


def _state_of(identity: Mapping[str, Any], version: int, policy: object) -> PolicyState:
    if not isinstance(policy, Mapping):
        raise TypeError("policy is no object")
    document = cast("Mapping[str, Any]", policy)
    return state_of(typed(identity["key"], str), typed(identity["region"], str), version, document)


def is_kept(state: PolicyState, encoded: bytes) -> bool:
    """Tell whether MongoDB gives back a policy's document as it was."""
    read: Document = bson.decode(encoded, CODEC)  # pyright: ignore[reportUnknownMemberType]
    return state_of(state.key, state.region, state.version, read) == state


def audited(document: Mapping[str, Any], pages: Mapping[str, bytes] | None = None) -> Change:
    """Return the change that a ledger document holds, if it holds nothing else.

    Raises:
        StoreError: it has not the form that it should have; with its revision.
    """
    try:
        change = ledgered(document, pages)
    except StoreError as error:
        raise StoreError(
            f"revision {document['_id']['revision']} of the ledger: {error}"
        ) from error
    whole = all(item.before or item.after for item in change.policies)
    if not whole or _names(document) != _names(ledger_document(change, names_in(document))):
        raise StoreError(f"revision {change.revision} of the ledger was altered")
    return change


def _names(part: object) -> Any:
    """Return the names of fields in a ledger document, without what is in policies."""
    if isinstance(part, list):
        return list(map(_names, cast("list[object]", part)))
    if not isinstance(part, Mapping):
        return None
    fields = cast("Mapping[str, object]", part)
    return {name: name == "policy" or _names(value) for name, value in fields.items()}


STORED_BYTES_MAX = 12 * 1024 * 1024
"""A change larger than this in BSON is refused: a document of MongoDB ends at 16 MiB."""
POLICY_BYTES_MAX = STORED_BYTES_MAX // 3
"""So that a policy can always be changed by itself, which stores it before and after."""
_SURELY_FITS_BYTES = POLICY_BYTES_MAX // 16
"""A null in a list is one byte in MessagePack, and up to nine in BSON."""
_FAULTS = (BSONError, OverflowError, UnicodeError, TypeError)


class Prepared(Struct, frozen=True, gc=False):
    """What is stored of a state, but for the revision.

    `size` is that of its policy in BSON; `is_kept` tells whether MongoDB gives it back as it was.
    """

    state: PolicyState
    size: int
    is_kept: bool
    fields: Document


def prepared(state: PolicyState, flag: Flag | None = None) -> Prepared:
    """Return what is to be stored of a state; `flag` is what it decodes to, if that is known.

    Raises:
        InvalidDocumentError: it holds what BSON has not.
    """
    try:
        encoded = bson.encode(state.policy)
        kept = is_kept(state, encoded)
    except _FAULTS as error:
        raise _unfit(error) from None
    # The driver copies these bytes, in the place of encoding the document again.
    return Prepared(state, len(encoded), kept, fields_of(state, RawBSONDocument(encoded), flag))


def fitting(
    change: Change,
    content: Mapping[str, Any],
    pages: Collection[str] = (),
    flags: Mapping[PolicyId, Flag] | None = None,
    ahead: Mapping[PolicyId, Prepared] | None = None,
) -> dict[PolicyId, Prepared]:
    """Refuse what MongoDB could not store, or not give back as it was, before anything is.

    Return what was prepared of a change on pages; nothing of others, which are judged as a whole.

    Args:
        change: What is to be stored.
        content: What the audit is to have of it.
        pages: The names of those that the change is on, if it is on any.
        flags: What documents after it decode to, as far as that is known.
        ahead: What was prepared before. It is passed over where the change came to another state.

    Raises:
        InvalidDocumentError: it is too large, or holds what BSON has not.
    """
    states = [policy.after for policy in change.policies if policy.after]
    ready = _ready(states, flags or {}, ahead or {}) if pages else {}
    try:
        encoded = bson.encode(ledger_document(change, pages))
        size = max(len(encoded), len(bson.encode({**content})))
        if pages:
            sizes = [each.size for each in ready.values()]
            same = all(each.is_kept for each in ready.values())
        else:
            sizes = [len(bson.encode(state.policy)) for state in states]
            read: Document = bson.decode(encoded, CODEC)  # pyright: ignore[reportUnknownMemberType]
            same = ledgered(read) == change
    except _FAULTS as error:
        raise _unfit(error) from None
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
        _check_policy_size(prepared(state).size)


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
        raise _unfit(error) from None
    _check_size(size, "request")


def _ready(
    states: Iterable[PolicyState],
    flags: Mapping[PolicyId, Flag],
    ahead: Mapping[PolicyId, Prepared],
) -> dict[PolicyId, Prepared]:
    found: dict[PolicyId, Prepared] = {}
    for state in states:
        identity = state.id
        ready = ahead.get(identity)
        if ready is None or ready.state != state:
            ready = prepared(state, flags.get(identity))
        found[identity] = ready
    return found


def _check_size(size: int, what: str) -> None:
    if size > STORED_BYTES_MAX:
        raise InvalidDocumentError(
            "",
            f"the {what} is {size:,} bytes in MongoDB; the limit is {STORED_BYTES_MAX:,}",
            "Split it up",
        )


def _unfit(error: Exception) -> InvalidDocumentError:
    return InvalidDocumentError("", f"cannot be stored: {error}", "Mend it")
