"""The published masked-token models, by name and where their weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tts_vision.config import ModelOptions
from tts_vision.pipelines.published import parts_of, placed
from tts_vision.registry import register

if TYPE_CHECKING:
    from tts_vision.pipelines.tokens.showo import ShowoPipeline

HUBS = {"show-o": "showlab/show-o", "show-o-512": "showlab/show-o-512x512"}


def load_showo(name: str, *, options: ModelOptions | None = None) -> ShowoPipeline:
    """Show-o, from its published checkpoints.

    Args:
        name: Such as ``show-o:/models/show-o``, a folder, file or hub id; or with each part named,
            ``show-o:checkpoint=...,image_tokenizer=...,tokenizer=...``. By default the authors' repositories.
        options: Precision and device.

    Raises:
        PipelineError: If a file is missing or does not fit.
        ConfigError: If the name has a part that is none.
    """
    from tts_vision.pipelines.tokens.loading import IMAGE_TOKENIZER, TOKENIZER
    from tts_vision.pipelines.tokens.loading import load_showo as load

    model, parts = parts_of(name, ("checkpoint", "image_tokenizer", "tokenizer"))
    return load(
        model,
        parts.get("checkpoint", HUBS[model]),
        tokenizer=parts.get("tokenizer", TOKENIZER),
        image_tokenizer=parts.get("image_tokenizer", IMAGE_TOKENIZER),
        **placed(options),
    )


for _name, _hub in HUBS.items():
    register(
        "model",
        f"{_name}",
        paper="Show-o (Xie et al. 2024, arXiv:2408.12528)",
        notes={"takes": f"{_name}:PATH, a folder, file or hub id", "weights": _hub, "licence": "Apache-2.0"},
    )(load_showo)
