"""What `flagkit admin init` creates: collections, indexes, validators and database roles.

Creating an environment creates what is missing. Only an administrator changes what exists in
another version; two versions of writers would otherwise change it to and fro.

- bucket_keys: {_id: {environment, epoch}, key}; 32 random bytes that readers of flags may not read

Bucket keys name the rate-limit buckets of actors in the head, which every reader may read. A plain
hash would let a reader confirm a guessed actor name. A key never changes: a new key would give
every actor a full bucket.

The table of `layout` has the rights of the roles, and docs/access.md has them, too. MongoDB's roles
know collections but not keys, so the writer checks who may change which flags.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, OperationFailure

from flagkit._core.model.changes import Tip, build_genesis_tip
from flagkit._core.storage import layout
from flagkit._core.storage.documents import encode_head
from flagkit._core.storage.driver import NO_REPLICA_SET
from flagkit._core.storage.validation import VALIDATORS, build_validation_options
from flagkit.errors import StoreError, StoreUnavailableError

_EXISTS: Final = 48
_NOT_ALLOWED: Final = 13


def create_environment(
    database: Database[layout.Document], environment: str, epoch: str
) -> Tip | None:
    """Make an environment with its collections; return its tip, None if it was there before.

    Raises:
        StoreError: this is no replica set, the environment has lost its head, or the user may not
            make collections.
    """
    hello = database.command("hello", codec_options=database.codec_options)
    if "setName" not in hello:
        raise StoreError(NO_REPLICA_SET)
    try:
        for _ in provision_database(database):
            pass
    except OperationFailure as error:
        if error.code != _NOT_ALLOWED:
            raise
        if database[layout.HEADS].find_one({"_id": environment}) is None:
            raise StoreError(
                f"this user may not make the environment {environment!r}: have an administrator"
                f" run flagkit admin init --environment {environment}"
            ) from error
        return None
    # The ledger first: another may create the environment, and change it, in between.
    left_over = database[layout.LEDGER].find_one({"_id.environment": environment})
    if left_over and database[layout.HEADS].find_one({"_id": environment}) is None:
        raise StoreError(
            f"{environment!r} has a ledger and no head: restore the head, or remove the"
            " environment's ledger, flags and audit"
        )
    tip = build_genesis_tip(environment, epoch, hello["localTime"])
    try:
        database[layout.HEADS].insert_one(encode_head(tip, None))
    except DuplicateKeyError:
        return None
    return tip


def provision_database(database: Database[layout.Document], *, mend: bool = False) -> Iterator[str]:
    """Make collections and indexes that are not there; yield what was done, in words.

    Args:
        database: Whose.
        mend: Also bring validators up to date.
    """
    there = {found["name"]: found.get("options", {}) for found in database.list_collections()}
    for name in VALIDATORS:
        indexes = layout.COLLECTIONS[name].indexes
        wanted = build_validation_options(name)
        if name not in there:
            if _create_collection(database, name, wanted):
                yield f"{name}: created, with its validator"
        elif mend and any(there[name].get(option) != value for option, value in wanted.items()):
            database.command("collMod", name, **wanted)
            yield f"{name}: validator brought up to date"
        if indexes:
            created: dict[str, Any] = database.command(
                "createIndexes", name, indexes=[index.document for index in indexes]
            )
            count = created["numIndexesAfter"] - created["numIndexesBefore"]
            if count and name in there:
                yield f"{name}: {count} {'index' if count == 1 else 'indexes'} created"


def _create_collection(
    database: Database[layout.Document], name: str, options: dict[str, Any]
) -> bool:
    try:
        database.command("create", name, **options)
    except OperationFailure as error:
        if error.code != _EXISTS:
            raise
        # Of several that do this at once, all but one find it done.
        return False
    return True


READER, WRITER, ADMIN = "flagkitReader", "flagkitWriter", "flagkitAdmin"
ALL: Final = ""
"""In the place of a collection: each one of the database."""

_PREPARE: Final = ("listCollections", "createCollection", "createIndex", "collMod")

ROLES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    role: ({ALL: _PREPARE} if role == ADMIN else {})
    | {name: each.rights[at] for name, each in layout.COLLECTIONS.items() if each.rights[at]}
    for at, role in enumerate((READER, WRITER, ADMIN))
}
"""By role and collection, MongoDB's actions; nothing else is allowed."""


def provision_roles(database: Database[layout.Document]) -> Iterator[str]:
    """Make the roles of a database, or bring them up to date; yield what was done, in words."""
    named = [{"role": role, "db": database.name} for role in ROLES]
    info = database.command("rolesInfo", named, showPrivileges=True)
    there = {found["role"]: found["privileges"] for found in info["roles"]}
    for role, collections in ROLES.items():
        wanted = [
            {"resource": {"db": database.name, "collection": collection}, "actions": [*actions]}
            for collection, actions in collections.items()
        ]
        if role not in there:
            database.command("createRole", role, privileges=wanted, roles=[])
            yield f"{role}: created"
            continue
        # By differences, which an owner of this database may do; to update it takes one of all.
        lacking, excess = (
            _subtract_privileges(wanted, there[role]),
            _subtract_privileges(there[role], wanted),
        )
        if lacking:
            database.command("grantPrivilegesToRole", role, privileges=lacking)
        if excess:
            database.command("revokePrivilegesFromRole", role, privileges=excess)
        if lacking or excess:
            yield f"{role}: brought up to date"


def _subtract_privileges(
    some: list[layout.Document], others: list[layout.Document]
) -> list[layout.Document]:
    """Return some privileges without the actions that others have on the same resources."""
    found: list[layout.Document] = []
    for privilege in some:
        resource = privilege["resource"]
        known = [other["actions"] for other in others if other["resource"] == resource]
        actions = [name for name in privilege["actions"] if name not in chain(*known)]
        if actions:
            found.append({"resource": resource, "actions": actions})
    return found


KEY_BYTES: Final = 32


def find_bucket_key(
    database: Database[layout.Document], environment: str, epoch: str
) -> bytes | None:
    """Return the key of an environment's history, None if it has none yet.

    Raises:
        StoreError: something changed it past the writer.
    """
    document = database[layout.BUCKET_KEYS].find_one({"_id": _build_id(environment, epoch)})
    if document is None:
        return None
    key = document.get("key")
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise StoreError(
            f"{layout.BUCKET_KEYS} {document['_id']}: key is not {KEY_BYTES} bytes: it was changed"
            " past the writer. An administrator of the database removes the document: the next"
            " change makes a new one"
        )
    return key


def ensure_bucket_key(database: Database[layout.Document], environment: str, epoch: str) -> bytes:
    """Return the key of an environment's history, which is made if it has none yet.

    Of several that make it at once, all end with the same one.

    Raises:
        StoreError: something changed it past the writer.
        StoreUnavailableError: another is making it, and the majority has not got it yet.
    """
    found = find_bucket_key(database, environment, epoch)
    if found is None:
        created = {"_id": _build_id(environment, epoch), "key": os.urandom(KEY_BYTES)}
        with contextlib.suppress(DuplicateKeyError):
            database[layout.BUCKET_KEYS].insert_one(created)
        found = find_bucket_key(database, environment, epoch)
    if found is None:
        raise StoreUnavailableError("the key of the rate limits is being made elsewhere")
    return found


def create_bucket_keys(database: Database[layout.Document]) -> int:
    """Make the keys of all environments that have none; return how many were made."""
    count = 0
    for head in database[layout.HEADS].find({}, {"epoch": True}):
        place = head["_id"], str(head.get("epoch"))
        if find_bucket_key(database, *place) is None:
            ensure_bucket_key(database, *place)
            count += 1
    return count


def _build_id(environment: str, epoch: str) -> layout.Document:
    return {"environment": environment, "epoch": epoch}
