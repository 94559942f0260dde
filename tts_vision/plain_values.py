"""Settings as YAML and JSON have them, and the names that stand for Python objects there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """`value` as YAML and JSON have it; an object of any other kind by its type and its content."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value) if isinstance(value, Path) else live_name(value)


def live_name(value: Any) -> str:
    """What stands for a Python object where its name would be."""
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    if any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__):
        name = "Image"  # whatever file it was read from
    content = getattr(value, "tobytes", None)
    return f"<{name} {hashlib.sha256(content()).hexdigest()[:8]}>" if callable(content) else f"<{name}>"


def is_live(value: Any) -> bool:
    """Whether a plain value is or holds the name of a Python object."""
    if isinstance(value, Mapping):
        return any(is_live(item) for item in value.values())
    if isinstance(value, list):
        return any(is_live(item) for item in value)
    return is_live_name(value)


def is_live_name(value: Any) -> bool:
    """Whether a value stands for a Python object, as `live_name` wrote it."""
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")
