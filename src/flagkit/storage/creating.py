"""Creating: collections, indexes and the head of an environment, where they are not there yet."""

import contextlib

from pymongo.database import Database
from pymongo.errors import CollectionInvalid, DuplicateKeyError, OperationFailure

from flagkit.changes import Tip, genesis
from flagkit.errors import StoreError
from flagkit.storage.driver import NO_REPLICA_SET
from flagkit.storage.forms import head_document
from flagkit.storage.layout import HEADS, INDEXES, LEDGER, Document


def create_environment(database: Database[Document], environment: str, epoch: str) -> Tip | None:
    """Make an environment with its collections; return its tip, None if it was there before.

    Raises:
        StoreError: this is no replica set, or the environment has lost its head.
    """
    hello = database.command("hello", codec_options=database.codec_options)
    if "setName" not in hello:
        raise StoreError(NO_REPLICA_SET)
    create_collections(database)
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


def create_collections(database: Database[Document]) -> None:
    """Make all collections and indexes that are not there yet."""
    for name, indexes in INDEXES.items():
        # Of several that do this at once, all but one find it done.
        with contextlib.suppress(CollectionInvalid, OperationFailure):
            database.create_collection(name)
        if indexes:
            database[name].create_indexes(list(indexes))
