"""Values that are kept: those used last in memory, answers on disk, one small file each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from tts_vision.errors import ConfigError

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(OrderedDict[Key, Value]):
    """A dictionary that forgets the entry that was used least recently when it is full.

    Args:
        capacity: Entries that are kept.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def __getitem__(self, key: Key) -> Value:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.capacity:
            self.popitem(last=False)


class DiskCache:
    """A folder of JSON values, safe for any number of processes that read and write it at once.

    Args:
        folder: Where they are kept; made if need be.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cache must be a folder that can be made but {str(folder)!r} cannot: {error}; name another."
            ) from error

    def get(self, key: str) -> Any:
        """The value of `key`; None if there is none, or its file cannot be read."""
        try:
            return json.loads(self._path(key).read_bytes())
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keeps a value. One that cannot be written is asked for again another time."""
        with contextlib.suppress(OSError):
            path = self._path(key)
            path.parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(value, file)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def key_of(image: Image.Image, *facts: Any) -> str:
    """A key for an image, by its pixels, and JSON facts about the question."""
    digest = hashlib.sha256(json.dumps([image.mode, image.size, facts], sort_keys=True).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
