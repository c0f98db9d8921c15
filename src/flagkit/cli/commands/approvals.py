"""`flagkit approvals`: show, approve, reject and apply proposals.

Any command that changes something makes a proposal if it has the option `--propose`.
"""

from typing import Unpack

import click
import msgspec

from flagkit.cli.changes import (
    DecisionOptions,
    actor_option,
    decision_options,
    guards_option,
    open_decision_writer,
    print_commit,
    print_proposal,
)
from flagkit.cli.options import (
    LIMIT_RANGE,
    EnvironmentOptions,
    environment_options,
    load_guards,
)
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    Printer,
    emit,
    mark_work_done,
    output_option,
    print_lines,
)
from flagkit.writer import Environment, Writer

proposal_argument = click.argument("proposal")


@click.group("approvals")
def approvals() -> None:
    """Show, approve and apply proposals."""


@approvals.command("list")
@environment_options
@click.option("--limit", type=LIMIT_RANGE, default=20, show_default=True, help="How many.")
@output_option("table")
def _list(limit: int, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """List proposals, the newest first."""
    with Environment(**place) as reader:
        found = reader.proposals(limit)
    if output in PROGRAM_FORMATS:
        emit([msgspec.to_builtins(proposal) for proposal in found], output)
    elif found:
        Printer().print_table(
            ("proposal", "state", "actor", "what", "approved by", "reason"),
            [
                (
                    proposal.id,
                    f"void: {proposal.problem}" if proposal.state == "void" else proposal.state,
                    proposal.actor,
                    proposal.actions,
                    [vote.actor for vote in proposal.verdicts if vote.verdict == "approve"],
                    proposal.reason,
                )
                for proposal in found
            ],
        )
    else:
        print_lines("Nothing is proposed.")


@approvals.command("show")
@proposal_argument
@environment_options
@output_option("text")
def _show(proposal: str, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Show the current effect of a proposal, and its verdicts."""
    with Environment(**place) as reader:
        print_proposal(reader.proposal(proposal), output)


@approvals.command("approve")
@proposal_argument
@decision_options
def _approve(proposal: str, **deciding: Unpack[DecisionOptions]) -> None:
    """Approve the proposal of another actor.

    This requires the role that the change requires.
    """
    with open_decision_writer(deciding) as writer:
        approved = writer.proposals.approve(proposal, reason=deciding["reason"])
        mark_work_done()
        print_proposal(approved, deciding["output"])


@approvals.command("reject")
@proposal_argument
@decision_options
def _reject(proposal: str, **deciding: Unpack[DecisionOptions]) -> None:
    """Close a proposal, so that it can no longer be applied.

    This creates a revision that changes no flag.
    """
    with open_decision_writer(deciding) as writer:
        print_commit(
            writer.proposals.reject(proposal, reason=deciding["reason"]), writer, deciding["output"]
        )


@approvals.command("withdraw")
@proposal_argument
@decision_options
def _withdraw(proposal: str, **deciding: Unpack[DecisionOptions]) -> None:
    """Close a proposal of one's own.

    This creates a revision that changes no flag.
    """
    with open_decision_writer(deciding) as writer:
        print_commit(
            writer.proposals.withdraw(proposal, reason=deciding["reason"]),
            writer,
            deciding["output"],
        )


@approvals.command("apply")
@proposal_argument
@environment_options
@actor_option
@guards_option
@output_option("text")
def _apply(
    proposal: str, actor: str, guards: str | None, output: str, **place: Unpack[EnvironmentOptions]
) -> None:
    """Make the change that was proposed, once it is approved of.

    Exits with 4 if something that it touches has moved since.
    """
    asked = load_guards(guards)
    with Writer(**place, actor=actor, guards=asked) as writer:
        print_commit(writer.proposals.apply(proposal), writer, output)
