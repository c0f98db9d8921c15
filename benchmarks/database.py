"""Database: an environment of a catalogue in MongoDB, inserted straight, as a writer leaves it.

A writer would take hours for a million flags. The head's change is that of W1, the last flag that
came; what led to the others is not in the ledger.
"""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final

from pymongo import MongoClient, ReplaceOne

from benchmarks.catalogue import ENVIRONMENT, CatalogueEntry, build_entry, build_tip, iter_documents
from benchmarks.workloads import FLAGS, W1
from flagkit._core.model import packing
from flagkit._core.model.changes import Change, PolicyChange, Tip, build_next_change
from flagkit._core.model.packing import compute_seal
from flagkit._core.storage.documents import encode_head, encode_ledger, encode_policy_document
from flagkit._core.storage.layout import FLAGS as FLAGS_COLLECTION
from flagkit._core.storage.layout import HEADS, LEDGER, Document, build_policy_id
from flagkit.config import DATABASE

INSERTED_AT_ONCE: Final = 10_000


def insert(uri: str, flag_count: int) -> Tip:
    """Insert a catalogue and the flags of W1 to W3; return where the environment stands."""
    hashes: list[int] = []

    def inserted() -> Iterator[Document]:
        for flag in chain(FLAGS, iter_documents(flag_count)):
            if flag["key"] != W1:
                found = build_entry(flag)
                hashes.append(found.record.hash)
                yield encode_entry(found)

    with MongoClient[dict[str, Any]](uri, w=1) as mongo:
        flags, rest = mongo[DATABASE][FLAGS_COLLECTION], inserted()
        while some := list(islice(rest, INSERTED_AT_ONCE)):
            flags.insert_many(some, ordered=False)
    before = build_tip(hashes)
    last = PolicyChange(None, build_entry(_get_flag(W1)).state)
    change = build_next_change(before, "request-w1", before.time, [last])
    commit(uri, [change])
    return change.tip


def encode_entry(found: CatalogueEntry) -> Document:
    """Return the document of a flag, as the layout has it, without packing its policy again."""
    record = found.record
    return {
        "_id": build_policy_id(ENVIRONMENT, record.key, record.region),
        "revision": 1,
        "version": record.version,
        "policy": found.policy,
        "hash": f"{record.hash:016x}",
        "body": record.body,
        "format": packing.FORMAT,
        "seal": compute_seal(record.key, record.version, record.hash, record.body),
    }


def commit(uri: str, changes: list[Change]) -> None:
    """Project changes one after the other, and have the head stand at the last."""
    with MongoClient[dict[str, Any]](uri, w="majority") as mongo:
        database = mongo[DATABASE]
        documents = [
            encode_policy_document(ENVIRONMENT, change.revision, policy)
            for change in changes
            for policy in change.policies
        ]
        database[FLAGS_COLLECTION].bulk_write(
            [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in documents]
        )
        database[LEDGER].insert_many(map(encode_ledger, changes))
        head = encode_head(changes[-1].tip, changes[-1])
        database[HEADS].replace_one({"_id": ENVIRONMENT}, head, upsert=True)


def _get_flag(key: str) -> Mapping[str, Any]:
    return next(flag for flag in FLAGS if flag["key"] == key)
