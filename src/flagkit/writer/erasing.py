"""Erasing: an actor's name and words leave what is no part of the chain; the rest is told."""

from msgspec import Struct

from flagkit.errors import WriteError
from flagkit.model.grants import stored_actor
from flagkit.settings import connection_from
from flagkit.storage.administration import Administration


class Erasure(Struct, frozen=True):
    """What was erased of an actor, or would be.

    Attributes:
        name: What stands in the actor's place; empty if nothing was erased.
        documents: By collection, how many documents named the actor.
        chained: The environments and revisions whose grants name the actor, in the ledger, which
            nobody can alter.
    """

    name: str
    documents: dict[str, int]
    chained: tuple[tuple[str, int], ...]


def erase(
    actor: str, *, uri: str | None = None, database: str | None = None, dry_run: bool = False
) -> Erasure:
    """Erase an actor in all environments of a database.

    In the audit and among the denials a salted hash stands in the place of the name, and nothing in
    that of the actor's words. Other people's operations that name the actor have the hash, too.

    Args:
        actor: The name, exactly as it is stored. It may be one that no writer takes any more.
        uri: As Writer has it; of a user with the role flagkitAdmin.
        database: As Writer has it.
        dry_run: Only tell what would be erased.

    Raises:
        WriteError: the actor still holds a role.
        InvalidDocumentError: that is no text that a database can hold.
        StoreError: the database did not answer, or refused. Done again, it goes on.
    """
    actor = stored_actor(actor)
    with Administration(*connection_from(uri, database)) as administration:
        held = administration.roles_held(actor)
        documents = administration.mentions(actor)
        chained = tuple(administration.chained(actor))
        if dry_run:
            return Erasure("", documents, chained)
        if held:
            raise WriteError(
                f"{actor!r} still holds a role in {', '.join(held)}: revoke it first; nothing was"
                " erased"
            )
        return Erasure(administration.erase(actor), documents, chained)
