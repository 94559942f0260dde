"""Images among the arguments of a pipeline's call: kept in the folder of a search, and found there again.

A configuration names such an image by its content. So that a folder is enough to resume and to replay a
search, the image itself is kept beside those of conditions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from tts_vision.condition import Asset
from tts_vision.config import RunConfig, is_live_name, live_name
from tts_vision.errors import ConfigError, StorageError
from tts_vision.files import ASSETS
from tts_vision.journal import Journal, read_asset


def keep_inputs(journal: Journal, arguments: dict[str, Any]) -> None:
    """Keeps the images among some arguments in the folder of a journal."""
    for value in arguments.values():
        if isinstance(value, Image.Image):
            asset = Asset.of(value)
            if live_name(asset.value) == live_name(value):  # no mode that PNG does not hold
                journal.keep(asset)


def with_inputs(config: RunConfig, root: Path) -> RunConfig:
    """The configuration with the images that it names, as far as they are in a folder."""
    arguments = config.sampler_options.pipeline_kwargs
    named = {key: value for key, value in arguments.items() if is_live_name(value)}
    folder = root / ASSETS
    if not named or not folder.is_dir():
        return config
    kept: dict[str, Any] = {}
    for file in sorted(folder.glob("*.png")):
        try:
            image = read_asset(root, file.name).value
        except (ConfigError, StorageError):
            continue  # damaged, so it is none of those that are named
        kept[live_name(image)] = image
    found = {key: kept.get(value, value) for key, value in named.items()}
    options = config.sampler_options.model_copy(update={"pipeline_kwargs": {**arguments, **found}})
    return config.model_copy(update={"sampler_options": options})


def check_inputs(config: RunConfig) -> None:
    """Checks that all arguments of a pipeline are at hand.

    Raises:
        ConfigError: If one is only named.
    """
    for key, value in config.sampler_options.pipeline_kwargs.items():
        if is_live_name(value):
            raise ConfigError(
                f"{key} of the pipeline must be at hand but got {value!r}, the name of an object that no "
                f"folder holds; give it again by search(..., pipeline_kwargs={{{key!r}: ...}}, "
                "output=FOLDER, resume=True)."
            )
