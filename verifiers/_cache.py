"""Answers kept on disk, one small file each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tts_vision.errors import ConfigError


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
