"""The map from prompts to images that GenEval 2's released tools read: one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Found, Item, Sample

NAME = "image_paths.json"


def write_image_map(folder: Path, places: Sequence[tuple[Item, str]]) -> Path:
    """Writes ``image_paths.json``: each prompt with the file of its sample.

    Args:
        folder: Where the samples are, or will be.
        places: The items, each with the place of its sample without a suffix.
    """
    paths = {}
    for item, place in places:
        at = folder / place
        there = sorted(at.parent.glob(f"{at.name}.*")) if at.parent.is_dir() else []
        paths[item.prompt.text] = str(there[0] if there else at.with_name(f"{at.name}.png"))
    file = folder / NAME
    file.write_text(json.dumps(paths, ensure_ascii=False, indent=1), encoding="utf-8")
    return file


def read_image_map(path: Path, items: Sequence[Item]) -> Found:
    """The samples that a map names; those that are missing or no images are complaints.

    A relative path is looked for beside the map and, as the released tools do, in the working directory; if
    both have such a file, it is a complaint.

    Raises:
        ConfigError: If it is no such map, or names no sample at all.
    """
    paths = _read(path)
    samples, complaints = [], []
    for item in items:
        named = paths.pop(item.prompt.text, None)
        found = _file(path.parent, named) if named is not None else "not in the map"
        if isinstance(found, Path):
            samples.append(Sample(item, 0, found))
        else:
            complaints.append(f"{item.id}: no sample of {item.prompt.text!r:.80}: {found}")
    complaints += [f"{prompt!r:.80}: in the map, but no prompt of the data" for prompt in paths]
    if not samples:
        raise ConfigError(
            f"A map of images must name a sample of the data's prompts but {str(path)!r} names none "
            f"({complaints[0]}); check that both files belong together."
        )
    return Found(samples, complaints)


def _read(path: Path) -> dict[str, str]:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"A map of images must be a JSON file in UTF-8 but {str(path)!r} is not ({error}); check it."
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"A map of images must be a JSON object from prompts to paths but {str(path)!r} holds "
            f'{type(value).__name__}; write one such as {{"a red dog": "dog.png"}}.'
        )
    if wrong := [prompt for prompt, file in value.items() if not isinstance(file, str) or not file]:
        raise ConfigError(
            f"A map of images must have one path for each prompt but {str(path)!r} has "
            f"{value[wrong[0]]!r:.60} for {wrong[0]!r:.60}; correct it."
        )
    return {prompt.strip(): file for prompt, file in value.items()}


def _file(folder: Path, named: str) -> Path | str:
    """The image file that a map names; else the reason why there is none."""
    given = Path(named).expanduser()
    if given.suffix.lower() not in Image.registered_extensions():
        return f"{named!r:.80} is no image by its name"
    places = [given] if given.is_absolute() else [folder / given, Path.cwd() / given]
    there = list(dict.fromkeys(place.resolve() for place in places if place.is_file()))
    if not there:
        return f"{named!r:.80} does not exist"
    if len(there) > 1:
        return f"{named!r:.80} is both beside the map and in the working directory; write whole paths"
    return there[0]
