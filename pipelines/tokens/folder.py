"""A Show-o as a folder: in the manner of diffusers, a part in each subfolder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from tts_vision.errors import PipelineError
from tts_vision.pipelines.module_folders import (
    CONFIG,
    load_weights,
    read_settings,
    save_weights,
    write_settings,
)
from tts_vision.pipelines.tokens.latent_tokenizer import LatentTokenizer, LatentTokenizerConfig
from tts_vision.pipelines.tokens.layout import Layout
from tts_vision.pipelines.tokens.magvit import MAGVITConfig, MAGVITv2
from tts_vision.pipelines.tokens.showo import ShowoPipeline

PIPELINE = "pipeline.json"
_KIND = "A pipeline of image tokens"
Pipeline = TypeVar("Pipeline", bound=ShowoPipeline)
# each kind of image tokenizer: its module and its configuration
_TOKENIZERS: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "MAGVITv2": (MAGVITv2, MAGVITConfig),
    "LatentTokenizer": (LatentTokenizer, LatentTokenizerConfig),
}


def save_pipeline(pipe: ShowoPipeline, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes a pipeline, its weights in `dtype`.

    Raises:
        PipelineError: If its image tokenizer is of no kind that `load_pipeline` knows.
    """
    kind = type(pipe.image_tokenizer).__name__
    if kind not in _TOKENIZERS:
        raise PipelineError(
            f"An image tokenizer in a folder must be one of {', '.join(_TOKENIZERS)} but got {kind}; save it "
            "yourself."
        )
    tokenizer: Any = pipe.image_tokenizer
    save_weights(tokenizer, folder / "image_tokenizer", dtype)
    write_settings(folder / "image_tokenizer" / CONFIG, {"kind": kind, **asdict(tokenizer.config)})
    save_weights(pipe.transformer, folder / "transformer", dtype)
    pipe.transformer.config.save_pretrained(folder / "transformer")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    settings = {"name": pipe.name, "family": pipe.family, "defaults": dict(pipe.defaults)}
    write_settings(folder / PIPELINE, {**settings, "layout": asdict(pipe.layout)})


def load_pipeline(
    folder: Path,
    kind: Callable[..., Pipeline] = ShowoPipeline,  # type: ignore[assignment]
    *,
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """Reads a folder that `save_pipeline` wrote.

    Args:
        folder: The folder.
        kind: Class of the pipeline.
        dtype: Precision of the language model; its head and the image tokenizer are in float32.

    Raises:
        PipelineError: If a file is missing or does not fit, or the folder is of another family of models.
    """
    from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

    settings = read_settings(folder / PIPELINE, _KIND)
    layout = Layout(**settings["layout"])
    values = read_settings(folder / "image_tokenizer" / CONFIG, _KIND)
    made, configured = _TOKENIZERS[values.pop("kind")]
    transformer = PhiForCausalLM(PhiConfig.from_pretrained(folder / "transformer"))
    tokenizer = made(configured(**values))
    for module, part in ((transformer, "transformer"), (tokenizer, "image_tokenizer")):
        load_weights(module, folder / part)
        module.eval().requires_grad_(False)
    for weight in transformer.model.parameters():
        weight.data = weight.data.to(dtype)  # and no buffers: rotary frequencies stay in float32
    pipe = kind(
        transformer,
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer,
        layout,
        settings["defaults"],
        settings["name"],
    )
    if pipe.family != settings["family"]:
        raise PipelineError(
            f"{str(folder)!r} must hold a model of the family {pipe.family!r} but holds one of "
            f"{settings['family']!r}; load it as that."
        )
    return pipe
