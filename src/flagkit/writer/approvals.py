"""Approvals: changes that are proposed, approved of by somebody else, and applied.

What is proposed and said stands in the database, where nothing is changed or removed. What becomes
of a proposal is a revision: its application, or what closes it.
"""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from flagkit.arguments import count
from flagkit.changes import ACCESS, next_change
from flagkit.encryption import DataKeys
from flagkit.errors import (
    AccessDeniedError,
    InvalidDocumentError,
    NotApprovedError,
    ProposalClosedError,
    RequestConflictError,
)
from flagkit.storage.preparing import fitting
from flagkit.storage.proposals import PROPOSE
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.access import Need, check_access, log_denial, needs
from flagkit.writer.commits import Commit
from flagkit.writer.dependencies import dependencies_of, documents_of
from flagkit.writer.drafts import Draft
from flagkit.writer.limits import buckets_after
from flagkit.writer.operations import Operation
from flagkit.writer.planning import plan
from flagkit.writer.proposals import (
    Application,
    Closing,
    Proposal,
    Proposed,
    Says,
    check_closable,
    check_open,
    checked_proposal,
    lesser,
    planned_by,
    proposal_digest,
    proposal_in,
    proposals_in,
    read,
    verdict_seal,
    versions_of,
)
from flagkit.writer.recorded import (
    check_readable,
    decision,
    policies_of,
    request_digest,
)
from flagkit.writer.requests import application_of, closing_of
from flagkit.writer.segment_workflows import SegmentWorkflows
from flagkit.writer.workflows import Asked


class Approvals(SegmentWorkflows):
    """What a writer does with proposals."""

    environment: str
    store: Store
    keys: DataKeys | None
    """What sensitive variants are encrypted by."""

    @contextmanager
    def propose(self, *, reason: str = "", actor: str | None = None) -> Generator[Draft]:
        """Collect operations as `change` does, and propose them; `proposal` of the draft names it.

        They are checked as a change is. To propose takes a role that may edit what they touch; to
        approve takes the role that the change itself takes.

        Raises:
            WriteError, InvalidDocumentError: refused; nothing was written.
            StoreUnavailableError: the database cannot be reached.
        """
        change = Draft(self.environment, self.keys)
        yield change
        change.proposal = self._propose(change, {"reason": reason, "actor": actor})

    def proposal(self, proposal: str) -> Proposal:
        """Return a proposal, with what would come of it now.

        Raises:
            ProposalNotFoundError: there is none of that name.
            StoreError: it was changed past the writer.
        """
        return proposal_in(self.store, proposal)

    def proposals(self, limit: int = 20) -> list[Proposal]:
        """Return proposals, the newest first, without their differences."""
        return proposals_in(self.store, count(limit, "limit"))

    def approve(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Proposal:
        """Approve of what somebody else proposed, as it is; return it.

        Raises:
            AccessDeniedError: the actor may not make this change.
            NotApprovedError: the actor proposed it.
            ProposalNotFoundError, ProposalClosedError, ProposalVoidError: there is nothing to
                approve of.
        """
        who, proposal = self._who(actor), checked_proposal(proposal)
        with self.store.reading() as reading:
            found = read(proposal, reading.said_of(proposal))
            check_open(reading, found)
            if who == found.actor:
                raise NotApprovedError(
                    f"{who!r} proposed {proposal}: somebody else has to approve of it"
                )
            planned = planned_by(reading, found)
            self._check_may(
                reading, who, needs(found.operations, planned.changes), reason, found.operations
            )
        self._say(found, who, "approve", reason, reading.now)
        return self.proposal(proposal)

    def reject(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Close a proposal: it can be applied no more. That stands in the ledger as a revision.

        Asked again by the same actor, it returns the same Commit.

        Raises:
            AccessDeniedError: to edit what it touches takes another role.
            RateLimitedError: the actor has made too many changes; the proposal stays open.
            ProposalNotFoundError, ProposalClosedError: there is nothing to reject.
        """
        return self._close(proposal, "reject", reason, actor)

    def withdraw(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Close a proposal of one's own, as `reject` does; for errors see there."""
        return self._close(proposal, "withdraw", reason, actor)

    def apply(self, proposal: str, *, actor: str | None = None) -> Commit:
        """Commit what was proposed, as the one who proposed it, once it is approved of.

        Applied again, it returns the same Commit. The guards of this writer are asked.

        Raises:
            ProposalVoidError: something that it touches, or a segment or prerequisite that this
                depends on, has moved since it was proposed.
            NotApprovedError: nobody who may make the change, but who proposed it, has approved.
            AccessDeniedError: who proposed it, or who applies it, may not even edit what it
                touches.
            ProposalNotFoundError, ProposalClosedError: there is nothing to apply.
        """
        who, proposal = self._who(actor), checked_proposal(proposal)
        said = self.store.proposals.said([proposal])[proposal]
        if not said:
            # An environment that does not exist has no proposals, either.
            self.store.tip()
        found = read(proposal, said)
        draft = Draft(self.environment)
        draft.operations = [*found.operations]
        draft.terms = Application(found, who)
        _, content = self._request(Draft(self.environment), {"reason": found.reason})
        content |= {"actor": found.actor, "operations": found.documents}
        content["digest"] = request_digest(content)
        return self._commit(draft, application_of(proposal), content)

    def _who(self, actor: str | None) -> str:
        """Return who asks: the writer's own actor, where nobody is named."""
        raise NotImplementedError

    def _request(self, draft: Draft, asked: Asked) -> tuple[str, dict[str, Any]]:
        """Return the id of a request, and what the audit is to have of it."""
        raise NotImplementedError

    def _commit(self, draft: Draft, request: str, content: Mapping[str, Any]) -> Commit:
        """Make a revision of a draft."""
        raise NotImplementedError

    def _propose(self, draft: Draft, asked: Asked) -> str:
        if draft.glass:
            raise InvalidDocumentError(
                "break_glass", "is for what cannot wait", "Make the change, or propose it without"
            )
        check_readable(draft.operations)
        draft.settle(self.store)
        request, content = self._request(draft, asked)
        with self.store.reading() as reading:
            planned = plan(
                draft.operations, reading, reading.tip.revision, draft.parts, draft.lists
            )
            # That a flag has it already holds as long as the proposal does, for its version does.
            draft.sealing.check(planned.changes)
            reading.check_newest(planned.changes)
            lessened = lesser(needs(draft.operations, planned.changes))
            self._check_may(
                reading, content["actor"], lessened, content["reason"], draft.operations
            )
            change = next_change(reading.tip, request, reading.now, planned.changes)
            fitting(change, content)
            named = [*(policies_of(draft.operations) or ()), *(item.id for item in planned.changes)]
            versions = versions_of(reading, dict.fromkeys(named))
            depends = dependencies_of(reading, planned.changes)
        touched = [
            {"region": region, "key": key, "version": version}
            for (region, key), version in versions.items()
        ]
        proposed = {
            "time": reading.now,
            "reason": content["reason"],
            "operations": content["operations"],
            "touched": touched,
            "depends": documents_of(depends),
        }
        proposed["digest"] = proposal_digest(content["actor"], proposed)
        self.store.add_parts(draft.parts)
        proposal = f"{reading.now:%Y%m%d-%H%M%S}-{os.urandom(4).hex()}"
        self.store.proposals.say(proposal, content["actor"], PROPOSE, proposed)
        return proposal

    def _close(self, proposal: str, says: Says, reason: str, actor: str | None) -> Commit:
        who, proposal = self._who(actor), checked_proposal(proposal)
        with self.store.reading() as reading:
            found = read(proposal, reading.said_of(proposal))
            is_said = check_closable(reading, found, says, who)
            needed: list[Need] = []
            if says == "reject":
                needed = [
                    ("grant", "") if region == ACCESS else ("edit", key)
                    for region, key in found.touched
                ] or [("edit", "")]
                self._check_may(reading, who, needed, reason, ())
            elif who != found.actor:
                raise NotApprovedError(
                    f"{found.actor!r} proposed {proposal}, and {who!r} would withdraw it: reject it"
                )
            closing = Closing(found, needed)
            epoch = reading.tip.epoch
            buckets_after(
                reading,
                who,
                lambda: self.store.bucket_key(epoch, make=False),
                is_limited=closing.is_limited(needed),
            )
        if not is_said:
            self._say(found, who, says, reason, reading.now)
        # Whoever has read the proposal before this revision loses the race against it.
        draft = Draft(self.environment)
        draft.terms = closing
        _, content = self._request(Draft(self.environment), {"reason": reason, "actor": who})
        content = decision(content, f"{says}_proposal", proposal, digest=found.digest)
        try:
            return self._commit(draft, closing_of(proposal, says), content)
        except RequestConflictError:
            raise ProposalClosedError(f"{proposal} was closed by somebody else meanwhile") from None

    def _say(self, found: Proposed, who: str, says: Says, reason: str, now: datetime) -> None:
        content: dict[str, Any] = {"time": now, "reason": reason, "digest": found.digest}
        content["seal"] = verdict_seal(found.id, who, says, content)
        self.store.proposals.say(found.id, who, says, content)

    def _check_may(
        self,
        reading: Reading,
        actor: str,
        needed: Iterable[Need],
        reason: str,
        operations: Sequence[Operation],
    ) -> None:
        try:
            check_access(reading, actor, needed)
        except AccessDeniedError as error:
            log_denial(self.store, reading.now, error, reason, operations)
            raise
