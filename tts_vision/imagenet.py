"""The classes of ImageNet, which class-conditional models draw and classifiers tell."""

from __future__ import annotations

from functools import cache

from tts_vision.errors import ConfigError
from tts_vision.types import Prompt

CLASSES = 1000


@cache
def class_names() -> dict[str, frozenset[int]]:
    """Classes of ImageNet by name in lower case, as torchvision and as OpenAI call them."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from torchvision.models import Inception_V3_Weights

    found: dict[str, set[int]] = {}
    for names in (Inception_V3_Weights.IMAGENET1K_V1.meta["categories"], IMAGENET_CLASSNAMES):
        for number, name in enumerate(names):
            found.setdefault(name.lower(), set()).add(number)
    return {name: frozenset(numbers) for name, numbers in found.items()}


def class_of(prompt: Prompt) -> int:
    """The class of ImageNet that a prompt asks for, 0 to 999.

    It is the entry ``class_id`` of the metadata, or the text: a number, or the name of one class.

    Raises:
        ConfigError: If it is none, or the name is of several classes.
    """
    text = str(prompt.metadata.get("class_id", prompt.text)).strip()
    numbers = frozenset({int(text)}) if text.isdecimal() else class_names().get(text.lower(), frozenset())
    if len(numbers) == 1 and max(numbers) < CLASSES:
        return max(numbers)
    of_several = f", the name of classes {', '.join(map(str, sorted(numbers)))}" if len(numbers) > 1 else ""
    raise ConfigError(
        f"A class of ImageNet must be a number from 0 to {CLASSES - 1} or a class name but got "
        f"{text!r}{of_several}; put the number into the prompt's metadata as 'class_id'."
    )
