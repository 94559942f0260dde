"""The published visual autoregressive models, by name and where their weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tts_vision.config import ModelOptions, Spec
from tts_vision.errors import ConfigError
from tts_vision.registry import register

if TYPE_CHECKING:
    from tts_vision.pipelines.var.class_pipeline import VARPipeline
    from tts_vision.pipelines.var.pipeline import InfinityPipeline

INFINITY_HUB, VAR_HUB = "FoundationVision/Infinity", "FoundationVision/var"
# As the authors run them (Han et al. 2024): the 2B at a low temperature, the 8B without.
INFINITY_DEFAULTS = {
    "125m": {"guidance_scale": 3.0, "tau": 0.5, "size": "0.06M"},
    "2b": {"guidance_scale": 3.0, "tau": 0.5, "size": "1M"},
    "8b": {"guidance_scale": 3.0, "tau": 1.0, "size": "1M"},
}


def load_infinity(name: str, *, options: ModelOptions | None = None) -> InfinityPipeline:
    """Infinity, from its published checkpoints.

    Args:
        name: Such as ``infinity-2b:/models/infinity``, a folder, file or hub id; or with each part named,
            ``infinity-2b:checkpoint=...,vae=...,text_encoder=...``. By default the authors' repository.
        options: Precision and device.

    Raises:
        PipelineError: If a file is missing or does not fit.
        ConfigError: If the name has a part that is none.
    """
    from tts_vision.pipelines.var.loading import load_infinity as load
    from tts_vision.pipelines.var.pipeline import InfinityPipeline

    model, parts = parts_of(name, ("checkpoint", "vae", "text_encoder"))
    size = model.removeprefix("infinity-")
    found = load(
        size,
        parts.get("checkpoint", INFINITY_HUB),
        vae=parts.get("vae"),
        text_encoder=parts.get("text_encoder"),
        **placed(options),
    )
    size_of_images = {} if found.image_size is None else {"size": found.image_size}
    return InfinityPipeline(
        found.transformer,
        found.vae,
        found.text_encoder,
        found.tokenizer,
        defaults={**INFINITY_DEFAULTS[size], **size_of_images},
        name=model,
    )


def load_var(name: str, *, options: ModelOptions | None = None) -> VARPipeline:
    """VAR, from its published checkpoints; a prompt is a class of ImageNet.

    Args:
        name: Such as ``var-d16:/models/var``, a folder, file or hub id; or with each part named,
            ``var-d16:checkpoint=...,vae=...``. By default the authors' repository.
        options: Precision and device.

    Raises:
        PipelineError: If a file is missing or does not fit.
        ConfigError: If the name has a part that is none.
    """
    from tts_vision.pipelines.var.class_pipeline import VARPipeline
    from tts_vision.pipelines.var.loading import load_var as load

    model, parts = parts_of(name, ("checkpoint", "vae"))
    found = load(
        model.removeprefix("var-"),
        parts.get("checkpoint", VAR_HUB),
        vae=parts.get("vae"),
        **placed(options),
    )
    return VARPipeline(found.transformer, found.vae, name=model)


for _size in INFINITY_DEFAULTS:
    register(
        "model",
        f"infinity-{_size}",
        paper="Infinity (Han et al. 2024)",
        notes={
            "takes": f"infinity-{_size}:PATH, a folder, file or hub id",
            "weights": INFINITY_HUB,
        },
    )(load_infinity)
for _size in ("d16", "d20", "d24", "d30", "d36"):
    register(
        "model",
        f"var-{_size}",
        paper="VAR (Tian et al. 2024)",
        notes={"takes": f"var-{_size}:PATH, a folder, file or hub id", "weights": VAR_HUB},
    )(load_var)


def parts_of(name: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The model that a name names, and where its parts are."""
    model, colon, rest = name.partition(":")
    spec = Spec.parse(name)
    if not spec.params:
        return model, {"checkpoint": rest} if colon else {}
    for key in spec.params:
        if key not in known:
            raise ConfigError(
                f"A part of {model} must be one of {', '.join(known)} but got {key!r}; rename it."
            )
    return model, dict(spec.params)


def placed(options: ModelOptions | None) -> dict[str, Any]:
    """Device and precision as loaders take them.

    Raises:
        ConfigError: If an option is set that these models do not have.
    """
    from tts_vision.pipelines.loading import check_only_placed, default_device, default_dtype

    options = options or ModelOptions()
    check_only_placed(options)
    device = default_device(options)
    return {"dtype": default_dtype(options, device), "device": device}
