"""Reliance: whether what revisions relied on is still there: proposals, and what was said of them.

The audit of an application has the digest of its proposal, and whose approvals counted. That of a
rejection or a withdrawal has the digest, too. So what is altered or removed afterwards is found.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, Final

from flagkit.errors import ProposalNotFoundError, StoreError
from flagkit.storage.layout import ERASED
from flagkit.storage.proposals import PROPOSE
from flagkit.storage.store import Store
from flagkit.writer.proposals import Proposed, identity_of, read, verdict_of
from flagkit.writer.requests import application_of, closing_of

_AT_ONCE: Final = 200
_DID: Final = {
    application_of(""): "applied",
    closing_of("", "reject"): "rejected",
    closing_of("", "withdraw"): "withdrew",
}
"""What revisions did to proposals, by how their requests begin."""


def check_reliance(store: Store, revisions: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield what is wrong with the proposals that revisions, by their requests, decided on.

    Of a request that the audit has lost, others tell.
    """
    decided: dict[str, str] = {}
    left = ((revision, request, *_decision(request)) for revision, request in revisions)
    decisions = (item for item in left if item[2])
    while some := list(islice(decisions, _AT_ONCE)):
        requests = store.requests(request for _, request, _, _ in some)
        said = store.proposals.said(proposal for _, _, _, proposal in some)
        for revision, request, did, proposal in some:
            told = f"revision {revision} {did} the proposal {proposal}"
            if proposal in decided:
                yield f"{told}, which had been {decided[proposal]} before"
            decided[proposal] = {"withdrew": "withdrawn"}.get(did, did)
            try:
                found = read(proposal, said[proposal])
            except ProposalNotFoundError:
                yield f"{told}, which was removed"
            except StoreError as error:
                yield f"{told}, and {error}"
            else:
                asked = requests.get(request)
                problems = () if asked is None else _compared(did, found, asked)
                yield from (f"{told}, {problem}" for problem in problems)


def check_proposals(store: Store) -> Iterator[str]:
    """Yield what is wrong with the proposals themselves, and with what was said of them."""
    for proposal, documents in groupby(store.proposals.all(), _name_of):
        if proposal is None:
            for document in documents:
                yield f"the proposals have {document['_id']!r:.200} for a name"
            continue
        there = [*documents]
        try:
            found = read(proposal, there)
        except ProposalNotFoundError:
            yield f"the proposal {proposal} was removed, and what was said of it is there"
        except StoreError as error:
            yield str(error)
        else:
            yield from _forged(found, there)


def _decision(request: str) -> tuple[str, str]:
    """Return what a request did to which proposal; empty texts where it is about none."""
    for beginning, did in _DID.items():
        if request.startswith(beginning):
            return did, request.removeprefix(beginning)
    return "", ""


def _compared(did: str, found: Proposed, asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a proposal differs from what the audit has of its decision."""
    try:
        if did == "applied":
            yield from _applied(found, asked)
        else:
            yield from _closed(did, found, asked)
    except (KeyError, TypeError, IndexError, AttributeError):
        yield "and the audit of that has not the form that it should have"


def _applied(found: Proposed, asked: Mapping[str, Any]) -> Iterator[str]:
    if asked["operations"] != found.documents:
        yield "and did something else than it says"
    if asked["actor"] != found.actor:
        yield f"and not as {found.actor!r}, who proposed it"
    if asked["proposal"] != found.id:
        yield "and the audit names another one"
    approvals = {said.actor for said in found.verdicts if said.verdict == "approve"}
    approvals -= {found.actor}
    if "approved" not in asked:
        # It was applied by an earlier version, which did not record whose approvals counted.
        if not approvals:
            yield "and nobody has approved of it"
        return
    if not _is_same(asked["approved"]["digest"], found.digest):
        yield "which was another one then"
    for who in asked["approved"]["by"]:
        if who not in approvals:
            yield f"on the approval of {who!r}, which is not there any more"


def _closed(did: str, found: Proposed, asked: Mapping[str, Any]) -> Iterator[str]:
    says = "reject" if did == "rejected" else "withdraw"
    if not _is_same(asked["operations"][0]["digest"], found.digest):
        yield "which was another one then"
    if all((said.actor, said.verdict) != (asked["actor"], says) for said in found.verdicts):
        yield f"which {asked['actor']!r} said, and that is not there any more"


def _forged(found: Proposed, documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what nobody can have said of a proposal."""
    if found.digest != ERASED:
        for document in documents:
            if verdict_of(document) != PROPOSE and document.get("digest") != found.digest:
                who, verdict = identity_of(document).get("actor"), verdict_of(document)
                yield (
                    f"what {who!r:.200} said of the proposal {found.id} ({verdict!r:.20}) is of"
                    " another one: one of them was changed past the writer"
                )
    for said in found.verdicts:
        is_own = said.actor == found.actor
        if is_own if said.verdict == "approve" else said.verdict == "withdraw" and not is_own:
            yield (
                f"{said.actor!r} cannot have said {said.verdict} of the proposal {found.id}, which"
                f" {found.actor!r} made"
            )


def _is_same(then: str, now: str) -> bool:
    """Tell whether two digests are of the same, as far as that can be told after erasing."""
    return then == now or ERASED in (then, now)


def _name_of(document: Mapping[str, Any]) -> str | None:
    name = identity_of(document).get("proposal")
    return name if isinstance(name, str) else None
