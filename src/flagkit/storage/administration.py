"""Administration: what is done to a whole database, by a user with the rights to do it."""

from typing import Self

from pymongo import MongoClient, ReadPreference
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from flagkit.storage.bucket_keys import make_bucket_keys
from flagkit.storage.creating import prepared
from flagkit.storage.driver import configured, settings_for, translated
from flagkit.storage.erasing import chained, erase, mentions, name_for, roles_held
from flagkit.storage.forms import CODEC
from flagkit.storage.layout import BUCKET_KEYS, Document
from flagkit.storage.malformed import judging
from flagkit.storage.roles import prepared_roles


class Administration:
    """A database, on its primary. To be closed, by `close` or as a context manager.

    Raises:
        ConfigurationError: the connection string makes no sense.
    """

    def __init__(self, uri: str, database: str) -> None:
        with configured(uri):
            self._client: MongoClient[Document] = MongoClient(uri, **settings_for(uri))
            self._database = self._client.get_database(
                database,
                CODEC,
                read_concern=ReadConcern("majority"),
                write_concern=WriteConcern("majority"),
                read_preference=ReadPreference.PRIMARY,
            )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> list[str]:
        """Make collections, indexes and keys, and mend validators; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translated("preparing the database"), judging():
            done = [*prepared(self._database, mend=True)]
            made = make_bucket_keys(self._database)
            return [*done, f"{BUCKET_KEYS}: {made} made"] if made else done

    def prepare_roles(self) -> list[str]:
        """Make the roles of the database, or bring them up to date; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translated("making roles"), judging():
            return [*prepared_roles(self._database)]

    def roles_held(self, actor: str) -> list[str]:
        """Return the environments in which an actor holds a role."""
        with translated("reading the grants"), judging():
            return roles_held(self._database, actor)

    def mentions(self, actor: str) -> dict[str, int]:
        """Return how many documents name an actor where that can be erased, by collection."""
        with translated("looking for an actor"), judging():
            return mentions(self._database, actor)

    def chained(self, actor: str) -> list[tuple[str, int]]:
        """Return the environments and revisions whose ledger documents have an actor's grants."""
        with translated("reading the ledger"), judging():
            return [*chained(self._database, actor)]

    def erase(self, actor: str) -> str:
        """Erase an actor where that can be done; return what stands in the actor's place.

        Raises:
            StoreError: the database did not answer, or refused. Done again, it goes on.
        """
        with translated("erasing an actor"), judging():
            name = name_for(self._database, actor)
            erase(self._database, actor, name)
        return name
