"""Roles: what users of the database may do in flagkit's collections, and what it refuses them.

One table, from which the roles are made; docs/access.md has the same. MongoDB's roles know
collections and no keys: who may change which flags is the writer's to check.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

from pymongo.database import Database

from flagkit.storage.layout import (
    ACCESS,
    AUDIT,
    BUCKET_KEYS,
    CHECKPOINTS,
    CLIENTS,
    DENIALS,
    ERASURES,
    FLAGS,
    HEADS,
    KEYS,
    LEDGER,
    MEMBERS,
    PAGES,
    PENDING,
    PROPOSALS,
    SEGMENTS,
    SLICES,
    Document,
)

READER, WRITER, ADMIN = "flagkitReader", "flagkitWriter", "flagkitAdmin"
ALL: Final = ""
"""In the place of a collection: each one of the database."""

_READ: Final = ("find",)
_WATCH: Final = ("find", "changeStream")
_ADD: Final = ("find", "insert")
_PUT: Final = ("find", "insert", "update")
_PUBLISH: Final = ("find", "insert", "remove")

ROLES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    READER: {
        HEADS: _WATCH,
        LEDGER: _READ,
        FLAGS: _READ,
        SEGMENTS: _READ,
        MEMBERS: _READ,
        PAGES: _READ,
        CHECKPOINTS: _READ,
        SLICES: _READ,
        # Where clients tell where they stand.
        CLIENTS: _PUT,
        KEYS: _READ,
    },
    WRITER: {
        HEADS: (*_WATCH, "update"),
        LEDGER: _ADD,
        FLAGS: _PUT,
        SEGMENTS: _PUT,
        MEMBERS: _PUT,
        PAGES: _PUT,
        ACCESS: _PUT,
        AUDIT: _ADD,
        DENIALS: ("insert",),
        BUCKET_KEYS: _ADD,
        PENDING: (*_PUT, "remove"),
        PROPOSALS: _ADD,
        CHECKPOINTS: _PUBLISH,
        SLICES: _PUBLISH,
        CLIENTS: _READ,
        KEYS: _READ,
    },
    ADMIN: {
        ALL: ("listCollections", "createCollection", "createIndex", "collMod"),
        HEADS: (*_WATCH, "insert", "update"),
        LEDGER: (*_ADD, "remove"),
        FLAGS: _PUT,
        SEGMENTS: _PUT,
        MEMBERS: (*_PUT, "remove"),
        PAGES: (*_PUT, "remove"),
        ACCESS: _PUT,
        AUDIT: (*_PUT, "remove"),
        DENIALS: (*_PUT, "remove"),
        # Never another key, by which every actor would have a full bucket again.
        BUCKET_KEYS: _ADD,
        # Never another salt, by which the same person would become another.
        ERASURES: _ADD,
        PENDING: (*_PUT, "remove"),
        PROPOSALS: (*_PUT, "remove"),
        CHECKPOINTS: _PUBLISH,
        SLICES: _PUBLISH,
        CLIENTS: _PUT,
        KEYS: _PUT,
    },
}
"""By role and collection, MongoDB's actions; nothing else is allowed."""


def prepared_roles(database: Database[Document]) -> Iterator[str]:
    """Make the roles of a database, or bring them up to date; yield what was done, in words."""
    named = [{"role": role, "db": database.name} for role in ROLES]
    told = database.command("rolesInfo", named, showPrivileges=True)
    there = {found["role"]: found["privileges"] for found in told["roles"]}
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
        lacking, excess = _less(wanted, there[role]), _less(there[role], wanted)
        if lacking:
            database.command("grantPrivilegesToRole", role, privileges=lacking)
        if excess:
            database.command("revokePrivilegesFromRole", role, privileges=excess)
        if lacking or excess:
            yield f"{role}: brought up to date"


def _less(some: list[Document], others: list[Document]) -> list[Document]:
    """Return some privileges without the actions that others have on the same resources."""
    found: list[Document] = []
    for privilege in some:
        resource = privilege["resource"]
        known = [other["actions"] for other in others if other["resource"] == resource]
        actions = [name for name in privilege["actions"] if name not in chain(*known)]
        if actions:
            found.append({"resource": resource, "actions": actions})
    return found
