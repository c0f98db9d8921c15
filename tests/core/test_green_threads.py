"""Green threads: gevent and eventlet leave Python's threads alone, or clients say why not."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagkit.writer import Writer

pytestmark = [pytest.mark.every_python, pytest.mark.mongo]

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    # What gevent and eventlet say of Python's versions is not what this is about.
    "PYTHONWARNINGS": "ignore",
}
ON = {"key": "shop.on", "variants": {"on": True, "off": False}, "fallthrough": {"serve": "on"}}

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "gevent-threads": "from gevent import monkey; monkey.patch_all(thread=False)",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
    "eventlet-threads": "import eventlet; eventlet.monkey_patch(select=False, thread=False)",
}

REFUSED = """
import subprocess, sys
import flagkit
from flagkit.errors import ConfigurationError

def refusal(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except ConfigurationError as error:
        return str(error)

settings = dict(environment="production", database=sys.argv[2])
client = flagkit.Client(sys.argv[1], **settings)
for words in (
    refusal(client.start),
    refusal(client.wait_ready),
    refusal(client.on_change, "", print),
    refusal(flagkit.configure, sys.argv[1], **settings),
):
    print(words)
# Evaluations, other loops and processes are as they were.
import asyncio
print(client.is_enabled("shop.on"), client.status().state, asyncio.run(asyncio.sleep(0, 5)))
print(subprocess.run(["true"]).returncode)
client.close()
"""

FOLLOWS = """
import asyncio, os, sys, threading, time
import flagkit
from flagkit.writer import Writer

settings = dict(environment="production", database=sys.argv[2])
first = flagkit.configure(sys.argv[1], **settings)
second = flagkit.Client(sys.argv[1], **settings).start()
told = []
first.on_change("", lambda change: told.append(change.revision))
for client in (first, second):
    client.wait_ready()
    print(client.is_enabled("shop.on"), client.policy("shop.on", metadata=True)["key"])
print(asyncio.run(asyncio.sleep(0, 5)), flush=True)
with Writer(sys.argv[1], "production", actor="tester", database=sys.argv[2]) as writer:
    revision = writer.pause("shop.on").revision
for client in (first, second):
    client.wait_for(revision)
    print(client.is_enabled("shop.on"), client.status().error, flush=True)
while revision not in told:
    time.sleep(0.001)
if not os.fork():
    while first.status().state != "watching":
        time.sleep(0.001)
    print("child", first.status().error, flush=True)
    os._exit(0)
os.wait()
second.close()
first.close()
print([thread.name for thread in threading.enumerate() if thread.name.startswith("flagkit")])
"""

PATCHED_LATE = """
import sys
import flagkit

settings = dict(environment="production", database=sys.argv[2])
client = flagkit.Client(sys.argv[1], **settings, snapshot_path=sys.argv[3]).start()
client.wait_ready()
from gevent import monkey; monkey.patch_all()
from flagkit.writer import Writer
from flagkit.errors import ConfigurationError

with Writer(sys.argv[1], "production", actor="tester", database=sys.argv[2]) as writer:
    for change in (writer.pause, writer.resume) * 3:
        client.wait_for(change("shop.on").revision)
print(client.policy("shop.on", metadata=True)["key"], client.is_enabled("shop.on"))

def leave():
    raise SystemExit

# It needs names, files and connections anew.
client._refresh._loop.call_soon_threadsafe(leave)
while not client.status().error_count:
    pass
with Writer(sys.argv[1], "production", actor="tester", database=sys.argv[2]) as writer:
    client.wait_for(writer.pause("shop.on").revision, 20)
print(client.status().state, client.status().troubles)
try:
    flagkit.Client(sys.argv[1], **settings).start()
except ConfigurationError:
    print("refused")
client.close()
"""


@pytest.fixture(autouse=True)
def _flag(writer: Writer) -> None:
    writer.create(ON)


def need(library: str) -> None:
    """Skip without a library. Imported here, it would run its hooks after each fork."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")


def output(patch: str, program: str, *arguments: str) -> list[str]:
    """Return the lines that a program prints in an interpreter of its own, patched first."""
    done = subprocess.run(
        [sys.executable, "-c", f"{patch}\n{program}", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_client_is_refused_where_threads_are_green(
    library: str, mongo_uri: str, database: str
) -> None:
    need(library)
    found = output(PATCHES[library], REFUSED, mongo_uri, database)
    for words in found[:4]:
        assert words.startswith(f"{library} has replaced Python's threads")
        assert "thread=False" in words
        assert "docs/workers.md" in words
    assert found[4:] == ["False None 5", "0"]


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_clients_follow_where_all_but_threads_is_green(
    library: str, mongo_uri: str, database: str
) -> None:
    need(library)
    found = output(PATCHES[f"{library}-threads"], FOLLOWS, mongo_uri, database)
    assert found == [*["True shop.on"] * 2, "5", *["False None"] * 2, "child None", "[]"]


def test_a_client_that_was_there_before_threads_were_green_goes_on(
    mongo_uri: str, database: str, tmp_path: Path
) -> None:
    need("gevent")
    # As in workers of `gunicorn -k gevent --preload`.
    found = output("", PATCHED_LATE, mongo_uri, database, str(tmp_path / "flags.snapshot"))
    assert found == ["shop.on True", "watching {}", "refused"]


def test_the_embedded_server_runs_where_threads_are_green() -> None:
    need("gevent")
    program = """
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Writer
with EmbeddedMongo() as server:
    with Writer(server.uri, "production", actor="tester") as writer:
        writer.create_environment()
        print(writer.store.read_tip().revision)
"""
    assert output(PATCHES["gevent"], program) == ["0"]
