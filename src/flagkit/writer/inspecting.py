"""Inspecting: what stands beside the ledger is held to it, document by document.

Each check here yields problems and goes on with the next document. What none of them can find,
docs/writing.md lists.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from msgspec.structs import replace

from flagkit.changes import Cut, PolicyState, Tip
from flagkit.errors import FlagkitError, SnapshotFormatError, StoreError, StoreUnavailableError
from flagkit.model import packing
from flagkit.snapshot import Arena
from flagkit.snapshot.frame import FORMAT
from flagkit.storage.checkpoints import Checkpoint, checkpoint_of
from flagkit.storage.denials import beginnings_of_names
from flagkit.storage.forms import sequenced
from flagkit.storage.layout import (
    AUDIT,
    CHECKPOINTS,
    DENIALS,
    ERASED,
    MEMBERS,
    PENDING,
)
from flagkit.storage.malformed import fault_in, judging, told
from flagkit.storage.reading import Carried, Reading
from flagkit.storage.store import Store
from flagkit.writer.checkpoints import problem_with
from flagkit.writer.recorded import operations_of, policies_of, request_digest
from flagkit.writer.requests import application_of

_ERASED_NAME: Final = re.compile(rf"{ERASED}:[0-9a-f]{{16}}")
_NOT_ALLOWED: Final = "(code 13)"
_APPLICATION: Final = application_of("")


class CheckpointInspection:
    """The checkpoints of an environment, which are read and held to the ledger as it is walked."""

    def __init__(self, reading: Reading) -> None:
        self.problems: list[str] = []
        self._reading = reading
        self._unmet: dict[int, list[Checkpoint]] = {}
        for document in reading.documents(CHECKPOINTS):
            fault = fault_in(CHECKPOINTS, document)
            if fault is not None:
                self.problems.append(told(CHECKPOINTS, document, fault))
                continue
            try:
                checkpoint = checkpoint_of(document)
            except StoreError as error:
                self._note(document["_id"]["checkpoint"], f"cannot be used: {error}")
            else:
                self._unmet.setdefault(checkpoint.tip.revision, []).append(checkpoint)

    def meet(self, tip: Tip, states: Iterable[PolicyState]) -> None:
        """Hold the checkpoints of a tip's revision to what the ledger has at it."""
        there = [*states] if tip.revision in self._unmet else []
        for checkpoint in self._unmet.pop(tip.revision, ()):
            base = self._base(checkpoint)
            # Another epoch is another history, which clients do not follow.
            if base is not None and checkpoint.tip.epoch == tip.epoch:
                self._note(checkpoint.id, problem_with(base, tip, there))

    def end(self, head: Tip) -> None:
        """Look at the checkpoints of revisions that the ledger does not tell."""
        for checkpoint in (each for some in self._unmet.values() for each in some):
            if checkpoint.tip.revision > head.revision and checkpoint.tip.epoch == head.epoch:
                self._note(checkpoint.id, f"is of a revision after {head.revision}")
            self._base(checkpoint)

    def _base(self, checkpoint: Checkpoint) -> Arena | None:
        """Return the base of a checkpoint; None if it is of another version of flagkit."""
        try:
            base = self._reading.read_checkpoint(_as_ours(checkpoint))
        except StoreUnavailableError:
            raise
        except (StoreError, SnapshotFormatError) as error:
            if checkpoint.is_readable:
                self._note(checkpoint.id, f"cannot be used: {error}")
            return None
        if not checkpoint.is_readable:
            self._note(checkpoint.id, "has a manifest of other formats than its slices")
        return base

    def _note(self, name: str, problem: str | None) -> None:
        if problem is not None:
            self.problems.append(f"checkpoint {name} {problem}")


def _as_ours(checkpoint: Checkpoint) -> Checkpoint:
    ours = {"frame": FORMAT, "packing": packing.FORMAT}
    return replace(checkpoint, **ours)


def members_problems(reading: Reading) -> Iterator[str]:
    """Yield the parts of members that are not what their names say."""
    for document in reading.documents(MEMBERS):
        fault = fault_in(MEMBERS, document)
        if fault is not None:
            yield told(MEMBERS, document, fault)
        elif hashlib.sha256(document["hashes"]).hexdigest() != document["_id"]["part"]:
            yield f"the members {document['_id']['part']} were changed past the writer"


def pending_problems(reading: Reading) -> Iterator[str]:
    """Yield what is wrong with the changes that wait, by what the audit has of them."""
    for document in reading.documents(PENDING):
        fault = fault_in(PENDING, document)
        if fault is not None:
            yield told(PENDING, document, fault)
            continue
        request = document["_id"]["request"]
        asked = reading.recorded(request)
        if asked is None:
            yield f"the pending change {request!r}: the audit has lost who asked for it, and why"
        elif not _touches(document["touched"], asked):
            yield f"the pending change {request!r} touches other flags than were asked for"


def _touches(touched: list[Mapping[str, str]] | None, asked: Mapping[str, Any]) -> bool:
    try:
        wanted = policies_of(operations_of(asked.get("operations")))
    except FlagkitError:
        # What is in the audit cannot be read back, which is told of the audit.
        return True
    found = None if touched is None else [(item["region"], item["key"]) for item in touched]
    return found == wanted


def denials_problems(reading: Reading) -> Iterator[str]:
    """Yield what is wrong with the log of denials, where this user may read it."""
    try:
        for document in reading.documents(DENIALS):
            fault = fault_in(DENIALS, document)
            if fault is not None:
                yield told(DENIALS, document, fault)
            elif not document["_id"]["denial"].startswith(beginnings_of_names(document["time"])):
                yield told(DENIALS, document, "time: is not that of its name")
    except StoreError as error:
        if _NOT_ALLOWED not in str(error):
            raise


class AuditInspection:
    """Holds the audit to the ledger.

    Args:
        environment: Whose.
        asked: The requests that led to revisions that the ledger has, and these.
        cut: Where the ledger was cut, if it was.
        carried: What policies have of changes that the ledger has no more.
    """

    def __init__(
        self,
        asked: Iterable[tuple[int, str]],
        cut: Cut | None,
        carried: Iterable[Carried],
    ) -> None:
        self._revisions = {request: revision for revision, request in asked}
        self._cut = cut
        self._carried = [*carried]
        self._tips: dict[int, Tip] = {}

    def problems(self, store: Store) -> Iterator[str]:
        """Yield what is wrong with the audit."""
        lost = dict(self._revisions)
        for document in store.recorded():
            fault = fault_in(AUDIT, document)
            request = document["_id"].get("request")
            revision = lost.pop(request, None) if isinstance(request, str) else None
            if fault is not None:
                at = "" if revision is None else f"revision {revision}: "
                yield at + told(AUDIT, document, fault)
                continue
            name = f"the request {request!r}" if revision is None else f"revision {revision}"
            if not _is_whole(document):
                yield f"{name}: what was asked for was altered in the audit"
            if document.get("proposal", "") != _proposal_of(request):
                yield f"{name}: the audit names another proposal than was applied"
            yield from self._tip_problems(name, document, is_kept=revision is not None)
        for revision in sorted(lost.values()):
            yield f"revision {revision}: the audit has lost who asked for it, and why"
        yield from self._carried_problems()

    def _tip_problems(
        self, name: str, document: Mapping[str, Any], *, is_kept: bool
    ) -> Iterator[str]:
        """Yield what is wrong with what the audit has of a revision that was cut."""
        with judging(AUDIT, document):
            tip = sequenced(document)
        if tip is None:
            return
        cut = None if self._cut is None else self._cut.tip
        if cut is None or is_kept or tip.revision > cut.revision or tip.epoch != cut.epoch:
            yield f"{name}: the audit says that it is revision {tip.revision}, which it is not"
        elif tip.revision in self._tips:
            yield f"{name}: the audit has another request for revision {tip.revision}, too"
        elif tip.time > cut.time or (tip.revision == cut.revision and tip != cut):
            yield f"{name}: the audit does not have revision {tip.revision} as it was"
        self._tips[tip.revision] = tip

    def _carried_problems(self) -> Iterator[str]:
        """Yield what policies and audit say differently of revisions that were cut."""
        cut = 0 if self._cut is None else self._cut.tip.revision
        oldest = min(self._tips, default=cut + 1)
        for carried in self._carried:
            if carried.time is None or carried.revision > cut:
                continue
            tip = self._tips.get(carried.revision)
            if tip is None and carried.revision > oldest:
                yield f"the audit has lost revision {carried.revision}, which flags are at"
            elif tip is not None and tip.time != carried.time:
                yield f"flags and audit have different times for revision {carried.revision}"


def carried_problems(
    found: Mapping[tuple[str, str], Carried], cut: int, kept: Mapping[int, datetime]
) -> Iterator[str]:
    """Yield the policies that lack what only the ledger had, or have another time than it.

    Args:
        found: What policies have.
        cut: The revision at which the ledger was cut; 0 if it was not.
        kept: The revisions that the ledger has, with their times.
    """
    for (region, key), carried in found.items():
        is_gone = carried.revision <= cut and carried.revision not in kept
        if carried.time is not None and kept.get(carried.revision, carried.time) != carried.time:
            yield f"{key} ({region}) has another time than revision {carried.revision}"
        elif is_gone and (carried.time is None or carried.lacks_last):
            yield f"{key} ({region}) has lost what the ledger had of its last change"


def _is_whole(document: Mapping[str, Any]) -> bool:
    if document["digest"] == ERASED:
        return _is_erased(document)
    try:
        return request_digest(document) == str(document["digest"])
    except FlagkitError:
        return False


def _is_erased(document: Mapping[str, Any]) -> bool:
    """Tell whether a request names somebody who was erased, as one without a digest does."""
    texts = [document["actor"], *_texts_in(document["operations"])]
    return any(_ERASED_NAME.fullmatch(text) for text in texts)


def _texts_in(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping | list):
        for item in part.values() if isinstance(part, Mapping) else part:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from _texts_in(item)


def _proposal_of(request: str) -> str:
    """Return the proposal that a request applied; an empty text if it applied none."""
    return request[len(_APPLICATION) :] if request.startswith(_APPLICATION) else ""
