"""Administration: what is done to a whole database, by a user with the rights to do it."""

from typing import Self

from pymongo import MongoClient, ReadPreference
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from flagkit.storage.creating import prepared
from flagkit.storage.driver import configured, settings_for, translated
from flagkit.storage.layout import Document
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
        """Make collections and indexes that are not there, mend validators; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translated("preparing the database"):
            return [*prepared(self._database, mend=True)]

    def prepare_roles(self) -> list[str]:
        """Make the roles of the database, or bring them up to date; return what was done.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translated("making roles"):
            return [*prepared_roles(self._database)]
