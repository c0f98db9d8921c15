"""Clients after a fork: the child goes on by itself; the parent is left alone."""

import contextlib
import errno
import functools
import gc
import http.client
import importlib.util
import itertools
import json
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from celery import Celery  # type: ignore[import-untyped]
from pymongo import MongoClient

import flagkit
from flagkit import Client, ErrorCode, Evaluation
from flagkit._core.evaluation import compiler
from flagkit.client.sources import FlagSource
from flagkit.errors import ClosedError
from flagkit.testing import MemoryHistory, client_from
from flagkit.writer import Writer
from tests.soak import writing
from tests.support.forked import (
    SECONDS_MAX,
    ForkedChild,
    list_ports,
    list_sockets,
    list_watcher_ports,
    poll_until,
)

# 3.12 on: forking with threads is what this is about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

EXAMPLES = Path(__file__).parents[2] / "examples" / "workers"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"light": "light", "dark": "dark"},
    "fallthrough": {"serve": "dark"},
}
FLAG_COUNT = 12
LIGHT: dict[str, Any] = {**THEME, "fallthrough": {"serve": "light"}}


def answer(client: Client) -> tuple[str, int]:
    """Return a flag's value and the revision that it is from."""
    found = client.evaluate("shop.theme", "user", "none")
    return found.value, found.revision or 0


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flagkit"]


@pytest.mark.every_python
def test_a_child_goes_on_from_any_source_and_leaves_the_parent_alone() -> None:
    history = MemoryHistory()
    history.commit(THEME)
    with Client.from_source(history.create_source) as client:
        client.wait_ready()

        def follow(says: Connection) -> None:
            client.wait_for(history.commit(LIGHT).revision)
            says.send(answer(client))

        with ForkedChild(follow) as child:
            assert child.says() == ("light", 2)
        assert answer(client) == ("dark", 1)
        client.wait_for(history.commit(LIGHT).revision)


def shaped(size: int) -> dict[str, Any]:
    """Return a flag whose code no other size has."""
    rules = [
        {"name": f"rule-{number}", "when": {"plan": "pro", "age": {"$gt": 17}}, "serve": "on"}
        for number in range(size)
    ]
    return {
        "key": "shop.shaped",
        "variants": {"on": True, "off": False},
        "rules": rules,
        "fallthrough": {"serve": "off"},
    }


@pytest.fixture
def client(mongo_uri: str, database: str, writer: Writer) -> Iterator[Client]:
    writer.create(THEME)
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_ready()
        yield client


@pytest.fixture
def mongo(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as mongo:
        yield mongo


@pytest.mark.every_python
@pytest.mark.mongo
class TestFork:
    def test_a_child_answers_at_once_and_follows_what_comes(
        self, client: Client, writer: Writer
    ) -> None:
        def follow(says: Connection) -> None:
            says.send(answer(client))
            client.wait_for(2)
            says.send(answer(client))

        with ForkedChild(follow) as child:
            assert child.says() == ("dark", 1)
            revision = writer.update(LIGHT).revision
            assert child.says() == ("light", 2)
            assert child.exit_code() == 0
        client.wait_for(revision)
        assert answer(client) == ("light", 2)

    def test_a_child_has_connections_of_its_own_and_the_parent_keeps_those_it_had(
        self,
        client: Client,
        writer: Writer,
        mongo: MongoClient[dict[str, Any]],
        database: str,
    ) -> None:
        def follow(says: Connection) -> None:
            client.wait_for(2)
            says.send(answer(client))
            client.wait_for(3)

        before = poll_until(
            lambda: list_watcher_ports(mongo, database), lambda found: len(found) == 1
        )
        [thread] = threads()
        with ForkedChild(follow) as child:
            both = poll_until(
                lambda: list_watcher_ports(mongo, database), lambda found: len(found) == 2
            )
            assert before < both
            assert before < list_ports(os.getpid())
            assert both - before < list_ports(child.pid) - list_ports(os.getpid())
            writer.update(LIGHT)
            assert child.says() == ("light", 2)
            client.wait_for(writer.update(THEME).revision)
            assert child.exit_code() == 0
        # The server may take the child for alive for a while.
        poll_until(lambda: list_watcher_ports(mongo, database), before.issubset)
        assert threads() == [thread]
        assert thread.is_alive()

    def test_a_child_needs_none_of_the_sockets_that_it_inherits(
        self, client: Client, writer: Writer
    ) -> None:
        inherited = set(list_sockets(os.getpid()).values())
        assert inherited

        def follow(says: Connection) -> None:
            with Path(os.devnull).open("rb") as nothing:
                for descriptor, name in list_sockets(os.getpid()).items():
                    if name in inherited:
                        os.dup2(nothing.fileno(), descriptor)
            says.send(inherited.isdisjoint(list_sockets(os.getpid()).values()))
            for revision in (2, 3):
                client.wait_for(revision)
                says.send(answer(client))

        with ForkedChild(follow) as child:
            assert child.says() is True
            writer.update(LIGHT)
            assert child.says() == ("light", 2)
            writer.update(THEME)
            assert child.says() == ("dark", 3)
        client.wait_for(3)

    def test_a_child_of_a_child_goes_on_too(self, client: Client, writer: Writer) -> None:
        def follow(says: Connection) -> None:
            client.wait_for(2)
            says.send(answer(client))

        def fork_again(says: Connection) -> None:
            with ForkedChild(follow) as grandchild:
                says.send(answer(client))
                says.send(grandchild.says())
            follow(says)

        with ForkedChild(fork_again) as child:
            assert child.says() == ("dark", 1)
            writer.update(LIGHT)
            assert [child.says(), child.says()] == [("light", 2)] * 2
            assert child.exit_code() == 0
        client.wait_for(2)

    def test_a_child_shares_the_snapshot_file_of_its_parent_and_goes_on_from_it(
        self, mongo_uri: str, database: str, writer: Writer, tmp_path: Path
    ) -> None:
        path = tmp_path / "flags.snapshot"

        def made() -> Client:
            return Client(
                mongo_uri, environment="production", database=database, snapshot_path=path
            )

        writer.create(THEME)
        with made() as first:
            first.wait_ready()
        with made() as client:

            def follow(says: Connection) -> None:
                snapshot = client.snapshot
                assert snapshot is not None
                says.send((answer(client), snapshot.base.content.readonly))
                client.wait_for(2, SECONDS_MAX)
                says.send(answer(client))

            # At once: it has not reached the database yet.
            with ForkedChild(follow) as child:
                assert child.says() == (answer(client), True)
                writer.update(LIGHT)
                client.wait_for(2, SECONDS_MAX)
                assert child.says() == answer(client)
                assert child.exit_code() == 0

    def test_a_client_that_was_closed_before_stays_closed_in_the_child(
        self, client: Client
    ) -> None:
        client.close()

        def look(says: Connection) -> None:
            says.send((answer(client), threads()))
            with pytest.raises(ClosedError):
                client.wait_for(2)
            client.close()

        with ForkedChild(look) as child:
            assert child.says() == (("dark", 1), [])
            assert child.exit_code() == 0

    def test_a_child_may_close_its_client_and_the_parent_goes_on(
        self, client: Client, writer: Writer
    ) -> None:
        def close(says: Connection) -> None:
            client.close()
            # Whatever is freed here must not take the parent's connections along.
            gc.collect()
            says.send((answer(client), threads()))

        with ForkedChild(close) as child:
            assert child.says() == (("dark", 1), [])
            assert child.exit_code() == 0
        client.wait_for(writer.update(LIGHT).revision)


@contextlib.contextmanager
def doing(*stories: Callable[[], object]) -> Iterator[None]:
    """Do things over and over again, each in a thread."""
    ending = threading.Event()

    def repeat(story: Callable[[], object]) -> None:
        while not ending.is_set():
            story()

    doers = [threading.Thread(target=repeat, args=[story]) for story in stories]
    for doer in doers:
        doer.start()
    try:
        yield
    finally:
        ending.set()
        for doer in doers:
            doer.join()


@contextlib.contextmanager
def revisions_arriving(uri: str, database: str, writer: Writer) -> Iterator[None]:
    """Have another process change flags, one revision after the other."""
    with writer.change() as change:
        for number in range(FLAG_COUNT):
            change.create(writing.build_contended_flag(number))
    where = [uri, database, "production", str(FLAG_COUNT), "1"]
    command = [sys.executable, "-m", writing.__name__, *where]
    stocked = writer.store.read_tip().revision
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        try:
            poll_until(lambda: writer.store.read_tip().revision, lambda there: there > stocked)
            yield
        finally:
            process.kill()


@pytest.mark.every_python
@pytest.mark.mongo
class TestForkInTheMidst:
    def test_no_child_hangs_while_others_evaluate_and_compile_and_revisions_arrive(
        self, client: Client, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        sizes = itertools.cycle(range(1, 60))

        def evaluate() -> None:
            client.evaluate_all("user")

        def compile_another() -> None:
            client_from([shaped(next(sizes))]).is_enabled("shop.shaped", "user")

        def follow(says: Connection) -> None:
            before = client.evaluate_all("user")
            client_from([shaped(next(sizes))]).is_enabled("shop.shaped", "user")
            client.wait_for(client.revision + 3)
            says.send([before, client.evaluate_all("user")])

        with (
            revisions_arriving(mongo_uri, database, writer),
            doing(evaluate, compile_another),
        ):
            for _ in range(10):
                with contextlib.ExitStack() as stack:
                    children = [stack.enter_context(ForkedChild(follow)) for _ in range(5)]
                    for child in children:
                        before, later = child.says()
                        assert len(before) == len(later) == FLAG_COUNT + 1
                        [old] = {found.revision for found in before.values()}
                        [new] = {found.revision for found in later.values()}
                        assert new >= old + 3
                        assert child.exit_code() == 0
            client.wait_for(client.revision + 3)

    def test_a_child_that_is_forked_before_the_flags_are_there_gets_them(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(THEME)
        for moment in range(20):
            with Client(mongo_uri, environment="production", database=database) as client:
                for _ in range(moment * 500):
                    client.is_enabled("shop.theme")

                def load(says: Connection, client: Client = client) -> None:
                    client.wait_ready()
                    says.send(answer(client))

                with ForkedChild(load) as child:
                    assert child.says() == ("dark", 1)
                    client.wait_ready()


@pytest.mark.every_python
@pytest.mark.parametrize("lock", ["templates", "arrival"])
def test_a_child_renews_the_locks_that_other_threads_held(lock: str) -> None:
    history = MemoryHistory()
    history.commit(THEME)
    with Client.from_source(history.create_source) as client:
        client.wait_ready()

        def follow(says: Connection) -> None:
            client.wait_for(history.commit(shaped(61)).revision)
            says.send(client.is_enabled("shop.shaped", {"plan": "pro", "age": 18}))

        locks: dict[str, AbstractContextManager[object]] = {
            "templates": compiler._templates_lock,
            "arrival": client._arrival,
        }
        with locks[lock]:
            child = ForkedChild(follow)
        with child:
            assert child.says() is True


LEAVING = """
import gc, os, sys, flagkit
flagkit.configure(sys.argv[1], environment="production", database=sys.argv[2])
flagkit.wait_ready()
child = os.fork()
flagkit.wait_for(2, timeout=20)
if not child:
    gc.collect()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
flagkit.wait_for(3, timeout=20)
print(flagkit.value("shop.theme", default="none"), flush=True)
flagkit.close()
"""


@pytest.mark.every_python
@pytest.mark.mongo
def test_a_child_that_ends_takes_nothing_along_and_is_not_held_up(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    writer.create(THEME)
    strict = ["-W", "error", "-W", "ignore:.*multi-threaded:DeprecationWarning"]
    with subprocess.Popen(
        [sys.executable, *strict, "-c", LEAVING, mongo_uri, database],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            writer.update(LIGHT)
            assert process.stdout.readline() == "7\n"
            writer.update(THEME)
            assert process.communicate(timeout=SECONDS_MAX) == ("dark\n", "")
            assert process.returncode == 0
        finally:
            process.kill()


def ask_the_default_client(says: Connection, settings: dict[str, Any]) -> None:
    """Say what a new process's default client answers, at once and once it is configured."""
    says.send(flagkit.evaluate("shop.theme", default="none"))
    if settings:
        flagkit.configure(**settings)
    flagkit.wait_for(2)
    says.send(flagkit.evaluate("shop.theme", default="none"))


@contextlib.contextmanager
def asking(method: str, settings: dict[str, Any]) -> Iterator[Connection]:
    """Have a process of multiprocessing ask its default client; yield what it says."""
    context = multiprocessing.get_context(method)
    heard, says = context.Pipe(duplex=False)
    process: Any = context.Process(target=ask_the_default_client, args=(says, settings))  # type: ignore[attr-defined]
    process.start()
    says.close()
    try:
        yield heard
        process.join(SECONDS_MAX)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        heard.close()


def said(heard: Connection) -> Evaluation[str]:
    assert heard.poll(SECONDS_MAX), "the process hangs"
    evaluation: Evaluation[str] = heard.recv()
    return evaluation


@pytest.mark.every_python
@pytest.mark.mongo
class TestMultiprocessing:
    @pytest.fixture
    def settings(self, mongo_uri: str, database: str, writer: Writer) -> Iterator[dict[str, Any]]:
        """What the default client is configured by, for as long as a test runs."""
        writer.create(THEME)
        settings: dict[str, Any] = {
            "uri": mongo_uri,
            "environment": "production",
            "database": database,
        }
        client = flagkit.configure(**settings)
        flagkit.wait_ready()
        yield settings
        # Forgets the flags, too.
        client.follow(FlagSource(lambda: MemoryHistory().create_source)).close()

    def test_a_forked_process_goes_on_by_itself(
        self, settings: dict[str, Any], writer: Writer
    ) -> None:
        assert settings
        with asking("fork", {}) as heard:
            assert said(heard).value == "dark"
            writer.update(LIGHT)
            assert said(heard).value == "light"

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_a_process_that_is_not_forked_is_configured_anew(
        self, method: str, settings: dict[str, Any], writer: Writer
    ) -> None:
        with asking(method, settings) as heard:
            first = said(heard)
            assert (first.value, first.error_code) == ("none", ErrorCode.PROVIDER_NOT_READY)
            writer.update(LIGHT)
            assert said(heard).value == "light"

    def test_clients_are_not_sent_to_other_processes(self, settings: dict[str, Any]) -> None:
        for unsendable in (flagkit.configure(**settings), flagkit.is_enabled):
            with pytest.raises(TypeError, match="cannot be copied, or sent to another process"):
                pickle.dumps(unsendable)


HERO: dict[str, Any] = {
    "key": "home.hero",
    "variants": {"a": "product", "b": "people"},
    "fallthrough": {"serve": "a"},
}
PEOPLE: dict[str, Any] = {**HERO, "fallthrough": {"serve": "b"}}
Answers: TypeAlias = list[dict[str, Any]]


@contextlib.contextmanager
def serving(*command: str, environment: dict[str, str], keep: int = -1) -> Iterator[int]:
    """Run a module in the folder of the examples; yield its process id, and end all of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=EXAMPLES,
        env=ENVIRONMENT | environment,
        pass_fds=[keep] if keep >= 0 else [],
        start_new_session=True,
    )
    try:
        yield process.pid
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def workers_of(pid: int, count: int) -> set[int]:
    """Return the forked children of a process, once all of them are there."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return poll_until(
        lambda: {int(child) for child in children.read_text().split()},
        lambda found: len(found) == count,
    )


def all_answer(ask: Callable[[], Answers], workers: set[int], hero: str, revision: int) -> None:
    """Ask until the last answer of each worker is what is expected, and nobody else answered."""
    last: dict[int, tuple[str, int]] = {}

    def once() -> dict[int, tuple[str, int]]:
        last.update((said["worker"], (said["hero"], said["revision"])) for said in ask())
        return last

    poll_until(once, lambda last: last == dict.fromkeys(workers, (hero, revision)))


@pytest.fixture
def environment(mongo_uri: str, database: str, writer: Writer) -> dict[str, str]:
    """What configures the examples."""
    writer.create(HERO)
    return {
        "FLAGKIT_URI": mongo_uri,
        "FLAGKIT_ENVIRONMENT": "production",
        "FLAGKIT_DATABASE": database,
    }


@pytest.mark.mongo
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_workers_of_gunicorn_that_are_forked_from_a_loaded_application_go_on(
    environment: dict[str, str],
    writer: Writer,
    mongo: MongoClient[dict[str, Any]],
    database: str,
    kind: str,
) -> None:
    if importlib.util.find_spec(kind if kind == "gevent" else "gunicorn") is None:
        pytest.skip(f"needs {kind}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]

        def ask() -> Answers:
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
            ) as connection:
                connection.request("GET", "/")
                return [json.loads(connection.getresponse().read())]

        command = ["gunicorn", "--preload", "--workers", "4", "--no-control-socket"]
        command += ["--log-level", "warning", "--bind", f"fd://{listening.fileno()}"]
        command += ["--worker-class", kind, "web:application"]
        with serving(*command, environment=environment, keep=listening.fileno()) as master:
            workers = workers_of(master, 4)
            all_answer(ask, workers, "product", 1)
            found = poll_until(
                lambda: list_watcher_ports(mongo, database), lambda found: len(found) == 5
            )
            [masters] = found & list_ports(master)
            writer.update(PEOPLE)
            all_answer(ask, workers, "people", 2)

            os.kill(killed := min(workers), signal.SIGKILL)
            poll_until(lambda: workers_of(master, 4), lambda found: killed not in found)
            [new] = workers_of(master, 4) - workers
            first = poll_until(ask, lambda said: said[0]["worker"] == new)
            assert first[0]["revision"] >= 1, "the flags of the master were not there at once"
            all_answer(ask, workers - {killed} | {new}, "people", 2)
            poll_until(lambda: list_watcher_ports(mongo, database), lambda found: masters in found)


@pytest.mark.mongo
def test_workers_of_gunicorn_that_load_the_application_among_green_threads_say_why_not(
    environment: dict[str, str],
) -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("needs gevent")
    command = ["gunicorn", "--workers", "1", "--no-control-socket", "--worker-class", "gevent"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--bind", "127.0.0.1:0", "web:application"],
        cwd=EXAMPLES,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 3, "a worker that does not boot ends the master"
    assert "ConfigurationError: gevent has replaced Python's threads" in done.stderr


@pytest.mark.mongo
def test_processes_of_celerys_prefork_pool_go_on(
    environment: dict[str, str], writer: Writer, tmp_path: Path
) -> None:
    names = ("queue", "outbox", "control", "results")
    queue, outbox, control, results = (tmp_path / name for name in names)
    for folder in (queue, outbox, control, results):
        folder.mkdir()

    def settings(out: Path) -> dict[str, Any]:
        return {
            "broker_url": "filesystem://",
            "broker_transport_options": {
                "data_folder_in": str(queue),
                "data_folder_out": str(out),
                "control_folder": str(control),
                "polling_interval": 0.02,
            },
            "result_backend": results.as_uri(),
        }

    lines = [f"{name} = {value!r}\n" for name, value in settings(queue).items()]
    (tmp_path / "celeryconfig.py").write_text("".join(lines))
    app = Celery()
    app.config_from_object(settings(outbox))

    def ask() -> Answers:
        sent = [app.send_task("shop.hero", ["visitor"]) for _ in range(3)]
        # Whole: a worker that finds a message while it is written ends.
        for message in outbox.iterdir():
            message.rename(queue / message.name)
        return [each.get(timeout=SECONDS_MAX, interval=0.01) for each in sent]

    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    command = ["celery", "--app", "tasks", "worker", "--concurrency", "3"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with serving(*command, environment=environment) as worker:
        processes = workers_of(worker, 3)
        all_answer(ask, processes, "product", 1)
        writer.update(PEOPLE)
        all_answer(ask, processes, "people", 2)


def starts_no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def opens_no_descriptors(*_: Any) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


DAEMONS = """
import gc, logging, os, socket, sys, time
import flagkit

logging.getLogger("flagkit").setLevel(logging.ERROR)
flagkit.configure(sys.argv[1], environment="production", database=sys.argv[2], max_staleness=3)
flagkit.wait_ready()


def is_watching():
    return flagkit.status().state == "watching" and flagkit.status().staleness < 1


def is_well():
    # As soon as it is watching: its thread is about to read and write just then.
    while flagkit.status().state != "watching":
        pass
    os.closerange(3, 1024)
    # They get the numbers of the loop's sockets. Some are sockets, too.
    files = [open(os.devnull) for _ in range(4)]
    pairs = [socket.socketpair() for _ in range(4)]
    kept = [os.fstat(file.fileno()).st_ino for file in files]
    # Known to be current: the primary was asked since, by new connections.
    began = time.monotonic()
    while flagkit.status().staleness > time.monotonic() - began:
        if time.monotonic() - began > 20:
            return flagkit.status()
    flagkit.close()
    gc.collect()
    if [os.fstat(file.fileno()).st_ino for file in files] != kept:
        return "a file was closed"
    for pair in pairs:
        for here, there in (pair, pair[::-1]):
            here.setblocking(False)
            try:
                return "read from a connection: " + repr(here.recv(100))
            except BlockingIOError:
                there.sendall(b"x")
                if here.recv(1) != b"x":
                    return "it lost what was sent"
    return True


for _ in range(5):
    while not is_watching():
        pass
    child = os.fork()
    if not child:
        os.setsid()
        print(is_well(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.mongo
class TestDaemon:
    """Children whose descriptors are closed, as PEP 3143 has it, or who get none, or no thread."""

    def test_a_child_that_closes_all_descriptors_goes_on_and_keeps_those_it_opens(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(THEME)
        # In an interpreter of its own: pytest, too, has descriptors that it goes on using.
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore::DeprecationWarning",
                "-c",
                DAEMONS,
                mongo_uri,
                database,
            ],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("True\n" * 5, "")

    @pytest.mark.parametrize("moment", range(5))
    def test_a_child_that_closes_all_descriptors_at_once_goes_on(
        self, client: Client, writer: Writer, moment: int
    ) -> None:
        def become_a_daemon(says: Connection) -> None:
            # The client's thread is just being started.
            for _ in range(moment * 1_000):
                pass
            os.closerange(3, says.fileno())
            os.closerange(says.fileno() + 1, 1024)
            says.send("closed")
            client.wait_for(2, SECONDS_MAX)
            says.send(answer(client))

        with ForkedChild(become_a_daemon) as child:
            assert child.says() == "closed"
            writer.update(LIGHT)
            assert child.says() == ("light", 2)
            assert child.exit_code() == 0

    def test_a_child_of_a_daemon_goes_on(self, client: Client, writer: Writer) -> None:
        def follow(says: Connection) -> None:
            os.closerange(3, says.fileno())
            os.closerange(says.fileno() + 1, 1024)
            Path(os.devnull).open("rb")  # noqa: SIM115 - it stays open

            def again(says: Connection) -> None:
                client.wait_for(2, SECONDS_MAX)
                says.send(answer(client))

            with ForkedChild(again) as grandchild:
                says.send("forked")
                says.send(grandchild.says())
            again(says)

        with ForkedChild(follow) as child:
            assert child.says() == "forked"
            writer.update(LIGHT)
            assert [child.says(), child.says()] == [("light", 2)] * 2
            assert child.exit_code() == 0

    @pytest.mark.parametrize("lacking", ["descriptors", "threads"])
    def test_a_child_that_lacks_what_a_thread_takes_says_so_and_goes_on_when_it_is_there(
        self,
        client: Client,
        mongo_uri: str,
        database: str,
        writer: Writer,
        lacking: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with Client(mongo_uri, environment="production", database=database) as other:
            other.wait_ready()

            def lack(says: Connection) -> None:
                found = [
                    poll_until(one.status, lambda it: it.error is not None)
                    for one in (client, other)
                ]
                says.send([(str(status.state), status.error) for status in found])
                # It answers all the same, and asks for its thread each time.
                says.send([answer(one) for one in (client, other)])
                monkeypatch.undo()
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for one in (client, other):
                    poll_until(functools.partial(answer, one), lambda it: it == ("light", 2))
                says.send([str(one.status().state) for one in (client, other)])

            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            if lacking == "threads":
                monkeypatch.setattr(threading.Thread, "start", starts_no_thread)
                error = "can't start new thread"
            else:
                monkeypatch.setattr(socket, "socketpair", opens_no_descriptors)
                error = "[Errno 24] Too many open files"
            with ForkedChild(lack) as child:
                monkeypatch.undo()
                assert child.says() == [("backing off", error)] * 2
                assert child.says() == [("dark", 1)] * 2
                writer.update(LIGHT)
                child.says()
                assert child.exit_code() == 0

    def test_a_client_that_cannot_go_on_keeps_no_other_from_it(
        self, client: Client, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        with (
            Client(mongo_uri, environment="production", database=database) as broken,
            Client(mongo_uri, environment="production", database=database) as last,
        ):
            broken.wait_ready()
            last.wait_ready()
            broken._subscriptions.after_fork_in_child = opens_no_descriptors  # type: ignore[assignment,method-assign]
            broken._decrypter.after_fork_in_child = opens_no_descriptors  # type: ignore[method-assign]

            def follow(says: Connection) -> None:
                for one in (client, last, broken):
                    one.wait_for(2, SECONDS_MAX)
                    says.send(answer(one))

            with ForkedChild(follow) as child:
                writer.update(LIGHT)
                assert [child.says() for _ in range(3)] == [("light", 2)] * 3
                assert child.exit_code() == 0


@pytest.mark.every_python
@pytest.mark.mongo
def test_a_fork_within_the_refresh_thread_leaves_the_parent_alone(
    client: Client, writer: Writer
) -> None:
    pids: list[int] = []

    def fork(*_: object) -> None:
        if not pids:
            pids.append(os.fork())

    client.on_publish(fork)
    client.wait_for(writer.update(LIGHT).revision)
    # Callbacks are called after those who wait for the revision have gone on.
    [child] = poll_until(lambda: pids, bool)
    try:
        # The copy of the thread that is the child's only one goes on into what it may not touch.
        for _ in range(3):
            client.wait_for(writer.update(THEME).revision)
            assert client.status().error is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
