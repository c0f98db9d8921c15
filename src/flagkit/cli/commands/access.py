"""`flagkit access`: show and change who may change what, and how often."""

from typing import Any, Unpack

import click
import msgspec

from flagkit._core.model.access import ROLES, WHOSE, Role, Whose
from flagkit.cli.changes import Asking, changing, writing_options
from flagkit.cli.options import HOW_MANY, Place, place_options, store_at, to_option
from flagkit.cli.output import PROGRAMS, Teller, emit, output_option, say
from flagkit.writer.access import denials, grants, limits

who_argument = click.argument("who", metavar="ACTOR")
role_argument = click.argument("role", type=click.Choice(ROLES))
whose_argument = click.argument("whose", type=click.Choice(WHOSE))


@click.group("access")
def access() -> None:
    """Look at who may change what, and how often, and change it."""


@access.command("list")
@place_options
@output_option("table")
def _list(output: str, **place: Unpack[Place]) -> None:
    """List the roles that are granted."""
    with store_at(**place) as store:
        found = grants(store)
    if output in PROGRAMS:
        told: list[Any] = [
            {"actor": grant.actor, "role": grant.role, "namespaces": [*grant.namespaces]}
            for grant in found
        ]
        emit(told, output)
    elif found:
        Teller().table(
            ("actor", "role", "namespaces"),
            [(grant.actor, grant.role, grant.namespaces or "everything") for grant in found],
        )
    else:
        say("No role is granted: anybody may change anything.")


@access.command("grant")
@who_argument
@role_argument
@click.option(
    "--namespace",
    "namespaces",
    metavar="PREFIX",
    multiple=True,
    help="On keys that begin with it, such as shop.; by default on all. Repeatable.",
)
@writing_options
def _grant(who: str, role: Role, namespaces: tuple[str, ...], **asking: Unpack[Asking]) -> None:
    """Grant a role to ACTOR, in the place of what the actor has of this role."""
    with changing(**asking) as change:
        change.grant(who, role, namespaces)


@access.command("revoke")
@who_argument
@click.argument("role", type=click.Choice(ROLES), required=False)
@writing_options
def _revoke(who: str, role: Role | None, **asking: Unpack[Asking]) -> None:
    """Take a role from ACTOR, or all roles."""
    with changing(**asking) as change:
        change.revoke(who, role)


@access.command("rollback")
@to_option
@writing_options
def _rollback(to: int, **asking: Unpack[Asking]) -> None:
    """Give back all roles as they were granted at a revision.

    It is a new revision.
    """
    with changing(**asking) as change:
        change.rollback_grants(to=to)


@access.command("denials")
@place_options
@click.option("--limit", type=HOW_MANY, default=20, show_default=True, help="How many.")
@output_option("table")
def _denials(limit: int, output: str, **place: Unpack[Place]) -> None:
    """Show who was denied what, the newest first."""
    with store_at(**place) as store:
        store.tip()
        found = denials(store)[::-1][:limit]
    if output in PROGRAMS:
        emit([msgspec.to_builtins(denial) for denial in found], output)
    elif found:
        Teller().table(
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
        say("Nobody was denied anything.")


@access.group("limits")
def _limits() -> None:
    """Look at how many changes may be made, and limit them."""


@_limits.command("show")
@place_options
@output_option("table")
def _show_limits(output: str, **place: Unpack[Place]) -> None:
    """Show the limits on changes."""
    with store_at(**place) as store:
        found = limits(store)
    held = {whose: getattr(found, whose) for whose in WHOSE}
    if output in PROGRAMS:
        emit(msgspec.to_builtins(held), output)
        return
    rows = [(whose, limit.capacity, f"{limit.rate:g}") for whose, limit in held.items() if limit]
    if rows:
        Teller().table(("limit of", "capacity", "a second"), rows, right=("capacity", "a second"))
    else:
        say("Changes are not limited.")


@_limits.command("set")
@whose_argument
@click.option("--capacity", type=int, required=True, help="How many changes at once.")
@click.option("--rate", type=float, required=True, help="How many a second after that.")
@writing_options
def _set_limit(whose: Whose, capacity: int, rate: float, **asking: Unpack[Asking]) -> None:
    """Limit the changes of each actor, or of the whole environment.

    Pauses and changes of access are not counted.
    """
    with changing(**asking) as change:
        change.set_limit(whose, capacity=capacity, rate=rate)


@_limits.command("lift")
@whose_argument
@writing_options
def _lift_limit(whose: Whose, **asking: Unpack[Asking]) -> None:
    """Limit them no more."""
    with changing(**asking) as change:
        change.lift_limit(whose)
