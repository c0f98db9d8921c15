"""The migration of an order collection, and of those who read it, together or not at all.

    pip install 'flagkit-mongodb[embedded]'
    python migrate.py

Orders have had their amount as text; they get it in cents, too. The flag `orders.in-cents` tells
the service to read the new field. Both change in one transaction: where an order cannot be
migrated, the flag stays as it is; where the flag is switched, every order has the field.
"""

from decimal import Decimal
from typing import Any

from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from flagkit.client.client import Client
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Commit, PendingChange, Writer

FLAG = "orders.in-cents"
POLICY = {
    "key": FLAG,
    "variants": {"on": True, "off": False},
    "off": "off",
    "fallthrough": {"rollout": {"weights": {"on": 0, "off": 100}}},
}

Orders = Collection[dict[str, Any]]


def amount(flags: Client, order: dict[str, Any]) -> int:
    """Return an order's amount in cents, as the service reads it."""
    if flags.is_enabled(FLAG, str(order["_id"])):
        return int(order["cents"])
    return int(Decimal(order["amount"]) * 100)


def migrate(mine: MongoClient[dict[str, Any]], orders: Orders, writer: Writer) -> Commit:
    """Give all orders the new field, and have it read; or do neither.

    The old field stays, for readers that have not seen the flag change yet.
    """

    def move(session: ClientSession) -> PendingChange:
        for order in orders.find({"cents": {"$exists": False}}, session=session):
            cents = int(Decimal(order["amount"]) * 100)
            orders.update_one({"_id": order["_id"]}, {"$set": {"cents": cents}}, session=session)
        # The key names the request: the driver may call this function again.
        return writer.in_transaction(session).set_rollout(
            FLAG,
            100,
            reason="all orders have their amount in cents",
            idempotency_key="orders-in-cents",
        )

    with mine.start_session() as session:
        pending = session.with_transaction(move)
    # Were this process killed here, any other writer would do it.
    return pending.commit()


def show(uri: str, database: str) -> None:
    """Tell of a migration that fails, and of one that is made."""
    with (
        MongoClient[dict[str, Any]](uri) as mine,
        Writer(uri, "production", actor="ada@example.com", database=database) as writer,
    ):
        writer.create_environment()
        writer.create(POLICY)
        orders = mine[database].orders
        orders.insert_many({"_id": i, "amount": f"{i}.50"} for i in range(1, 100))
        orders.insert_one({"_id": 100, "amount": "on request"})
        try:
            migrate(mine, orders, writer)
        except ArithmeticError:
            moved = orders.count_documents({"cents": {"$exists": True}})
            waiting = len(writer.reader.pending())
            print(f"An order cannot be migrated: {moved} are, and {waiting} changes of flags wait.")
        orders.update_one({"_id": 100}, {"$set": {"amount": "100.50"}})
        commit = migrate(mine, orders, writer)
        moved = orders.count_documents({"cents": {"$exists": True}})
        with Client(uri, environment="production", database=database) as flags:
            flags.wait_for(commit.revision)
            total = sum(amount(flags, order) for order in orders.find())
        print(f"{moved} orders are migrated, and read so since revision {commit.revision}.")
        print(f"Their amounts are {total} cents.")
        again = migrate(mine, orders, writer)
        print(f"Migrated again, it is the same change: {again == commit}.")


if __name__ == "__main__":
    with EmbeddedMongo() as server:
        show(server.uri, "shop")
