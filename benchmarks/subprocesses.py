"""Apart: work in fresh processes.

Some is done alone, and nobody hears its words: what other packages print, log, or leave behind as
threads ends with the process. Some is a companion's, that is talked with.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS: Final = 1800.0


class WorkerError(Exception):
    """The work failed, or its process died; it says how."""


def run_in_subprocess(work: Callable[..., T], *arguments: object, network: bool = False) -> T:
    """Return what `work` returns in a spawned process; it and its arguments are pickled.

    Without a network, unless one is asked for.

    Raises:
        ApartError: it raised, died, or took longer than PATIENCE_SECONDS.
    """
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(
        target=_run_work, args=(theirs, work, arguments, network), daemon=True
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE_SECONDS):
            raise WorkerError(f"it took more than {PATIENCE_SECONDS:g} s")
        fault, result = ours.recv()
    except EOFError:
        raise WorkerError("its process died") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if fault is not None:
        raise WorkerError(fault)
    found: T = result
    return found


class WorkerProcess:
    """A spawned process that is talked with, network and all; it ends with the block.

    `work` takes some arguments, which are pickled, and its end of a pipe.
    """

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._connection, theirs = spawning.Pipe()
        self._process = spawning.Process(target=work, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Send it something."""
        self._connection.send(message)

    def receive(self, patience_seconds: float) -> Any:
        """Return the next that it sends.

        Raises:
            ApartError: it fell silent, or died.
        """
        try:
            if self._connection.poll(patience_seconds):
                return self._connection.recv()
        except EOFError:
            raise WorkerError("its process died") from None
        raise WorkerError(f"it took more than {patience_seconds:g} s")

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def measure_resident_bytes() -> int:
    """Return the memory of this process, after what is not needed has been given back."""
    _release_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_private_bytes() -> int:
    """Return the memory of this process that no other shares, after what is not needed is gone."""
    _release_memory()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _release_memory() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run_work(
    connection: Connection,
    work: Callable[..., Any],
    arguments: tuple[object, ...],
    network: bool,  # noqa: FBT001 - a process is given its arguments by position
) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.disable()
    if not network:
        socket.socket.connect = _refuse_connection  # type: ignore[assignment, method-assign]
    answer: tuple[str | None, object]
    try:
        answer = (None, work(*arguments))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
        answer = (f"{type(error).__name__}: {error}", None)
    connection.send(answer)
    # Threads that others started, and their hooks at exit, are not waited for.
    os._exit(0)


def _refuse_connection(_: socket.socket, address: object) -> NoReturn:
    raise OSError(f"there is no network in benchmarks: {address}")
