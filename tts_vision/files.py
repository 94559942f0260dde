"""Files of a search's folder: plain names, regular files, written whole and durably, errors in one message.

A folder may come from somebody else, so it is data: a name in it never leads out of it, and no symlink in it
is followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from tts_vision.errors import StorageError

CONFIG, TRACE, RESULT, POPULATION = "config.yaml", "trace.jsonl", "result.json", "population"
STATE, ASSETS, THUMBNAILS = "state", "conditions", "thumbnails"
STOPPED = "stopped"
"""Marks a folder whose result is that of a search that was stopped and can go on."""
_PLAIN = re.compile(r"\w[\w.+-]*")
_PART = re.compile(r"\.\d{5,}[\w.+-]*\.part\.\w+")
# 0 where the system has no such flag; without O_NONBLOCK, opening a named pipe would wait for its other end
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_SAFELY |= getattr(os, "O_BINARY", 0)


@contextmanager
def storage(path: Path, what: str) -> Iterator[None]:
    """Turns a failure to write `what` under `path` into one clear message."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{what} must be written to {str(path)!r} but the system says: "
            f"{getattr(error, 'strerror', None) or error}. "
            "Free some space or choose another --output; everything written so far is kept, and "
            "'tts-vision resume' goes on from it."
        ) from error


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in its folder: no separator, no "..", not hidden."""
    return _PLAIN.fullmatch(name) is not None


def inside(root: Path, name: Any) -> Path:
    """The file of a folder that a record names: in the folder itself, or in its ``population``.

    Raises:
        StorageError: If the name leads elsewhere, or what is there is no regular file.
    """
    folder, _, last = str(name).rpartition("/")
    if folder not in ("", POPULATION) or not is_plain(last):
        raise StorageError(
            f"Names in a result folder must be of files in it but {str(root)!r} records {name!r}; the folder "
            "was changed by somebody: do not use it."
        )
    path = root / name
    if not folder or is_folder(path.parent):
        is_file(path)
    return path


def is_file(path: Path) -> bool:
    """Whether a regular file is at `path`.

    Raises:
        StorageError: If something else is, such as a symlink.
    """
    return _is(path, stat.S_ISREG, "regular files")


def best_of(root: Path) -> Path | None:
    """The file in a search's folder with the exact pixels of its best sample; None before there is one.

    Raises:
        StorageError: If something else is in its place.
    """
    return next((path for path in (root / "best.mkv", root / "best.png") if is_file(path)), None)


def is_folder(path: Path) -> bool:
    """Whether a folder is at `path`.

    Raises:
        StorageError: If something else is, such as a symlink.
    """
    return _is(path, stat.S_ISDIR, "folders of its own")


def make_inside(path: Path) -> None:
    """Makes a folder inside that of a search, where it is missing.

    Raises:
        StorageError: If something else is in its place.
    """
    if not is_folder(path):
        path.mkdir(exist_ok=True)


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a regular file, made where `flags` say so; symlinks are not followed.

    Raises:
        StorageError: If something else is in its place.
    """
    is_file(path)
    descriptor = os.open(path, flags | _SAFELY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        is_file(path)  # it was replaced meanwhile: says by what
    return descriptor


def read_file(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        StorageError: If something else is in its place.
        OSError: If it cannot be read.
    """
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def append_to(path: Path) -> BinaryIO:
    """A regular file, opened to append to it.

    Raises:
        StorageError: If something else is in its place.
    """
    return os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def append_lines(path: Path, lines: str) -> None:
    """Appends whole lines in one write; first ends a line that a killed process left half written.

    Raises:
        StorageError: If something else is in the file's place.
        OSError: If it cannot be written.
    """
    with os.fdopen(open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else "\n" + lines
        # one write, so that lines of two processes do not mix
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, write: Callable[[Path], Any], what: str) -> None:
    """Lets `write` make a file that is seen only when it is whole."""
    part = part_of(path)
    with storage(path, what):
        try:
            part.unlink(missing_ok=True)  # of a killed session; a symlink there would be followed
            write(part)
            os.replace(part, path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def part_of(path: Path) -> Path:
    """The file that `replace_file` writes before it is whole."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def remove_parts(folder: Path) -> None:
    """Removes samples that killed sessions left half written by `replace_file`."""
    for path in folder.iterdir():
        if _PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _is(path: Path, right: Callable[[int], bool], what: str) -> bool:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if right(mode):
        return True
    kinds = {stat.S_ISLNK: "a symlink", stat.S_ISDIR: "a folder", stat.S_ISREG: "a file"}
    kind = next((name for test, name in kinds.items() if test(mode)), "a special file")
    raise StorageError(
        f"A result folder must hold {what} but {str(path)!r} is {kind}; put the thing itself in its place, "
        "or, if the folder is from somebody else, do not use it."
    )
