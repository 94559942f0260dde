"""GenEval's 553 prompts, made again by its published procedure, and prompt files in its format."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tts_vision.errors import ConfigError, SearchWarning
from tts_vision.pipelines.playground.world import RELATIONS
from tts_vision.prompt_files import decoded
from tts_vision.verifiers._mmdet import COCO
from tts_vision.verifiers._predicates import COLOURS, from_record

Record: TypeAlias = dict[str, Any]

SEED = 43
PER_TASK = 100
SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
"""Of the published file ``evaluation_metadata.jsonl``."""
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
CLASSES = tuple(RENAMED.get(name, name) for name in COCO)
_NUMBERS = {2: "two", 3: "three", 4: "four"}


def published_records() -> list[Record]:
    """The published prompts with their records, in order.

    Raises:
        ConfigError: If this version of NumPy draws other numbers than the published procedure did.
    """
    records = generated(SEED, PER_TASK)
    found = hashlib.sha256(as_lines(records).encode()).hexdigest()
    if found != SHA256:
        raise ConfigError(
            f"GenEval's prompts must have the sha256 {SHA256[:12]} of the published file but NumPy "
            f"{np.__version__} draws others ({found[:12]}); give data=FILE with evaluation_metadata.jsonl "
            "from GenEval's repository."
        )
    return records


def generated(seed: int, per_task: int) -> list[Record]:
    """Prompts drawn as GenEval's were (Ghosh et al. 2023): one stream of numbers, task after task.

    Args:
        seed: Of the stream.
        per_task: Draws for each task; a record that was drawn before is left out.
    """
    rng = np.random.default_rng(seed)
    drawn: list[Record] = [
        _record("single_object", [_things(name)], f"a photo of {_a(name)}")
        for name in _pick(rng, CLASSES, min(per_task, len(CLASSES)))
    ]
    drawers = (_two_objects, _counting, _colours, _position, _colour_pairs)
    drawn += [draw(rng) for draw in drawers for _ in range(per_task)]
    return list({json.dumps(record): record for record in drawn}.values())


def as_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as JSON lines, as GenEval writes them."""
    return "".join(json.dumps(record) + "\n" for record in records)


def read_records(file: str | Path) -> list[Record]:
    """Records of a file in GenEval's format: a JSON object in each line, in UTF-8, or UTF-16 with its mark.

    A record that occurs again counts once, which is warned of.

    Raises:
        ConfigError: If the file cannot be read, or a line is no record of GenEval; names the line.
    """
    path = Path(file).expanduser()
    try:
        text = decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data must be a readable file of JSON lines in UTF-8 but {str(file)!r}: {error}; check the path "
            "and save the file as UTF-8."
        ) from error
    found: dict[str, Record] = {}
    twice: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_record(line)
        except ValueError as error:
            raise ConfigError(
                f"Each line of data must be a record of GenEval but line {number} of {str(file)!r} is not: "
                f"{error}; correct it."
            ) from error
        key = json.dumps(record, sort_keys=True)
        if key in found:
            twice.append(number)
        found.setdefault(key, record)
    if not found:
        raise ConfigError(f"data must hold at least one record but {str(file)!r} is empty; add a line.")
    if twice:
        warnings.warn(
            f"{len(twice)} lines of {str(file)!r} repeat earlier ones, as does line {twice[0]}; each counts "
            "once.",
            SearchWarning,
            stacklevel=2,
        )
    return list(found.values())


def parse_record(line: str) -> Record:
    """A record of GenEval from its JSON.

    Raises:
        ValueError: If it is none; says why.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"it is {type(record).__name__} instead of an object")
    for key in ("prompt", "tag"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ValueError(f"{key!r} must be a text but is {record.get(key)!r}")
    if from_record(record) is None:
        raise ValueError("'include' and 'exclude' are empty or missing, so that nothing can be judged")
    for at, entry in enumerate(record.get("include") or ()):
        colour, (relation, reference) = entry.get("color"), entry.get("position") or (None, -1)
        if colour is not None and colour not in COLOURS:
            raise ValueError(f"include.{at}.color must be one of {', '.join(COLOURS)} but is {colour!r}")
        if relation is not None and relation not in RELATIONS:
            raise ValueError(
                f"include.{at}.position must be one of {', '.join(RELATIONS)} but is {relation!r}"
            )
        if reference >= at:
            raise ValueError(f"include.{at}.position names group {reference}, which does not come before it")
    return record


def _two_objects(rng: np.random.Generator) -> Record:
    a, b = _pick(rng, CLASSES, 2)
    return _record("two_object", [_things(a), _things(b)], f"a photo of {_a(a)} and {_a(b)}")


def _counting(rng: np.random.Generator) -> Record:
    name = CLASSES[rng.choice(len(CLASSES))]
    number = int(rng.integers(2, 4, endpoint=True))
    many = name + ("es" if name.endswith("s") else "s")  # "benchs": the published prompts are not corrected
    prompt = f"a photo of {_NUMBERS[number]} {many}"
    return _record("counting", [_things(name, number)], prompt, exclude=[_things(name, number + 1)])


def _colours(rng: np.random.Generator) -> Record:
    name = CLASSES[rng.choice(len(CLASSES) - 1) + 1]  # people are not asked for by colour
    colour = COLOURS[rng.choice(len(COLOURS))]
    return _record("colors", [_things(name, colour=colour)], f"a photo of {_a(f'{colour} {name}')}")


def _position(rng: np.random.Generator) -> Record:
    placed, reference = _pick(rng, CLASSES, 2)
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    include = [_things(reference), {**_things(placed), "position": [relation, 0]}]
    return _record("position", include, f"a photo of {_a(placed)} {relation} {_a(reference)}")


def _colour_pairs(rng: np.random.Generator) -> Record:
    a, b = _pick(rng, CLASSES[1:], 2)
    first, second = _pick(rng, COLOURS, 2)
    include = [_things(a, colour=first), _things(b, colour=second)]
    return _record("color_attr", include, f"a photo of {_a(f'{first} {a}')} and {_a(f'{second} {b}')}")


def _pick(rng: np.random.Generator, names: tuple[str, ...], number: int) -> list[str]:
    """Different names, at random."""
    return [names[at] for at in rng.choice(len(names), number, replace=False)]


def _things(name: str, count: int = 1, colour: str | None = None) -> Record:
    return {"class": name, "count": count, **({"color": colour} if colour else {})}


def _record(tag: str, include: list[Record], prompt: str, exclude: list[Record] | None = None) -> Record:
    return {"tag": tag, "include": include, **({"exclude": exclude} if exclude else {}), "prompt": prompt}


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
