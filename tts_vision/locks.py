"""One writer at a time: the lock of a folder that a search writes to."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from tts_vision.errors import BusyError, StorageError
from tts_vision.files import open_file, storage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".tts-vision.lock"
BEAT = 60.0
"""Seconds after which the owner of a lock renews it."""
EXPIRES = 15 * BEAT
"""Seconds without renewal after which the owner of a lock, on a machine that cannot be asked, is gone."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        pid: Its number.
        host: The machine's name; a container has one of its own.
        boot: Names the running kernel, which containers of a machine share; empty where there is none.
        started: When the process started, as the system counts: numbers of processes are used again.
        since: When it took the lock.
    """

    pid: int
    host: str
    boot: str
    started: float
    since: str

    @classmethod
    def this(cls) -> Owner:
        """This process."""
        boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(os.getpid(), socket.gethostname(), boot, _started(os.getpid()) or 0.0, since)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine, so that its end shows here."""
        here = Owner.this()
        return self.host == here.host or (self.boot != "" and self.boot == here.boot)

    @property
    def runs(self) -> bool:
        """Whether it still runs, as far as that can be seen from this machine."""
        started = _started(self.pid)
        return started is not None and abs(started - self.started) < 1.0

    def __str__(self) -> str:
        here = self.pid == os.getpid() and self.is_here
        return f"{'this process' if here else 'process'} {self.pid} on {self.host} since {self.since}"


@contextmanager
def one_writer(folder: Path) -> Iterator[list[Path]]:
    """Keeps other searches out of a folder, which is made if it is missing.

    Yields the folders that were made, innermost last; those that are empty at the end are removed. The lock
    is the system's own lock on the file `LOCK`, which ends with the process that holds it, whatever ends
    that. Where the file system has no such locks, the process that the file names counts; one on another
    machine as long as it renews the file.

    Raises:
        BusyError: If another one writes to it.
        StorageError: If the folder cannot be written to.
    """
    made: list[Path] = []
    try:
        lock = _enter(folder, made)
        ended = threading.Event()
        beat = threading.Thread(target=_renew, args=(lock, ended), daemon=True)
        beat.start()
        try:
            yield made
        finally:
            ended.set()
            beat.join()
            if fcntl is None:
                os.close(lock)  # Windows removes no open file
            with suppress(OSError):
                (folder / LOCK).unlink()  # elsewhere while it is held, so that it is this one
            if fcntl is not None:
                os.close(lock)
    finally:
        remove_empty(*reversed(made))


def _renew(lock: int, ended: threading.Event) -> None:
    """Renews a lock until its owner has ended."""
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.lseek(lock, 0, os.SEEK_SET)
            first = os.read(lock, 1)
            os.lseek(lock, 0, os.SEEK_SET)
            os.write(lock, first)


def _enter(folder: Path, made: list[Path]) -> int:
    """Makes the folder, as far as it is missing, and takes its lock."""
    while True:
        with storage(folder, "The result folder"):
            for each in (*reversed(folder.parents), folder):
                with suppress(FileExistsError):
                    if not each.exists():
                        each.mkdir()
                        made.append(each)
        try:
            return _take(folder / LOCK)
        except StorageError as error:
            # another one ended just now, and removed the folder that it had left empty
            if not isinstance(error.__cause__, FileNotFoundError):
                raise


def check_free(folder: Path) -> None:
    """Checks that nobody writes to a folder, and removes the lock of a process that is gone.

    Raises:
        StorageError: If somebody does.
    """
    if (folder / LOCK).is_file():
        with one_writer(folder):
            pass


def remove_empty(*folders: Path) -> None:
    """Removes those of the folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _take(path: Path) -> int:
    """A descriptor that holds the lock."""
    while True:
        with storage(path, "The lock"):
            descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            held = _lock(descriptor)
            owner = _read(descriptor)
            age = time.time() - os.fstat(descriptor).st_mtime
            if held is False or (owner is not None and _blocks(owner, held, age)):
                raise BusyError(_refusal(path, owner, held))
            # its owner may have removed it between the two calls, and a third made a new one
            if _is_still(path, descriptor):
                with storage(path, "The lock"):
                    _write(descriptor, Owner.this())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the descriptor holds the lock now; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _blocks(owner: Owner, held: bool | None, age: float) -> bool:
    """Whether an owner keeps others out though its lock is not seen: on another machine, or without locks."""
    return (held is None and owner.runs) if owner.is_here else age < EXPIRES


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Owner | None:
    """Who holds or held the lock; None if that was not written yet."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return Owner(**json.loads(os.read(descriptor, 4096)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, owner: Owner) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(asdict(owner)).encode() + b"\n")


def _refusal(path: Path, owner: Owner | None, held: bool | None) -> str:
    rule = f"A folder has one writer at a time but {str(path.parent)!r} is written by"
    if owner is None:
        return f"{rule} a process that has just begun; wait until it ends, or choose another --output."
    if not owner.is_here:
        return (
            f"{rule} {owner}, another machine; wait until it ends or choose another --output. If it runs no "
            f"more, its lock expires {EXPIRES / 60:.0f} minutes after its last sign of life, or when you "
            f"delete {str(path)!r}."
        )
    if held is False and owner.host == socket.gethostname() and not owner.runs:
        return f"{rule} what is left of {owner}: a child of it; end that, or choose another --output."
    return f"{rule} {owner}; wait until it ends, end it, or choose another --output."


def _started(pid: int) -> float | None:
    """When a process started; None if there is none of that number."""
    if _BOOT.exists():
        try:
            return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        except OSError:
            return None
    import psutil

    try:
        started: float = psutil.Process(pid).create_time()
    except psutil.Error:
        return None
    return started
