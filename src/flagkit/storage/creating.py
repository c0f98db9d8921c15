"""Creating: collections with indexes and validators, and the heads of environments.

Whoever makes an environment makes what is not there. What is there and other than this version has
it, only an administrator changes: writers of two versions would change it to and fro.
"""

from collections.abc import Iterator
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, OperationFailure

from flagkit.changes import Tip, genesis
from flagkit.errors import StoreError
from flagkit.storage.driver import NO_REPLICA_SET
from flagkit.storage.forms import head_document
from flagkit.storage.layout import HEADS, INDEXES, LEDGER, Document
from flagkit.storage.validators import validation

_EXISTS: Final = 48
_NOT_ALLOWED: Final = 13


def create_environment(database: Database[Document], environment: str, epoch: str) -> Tip | None:
    """Make an environment with its collections; return its tip, None if it was there before.

    Raises:
        StoreError: this is no replica set, the environment has lost its head, or the user may not
            make collections.
    """
    hello = database.command("hello", codec_options=database.codec_options)
    if "setName" not in hello:
        raise StoreError(NO_REPLICA_SET)
    try:
        for _ in prepared(database):
            pass
    except OperationFailure as error:
        if error.code != _NOT_ALLOWED:
            raise
        if database[HEADS].find_one({"_id": environment}) is None:
            raise StoreError(
                f"this user may not make the environment {environment!r}: have an administrator"
                f" run flagkit admin init --environment {environment}"
            ) from error
        return None
    # The ledger first: another may create the environment, and change it, in between.
    left_over = database[LEDGER].find_one({"_id.environment": environment})
    if left_over and database[HEADS].find_one({"_id": environment}) is None:
        raise StoreError(
            f"{environment!r} has a ledger and no head: restore the head, or remove the"
            " environment's ledger, flags and audit"
        )
    tip = genesis(environment, epoch, hello["localTime"])
    try:
        database[HEADS].insert_one(head_document(tip, None))
    except DuplicateKeyError:
        return None
    return tip


def prepared(database: Database[Document], *, mend: bool = False) -> Iterator[str]:
    """Make collections and indexes that are not there; yield what was done, in words.

    Args:
        database: Whose.
        mend: Also bring validators up to date.
    """
    there = {found["name"]: found.get("options", {}) for found in database.list_collections()}
    for name, indexes in INDEXES.items():
        wanted = validation(name)
        if name not in there:
            if _created(database, name, wanted):
                yield f"{name}: created, with its validator"
        elif mend and any(there[name].get(option) != value for option, value in wanted.items()):
            database.command("collMod", name, **wanted)
            yield f"{name}: validator brought up to date"
        if indexes:
            made: dict[str, Any] = database.command(
                "createIndexes", name, indexes=[index.document for index in indexes]
            )
            count = made["numIndexesAfter"] - made["numIndexesBefore"]
            if count and name in there:
                yield f"{name}: {count} {'index' if count == 1 else 'indexes'} created"


def _created(database: Database[Document], name: str, options: dict[str, Any]) -> bool:
    try:
        database.command("create", name, **options)
    except OperationFailure as error:
        if error.code != _EXISTS:
            raise
        # Of several that do this at once, all but one find it done.
        return False
    return True
