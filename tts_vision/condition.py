"""What a particle is generated for: text, images, embeddings and arguments of the pipeline's call."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError

ORIGINAL = "original"
"""Name of the image in a condition that particles are refined from; no argument of a pipeline's call."""


@dataclass(frozen=True, eq=False)
class Asset:
    """An image or a tensor that is known by its content.

    Attributes:
        value: The image or the tensor.
        name: File name that it is stored under: the SHA-256 of its content, and a suffix.
    """

    value: Image.Image | Tensor
    name: str

    @classmethod
    def of(cls, value: Any) -> Asset:
        """The asset of an image or a tensor; the original may change afterwards without effect.

        Raises:
            ConfigError: If it is neither.
        """
        if isinstance(value, Asset):
            return value
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous().clone()
            content = f"{tensor.dtype} {tuple(tensor.shape)}".encode() + _bytes(tensor)
            return cls(tensor, hashlib.sha256(content).hexdigest() + ".safetensors")
        if isinstance(value, Image.Image):
            # modes that PNG does not hold losslessly
            image = value.copy() if value.mode in {"1", "L", "LA", "RGB", "RGBA"} else value.convert("RGB")
            content = f"{image.mode} {image.size}".encode() + image.tobytes()
            return cls(image, hashlib.sha256(content).hexdigest() + ".png")
        raise ConfigError(
            f"Images and embeddings of a condition must be PIL images or tensors but got "
            f"{type(value).__qualname__}; convert it."
        )

    def dump(self) -> bytes:
        """The content of its file."""
        if isinstance(self.value, Tensor):
            from safetensors.torch import save

            return save({"value": self.value})
        buffer = io.BytesIO()
        self.value.save(buffer, "PNG")
        return buffer.getvalue()

    @classmethod
    def load(cls, name: str, content: bytes) -> Asset:
        """The asset in a file that `dump` wrote.

        Raises:
            ConfigError: If the content is not that of its name.
        """
        if name.endswith(".safetensors"):
            from safetensors.torch import load

            asset = cls.of(load(content)["value"])
        else:
            with Image.open(io.BytesIO(content)) as image:
                asset = cls.of(image)
        if asset.name != name:
            raise ConfigError(f"{name!r} must hold the content it is named after but does not; restore it.")
        return asset


Loader: TypeAlias = Callable[[str], Asset]


@dataclass(frozen=True, eq=False)
class Condition:
    """What a particle is generated for. Immutable; equal conditions have equal content.

    Attributes:
        text: The prompt that the generator gets.
        negative_text: The negative prompt; that of the search's own settings without one.
        images: Input images by the name of the pipeline's argument, such as ``image`` or ``mask_image``; a
            single image is ``image``. `ORIGINAL` is for `tts_vision.moves.Adopt` alone.
        embeddings: Tensors by argument, such as ``prompt_embeds``, which replace the encoded text.
        overrides: Other arguments of the pipeline's call for this particle alone, such as ``guidance_scale``:
            values that JSON can hold. One that changes the number of steps is refused by the sampler.

    Example:
        >>> Condition("two red circles", overrides={"guidance_scale": 3.0}).text
        'two red circles'
    """

    text: str
    negative_text: str | None = None
    images: Mapping[str, Any] = field(default_factory=dict)
    embeddings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f"The text of a condition must be a string but got {self.text!r}; convert it.")
        images = self.images if isinstance(self.images, Mapping) else {"image": self.images}
        try:
            overrides = json.loads(json.dumps(dict(self.overrides)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"Overrides of a condition must be plain JSON values but: {error}; give images and tensors "
                "as images and embeddings."
            ) from None
        for name, values in (("images", images), ("embeddings", self.embeddings)):
            assets = {key: Asset.of(value) for key, value in sorted(values.items())}
            object.__setattr__(self, name, MappingProxyType(assets))
        object.__setattr__(self, "overrides", MappingProxyType(dict(sorted(overrides.items()))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def with_text(self, text: str) -> Condition:
        """The condition with another prompt."""
        return replace(self, text=text)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the content."""
        text = json.dumps(self.describe(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def assets(self) -> list[Asset]:
        """Its images and embeddings."""
        return [*self.images.values(), *self.embeddings.values()]

    def arguments(self) -> dict[str, Any]:
        """The arguments of a pipeline's call that it sets, the prompt apart."""
        negative = {} if self.negative_text is None else {"negative_prompt": self.negative_text}
        values = {key: asset.value for key, asset in (*self.images.items(), *self.embeddings.items())}
        values.pop(ORIGINAL, None)
        return {**negative, **values, **self.overrides}

    def describe(self) -> dict[str, Any]:
        """The condition as JSON has it, with assets by name; what is empty is left out."""
        described: dict[str, Any] = {"text": self.text}
        if self.negative_text is not None:
            described["negative_text"] = self.negative_text
        for key, assets in (("images", self.images), ("embeddings", self.embeddings)):
            if assets:
                described[key] = {name: asset.name for name, asset in assets.items()}
        if self.overrides:
            described["overrides"] = dict(self.overrides)
        return described

    @classmethod
    def from_description(cls, described: Mapping[str, Any], load: Loader) -> Condition:
        """The condition that `describe` described.

        Args:
            described: From `describe`.
            load: Gets an asset by its name.
        """
        assets = {
            key: {name: load(file) for name, file in described.get(key, {}).items()}
            for key in ("images", "embeddings")
        }
        return cls(
            described["text"],
            described.get("negative_text"),
            **assets,
            overrides=described.get("overrides", {}),
        )


def conditions_of(
    given: Condition | str | Sequence[Condition | str] | None, n: int, default: Condition
) -> list[Condition]:
    """The conditions of `n` particles.

    Args:
        given: One for all, or one each; a string is a prompt.
        n: How many.
        default: The condition where none is given.

    Raises:
        ConfigError: If there is neither one nor one each.
    """
    if given is None or isinstance(given, (str, Condition)):
        given = [default if given is None else given] * n
    conditions = [default.with_text(each) if isinstance(each, str) else each for each in given]
    if len(conditions) != n:
        raise ConfigError(
            f"There must be one condition for each of {n} particles but got {len(conditions)}; give one, or "
            "one each."
        )
    return conditions


def distinct(conditions: Iterable[Condition]) -> list[Condition]:
    """The conditions without repetitions, in order."""
    return list(dict.fromkeys(conditions))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
