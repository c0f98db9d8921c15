"""The operations of a database administrator: prepare the database, and erase a person.

- erasures: {_id: "salt", salt}; names are hashed with it, and only administrators may read it

Erasing replaces a person's name and words everywhere outside the hash chain. An entry keeps a hash
of the name, so the changes of one person stay together. The digest of an altered request is erased
too, because it would confirm a guessed name.
"""

import contextlib
import hmac
import os
from collections.abc import Iterator
from typing import Final, Self

from pymongo import MongoClient, ReadPreference
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from flagkit._core.model.changes import GRANTS
from flagkit._core.storage.documents import CODEC
from flagkit._core.storage.driver import configured, settings_for, translated
from flagkit._core.storage.layout import (
    ACCESS,
    AUDIT,
    BUCKET_KEYS,
    DENIALS,
    ERASED,
    ERASURES,
    HEADS,
    LEDGER,
    PENDING,
    PROPOSALS,
    UNSEEDED,
    Document,
)
from flagkit._core.storage.provision import make_bucket_keys, prepared, prepared_roles
from flagkit._core.storage.requests import PROPOSE, shortened
from flagkit._core.storage.validation import judging
from flagkit.errors import StoreUnavailableError

_SALT: Final = {"_id": "salt"}
_SALT_BYTES: Final = 32
_HASH_LENGTH: Final = 16
_NAMED: Final = ("actor",)
_LISTED: Final = ("include", "exclude", "remove", "keys.included", "keys.excluded")
"""Where an operation in the audit names an actor, and where it lists keys as they were given."""
# With all that is altered: what has a digest, and another one, looks as if it was tampered with.
_GONE: Final = {"digest": ERASED}
_UNSEEDED_GONE: Final = {"$unset": {UNSEEDED: ""}}
_UNSEALED: Final = {"seal": ERASED}


def name_for(database: Database[Document], actor: str) -> str:
    """Return what stands for an actor who was erased, the same each time."""
    salted = hmac.digest(_salt(database), actor.encode(), "sha256")
    return f"{ERASED}:{salted.hex()[:_HASH_LENGTH]}"


def mentions(database: Database[Document], actor: str) -> dict[str, int]:
    """Return how many documents name an actor where that can be erased, by collection."""
    theirs = {"actor": actor}
    named = [{f"operations.{path}": actor} for path in (*_NAMED, *_LISTED)]
    wanted: dict[str, Document] = {
        AUDIT: {"$or": [theirs, {"applied_by": actor}, {"approved.by": actor}, *named]},
        PROPOSALS: {"$or": [{"_id.actor": actor}, *named]},
        DENIALS: _denied(actor),
    }
    return {name: database[name].count_documents(some) for name, some in wanted.items()}


def erase(database: Database[Document], actor: str, name: str) -> None:
    """Put a name in the place of an actor's, and nothing in the place of the actor's words.

    Broken off, it is to be done again.
    """
    audit, theirs = database[AUDIT], {"actor": actor}
    for collection in (AUDIT, PROPOSALS):
        _erase_in_operations(database[collection], actor, name)
    wordless = {"actor": name, "reason": ""}
    audit.update_many({"applied_by": actor}, {"$set": {"applied_by": name, **_GONE}})
    audit.update_many(
        {"approved.by": actor},
        {"$set": {"approved.by.$[who]": name, **_GONE}},
        array_filters=[{"who": actor}],
    )
    audit.update_many(
        {**theirs, "glass": {"$exists": True}}, {"$set": {**wordless, **_GONE, "glass": ERASED}}
    )
    audit.update_many(theirs, {"$set": {**wordless, **_GONE}, **_UNSEEDED_GONE})
    _erase_proposals(database[PROPOSALS], actor, name)
    _erase_trouble(database[PENDING], actor)
    database[DENIALS].update_many(_denied(actor), {"$set": wordless})


def _denied(actor: str) -> Document:
    """Return the filter of an actor's denials, which may have the beginning of the name alone."""
    return {"actor": {"$in": [actor, shortened(actor, "actor")]}}


def _erase_trouble(pending: Collection[Document], actor: str) -> None:
    """Remove the errors that name an actor: with quotes and escapes, or as it is."""
    quoted = repr(actor)
    forms = {quoted, quoted[1:-1], actor} if actor.strip() else {quoted}
    for document in pending.find({"trouble": {"$exists": True}}, {"trouble": True}):
        if any(form in str(document["trouble"]) for form in forms):
            pending.update_one({"_id": document["_id"]}, {"$set": {"trouble": ERASED}})


def _erase_in_operations(asked: Collection[Document], actor: str, name: str) -> None:
    for path in (*_NAMED, *_LISTED):
        place, filters = f"operations.$[operation].{path}", [{f"operation.{path}": actor}]
        if path in _LISTED:
            place, filters = f"{place}.$[key]", [*filters, {"key": actor}]
        asked.update_many(
            {f"operations.{path}": actor},
            {"$set": {place: name, **_GONE}, **_UNSEEDED_GONE},
            array_filters=filters,
        )


def _erase_proposals(proposals: Collection[Document], actor: str, name: str) -> None:
    for document in proposals.find({"_id.actor": actor}):
        identity = {**document["_id"], "actor": name}
        gone = _GONE if identity["verdict"] == PROPOSE else _sealless(document)
        with contextlib.suppress(DuplicateKeyError):
            proposals.insert_one({**document, "_id": identity, "reason": "", **gone})
        proposals.delete_one({"_id": document["_id"]})
    # What is said of a proposal is bound to its digest.
    erased = proposals.distinct("_id.proposal", _GONE)
    theirs = {"_id.proposal": {"$in": erased}}
    proposals.update_many(theirs, {"$set": _GONE})
    proposals.update_many({**theirs, "seal": {"$exists": True}}, {"$set": _UNSEALED})


def _sealless(document: Document) -> Document:
    return _UNSEALED if "seal" in document else {}


def roles_held(database: Database[Document], actor: str) -> list[str]:
    """Return the environments in which an actor holds a role."""
    found = database[ACCESS].find({"_id.key": GRANTS[1], "policy.grants.actor": actor}, {"_id": 1})
    return sorted(document["_id"]["environment"] for document in found)


def chained(database: Database[Document], actor: str) -> Iterator[tuple[str, int]]:
    """Yield the environments and revisions whose ledger documents have grants of an actor."""
    held = [{f"policies.{side}.policy.grants.actor": actor} for side in ("before", "after")]
    for head in database[HEADS].find({}, {"_id": True}, sort=[("_id", 1)]):
        granting = {"_id.environment": head["_id"], "policies.key": GRANTS[1], "$or": held}
        for document in database[LEDGER].find(granting, {"_id": True}, sort=[("_id", 1)]):
            yield head["_id"], document["_id"]["revision"]


def _salt(database: Database[Document]) -> bytes:
    salts = database[ERASURES]
    with contextlib.suppress(DuplicateKeyError):
        salts.insert_one({**_SALT, "salt": os.urandom(_SALT_BYTES)})
    found = salts.find_one(_SALT)
    if found is None:
        # Another's insert, which the majority has not got yet.
        raise StoreUnavailableError("the salt is being made elsewhere")
    return bytes(found["salt"])


class Administration:
    """A database, on its primary. To be closed, by `close` or as a context manager.

    Raises:
        ConfigurationError: the connection string makes no sense.
    """

    def __init__(self, uri: str, database: str) -> None:
        with configured(uri):
            self._client: MongoClient[Document] = MongoClient(uri, **settings_for(uri))
            self._database = self._client.get_database(
                database,
                CODEC,
                read_concern=ReadConcern("majority"),
                write_concern=WriteConcern("majority"),
                read_preference=ReadPreference.PRIMARY,
            )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> list[str]:
        """Make collections, indexes and keys, and mend validators; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translated("preparing the database"), judging():
            done = [*prepared(self._database, mend=True)]
            made = make_bucket_keys(self._database)
            return [*done, f"{BUCKET_KEYS}: {made} made"] if made else done

    def prepare_roles(self) -> list[str]:
        """Make the roles of the database, or bring them up to date; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translated("making roles"), judging():
            return [*prepared_roles(self._database)]

    def roles_held(self, actor: str) -> list[str]:
        """Return the environments in which an actor holds a role."""
        with translated("reading the grants"), judging():
            return roles_held(self._database, actor)

    def mentions(self, actor: str) -> dict[str, int]:
        """Return how many documents name an actor where that can be erased, by collection."""
        with translated("looking for an actor"), judging():
            return mentions(self._database, actor)

    def chained(self, actor: str) -> list[tuple[str, int]]:
        """Return the environments and revisions whose ledger documents have an actor's grants."""
        with translated("reading the ledger"), judging():
            return [*chained(self._database, actor)]

    def erase(self, actor: str) -> str:
        """Erase an actor where that can be done; return what stands in the actor's place.

        Raises:
            StoreError: the database did not answer, or refused. Done again, it goes on.
        """
        with translated("erasing an actor"), judging():
            name = name_for(self._database, actor)
            erase(self._database, actor, name)
        return name
