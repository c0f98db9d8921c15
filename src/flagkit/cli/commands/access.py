"""`flagkit access`: show and change who may change what, and how often."""

from typing import Any, Unpack

import click
import msgspec

from flagkit._core.model.access import LIMIT_SCOPES, ROLES, Role
from flagkit.cli.changes import add_change_command
from flagkit.cli.options import (
    LIMIT_RANGE,
    EnvironmentOptions,
    environment_options,
    to_option,
)
from flagkit.cli.output import PROGRAM_FORMATS, Printer, emit, output_option, print_lines
from flagkit.writer import Draft, Environment

who_argument = click.argument("who", metavar="ACTOR")
scope_argument = click.argument("scope", type=click.Choice(LIMIT_SCOPES))


@click.group("access")
def access() -> None:
    """Show and change roles, and limits of changes."""


@access.command("list")
@environment_options
@output_option("table")
def _list(output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """List the roles that are granted."""
    with Environment(**place) as reader:
        found = reader.grants()
    if output in PROGRAM_FORMATS:
        roles: list[Any] = [
            {"actor": grant.actor, "role": grant.role, "namespaces": [*grant.namespaces]}
            for grant in found
        ]
        emit(roles, output)
    elif found:
        Printer().print_table(
            ("actor", "role", "namespaces"),
            [(grant.actor, grant.role, grant.namespaces or "everything") for grant in found],
        )
    else:
        print_lines("No role is granted: anybody may change anything.")


def _grant(draft: Draft, who: str, role: Role, namespaces: tuple[str, ...]) -> None:
    draft.grant(who, role, namespaces)


def _revoke(draft: Draft, who: str, role: Role | None) -> None:
    draft.revoke(who, role)


add_change_command(
    access,
    "grant",
    _grant,
    "Grant a role to ACTOR, in the place of what the actor has of this role.",
    who_argument,
    click.argument("role", type=click.Choice(ROLES)),
    click.option(
        "--namespace",
        "namespaces",
        metavar="PREFIX",
        multiple=True,
        help="On keys that begin with it, such as shop.; by default on all. Repeatable.",
    ),
)
add_change_command(
    access,
    "revoke",
    _revoke,
    "Take a role from ACTOR, or all roles.",
    who_argument,
    click.argument("role", type=click.Choice(ROLES), required=False),
)
add_change_command(
    access,
    "rollback",
    Draft.rollback_grants,
    """Give back all roles as they were granted at a revision.

    It is a new revision.
    """,
    to_option,
)


@access.command("denials")
@environment_options
@click.option("--limit", type=LIMIT_RANGE, default=20, show_default=True, help="How many.")
@output_option("table")
def _denials(limit: int, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Show denied changes, the newest first."""
    with Environment(**place) as reader:
        reader.read_tip()
        found = reader.denials()[::-1][:limit]
    if output in PROGRAM_FORMATS:
        emit([msgspec.to_builtins(denial) for denial in found], output)
    elif found:
        Printer().print_table(
            ("time (UTC)", "actor", "denied", "reason"),
            [
                (
                    f"{denial.time:%Y-%m-%d %H:%M:%S}",
                    denial.actor,
                    f"{denial.action} {denial.key or 'everything'}",
                    denial.reason,
                )
                for denial in found
            ],
        )
    else:
        print_lines("Nobody was denied anything.")


@access.group("limits")
def _limits() -> None:
    """Look at how many changes may be made, and limit them."""


@_limits.command("show")
@environment_options
@output_option("table")
def _show_limits(output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Show the limits on changes."""
    with Environment(**place) as reader:
        found = reader.limits()
    held = {whose: getattr(found, whose) for whose in LIMIT_SCOPES}
    if output in PROGRAM_FORMATS:
        emit(msgspec.to_builtins(held), output)
        return
    rows = [(whose, limit.capacity, f"{limit.rate:g}") for whose, limit in held.items() if limit]
    if rows:
        Printer().print_table(
            ("limit of", "capacity", "a second"), rows, right=("capacity", "a second")
        )
    else:
        print_lines("Changes are not limited.")


add_change_command(
    _limits,
    "set",
    Draft.set_limit,
    """Limit the changes of each actor, or of the whole environment.

    Pauses and changes of access are not counted.
    """,
    scope_argument,
    click.option("--capacity", type=int, required=True, help="How many changes at once."),
    click.option("--rate", type=float, required=True, help="How many a second after that."),
)
add_change_command(_limits, "lift", Draft.lift_limit, "Limit them no more.", scope_argument)
