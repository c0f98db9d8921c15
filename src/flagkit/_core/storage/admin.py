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
from typing import Final

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from flagkit._core.model.changes import GRANTS
from flagkit._core.storage import layout
from flagkit._core.storage.driver import DatabaseHandle, translate_errors
from flagkit._core.storage.provision import create_bucket_keys, provision_database, provision_roles
from flagkit._core.storage.requests import PROPOSE, shorten_text
from flagkit._core.storage.validation import translate_form_errors
from flagkit.errors import StoreUnavailableError

_SALT: Final = {"_id": "salt"}
_SALT_BYTES: Final = 32
_HASH_LENGTH: Final = 16
_NAMED: Final = ("actor",)
_LISTED: Final = ("include", "exclude", "remove", "keys.included", "keys.excluded")
"""The fields of audited operations that name an actor or list keys as given."""
# With all that is altered: what has a digest, and another one, looks as if it was tampered with.
_GONE: Final = {"digest": layout.ERASED}
_UNSEEDED_GONE: Final = {"$unset": {layout.UNSEEDED: ""}}
_UNSEALED: Final = {"seal": layout.ERASED}


def derive_pseudonym(database: Database[layout.Document], actor: str) -> str:
    """Return what stands for an actor who was erased, the same each time."""
    salted = hmac.digest(_load_salt(database), actor.encode(), "sha256")
    return f"{layout.ERASED}:{salted.hex()[:_HASH_LENGTH]}"


def count_mentions(database: Database[layout.Document], actor: str) -> dict[str, int]:
    """Return how many documents name an actor where that can be erased, by collection."""
    theirs = {"actor": actor}
    named = [{f"operations.{path}": actor} for path in (*_NAMED, *_LISTED)]
    wanted: dict[str, layout.Document] = {
        layout.AUDIT: {"$or": [theirs, {"applied_by": actor}, {"approved.by": actor}, *named]},
        layout.PROPOSALS: {"$or": [{"_id.actor": actor}, *named]},
        layout.DENIALS: _build_denial_filter(actor),
    }
    return {name: database[name].count_documents(some) for name, some in wanted.items()}


def replace_actor(database: Database[layout.Document], actor: str, name: str) -> None:
    """Put a name in the place of an actor's, and nothing in the place of the actor's words.

    Broken off, it is to be done again.
    """
    audit, theirs = database[layout.AUDIT], {"actor": actor}
    for collection in (layout.AUDIT, layout.PROPOSALS):
        _erase_in_operations(database[collection], actor, name)
    wordless = {"actor": name, "reason": ""}
    audit.update_many({"applied_by": actor}, {"$set": {"applied_by": name, **_GONE}})
    audit.update_many(
        {"approved.by": actor},
        {"$set": {"approved.by.$[who]": name, **_GONE}},
        array_filters=[{"who": actor}],
    )
    audit.update_many(
        {**theirs, "glass": {"$exists": True}},
        {"$set": {**wordless, **_GONE, "glass": layout.ERASED}},
    )
    audit.update_many(theirs, {"$set": {**wordless, **_GONE}, **_UNSEEDED_GONE})
    _erase_proposals(database[layout.PROPOSALS], actor, name)
    _erase_errors(database[layout.PENDING], actor)
    database[layout.DENIALS].update_many(_build_denial_filter(actor), {"$set": wordless})


def _build_denial_filter(actor: str) -> layout.Document:
    """Return the filter of an actor's denials, which may have the beginning of the name alone."""
    return {"actor": {"$in": [actor, shorten_text(actor, "actor")]}}


def _erase_errors(pending: Collection[layout.Document], actor: str) -> None:
    """Remove the errors that name an actor: with quotes and escapes, or as it is."""
    quoted = repr(actor)
    forms = {quoted, quoted[1:-1], actor} if actor.strip() else {quoted}
    for document in pending.find({"trouble": {"$exists": True}}, {"trouble": True}):
        if any(form in str(document["trouble"]) for form in forms):
            pending.update_one({"_id": document["_id"]}, {"$set": {"trouble": layout.ERASED}})


def _erase_in_operations(requests: Collection[layout.Document], actor: str, name: str) -> None:
    for path in (*_NAMED, *_LISTED):
        place, filters = f"operations.$[operation].{path}", [{f"operation.{path}": actor}]
        if path in _LISTED:
            place, filters = f"{place}.$[key]", [*filters, {"key": actor}]
        requests.update_many(
            {f"operations.{path}": actor},
            {"$set": {place: name, **_GONE}, **_UNSEEDED_GONE},
            array_filters=filters,
        )


def _erase_proposals(proposals: Collection[layout.Document], actor: str, name: str) -> None:
    for document in proposals.find({"_id.actor": actor}):
        identity = {**document["_id"], "actor": name}
        gone = _GONE if identity["verdict"] == PROPOSE else _remove_seal(document)
        with contextlib.suppress(DuplicateKeyError):
            proposals.insert_one({**document, "_id": identity, "reason": "", **gone})
        proposals.delete_one({"_id": document["_id"]})
    # What is said of a proposal is bound to its digest.
    erased = proposals.distinct("_id.proposal", _GONE)
    theirs = {"_id.proposal": {"$in": erased}}
    proposals.update_many(theirs, {"$set": _GONE})
    proposals.update_many({**theirs, "seal": {"$exists": True}}, {"$set": _UNSEALED})


def _remove_seal(document: layout.Document) -> layout.Document:
    return _UNSEALED if "seal" in document else {}


def find_role_environments(database: Database[layout.Document], actor: str) -> list[str]:
    """Return the environments in which an actor holds a role."""
    found = database[layout.ACCESS].find(
        {"_id.key": GRANTS[1], "policy.grants.actor": actor}, {"_id": 1}
    )
    return sorted(document["_id"]["environment"] for document in found)


def iter_grant_revisions(
    database: Database[layout.Document], actor: str
) -> Iterator[tuple[str, int]]:
    """Yield the environments and revisions whose ledger documents have grants of an actor."""
    held = [{f"policies.{side}.policy.grants.actor": actor} for side in ("before", "after")]
    for head in database[layout.HEADS].find({}, {"_id": True}, sort=[("_id", 1)]):
        granting = {"_id.environment": head["_id"], "policies.key": GRANTS[1], "$or": held}
        for document in database[layout.LEDGER].find(granting, {"_id": True}, sort=[("_id", 1)]):
            yield head["_id"], document["_id"]["revision"]


def _load_salt(database: Database[layout.Document]) -> bytes:
    salts = database[layout.ERASURES]
    with contextlib.suppress(DuplicateKeyError):
        salts.insert_one({**_SALT, "salt": os.urandom(_SALT_BYTES)})
    found = salts.find_one(_SALT)
    if found is None:
        # Another's insert, which the majority has not got yet.
        raise StoreUnavailableError("the salt is being made elsewhere")
    return bytes(found["salt"])


class DatabaseAdmin(DatabaseHandle):
    """The operations of an administrator on a database."""

    def prepare(self) -> list[str]:
        """Make collections, indexes and keys, and mend validators; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translate_errors("preparing the database"), translate_form_errors():
            done = [*provision_database(self._database, mend=True)]
            created = create_bucket_keys(self._database)
            return [*done, f"{layout.BUCKET_KEYS}: {created} made"] if created else done

    def prepare_roles(self) -> list[str]:
        """Make the roles of the database, or bring them up to date; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translate_errors("making roles"), translate_form_errors():
            return [*provision_roles(self._database)]

    def find_role_environments(self, actor: str) -> list[str]:
        """Return the environments in which an actor holds a role."""
        with translate_errors("reading the grants"), translate_form_errors():
            return find_role_environments(self._database, actor)

    def count_mentions(self, actor: str) -> dict[str, int]:
        """Return how many documents name an actor where that can be erased, by collection."""
        with translate_errors("looking for an actor"), translate_form_errors():
            return count_mentions(self._database, actor)

    def list_grant_revisions(self, actor: str) -> list[tuple[str, int]]:
        """Return the environments and revisions whose ledger documents have an actor's grants."""
        with translate_errors("reading the ledger"), translate_form_errors():
            return [*iter_grant_revisions(self._database, actor)]

    def erase_actor(self, actor: str) -> str:
        """Erase an actor where that can be done; return what stands in the actor's place.

        Raises:
            StoreError: the database did not answer, or refused. Done again, it goes on.
        """
        with translate_errors("erasing an actor"), translate_form_errors():
            name = derive_pseudonym(self._database, actor)
            replace_actor(self._database, actor, name)
        return name
