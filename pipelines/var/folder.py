"""A visual autoregressive pipeline as a folder: in the manner of diffusers, a part in each subfolder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tts_vision.pipelines.module_folders import (
    CONFIG,
    load_weights,
    read_settings,
    save_weights,
    write_settings,
)
from tts_vision.pipelines.var.bsq_vae import BSQVAE, BSQVAEConfig
from tts_vision.pipelines.var.infinity import Infinity, InfinityConfig
from tts_vision.pipelines.var.latent_vae import LatentBSQVAE, LatentBSQVAEConfig
from tts_vision.pipelines.var.pipeline import InfinityPipeline
from tts_vision.pipelines.var.schedules import Schedule

# tokenizers with their configurations, by name; a folder that names none has the first
VAES: dict[str, tuple[Any, Any]] = {
    "BSQVAE": (BSQVAE, BSQVAEConfig),
    "LatentBSQVAE": (LatentBSQVAE, LatentBSQVAEConfig),
}
PIPELINE = "pipeline.json"
_KIND = "A visual autoregressive pipeline"


def save_pipeline(pipe: InfinityPipeline, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes a pipeline, its weights in `dtype`."""
    settings: dict[str, Any] = {
        "name": pipe.name,
        "defaults": dict(pipe.defaults),
        "vae": type(pipe.vae).__name__,
    }
    if pipe.schedule is not None:
        settings["schedule"] = asdict(pipe.schedule)
    for part, module in (("transformer", pipe.transformer), ("vae", pipe.vae)):
        save_weights(module, folder / part, dtype)
        write_settings(folder / part / CONFIG, asdict(module.config))
    pipe.text_encoder.to(dtype).save_pretrained(folder / "text_encoder")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    write_settings(folder / PIPELINE, settings)


def load_pipeline(folder: Path, *, dtype: torch.dtype = torch.float32) -> InfinityPipeline:
    """Reads a folder that `save_pipeline` wrote.

    Raises:
        PipelineError: If a file is missing or does not fit.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    settings = read_settings(folder / PIPELINE, _KIND)
    schedule = settings.get("schedule")
    vae, config = VAES[settings.get("vae", "BSQVAE")]
    sizes = read_settings(folder / "transformer" / CONFIG, _KIND)
    vae_sizes = read_settings(folder / "vae" / CONFIG, _KIND)
    return InfinityPipeline(
        transformer=_loaded(Infinity(InfinityConfig(**sizes)), folder / "transformer", dtype),
        vae=_loaded(vae(config(**vae_sizes)), folder / "vae", dtype),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        .eval()
        .requires_grad_(False),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        schedule=None
        if schedule is None
        else Schedule(tuple(map(tuple, schedule["grids"])), tuple(schedule["positions"])),
        defaults=settings["defaults"],
        name=settings["name"],
    )


def _loaded(module: Any, folder: Path, dtype: torch.dtype) -> Any:
    load_weights(module, folder)
    return module.to(dtype).eval().requires_grad_(False)
