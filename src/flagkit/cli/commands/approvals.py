"""`flagkit approvals`: show, approve, reject and apply proposals.

Any command that changes something makes a proposal if it has the option `--propose`.
"""

from typing import Unpack

import click
import msgspec

from flagkit.cli.changes import (
    Deciding,
    actor_option,
    deciding_options,
    guards_option,
    tell_commit,
    tell_proposal,
)
from flagkit.cli.options import HOW_MANY, Place, guards_named, place_options, store_at
from flagkit.cli.output import PROGRAMS, Teller, emit, output_option, say, work_is_done
from flagkit.writer import Writer
from flagkit.writer.approvals import proposal_in, proposals_in

proposal_argument = click.argument("proposal")


@click.group("approvals")
def approvals() -> None:
    """Look at what was proposed, approve of it, and apply it."""


@approvals.command("list")
@place_options
@click.option("--limit", type=HOW_MANY, default=20, show_default=True, help="How many.")
@output_option("table")
def _list(limit: int, output: str, **place: Unpack[Place]) -> None:
    """List proposals, the newest first."""
    with store_at(**place) as store:
        found = proposals_in(store, limit)
    if output in PROGRAMS:
        emit([msgspec.to_builtins(proposal) for proposal in found], output)
    elif found:
        Teller().table(
            ("proposal", "state", "actor", "what", "approved by", "reason"),
            [
                (
                    proposal.id,
                    f"void: {proposal.problem}" if proposal.state == "void" else proposal.state,
                    proposal.actor,
                    proposal.actions,
                    [said.actor for said in proposal.verdicts if said.verdict == "approve"],
                    proposal.reason,
                )
                for proposal in found
            ],
        )
    else:
        say("Nothing is proposed.")


@approvals.command("show")
@proposal_argument
@place_options
@output_option("text")
def _show(proposal: str, output: str, **place: Unpack[Place]) -> None:
    """Show what a proposal would do now, and what was said of it."""
    with store_at(**place) as store:
        tell_proposal(proposal_in(store, proposal), output)


@approvals.command("approve")
@proposal_argument
@deciding_options
def _approve(proposal: str, **deciding: Unpack[Deciding]) -> None:
    """Approve of what somebody else proposed.

    It takes the role that the change takes.
    """
    with _writer(deciding) as writer:
        approved = writer.approve(proposal, reason=deciding["reason"])
        work_is_done()
        tell_proposal(approved, deciding["output"])


@approvals.command("reject")
@proposal_argument
@deciding_options
def _reject(proposal: str, **deciding: Unpack[Deciding]) -> None:
    """Close a proposal: it can be applied no more.

    That is a revision, which changes no flag.
    """
    with _writer(deciding) as writer:
        tell_commit(writer.reject(proposal, reason=deciding["reason"]), writer, deciding["output"])


@approvals.command("withdraw")
@proposal_argument
@deciding_options
def _withdraw(proposal: str, **deciding: Unpack[Deciding]) -> None:
    """Close a proposal of one's own.

    That is a revision, which changes no flag.
    """
    with _writer(deciding) as writer:
        tell_commit(
            writer.withdraw(proposal, reason=deciding["reason"]), writer, deciding["output"]
        )


@approvals.command("apply")
@proposal_argument
@place_options
@actor_option
@guards_option
@output_option("text")
def _apply(
    proposal: str, actor: str, guards: str | None, output: str, **place: Unpack[Place]
) -> None:
    """Make the change that was proposed, once it is approved of.

    Exits with 4 if something that it touches has moved since.
    """
    asked = guards_named(guards)
    with Writer(**place, actor=actor, guards=asked) as writer:
        tell_commit(writer.apply(proposal), writer, output)


def _writer(deciding: Deciding) -> Writer:
    return Writer(
        deciding["uri"],
        deciding["environment"],
        actor=deciding["actor"],
        database=deciding["database"],
    )
