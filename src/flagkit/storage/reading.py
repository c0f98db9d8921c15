"""Reading: an environment at one revision, from one snapshot of the database."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit.changes import Change, FlagChange, FlagId, FlagState, Tip
from flagkit.errors import StoreError
from flagkit.storage.layout import (
    FLAGS,
    LEDGER,
    Document,
    change_of,
    flag_state,
    flags_named,
    flags_of,
    ledger_after,
    ledgered,
    tip_of,
)

_BY_ID = [("_id", ASCENDING)]


class Reading:
    """An environment at one revision.

    What the tip's change did is read through where it is not yet projected.
    """

    def __init__(self, database: Any, session: ClientSession, head: Document) -> None:
        self.tip = tip_of(head)
        self.now: datetime = head["now"]
        """The server's time."""
        self._database = database
        self._session = session
        change = change_of(head)
        if change is None and self.tip.revision > 0:
            raise StoreError(f"the head of {self.tip.environment!r} has lost its change")
        self._newest = change
        self.pending = change if change is not None and not self._is_ledgered(change) else None
        """The tip's change, if the ledger has not got it yet."""

    def commit_of(self, request: str) -> Tip | None:
        """Return the tip that a request led to, None if it has not been committed."""
        if self._newest is not None and self._newest.request == request:
            return self.tip
        document = self._database[LEDGER].find_one(
            {"_id.environment": self.tip.environment, "request": request}, session=self._session
        )
        return None if document is None else ledgered(document).tip

    def changes(self) -> Iterator[Change]:
        """Yield all of the ledger's changes, in order; without the pending one."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, 0), sort=_BY_ID, session=self._session
        )
        return map(ledgered, found)

    def find(self, keys: Iterable[str]) -> dict[FlagId, FlagState]:
        """Return the states of some flags, in all regions."""
        wanted = set(keys)
        if not wanted:
            return {}
        documents = self._database[FLAGS].find(
            flags_named(self.tip.environment, sorted(wanted)), session=self._session
        )
        return self._read_through(documents, lambda state: state.key in wanted)

    def all(self) -> dict[FlagId, FlagState]:
        """Return the states of all flags, in all regions."""
        documents = self._database[FLAGS].find(
            flags_of(self.tip.environment), session=self._session
        )
        return self._read_through(documents, lambda _: True)

    def projected(self) -> dict[FlagId, tuple[int, FlagState | None]]:
        """Return what stands in the flags, as it stands: revisions and states, None if deleted."""
        documents = self._database[FLAGS].find(
            flags_of(self.tip.environment), session=self._session
        )
        return {
            (document["_id"]["region"], document["_id"]["key"]): (
                document["revision"],
                flag_state(document),
            )
            for document in documents
        }

    def dependents(self, keys: Iterable[str]) -> dict[FlagId, FlagState]:
        """Return the states of the flags that have one of `keys` as a direct prerequisite."""
        wanted = set(keys)
        documents = self._database[FLAGS].find(
            {
                "_id.environment": self.tip.environment,
                "policy.prerequisites.flag": {"$in": sorted(wanted)},
            },
            session=self._session,
        )
        return self._read_through(
            documents,
            lambda state: any(
                item["flag"] in wanted for item in state.policy.get("prerequisites", ())
            ),
        )

    def at(self, flag: FlagId, revision: int) -> FlagState | None:
        """Return the state that a flag had at a revision, None if there was none."""
        region, key = flag
        document = self._database[LEDGER].find_one(
            {
                "_id.environment": self.tip.environment,
                "flags": {"$elemMatch": {"key": key, "region": region}},
                "_id.revision": {"$lte": revision},
            },
            sort=[("_id.revision", DESCENDING)],
            session=self._session,
        )
        changes = [] if document is None else [ledgered(document)]
        if self.pending is not None and self.pending.revision <= revision:
            changes.append(self.pending)
        for change in reversed(changes):
            for item in change.flags:
                if item.id == flag:
                    return item.after
        return None

    def check_newest(self, changes: Iterable[FlagChange]) -> None:
        """Refuse to build upon a state that is not the newest that the ledger has.

        Raises:
            StoreError: an older one was put back past the writer, or one was removed.
        """
        for change in changes:
            if self.at(change.id, self.tip.revision) != change.before:
                region, key = change.id
                raise StoreError(
                    f"{key} (region {region}) is not as the ledger has it: it was changed past the"
                    " writer; nothing was written"
                )

    def _is_ledgered(self, change: Change) -> bool:
        """Tell whether the ledger has the tip's change. It must have no other, and no later one."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, self.tip.revision - 1),
            {"hash": True},
            limit=2,
            session=self._session,
        )
        hashes = [document["hash"] for document in found]
        if not change.is_sealed or hashes not in ([], [self.tip.hash]):
            raise StoreError(
                f"head and ledger of {self.tip.environment!r} are of different histories at"
                f" revision {self.tip.revision}: one was restored or edited; nothing was written"
            )
        return bool(hashes)

    def _read_through(
        self, documents: Iterable[Document], wanted: Callable[[FlagState], bool]
    ) -> dict[FlagId, FlagState]:
        states: dict[FlagId, FlagState | None] = {
            (document["_id"]["region"], document["_id"]["key"]): flag_state(document)
            for document in documents
        }
        if self.pending is not None:
            states |= {flag.id: flag.after for flag in self.pending.flags}
        return {
            identity: state
            for identity, state in states.items()
            if state is not None and wanted(state)
        }
