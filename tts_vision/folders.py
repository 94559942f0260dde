"""The folder that a search is kept in: what may be kept where, and which settings a folder belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tts_vision.config import RunConfig, read_yaml
from tts_vision.errors import ConfigError, StorageError
from tts_vision.files import (
    CONFIG,
    POPULATION,
    RESULT,
    STATE,
    STOPPED,
    TRACE,
    is_file,
    is_folder,
    make_inside,
    part_of,
    replace_file,
    storage,
)
from tts_vision.locks import LOCK
from tts_vision.trace import Began, read_began

_SHOWN = 100  # characters of a value in a message


def check_new(root: Path, *, resume: bool) -> bool:
    """Checks that a folder is free for a search; whether it is new or empty.

    Args:
        root: A new or empty folder; with `resume`, also one that a search was kept in.
        resume: Whether an unfinished search may be continued.

    Raises:
        ConfigError: If the folder holds something else.
    """
    if root.exists() and not root.is_dir():
        raise ConfigError(f"An output must be a folder but {str(root)!r} is a file; choose another --output.")
    is_search = is_file(root / CONFIG)
    if resume and is_search:
        return False
    held = sorted(path.name for path in root.iterdir() if not _is_of_no_search(path)) if root.exists() else []
    if held:
        remedy = f"'tts-vision resume {root}' goes on with the search in it, or " if is_search else ""
        raise ConfigError(
            f"An output folder must be new or empty but {str(root)!r} holds {len(held)} entries "
            f"({', '.join(held[:3])}{', ...' if len(held) > 3 else ''}); {remedy}choose another --output."
        )
    return True


def _is_of_no_search(path: Path) -> bool:
    """Whether an entry of a folder is there before a search has begun in it, and stays after a kill."""
    begun = path.name == POPULATION and is_folder(path) and not any(path.iterdir())
    return begun or path.name in {LOCK, part_of(path.with_name(CONFIG)).name}


def check_folder(root: Path, config: RunConfig, *, resume: bool) -> None:
    """Checks that a search may be kept in a folder, as `check_new` does, and that it has the same settings.

    Raises:
        ConfigError: If the folder holds something else, or a search with other settings.
        StorageError: If its trace cannot be read or is missing.
    """
    if not check_new(root, resume=resume):
        _check_same(read_config(root), config, root / CONFIG)
        check_unchanged(root, config, find_began(root))


def make_folder(root: Path, config: RunConfig) -> None:
    """Makes the folder of a search, or completes one that is to be continued.

    Raises:
        StorageError: If it cannot be written.
    """
    with storage(root, "The result folder"):
        root.mkdir(parents=True, exist_ok=True)
        make_inside(root / POPULATION)
    if not is_file(root / CONFIG):
        replace_file(root / CONFIG, lambda part: part.write_text(config.dump()), "The configuration")


def remove_empty_search(root: Path) -> None:
    """Removes the files that `make_folder` made, of a search that never began."""
    for name in (CONFIG, TRACE):
        (root / name).unlink(missing_ok=True)
    with suppress(OSError):  # files of the user stay
        (root / POPULATION).rmdir()


def read_config(root: Path) -> RunConfig:
    """The settings in the ``config.yaml`` of a result folder.

    Raises:
        ConfigError: If the folder is not one.
    """
    if not is_file(root / CONFIG):
        raise ConfigError(
            f"A result folder must hold {CONFIG} but {str(root)!r} does not; "
            "give the --output folder of an earlier search."
        )
    return RunConfig(**read_yaml(root / CONFIG))


def has_result(root: Path) -> bool:
    """Whether a folder holds a result: of a finished search, or of one that was stopped."""
    return is_file(root / RESULT)


def is_finished(root: Path) -> bool:
    """Whether the search in a folder came to its end."""
    return has_result(root) and not is_file(root / STOPPED)


def find_began(root: Path) -> Began | None:
    """The first event of the trace in a folder; None in a folder in which nothing was recorded yet.

    Raises:
        StorageError: If it cannot be read, or the folder holds results and no trace.
    """
    began = read_began(root / TRACE)
    if began is None:
        held = [
            name for name in (POPULATION, STATE) if (root / name).is_dir() and any((root / name).iterdir())
        ]
        held += [RESULT] if has_result(root) else []
        if held:
            raise StorageError(missing_trace(root, held[0]))
    return began


def _holds_files(path: Path) -> bool:
    return is_folder(path) and any(path.iterdir())


def missing_trace(root: Path, held: str) -> str:
    """The message for a folder whose record is gone."""
    return (
        f"A result folder must hold the record of its search but {str(root)!r} has {held} and no event in "
        f"{TRACE}; restore that file, or start the search again in another folder."
    )


def check_unchanged(root: Path, config: RunConfig, began: Began | None) -> None:
    """Checks that settings are those that the trace of a folder belongs to.

    Args:
        root: The folder.
        config: The settings.
        began: The first event of its trace, if it has one.

    Raises:
        ConfigError: If they are not; the message names the changed ones.
        StorageError: If the trace is of a version with other settings.
    """
    if began is None:
        return
    try:
        recorded = RunConfig(**began.config)
    except ConfigError as error:
        raise StorageError(
            f"A trace must be of this version but the settings in {str(root / TRACE)!r} are of another one "
            f"({error}); use that version, or start the search again in another folder."
        ) from error
    _check_same(recorded, config, root / TRACE)


def _check_same(recorded: RunConfig, given: RunConfig, where: Path) -> None:
    changed = [
        f"{key} is {_shown(new)} and {str(where)!r} has {_shown(old)}"
        for key, old, new in _changes(recorded.content, given.content)
    ]
    if changed:
        raise ConfigError(
            "A search must be continued with the configuration it began with, but "
            f"{', '.join(changed)}; restore it or choose another output folder."
        )


def _changes(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings that differ, as a dotted key and both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for inner in [*old, *(each for each in new if each not in old)]:
            yield from _changes(old.get(inner), new.get(inner), f"{key}.{inner}" if key else str(inner))
    elif json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):  # so that NaN equals NaN
        yield key, old, new


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
