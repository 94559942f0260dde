"""Networks as folders: settings as JSON, weights as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tts_vision.errors import PipelineError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_weights(module: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Writes the weights of a network; those that are floating-point numbers in `dtype`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load_weights(module: nn.Module, folder: Path) -> None:
    """Reads the weights of a network that `save_weights` wrote.

    Raises:
        PipelineError: If they are missing or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise PipelineError(
            f"{str(path)!r} must hold the weights of this network but: {str(error).splitlines()[0]}; install "
            "or save it again."
        ) from error


def write_settings(path: Path, values: Mapping[str, Any]) -> None:
    """Writes settings as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_settings(path: Path, kind: str) -> dict[str, Any]:
    """Reads settings that `write_settings` wrote, lists among them as tuples.

    Args:
        path: The file.
        kind: Of the pipeline that it belongs to, for the message.

    Raises:
        PipelineError: If it is missing or is not JSON.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise PipelineError(
            f"{kind} must have {path.name} but {str(path)!r} cannot be read: {error}; give the folder that "
            "save_pipeline wrote."
        ) from error
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
