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
    """Look at what was proposed, approve of it, and apply it."""


@approvals.command("list")
@environment_options
@click.option("--limit", type=LIMIT_RANGE, default=20, show_default=True, help="How many.")
@output_option("table")
def _list(limit: int, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """List proposals, the newest first."""
    with Environment(**place) as opened:
        found = opened.proposals(limit)
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
                    [said.actor for said in proposal.verdicts if said.verdict == "approve"],
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
    """Show what a proposal would do now, and what was said of it."""
    with Environment(**place) as opened:
        print_proposal(opened.proposal(proposal), output)


@approvals.command("approve")
@proposal_argument
@decision_options
def _approve(proposal: str, **deciding: Unpack[DecisionOptions]) -> None:
    """Approve of what somebody else proposed.

    It takes the role that the change takes.
    """
    with _open_writer(deciding) as writer:
        approved = writer.approve(proposal, reason=deciding["reason"])
        mark_work_done()
        print_proposal(approved, deciding["output"])


@approvals.command("reject")
@proposal_argument
@decision_options
def _reject(proposal: str, **deciding: Unpack[DecisionOptions]) -> None:
    """Close a proposal: it can be applied no more.

    That is a revision, which changes no flag.
    """
    with _open_writer(deciding) as writer:
        print_commit(writer.reject(proposal, reason=deciding["reason"]), writer, deciding["output"])


@approvals.command("withdraw")
@proposal_argument
@decision_options
def _withdraw(proposal: str, **deciding: Unpack[DecisionOptions]) -> None:
    """Close a proposal of one's own.

    That is a revision, which changes no flag.
    """
    with _open_writer(deciding) as writer:
        print_commit(
            writer.withdraw(proposal, reason=deciding["reason"]), writer, deciding["output"]
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
        print_commit(writer.apply(proposal), writer, output)


def _open_writer(options: DecisionOptions) -> Writer:
    return Writer(
        options["uri"],
        options["environment"],
        actor=options["actor"],
        database=options["database"],
    )
