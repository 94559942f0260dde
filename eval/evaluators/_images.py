"""Samples as images, and folders with one file for each prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Found, Item, Sample
from tts_vision.model_verifier import UnusableSample, as_image


def images_of(samples: Sequence[Sample], name: str) -> dict[int, Image.Image | str]:
    """Each sample as an RGB image, by its place; or the reason why it cannot be judged."""
    return {i: _image_of(sample, name) for i, sample in enumerate(samples)}


def _image_of(sample: Sample, name: str) -> Image.Image | str:
    try:
        return as_image(sample.load(), name)
    except UnusableSample as error:
        return str(error)
    except (OSError, ConfigError) as error:
        return f"{sample.path.name} cannot be read: {error}"


def numbered_stem(stem: str) -> tuple[str, int]:
    """The prompt and the sample that a name such as ``12_3`` stands for; ``12`` is the first sample."""
    name, _, number = stem.rpartition("_")
    return (name, int(number)) if name and number.isdecimal() else (stem, 0)


def found_by_stem(
    folder: Path,
    items: Sequence[Item],
    name: str,
    read: Callable[[str], tuple[str, int] | None],
    example: str,
) -> Found:
    """The samples of a flat folder whose files are named by prompts.

    Args:
        folder: Where they are.
        items: The prompts.
        name: Of the evaluator, for messages.
        read: The id of the item, and the number of its sample, that a file's stem stands for; None for a
            file that is no sample.
        example: Name of a sample, for messages.

    Raises:
        ConfigError: If there is none.
    """
    by_id: Mapping[str, Item] = {item.id: item for item in items}
    samples: dict[tuple[str, int], Sample] = {}
    complaints: list[str] = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        key = read(file.stem) if file.is_file() and not file.name.startswith(".") else None
        if key is None:
            continue
        if key[0] not in by_id:
            complaints.append(f"{file.name}: no prompt of {name} has this name")
        elif key in samples:
            complaints.append(f"{file.name}: the same sample as {samples[key].path.name}, which is judged")
        else:
            samples[key] = Sample(by_id[key[0]], key[1], file)
    if not samples:
        raise ConfigError(
            f"A folder of {name} holds samples such as {example} but {str(folder)!r} has none; check the "
            "folder."
        )
    there = {item_id for item_id, _ in samples}
    complaints += [f"{i.id}: no sample of {i.prompt.text!r:.80}" for i in items if i.id not in there]
    order = {item.id: place for place, item in enumerate(items)}
    return Found(sorted(samples.values(), key=lambda s: (order[s.item.id], s.index)), complaints)
