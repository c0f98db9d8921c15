"""Bucket keys: the secrets by which the head names the buckets of actors' rate limits.

- bucket_keys: {_id: {environment, epoch}, key}; 32 random bytes, which readers of flags may not
  read

Every reader may read the head. If its buckets were named by a plain hash, a reader could guess an
actor's name and see that the guess is right. A key is never changed: with another one every actor
would begin with a full bucket.
"""

import contextlib
import os
from typing import Final

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from flagkit.errors import StoreError, StoreUnavailableError
from flagkit.storage.layout import BUCKET_KEYS, HEADS, Document

KEY_BYTES: Final = 32


def found_bucket_key(database: Database[Document], environment: str, epoch: str) -> bytes | None:
    """Return the key of an environment's history, None if it has none yet.

    Raises:
        StoreError: something changed it past the writer.
    """
    document = database[BUCKET_KEYS].find_one({"_id": _identity(environment, epoch)})
    if document is None:
        return None
    key = document.get("key")
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise StoreError(
            f"{BUCKET_KEYS} {document['_id']}: key is not {KEY_BYTES} bytes: it was changed past"
            " the writer. An administrator of the database removes the document: the next change"
            " makes a new one"
        )
    return key


def made_bucket_key(database: Database[Document], environment: str, epoch: str) -> bytes:
    """Return the key of an environment's history, which is made if it has none yet.

    Of several that make it at once, all end with the same one.

    Raises:
        StoreError: something changed it past the writer.
        StoreUnavailableError: another is making it, and the majority has not got it yet.
    """
    found = found_bucket_key(database, environment, epoch)
    if found is None:
        made = {"_id": _identity(environment, epoch), "key": os.urandom(KEY_BYTES)}
        with contextlib.suppress(DuplicateKeyError):
            database[BUCKET_KEYS].insert_one(made)
        found = found_bucket_key(database, environment, epoch)
    if found is None:
        raise StoreUnavailableError("the key of the rate limits is being made elsewhere")
    return found


def make_bucket_keys(database: Database[Document]) -> int:
    """Make the keys of all environments that have none; return how many were made."""
    count = 0
    for head in database[HEADS].find({}, {"epoch": True}):
        place = head["_id"], str(head.get("epoch"))
        if found_bucket_key(database, *place) is None:
            made_bucket_key(database, *place)
            count += 1
    return count


def _identity(environment: str, epoch: str) -> Document:
    return {"environment": environment, "epoch": epoch}
