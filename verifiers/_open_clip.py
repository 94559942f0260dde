"""Models of open_clip: built by name, folder or hub id, and loaded strictly, with the right activation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.verifiers._backbones import clip_pixels
from tts_vision.verifiers._rewards import normalised, squashed

SCHEMAS = ("hf-hub:", "local-dir:")
CONFIG = "open_clip_config.json"


def identifier(model: str, owner: str) -> str:
    """A model as open_clip calls it.

    Args:
        model: A name of open_clip, or a folder or hub id with an ``open_clip_config.json``.
        owner: The verifier, for messages.

    Raises:
        ConfigError: If it is none of these.
    """
    import open_clip

    if model.startswith(SCHEMAS) or model in open_clip.list_models():
        return model
    folder = Path(model).expanduser()
    if (folder / CONFIG).is_file():
        return f"local-dir:{folder}"
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not folder.exists():
        return f"hf-hub:{model}"
    raise ConfigError(
        f"The model of {owner!r} must be a name of open_clip (ViT-B-32, ViT-L-14-quickgelu, ViT-H-14, ...), "
        f"or a folder or hub id with {CONFIG}, but got {model!r}; open_clip.list_models() gives all names."
    )


def check_activation(model: str, pretrained: str) -> None:
    """Checks that published weights get the activation that they were trained with.

    Raises:
        ConfigError: If they do not; open_clip would only warn, and every score would be wrong.
    """
    import open_clip

    trained_quick = bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu", False))
    config: Any = open_clip.get_model_config(model)
    other = f"{model}-quickgelu" if trained_quick else model.removesuffix("-quickgelu")
    fits = trained_quick == bool(config.get("quick_gelu", False))
    # roberta-ViT-B-32 has QuickGELU by itself, which its tag does not say
    if fits or other == model or not open_clip.get_pretrained_cfg(other, pretrained):
        return
    names = ("QuickGELU", "GELU") if trained_quick else ("GELU", "QuickGELU")
    raise ConfigError(
        f"The weights {pretrained!r} were trained with {names[0]} and must be used with it but the model "
        f"{model!r} has {names[1]}; set model={other}."
    )


def load_pretrained(model: str, pretrained: str, owner: str) -> Any:
    """A model with its weights, in evaluation mode without gradients.

    Args:
        model: See `identifier`. A folder or a hub id brings its weights itself.
        pretrained: A tag of open_clip or a file, for a model by name.
        owner: The verifier, for messages.

    Raises:
        ConfigError: If there is no such model or tag, or they do not belong together.
        VerifierError: If the weights cannot be found or do not fit key by key.
    """
    import open_clip

    name = identifier(model, owner)
    brings_weights = name.startswith(SCHEMAS)
    if not brings_weights and not Path(pretrained).is_file():
        if not open_clip.get_pretrained_cfg(name, pretrained):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise ConfigError(
                f"The weights of {owner!r} must be a file or a tag of {name} ({tags}) but got "
                f"{pretrained!r}; change pretrained."
            )
        check_activation(name, pretrained)
    try:
        found = open_clip.create_model(
            name,
            None if brings_weights else pretrained,
            require_pretrained=True,
            pretrained_text=False,
            weights_only=True,
        )
    except Exception as error:  # of the network, the file or the keys, which open_clip checks strictly
        what = model if brings_weights else f"{model}, {pretrained}"
        reason = " ".join(str(error).split())[:400].rstrip(".")
        raise VerifierError(
            f"The weights of {owner!r} must load from {what!r} and fit key by key but: {reason}; check the "
            "names and the network, or give a folder or file that was downloaded elsewhere."
        ) from error
    return found.eval().requires_grad_(False)


def build(model: str, owner: str) -> Any:
    """A CLIP of open_clip without its weights, in evaluation mode without gradients.

    Args:
        model: See `identifier`.
        owner: The verifier, for messages.

    Raises:
        ConfigError: If there is no such model.
        VerifierError: If its configuration cannot be found, or is not of a plain CLIP.
    """
    import open_clip

    try:
        config: Any = open_clip.get_model_config(identifier(model, owner))
        return open_clip.CLIP(**config).eval().requires_grad_(False)
    except ConfigError:
        raise
    except Exception as error:  # of the network, or of open_clip's constructors
        raise VerifierError(
            f"The model of {owner!r} must be a CLIP that open_clip can build but {model!r} is not: {error}; "
            "give the name of another."
        ) from error


def tokenizer_of(model: str, owner: str) -> Any:
    """The tokenizer of a model; it truncates to the model's context and keeps the end token.

    Raises:
        ConfigError: If there is no such model.
        VerifierError: If the tokenizer cannot be loaded.
    """
    import open_clip

    try:
        return open_clip.get_tokenizer(identifier(model, owner))
    except ConfigError:
        raise
    except Exception as error:  # of the network, or of transformers
        raise VerifierError(
            f"The tokenizer of {owner!r} must load for {model!r} but: {error}; check the name and the "
            "network."
        ) from error


def encode_texts(model: Any, tokenizer: Any, texts: list[str], device: torch.device) -> Tensor:
    """Embeddings of texts, not normalised: ``(B, D)``."""
    return model.encode_text(tokenizer(texts).to(device))


def evaluation_pixels(model: Any, images: Sequence[Image.Image]) -> Tensor:
    """RGB images as open_clip evaluates this model: ``(B, 3, h, w)``."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return torch.stack([transform(image) for image in images])


def fit_pixels(model: Any, pixels: Tensor, owner: str) -> Tensor:
    """Pixels ``(B, 3, H, W)`` in [0, 1] as `evaluation_pixels` would make them, with their gradient.

    Raises:
        VerifierError: If this model is evaluated in a way that is not foreseen here.
    """
    config = model.visual.preprocess_cfg
    size, mode = config["size"], config["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    mean, std, interpolation = config["mean"], config["std"], config["interpolation"]
    if mode == "squash":
        return normalised(squashed(pixels, (height, width), interpolation), mean, std)
    if mode == "shortest" and height == width:
        return clip_pixels(pixels, height, mean, std, interpolation)
    raise VerifierError(
        f"Gradients of {owner!r} need a model that sees a square, cropped or squashed, but this one sees "
        f"{height}x{width} by {mode!r}; choose another model, or use it without gradients."
    )
