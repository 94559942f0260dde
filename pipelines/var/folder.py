"""A visual autoregressive pipeline as a folder: in the manner of diffusers, a part in each subfolder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tts_vision.errors import PipelineError
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
PIPELINE, CONFIG, WEIGHTS = "pipeline.json", "config.json", "model.safetensors"


def save_pipeline(pipe: InfinityPipeline, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes a pipeline, its weights in `dtype`."""
    settings: dict[str, Any] = {
        "name": pipe.name,
        "defaults": dict(pipe.defaults),
        "vae": type(pipe.vae).__name__,
    }
    if pipe.schedule is not None:
        settings["schedule"] = asdict(pipe.schedule)
    _save_module(pipe.transformer, pipe.transformer.config, folder / "transformer", dtype)
    _save_module(pipe.vae, pipe.vae.config, folder / "vae", dtype)
    pipe.text_encoder.to(dtype).save_pretrained(folder / "text_encoder")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    _write(folder / PIPELINE, settings)


def load_pipeline(folder: Path, *, dtype: torch.dtype = torch.float32) -> InfinityPipeline:
    """Reads a folder that `save_pipeline` wrote.

    Raises:
        PipelineError: If a file is missing or does not fit.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    settings = _read(folder / PIPELINE)
    schedule = settings.get("schedule")
    vae, config = VAES[settings.get("vae", "BSQVAE")]
    vae_config: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in _read(folder / "vae" / CONFIG).items()
    }
    return InfinityPipeline(
        transformer=_load_module(
            Infinity(InfinityConfig(**_read(folder / "transformer" / CONFIG))), folder / "transformer", dtype
        ),
        vae=_load_module(vae(config(**vae_config)), folder / "vae", dtype),
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


def _save_module(module: nn.Module, config: Any, folder: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.to(dtype).contiguous() for key, value in module.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _write(folder / CONFIG, asdict(config))


def _load_module(module: Any, folder: Path, dtype: torch.dtype) -> Any:
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError) as error:
        raise PipelineError(
            f"{str(path)!r} must hold the weights of its config.json but: {str(error).splitlines()[0]}; "
            "install or save the pipeline again."
        ) from error
    return module.to(dtype).eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise PipelineError(
            f"A visual autoregressive pipeline must have {path.name} but {str(path)!r} cannot be read: "
            f"{error}; give the folder that save_pipeline wrote."
        ) from error


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
