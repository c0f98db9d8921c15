"""The collections: the forms of their documents, their indexes, and the rights of roles.

- heads: {_id: environment, epoch, revision, hash, time, digests, change, buckets}; the truth
- ledger: {_id: {environment, revision}} and the fields of a head and of its change
- flags, segments, access: {_id: {environment, key, region}, revision, version, policy, hash}
- members: {_id: {environment, part}, hashes}; hashed keys of segments, by their SHA-256
- audit: {_id: {environment, request}, sent, actor, reason, operations, digest, unseeded}
- pages: {_id: {environment, page}, keys, content, projected, unreferred}; parts of large changes
- checkpoints, slices: {_id: {environment, checkpoint}} and a tip; parts of a snapshot's bytes

A change is {request, previous_hash, policies}. Each policy has {version, policy} before and after,
or null. A large change has `pages`, their SHA-256, in place of `policies`. A head has `unprojected`
while the collections of policies may lack changes from that revision on.

The modules `client_registry`, `requests`, `admin` and `provision` describe the other collections.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from bson import MaxKey, MinKey
from pymongo import ASCENDING, DESCENDING, IndexModel

from flagkit._core.model.changes import ACCESS as ACCESS_REGION
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.changes import PolicyId
from flagkit._core.source import HOST_LENGTH_MAX, SERVICE_LENGTH_MAX

Document: TypeAlias = dict[str, Any]

HEADS, LEDGER, AUDIT = "heads", "ledger", "audit"
FLAGS, SEGMENTS, MEMBERS = "flags", "segments", "members"
ACCESS, DENIALS = "access", "denials"
BUCKET_KEYS = "bucket_keys"
PAGES = "pages"
CHECKPOINTS, SLICES = "checkpoints", "slices"
CLIENTS, ERASURES = "clients", "erasures"
KEYS = "keys"
"""The driver's own collection, of data keys, which is there where something is encrypted."""
PENDING, PROPOSALS = "pending", "proposals"
PROJECTED = (FLAGS, SEGMENTS, ACCESS)
_COLLECTION_BY_REGION = {SEGMENTS_REGION: SEGMENTS, ACCESS_REGION: ACCESS}
POLICY_HISTORY: Final = "policy_history"

ERASED: Final = "erased"
"""The audit has this in place of a digest after a request was altered."""
UNSEEDED: Final = "unseeded"
"""The field of a request's digest without the random seeds of segments, if it has any."""

DENIAL_LENGTH_MAX: Final[Mapping[str, int]] = {"actor": 200, "key": 200, "reason": 1_000}
"""How many characters are logged of each text of a denial; of a longer one the beginning."""
DENIAL_OPERATIONS_MAX: Final = 100
"""So many operations of what was denied are logged."""


def _build_kind_form(*types: str) -> Document:
    return {"bsonType": [*types]}


def _build_object_form(
    required: Mapping[str, Document], *also: str, **optional: Document
) -> Document:
    """Return the form of an object with fields that it must have, and some that it may."""
    return {
        "bsonType": ["object", *also],
        "required": [*required],
        "properties": {**required, **optional},
    }


def _build_text_form(length: int) -> Document:
    """Return the form of a text of at most so many characters."""
    return {"bsonType": ["string"], "maxLength": length}


_TEXT: Final = _build_kind_form("string")
_WHOLE: Final = {**_build_kind_form("int", "long"), "minimum": 0}
_SECONDS_MAX: Final = 1e10
"""No client is alive for so long."""
_MOMENT: Final = _build_kind_form("date")
_BYTES: Final = _build_kind_form("binData")
_LIST: Final = _build_kind_form("array")
_ANY: Final = _build_kind_form("object")

_TIP: Final = {
    "epoch": _TEXT,
    "revision": _WHOLE,
    "hash": _TEXT,
    "time": _MOMENT,
    "digests": {**_ANY, "additionalProperties": _TEXT},
}
_SIDE: Final = _build_object_form({"version": _WHOLE, "policy": _ANY}, "null")
_CHANGE: Final = {
    "request": _TEXT,
    "previous_hash": _TEXT,
}
_DID: Final = {
    "policies": {
        **_LIST,
        "items": _build_object_form(
            {"region": _TEXT, "key": _TEXT, "before": _SIDE, "after": _SIDE}
        ),
    },
    "pages": {**_LIST, "items": _TEXT},
}
_POLICY_ID: Final = {"environment": _TEXT, "key": _TEXT, "region": _TEXT}
_POLICY: Final = {
    "revision": _WHOLE,
    "version": _WHOLE,
    # Both are null in a tombstone.
    "policy": _build_kind_form("object", "null"),
    "hash": _build_kind_form("string", "null"),
}
_CARRIED: Final = {
    "time": _MOMENT,
    "last": _build_object_form({"policy": _ANY, "hash": _TEXT}),
}
"""The fields of a policy that hold its last change after the ledger was pruned."""
_ASKED: Final = {"actor": _TEXT, "reason": _TEXT, "operations": {**_LIST, "items": _ANY}}


def _build_either_form(form: Document, names: Mapping[str, Document]) -> Document:
    """Return the form of an object that has at least one of some fields."""
    fields = {"properties": {**form["properties"], **names}}
    return form | fields | {"anyOf": [{"required": [name]} for name in names]}


def _build_validator(
    identity: Mapping[str, Document],
    required: Mapping[str, Document],
    **optional: Document,
) -> Document:
    """Return the validator of documents whose `_id` has exactly these fields, in this order."""
    form = _build_object_form({"_id": _build_object_form(identity), **required}, **optional)
    # Ranges compare whole `_id`s, so their order counts; a schema cannot say it.
    ordered = {name: f"$_id.{name}" for name in identity}
    return {"$jsonSchema": form, "$expr": {"$eq": ["$_id", ordered]}}


_LEDGER: Final = _build_validator({"environment": _TEXT, "revision": _WHOLE}, {**_TIP, **_CHANGE})

_READ: Final = ("find",)
_WATCH: Final = ("find", "changeStream")
_ADD: Final = ("find", "insert")
_PUT: Final = ("find", "insert", "update")
_PUBLISH: Final = ("find", "insert", "remove")


class Collection(NamedTuple):
    """One collection. One without a validator belongs to the driver, which creates it.

    `rights` are MongoDB's actions for the roles flagkitReader, flagkitWriter and flagkitAdmin.
    """

    validator: Document | None
    rights: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    indexes: tuple[IndexModel, ...] = ()


COLLECTIONS: Final[Mapping[str, Collection]] = {
    HEADS: Collection(
        {
            "$jsonSchema": _build_object_form(
                {
                    "_id": _TEXT,
                    **_TIP,
                    "change": {
                        "anyOf": [
                            _build_kind_form("null"),
                            _build_either_form(_build_object_form(_CHANGE), _DID),
                        ]
                    },
                },
                buckets={**_ANY, "additionalProperties": _WHOLE},
                unprojected=_WHOLE,
            )
        },
        rights=(_WATCH, (*_WATCH, "update"), (*_WATCH, "insert", "update")),
    ),
    AUDIT: Collection(
        _build_validator(
            {"environment": _TEXT, "request": _TEXT},
            {"sent": _MOMENT, **_ASKED, "digest": _TEXT},
            unseeded=_TEXT,
            glass=_TEXT,
            tip=_build_object_form(_TIP),
            proposal=_TEXT,
            applied_by=_TEXT,
            approved=_build_object_form({"digest": _TEXT, "by": {**_LIST, "items": _TEXT}}),
        ),
        rights=((), _ADD, (*_PUT, "remove")),
    ),
    SEGMENTS: Collection(
        _build_validator(_POLICY_ID, _POLICY, **_CARRIED),
        rights=(_READ, _PUT, _PUT),
    ),
    ACCESS: Collection(
        _build_validator(_POLICY_ID, _POLICY, **_CARRIED),
        rights=((), _PUT, _PUT),
    ),
    DENIALS: Collection(
        _build_validator(
            {"environment": _TEXT, "denial": _TEXT},
            {
                "time": _MOMENT,
                "action": _TEXT,
                **{name: {**_TEXT, "maxLength": most} for name, most in DENIAL_LENGTH_MAX.items()},
                "operations": {**_LIST, "items": _ANY, "maxItems": DENIAL_OPERATIONS_MAX},
            },
        ),
        rights=((), ("insert",), (*_PUT, "remove")),
    ),
    BUCKET_KEYS: Collection(
        _build_validator({"environment": _TEXT, "epoch": _TEXT}, {"key": _BYTES}),
        # Nobody may change a key: every actor would have a full bucket again.
        rights=((), _ADD, _ADD),
    ),
    MEMBERS: Collection(
        _build_validator(
            {"environment": _TEXT, "part": _TEXT}, {"hashes": _BYTES}, unreferred=_MOMENT
        ),
        rights=(_READ, _PUT, (*_PUT, "remove")),
    ),
    CHECKPOINTS: Collection(
        _build_validator(
            {"environment": _TEXT, "checkpoint": _TEXT},
            {
                **_TIP,
                **dict.fromkeys(("flags", "slices", "bytes", "frame", "packing"), _WHOLE),
                "checksum": _TEXT,
                "byte_order": _TEXT,
            },
        ),
        rights=(_READ, _PUBLISH, _PUBLISH),
    ),
    SLICES: Collection(
        _build_validator(
            {"environment": _TEXT, "checkpoint": _TEXT, "slice": _WHOLE}, {"content": _BYTES}
        ),
        rights=(_READ, _PUBLISH, _PUBLISH),
    ),
    ERASURES: Collection(
        {"$jsonSchema": _build_object_form({"_id": _TEXT, "salt": _BYTES})},
        # Nobody may change a salt: the same person would get another name.
        rights=((), (), _ADD),
    ),
    PENDING: Collection(
        _build_validator(
            {"environment": _TEXT, "request": _TEXT},
            {
                "since": _MOMENT,
                "place": _TEXT,
                # Null where all is touched.
                "touched": {
                    **_build_kind_form("array", "null"),
                    "items": _build_object_form({"region": _TEXT, "key": _TEXT}),
                },
            },
            tries=_WHOLE,
            not_before=_MOMENT,
            trouble=_TEXT,
            refused=_build_kind_form("bool"),
        ),
        rights=((), (*_PUT, "remove"), (*_PUT, "remove")),
    ),
    PROPOSALS: Collection(
        _build_validator(
            {"environment": _TEXT, "proposal": _TEXT, "actor": _TEXT, "verdict": _TEXT},
            {"time": _MOMENT, "reason": _TEXT, "digest": _TEXT},
            seal=_TEXT,
            operations={**_LIST, "items": _ANY},
            touched={
                **_LIST,
                "items": _build_object_form(
                    {
                        "region": _TEXT,
                        "key": _TEXT,
                        "version": _build_kind_form("int", "long", "null"),
                    }
                ),
            },
            depends={
                **_LIST,
                "items": _build_object_form(
                    {
                        **dict.fromkeys(("key", "which", "region"), _TEXT),
                        "but": {**_LIST, "items": _TEXT},
                        "versions": {
                            **_LIST,
                            "items": _build_object_form({"region": _TEXT, "version": _WHOLE}),
                        },
                    }
                ),
            },
        ),
        rights=((), _ADD, (*_PUT, "remove")),
    ),
    CLIENTS: Collection(
        _build_validator(
            {"environment": _build_text_form(1_000), "instance": _build_text_form(100)},
            {
                "service": _build_text_form(SERVICE_LENGTH_MAX),
                "host": _build_text_form(HOST_LENGTH_MAX),
                **dict.fromkeys(("region", "epoch"), _build_text_form(100)),
                **dict.fromkeys(("pid", "revision"), _WHOLE),
                "staleness": {
                    **_build_kind_form("double", "int", "long", "null"),
                    "minimum": 0,
                    "maximum": _SECONDS_MAX,
                },
                "time": _MOMENT,
                "until": _MOMENT,
            },
        ),
        # Clients write their heartbeats.
        rights=(_PUT, _READ, _PUT),
        indexes=(IndexModel([("until", ASCENDING)], name="until", expireAfterSeconds=0),),
    ),
    LEDGER: Collection(
        _LEDGER | {"$jsonSchema": _build_either_form(_LEDGER["$jsonSchema"], _DID)},
        rights=(_READ, _ADD, (*_ADD, "remove")),
        indexes=(
            IndexModel(
                [("_id.environment", ASCENDING), ("request", ASCENDING)],
                name="request",
                unique=True,
            ),
            IndexModel(
                [
                    ("_id.environment", ASCENDING),
                    ("policies.key", ASCENDING),
                    ("_id.revision", ASCENDING),
                ],
                name=POLICY_HISTORY,
            ),
            IndexModel(
                [("_id.environment", ASCENDING), ("pages", ASCENDING)],
                name="pages",
                partialFilterExpression={"pages": {"$exists": True}},
            ),
        ),
    ),
    PAGES: Collection(
        _build_validator(
            {"environment": _TEXT, "page": _TEXT},
            {"keys": {**_LIST, "items": _TEXT}, "content": _BYTES},
            projected=_WHOLE,
            unreferred=_MOMENT,
        ),
        rights=(_READ, _PUT, (*_PUT, "remove")),
        indexes=(
            IndexModel(
                [("_id.environment", ASCENDING), ("keys", ASCENDING)], name="page_of_policy"
            ),
        ),
    ),
    FLAGS: Collection(
        _build_validator(
            _POLICY_ID,
            _POLICY,
            body=_BYTES,
            format=_WHOLE,
            seal=_TEXT,
            segments={**_LIST, "items": _TEXT},
            **_CARRIED,
        ),
        rights=(_READ, _PUT, _PUT),
        indexes=(
            IndexModel(
                [
                    ("_id.environment", ASCENDING),
                    ("_id.region", ASCENDING),
                    ("policy.state", ASCENDING),
                    ("policy.expires", ASCENDING),
                    ("_id.key", ASCENDING),
                ],
                name="active_in_region",
            ),
            IndexModel(
                [("_id.environment", ASCENDING), ("policy.prerequisites.flag", ASCENDING)],
                name="dependents",
                partialFilterExpression={"policy.prerequisites.flag": {"$exists": True}},
            ),
            IndexModel(
                [("_id.environment", ASCENDING), ("segments", ASCENDING)],
                name="referring",
                partialFilterExpression={"segments": {"$exists": True}},
            ),
        ),
    ),
    KEYS: Collection(
        None,
        rights=(_READ, _READ, _PUT),
    ),
}
"""The collections, by name. `flagkit admin init` creates them, but for that of the driver."""


def build_ledger_id(environment: str, revision: Any) -> Document:
    """Return a ledger document's `_id`. Field order counts: ranges compare whole `_id`s."""
    return {"environment": environment, "revision": revision}


def build_policy_id(environment: str, key: Any, region: Any) -> Document:
    """Return a flag's or segment's `_id`. Field order counts: ranges compare whole `_id`s."""
    return {"environment": environment, "key": key, "region": region}


def build_slice_id(environment: str, checkpoint: Any, number: Any) -> Document:
    """Return the `_id` of a slice. Field order counts: ranges compare whole `_id`s."""
    return {"environment": environment, "checkpoint": checkpoint, "slice": number}


def build_checkpoint_id(environment: str, checkpoint: Any) -> Document:
    """Return a manifest's `_id`. Field order counts: ranges compare whole `_id`s."""
    return {"environment": environment, "checkpoint": checkpoint}


def filter_checkpoints(environment: str) -> Document:
    """Return the filter of all manifests of an environment, a range of the `_id` index."""
    return _filter_range(lambda end: build_checkpoint_id(environment, end))


def filter_slices(environment: str, checkpoint: str | None = None) -> Document:
    """Return the filter of the slices of a checkpoint, or of all; a range of the `_id` index."""
    return _filter_range(
        lambda end: build_slice_id(environment, end if checkpoint is None else checkpoint, end)
    )


def filter_parts(environment: str, parts: Iterable[str]) -> Document:
    """Return the filter of some parts of members."""
    return {"_id": {"$in": [{"environment": environment, "part": part} for part in parts]}}


def build_page_id(environment: str, page: Any) -> Document:
    """Return a page's `_id`. Field order counts: ranges compare whole `_id`s."""
    return {"environment": environment, "page": page}


def filter_pages(environment: str, pages: Iterable[str]) -> Document:
    """Return the filter of some pages."""
    return {"_id": {"$in": [build_page_id(environment, page) for page in pages]}}


def filter_pending(environment: str) -> Document:
    """Return the filter of all that waits in an environment, a range of the `_id` index."""
    return _filter_range(lambda end: {"environment": environment, "request": end})


def filter_proposals(environment: str) -> Document:
    """Return the filter of all proposals of an environment, a range of the `_id` index."""
    return _filter_range(lambda end: {"environment": environment, "proposal": end})


def filter_proposals_by_id(environment: str, proposals: Iterable[str]) -> Document:
    """Return the filter of some proposals, with all that was said; ranges of the `_id` index."""
    ids = ({"environment": environment, "proposal": name} for name in proposals)
    return {"$or": [_filter_range(partial(_add_actor, identity)) for identity in ids]}


def _add_actor(identity: Document, actor: Any) -> Document:
    return {**identity, "actor": actor}


def _filter_range(build_id: Callable[[Any], Document]) -> Document:
    """Return the filter of all `_id`s between those that the least and the largest value build."""
    return {"_id": {"$gte": build_id(MinKey()), "$lte": build_id(MaxKey())}}


def filter_ledger_after(environment: str, revision: int) -> Document:
    """Return the filter of an environment's ledger after a revision, a range of the `_id` index."""
    # Whatever number a revision is, a string comes after it in BSON's order.
    return {
        "_id": {
            "$gt": build_ledger_id(environment, revision),
            "$lt": build_ledger_id(environment, ""),
        }
    }


def filter_ledger_through(environment: str, revision: int) -> Document:
    """Return the filter of an environment's ledger up to a revision, a range of `_id`s."""
    return {
        "_id": {
            "$gt": build_ledger_id(environment, 0),
            "$lte": build_ledger_id(environment, revision),
        }
    }


def filter_environment(environment: str) -> Document:
    """Return the filter of all that an environment has in a collection, a range of `_id`s."""
    # Of whatever field comes second, a value of the last of all types comes after it.
    after = {"environment": environment, "": MaxKey()}
    return {"_id": {"$gte": {"environment": environment}, "$lte": after}}


def filter_policy_ledger(
    key: str | None, since: datetime | None, until: datetime | None, pages: Iterable[str] = ()
) -> Document:
    """Return the filter of changes to a flag or segment, from a moment on and before another.

    `pages` are those that name it.
    """
    times = {"$gte": since, "$lt": until}
    bounds = {operator: moment for operator, moment in times.items() if moment is not None}
    found: Document = {} if key is None else {"policies.key": key}
    if named := [*pages]:
        found = {"$or": [found, {"pages": {"$in": named}}]}
    return found | {"time": bounds} if bounds else found


def filter_ledger_request(environment: str, request: str) -> Document:
    """Return the filter of the ledger's document of a request; answered from an index."""
    return {"_id.environment": environment, "request": request}


def build_last_change_pipeline(
    environment: str, policy: PolicyId, until: int | None = None
) -> list[Document]:
    """Return the pipeline for the last change to a policy, of which it keeps that part alone.

    `until` is the last revision that is asked for. The index `policy_history` has it in its order.
    """
    region, key = policy
    itself = {"$and": [_match_literal("$$this.key", key), _match_literal("$$this.region", region)]}
    return [
        {
            "$match": {
                "_id.environment": environment,
                "policies": {"$elemMatch": {"key": key, "region": region}},
                "_id.revision": {"$gt": 0} if until is None else {"$lte": until},
            }
        },
        {"$sort": {"_id.revision": DESCENDING}},
        {"$limit": 1},
        # Not what else it changed: of bulk changes that is too much for each of their flags.
        {"$set": {"policies": {"$filter": {"input": "$policies", "cond": itself}}}},
    ]


def build_changes_pipeline(
    environment: str, revisions: Iterable[int], keys: Iterable[str]
) -> list[Document]:
    """Return the pipeline for the ledger's changes at some revisions, to policies of some keys."""
    identities = [build_ledger_id(environment, revision) for revision in sorted(set(revisions))]
    mine = {"_id": {"$in": identities}, "policies": {"$exists": True}}
    return [{"$match": mine}, {"$set": {"policies": _build_policies_expression(keys)}}]


def build_later_changes_pipeline(
    environment: str, keys: Mapping[int, Iterable[str]]
) -> list[Document]:
    """Return the pipeline for what the ledger changed of keys after revisions, each with its own.

    It gives ids alone, and is to be answered from the index `policy_history`.
    """
    later = [
        {
            "_id.environment": environment,
            "policies.key": {"$in": sorted(some)},
            "_id.revision": {"$gt": revision},
        }
        for revision, some in keys.items()
    ]
    wanted = {key for some in keys.values() for key in some}
    named = {"key": "$$this.key", "region": "$$this.region"}
    ids = {"$map": {"input": _build_policies_expression(wanted), "in": named}}
    return [{"$match": {"$or": later}}, {"$project": {"policies": ids}}]


def filter_dependents(environment: str, keys: Iterable[str]) -> Document:
    """Return the filter of the flags that rest on others; answered from the index `dependents`."""
    return {
        "_id.environment": environment,
        "policy.prerequisites.flag": {"$in": sorted(keys)},
    }


def filter_policies(environment: str) -> Document:
    """Return the filter of all flags, or segments, of an environment, a range of `_id`s."""
    return _filter_range(lambda end: build_policy_id(environment, end, end))


def filter_namespaces(environment: str, namespaces: Iterable[str]) -> Document:
    """Return the filter of the flags whose keys begin with one of some; ranges of `_id`s."""
    # What keys are made of comes before a tilde.
    return {
        "$or": [{"_id": _filter_id_range(environment, name, f"{name}~")} for name in namespaces]
    }


def filter_policies_by_key(environment: str, keys: list[str]) -> Document:
    """Return the filter of some flags in all regions, or segments; ranges of the `_id` index."""
    return {"$or": [{"_id": _filter_id_range(environment, key, key)} for key in keys]}


def filter_neighbours(environment: str, key: str, *, is_after: bool) -> Document:
    """Return the filter of flags, or segments, from a key on, or before it; a range of `_id`s."""
    if is_after:
        return {"_id": _filter_id_range(environment, key, MaxKey())}
    first, last = (build_policy_id(environment, end, MinKey()) for end in (MinKey(), key))
    return {"_id": {"$gte": first, "$lt": last}}


def _build_policies_expression(keys: Iterable[str]) -> Document:
    """Return the expression for what a ledger document has on policies of some keys."""
    return {
        "$filter": {
            "input": "$policies",
            "cond": {"$in": ["$$this.key", {"$literal": sorted(keys)}]},
        }
    }


def _match_literal(field: str, text: str) -> Document:
    return {"$eq": [field, {"$literal": text}]}


def _filter_id_range(environment: str, first: Any, last: Any) -> Document:
    return {
        "$gte": build_policy_id(environment, first, MinKey()),
        "$lte": build_policy_id(environment, last, MaxKey()),
    }


def filter_active_flags(environment: str, region: str, at: datetime) -> Document:
    """Return the filter of flags written for one region, active and not past `expires`."""
    return {
        "_id.environment": environment,
        "_id.region": region,
        "policy.state": "active",
        "policy.expires": {"$not": {"$lte": at}},
    }


def get_collection_name(region: str) -> str:
    """Return the collection in which a policy stands."""
    return _COLLECTION_BY_REGION.get(region, FLAGS)


def compute_request_digest(request: Mapping[str, Any]) -> str:
    """Return the digest that tells whether two requests of one id ask for the same."""
    return str(request.get(UNSEEDED, request["digest"]))
