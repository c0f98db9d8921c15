"""The example of a migration: orders and the flag by which they are read change together."""

import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from flagkit.writer import Writer

SCRIPT = Path(__file__).parents[2] / "examples" / "migration" / "migrate.py"
EXAMPLE = runpy.run_path(str(SCRIPT))

pytestmark = pytest.mark.mongo


def test_it_prints_what_it_did(
    mongo_uri: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    EXAMPLE["show"](mongo_uri, database)
    assert capsys.readouterr().out.splitlines() == [
        "An order cannot be migrated: 0 are, and 0 changes of flags wait.",
        "100 orders are migrated, and read so since revision 2.",
        f"Their amounts are {sum(i * 100 + 50 for i in range(1, 101))} cents.",
        "Migrated again, it is the same change: True.",
    ]


KILLED_AFTER_ITS_TRANSACTION = """
import os, runpy, signal, sys
from pymongo import MongoClient
from flagkit.writer import PendingChange, Writer
script, uri, database = sys.argv[1:]
PendingChange.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
mine = MongoClient(uri)
writer = Writer(uri, "production", actor="ada", database=database)
runpy.run_path(script)["migrate"](mine, mine[database].orders, writer)
"""


def test_killed_after_its_transaction_it_is_finished_by_another_writer(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    writer.create(EXAMPLE["POLICY"])
    with MongoClient[dict[str, Any]](mongo_uri) as mine:
        orders = mine[database].orders
        orders.insert_many({"_id": i, "amount": "0.50"} for i in range(3))
        arguments = [sys.executable, "-c", KILLED_AFTER_ITS_TRANSACTION, str(SCRIPT)]
        killed = subprocess.run([*arguments, mongo_uri, database], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert orders.count_documents({"cents": 50}) == 3
    assert writer.store.read_tip().revision == 1
    (commit,) = writer.pending.sweep().commits
    assert commit.request == "orders-in-cents"
    with writer.store.open_reader() as reading:
        policy = reading.find_flags([EXAMPLE["FLAG"]])["*", EXAMPLE["FLAG"]].policy
    assert policy["fallthrough"]["rollout"]["weights"] == {"on": 100, "off": 0}
