"""From the words of a command line to the settings of searches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tts_vision.config import RunConfig, override
from tts_vision.errors import ConfigError

if TYPE_CHECKING:
    from tts_vision.prompt_files import Record


_MOST_SEEDS = 100_000


def prompt_records(
    prompts: Sequence[str] | None, file: Path | None, overrides: Sequence[str] | None = None
) -> list[Record]:
    """The prompts of a command line, in order."""
    from tts_vision.prompt_files import Record, read_records

    found = [Record(text) for text in prompts or ()] + ([] if file is None else read_records(file))
    if found and any(text.startswith("prompt=") for text in overrides or ()):
        raise ConfigError(
            f"A prompt must be given once but got {found[0].text!r} and '--set prompt=...'; keep one."
        )
    if len(prompts or ()) > 2 and all(len(text.split()) == 1 for text in prompts or ()):
        typer.echo(f"note    {len(prompts or ())} prompts of one word each; quotes make one prompt", err=True)
    return found


def read_seeds(text: str | None) -> list[int] | None:
    """Root seeds as they are listed on a command line: ``0-3,7``."""
    if text is None:
        return None
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:\s*-\s*(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + _MOST_SEEDS:
            raise ConfigError(
                f"Seeds must be numbers and ranges such as '0-3,7', at most {_MOST_SEEDS} in each, but got "
                f"{text!r}; change {part.strip()!r}."
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def searches_of(
    values: Mapping[str, Any], records: Sequence[Record], seeds: Sequence[int] | None
) -> list[RunConfig]:
    """The settings of each search that is asked for, each once."""
    found: dict[str, RunConfig] = {}
    asked = 0
    some: Sequence[Record | None] = records or [None]
    roots: Sequence[int | None] = seeds or [None]
    for record in some:
        for seed in roots:
            own = dict(values)
            if record is not None:
                own["prompt"] = record.text
                own["prompt_metadata"] = dict(record.metadata) or values.get("prompt_metadata") or {}
            if seed is not None:
                own["seed"] = seed
            config = RunConfig(**own)
            found.setdefault(config.hash, config)
            asked += 1
    if asked > len(found):
        typer.echo(f"note    {asked - len(found)} searches were asked for twice and count once", err=True)
    return list(found.values())


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given."""
    return {key: value for key, value in values.items() if value is not None}


def generator_settings(
    command: str, overrides: Sequence[str] | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a model and its sampler, by --set and by the flags of the pipeline's arguments.

    Raises:
        ConfigError: If --set names something else.
    """
    overrides, images = opened_images(overrides or [])
    settings = with_nested(override({}, overrides), ("sampler_options", "pipeline_kwargs"), images)
    if foreign := sorted(set(settings) - {"model_options", "sampler_options"}):
        raise ConfigError(
            f"--set of {command!r} takes model.KEY, sampler.KEY and pipeline.KEY but got {foreign[0]!r}; "
            "parameters of an algorithm are written '--algorithm name:key=value'."
        )
    return with_nested(settings, ("sampler_options", "pipeline_kwargs"), arguments)


def opened_images(overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides without those that name an image for the pipeline by its file, and these images.

    Such as ``pipeline.image=photo.png``. Only a command line names files so: a configuration and the app do
    not.

    Raises:
        ConfigError: If a file is missing or is no image.
    """
    rest: list[str] = []
    images: dict[str, Any] = {}
    for text in overrides:
        match = re.fullmatch(r"pipeline\.((?:\w+_)?image)=(.+)", text)
        if match is None:
            rest.append(text)
            continue
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(Path(match[2]).expanduser()) as image:
                images[match[1]] = image.copy()
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ConfigError(
                f"{match[1]} of the pipeline must be the file of an image but {match[2]!r}: "
                f"{getattr(error, 'strerror', None) or error}; check the path."
            ) from None
    return rest, images


def pipeline_arguments(steps: int | None, guidance: float | None, negative: str | None) -> dict[str, Any]:
    """The arguments of a pipeline's call that are given."""
    found = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative}
    return without_none(found)


def with_nested(values: Mapping[str, Any], path: Sequence[str], new: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `new` ones added to the group at `path`."""
    if not new:
        return dict(values)
    if not path:
        return {**values, **new}
    inner = values.get(path[0]) or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{path[0]} must be names with values but got {inner!r}; correct it.")
    return {**values, path[0]: with_nested(inner, path[1:], new)}


def free_folder(text: str, ctx: typer.Context) -> Path:
    """A new folder under ``outputs/`` for this text; making it claims it, so that no other command takes it.

    It is removed when the command ends and nothing was written to it.
    """
    import itertools
    import re

    from tts_vision.files import storage
    from tts_vision.locks import remove_empty

    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].rstrip("-") or "run"
    outputs = Path("outputs")
    made = [] if outputs.exists() else [outputs]
    with storage(outputs, "The result folder"):
        outputs.mkdir(exist_ok=True)
        for number in itertools.count(1):
            folder = outputs / f"{words}-{number:03d}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
    ctx.call_on_close(lambda: remove_empty(folder, *made))
    return folder
