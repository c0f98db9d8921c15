"""Replica sets whose members are killed, suspended, cut off and brought back by tests.

Those of `flagkit.testing.embedded` live as long as somebody uses them. These do not. A member may
have a proxy before it, by which clients and the other members know it. It may then come back on
another port, and be cut off from either. Use it in the main thread, because members end with it.
"""

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from flagkit.testing.embedded import _FLAGS, _LISTENING, _find_mongod
from tests.support.tcp_proxy import HOST, TcpProxy

SECONDS_MAX = 30.0
"""So long is any member waited for."""
ELECTION_SECONDS = 1.0
"""A primary that is silent for so long is given up by the others."""
REGIONS = ("eu", "us", "ap")
"""The tag `region` of each member."""
_POLL_SECONDS = 0.03

Mongo = MongoClient[dict[str, Any]]
T = TypeVar("T")


class MongodProcess:
    """One mongod, known to all as `host`, started and ended by hand."""

    def __init__(self, folder: Path, flags: Sequence[str], region: str, *, proxied: bool) -> None:
        folder.mkdir()
        self.region = region
        self.proxy = TcpProxy()
        self.port = _find_free_port()
        """Where it listens itself."""
        self._proxied = proxied
        self._folder = folder
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self.suspended = False

    @property
    def pid(self) -> int:
        """The process id of a member that was started."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it may be talked to."""
        return self._process is not None and self._process.poll() is None and not self.suspended

    @property
    def host(self) -> str:
        """Where clients and other members find it."""
        return self.proxy.host if self._proxied else f"{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """What it has said since it was last started."""
        return self._folder / "mongod.log"

    def start(self) -> None:
        """Start it, on another port if it has a proxy; `wait_listening` tells when it is there."""
        assert not self.running
        if self._proxied:
            self.port = self.proxy.server_port = _find_free_port()
        # It ends with the thread that starts it, whatever ends that.
        ending: list[str | Path] = [shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL"]
        command = [*ending, _find_mongod(), "--dbpath", self._folder, "--port", str(self.port)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *self._flags], stdout=log, stderr=subprocess.STDOUT
            )

    def wait_listening(self) -> None:
        """Wait until it accepts connections."""
        wait_until(
            lambda: _LISTENING in self.log.read_text(errors="replace"), "the start of a member"
        )

    def kill(self) -> None:
        """End it with no warning, as a power cut does, and bury it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.suspended = False

    def suspend(self) -> None:
        """Stop it in its tracks: it accepts connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.suspended = True

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self.suspended = False

    def hello(self, credentials: dict[str, Any]) -> dict[str, Any]:
        """Return what it says of itself; nothing if it says nothing."""
        if self.running:
            with contextlib.suppress(PyMongoError), self.connected(credentials) as mongo:
                return mongo.admin.command("hello")
        return {}

    def connected(self, credentials: dict[str, Any]) -> Mongo:
        """Return a client of this member alone, past its proxy."""
        soon: dict[str, Any] = {"timeoutMS": 5000, "serverSelectionTimeoutMS": 1000}
        return Mongo(HOST, self.port, directConnection=True, **soon, **credentials)


class MongodReplicaSet:
    """A replica set of one or three members, for one `with`, removed with its end.

    Args:
        count: 1 or 3; the first is of region "eu", the others of "us" and "ap".
        proxied: Whether there are proxies before them; without, they keep their ports.
        small_oplog: Whether the oplog is as small as can be, so that `roll_oplog` is quick.
        password: With one, access is controlled, and it is the one of the user `root`.
        tls: Whether they talk by TLS alone; then `certificates` has what trusts them.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        proxied: bool = True,
        small_oplog: bool = False,
        password: str = "",
        tls: bool = False,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="flagkit-members-"))
        self.certificates = self._folder / "ca.pem"
        self._secured: dict[str, Any] = (
            {"tls": "true", "tlsCAFile": str(self.certificates)} if tls else {}
        )
        self._credentials = self._secured
        self._password = password
        flags = [*_FLAGS]
        if small_oplog:
            flags[flags.index("--oplogSize") + 1] = "16"
            # It is kept from the last checkpoint on, however small it is to be.
            flags += ["--syncdelay", "1"]
        if password:
            flags += ["--keyFile", str(self._key_file())]
        if tls:
            flags += ["--tlsMode", "requireTLS", "--tlsAllowConnectionsWithoutCertificates"]
            flags += ["--tlsCAFile", str(self.certificates)]
            flags += ["--tlsCertificateKeyFile", str(create_certificate(self._folder))]
        self.members = [
            MongodProcess(self._folder / region, flags, region, proxied=proxied)
            for region in REGIONS[:count]
        ]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self._folder)
            for member in self.members:
                stack.enter_context(member.proxy)
                stack.callback(member.kill)
                member.start()
            for member in self.members:
                member.wait_listening()
            self._initiate()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def uri(self, options: str = "", user: str = "", member: MongodProcess | None = None) -> str:
        """Return a connection string with some more options, for `user:password`, or else root.

        With a member, it is of that one alone, past its proxy.
        """
        hosts = ",".join(each.host for each in self.members)
        given = [options] if options else []
        given += ["replicaSet=rs0"] if member is None else ["directConnection=true"]
        given += [f"{name}={value}" for name, value in self._secured.items()]
        if not user and "username" in self._credentials:
            user = "{username}:{password}".format(**self._credentials)
        before = f"{user}@" if user else ""
        place = hosts if member is None else f"{HOST}:{member.port}"
        return f"mongodb://{before}{place}/?{'&'.join(given)}"

    def primary(self) -> MongodProcess:
        """Return the primary, waiting for one."""
        return wait_until(lambda: self._in_state("isWritablePrimary"), "a primary")[0]

    def secondaries(self) -> list[MongodProcess]:
        """Return the secondaries that there are, in this moment."""
        return self._in_state("secondary")

    def settle(self) -> None:
        """Wait until each member that runs is the primary or a secondary, and one is primary."""
        self.primary()
        running = [member for member in self.members if member.running]
        wait_until(
            lambda: len(self.secondaries()) == len(running) - 1,
            "the secondaries",
        )

    def heal(self) -> None:
        """Bring all members back, with all ways between them open, and wait until they are one."""
        for member in self.members:
            member.proxy.heal()
            if member.suspended:
                member.resume()
            if not member.running:
                member.start()
                member.wait_listening()
        self.settle()

    def part(self, cut_off: MongodProcess) -> None:
        """Cut one member off from the others; clients reach all of them as before."""
        others = [member for member in self.members if member is not cut_off]
        cut_off.proxy.keep_out([member.pid for member in others])
        for member in others:
            member.proxy.keep_out([cut_off.pid])

    def spread(self) -> None:
        """Wait until all members know that a majority has what was written so far."""

        def known() -> bool:
            statuses = [self._status(member) for member in self.members]
            optimes = [status["optimes"]["lastCommittedOpTime"]["ts"] for status in statuses]
            return bool(min(optimes) >= written)

        with self.mongo() as mongo:
            written = mongo.admin.command("hello")["lastWrite"]["opTime"]["ts"]
        wait_until(known, "the majority's point")

    def lag(self, member: MongodProcess, seconds: int) -> None:
        """Let a secondary apply what is written only so much later, or at once if 0."""
        with self.mongo() as mongo:
            config = mongo.admin.command("replSetGetConfig")["config"]
            late = config["members"][self.members.index(member)]
            late |= {"secondaryDelaySecs": seconds, "priority": 0 if seconds else 1}
            config["version"] += 1
            mongo.admin.command("replSetReconfig", config)

    def mongo(self, member: MongodProcess | None = None) -> Mongo:
        """Return a client of one member, by default the primary, with all rights."""
        return (member or self.primary()).connected(self._credentials)

    def roll_oplog(self) -> None:
        """Write until the oplog has forgotten all that was written before; best if it is small."""
        with self.mongo() as mongo:
            oplog = mongo["local"]["oplog.rs"]
            latest = next(oplog.find().sort("$natural", -1).limit(1))["ts"]
            waste = mongo["waste"]["waste"].with_options(write_concern=None)
            while next(oplog.find().sort("$natural", 1).limit(1))["ts"] <= latest:
                waste.insert_many([{"waste": b"\0" * 1_000_000} for _ in range(4)])
            mongo.drop_database("waste")

    def _initiate(self) -> None:
        members = [
            {"_id": index, "host": member.host, "tags": {"region": member.region}}
            for index, member in enumerate(self.members)
        ]
        settings = {
            "electionTimeoutMillis": int(ELECTION_SECONDS * 1000),
            "heartbeatIntervalMillis": 200,
        }
        with self.members[0].connected(self._secured) as mongo:
            config = {"_id": "rs0", "members": members, "settings": settings}
            mongo.admin.command("replSetInitiate", config)
        self.settle()
        if self._password:
            with self.mongo() as mongo:
                mongo.admin.command("createUser", "root", pwd=self._password, roles=["root"])
            self._credentials = {
                **self._secured,
                "username": "root",
                "password": self._password,
            }

    def _status(self, member: MongodProcess) -> dict[str, Any]:
        with self.mongo(member) as mongo:
            return mongo.admin.command("replSetGetStatus")

    def _in_state(self, state: str) -> list[MongodProcess]:
        return [member for member in self.members if member.hello(self._secured).get(state)]

    def _key_file(self) -> Path:
        path = self._folder / "key"
        path.write_text("members" * 9)
        path.chmod(0o400)
        return path


def create_certificate(folder: Path) -> Path:
    """Make an authority, `ca.pem`, in a folder; return a server's certificate by it, and key."""
    authority, certificate = folder / "ca.pem", folder / "server.pem"
    new: list[str | Path] = [
        *("openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
    ]
    own: list[str | Path] = ["-subj", "/CN=authority", "-keyout", folder / "ca.key"]
    by: list[str | Path] = ["-CA", authority, "-CAkey", folder / "ca.key", "-subj", "/CN=server"]
    names = ["-addext", f"subjectAltName=IP:{HOST}"]
    for more in (
        [*own, "-out", authority],
        [*by, *names, "-keyout", folder / "server.key", "-out", certificate],
    ):
        subprocess.run([*new, *more], check=True, capture_output=True)
    certificate.write_text(certificate.read_text() + (folder / "server.key").read_text())
    return certificate


def _find_free_port() -> int:
    """Return a free port, of those that the system gives to nobody who has not asked for it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


def wait_until(ask: Callable[[], T], what: str, deadline: float | None = None) -> T:
    """Ask until the answer is true, or the deadline in monotonic time is past; return it."""
    deadline = time.monotonic() + SECONDS_MAX if deadline is None else deadline
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what} did not come in time"
        time.sleep(_POLL_SECONDS)
    return answer
