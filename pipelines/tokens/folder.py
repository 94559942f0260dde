"""A Show-o as a folder: in the manner of diffusers, a part in each subfolder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from tts_vision.errors import PipelineError
from tts_vision.pipelines.tokens.latent_tokenizer import LatentTokenizer, LatentTokenizerConfig
from tts_vision.pipelines.tokens.layout import Layout
from tts_vision.pipelines.tokens.magvit import MAGVITConfig, MAGVITv2
from tts_vision.pipelines.tokens.showo import ShowoPipeline

PIPELINE, CONFIG, WEIGHTS = "pipeline.json", "config.json", "model.safetensors"
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
    from safetensors.torch import save_file

    kind = type(pipe.image_tokenizer).__name__
    if kind not in _TOKENIZERS:
        raise PipelineError(
            f"An image tokenizer in a folder must be one of {', '.join(_TOKENIZERS)} but got {kind}; save it "
            "yourself."
        )
    tokenizer: Any = pipe.image_tokenizer
    images = folder / "image_tokenizer"
    images.mkdir(parents=True, exist_ok=True)
    state = {key: _cast(value, dtype) for key, value in tokenizer.state_dict().items()}
    save_file(state, images / WEIGHTS, metadata={"format": "pt"})
    _write(images / CONFIG, {"kind": kind, **asdict(tokenizer.config)})
    transformer = folder / "transformer"
    transformer.mkdir(parents=True, exist_ok=True)
    weights = {key: _cast(value, dtype) for key, value in pipe.transformer.state_dict().items()}
    save_file(weights, transformer / WEIGHTS, metadata={"format": "pt"})
    pipe.transformer.config.save_pretrained(transformer)
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    settings = {"name": pipe.name, "family": pipe.family, "defaults": dict(pipe.defaults)}
    _write(folder / PIPELINE, {**settings, "layout": asdict(pipe.layout)})


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
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

    settings = _read(folder / PIPELINE)
    layout = Layout(**settings["layout"])
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in _read(folder / "image_tokenizer" / CONFIG).items()
    }
    made, configured = _TOKENIZERS[values.pop("kind")]
    transformer = PhiForCausalLM(PhiConfig.from_pretrained(folder / "transformer"))
    tokenizer = made(configured(**values))
    for module, part in ((transformer, "transformer"), (tokenizer, "image_tokenizer")):
        path = folder / part / WEIGHTS
        try:
            module.load_state_dict(load_file(path), strict=True)
        except (OSError, RuntimeError) as error:
            raise PipelineError(
                f"{str(path)!r} must hold the weights of its config.json but: {str(error).splitlines()[0]}; "
                "install or save the pipeline again."
            ) from error
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


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (value.to(dtype) if value.is_floating_point() else value).contiguous()


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise PipelineError(
            f"A pipeline of image tokens must have {path.name} but {str(path)!r} cannot be read: {error}; "
            "give the folder that save_pipeline wrote."
        ) from error
    return values


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
