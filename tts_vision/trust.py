"""Trust: a configuration from elsewhere runs no code of its own and asks no endpoint.

Settings may name code (``file.py@name``, ``module:attr``) and endpoints of language models, which get
prompts, images and the key in an environment variable, and images of this machine to start from. On a command
line or in a call the user named them.
In a file somebody else may have, so `resume`, `replay` and ``--config`` act on such settings only if the user
says so, or if this user began the very same search in the very same folder on this machine.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.errors import ConfigError

if TYPE_CHECKING:
    from tts_vision.config import RunConfig, Spec
    from tts_vision.registry import Kind

_allowed: ContextVar[frozenset[str] | None] = ContextVar("allowed", default=None)
_FILE = re.compile(r".*?\.py@.*", re.DOTALL)
_MODULE = re.compile(r"\w[\w.]*:\w+")
# what may be code or an endpoint, in whatever setting: wider than `demands`
_ASKING = re.compile(r"\.py@|://|\w:(?!\w+=)\w|key_variable")
_KEY = "key_variable"
EDIT = "edit"
"""Name of the corrector that opens a model."""
_SPECS: dict[str, Kind] = {
    "rewriter": "rewriter",
    "refine_by": "rewriter",
    "corrector": "corrector",
    "actions": "corrector",
    "critic": "corrector",
    "features": "features",
    "verifier": "verifier",
    "stage_verifiers": "verifier",
    "image_verifier": "verifier",
}


def check_allowed(name: str, does: str) -> None:
    """Checks that code may be run or an endpoint asked; called right before.

    Args:
        name: Of the code, or the address of the endpoint.
        does: What is about to be done, for the message.

    Raises:
        ConfigError: If a configuration that is not trusted asks for it.
    """
    allowed = _allowed.get()
    if allowed is not None and name not in allowed:
        raise ConfigError(_refusal([f"{does} {name}"], "a configuration"))


@contextmanager
def allowing(names: Collection[str]) -> Iterator[None]:
    """Runs no code but that of registered plugins and of `names`, and asks no endpoint but those."""
    token = _allowed.set(frozenset(names))
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def trusting(folder: Path, config: RunConfig, *, trust: bool) -> Iterator[None]:
    """Acts on settings from a folder as far as they are trusted.

    Args:
        folder: Where they were found.
        config: The settings.
        trust: Whether the user trusts them.

    Raises:
        ConfigError: If they ask for more; the message says for what.
    """
    if trust or is_mine(folder, config):
        yield
        return
    with allowing(()):
        check_settings(config, f"the configuration in {str(folder)!r}")
        yield


def check_settings(config: RunConfig, where: str) -> None:
    """Checks that settings ask for nothing that is not allowed here.

    Args:
        config: The settings.
        where: Where they come from, for the message.

    Raises:
        ConfigError: If they do; the message says for what.
    """
    allowed = _allowed.get()
    asked = [what for name, what in demands(config.plain()).items() if allowed is None or name not in allowed]
    if allowed is not None and asked:
        raise ConfigError(_refusal(asked, where))


def demands(settings: Mapping[str, Any]) -> dict[str, str]:
    """The code that settings would run and the endpoints that they would ask, with what would be done."""
    found: dict[str, str] = {}
    for key, kind in (("model", "model"), ("algorithm", "algorithm")):
        name = settings.get(key)
        if isinstance(name, str):
            found |= _of_name(kind, name)  # type: ignore[arg-type]
    for key in ("verifier", "holdout_verifier"):
        found |= _of_text("verifier", settings.get(key))
    for key, value in (settings.get("algorithm_params") or {}).items():
        for text in value if isinstance(value, list) else [value]:
            if key in _SPECS:
                found |= _of_text(_SPECS[key], text)
    return found


def editors(params: Mapping[str, Any]) -> list[str]:
    """The models that correctors among an algorithm's parameters name."""
    specs = [
        _spec(text)
        for key, value in params.items()
        if _SPECS.get(key) == "corrector"
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and text
    ]
    return [
        spec.params["model"].partition("?")[0]
        for spec in specs
        if spec.name == EDIT and "model" in spec.params
    ]


def named_in(texts: Iterable[str]) -> set[str]:
    """The names and addresses in the words of a command line."""
    found: set[str] = set()
    for text in texts:
        for part in {text, text.partition("=")[2]}:
            with suppress(ConfigError):
                found |= _words(_spec(part)) if part else set()
    return found


def is_mine(folder: Path, config: RunConfig) -> bool:
    """Whether this user began a search with these very settings in this folder on this machine."""
    key = _key(make=False)
    if key is None:
        return False
    try:
        mark = _mark_of(folder).read_text()
    except OSError:
        return False
    return hmac.compare_digest(mark, _signature(key, folder, config))


def remember(folder: Path, config: RunConfig) -> None:
    """Notes that this user began a search in a folder, where that may make a difference later."""
    reads = isinstance(config.algorithm_params.get("image"), str)
    if not reads and not any(map(_ASKING.search, _texts(config.content))):
        return
    with suppress(OSError):  # without a home, --trust remains
        key = _key(make=True)
        if key is not None:
            path = _mark_of(folder)
            path.parent.mkdir(exist_ok=True)
            path.write_text(_signature(key, folder, config))


def _texts(value: Any) -> Iterator[str]:
    """All strings in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _spec(text: str) -> Spec:
    from tts_vision.config import Spec  # which finds plugins, which ask here

    return Spec.parse(text)


def _words(spec: Spec) -> set[str]:
    """All names and parameters in a spec."""
    found = {spec.name, *spec.params.values()}
    for text in spec.params.values():
        with suppress(ConfigError):
            found |= _words(_spec(text)) if text else set()
    return found.union(*map(_words, spec.members))


def _of_text(kind: Kind, text: Any) -> dict[str, str]:
    if not isinstance(text, str) or not text or text.startswith("<"):
        return {}
    return _of_spec(kind, _spec(text))


def _of_spec(kind: Kind, spec: Spec) -> dict[str, str]:
    found = _of_name(kind, spec.name)
    for key, value in sorted(spec.params.items(), key=lambda pair: pair[0] == _KEY):
        if key == _KEY:
            found[value] = f"send the content of the environment variable {value}"
        elif key == "base_url" or "://" in value:
            found[value] = f"ask {value}"
        elif (kind, spec.name, key) == ("corrector", EDIT, "model"):
            found |= _of_name("model", value.partition("?")[0])
    for member in spec.members:
        found |= _of_spec(kind, member)
    return found


def _of_name(kind: Kind, name: str) -> dict[str, str]:
    from tts_vision.registry import registered

    if name.startswith("<"):
        return {}
    is_code = _FILE.fullmatch(name) or (
        ":" in name
        and registered(kind, name) is None
        and not (kind == "model" and (Path(name).is_dir() or registered(kind, name.partition(":")[0])))
    )
    return {name: f"run {name}"} if is_code else {}


def _refusal(what: Iterable[str], where: str) -> str:
    return (
        "Settings from a file may use registered plugins alone, unless you began that search yourself in "
        f"that folder, but {where} would {' and '.join(what)}; read it, and if you trust it give --trust, or "
        "trust=True in Python."
    )


def _home() -> Path | None:
    """The folder of this user for what programs keep."""
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    with suppress(RuntimeError):
        return (Path(base) if base else Path.home() / ".local" / "state") / "tts-vision"
    return None


def _key(*, make: bool) -> bytes | None:
    """The secret of this user, which no configuration can know; None without one."""
    home = _home()
    if home is None:
        return None
    path = home / "key"
    if make and not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = home / f".{secrets.token_hex(8)}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(part, path)  # the first of two processes wins
        part.unlink()
    try:
        found = path.lstat()
        is_private = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
        key = path.read_bytes() if is_private else b""
    except OSError:
        return None
    return key if len(key) == 32 else None


def _mark_of(folder: Path) -> Path:
    home = _home()
    if home is None:
        raise FileNotFoundError("there is no home")
    return home / "folders" / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:40]


def _signature(key: bytes, folder: Path, config: RunConfig) -> str:
    text = json.dumps([str(folder.resolve()), config.content], sort_keys=True)
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
